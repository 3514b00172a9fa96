//! What a store must do: the writes of the four transactions (design 3.1) and the reads of everyone else.
//!
//! [`Store`] is one writer's view inside an open transaction; the ledger actor opens it, gives each command a savepoint,
//! and commits the group. [`Read`] has its own read-only connections and never waits for the writer.
//!
//! What only a single writer may assume, and a fleet on one database could not: `open` takes over every claim of older
//! epochs at once (one process holds the ledger, so none of their holders lives), and a claim's epoch alone tells
//! whether its holder may still be there.

use std::time::Duration;

use crate::model::batch::{Accepted, NewBatch, Outcome, SiteName, Status};
use crate::model::body::Language;
use crate::model::delivery::{
    AttemptRecord, DeliveryNo, DeliveryState, DueDelivery, Endpoint, LaneNo, UrlHash,
};
use crate::model::{BatchId, BatchNo, ProductKey};
use crate::telemetry::Event;

/// Who holds a claimed product: this start of the process, and one incarnation of the batch's coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    pub epoch: i64,
    pub incarnation: i64,
}

/// A product charged with this many deaths of the process is suspected: it runs alone, and only deaths while it ran
/// alone count further (design 4, rule 2).
pub const SUSPECTED_AT: u32 = 2;

/// A claimed product, as its coordinator gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    pub index: u32,
    pub ean: String,
    pub replacement: Option<String>,
    /// Deaths of the process charged to it; at two it is suspected (design 4, rule 2).
    pub deaths: u32,
}

/// What `accept` decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceptAnswer {
    /// Stored, or found to be a repeat.
    Accepted(Accepted),
    /// The key was used before, with another body.
    KeyReused,
}

/// What became of an attempt to end a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// This outcome stands. `batch_over`: it was the last of its batch.
    Now { batch_over: bool },
    /// An earlier outcome stands (rule 1: the first wins).
    Already,
    /// Another incarnation holds the product; this one is late.
    ClaimLost,
}

/// A product that ended without a coordinator, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedAside {
    pub batch_id: BatchId,
    pub index: u32,
    pub ean: String,
    pub batch_over: bool,
}

impl EndedAside {
    /// Tells its end, once it is on disk.
    pub fn tell(&self, outcome: &Outcome) {
        Event::ProductEnded {
            batch_id: self.batch_id.as_str(),
            index: self.index.into(),
            ean: &self.ean,
            outcome: outcome.status.as_str(),
            kind: outcome.reason.as_ref().map(|reason| reason.kind.as_str()),
            duration_ms: outcome.duration_ms,
        }
        .emit();
    }
}

/// What became of the record of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    Applied,
    /// Another attempt was recorded meanwhile; only logged.
    Late,
}

/// What became of held deliveries whose endpoint has a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readmitted {
    /// The endpoint was stopped, and is no more.
    pub resumed: bool,
    /// Deliveries that are held no more, or for another reason.
    pub moved: u32,
}

/// What the store must know of the configuration to address deliveries and to word the summary.
#[derive(Clone, Debug)]
pub struct Addressing {
    /// Whether `webhooks.product_url` is a URL; else outcomes are unaddressed.
    pub product: bool,
    /// `webhooks.summary_url`; compared with `callback_url`, so that one URL gets one summary.
    pub summary_url: Option<String>,
    pub language: Language,
    /// `server.dedupe_window`.
    pub dedupe_window: Duration,
}

/// Why a store could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room. `group_lost`: the store rolled the whole transaction back by itself.
    #[error("no room on the disk")]
    Full { group_lost: bool },
    /// A write was not taken: the file may not be written any more ([`Store::is_read_only`] tells), or the medium failed.
    /// Nothing of the transaction is kept.
    #[error("the disk did not take a write: {0}")]
    Unwritten(String),
    /// The medium failed (EIO, a failed fsync): nothing in memory may be trusted after it.
    #[error("the disk failed: {0}")]
    Medium(String),
    /// The file is not what was written.
    #[error("the ledger is damaged: {0}")]
    Corrupt(String),
    /// Anything else: a mistake of this program.
    #[error("{0}")]
    Other(String),
}

/// The writes. Every method runs inside the open transaction and is atomic by the caller's savepoint.
pub trait Store: Send {
    /// Opens a transaction that no other writer can share.
    fn begin(&mut self) -> Result<(), StoreError>;
    fn savepoint(&mut self) -> Result<(), StoreError>;
    fn release(&mut self) -> Result<(), StoreError>;
    fn rollback_to_savepoint(&mut self) -> Result<(), StoreError>;
    /// Durable when it returns `Ok`.
    fn commit(&mut self) -> Result<(), StoreError>;
    /// The store's own chores between two groups, after a commit and its answers.
    fn tend(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn rollback(&mut self);

    /// Whether there is so little room that accepts are refused ([`StoreError::Full`]) while all else goes on.
    fn low(&mut self) -> bool {
        false
    }

    /// Whether there is room for more than the next small write. Asked only of a disk that was found full: what the
    /// store has reserved takes small writes for a long time yet, and accepts would be let in and refused in turn.
    fn has_room(&mut self) -> bool {
        true
    }

    /// Whether the file may not be written, by its own attributes or by its file system's. Asked after
    /// [`StoreError::Unwritten`], and from then on until it may.
    fn is_read_only(&mut self) -> bool {
        false
    }

    fn readdress(&mut self, addressing: Addressing);

    /// Transaction 1.
    fn accept(&mut self, batch: &NewBatch, now_ms: i64) -> Result<AcceptAnswer, StoreError>;

    /// Transaction 4, first half: up to `limit` queued products of `batch`, in order, now held by `claim`.
    fn claim(&mut self, batch: BatchNo, claim: Claim, limit: u32) -> Result<Vec<Claimed>, StoreError>;
    /// Transaction 4, second half: a visit of the product starts. `false`: the claim is lost or the product ended.
    fn start(&mut self, key: ProductKey, claim: Claim) -> Result<bool, StoreError>;
    /// No visit of the product is in flight any more: a death of the process is not its fault.
    fn rest(&mut self, key: ProductKey, claim: Claim) -> Result<(), StoreError>;
    /// A suspect runs alone: no visit of any other product is in flight, whoever claimed it.
    fn rest_all_but(&mut self, key: ProductKey) -> Result<(), StoreError>;
    /// Puts a claimed product back, uncharged.
    fn put_back(&mut self, key: ProductKey, claim: Claim) -> Result<(), StoreError>;
    /// Puts back what older incarnations of the batch's coordinator hold; how many.
    fn release_older(&mut self, batch: BatchNo, claim: Claim) -> Result<u32, StoreError>;
    /// Puts back those of these products that `claim` or an older one holds; which.
    fn release_claims(
        &mut self,
        batch: BatchNo,
        claim: Claim,
        indexes: &[u32],
    ) -> Result<Vec<u32>, StoreError>;

    /// Transaction 2: the outcome, its delivery, those of its duplicates, and the batch's end if it was the last.
    fn end(
        &mut self,
        key: ProductKey,
        claim: Claim,
        outcome: &Outcome,
        now_ms: i64,
    ) -> Result<Ended, StoreError>;
    /// Ends up to `limit` open products of a batch that was set aside, whoever holds them; which, without duplicates.
    fn end_set_aside(
        &mut self,
        batch: BatchNo,
        outcome: &Outcome,
        limit: u32,
        now_ms: i64,
    ) -> Result<Vec<EndedAside>, StoreError>;

    /// Transaction 3.
    fn record_attempt(&mut self, attempt: &AttemptRecord) -> Result<Recorded, StoreError>;
    /// The lane panicked with this delivery in hand; the count so far.
    fn record_lane_panic(&mut self, no: DeliveryNo) -> Result<u32, StoreError>;
    /// The endpoint of a lane has this URL now: what was withheld waits again, and so does what a 410 of another URL
    /// stopped. Up to `limit` deliveries at once.
    fn readmit(
        &mut self,
        lane: LaneNo,
        url: UrlHash,
        now_ms: i64,
        limit: u32,
    ) -> Result<Readmitted, StoreError>;
    /// Moves the due times of waiting deliveries by this much: the clock jumped.
    fn shift_due(&mut self, by_ms: i64) -> Result<(), StoreError>;
    /// Releases the summaries of ended batches that wait for nothing, or have waited long enough; how many. `waited` is
    /// asked with the wall time of a batch's end: only who knows the jumps of the clock can tell how long ago that was.
    fn release_summaries(&mut self, now_ms: i64, waited: &dyn Fn(i64) -> bool) -> Result<u32, StoreError>;

    /// Writes something: shows whether there is room.
    fn touch(&mut self) -> Result<(), StoreError>;
    /// A person or systemd asked for the stop: the coming death is nobody's fault.
    fn mark_stopping(&mut self) -> Result<(), StoreError>;
}

/// A batch with products still open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenBatch {
    pub no: BatchNo,
    pub batch_id: BatchId,
    pub sites: Vec<SiteName>,
    pub total: u32,
}

/// A batch as its status page shows it.
#[derive(Clone, Debug)]
pub struct BatchView {
    pub no: BatchNo,
    pub batch_id: BatchId,
    pub accepted_at_ms: i64,
    pub ended_at_ms: Option<i64>,
    pub total: u32,
    pub queued: u32,
    pub claimed: u32,
    /// By status, in the order of [`Status::ALL`].
    pub ended: [u32; 8],
    /// Product deliveries by state, in the order of [`DeliveryState::ALL`].
    pub deliveries: [u32; 6],
    pub sites: Vec<SiteName>,
    pub ignored_3400: Vec<String>,
    pub callback_url: Option<String>,
    pub webhook_url: Option<String>,
    pub metadata: Option<String>,
    pub summary_released: bool,
}

/// Where a product is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductState {
    Queued,
    Claimed,
    Ended(Status),
}

/// A product as the status page and `explain` show it.
#[derive(Clone, Debug)]
pub struct ProductView {
    pub batch_id: BatchId,
    pub index: u32,
    pub ean: String,
    pub replacement: Option<String>,
    pub duplicate_of: Option<u32>,
    pub note: Option<String>,
    pub state: ProductState,
    pub reason: Option<crate::model::Reason>,
    pub deaths: u32,
    pub ended_at_ms: Option<i64>,
    pub delivery: Option<DeliveryView>,
    /// The body of its webhook, once it ended (only filled by `explain`).
    pub body: Option<String>,
}

/// A delivery as the status page and `explain` show it.
#[derive(Clone, Debug)]
pub struct DeliveryView {
    pub no: DeliveryNo,
    pub webhook_id: String,
    pub endpoint: Endpoint,
    pub state: DeliveryState,
    pub attempts: u32,
    pub due_at_ms: i64,
    pub last_attempt_at_ms: Option<i64>,
    pub last_status: Option<u16>,
    pub last_detail: Option<String>,
}

/// A lane with something to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneView {
    pub no: LaneNo,
    pub endpoint: Endpoint,
    /// Stopped by a 410 until it has another URL.
    pub stopped: bool,
    /// When its first waiting delivery is due.
    pub next_due_at_ms: i64,
}

/// A lane with deliveries that are withheld or stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLane {
    pub no: LaneNo,
    pub endpoint: Endpoint,
    pub stopped: bool,
    /// The URL that answered 410, if it is known.
    pub stopped_url: Option<UrlHash>,
    /// Whether any of the deliveries is withheld.
    pub withholds: bool,
}

impl HeldLane {
    /// Whether [`Store::readmit`] has something to do now that the endpoint has this URL.
    pub fn is_to_be_readmitted(&self, url: UrlHash) -> bool {
        self.withholds || !self.stopped || self.stopped_url != Some(url)
    }
}

/// The conservation law (design 4, rule 14): the counters kept in the transactions, or a full recount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub accepted: i64,
    pub queued: i64,
    pub claimed: i64,
    pub ended: i64,
    /// By state, in the order of [`DeliveryState::ALL`]; product deliveries only.
    pub deliveries: [i64; 6],
}

impl Tally {
    /// Entries accepted = ended + claimed + queued; outcomes = deliveries in all states.
    pub fn holds(&self) -> bool {
        self.accepted == self.ended + self.claimed + self.queued
            && self.ended == self.deliveries.iter().sum::<i64>()
    }
}

/// The reads. Each method sees one consistent snapshot; between the two calls below all methods see the same.
pub trait Read: Send {
    fn begin_snapshot(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn end_snapshot(&mut self) {}

    /// Batches with open products whose number is above `after`, oldest first.
    fn open_batches(&mut self, after: BatchNo, limit: u32) -> Result<Vec<OpenBatch>, StoreError>;
    /// How many batches have open products.
    fn open_batch_count(&mut self) -> Result<u64, StoreError>;
    /// By public name, or by number.
    fn batch(&mut self, name: &str) -> Result<Option<BatchView>, StoreError>;
    /// The products of a batch that `claim` or an older one holds, in order.
    fn claimed(&mut self, batch: BatchNo, claim: Claim) -> Result<Vec<u32>, StoreError>;
    /// The first answer to the submit that minted this name (rule 5).
    fn accepted(&mut self, batch_id: &BatchId) -> Result<Option<Accepted>, StoreError>;
    /// Products of a batch with an index above `after`, in order.
    fn products(&mut self, batch: BatchNo, after: u32, limit: u32) -> Result<Vec<ProductView>, StoreError>;
    /// The latest products with this GTIN-14, newest first, with their bodies.
    fn products_by_gtin(&mut self, gtin14: &str, limit: u32) -> Result<Vec<ProductView>, StoreError>;
    /// The summary deliveries of a batch.
    fn summaries(&mut self, batch: BatchNo) -> Result<Vec<DeliveryView>, StoreError>;
    /// Lanes that have a waiting delivery.
    fn lanes(&mut self) -> Result<Vec<LaneView>, StoreError>;
    /// Lanes that hold deliveries back, to be looked at now and then ([`Store::readmit`]); a lane of nothing else is not
    /// among `lanes`.
    fn held_lanes(&mut self) -> Result<Vec<HeldLane>, StoreError> {
        Ok(Vec::new())
    }
    /// Deliveries of `lane` due at `now_ms`, oldest first, leaving out those in `in_hand`.
    fn due(
        &mut self,
        lane: LaneNo,
        now_ms: i64,
        in_hand: &[DeliveryNo],
        limit: u32,
    ) -> Result<Vec<DueDelivery>, StoreError>;
    /// The counters.
    fn tally(&mut self) -> Result<Tally, StoreError>;
    /// The same, counted row by row.
    fn recount(&mut self) -> Result<Tally, StoreError>;
}
