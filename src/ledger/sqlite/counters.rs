//! L5: the counters of each batch and of the whole ledger, moved in the same transaction as what they count.

use rusqlite::params;

use super::super::store::StoreError;
use super::writer::SqliteStore;
use crate::model::BatchNo;
use crate::model::batch::Status;
use crate::model::delivery::DeliveryState;

/// How many products and product deliveries move between states; the same for the batch and for the whole ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    pub accepted: i64,
    pub queued: i64,
    pub claimed: i64,
    /// In the order of [`Status::ALL`].
    pub ended: [i64; 8],
    /// In the order of [`DeliveryState::ALL`].
    pub deliveries: [i64; 6],
}

impl Delta {
    pub fn put_back(count: i64) -> Self {
        Self { queued: count, claimed: -count, ..Self::default() }
    }

    pub fn moved(from: DeliveryState, to: DeliveryState, count: i64) -> Self {
        let mut delta = Self::default();
        delta.deliveries[from as usize] -= count;
        delta.deliveries[to as usize] += count;
        delta
    }

    pub fn end(&mut self, status: Status, delivery: DeliveryState) {
        self.ended[status as usize - 1] += 1;
        self.deliveries[delivery as usize] += 1;
    }
}

impl SqliteStore {
    /// Moves the counters of the batch and of the ledger. Nothing else touches them but [`Self::count_first`].
    pub(super) fn count(&self, batch: BatchNo, delta: &Delta) -> Result<(), StoreError> {
        let Delta { accepted: _, queued, claimed, ended: e, deliveries: d } = *delta;
        self.run(
            "UPDATE progress SET queued = queued + ?2, claimed = claimed + ?3,
                 found = found + ?4, not_found = not_found + ?5, ean_mismatch = ean_mismatch + ?6,
                 not_in_catalogue = not_in_catalogue + ?7, ignored = ignored + ?8, skipped = skipped + ?9,
                 failed = failed + ?10, cancelled_products = cancelled_products + ?11,
                 waiting = waiting + ?12, taken = taken + ?13, dead = dead + ?14, stopped = stopped + ?15,
                 withheld = withheld + ?16, unaddressed = unaddressed + ?17
             WHERE batch = ?1",
            params![
                batch.0, queued, claimed, e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7], d[0], d[1], d[2],
                d[3], d[4], d[5]
            ],
        )?;
        self.count_all(delta)
    }

    /// The same for a batch that has no counters yet.
    pub(super) fn count_first(&self, batch: BatchNo, delta: &Delta) -> Result<(), StoreError> {
        let Delta { accepted: _, queued, claimed, ended: e, deliveries: d } = *delta;
        self.run(
            "INSERT INTO progress (batch, cursor, queued, claimed, found, not_found, ean_mismatch, not_in_catalogue,
                 ignored, skipped, failed, cancelled_products, waiting, taken, dead, stopped, withheld, unaddressed)
             VALUES (?1, 1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
            params![
                batch.0, queued, claimed, e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7], d[0], d[1], d[2],
                d[3], d[4], d[5]
            ],
        )?;
        self.count_all(delta)
    }

    fn count_all(&self, delta: &Delta) -> Result<(), StoreError> {
        let Delta { accepted, queued, claimed, ended: e, deliveries: d } = *delta;
        self.run(
            "UPDATE tally SET accepted = accepted + ?1, queued = queued + ?2, claimed = claimed + ?3,
                 ended = ended + ?4, waiting = waiting + ?5, taken = taken + ?6, dead = dead + ?7,
                 stopped = stopped + ?8, withheld = withheld + ?9, unaddressed = unaddressed + ?10",
            params![accepted, queued, claimed, e.iter().sum::<i64>(), d[0], d[1], d[2], d[3], d[4], d[5]],
        )?;
        Ok(())
    }
}
