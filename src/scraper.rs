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
//!
//! A visit that is slow for its shop may be started once more, on another scraper ([`Twin`]). To everybody outside it
//! stays one visit: one ticket, one attempt, one end.

pub mod actor;
pub mod blocks;
pub mod builds;
pub mod circuit;
pub mod control;
pub mod deadlines;
pub mod decode;
pub mod errand;
pub mod fetch;
pub mod hedge;
pub mod latency;
pub mod pace;
pub mod pool;
pub mod probe;
pub mod queue;
pub mod race;
pub mod relay;
pub mod robots;
pub mod roster;
pub mod stopwatch;
pub mod suspension;
pub mod ticket;
pub mod tls;
pub mod tor;
pub mod visit;

#[cfg(test)]
mod stand_in;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::ledger::LedgerHandle;
use crate::ledger::store::Claim;
use crate::model::{BatchId, Gtin, ProductKey, SiteName};

pub use pool::ScrapersHandle;
pub use ticket::{Answer, Slow, Ticket};

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

impl Visit {
    pub fn label(&self) -> queue::Label {
        queue::Label { site: self.site.clone(), key: self.key, suspect: self.suspect }
    }

    /// What it takes to start it once more.
    pub fn twin(&self) -> Twin {
        Twin(Self {
            key: self.key,
            batch_id: self.batch_id.clone(),
            ean: self.ean.clone(),
            gtin: self.gtin.clone(),
            site: self.site.clone(),
            attempt: self.attempt,
            claim: self.claim,
            suspect: self.suspect,
            announced: Arc::clone(&self.announced),
            ticket: self.ticket.spare(),
        })
    }
}

/// The second start of a visit, as long as it has not happened.
#[derive(Debug)]
pub struct Twin(Visit);

impl Twin {
    /// The visit that joins the first; `None`: that one is over, or nobody wants to know of it any more.
    pub fn start(mut self, slow: Slow) -> Option<Visit> {
        self.0.ticket.join(slow).then_some(self.0)
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
