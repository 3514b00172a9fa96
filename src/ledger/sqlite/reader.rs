//! The reading side. Its statements never wait for the writer: in WAL mode each sees the last commit.

use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension, Params, Row, params};

use super::super::store::{
    BatchView, Claim, DeliveryView, HeldLane, LaneView, OpenBatch, ProductState, ProductView, Read,
    StoreError, Tally,
};
use super::accept;
use super::number;
use super::writer::{CLAIMED, QUEUED, damaged};
use crate::model::batch::{Accepted, Reason, SiteName, Status};
use crate::model::delivery::{DeliveryNo, DeliveryState, DueDelivery, Endpoint, LaneNo, UrlHash};
use crate::model::{BatchId, BatchNo};

/// One read-only connection.
#[derive(Debug)]
pub struct SqliteReader {
    connection: Connection,
}

impl SqliteReader {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection }
    }

    fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.connection.prepare_cached(sql)?.query_row(params, read).optional()?)
    }

    fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map(params, read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Runs several statements on one snapshot, the caller's if there is one.
    fn on_one_snapshot<T>(
        &mut self,
        query: impl FnOnce(&Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let own = self.connection.is_autocommit();
        if own {
            self.begin_snapshot()?;
        }
        let result = query(self);
        if own {
            self.end_snapshot();
        }
        result
    }
}

const DELIVERY_COLUMNS: &str =
    "d.no, e.key, d.state, d.attempts, d.due_at, d.last_at, d.last_status, d.last_detail";

/// Reads [`DELIVERY_COLUMNS`] from column `at` on.
fn delivery_view(row: &Row<'_>, at: usize, batch_id: &BatchId) -> rusqlite::Result<Option<DeliveryView>> {
    let Some(no) = row.get::<_, Option<i64>>(at)? else { return Ok(None) };
    let state: u8 = row.get(at + 2)?;
    Ok(Some(DeliveryView {
        no: DeliveryNo(no),
        webhook_id: number::parts(no).1.webhook_id(batch_id),
        endpoint: Endpoint::from_key(row.get_ref(at + 1)?.as_str()?),
        state: DeliveryState::from_code(state).ok_or_else(|| out_of_range(at + 2, state))?,
        attempts: row.get(at + 3)?,
        due_at_ms: row.get(at + 4)?,
        last_attempt_at_ms: row.get(at + 5)?,
        last_status: row.get(at + 6)?,
        last_detail: row.get(at + 7)?,
    }))
}

fn out_of_range(column: usize, code: u8) -> rusqlite::Error {
    rusqlite::Error::IntegralValueOutOfRange(column, code.into())
}

/// The query of a product's view; `?` stands for what follows FROM product AS p.
fn product_query(body: &str, rest: &str) -> String {
    format!(
        "SELECT b.batch_id, p.idx, p.ean, p.replacement, p.dup_of, p.note, p.state, p.status, p.kind, p.detail,
             p.deaths, p.ended_at, {body}, {DELIVERY_COLUMNS}
         FROM product AS p JOIN batch AS b ON b.no = p.batch
         LEFT JOIN delivery AS d ON d.no = (p.batch << 26) | (p.idx << 2)
         LEFT JOIN endpoint AS e ON e.no = d.endpoint
         {rest}"
    )
}

fn product_view(row: &Row<'_>) -> rusqlite::Result<ProductView> {
    let batch_id = BatchId::from_text(row.get_ref(0)?.as_str()?);
    let state = match row.get(6)? {
        QUEUED => ProductState::Queued,
        CLAIMED => ProductState::Claimed,
        _ => {
            let status: u8 = row.get(7)?;
            ProductState::Ended(Status::from_code(status).ok_or_else(|| out_of_range(7, status))?)
        }
    };
    let reason = match (row.get::<_, Option<String>>(8)?, row.get::<_, Option<String>>(9)?) {
        (Some(kind), Some(detail)) => Some(Reason { kind, detail }),
        _ => None,
    };
    let body: Option<Vec<u8>> = row.get(12)?;
    Ok(ProductView {
        index: row.get(1)?,
        ean: row.get(2)?,
        replacement: row.get(3)?,
        duplicate_of: row.get(4)?,
        note: row.get(5)?,
        state,
        reason,
        deaths: row.get(10)?,
        ended_at_ms: row.get(11)?,
        delivery: delivery_view(row, 13, &batch_id)?,
        body: body.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        batch_id,
    })
}

fn read_array<T: FromSql + Default + Copy, const N: usize>(
    row: &Row<'_>,
    at: usize,
) -> rusqlite::Result<[T; N]> {
    let mut array = [T::default(); N];
    for (column, value) in (at..).zip(&mut array) {
        *value = row.get(column)?;
    }
    Ok(array)
}

fn sites(json: &str) -> Result<Vec<SiteName>, StoreError> {
    serde_json::from_str(json).map_err(damaged)
}

impl Read for SqliteReader {
    fn begin_snapshot(&mut self) -> Result<(), StoreError> {
        self.connection.execute_batch("BEGIN")?;
        Ok(())
    }

    fn end_snapshot(&mut self) {
        if !self.connection.is_autocommit() {
            // Nothing was written: there is nothing that could fail.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    fn open_batches(&mut self, after: BatchNo, limit: u32) -> Result<Vec<OpenBatch>, StoreError> {
        let rows = self.all(
            "SELECT no, batch_id, sites, total FROM progress JOIN batch ON batch.no = progress.batch
             WHERE ended_at IS NULL AND progress.batch > ?1 ORDER BY progress.batch LIMIT ?2",
            params![after.0, limit],
            |row| {
                let batch_id = BatchId::from_text(row.get_ref(1)?.as_str()?);
                Ok((BatchNo(row.get(0)?), batch_id, row.get::<_, String>(2)?, row.get(3)?))
            },
        )?;
        let open = rows
            .into_iter()
            .map(|(no, batch_id, json, total)| Ok(OpenBatch { no, batch_id, sites: sites(&json)?, total }));
        open.collect()
    }

    fn open_batch_count(&mut self) -> Result<u64, StoreError> {
        let count = "SELECT count(*) FROM progress INDEXED BY progress_open WHERE ended_at IS NULL";
        let open = self.one(count, [], |row| row.get::<_, i64>(0))?;
        Ok(open.and_then(|open| u64::try_from(open).ok()).unwrap_or_default())
    }

    fn batch(&mut self, name: &str) -> Result<Option<BatchView>, StoreError> {
        let (column, number) = match name.parse::<i64>() {
            Ok(number) => ("no = ?1", Some(number)),
            Err(_) => ("batch_id = ?1", None),
        };
        let sql = format!(
            "SELECT no, batch_id, accepted_at, ended_at, total, queued, claimed, sites, ignored_3400, callback_url,
                 webhook_url, metadata, summary, found, not_found, ean_mismatch, not_in_catalogue, ignored, skipped,
                 failed, cancelled_products, waiting, taken, dead, stopped, withheld, unaddressed
             FROM batch JOIN progress ON progress.batch = batch.no WHERE {column}"
        );
        let read = |row: &Row<'_>| {
            let view = BatchView {
                no: BatchNo(row.get(0)?),
                batch_id: BatchId::from_text(row.get_ref(1)?.as_str()?),
                accepted_at_ms: row.get(2)?,
                ended_at_ms: row.get(3)?,
                total: row.get(4)?,
                queued: row.get(5)?,
                claimed: row.get(6)?,
                ended: read_array(row, 13)?,
                deliveries: read_array(row, 21)?,
                sites: Vec::new(),
                ignored_3400: Vec::new(),
                callback_url: row.get(9)?,
                webhook_url: row.get(10)?,
                metadata: row.get(11)?,
                summary_released: row.get::<_, u8>(12)? != 0,
            };
            Ok((view, row.get::<_, String>(7)?, row.get::<_, String>(8)?))
        };
        let found = match number {
            Some(number) => self.one(&sql, [number], read)?,
            None => self.one(&sql, [name], read)?,
        };
        let Some((mut view, sites_json, ignored)) = found else { return Ok(None) };
        view.sites = sites(&sites_json)?;
        view.ignored_3400 = serde_json::from_str(&ignored).map_err(damaged)?;
        Ok(Some(view))
    }

    fn claimed(&mut self, batch: BatchNo, claim: Claim) -> Result<Vec<u32>, StoreError> {
        self.all(
            "SELECT idx FROM product INDEXED BY product_claimed
             WHERE batch = ?1 AND state = 1 AND (claim_epoch, claim_inc) <= (?2, ?3) ORDER BY idx",
            params![batch.0, claim.epoch, claim.incarnation],
            |row| row.get(0),
        )
    }

    fn accepted(&mut self, batch_id: &BatchId) -> Result<Option<Accepted>, StoreError> {
        accept::first_answer(&self.connection, "batch_id", batch_id.as_str())
    }

    fn products(&mut self, batch: BatchNo, after: u32, limit: u32) -> Result<Vec<ProductView>, StoreError> {
        let sql = product_query("NULL", "WHERE p.batch = ?1 AND p.idx > ?2 ORDER BY p.idx LIMIT ?3");
        self.all(&sql, params![batch.0, after, limit], product_view)
    }

    fn products_by_gtin(&mut self, gtin14: &str, limit: u32) -> Result<Vec<ProductView>, StoreError> {
        // One pass over the products, newest first, for a person who asks: an index would cost every accept a page per
        // product.
        let sql = product_query(
            "(SELECT bytes FROM body WHERE body.no = d.no)",
            "WHERE ltrim(coalesce(p.gtin, p.ean), '0') = ?1 OR ltrim(p.replacement, '0') = ?1
             ORDER BY p.batch DESC, p.idx DESC LIMIT ?2",
        );
        self.all(&sql, params![gtin14.trim_start_matches('0'), limit], product_view)
    }

    fn summaries(&mut self, batch: BatchNo) -> Result<Vec<DeliveryView>, StoreError> {
        let batch_id = self.one("SELECT batch_id FROM batch WHERE no = ?1", [batch.0], |row| {
            Ok(BatchId::from_text(row.get_ref(0)?.as_str()?))
        })?;
        let Some(batch_id) = batch_id else { return Ok(Vec::new()) };
        let (first, _) = number::range(batch);
        let sql = format!(
            "SELECT {DELIVERY_COLUMNS} FROM delivery AS d JOIN endpoint AS e ON e.no = d.endpoint
             WHERE d.no BETWEEN ?1 + 1 AND ?1 + 3 ORDER BY d.no"
        );
        let views = self.all(&sql, [first], |row| delivery_view(row, 0, &batch_id))?;
        Ok(views.into_iter().flatten().collect())
    }

    fn lanes(&mut self) -> Result<Vec<LaneView>, StoreError> {
        // Jumps from lane to lane over the index: neither the waiting deliveries nor the endpoints of old batches are
        // gone through.
        self.all(
            "WITH RECURSIVE lane (no) AS (
                 SELECT min(endpoint) FROM delivery WHERE state = 0
                 UNION ALL
                 SELECT (SELECT min(endpoint) FROM delivery WHERE state = 0 AND endpoint > lane.no)
                 FROM lane WHERE lane.no IS NOT NULL
             )
             SELECT e.no, e.key, e.stopped,
                 (SELECT min(due_at) FROM delivery WHERE state = 0 AND endpoint = e.no)
             FROM lane JOIN endpoint AS e ON e.no = lane.no",
            [],
            lane_view,
        )
    }

    fn held_lanes(&mut self) -> Result<Vec<HeldLane>, StoreError> {
        // As above: however much is held, it costs a few steps for each lane.
        self.all(
            "WITH RECURSIVE lane (no) AS (
                 SELECT min(endpoint) FROM delivery INDEXED BY delivery_held WHERE state = 3 OR state = 4
                 UNION ALL
                 SELECT (SELECT min(endpoint) FROM delivery INDEXED BY delivery_held
                         WHERE (state = 3 OR state = 4) AND endpoint > lane.no)
                 FROM lane WHERE lane.no IS NOT NULL
             )
             SELECT e.no, e.key, e.stopped, e.stopped_url,
                 EXISTS (SELECT 1 FROM delivery WHERE state = 4 AND endpoint = e.no)
             FROM lane JOIN endpoint AS e ON e.no = lane.no",
            [],
            |row| {
                Ok(HeldLane {
                    no: LaneNo(row.get(0)?),
                    endpoint: Endpoint::from_key(row.get_ref(1)?.as_str()?),
                    stopped: row.get(2)?,
                    stopped_url: row.get::<_, Option<[u8; 32]>>(3)?.map(UrlHash),
                    withholds: row.get(4)?,
                })
            },
        )
    }

    fn due(
        &mut self,
        lane: LaneNo,
        now_ms: i64,
        in_hand: &[DeliveryNo],
        limit: u32,
    ) -> Result<Vec<DueDelivery>, StoreError> {
        self.on_one_snapshot(|reader| {
            let enough = i64::from(limit).saturating_add(in_hand.len() as i64);
            let nos = reader.all(
                "SELECT no FROM delivery WHERE state = 0 AND endpoint = ?1 AND due_at <= ?2
                 ORDER BY due_at, no LIMIT ?3",
                params![lane.0, now_ms, enough],
                |row| Ok(DeliveryNo(row.get(0)?)),
            )?;
            let free = nos.into_iter().filter(|no| !in_hand.contains(no));
            free.take(limit as usize).map(|no| reader.due_delivery(no)).collect()
        })
    }

    fn tally(&mut self) -> Result<Tally, StoreError> {
        let tally = self.one(
            "SELECT accepted, queued, claimed, ended, waiting, taken, dead, stopped, withheld, unaddressed FROM tally",
            [],
            |row| {
                Ok(Tally {
                    accepted: row.get(0)?,
                    queued: row.get(1)?,
                    claimed: row.get(2)?,
                    ended: row.get(3)?,
                    deliveries: read_array(row, 4)?,
                })
            },
        )?;
        tally.ok_or_else(|| damaged("the tally is gone"))
    }

    fn recount(&mut self) -> Result<Tally, StoreError> {
        self.on_one_snapshot(|reader| {
            let products = reader.one(
                "SELECT count(*), coalesce(sum(state = 0), 0), coalesce(sum(state = 1), 0), coalesce(sum(state = 2), 0)
                 FROM product",
                [],
                read_array_of_four,
            )?;
            let [accepted, queued, claimed, ended] = products.unwrap_or_default();
            let mut tally = Tally { accepted, queued, claimed, ended, deliveries: [0; 6] };
            let by_state = reader.all(
                "SELECT state, count(*) FROM delivery WHERE no & 3 = 0 GROUP BY state",
                [],
                |row| Ok((row.get::<_, u8>(0)?, row.get::<_, i64>(1)?)),
            )?;
            for (code, count) in by_state {
                let state = DeliveryState::from_code(code).ok_or_else(|| damaged(format!("delivery state {code}")))?;
                tally.deliveries[state as usize] = count;
            }
            Ok(tally)
        })
    }
}

fn read_array_of_four(row: &Row<'_>) -> rusqlite::Result<[i64; 4]> {
    read_array(row, 0)
}

fn lane_view(row: &Row<'_>) -> rusqlite::Result<LaneView> {
    Ok(LaneView {
        no: LaneNo(row.get(0)?),
        endpoint: Endpoint::from_key(row.get_ref(1)?.as_str()?),
        stopped: row.get(2)?,
        next_due_at_ms: row.get(3)?,
    })
}

impl SqliteReader {
    fn due_delivery(&self, no: DeliveryNo) -> Result<DueDelivery, StoreError> {
        let (batch, subject) = number::parts(no.0);
        let delivery = self.one(
            "SELECT b.batch_id, e.key, d.attempts, d.patience_used, d.last_at, d.answer_unseen, d.state, d.panics,
                 body.bytes
             FROM delivery AS d JOIN endpoint AS e ON e.no = d.endpoint JOIN batch AS b ON b.no = ?2
             JOIN body ON body.no = ?3
             WHERE d.no = ?1",
            params![no.0, batch.0, number::body(no.0)],
            |row| {
                let state: u8 = row.get(6)?;
                Ok(DueDelivery {
                    no,
                    batch,
                    batch_id: BatchId::from_text(row.get_ref(0)?.as_str()?),
                    subject,
                    endpoint: Endpoint::from_key(row.get_ref(1)?.as_str()?),
                    attempts: row.get(2)?,
                    patience_used_ms: row.get::<_, i64>(3)?.unsigned_abs(),
                    last_attempt_at_ms: row.get(4)?,
                    answer_unseen: row.get(5)?,
                    state: DeliveryState::from_code(state).ok_or_else(|| out_of_range(6, state))?,
                    panics: row.get(7)?,
                    body: row.get(8)?,
                })
            },
        )?;
        delivery.ok_or_else(|| damaged(format!("{no:?} has no body")))
    }
}
