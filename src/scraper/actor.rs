//! One scraper: one circuit, one visit at a time. A crash costs one attempt of one visit.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::circuit::{self, Circuit, WearLimits};
use super::deadlines::Deadlines;
use super::fetch::FetchLimits;
use super::pace::Pace;
use super::queue::{Label, ShopLimits};
use super::robots::RobotsCache;
use super::stopwatch::Stopwatch;
use super::suspension::Went;
use super::tor::TorGate;
use super::{Visit, pool, visit};
use crate::config;
use crate::failpoint::{self, Point};
use crate::ledger::LedgerHandle;
use crate::markup::Limits;
use crate::model::{Gtin, SiteName};
use crate::recipe::Recipe;
use crate::telemetry::Event;

/// What all scrapers share.
pub struct Gear {
    pub scrapers: usize,
    pub ledger: LedgerHandle,
    /// How many visits of suspects had the floor: each cleared the marks of all other products in the ledger.
    pub floor: Arc<AtomicU64>,
    pub tor: TorGate,
    pub probe_timeout: Duration,
    /// Of a shop's visits so many in a hundred may be started once more.
    pub hedge_percent: u32,
    pub shops: BTreeMap<SiteName, Shop>,
    pub catalogue: Option<CatalogueGear>,
    pub circuits: circuit::Settings,
    /// The epoch of the process: part of every SOCKS password.
    pub epoch: u64,
    pub wear: WearLimits,
    /// How long an exit is kept away from a shop that blocked it.
    pub block_memory: Duration,
    pub fetch: FetchLimits,
    pub visit_deadline: Duration,
    /// Of the visits in flight; the watchdog reads it.
    pub deadlines: Deadlines,
    /// What each shop's robots.txt says.
    pub robots: RobotsCache,
    pub extract: Limits,
    /// As many pages are parsed at once as there are cores.
    pub cores: Arc<Semaphore>,
}

impl Gear {
    /// Past its deadline a visit may still ask whether Tor was there (its port and an exit), and read its last page, in
    /// its turn at the cores.
    fn visit_grace(&self) -> Duration {
        /// A machine that is busy with others.
        const SLACK: Duration = Duration::from_secs(2);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let turns = u32::try_from(self.scrapers.div_ceil(cores)).unwrap_or(u32::MAX);
        SLACK + 2 * self.probe_timeout + self.extract.time_max.saturating_mul(turns)
    }
}

/// A shop in use, and how it may be visited.
#[derive(Debug)]
pub struct Shop {
    pub recipe: Arc<Recipe>,
    pub interval: Duration,
    pub concurrency: u32,
    /// Where its redirects may go.
    pub hosts: Vec<String>,
}

impl Shop {
    pub fn new(recipe: Arc<Recipe>) -> Self {
        let more = recipe.hosts.iter().map(ToString::to_string);
        let searched = recipe.search_request(&Gtin::any()).url;
        let hosts = [&recipe.base, &searched].map(visit::authority).into_iter().chain(more).collect();
        Self { interval: recipe.rate.interval(), concurrency: recipe.concurrency as u32, hosts, recipe }
    }
}

/// The owner's catalogue, and how it may be asked.
#[derive(Debug)]
pub struct CatalogueGear {
    pub catalogue: config::Catalogue,
    /// Without the word "Bearer".
    pub token: Option<String>,
    pub limits: ShopLimits,
}

impl fmt::Debug for Gear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gear").field("scrapers", &self.scrapers).finish_non_exhaustive()
    }
}

pub(super) struct Arguments {
    pub worker: usize,
    pub incarnation: u64,
    pub gear: Arc<Gear>,
    pub pool: ActorRef<pool::Msg>,
    pub drain: watch::Receiver<Option<Instant>>,
}

pub(super) enum Msg {
    /// Tell: do this visit with this gear, answer its ticket, and tell the pool that it is over.
    Visit { visit: Box<Visit>, gear: Arc<Gear>, pace: Option<Pace>, stopwatch: Stopwatch },
}

impl fmt::Debug for Msg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Visit")
    }
}

pub(super) struct ScraperActor;

pub(super) struct State {
    arguments: Arguments,
    circuit: Circuit,
}

/// Circuits built by this process: no two of them share a password, whoever was restarted meanwhile.
static LIVES: AtomicU64 = AtomicU64::new(0);

impl Actor for ScraperActor {
    type Msg = Msg;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, _: ActorRef<Msg>, arguments: Arguments) -> Result<State, ActorProcessingErr> {
        let life = LIVES.fetch_add(1, Ordering::Relaxed);
        let salt = (arguments.gear.epoch << 32) | life;
        let circuit = Circuit::new(arguments.worker as u32, salt, 1, arguments.gear.circuits.clone());
        Ok(State { arguments, circuit })
    }

    async fn handle(&self, _: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        let Msg::Visit { visit, gear, pace, stopwatch } = msg;
        let label = visit.label();
        let watched = gear.deadlines.enter(
            label.site.clone(),
            Instant::now() + gear.visit_deadline,
            gear.visit_grace(),
        );
        let watched = watched.timed_by(stopwatch);
        failpoint::hit(Point::ScraperVisit);
        state.arguments.gear = gear;
        state.retire_if_worn();
        let Arguments { gear, drain, .. } = &mut state.arguments;
        let mut call = visit::Call { gear, circuit: &mut state.circuit, pace, drain, watched: &watched };
        let went = call.run(*visit).await;
        drop(watched);
        state.tell_over(label, went);
        Ok(())
    }
}

impl State {
    fn retire_if_worn(&mut self) {
        if let Some(worn) = self.circuit.worn(&self.arguments.gear.wear, Instant::now()) {
            Event::CircuitRetired { circuit: &self.circuit.id().to_string(), reason: worn.word() }.emit();
            self.circuit.rotate();
        }
    }

    fn tell_over(&self, label: Label, went: Went) {
        let Arguments { worker, incarnation, pool, .. } = &self.arguments;
        // A pool that is gone takes this scraper with it.
        let over = pool::Msg::Over { worker: *worker, incarnation: *incarnation, label, went };
        let _ = pool.cast(over);
    }
}
