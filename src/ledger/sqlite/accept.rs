//! Transaction 1: a batch and its products, or the answer that an earlier submit of it got.

use rusqlite::{Connection, OptionalExtension, params};

use super::super::store::{AcceptAnswer, StoreError};
use super::counters::Delta;
use super::number;
use super::writer::{Facts, SqliteStore, damaged, to_json};
use crate::model::batch::{Accepted, Fate, IntakeCounts, NewBatch, NewProduct, Outcome, Repeat};
use crate::model::body::EntryFacts;
use crate::model::{BatchId, BatchNo, ProductKey};

impl SqliteStore {
    /// Transaction 1.
    pub(super) fn take_in(&mut self, batch: &NewBatch, now_ms: i64) -> Result<AcceptAnswer, StoreError> {
        if let Some(answer) = self.repeat(batch, now_ms)? {
            return Ok(answer);
        }
        // After the look for a repeat: that one needs no room.
        if self.is_low() {
            return Err(StoreError::Full { group_lost: false });
        }
        if batch.products.len() > number::INDEX_MAX as usize {
            return Err(StoreError::Other(format!("{} products in one batch", batch.products.len())));
        }
        let accepted = self.insert_batch(batch, now_ms)?;
        let facts = Facts {
            no: accepted.batch,
            batch_id: accepted.batch_id.clone(),
            total: accepted.total,
            metadata: batch.metadata.as_ref().map(|metadata| metadata.get().to_owned()),
            webhook_url: batch.webhook_url.clone(),
        };
        if !self.insert_products(&facts, batch, now_ms)? {
            self.settle(accepted.batch, now_ms)?;
        }
        Ok(AcceptAnswer::Accepted(accepted))
    }

    /// What an earlier submit got, if this one repeats it.
    fn repeat(&self, batch: &NewBatch, now_ms: i64) -> Result<Option<AcceptAnswer>, StoreError> {
        // The same submit again, after a write whose result was not seen (rule 5).
        let same =
            self.one("SELECT no FROM batch WHERE batch_id = ?1", [batch.batch_id.as_str()], |row| {
                row.get(0)
            })?;
        if let Some(no) = same {
            return Ok(Some(self.first_answer(no, None)?));
        }
        if let Some(key) = &batch.key {
            let found = self.one(
                "SELECT no, body_hash FROM batch WHERE requester = ?1 AND key = ?2",
                params![batch.requester, key],
                |row| Ok((row.get(0)?, row.get::<_, [u8; 32]>(1)?)),
            )?;
            return Ok(match found {
                None => None,
                Some((_, hash)) if hash != batch.body_hash => Some(AcceptAnswer::KeyReused),
                Some((no, _)) => Some(self.first_answer(no, Some(Repeat::Key))?),
            });
        }
        if batch.force {
            return Ok(None);
        }
        let window = i64::try_from(self.addressing().dedupe_window.as_millis()).unwrap_or(i64::MAX);
        let found = self.one(
            "SELECT batch.no FROM batch JOIN progress ON progress.batch = batch.no
             WHERE body_hash = ?1 AND requester = ?2 AND cancelled = 0 AND (ended_at IS NULL OR ended_at > ?3)
             ORDER BY batch.no DESC LIMIT 1",
            params![batch.body_hash, batch.requester, now_ms.saturating_sub(window)],
            |row| row.get(0),
        )?;
        found.map(|no| self.first_answer(no, Some(Repeat::Body))).transpose()
    }

    fn first_answer(&self, no: i64, repeat: Option<Repeat>) -> Result<AcceptAnswer, StoreError> {
        let accepted = first_answer(self.connection(), "no", no)?;
        let mut accepted = accepted.ok_or_else(|| StoreError::Other(format!("there is no batch {no}")))?;
        accepted.repeat = repeat;
        Ok(AcceptAnswer::Accepted(accepted))
    }

    fn insert_batch(&self, batch: &NewBatch, now_ms: i64) -> Result<Accepted, StoreError> {
        let counts = batch.counts();
        let refused = batch.refused();
        let total = batch.products.len() as u32;
        self.run(
            "INSERT INTO batch (batch_id, accepted_at, requester, key, body_hash, sites, webhook_url, callback_url,
                 metadata, ignored_3400, total, intake_queued, intake_skipped, intake_ignored, refused)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            params![
                batch.batch_id.as_str(),
                now_ms,
                batch.requester,
                batch.key,
                batch.body_hash,
                to_json(&batch.sites)?,
                batch.webhook_url,
                batch.callback_url,
                batch.metadata.as_ref().map(|metadata| metadata.get()),
                to_json(&batch.ignored_3400)?,
                total,
                counts.queued,
                counts.skipped,
                counts.ignored,
                to_json(&refused)?,
            ],
        )?;
        let no = BatchNo(self.connection().last_insert_rowid());
        Ok(Accepted { batch: no, batch_id: batch.batch_id.clone(), total, counts, refused, repeat: None })
    }

    /// All entries, with the counters; whether any of them is open.
    fn insert_products(&self, facts: &Facts, batch: &NewBatch, now_ms: i64) -> Result<bool, StoreError> {
        let mut delta = Delta { accepted: batch.products.len() as i64, ..Delta::default() };
        let mut lane = None;
        for (index, product) in (1..).zip(&batch.products) {
            let key = ProductKey { batch: facts.no, index };
            match &product.fate {
                Fate::Over { status, reason } => {
                    let outcome = Outcome::without_visit(*status, Some(reason.clone()));
                    let lane = match lane {
                        Some(lane) => lane,
                        None => *lane.insert(self.product_lane(facts)?),
                    };
                    self.insert_over(key, product, &outcome, now_ms)?;
                    let entry = EntryFacts {
                        index,
                        ean: &product.ean,
                        duplicate_of: None,
                        note: product.note.as_deref(),
                    };
                    self.deliver(facts, entry, &outcome, lane, now_ms)?;
                    delta.end(*status, lane.state);
                }
                Fate::Visit { .. } | Fate::Duplicate { .. } => {
                    self.insert_queued(key, product, &batch.products)?;
                    delta.queued += 1;
                }
            }
        }
        self.count_first(facts.no, &delta)?;
        Ok(delta.queued > 0)
    }

    fn insert_queued(
        &self,
        key: ProductKey,
        product: &NewProduct,
        products: &[NewProduct],
    ) -> Result<(), StoreError> {
        let (gtin, replacement, dup_of) = match &product.fate {
            Fate::Visit { gtin, replacement } => (Some(gtin), replacement.as_ref(), None),
            Fate::Duplicate { of, gtin, replacement } => (Some(gtin), replacement.as_ref(), Some(*of)),
            Fate::Over { .. } => (None, None, None),
        };
        if let Some(of) = dup_of {
            let first = products.get((of as usize).wrapping_sub(1)).map(|first| &first.fate);
            if of >= key.index || !matches!(first, Some(Fate::Visit { .. })) {
                // It would never end.
                return Err(StoreError::Other(format!("entry {} cannot be a duplicate of {of}", key.index)));
            }
        }
        self.run(
            "INSERT INTO product (batch, idx, ean, gtin, replacement, note, dup_of, state)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0)",
            params![
                key.batch.0,
                key.index,
                product.ean,
                gtin.map(|gtin| gtin.as_str()).filter(|gtin| *gtin != product.ean),
                replacement.map(|gtin| gtin.as_str()),
                product.note,
                dup_of,
            ],
        )?;
        Ok(())
    }

    fn insert_over(
        &self,
        key: ProductKey,
        product: &NewProduct,
        outcome: &Outcome,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let reason = outcome.reason.as_ref();
        self.run(
            "INSERT INTO product (batch, idx, ean, note, state, status, kind, detail, ended_at)
             VALUES (?1, ?2, ?3, ?4, 2, ?5, ?6, ?7, ?8)",
            params![
                key.batch.0,
                key.index,
                product.ean,
                product.note,
                outcome.status as u8,
                reason.map(|reason| &reason.kind),
                reason.map(|reason| &reason.detail),
                now_ms,
            ],
        )?;
        Ok(())
    }
}

/// The first answer to the submit whose batch has `value` in `column`.
pub(super) fn first_answer(
    connection: &Connection,
    column: &str,
    value: impl rusqlite::ToSql,
) -> Result<Option<Accepted>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT no, batch_id, total, intake_queued, intake_skipped, intake_ignored, refused FROM batch
         WHERE {column} = ?1"
    ))?;
    let found = statement.query_row([value], |row| {
        let accepted = Accepted {
            batch: BatchNo(row.get(0)?),
            batch_id: BatchId::from_text(row.get_ref(1)?.as_str()?),
            total: row.get(2)?,
            counts: IntakeCounts { queued: row.get(3)?, skipped: row.get(4)?, ignored: row.get(5)? },
            refused: Vec::new(),
            repeat: None,
        };
        Ok((accepted, row.get::<_, String>(6)?))
    });
    let Some((mut accepted, refused)) = found.optional()? else { return Ok(None) };
    accepted.refused = serde_json::from_str(&refused).map_err(damaged)?;
    Ok(Some(accepted))
}
