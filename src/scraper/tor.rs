//! Whether Tor is there. If it is not, nothing goes out: visits wait, none is charged, and one event says so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::probe::{self, TorAway};
use crate::telemetry::Event;

/// How often the port is looked at while Tor is there: a paused tor accepts connections and says nothing, so a visit
/// alone would notice it only by its time-out.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often while it is away: an operator who restarts tor should not wait.
const LOOK_EVERY_WHEN_AWAY: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TorState {
    /// Before the first look.
    Unknown,
    There,
    Away {
        reason: String,
        /// The port answers but circuits do not: only an exit that answers for this name shows that Tor is back.
        prove_with: Option<String>,
    },
}

impl TorState {
    pub fn is_there(&self) -> bool {
        *self == Self::There
    }
}

/// What scrapers and the pool know of Tor. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TorGate {
    state: watch::Sender<TorState>,
    socks: Arc<str>,
    born: Instant,
    /// Milliseconds after `born` at which a byte last came through a circuit.
    last_proof_ms: Arc<AtomicU64>,
}

impl TorGate {
    pub fn new(socks: SocketAddr) -> Self {
        let state = watch::channel(TorState::Unknown).0;
        let socks = socks.to_string().into();
        Self { state, socks, born: Instant::now(), last_proof_ms: Arc::default() }
    }

    /// `host:port` of the SOCKS port.
    pub fn socks(&self) -> &str {
        &self.socks
    }

    pub fn watch(&self) -> watch::Receiver<TorState> {
        self.state.subscribe()
    }

    pub fn is_there(&self) -> bool {
        self.state.borrow().is_there()
    }

    /// A byte of a shop came through a circuit: Tor is there, whatever another circuit says.
    pub fn prove(&self) {
        let ms = self.born.elapsed().as_millis() as u64;
        self.last_proof_ms.fetch_max(ms, Ordering::AcqRel);
    }

    /// Whether some circuit brought a byte no longer ago than this.
    pub fn proven_within(&self, fresh: Duration) -> bool {
        let proven = self.last_proof_ms.load(Ordering::Acquire);
        proven > 0 && (self.born + Duration::from_millis(proven)).elapsed() < fresh
    }

    /// Somebody met Tor's absence. `prove_with`: the name of a host that no circuit reached.
    pub fn lose(&self, away: &TorAway, prove_with: Option<String>) {
        if away.lack {
            return; // Nobody knows; who met it waits and asks again.
        }
        let reason = away.reason.clone();
        let lost = self.state.send_if_modified(|state| {
            if matches!(state, TorState::Away { .. }) {
                return false; // Said once.
            }
            *state = TorState::Away { reason: reason.clone(), prove_with };
            true
        });
        if lost {
            Event::TorLost { reason: &reason, socks: &self.socks }.emit();
        }
    }

    fn find(&self) {
        let found = self.state.send_if_modified(|state| {
            let was_there = state.is_there();
            *state = TorState::There;
            !was_there
        });
        if found {
            Event::TorFound { socks: &self.socks }.emit();
        }
    }

    /// Looks at the port for ever.
    pub async fn keep_looking(self, timeout: Duration) {
        loop {
            let prove_with = match &*self.state.borrow() {
                TorState::Away { prove_with, .. } => prove_with.clone(),
                TorState::Unknown | TorState::There => None,
            };
            let look = match prove_with {
                Some(host) => probe::probe_circuit(&self.socks, &host, timeout).await,
                None => probe::probe_port(&self.socks, timeout).await,
            };
            match look {
                Ok(()) => self.find(),
                Err(away) => self.lose(&away, None),
            }
            let pause = if self.is_there() { LOOK_EVERY } else { LOOK_EVERY_WHEN_AWAY };
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_descriptors_says_nothing_of_tor() {
        let gate = TorGate::new(([127, 0, 0, 1], 9050).into());
        gate.find();
        for (code, there) in [(24, true), (111, false)] {
            let error = std::io::Error::from_raw_os_error(code);
            gate.lose(&TorAway::unreached(gate.socks(), &error), None);
            assert_eq!(gate.is_there(), there, "{error}");
        }
    }
}
