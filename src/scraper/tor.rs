//! Whether Tor is there. If it is not, nothing goes out: visits wait, none is charged, and one event says so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::control::Control;
use super::fetch::FetchError;
use super::probe::{self, TorAway};
use crate::supervisor::policy::{Backoff, Roll};
use crate::telemetry::Event;

/// How often the port is looked at while Tor is there: a paused tor accepts connections and says nothing, so a visit
/// alone would notice it only by its time-out.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often while it is away: an operator who restarts tor should not wait.
const LOOK_EVERY_WHEN_AWAY: Duration = Duration::from_millis(500);
/// How often an exit is asked for while no circuit works: each question has Tor build circuits, which is what it cannot do.
const ASK_WHEN_AWAY: Backoff = Backoff { min: LOOK_EVERY_WHEN_AWAY, max: Duration::from_secs(5) };

/// A byte through another circuit this long ago still shows that Tor is there.
const PROOF_FRESH: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TorState {
    /// Before the first look.
    #[default]
    Unknown,
    There,
    Away {
        reason: String,
        /// The host that no circuit reached, if that is how it was met: best to ask an exit for.
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
    /// Microseconds after `born` at which a byte last came through a circuit.
    last_proof_us: Arc<AtomicU64>,
    /// What has a say in the strict grade.
    control: Option<Control>,
}

impl TorGate {
    pub fn new(socks: SocketAddr) -> Self {
        let state = watch::channel(TorState::Unknown).0;
        let socks = socks.to_string().into();
        Self { state, socks, born: Instant::now(), last_proof_us: Arc::default(), control: None }
    }

    /// Where there is a control port; in the strict grade nothing goes out without it.
    pub fn controlled_by(self, control: Option<Control>) -> Self {
        Self { control, ..self }
    }

    pub fn control(&self) -> Option<&Control> {
        self.control.as_ref()
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
        let us = self.born.elapsed().as_micros() as u64;
        self.last_proof_us.fetch_max(us, Ordering::AcqRel);
    }

    /// Whether some circuit brought a byte no longer ago than this.
    pub fn proven_within(&self, fresh: Duration) -> bool {
        let proven = self.last_proof_us.load(Ordering::Acquire);
        proven > 0 && (self.born + Duration::from_micros(proven)).elapsed() < fresh
    }

    /// Whether some circuit brought a byte after this moment.
    pub fn proven_since(&self, moment: Instant) -> bool {
        let proven = self.last_proof_us.load(Ordering::Acquire);
        proven > 0 && self.born + Duration::from_micros(proven) >= moment
    }

    /// Whether Tor was there when a visit met `error` at `host`; if not, what [`Self::lose`] is to be told.
    ///
    /// Looks at the port first, which a tor that was just killed has closed: it cuts what is in flight like a bad exit.
    /// Then, if the failure itself proves nothing, for an exit that answers. The circuits of a probe may be slow while
    /// others deliver, and losing Tor cancels those: what they bring meanwhile has the last word.
    pub async fn was_there(
        &self,
        error: &FetchError,
        host: &str,
        within: Duration,
    ) -> Result<(), (TorAway, Option<String>)> {
        probe::probe_port(&self.socks, within).await.map_err(|away| (away, None))?;
        let proves_itself = error.seen_bytes() && error.kind() != "timeout";
        if proves_itself || self.proven_within(PROOF_FRESH) {
            return Ok(());
        }
        let began = Instant::now();
        match probe::probe_circuit(&self.socks, host, within).await {
            Err(away) if !self.proven_since(began) => Err((away, Some(host.to_owned()))),
            Ok(()) | Err(_) => Ok(()),
        }
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
        let mut controls = self.control.as_ref().filter(|control| control.is_strict()).map(Control::watch);
        let mut asked_in_vain = 0;
        loop {
            let lost = match &*self.state.borrow() {
                TorState::Away { prove_with, .. } => Some(prove_with.clone()),
                TorState::Unknown | TorState::There => None,
            };
            let mut asks = false;
            let mut look = probe::probe_port(&self.socks, timeout).await;
            // A tor that was started again answers long before it has a circuit; visits would lose it once more.
            if let (Ok(()), Some(host)) = (&look, lost) {
                asks = true;
                look = probe::probe_circuit(&self.socks, host.as_deref().unwrap_or_default(), timeout).await;
            }
            match look {
                Ok(()) => match self.control.as_ref().map_or(Ok(true), Control::lets_dial) {
                    Ok(true) => self.find(),
                    Ok(false) => {} // It is being asked.
                    Err(away) => self.lose(&away, None),
                },
                Err(away) => self.lose(&away, None),
            }
            let pause = if self.is_there() { LOOK_EVERY } else { pause_when_away(asked_in_vain) };
            asked_in_vain = if asks && !self.is_there() { asked_in_vain.saturating_add(1) } else { 0 };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = Control::changed(controls.as_mut()) => {}
            }
        }
    }
}

/// After so many questions to an exit in a row that came to nothing.
fn pause_when_away(asked_in_vain: u32) -> Duration {
    ASK_WHEN_AWAY.pause(asked_in_vain, Roll(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::page::{Request, Via};
    use crate::scraper::circuit::{Circuit, Settings};
    use crate::scraper::fetch::FetchLimits;
    use crate::scraper::fetch::tests::{limits, settings, soon};
    use crate::scraper::stand_in::{Manner, PROBE, Shop, Socks};

    const SOON: Duration = Duration::from_secs(60);
    const SILENCE: FetchError = FetchError::Deadline { seen: false };

    /// A shop that never ends its page, behind a port that lets no probe through.
    async fn stage() -> (Shop, Socks, Settings) {
        let shop = Shop::start(None, |mut visitor| async move {
            visitor.request().await?;
            visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<html>").await?;
            visitor.linger().await;
            None
        })
        .await;
        let socks = Socks::start(Manner::HoldsProbes { to: shop.address }).await;
        let settings = settings(&socks.address, None);
        (shop, socks, settings)
    }

    #[tokio::test]
    async fn first_bytes_through_another_circuit_outweigh_a_probe_that_fails() {
        let (_shop, socks, settings) = stage().await;
        let tor = settings.tor.clone();
        let others = async {
            socks.dialled(PROBE).await;
            let limits = FetchLimits { silence: Duration::from_millis(50), ..limits() };
            let page = Request::get("http://www.shop.example/".parse().unwrap());
            let mut circuit = Circuit::new(1, 41, 1, settings);
            let fetched = circuit.fetch(&page, Via::Tor, &limits, &[], soon()).await;
            assert!(matches!(fetched, Err(FetchError::SilenceTimeout { .. })), "{fetched:?}");
            socks.hang_up_on_probes();
        };
        let (was_there, ()) = tokio::join!(tor.was_there(&SILENCE, "dead.example", SOON), others);
        assert_eq!(was_there, Ok(()));
    }

    #[tokio::test]
    async fn a_probe_that_fails_while_nothing_else_comes_through_tells_that_tor_is_away() {
        let (_shop, socks, settings) = stage().await;
        let nobody = async {
            socks.dialled(PROBE).await;
            socks.hang_up_on_probes();
        };
        let (was_there, ()) = tokio::join!(settings.tor.was_there(&SILENCE, "dead.example", SOON), nobody);
        let (_, prove_with) = was_there.unwrap_err();
        assert_eq!(prove_with.as_deref(), Some("dead.example"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_proof_counts_from_its_own_moment_on() {
        let tor = TorGate::new(([127, 0, 0, 1], 9050).into());
        tokio::time::advance(Duration::from_secs(1)).await;
        let before = Instant::now();
        assert!(!tor.proven_since(before));
        tor.prove();
        assert!(tor.proven_since(before));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!tor.proven_since(Instant::now()), "what was before a probe says nothing about it");
        assert!(!tor.proven_within(PROOF_FRESH));
    }

    #[tokio::test]
    async fn a_port_that_answers_again_is_believed_only_with_a_circuit() {
        const NO_PROOF: u8 = 0x01;
        let socks = Socks::start(Manner::Replies { connect: NO_PROOF, resolve: NO_PROOF }).await;
        let gate = TorGate::new(socks.address.parse().unwrap());
        gate.lose(&TorAway::new("killed"), None);
        let looking = tokio::spawn(gate.clone().keep_looking(SOON));
        // The second look is over when the third asks.
        tokio::select! {
            () = socks.dialled_times(PROBE, 3) => {}
            _ = async { gate.watch().wait_for(TorState::is_there).await.map(drop) } => {
                panic!("it greets, and has no circuit")
            }
        }
        looking.abort();

        let socks = Socks::start(Manner::Replies { connect: 0x04, resolve: NO_PROOF }).await;
        let gate = TorGate::new(socks.address.parse().unwrap());
        gate.lose(&TorAway::new("killed"), None);
        let looking = tokio::spawn(gate.clone().keep_looking(SOON));
        gate.watch().wait_for(TorState::is_there).await.unwrap();
        looking.abort();
    }

    #[test]
    fn a_tor_that_cannot_build_is_asked_less_and_less_and_one_that_is_not_there_is_looked_for_at_once() {
        let [first, second, third, last] = [0, 1, 2, u32::MAX].map(pause_when_away);
        assert_eq!((first, second), (LOOK_EVERY_WHEN_AWAY, 2 * LOOK_EVERY_WHEN_AWAY));
        assert_eq!((third, last), (4 * LOOK_EVERY_WHEN_AWAY, Duration::from_secs(5)));
    }

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
