//! Scrapers: one circuit each, one visit at a time.
//!
//! ```text
//! coordinator ──ask──▶ pool (the queue) ──▶ scraper ──▶ circuit ──▶ shop
//!      ▲                                      │
//!      └──────────────── ticket ──────────────┘
//! ```
//!
//! A visit carries a [`Ticket`]: whoever holds the visit answers through it, and a ticket that is dropped unanswered (a
//! scraper panicked, the pool was restarted) says so by itself. So no visit can be lost in silence, and nobody waits.

pub mod actor;
pub mod blocks;
pub mod circuit;
pub mod control;
pub mod deadlines;
pub mod decode;
pub mod fetch;
pub mod pace;
pub mod pool;
pub mod probe;
pub mod queue;
pub mod relay;
pub mod roster;
pub mod survey;
pub mod suspension;
pub mod tls;
pub mod tor;
pub mod visit;

#[cfg(test)]
mod stand_in;

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use tokio::time::Instant;

use crate::batch::machine::VisitEnd;
use crate::ledger::LedgerHandle;
use crate::ledger::store::Claim;
use crate::model::{BatchId, Gtin, ProductKey, SiteName};

pub use pool::ScrapersHandle;

/// The name under which the catalogue stands in the queue and the log; no shop can have it.
pub const CATALOGUE: &str = "catalogue:";

/// One product on one shop, or the question to the catalogue.
#[derive(Debug)]
pub struct Visit {
    pub key: ProductKey,
    pub batch_id: BatchId,
    /// The primary as it was sent, for the log.
    pub ean: Box<str>,
    /// The barcode to look for.
    pub gtin: Gtin,
    pub site: SiteName,
    pub attempt: u32,
    pub claim: Claim,
    /// Charged by two deaths of the process: runs alone.
    pub suspect: bool,
    /// Whether the ledger knows that a visit of this product started; shared by the product's visits.
    pub announced: Arc<Announced>,
    pub ticket: Ticket,
}

/// What a coordinator hears of a visit.
#[derive(Debug)]
pub struct Answer {
    pub end: VisitEnd,
    /// When it first dialled, if it did.
    pub dialled_at: Option<Instant>,
}

/// The way back to the coordinator. Answers exactly once, also when it is dropped.
pub struct Ticket {
    send: Option<Box<dyn FnOnce(Answer) + Send>>,
    coordinator: Weak<()>,
    dialled_at: Option<Instant>,
}

impl Ticket {
    /// `coordinator` is alive as long as somebody wants the answer.
    pub fn new(coordinator: &Arc<()>, send: impl FnOnce(Answer) + Send + 'static) -> Self {
        Self { send: Some(Box::new(send)), coordinator: Arc::downgrade(coordinator), dialled_at: None }
    }

    /// Whether the coordinator that asked is still there.
    pub fn is_wanted(&self) -> bool {
        self.coordinator.strong_count() > 0
    }

    /// The first dial: from now on a lost visit is charged.
    pub fn dialled(&mut self, now: Instant) {
        self.dialled_at.get_or_insert(now);
    }

    pub fn answer(mut self, end: VisitEnd) {
        self.send_once(end);
    }

    /// Gives the visit back to its asker without an answer, which is only right where the asker itself drops it.
    pub fn defuse(mut self) {
        self.send = None;
    }

    fn send_once(&mut self, end: VisitEnd) {
        if let Some(send) = self.send.take() {
            send(Answer { end, dialled_at: self.dialled_at });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Dropped otherwise than by a panic, it went down with the pool, which is not the visit's doing.
        let dialled = self.dialled_at.is_some() && std::thread::panicking();
        self.send_once(VisitEnd::Lost { dialled });
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("dialled_at", &self.dialled_at).finish_non_exhaustive()
    }
}

impl Visit {
    pub fn label(&self) -> queue::Label {
        queue::Label { site: self.site.clone(), key: self.key, suspect: self.suspect }
    }
}

/// What the ledger knows of a product's visits, and how many are in flight.
///
/// A suspect that gets the floor clears the marks of all others (none of them is in flight then), so a mark holds only
/// until the next one does: it carries the number of those before it.
#[derive(Debug, Default)]
pub struct Announced {
    /// 0: the ledger holds no mark.
    at: AtomicU64,
    in_flight: AtomicU32,
    /// Held while the mark is written or cleared: visits side by side must not undo each other's.
    writing: tokio::sync::Mutex<()>,
}

impl Announced {
    /// `floor`: how many suspects have had the floor.
    pub fn holds(&self, floor: u64) -> bool {
        self.at.load(Ordering::Acquire) == floor + 1
    }

    pub fn set(&self, floor: u64) {
        self.at.store(floor + 1, Ordering::Release);
    }

    /// Whether the ledger holds a mark although no visit is in flight.
    pub fn is_to_rest(&self) -> bool {
        self.at.load(Ordering::Acquire) != 0 && self.in_flight.load(Ordering::Acquire) == 0
    }

    /// Clears the mark if no visit is in flight. If it is not done now, [`Announced::is_to_rest`] goes on saying so.
    pub async fn rest(&self, ledger: &LedgerHandle, key: ProductKey, claim: Claim) {
        // Taken: a visit is about to start, or somebody else clears it.
        let Ok(_writing) = self.writing.try_lock() else { return };
        if self.is_to_rest() && ledger.write(move |store| store.rest(key, claim)).await.is_ok() {
            self.at.store(0, Ordering::Release);
        }
    }

    /// Counts a visit until the value is dropped, also by a panic.
    fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(self))
    }
}

#[derive(Debug)]
struct InFlight(Arc<Announced>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
