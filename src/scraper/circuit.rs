//! A circuit: one worker's own way out, and everything a shop could use to link two of its generations.
//!
//! Promise: two circuits, and two generations of one circuit, share no SOCKS credentials, no connection and no TLS
//! session. [`Circuit::rotate`] makes a new generation at once: a new password is a new circuit to Tor, without
//! NEWNYM, its ten seconds and its effect on everybody else.
//!
//! * C1 [`Via::Tor`] dials the SOCKS port and nothing else; the shop's name goes to the exit as it is. There is no
//!   fallback to the open network.
//! * C2 A stream is used only after the port took the password.
//! * C3 A connection carries one exchange at a time and is kept only after an answer was read to its end; it ends
//!   with its generation.
//!
//! The limits: Tor itself moves old credentials to a new circuit after its `MaxCircuitDirtiness` or a failure, so
//! [`Circuit::worn`] retires a generation before that; only a control port can say which exit it has.
//!
//! Deliberately absent: a pool. One worker makes one request at a time, so one idle connection per origin is all that
//! can be of use.

pub mod reason;
pub(super) mod socks;
mod way;
mod wire;

pub use reason::StreamReason;
pub use socks::{OnionFailure, SocksReply};
pub(super) use wire::{Connection, Traffic};

use crate::model::SiteName;
use crate::model::page::Via;
use crate::model::way::Way;
use crate::scraper::blocks::BlockMemory;
use crate::scraper::builds::Builds;
use crate::scraper::control::Control;
use crate::scraper::fetch::FetchError;
use crate::scraper::latency::{Latencies, Recent};
use crate::scraper::relay::ExitRelay;
use crate::scraper::roster::{Flow, Roster};
use crate::scraper::tls::Tls;
use crate::scraper::tor::TorGate;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socks::Credentials;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use url::{Host, Url};
use wire::Counted;

/// Idle connections one circuit keeps: a few origins for each shop. The one idle for longest goes first.
pub const KEPT_MAX: usize = 16;
/// How long an idle connection is worth keeping. Servers close theirs after 5 to 75 s; a dead exit never says so, and
/// then the next request pays a whole first-byte limit to find out.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// A connection whose answer was read to its end is free at once, unless its request is still being written.
const FREE_WITHIN: Duration = Duration::from_secs(1);

/// Names one generation of one worker's circuit, in logs: `w3.g17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CircuitId {
    pub worker: u32,
    pub generation: u64,
}

impl fmt::Display for CircuitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}.g{}", self.worker, self.generation)
    }
}

/// What a visit went through.
#[derive(Clone, Debug)]
pub struct By {
    pub circuit: CircuitId,
    pub exit: Arc<ExitRelay>,
}

/// What all circuits of the process have in common. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Has the SOCKS port, and is told of every byte that comes through it.
    pub tor: TorGate,
    pub tls: Tls,
    pub roster: Roster,
    pub blocks: BlockMemory,
    /// Where there is a control port.
    pub control: Option<Control>,
    pub latencies: Latencies,
    pub builds: Builds,
}

impl Settings {
    /// With nothing known of any circuit yet.
    pub fn new(tor: TorGate, tls: Tls) -> Self {
        let (roster, blocks) = (Roster::default(), BlockMemory::default());
        Self {
            tor,
            tls,
            roster,
            blocks,
            control: None,
            latencies: Latencies::default(),
            builds: Builds::default(),
        }
    }
}

/// When a generation is retired. Both count its use of Tor alone.
#[derive(Clone, Copy, Debug)]
pub struct WearLimits {
    /// From its first dial. Below Tor's `MaxCircuitDirtiness` (600 s), with room for a visit.
    pub age_max: Duration,
    /// Fetches: what a shop sees of a circuit.
    pub uses_max: u32,
}

/// Why a generation is to be retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worn {
    Age,
    Uses,
    /// Visits in a row came to nothing by what may be its doing.
    Failures,
    /// Its answers take much longer than those of the others.
    Slow,
}

impl Worn {
    /// The word in the log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Uses => "uses",
            Self::Failures => "failures",
            Self::Slow => "slow",
        }
    }
}

/// Visits in a row that failed and left the circuit in use, because the shop may be to blame as well. What is plainly the
/// circuit's doing retires it at once.
const FAILURES_MAX: u32 = 2;

/// One worker's circuit, in its current generation.
#[derive(Debug)]
pub struct Circuit {
    id: CircuitId,
    epoch: u64,
    settings: Settings,
    credentials: Credentials,
    tls: Arc<ClientConfig>,
    kept: HashMap<Origin, Connection>,
    first_used: Option<Instant>,
    uses: u32,
    /// In a row.
    failures: u32,
    recent: Recent,
    /// When the exchange under way began, through Tor.
    pub(super) asked: Option<Instant>,
    /// A connection through it has stood.
    pub(super) built: bool,
    /// Bytes of this generation.
    flow: Arc<Flow>,
    /// Where a control port tells it.
    exit: Option<Arc<ExitRelay>>,
    /// The shop that is visited now.
    serves: Option<SiteName>,
    /// What the visit of now last went through; outlives the generation that a block ends.
    visited_by: Option<By>,
    pub(super) retry_after: Option<Duration>,
}

impl Circuit {
    pub fn new(worker: u32, epoch: u64, generation: u64, settings: Settings) -> Self {
        let id = CircuitId { worker, generation };
        Self {
            id,
            flow: settings.roster.begin(id),
            exit: None,
            serves: None,
            visited_by: None,
            epoch,
            credentials: Credentials::new(worker, epoch, generation),
            tls: settings.tls.for_one_circuit(),
            settings,
            kept: HashMap::new(),
            first_used: None,
            uses: 0,
            failures: 0,
            recent: Recent::default(),
            asked: None,
            built: false,
            retry_after: None,
        }
    }

    pub fn id(&self) -> CircuitId {
        self.id
    }

    /// Begins the next generation; credentials, connections and TLS sessions of the last end here.
    pub fn rotate(&mut self) -> CircuitId {
        let (settings, serves, visited_by) =
            (self.settings.clone(), self.serves.take(), self.visited_by.take());
        *self = Self::new(self.id.worker, self.epoch, self.id.generation + 1, settings);
        self.serve(serves);
        self.visited_by = visited_by;
        self.id
    }

    /// The shop that is visited from now on, if any: what an exit that blocked it is kept away from.
    pub fn serve(&mut self, site: Option<SiteName>) {
        self.settings.roster.note(self.id, |row| row.visiting.clone_from(&site));
        self.visited_by = self.by().filter(|_| site.is_some());
        self.asked = None; // Of a visit that was broken off.
        self.serves = site;
    }

    /// Turns at having Tor build a circuit.
    pub(super) fn builds(&self) -> Builds {
        self.settings.builds.clone()
    }

    /// The generation and the exit that the visit of now last went through, where a control port tells it.
    pub fn visited_by(&self) -> Option<&By> {
        self.visited_by.as_ref()
    }

    fn by(&self) -> Option<By> {
        self.exit.clone().map(|exit| By { circuit: self.id, exit })
    }

    fn exit_is(&mut self, exit: Option<Arc<ExitRelay>>) {
        self.settings.roster.note(self.id, |row| row.exit.clone_from(&exit));
        self.exit = exit;
        self.visited_by = self.by();
    }

    /// How what goes by `via` reaches its shop, as far as is known.
    pub fn way(&self, via: Via) -> Way {
        match (via, &self.exit) {
            (Via::Direct, _) => Way::Direct,
            (Via::Tor, Some(exit)) => Way::Exit(exit.fingerprint.clone()),
            (Via::Tor, None) => Way::Circuit(self.id.to_string().into()),
        }
    }

    /// Takes note of a block by the shop that is visited.
    pub fn note_block(&self, keep_for: Duration) {
        let Some(site) = &self.serves else { return };
        self.settings.roster.note(self.id, |row| *row.blocks.entry(site.clone()).or_default() += 1);
        if let Some(exit) = &self.exit {
            self.settings.blocks.note(site, exit, Instant::now(), keep_for);
        }
    }

    /// Whether this generation has served long enough, as seen at `now`.
    pub fn worn(&self, limits: &WearLimits, now: Instant) -> Option<Worn> {
        let age = self.first_used.map_or(Duration::ZERO, |first| now.saturating_duration_since(first));
        if limits.uses_max <= self.uses {
            Some(Worn::Uses)
        } else if limits.age_max <= age {
            Some(Worn::Age)
        } else if FAILURES_MAX <= self.failures {
            Some(Worn::Failures)
        } else if self.settings.latencies.is_slow(self.id) {
            Some(Worn::Slow)
        } else {
            None
        }
    }

    /// A visit came to nothing by what may be the circuit's doing or the shop's.
    pub fn note_failure(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// A visit was answered, if only by a refusal.
    pub fn note_success(&mut self) {
        self.failures = 0;
    }

    /// Another circuit had the answer first. What this one would have taken nobody knows, but it is no less; without it a
    /// circuit whose visits are overtaken would never be known as slow.
    pub fn note_overtaken(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.note_latency(asked.elapsed());
        }
    }

    /// An answer came through Tor after so long.
    pub(super) fn note_latency(&mut self, took: Duration) {
        self.recent.note(took);
        let median = self.recent.median();
        self.settings.roster.note(self.id, |row| row.latency = median);
        if let Some(site) = &self.serves {
            self.settings.latencies.note(site, self.id, took);
        }
    }

    /// Fetches through Tor in this generation.
    #[cfg(test)]
    pub fn uses(&self) -> u32 {
        self.uses
    }

    /// What the last answer's `Retry-After` asked for, if it did. A page does not carry it.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    pub(super) fn note_use(&mut self, via: Via) {
        match via {
            Via::Tor => {
                self.first_used.get_or_insert_with(Instant::now);
                self.uses = self.uses.saturating_add(1);
                let (first_used, uses) = (self.first_used, self.uses);
                self.settings.roster.note(self.id, |row| (row.first_used, row.uses) = (first_used, uses));
            }
            Via::Direct => {}
        }
    }

    /// The idle connection to `origin`, if there is one that still lives.
    pub(super) async fn take_kept(&mut self, origin: &Origin) -> Option<Connection> {
        let mut connection = self.kept.remove(origin)?;
        if KEPT_FOR <= connection.idle_since.elapsed() {
            return None;
        }
        timeout(FREE_WITHIN, connection.sender.ready()).await.ok()?.ok()?;
        Some(connection)
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn keep(&mut self, origin: Origin, mut connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        self.kept.retain(|_, kept| !kept.sender.is_closed());
        if KEPT_MAX <= self.kept.len() {
            let oldest =
                self.kept.iter().min_by_key(|(_, kept)| kept.idle_since).map(|(origin, _)| origin.clone());
            oldest.and_then(|origin| self.kept.remove(&origin));
        }
        connection.kept = true;
        connection.idle_since = Instant::now();
        self.kept.insert(origin, connection);
    }

    /// A new connection to `origin`, ready for a request. `sight` watches its bytes from the first of the shop's.
    pub(super) async fn dial(
        &mut self,
        origin: &Origin,
        within: Duration,
        sight: &mut Sight,
    ) -> Result<Connection, FetchError> {
        sight.forget();
        let dialled = timeout(within, self.dial_unlimited(origin, sight)).await;
        dialled.unwrap_or_else(|_| Err(FetchError::ConnectTimeout { limit: within, seen: sight.seen() }))
    }

    async fn dial_unlimited(&mut self, origin: &Origin, sight: &mut Sight) -> Result<Connection, FetchError> {
        let tcp = self.reach(origin).await?;
        let raw = Traffic::new();
        sight.watch(&raw);
        let stream = Counted::new(tcp, raw.clone());
        let stream = match origin.via {
            Via::Tor => stream.through(self.settings.tor.clone(), Arc::clone(&self.flow)),
            Via::Direct => stream,
        };
        let connection = if origin.secure {
            let name = ServerName::try_from(origin.host.clone()).map_err(|_| FetchError::Request {
                reason: "the host is no name a certificate could have",
            })?;
            let greeted = TlsConnector::from(self.tls.clone()).connect(name, stream).await;
            let stream = greeted.map_err(|error| FetchError::of_tls(error, sight.seen()))?;
            Connection::over(stream, raw).await
        } else {
            Connection::over(stream, raw).await
        };
        connection
            .map_err(|error| FetchError::Connect { source: io::Error::other(error), seen: sight.seen() })
    }

    /// A stream to the shop itself, on which the next byte is the shop's.
    async fn reach(&mut self, origin: &Origin) -> Result<TcpStream, FetchError> {
        let (host, port) = (origin.host.as_str(), origin.port);
        match origin.via {
            Via::Tor => self.reach_through_tor(host, port).await,
            Via::Direct => {
                let reached = TcpStream::connect((host, port)).await;
                let tcp = reached.map_err(|source| FetchError::Connect { source, seen: false })?;
                let _ = tcp.set_nodelay(true);
                Ok(tcp)
            }
        }
    }
}

impl Drop for Circuit {
    fn drop(&mut self) {
        self.settings.roster.end(self.id);
        self.settings.latencies.forget(self.id);
        if let Some(control) = &self.settings.control {
            control.retire(&self.credentials.owner());
        }
    }
}

/// Where a connection leads, and by which way: what two exchanges must have in common to share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    via: Via,
    secure: bool,
    /// A name, or an address without brackets.
    host: String,
    port: u16,
}

impl Origin {
    pub(super) fn of(url: &Url, via: Via) -> Result<Self, FetchError> {
        let secure = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(FetchError::Request { reason: "only http and https are fetched" }),
        };
        let host = match url.host() {
            Some(Host::Domain(name)) if 255 < name.len() => {
                return Err(FetchError::Request { reason: "the host name is too long" });
            }
            Some(Host::Domain(name)) if via == Via::Direct && is_onion(name) => {
                return Err(FetchError::Request { reason: "an onion service is reached through Tor alone" });
            }
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err(FetchError::Request { reason: "the URL has no host" }),
        };
        let port = url.port_or_known_default().unwrap_or(if secure { 443 } else { 80 });
        Ok(Self { via, secure, host, port })
    }
}

/// Names that must never be asked of a resolver (RFC 7686).
fn is_onion(name: &str) -> bool {
    name.trim_end_matches('.').to_ascii_lowercase().ends_with(".onion")
}

/// Whether a byte of the shop was seen since an exchange began, kept outside the exchange so that it outlives its
/// cancellation.
#[derive(Debug, Default)]
pub(super) struct Sight {
    watched: Option<(Arc<Traffic>, u64)>,
}

impl Sight {
    /// Bytes count from now on.
    pub(super) fn watch(&mut self, raw: &Arc<Traffic>) {
        self.watched = Some((raw.clone(), raw.received()));
    }

    pub(super) fn forget(&mut self) {
        self.watched = None;
    }

    pub(super) fn seen(&self) -> bool {
        self.watched.as_ref().is_some_and(|(raw, mark)| *mark < raw.received())
    }
}

#[cfg(test)]
mod tests;
