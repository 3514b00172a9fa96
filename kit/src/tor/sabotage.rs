//! What can be done to the circuits of a private network while it runs, through control ports.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use rustix::process::Signal;

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

    /// Has the client build no circuit by way of this relay, by its place in [`TorNetwork::exits`], and leave through any
    /// other; what it carries by that way goes on. In a network of four, three circuits in four would have it.
    pub async fn avoid(&self, exit: usize) -> Result<()> {
        let order = format!("SETCONF ExcludeNodes={}", self.exits[exit].name);
        self.open_control().await?.command(&order).await?;
        self.use_all_exits().await
    }

    /// Has an exit refuse this port from now on, or none again, which no client knows. Starts it again: a running one
    /// takes a minute to believe its own new policy.
    pub async fn refuse_port(&self, exit: usize, port: Option<u16>) -> Result<()> {
        const ALL: &str = "ExitPolicy accept *:*";
        self.kill_exit(exit);
        let path = self.run.join(&self.exits[exit].name).join("torrc");
        let torrc = fs::read_to_string(&path).because(format_args!("read {}", path.display()))?;
        let kept = torrc.lines().filter(|line| !line.starts_with("ExitPolicy reject"));
        let refused = port.map(|port| format!("ExitPolicy reject *:{port}\n")).unwrap_or_default();
        let torrc: String = kept
            .map(|line| if line == ALL { format!("{refused}{ALL}\n") } else { format!("{line}\n") })
            .collect();
        fs::write(&path, torrc).because(format_args!("write {}", path.display()))?;
        self.revive_exit(exit).await
    }

    /// Undoes whatever was done, also by a test that failed halfway: every relay runs, no nameserver lies, and the client
    /// is a new one, which knows of no trouble.
    pub async fn mend(&self) -> Result<()> {
        self.dns().be_honest();
        for exit in 0..self.exits.len() {
            let is_there = self.signal_exit(exit, Signal::CONT).is_ok();
            if !is_there {
                self.revive_exit(exit).await?;
            }
        }
        self.stop_client();
        self.start_client().await
    }
}

async fn close(orders: &mut Control, id: &str, count: &AtomicUsize) {
    // One that failed by itself meanwhile is unknown.
    if orders.command(&format!("CLOSECIRCUIT {id}")).await.is_ok() {
        count.fetch_add(1, Ordering::Relaxed);
    }
}
