//! What can be done to the circuits of a private network while it runs, through control ports.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use super::{Control, TorNetwork};
use crate::{Because, Result};

/// Closes each of the client's circuits as soon as it is built, until it is dropped.
#[derive(Debug)]
pub struct Saboteur {
    closed: Arc<AtomicUsize>,
    /// Dropped to stop.
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Saboteur {
    /// How many circuits it has closed.
    pub fn closed(&self) -> usize {
        self.closed.load(Ordering::Relaxed)
    }
}

impl Drop for Saboteur {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed.
            let _ = thread.join();
        }
    }
}

impl TorNetwork {
    /// Makes every circuit of the client fail: those that there are at once, each new one when it is built.
    ///
    /// On a thread of its own: whoever measures the daemon may be busy.
    pub async fn break_circuits(&self) -> Result<Saboteur> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.because("start a runtime for the saboteur")?;
        let (address, cookie) = (self.control(), self.cookie());
        let closed = Arc::<AtomicUsize>::default();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (begun_tx, begun) = tokio::sync::oneshot::channel();
        let count = Arc::clone(&closed);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                let begin = async {
                    let mut events = Control::connect(address, &cookie).await?;
                    let mut orders = Control::connect(address, &cookie).await?;
                    events.command("SETEVENTS CIRC").await?;
                    for circuit in orders.circuit_status().await? {
                        close(&mut orders, &circuit.id, &count).await;
                    }
                    Ok((events, orders))
                };
                let (mut events, mut orders) = match begin.await {
                    Ok(both) => both,
                    Err(trouble) => return drop(begun_tx.send(Err(trouble))),
                };
                let _ = begun_tx.send(Ok(()));
                let work = async {
                    // An error is a client that was stopped: it has no circuits.
                    while let Ok(event) = events.event().await {
                        let mut words = event.split(' ').skip(1);
                        if let (Some(id), Some("BUILT")) = (words.next(), words.next()) {
                            close(&mut orders, id, &count).await;
                        }
                    }
                };
                tokio::select! { () = work => {}, _ = stopped => {} }
            });
        });
        let saboteur = Saboteur { closed, stop: Some(stop), thread: Some(thread) };
        begun.await.because("hear of the saboteur")??;
        Ok(saboteur)
    }

    /// Has the client leave through one exit alone, by its place in [`TorNetwork::exits`], from the next circuit on.
    pub async fn use_exit(&self, exit: usize) -> Result<()> {
        let order = format!("SETCONF ExitNodes={} StrictNodes=1", self.exits[exit].name);
        self.open_control().await?.command(&order).await.map(drop)
    }

    /// Has the client leave through any exit again, from the next circuit on.
    pub async fn use_all_exits(&self) -> Result<()> {
        self.open_control().await?.command("RESETCONF ExitNodes StrictNodes").await.map(drop)
    }

    /// Has the client give a circuit up that is not built within this time. It would learn such a time from some hundred
    /// circuits; before that it waits for a minute.
    pub async fn expect_circuits_within(&self, seconds: u32) -> Result<()> {
        let order = format!("SETCONF LearnCircuitBuildTimeout=0 CircuitBuildTimeout={seconds}");
        self.open_control().await?.command(&order).await.map(drop)
    }

    /// Has an exit refuse this port from now on, which no client knows, or none again.
    pub async fn refuse_port(&self, exit: usize, port: Option<u16>) -> Result<()> {
        let refused = port.map(|port| format!("reject *:{port},")).unwrap_or_default();
        let number = u8::try_from(Self::number(exit)).because("number the relays")?;
        let order = format!("SETCONF ExitPolicy=\"{refused}accept *:*\"");
        self.open_relay_control(number).await?.command(&order).await.map(drop)
    }
}

async fn close(orders: &mut Control, id: &str, count: &AtomicUsize) {
    // One that failed by itself meanwhile is unknown.
    if orders.command(&format!("CLOSECIRCUIT {id}")).await.is_ok() {
        count.fetch_add(1, Ordering::Relaxed);
    }
}
