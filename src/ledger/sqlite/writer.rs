//! The writing connection: claim, start, end. The accept is in `accept.rs`, the outbox half in `outbox.rs`.

#[cfg(test)]
use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
#[cfg(test)]
use std::sync::Mutex;
use std::time::Duration;

#[cfg(test)]
use rusqlite::StatementStatus;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Params, Row, params};
use rustix::fs::Access;
use rustix::io::Errno;
use serde_json::value::RawValue;

use super::super::store::{
    AcceptAnswer, Addressing, Claim, Claimed, Ended, EndedAside, Readmitted, Recorded, Store, StoreError,
};
use super::checkpoint::{Checkpointer, Step, checkpoint, free_bytes};
use super::counters::Delta;
use super::number;
use super::open::beside;
use super::outbox::Lane;
use crate::model::batch::{NewBatch, Outcome};
use crate::model::body::{self, BatchFacts, EntryFacts};
use crate::model::delivery::{AttemptRecord, DeliveryNo, LaneNo, UrlHash};
use crate::model::{BatchId, BatchNo, ProductKey};

/// The one writer of an SQLite ledger.
#[derive(Debug)]
pub struct SqliteStore {
    // Closed before the lock is let go: fields drop in this order.
    checkpointer: Checkpointer,
    connection: Connection,
    _lock: File,
    path: PathBuf,
    addressing: Addressing,
    free_bytes_min: u64,
    /// Whether accepts must leave the rest of the disk alone; looked up once per group.
    low: Option<bool>,
    commits: u32,
    #[cfg(test)]
    recompiled: Mutex<HashMap<String, i32>>,
}

/// States of a product. What the ledger stores: never renumber.
pub(super) const QUEUED: u8 = 0;
pub(super) const CLAIMED: u8 = 1;
pub(super) const ENDED: u8 = 2;

/// The parts of a batch that the bodies of its webhooks need.
pub(super) struct Facts {
    pub no: BatchNo,
    pub batch_id: BatchId,
    pub total: u32,
    pub metadata: Option<String>,
    pub webhook_url: Option<String>,
}

impl Facts {
    pub fn metadata(&self) -> Result<Option<&RawValue>, StoreError> {
        self.metadata.as_deref().map(serde_json::from_str).transpose().map_err(damaged)
    }
}

pub(super) fn damaged(error: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("a column does not hold what was written: {error}"))
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Other(error.to_string()))
}

/// A WAL larger than this is cut back, even if readers have to be waited for.
const WAL_BYTES_MAX: u64 = 64 << 20;
/// A disk that was full has room again from here on: several batches of the common size with their outcomes.
const ROOM_BYTES_MIN: u64 = 1 << 20;
/// How often its size is looked at.
const WAL_LOOK_EVERY: u32 = 64;
/// How long the end waits for readers.
const CLOSE_WITHIN: Duration = Duration::from_millis(200);

impl SqliteStore {
    pub(super) fn new(
        mut connection: Connection,
        lock: File,
        path: PathBuf,
        addressing: Addressing,
        free_bytes_min: u64,
    ) -> Result<Self, StoreError> {
        let checkpointer = Checkpointer::start(&path, &mut connection)?;
        Ok(Self {
            checkpointer,
            connection,
            _lock: lock,
            path,
            addressing,
            free_bytes_min,
            low: None,
            commits: 0,
            #[cfg(test)]
            recompiled: Mutex::default(),
        })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn addressing(&self) -> &Addressing {
        &self.addressing
    }

    pub(super) fn statement(&self, sql: &str) -> Result<CachedStatement<'_>, StoreError> {
        let statement = self.connection.prepare_cached(sql)?;
        #[cfg(test)]
        self.recompiled.lock().unwrap().insert(sql.into(), statement.get_status(StatementStatus::RePrepare));
        Ok(statement)
    }

    /// How often SQLite compiled each statement again although it was kept.
    #[cfg(test)]
    pub(super) fn recompiled(&self) -> HashMap<String, i32> {
        self.recompiled.lock().unwrap().clone()
    }

    /// Runs a prepared statement; how many rows it changed.
    pub(super) fn run(&self, sql: &str, params: impl Params) -> Result<usize, StoreError> {
        Ok(self.statement(sql)?.execute(params)?)
    }

    pub(super) fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.statement(sql)?.query_row(params, read).optional()?)
    }

    pub(super) fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.statement(sql)?;
        let rows = statement.query_map(params, read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The product may be claimed again: the scan for free ones must not begin behind it.
    pub(super) fn lower_cursor(&self, key: ProductKey) -> Result<(), StoreError> {
        self.run(
            "UPDATE progress SET cursor = ?2 WHERE batch = ?1 AND cursor > ?2",
            params![key.batch.0, key.index],
        )?;
        Ok(())
    }

    fn facts(&self, batch: BatchNo) -> Result<Facts, StoreError> {
        let facts = self.one(
            "SELECT batch_id, total, metadata, webhook_url FROM batch WHERE no = ?1",
            [batch.0],
            |row| {
                Ok(Facts {
                    no: batch,
                    batch_id: BatchId::from_text(row.get_ref(0)?.as_str()?),
                    total: row.get(1)?,
                    metadata: row.get(2)?,
                    webhook_url: row.get(3)?,
                })
            },
        )?;
        facts.ok_or_else(|| StoreError::Other(format!("there is no batch {}", batch.0)))
    }

    /// Whether accepts are refused although the rest may still be written.
    pub(super) fn is_low(&mut self) -> bool {
        match self.low {
            Some(low) => low,
            None => self.low(),
        }
    }

    /// L1, L2: ends an open product with its duplicates, whoever holds it. How many ended, and what is told of it.
    pub(super) fn finish(
        &mut self,
        key: ProductKey,
        outcome: &Outcome,
        now_ms: i64,
    ) -> Result<(u32, EndedAside), StoreError> {
        let facts = self.facts(key.batch)?;
        let lane = self.product_lane(&facts)?;
        // INDEXED BY, here and below: without statistics SQLite would rather go through the whole batch.
        let entries = self.all(
            "SELECT idx, ean, note, dup_of, state FROM product WHERE batch = ?1 AND idx = ?2
             UNION ALL
             SELECT idx, ean, note, dup_of, state FROM product INDEXED BY product_duplicate
             WHERE batch = ?1 AND dup_of = ?2",
            params![key.batch.0, key.index],
            |row| {
                Ok(Entry {
                    index: row.get(0)?,
                    ean: row.get(1)?,
                    note: row.get(2)?,
                    duplicate_of: row.get(3)?,
                    state: row.get(4)?,
                })
            },
        )?;
        let reason = outcome.reason.as_ref();
        let mut delta = Delta::default();
        for entry in &entries {
            debug_assert_ne!(entry.state, ENDED, "L1: {key:?} ends together with its duplicates, once");
            self.run(
                "UPDATE product SET state = 2, claim_epoch = NULL, claim_inc = NULL, started = 0, status = ?3,
                     kind = ?4, detail = ?5, ended_at = ?6
                 WHERE batch = ?1 AND idx = ?2",
                params![
                    key.batch.0,
                    entry.index,
                    outcome.status as u8,
                    reason.map(|reason| &reason.kind),
                    reason.map(|reason| &reason.detail),
                    now_ms,
                ],
            )?;
            let facts_of_entry = EntryFacts {
                index: entry.index,
                ean: &entry.ean,
                duplicate_of: entry.duplicate_of,
                note: entry.note.as_deref(),
            };
            self.deliver(&facts, facts_of_entry, outcome, lane, now_ms)?;
            match entry.state {
                CLAIMED => delta.claimed -= 1,
                _ => delta.queued -= 1,
            }
            delta.end(outcome.status, lane.state);
        }
        self.count(key.batch, &delta)?;
        let batch_over = self.settle(key.batch, now_ms)?;
        let ended = entries.len() as u32;
        // The product itself comes before its duplicates.
        let ean = entries.into_iter().next().map(|entry| entry.ean).unwrap_or_default();
        Ok((ended, EndedAside { batch_id: facts.batch_id, index: key.index, ean, batch_over }))
    }

    /// Writes the body of one ended product, and its delivery.
    pub(super) fn deliver(
        &self,
        facts: &Facts,
        entry: EntryFacts<'_>,
        outcome: &Outcome,
        lane: Lane,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let batch = BatchFacts { batch_id: &facts.batch_id, total: facts.total, metadata: facts.metadata()? };
        let no = number::of_product(ProductKey { batch: facts.no, index: entry.index })?;
        self.insert_body(no, &body::product(batch, entry, outcome))?;
        self.insert_delivery(no, lane, now_ms)
    }

    /// L2: if nothing of the batch is open it ends, and its summary is released if that waits for nothing.
    pub(super) fn settle(&mut self, batch: BatchNo, now_ms: i64) -> Result<bool, StoreError> {
        let over = self.run(
            "UPDATE progress SET ended_at = ?2 WHERE batch = ?1 AND ended_at IS NULL AND queued = 0 AND claimed = 0",
            params![batch.0, now_ms],
        )? == 1;
        if over {
            self.release_summary_if_closed(batch, now_ms)?;
        }
        Ok(over)
    }

    /// The state of a product, and whether `claim` holds it.
    fn holder(&self, key: ProductKey, claim: Claim) -> Result<(u8, bool), StoreError> {
        let found = self.one(
            "SELECT state, claim_epoch IS ?3 AND claim_inc IS ?4 FROM product WHERE batch = ?1 AND idx = ?2",
            params![key.batch.0, key.index, claim.epoch, claim.incarnation],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        found.ok_or_else(|| StoreError::Other(format!("there is no {key:?}")))
    }

    /// Cuts back a WAL that readers kept from being reused.
    fn look_at_wal(&self) -> Result<(), StoreError> {
        let bytes = std::fs::metadata(beside(&self.path, "-wal")).map(|wal| wal.len()).unwrap_or_default();
        if bytes <= WAL_BYTES_MAX {
            return Ok(());
        }
        checkpoint(&self.connection, "TRUNCATE")
    }

    /// SQLite rolls a transaction back by itself after some errors. Going on would commit the rest piece by piece.
    fn must_be_open(&self) -> Result<(), StoreError> {
        if self.connection.is_autocommit() {
            return Err(StoreError::Medium("SQLite rolled the transaction back by itself".into()));
        }
        Ok(())
    }
}

/// An orderly end leaves one complete file: SQLite itself does so only if the writer is the last to close.
impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.checkpointer.stop();
        let _ = self.connection.busy_timeout(CLOSE_WITHIN);
        // If it cannot be done now, the next start does it.
        let _ = checkpoint(&self.connection, "TRUNCATE");
    }
}

struct Entry {
    index: u32,
    ean: String,
    note: Option<String>,
    duplicate_of: Option<u32>,
    state: u8,
}

impl Store for SqliteStore {
    fn begin(&mut self) -> Result<(), StoreError> {
        self.low = None;
        // IMMEDIATE: a read that turns into a write would otherwise be refused at once (SQLITE_BUSY).
        self.run("BEGIN IMMEDIATE", [])?;
        Ok(())
    }

    fn savepoint(&mut self) -> Result<(), StoreError> {
        self.must_be_open()?;
        self.run("SAVEPOINT command", [])?;
        Ok(())
    }

    fn release(&mut self) -> Result<(), StoreError> {
        self.must_be_open()?;
        self.run("RELEASE command", [])?;
        Ok(())
    }

    fn rollback_to_savepoint(&mut self) -> Result<(), StoreError> {
        self.must_be_open()?;
        self.run("ROLLBACK TO command", [])?;
        self.run("RELEASE command", [])?;
        Ok(())
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        self.must_be_open()?;
        self.run("COMMIT", [])?;
        Ok(())
    }

    fn tend(&mut self) -> Result<(), StoreError> {
        if self.checkpointer.after_commit()? == Step::Finish {
            checkpoint(&self.connection, "PASSIVE")?;
        }
        self.commits = self.commits.wrapping_add(1);
        if self.commits.is_multiple_of(WAL_LOOK_EVERY) {
            self.look_at_wal()?;
        }
        Ok(())
    }

    fn rollback(&mut self) {
        if !self.connection.is_autocommit() {
            // Fails only if SQLite rolled back by itself in between.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    fn low(&mut self) -> bool {
        // A disk that does not say how much is free is found full by writing.
        let low =
            self.free_bytes_min > 0 && free_bytes(&self.path).is_some_and(|free| free < self.free_bytes_min);
        *self.low.insert(low)
    }

    fn has_room(&mut self) -> bool {
        free_bytes(&self.path).is_none_or(|free| free >= ROOM_BYTES_MIN)
    }

    fn is_read_only(&mut self) -> bool {
        [beside(&self.path, "-wal"), self.path.clone()].iter().any(|file| {
            rustix::fs::access(file, Access::WRITE_OK)
                .is_err_and(|error| matches!(error, Errno::ROFS | Errno::PERM | Errno::ACCESS))
        })
    }

    fn readdress(&mut self, addressing: Addressing) {
        self.addressing = addressing;
    }

    fn accept(&mut self, batch: &NewBatch, now_ms: i64) -> Result<AcceptAnswer, StoreError> {
        self.take_in(batch, now_ms)
    }

    fn claim(&mut self, batch: BatchNo, claim: Claim, limit: u32) -> Result<Vec<Claimed>, StoreError> {
        let claimed = self.all(
            "SELECT idx, ean, replacement, deaths FROM product
             WHERE batch = ?1 AND idx >= (SELECT cursor FROM progress WHERE batch = ?1)
                 AND state = 0 AND dup_of IS NULL
             ORDER BY idx LIMIT ?2",
            params![batch.0, limit],
            |row| {
                Ok(Claimed {
                    index: row.get(0)?,
                    ean: row.get(1)?,
                    replacement: row.get(2)?,
                    deaths: row.get(3)?,
                })
            },
        )?;
        let Some(last) = claimed.last() else { return Ok(claimed) };
        for product in &claimed {
            self.run(
                "UPDATE product SET state = 1, claim_epoch = ?3, claim_inc = ?4, started = 0
                 WHERE batch = ?1 AND idx = ?2",
                params![batch.0, product.index, claim.epoch, claim.incarnation],
            )?;
        }
        self.run("UPDATE progress SET cursor = ?2 WHERE batch = ?1", params![batch.0, last.index + 1])?;
        self.count(batch, &Delta::put_back(-(claimed.len() as i64)))?;
        Ok(claimed)
    }

    fn start(&mut self, key: ProductKey, claim: Claim) -> Result<bool, StoreError> {
        let changed = self.run(
            "UPDATE product SET started = 1
             WHERE batch = ?1 AND idx = ?2 AND state = 1 AND claim_epoch = ?3 AND claim_inc = ?4",
            params![key.batch.0, key.index, claim.epoch, claim.incarnation],
        )?;
        Ok(changed == 1)
    }

    fn rest(&mut self, key: ProductKey, claim: Claim) -> Result<(), StoreError> {
        self.run(
            "UPDATE product SET started = 0
             WHERE batch = ?1 AND idx = ?2 AND state = 1 AND claim_epoch = ?3 AND claim_inc = ?4",
            params![key.batch.0, key.index, claim.epoch, claim.incarnation],
        )?;
        Ok(())
    }

    fn rest_all_but(&mut self, key: ProductKey) -> Result<(), StoreError> {
        self.run(
            "UPDATE product SET started = 0
             WHERE state = 1 AND started = 1 AND NOT (batch = ?1 AND idx = ?2)",
            params![key.batch.0, key.index],
        )?;
        Ok(())
    }

    fn put_back(&mut self, key: ProductKey, claim: Claim) -> Result<(), StoreError> {
        let changed = self.run(
            "UPDATE product SET state = 0, claim_epoch = NULL, claim_inc = NULL, started = 0
             WHERE batch = ?1 AND idx = ?2 AND state = 1 AND claim_epoch = ?3 AND claim_inc = ?4",
            params![key.batch.0, key.index, claim.epoch, claim.incarnation],
        )?;
        if changed == 1 {
            self.count(key.batch, &Delta::put_back(1))?;
            self.lower_cursor(key)?;
        }
        Ok(())
    }

    fn release_older(&mut self, batch: BatchNo, claim: Claim) -> Result<u32, StoreError> {
        let older = self.all(
            "SELECT idx FROM product INDEXED BY product_claimed
             WHERE batch = ?1 AND state = 1 AND (claim_epoch, claim_inc) < (?2, ?3)",
            params![batch.0, claim.epoch, claim.incarnation],
            |row| row.get::<_, u32>(0),
        )?;
        Ok(self.release_claims(batch, claim, &older)?.len() as u32)
    }

    fn release_claims(
        &mut self,
        batch: BatchNo,
        claim: Claim,
        indexes: &[u32],
    ) -> Result<Vec<u32>, StoreError> {
        let mut released = Vec::with_capacity(indexes.len());
        for &index in indexes {
            let changed = self.run(
                "UPDATE product SET state = 0, claim_epoch = NULL, claim_inc = NULL, started = 0
                 WHERE batch = ?1 AND idx = ?2 AND state = 1 AND (claim_epoch, claim_inc) <= (?3, ?4)",
                params![batch.0, index, claim.epoch, claim.incarnation],
            )?;
            released.extend((changed == 1).then_some(index));
        }
        if let Some(&index) = released.iter().min() {
            self.count(batch, &Delta::put_back(released.len() as i64))?;
            self.lower_cursor(ProductKey { batch, index })?;
        }
        Ok(released)
    }

    fn end(
        &mut self,
        key: ProductKey,
        claim: Claim,
        outcome: &Outcome,
        now_ms: i64,
    ) -> Result<Ended, StoreError> {
        match self.holder(key, claim)? {
            (ENDED, _) => Ok(Ended::Already),
            (CLAIMED, true) => {
                let (_, ended) = self.finish(key, outcome, now_ms)?;
                Ok(Ended::Now { batch_over: ended.batch_over })
            }
            _ => Ok(Ended::ClaimLost),
        }
    }

    fn end_set_aside(
        &mut self,
        batch: BatchNo,
        outcome: &Outcome,
        limit: u32,
        now_ms: i64,
    ) -> Result<Vec<EndedAside>, StoreError> {
        // The claimed ones have an index of their own, the queued ones begin at the cursor: no ended row is read again.
        let claimed = "SELECT idx FROM product INDEXED BY product_claimed
             WHERE batch = ?1 AND state = 1 ORDER BY idx LIMIT ?2";
        let queued = "SELECT idx FROM product
             WHERE batch = ?1 AND idx >= (SELECT cursor FROM progress WHERE batch = ?1)
                 AND state = 0 AND dup_of IS NULL
             ORDER BY idx LIMIT ?2";
        let (mut ended, mut told) = (0, Vec::new());
        for (state, open) in [(CLAIMED, claimed), (QUEUED, queued)] {
            let left = limit.saturating_sub(ended);
            let indices = self.all(open, params![batch.0, left], |row| row.get::<_, u32>(0))?;
            if let (QUEUED, Some(last)) = (state, indices.last()) {
                self.run("UPDATE progress SET cursor = ?2 WHERE batch = ?1", params![batch.0, last + 1])?;
            }
            for index in indices {
                let (with_duplicates, product) = self.finish(ProductKey { batch, index }, outcome, now_ms)?;
                ended += with_duplicates;
                told.push(product);
            }
        }
        Ok(told)
    }

    fn record_attempt(&mut self, attempt: &AttemptRecord) -> Result<Recorded, StoreError> {
        self.record(attempt)
    }

    fn record_lane_panic(&mut self, no: DeliveryNo) -> Result<u32, StoreError> {
        let panics = self.one(
            "UPDATE delivery SET panics = panics + 1 WHERE no = ?1 RETURNING panics",
            [no.0],
            |row| row.get(0),
        )?;
        panics.ok_or_else(|| StoreError::Other(format!("there is no {no:?}")))
    }

    fn readmit(
        &mut self,
        lane: LaneNo,
        url: UrlHash,
        now_ms: i64,
        limit: u32,
    ) -> Result<Readmitted, StoreError> {
        self.readmit_held(lane, url, now_ms, limit)
    }

    fn shift_due(&mut self, by_ms: i64) -> Result<(), StoreError> {
        self.run("UPDATE delivery SET due_at = due_at + ?1 WHERE state = 0", [by_ms])?;
        Ok(())
    }

    fn release_summaries(&mut self, now_ms: i64, waited: &dyn Fn(i64) -> bool) -> Result<u32, StoreError> {
        self.release_ripe(now_ms, waited)
    }

    fn touch(&mut self) -> Result<(), StoreError> {
        self.run("UPDATE run SET touched = touched + 1", [])?;
        Ok(())
    }

    fn mark_stopping(&mut self) -> Result<(), StoreError> {
        self.run("UPDATE run SET stopping = 1", [])?;
        Ok(())
    }
}

#[cfg(test)]
impl SqliteStore {
    /// Counts the steps of SQLite's machine from now on, in hundreds: what a query costs, whatever else the machine does.
    pub(super) fn count_steps(&mut self) -> std::sync::Arc<std::sync::atomic::AtomicU64> {
        let steps = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
        let counted = std::sync::Arc::clone(&steps);
        let count = move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            false
        };
        self.connection.progress_handler(100, Some(count)).expect("an open connection takes a handler");
        steps
    }
}
