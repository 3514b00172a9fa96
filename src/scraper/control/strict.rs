//! The strict grade: a circuit for each scraper, launched by us, with an exit that is known before anything goes out.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::Control;
use super::book::{Attach, Progress};
use super::client::Client;
use super::protocol::{CircuitNo, Hop, Owner, Stream};
use crate::scraper::probe::TorAway;
use crate::scraper::relay::ExitRelay;
use crate::supervisor::policy::{Backoff, Roll};

/// Launches for one dial that end on exits which the shop blocks. With half of all exits blocked, one dial in four
/// thousand finds none.
pub const ELSEWHERE_MAX: u32 = 12;
/// Launches in a row that fail, while nobody else's succeed, before tor is taken for one that cannot build.
const TRIES_MAX: u32 = 3;
/// Tor gives up by itself sooner, by what it has learnt of its network; a test network has 60 s.
const BUILT_WITHIN: Duration = Duration::from_secs(20);
/// Between two trials of a tor that cannot build.
const TRIALS: Backoff = Backoff { min: Duration::from_millis(500), max: Duration::from_secs(30) };

/// Why a scraper has no circuit.
#[derive(Debug)]
pub enum Unbound {
    Away(TorAway),
    /// So many circuits ended on exits that the shop blocks, or, if none did, were lost.
    NoOtherExit {
        tried: u32,
        blocked: bool,
    },
}

impl Control {
    /// The circuit that this owner's streams will go through; launched if there is none that lives, until its exit is
    /// none that `is_blocked`.
    pub async fn bind(
        &self,
        owner: &Owner,
        is_blocked: impl Fn(&ExitRelay) -> bool,
    ) -> Result<CircuitNo, Unbound> {
        let mut blocked = false;
        for _ in 0..=ELSEWHERE_MAX {
            let client = self.client_or_away()?;
            let bound = self.0.book.borrow().bound(owner);
            let (circuit, exit) = match bound {
                Some(bound) => bound,
                None => {
                    self.0.book.send_modify(|book| book.bind(owner, None));
                    let Some(built) = self.build(&client).await? else { continue };
                    self.0.book.send_modify(|book| book.bind(owner, Some(built.0)));
                    built
                }
            };
            if !is_blocked(&*self.relay(&client, &exit).await) {
                return Ok(circuit);
            }
            blocked = true;
            // Nothing went through it for this shop, so this is no rotation: only another choice.
            self.0.book.send_modify(|book| book.bind(owner, None));
            client.close_circuit(circuit);
        }
        Err(Unbound::NoOtherExit { tried: ELSEWHERE_MAX, blocked })
    }

    /// Whether the circuit still stands.
    pub fn stands(&self, circuit: CircuitNo) -> bool {
        matches!(self.0.book.borrow().progress(circuit), Progress::Built(_))
    }

    fn client_or_away(&self) -> Result<Client, Unbound> {
        self.lets_dial().map_err(Unbound::Away)?;
        let nobody =
            || Unbound::Away(TorAway::new("the strict grade needs the control port, which is not there yet"));
        self.client().ok_or_else(nobody)
    }

    /// `None`: the launches of this one failed, but not those of others.
    async fn build(&self, client: &Client) -> Result<Option<(CircuitNo, Hop)>, Unbound> {
        // Closed never: the semaphore lives as long as this.
        let _turn = self.0.builds.acquire().await;
        let before = self.0.built.load(Ordering::Relaxed);
        let mut reason = String::new();
        for _ in 0..TRIES_MAX {
            match self.build_once(client).await {
                Ok(built) => return Ok(Some(built)),
                Err(why) => reason = why,
            }
            // The connection may have gone meanwhile, which is another matter.
            self.client_or_away()?;
        }
        if before != self.0.built.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.cannot_build(&reason);
        Err(Unbound::Away(TorAway::new(format!("tor builds no circuit: {reason}"))))
    }

    async fn build_once(&self, client: &Client) -> Result<(CircuitNo, Hop), String> {
        let circuit = client.launch_circuit().await.map_err(|error| error.to_string())?;
        let launched = Launched { client, circuit };
        client.keep_circuit(circuit).await.map_err(|error| error.to_string())?;
        let mut book = self.0.book.subscribe();
        self.0.book.send_modify(|book| book.expect(circuit));
        let built = timeout(BUILT_WITHIN, async {
            let settled = book.wait_for(|book| book.progress(circuit) != Progress::Underway).await;
            settled.map_or(Progress::Over, |book| book.progress(circuit))
        });
        match built.await {
            Ok(Progress::Built(exit)) => {
                self.0.built.fetch_add(1, Ordering::Relaxed);
                launched.keep();
                Ok((circuit, exit))
            }
            Ok(Progress::Over | Progress::Underway) => Err(format!("circuit {circuit} failed")),
            Err(_) => Err(format!("circuit {circuit} was not built within {BUILT_WITHIN:?}")),
        }
    }

    /// Takes note of it once, and tries until it is over.
    fn cannot_build(&self, reason: &str) {
        let first = self.0.cannot_build.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert_with(|| reason.to_owned());
            first
        });
        if first {
            tokio::spawn(self.clone().try_to_build());
        }
    }

    async fn try_to_build(self) {
        for nth in 0.. {
            sleep(TRIALS.pause(nth, Roll::by_chance())).await;
            if self.is_stopping() {
                return;
            }
            // Without a connection that is what is told, and nothing can be tried.
            let Some(client) = self.client() else { break };
            if let Ok((circuit, _)) = self.build_once(&client).await {
                client.close_circuit(circuit);
                break;
            }
        }
        self.0.cannot_build.send_replace(None);
    }

    /// A stream waits for us: ours goes to its scraper's circuit, all others where tor itself would have put them.
    pub(super) fn attach(&self, client: &Client, stream: &Stream) {
        let Some(attach) = self.0.book.borrow().attach(stream) else { return };
        let (client, id) = (client.clone(), stream.id);
        // Not awaited where events are read: each waits for its answer.
        tokio::spawn(async move {
            let attached = match attach {
                Attach::To(circuit) => client.attach_stream(id, Some(circuit)).await,
                Attach::ByTor => {
                    // Refused: tor attaches it already, or it is gone.
                    let _ = client.attach_stream(id, None).await;
                    return;
                }
                Attach::Close(reason) => client.close_stream(id, reason).await,
            };
            if attached.is_err() {
                const MISC: u8 = 1;
                // Its circuit went a moment ago; who dialled should not wait for tor's limit to find out.
                let _ = client.close_stream(id, MISC).await;
            }
        });
    }
}

/// A circuit that nobody has yet: closed if whoever waits for it goes away, since tor would keep it for us for ever.
struct Launched<'a> {
    client: &'a Client,
    circuit: CircuitNo,
}

impl Launched<'_> {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Launched<'_> {
    fn drop(&mut self) {
        self.client.close_circuit(self.circuit);
    }
}
