//! The listener's loop, the connections and their end.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::Settings;
use super::service::{Asker, Probe};
use super::stream::Stream;
use crate::descriptors;
use crate::failpoint::{self, Point};
use crate::ledger::LedgerHandle;
use crate::scraper::roster::Roster;
use crate::telemetry::Event;

/// What the way in needs of the rest.
#[derive(Debug)]
pub struct Args {
    pub ledger: LedgerHandle,
    pub settings: watch::Receiver<Arc<Settings>>,
    /// At most so many at once; the rest waits in the kernel's queue.
    pub connections: usize,
    /// What `/readyz` tells besides: Tor, circuits, shops.
    pub status: watch::Receiver<serde_json::Value>,
    /// What `GET /api/circuits` tells.
    pub roster: Roster,
    /// Changes after each accepted batch, so that the coordinators need not poll for it.
    pub batches: watch::Sender<u64>,
}

/// What the supervisor keeps: starts the actor, again if need be, and drains what it left behind.
#[derive(Clone, Debug)]
pub struct Ingress {
    shared: Arc<Shared>,
}

/// What every connection shares; outlives restarts of the actor.
pub struct Shared {
    pub(super) ledger: LedgerHandle,
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) status: watch::Receiver<serde_json::Value>,
    pub(super) roster: Roster,
    batches: watch::Sender<u64>,
    pub(super) phase: watch::Sender<Phase>,
    /// One for each connection (I1); all of them back means that nobody is asking any more.
    slots: Arc<Semaphore>,
    slots_max: u32,
    pub(super) probe: Mutex<Option<(Instant, Probe)>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("phase", &*self.phase.borrow()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn wake_coordinators(&self) {
        self.batches.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// ```text
/// Serving ──► Draining ──► Closing ──► Cut
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// Nothing more is accepted; what comes on an open connection is answered, and the connection closed after it.
    Draining,
    /// Connections without a request are closed.
    Closing,
    /// Every connection is closed, with or without an answer.
    Cut,
}

/// How long the parts of a drain may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long a silent connection is kept for a submit that may be on its way.
    pub idle_for: Duration,
    /// All of it.
    pub within: Duration,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that had to be cut.
    pub cut: u32,
}

impl Ingress {
    pub fn new(args: Args) -> Self {
        let Args { ledger, settings, connections, status, roster, batches } = args;
        let connections = connections.clamp(1, Semaphore::MAX_PERMITS);
        let slots_max = u32::try_from(connections).unwrap_or(u32::MAX);
        let slots = Arc::new(Semaphore::new(slots_max as usize));
        let shared = Shared {
            ledger,
            settings,
            status,
            roster,
            batches,
            phase: watch::Sender::new(Phase::Serving),
            slots,
            slots_max,
            probe: Mutex::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Accepts from `listener`, which is let go of when the actor ends or drains. Connections of an earlier actor go on.
    pub async fn start(
        &self,
        listener: Arc<TcpListener>,
        supervisor: ActorCell,
    ) -> Result<ActorCell, SpawnErr> {
        let actor = IngressActor { shared: Arc::clone(&self.shared) };
        // Without a name: ractor's names are global, and two of these in one process (tests) would collide.
        let (actor, _) = Actor::spawn_linked(None, actor, listener, supervisor).await?;
        Ok(actor.get_cell())
    }

    /// Stops accepting at once, answers what is in flight or still comes on open connections, and returns when the last
    /// is closed or cut. Call it before the actor is stopped: connections just accepted are still in its mailbox.
    pub async fn drain(&self, drain: Drain) -> Drained {
        let Shared { phase, slots, slots_max, .. } = self.shared.as_ref();
        let until = Instant::now() + drain.within;
        let idle_until = until.min(Instant::now() + drain.idle_for);
        phase.send_replace(Phase::Draining);
        for (until, next) in [(idle_until, Phase::Closing), (until, Phase::Cut)] {
            if timeout_at(until, slots.acquire_many(*slots_max)).await.is_ok() {
                return Drained { cut: 0 };
            }
            phase.send_replace(next);
        }
        let free = u32::try_from(slots.available_permits()).unwrap_or(u32::MAX);
        Drained { cut: slots_max.saturating_sub(free) }
    }

    pub fn is_draining(&self) -> bool {
        *self.shared.phase.borrow() != Phase::Serving
    }
}

enum Msg {
    /// Tell: somebody connected. The slot travels with the connection. Sent by the accept loop.
    Connected { tcp: TcpStream, peer: SocketAddr, slot: OwnedSemaphorePermit },
    /// Tell: the accept loop ended although nobody asked it to.
    LoopEnded,
}

struct IngressActor {
    shared: Arc<Shared>,
}

impl Actor for IngressActor {
    type Msg = Msg;
    type State = AcceptLoop;
    type Arguments = Arc<TcpListener>;

    async fn pre_start(
        &self,
        me: ActorRef<Msg>,
        listener: Arc<TcpListener>,
    ) -> Result<AcceptLoop, ActorProcessingErr> {
        Ok(AcceptLoop(tokio::spawn(accept_all(listener, me, Arc::clone(&self.shared)))))
    }

    async fn handle(&self, _: ActorRef<Msg>, msg: Msg, _: &mut AcceptLoop) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Connected { tcp, peer, slot } => {
                failpoint::hit(Point::IngressConnection);
                tokio::spawn(serve(tcp, peer, slot, Arc::clone(&self.shared)));
                Ok(())
            }
            Msg::LoopEnded => Err("the accept loop ended".into()),
        }
    }
}

/// Ends with the actor's state (I2).
struct AcceptLoop(JoinHandle<()>);

impl Drop for AcceptLoop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells the actor if the loop ends in any way that was not asked for; to an actor that is gone it tells nothing.
struct TellIfLost(Option<ActorRef<Msg>>);

impl Drop for TellIfLost {
    fn drop(&mut self) {
        if let Some(me) = self.0.take() {
            let _ = me.cast(Msg::LoopEnded);
        }
    }
}

async fn accept_all(listener: Arc<TcpListener>, me: ActorRef<Msg>, shared: Arc<Shared>) {
    let mut lost = TellIfLost(Some(me.clone()));
    let mut phase = shared.phase.subscribe();
    let accept = async {
        let mut failures = 0;
        let (mut told_full, mut told_paused) = (None, None);
        loop {
            if shared.slots.available_permits() == 0 && descriptors::is_time(&mut told_full, Instant::now()) {
                Event::ConnectionsFull { connections: shared.slots_max.into() }.emit();
            }
            match accept_one(&listener, &shared.slots).await {
                Ok((tcp, peer, slot)) => {
                    failures = 0;
                    // Fails only if the actor is gone, and then this loop is about to be.
                    let _ = me.cast(Msg::Connected { tcp, peer, slot });
                }
                Err(error) => {
                    let Some(pause) = pause_after(&error, failures) else { continue };
                    if descriptors::is_time(&mut told_paused, Instant::now()) {
                        Event::ListenerPaused { detail: &error.to_string() }.emit();
                    }
                    failures = failures.saturating_add(1);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => {}
        () = accept => {}
    }
    lost.0 = None;
}

/// Over the limit nobody is accepted: they wait in the kernel's queue, where they cost nothing.
async fn accept_one(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let (tcp, peer) = listener.accept().await?;
    Ok((tcp, peer, slot))
}

/// How long to leave the listener alone. `None` after an error of that one connection, which is gone (accept(2)).
///
/// Without the pause a process that is out of descriptors spins: the connection it cannot take stays in the queue.
fn pause_after(error: &io::Error, failures: u32) -> Option<Duration> {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable, PermissionDenied,
    };
    match error.kind() {
        ConnectionAborted | ConnectionRefused | ConnectionReset | HostUnreachable | Interrupted
        | NetworkDown | NetworkUnreachable | PermissionDenied => None,
        _ => Some(PAUSE_MIN.saturating_mul(1 << failures.min(8)).min(PAUSE_MAX)),
    }
}

/// The shortest pause lets a burst of connections end; the longest is what a person would still call at once.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// hyper refuses a smaller buffer.
const HEADER_BYTES_MIN: usize = 8192;

async fn serve(tcp: TcpStream, peer: SocketAddr, slot: OwnedSemaphorePermit, shared: Arc<Shared>) {
    let limits = shared.settings.borrow().limits;
    let mut phase = shared.phase.subscribe();
    // Costs up to 40 ms per answer on a kept connection if it fails, and nothing else.
    let _ = tcp.set_nodelay(true);
    let io = TokioIo::new(Stream::new(tcp, limits.request_timeout));
    let asker = Arc::new(Asker { shared, peer, slot: Arc::new(slot) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.header_bytes_max.max(HEADER_BYTES_MIN))
        .serve_connection(io, service_fn(move |request| Arc::clone(&asker).answer(request)));
    let mut connection = pin!(connection);
    // How a connection ends is its peer's business: what was refused is logged where it was refused.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = phase.wait_for(|phase| Phase::Closing <= *phase) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection => {}
        _ = phase.wait_for(|phase| *phase == Phase::Cut) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accept_without_descriptors_pauses_ever_longer_and_a_lost_connection_does_not() {
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        for errno in [ENFILE, EMFILE] {
            let error = io::Error::from_raw_os_error(errno);
            let pauses: Vec<_> = (0..20).filter_map(|failures| pause_after(&error, failures)).collect();
            assert_eq!((pauses.len(), pauses[0], pauses[19]), (20, PAUSE_MIN, PAUSE_MAX));
            assert!(pauses.is_sorted());
        }
        assert_eq!(pause_after(&io::ErrorKind::ConnectionAborted.into(), 0), None);
    }
}
