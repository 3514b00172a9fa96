//! Tor's control port: what tor tells of its circuits, and what it is told to do with them.
//!
//! ```text
//! circuit ──▶ Control ◀── watch.rs ◀── events ── tor
//!  (dial)       │  the book: who goes where           ▲
//!               └── strict.rs: launch, attach ────────┘
//! ```
//!
//! Two grades of binding. By *credentials* tor chooses the circuit of a user and password, and may change its mind; the
//! control port only tells which it was. *Strict*: the daemon launches a circuit for each scraper, knows its exit before
//! the first request, and attaches each of its streams; the others are attached as tor itself would, at once.
//!
//! Nothing waits for a control port that does not answer, but for the strict grade, where nothing may go out without it.

pub mod book;
pub mod bootstrap;
pub mod client;
pub mod protocol;
mod release;
mod strict;
mod watch;

pub use release::{Released, release};
pub use strict::Unbound;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch as watches};
use tokio::time::timeout;

use self::book::Book;
use self::client::{Client, Password};
use self::protocol::{Bootstrap, CircuitNo, Hop, Owner, address_of};
use super::builds::BUILDS_MAX;
use super::probe::TorAway;
use super::relay::ExitRelay;
use crate::config::Binding;

/// How long a dial that succeeded waits to hear through which exit. Tor says it with the reply; a visit goes on without.
const EXIT_KNOWN_WITHIN: Duration = Duration::from_millis(500);
/// Exits whose address and country are remembered; the network has some two thousand.
const RELAYS_MAX: usize = 8_192;

/// The control port of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    binding: Binding,
    password: Mutex<Option<Password>>,
    state: watches::Sender<State>,
    book: watches::Sender<Book>,
    relays: Mutex<HashMap<Box<str>, Arc<ExitRelay>>>,
    /// Also for circuits that died in the middle of a visit, which nobody took a turn for.
    builds: Semaphore,
    /// How many have watched the port so far: one at a time, and the last of them counts.
    watchers: AtomicU64,
    /// Circuits that were built, of all scrapers.
    built: AtomicU64,
    /// Why tor builds no circuit, as long as it does not; strict only.
    cannot_build: watches::Sender<Option<String>>,
    /// Set for good by [`Control::release`].
    stopping: AtomicBool,
}

/// How the connection stands.
#[derive(Clone, Debug, Default)]
pub enum State {
    /// Before the first try has ended.
    #[default]
    Unknown,
    There(There),
    Away {
        reason: String,
    },
}

/// What is known of a tor that answers.
#[derive(Clone, Debug)]
pub struct There {
    client: Client,
    pub bootstrap: Option<Bootstrap>,
    /// Tor may spread a user over several circuits.
    pub conflux: bool,
}

impl There {
    pub fn version(&self) -> &str {
        self.client.version()
    }
}

impl Control {
    pub fn new(address: SocketAddr, binding: Binding, password: Option<Password>) -> Self {
        Self(Arc::new(Shared {
            address,
            binding,
            password: Mutex::new(password),
            state: watches::channel(State::Unknown).0,
            book: watches::channel(Book::default()).0,
            relays: Mutex::default(),
            builds: Semaphore::new(BUILDS_MAX),
            watchers: AtomicU64::new(0),
            built: AtomicU64::new(0),
            cannot_build: watches::channel(None).0,
            stopping: AtomicBool::new(false),
        }))
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// For the next connection.
    pub fn set_password(&self, password: Option<Password>) {
        *self.0.password.lock().unwrap_or_else(PoisonError::into_inner) = password;
    }

    fn password(&self) -> Option<Password> {
        self.0.password.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn watch(&self) -> watches::Receiver<State> {
        self.0.state.subscribe()
    }

    /// Returns at the next change of the connection; never where there is none.
    pub async fn changed(states: Option<&mut watches::Receiver<State>>) {
        if let Some(states) = states
            && states.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    pub fn is_strict(&self) -> bool {
        self.0.binding == Binding::Strict
    }

    fn client(&self) -> Option<Client> {
        match &*self.0.state.borrow() {
            State::There(there) => Some(there.client.clone()),
            State::Unknown | State::Away { .. } => None,
        }
    }

    /// Whether a dial may go out: `Ok(false)` means that nobody knows yet. By credentials it always may.
    pub fn lets_dial(&self) -> Result<bool, TorAway> {
        if !self.is_strict() {
            return Ok(true);
        }
        if let Some(reason) = &*self.0.cannot_build.borrow() {
            return Err(TorAway::new(format!("tor builds no circuit: {reason}")));
        }
        match &*self.0.state.borrow() {
            State::Unknown => Ok(false),
            State::There(_) => Ok(true),
            State::Away { reason } => {
                Err(TorAway::new(format!("the strict grade needs the control port: {reason}")))
            }
        }
    }

    /// Where the stream that was dialled from `source_port` went, if tor says so in time.
    pub async fn route(&self, owner: &Owner, source_port: u16) -> Option<(CircuitNo, Arc<ExitRelay>)> {
        let client = self.client()?;
        let known = timeout(EXIT_KNOWN_WITHIN, async {
            let mut book = self.0.book.subscribe();
            let route = book.wait_for(|book| book.route(owner, source_port).is_some()).await.ok()?;
            route.route(owner, source_port)
        });
        let (circuit, hop) = known.await.ok()??;
        Some((circuit, self.relay(&client, &hop).await))
    }

    /// An owner dials: what is heard from now on is of this dial.
    pub fn dials(&self, owner: &Owner) {
        self.0.book.send_if_modified(|book| {
            book.dials(owner);
            false // Nobody waits for less.
        });
    }

    /// Why the dial of this owner came to nothing, in tor's words, if it says so in time.
    pub async fn refusal(&self, owner: &Owner) -> Option<Box<str>> {
        self.client()?;
        let mut book = self.0.book.subscribe();
        let told = timeout(EXIT_KNOWN_WITHIN, book.wait_for(|book| book.refusal(owner).is_some()));
        told.await.ok()?.ok()?.refusal(owner).map(Box::from)
    }

    /// A generation is over: its circuit goes with it, unless others use that too.
    pub fn retire(&self, owner: &Owner) {
        let mut circuit = None;
        self.0.book.send_if_modified(|book| {
            circuit = book.forget(owner);
            false // Nobody waits for less.
        });
        if let (Some(client), Some(circuit)) = (self.client(), circuit) {
            client.close_circuit(circuit);
        }
    }

    /// A relay with its address and country. What tor does not tell in time is left out, and asked for again.
    async fn relay(&self, client: &Client, hop: &Hop) -> Arc<ExitRelay> {
        let known = {
            let relays = self.0.relays.lock().unwrap_or_else(PoisonError::into_inner);
            relays.get(&hop.fingerprint).cloned()
        };
        if let Some(known) = known {
            return known;
        }
        let asked = timeout(EXIT_KNOWN_WITHIN, ask_relay(client, hop)).await.ok().flatten();
        let is_whole = asked.is_some();
        let (address, country) = asked.unwrap_or_default();
        let relay = Arc::new(ExitRelay {
            fingerprint: hop.fingerprint.clone(),
            nickname: hop.nickname.clone(),
            address,
            country,
        });
        if is_whole {
            let mut relays = self.0.relays.lock().unwrap_or_else(PoisonError::into_inner);
            if RELAYS_MAX <= relays.len() {
                relays.clear();
            }
            relays.insert(hop.fingerprint.clone(), Arc::clone(&relay));
        }
        relay
    }

    fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Acquire)
    }
}

type Whereabouts = (Option<std::net::IpAddr>, Option<Box<str>>);

/// None: tor did not answer.
pub(super) async fn ask_relay(client: &Client, hop: &Hop) -> Option<Whereabouts> {
    let status = match client.get_info(&format!("ns/id/{}", hop.fingerprint)).await {
        Ok(status) => status,
        // It left the network since.
        Err(client::ControlError::Refused { .. }) => return Some((None, None)),
        Err(_) => return None,
    };
    let Some(address) = address_of(&status) else { return Some((None, None)) };
    let country = match client.get_info(&format!("ip-to-country/{address}")).await {
        Ok(country) => Some(country).filter(|country| is_country(country)).map(Box::from),
        // A tor without its table of countries.
        Err(client::ControlError::Refused { .. }) => None,
        Err(_) => return None,
    };
    Some((Some(address), country))
}

/// `??` is none.
fn is_country(text: &str) -> bool {
    text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_lowercase())
}
