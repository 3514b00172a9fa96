//! The outbox half of the writer: lanes, deliveries, attempts, and the release of summaries.

use rusqlite::params;
use url::Url;

use super::super::store::{Readmitted, Recorded, StoreError};
use super::counters::Delta;
use super::number;
use super::writer::{Facts, SqliteStore, damaged};
use crate::model::batch::Status;
use crate::model::body::{self, BatchFacts, DeliveryCounts, FailedProduct, SummaryFacts};
use crate::model::delivery::{
    AttemptRecord, AttemptResult, DeliveryState, Endpoint, LaneNo, Subject, UrlHash,
};
use crate::model::{BatchId, BatchNo};

/// Where new deliveries of an endpoint go, and the state they begin in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    no: LaneNo,
    pub state: DeliveryState,
}

/// `progress.summary`: whether the batch's summary was released, and whether anyone gets it.
const RELEASED: u8 = 1;
const RELEASED_UNADDRESSED: u8 = 2;

/// A delivery as an attempt finds it.
struct Standing {
    lane: LaneNo,
    state: DeliveryState,
    attempts: u32,
}

/// Where a recorded attempt leaves its delivery.
struct Left {
    state: DeliveryState,
    attempts: u32,
    due_at_ms: Option<i64>,
}

impl SqliteStore {
    /// Where the product webhooks of a batch go.
    pub(super) fn product_lane(&self, facts: &Facts) -> Result<Lane, StoreError> {
        match &facts.webhook_url {
            Some(url) => self.lane(&Endpoint::Url(url.as_str().into())),
            None if self.addressing().product => self.lane(&Endpoint::Product),
            None => Ok(Lane { state: DeliveryState::Unaddressed, ..self.lane(&Endpoint::Product)? }),
        }
    }

    fn lane(&self, endpoint: &Endpoint) -> Result<Lane, StoreError> {
        let key = endpoint.as_key();
        let found = self.one("SELECT no, stopped FROM endpoint WHERE key = ?1", [&key], |row| {
            Ok((LaneNo(row.get(0)?), row.get(1)?))
        })?;
        let (no, stopped) = match found {
            Some(found) => found,
            None => {
                self.run("INSERT INTO endpoint (key) VALUES (?1)", [&key])?;
                (LaneNo(self.connection().last_insert_rowid()), false)
            }
        };
        Ok(Lane { no, state: if stopped { DeliveryState::Stopped } else { DeliveryState::Waiting } })
    }

    pub(super) fn insert_body(&self, delivery: i64, bytes: &[u8]) -> Result<(), StoreError> {
        self.run("INSERT INTO body (no, bytes) VALUES (?1, ?2)", params![number::body(delivery), bytes])?;
        Ok(())
    }

    pub(super) fn insert_delivery(&self, no: i64, lane: Lane, now_ms: i64) -> Result<(), StoreError> {
        self.run(
            "INSERT INTO delivery (no, endpoint, state, due_at) VALUES (?1, ?2, ?3, ?4)",
            params![no, lane.no.0, lane.state as u8, now_ms],
        )?;
        Ok(())
    }

    /// Transaction 3: what one attempt led to.
    pub(super) fn record(&mut self, attempt: &AttemptRecord) -> Result<Recorded, StoreError> {
        let standing = self.one(
            "SELECT endpoint, state, attempts FROM delivery WHERE no = ?1",
            [attempt.no.0],
            |row| Ok((LaneNo(row.get(0)?), row.get::<_, u8>(1)?, row.get(2)?)),
        )?;
        let (lane, state, attempts) =
            standing.ok_or_else(|| StoreError::Other(format!("there is no {:?}", attempt.no)))?;
        let state =
            DeliveryState::from_code(state).ok_or_else(|| damaged(format!("delivery state {state}")))?;
        let standing = Standing { lane, state, attempts };
        let Some(left) = after(&standing, attempt) else { return Ok(Recorded::Late) };
        self.run(
            "UPDATE delivery SET state = ?2, attempts = ?3, due_at = coalesce(?4, due_at), patience_used = ?5,
                 last_at = ?6, last_status = ?7, last_detail = ?8, answer_unseen = ?9
             WHERE no = ?1",
            params![
                attempt.no.0,
                left.state as u8,
                left.attempts,
                left.due_at_ms,
                i64::try_from(attempt.patience_used_ms).unwrap_or(i64::MAX),
                attempt.at_ms,
                attempt.http_status,
                attempt.detail,
                attempt.answer_unseen,
            ],
        )?;
        let (batch, subject) = number::parts(attempt.no.0);
        if matches!(subject, Subject::Product(_)) && left.state != standing.state {
            self.count(batch, &Delta::moved(standing.state, left.state, 1))?;
            if standing.state.is_open() && !left.state.is_open() {
                self.release_summary_if_closed(batch, attempt.at_ms)?;
            }
        }
        if let AttemptResult::StopEndpoint { url } = attempt.result {
            self.run(
                "UPDATE endpoint SET stopped = 1, stopped_url = ?2 WHERE no = ?1",
                params![standing.lane.0, url.map(|url| url.0)],
            )?;
            self.move_lane(standing.lane, DeliveryState::Waiting, DeliveryState::Stopped, None, u32::MAX)?;
        }
        Ok(Recorded::Applied)
    }

    /// What was withheld waits again, and what was stopped if the endpoint has another URL now. In a lane that stays
    /// stopped, what was withheld is stopped.
    pub(super) fn readmit_held(
        &mut self,
        lane: LaneNo,
        url: UrlHash,
        now_ms: i64,
        limit: u32,
    ) -> Result<Readmitted, StoreError> {
        let resumed = self.run(
            "UPDATE endpoint SET stopped = 0, stopped_url = NULL
             WHERE no = ?1 AND stopped = 1 AND stopped_url IS NOT ?2",
            params![lane.0, url.0],
        )? == 1;
        let stopped =
            self.one("SELECT stopped FROM endpoint WHERE no = ?1", [lane.0], |row| row.get::<_, bool>(0))?;
        if stopped.unwrap_or_default() {
            let (from, to) = (DeliveryState::Withheld, DeliveryState::Stopped);
            return Ok(Readmitted { resumed, moved: self.move_lane(lane, from, to, None, limit)? });
        }
        let mut moved = 0;
        for from in [DeliveryState::Withheld, DeliveryState::Stopped] {
            moved += self.move_lane(lane, from, DeliveryState::Waiting, Some(now_ms), limit - moved)?;
        }
        Ok(Readmitted { resumed, moved })
    }

    /// Moves deliveries of a lane, the oldest `limit`, from one open state to another.
    fn move_lane(
        &mut self,
        lane: LaneNo,
        from: DeliveryState,
        to: DeliveryState,
        due_at_ms: Option<i64>,
        limit: u32,
    ) -> Result<u32, StoreError> {
        debug_assert!(from.is_open() && to.is_open(), "no summary comes free by this");
        // A literal, so that the partial index of this state serves.
        let from_code = from as u8;
        let nos = self.all(
            &format!(
                "SELECT no FROM delivery WHERE endpoint = ?1 AND state = {from_code} ORDER BY no LIMIT ?2"
            ),
            params![lane.0, limit],
            |row| row.get::<_, i64>(0),
        )?;
        let mut products = (BatchNo(0), 0);
        for &no in &nos {
            self.run(
                "UPDATE delivery SET state = ?2, due_at = coalesce(?3, due_at) WHERE no = ?1",
                params![no, to as u8, due_at_ms],
            )?;
            let (batch, subject) = number::parts(no);
            if !matches!(subject, Subject::Product(_)) {
                continue;
            }
            if batch != products.0 {
                self.count_moved(products, from, to)?;
                products = (batch, 0);
            }
            products.1 += 1;
        }
        self.count_moved(products, from, to)?;
        Ok(nos.len() as u32)
    }

    fn count_moved(
        &self,
        (batch, count): (BatchNo, i64),
        from: DeliveryState,
        to: DeliveryState,
    ) -> Result<(), StoreError> {
        if count == 0 { Ok(()) } else { self.count(batch, &Delta::moved(from, to, count)) }
    }

    /// Releases the summary of an ended batch if no product delivery of it is open.
    pub(super) fn release_summary_if_closed(
        &mut self,
        batch: BatchNo,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let closed = self.one(
            "SELECT 1 FROM progress WHERE batch = ?1 AND ended_at IS NOT NULL AND summary = 0
                 AND waiting + stopped + withheld = 0",
            [batch.0],
            |_| Ok(()),
        )?;
        if closed.is_some() {
            self.release_summary(batch, now_ms)?;
        }
        Ok(closed.is_some())
    }

    /// Releases the summaries of ended batches that wait for nothing, or whose end `waited` long enough.
    pub(super) fn release_ripe(
        &mut self,
        now_ms: i64,
        waited: &dyn Fn(i64) -> bool,
    ) -> Result<u32, StoreError> {
        let ended = self.all(
            "SELECT batch, ended_at, waiting + stopped + withheld = 0 FROM progress
             WHERE summary = 0 AND ended_at IS NOT NULL
             ORDER BY ended_at",
            [],
            |row| Ok((BatchNo(row.get(0)?), row.get(1)?, row.get::<_, bool>(2)?)),
        )?;
        let mut released = 0;
        for (batch, ended_at_ms, closed) in ended {
            if closed || waited(ended_at_ms) {
                self.release_summary(batch, now_ms)?;
                released += 1;
            }
        }
        Ok(released)
    }

    /// Rule 10: freezes the body, and makes one delivery per distinct URL.
    fn release_summary(&mut self, batch: BatchNo, now_ms: i64) -> Result<(), StoreError> {
        let callback = self.one("SELECT callback_url FROM batch WHERE no = ?1", [batch.0], |row| {
            row.get::<_, Option<String>>(0)
        })?;
        let callback = callback.flatten();
        let own = self.addressing().summary_url.as_deref();
        let mut copies = Vec::with_capacity(2);
        if own.is_some() {
            copies.push((1, Endpoint::Summary));
        }
        if let Some(url) = callback.filter(|url| !own.is_some_and(|own| same_url(own, url))) {
            copies.push((2, Endpoint::Url(url.into())));
        }
        let summary = if copies.is_empty() { RELEASED_UNADDRESSED } else { RELEASED };
        self.run("UPDATE progress SET summary = ?2 WHERE batch = ?1", params![batch.0, summary])?;
        for (position, (slot, endpoint)) in copies.iter().enumerate() {
            let no = number::delivery(batch, Subject::Summary(*slot))?;
            if position == 0 {
                self.insert_body(no, &self.summary_body(batch)?)?;
            }
            self.insert_delivery(no, self.lane(endpoint)?, now_ms)?;
        }
        Ok(())
    }

    fn summary_body(&self, batch: BatchNo) -> Result<Vec<u8>, StoreError> {
        let head = self.one(
            "SELECT batch_id, total, metadata, ignored_3400, ended_at - accepted_at, found, not_found, ean_mismatch,
                 not_in_catalogue, ignored, skipped, failed, cancelled_products, taken, dead,
                 waiting + stopped + withheld, unaddressed
             FROM batch JOIN progress ON progress.batch = batch.no WHERE no = ?1",
            [batch.0],
            |row| {
                let mut counts = [0; 8];
                for (column, count) in (5..).zip(&mut counts) {
                    *count = row.get(column)?;
                }
                let deliveries = DeliveryCounts {
                    taken: row.get(13)?,
                    dead: row.get(14)?,
                    open: row.get(15)?,
                    unaddressed: row.get(16)?,
                };
                let facts = Facts {
                    no: batch,
                    batch_id: BatchId::from_text(row.get_ref(0)?.as_str()?),
                    total: row.get(1)?,
                    metadata: row.get(2)?,
                    webhook_url: None,
                };
                Ok((facts, row.get::<_, String>(3)?, row.get::<_, i64>(4)?, counts, deliveries))
            },
        )?;
        let (facts, ignored, duration_ms, counts, deliveries) =
            head.ok_or_else(|| StoreError::Other(format!("there is no batch {}", batch.0)))?;
        let mut lists =
            Lists { ignored: serde_json::from_str(&ignored).map_err(damaged)?, ..Lists::default() };
        let mut statement = self.statement(
            "SELECT ean, status, kind, detail FROM product WHERE batch = ?1 AND status IN (4, 5, 7) ORDER BY idx",
        )?;
        let mut rows = statement.query([batch.0])?;
        while let Some(row) = rows.next()? {
            let ean = row.get(0)?;
            match Status::from_code(row.get(1)?) {
                Some(Status::NotInCatalogue) => lists.not_in_catalogue.push(ean),
                Some(Status::Ignored) => lists.ignored.push(ean),
                _ => {
                    let kind = row.get::<_, Option<_>>(2)?.unwrap_or_default();
                    let detail = row.get::<_, Option<_>>(3)?.unwrap_or_default();
                    lists.failed.push(FailedProduct { ean, kind, detail });
                }
            }
        }
        let facts = SummaryFacts {
            batch: BatchFacts { batch_id: &facts.batch_id, total: facts.total, metadata: facts.metadata()? },
            counts,
            ignored_3400: lists.ignored,
            not_found_backend: lists.not_in_catalogue,
            failed: lists.failed,
            deliveries,
            duration_ms: u64::try_from(duration_ms).unwrap_or_default(),
        };
        Ok(body::summary(&facts, self.addressing().language))
    }
}

/// The products that a summary names.
#[derive(Default)]
struct Lists {
    ignored: Vec<String>,
    not_in_catalogue: Vec<String>,
    failed: Vec<FailedProduct>,
}

/// Where an attempt leaves a delivery; `None`: it is late.
fn after(standing: &Standing, attempt: &AttemptRecord) -> Option<Left> {
    let Standing { state, attempts, .. } = *standing;
    if attempt.result == AttemptResult::Taken {
        let news = state != DeliveryState::Taken;
        let taken =
            Left { state: DeliveryState::Taken, attempts: attempts.max(attempt.attempt), due_at_ms: None };
        return news.then_some(taken);
    }
    if !state.is_open() || attempts + 1 != attempt.attempt {
        return None;
    }
    // A lane that was stopped while this attempt was under way, or a delivery that was withheld, stays so.
    let stays = if state == DeliveryState::Waiting { None } else { Some(state) };
    let left = match attempt.result {
        AttemptResult::Taken | AttemptResult::Dead => {
            Left { state: DeliveryState::Dead, attempts: attempt.attempt, due_at_ms: None }
        }
        AttemptResult::Again { after_ms } => {
            let due = attempt.at_ms.saturating_add(i64::try_from(after_ms).unwrap_or(i64::MAX));
            let state = stays.unwrap_or(DeliveryState::Waiting);
            Left { state, attempts: attempt.attempt, due_at_ms: Some(due) }
        }
        AttemptResult::StopEndpoint { .. } => {
            Left { state: DeliveryState::Stopped, attempts: attempt.attempt, due_at_ms: None }
        }
        AttemptResult::Withheld => {
            Left { state: stays.unwrap_or(DeliveryState::Withheld), attempts, due_at_ms: None }
        }
    };
    Some(left)
}

/// Whether two texts are one URL, so that it gets one summary.
fn same_url(one: &str, other: &str) -> bool {
    one == other || matches!((Url::parse(one), Url::parse(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delivery::DeliveryNo;

    fn attempt(number: u32, result: AttemptResult) -> AttemptRecord {
        AttemptRecord {
            no: DeliveryNo(1),
            attempt: number,
            at_ms: 1_000,
            result,
            http_status: None,
            detail: String::new(),
            answer_unseen: false,
            patience_used_ms: 0,
        }
    }

    fn left(
        state: DeliveryState,
        number: u32,
        result: AttemptResult,
    ) -> Option<(DeliveryState, u32, Option<i64>)> {
        let standing = Standing { lane: LaneNo(1), state, attempts: 2 };
        after(&standing, &attempt(number, result)).map(|left| (left.state, left.attempts, left.due_at_ms))
    }

    #[test]
    fn only_the_next_attempt_counts_except_that_taken_always_wins() {
        use DeliveryState::{Dead, Taken, Waiting};
        assert_eq!(left(Waiting, 3, AttemptResult::Dead), Some((Dead, 3, None)));
        assert_eq!(left(Waiting, 2, AttemptResult::Dead), None);
        assert_eq!(left(Waiting, 4, AttemptResult::Again { after_ms: 5 }), None);
        assert_eq!(left(Waiting, 1, AttemptResult::Taken), Some((Taken, 2, None)));
        assert_eq!(left(Dead, 2, AttemptResult::Taken), Some((Taken, 2, None)));
        assert_eq!(left(Taken, 3, AttemptResult::Taken), None);
        assert_eq!(left(Taken, 3, AttemptResult::Dead), None);
    }

    #[test]
    fn a_lane_stopped_meanwhile_stays_stopped_and_the_attempt_counts() {
        use DeliveryState::{Stopped, Waiting, Withheld};
        assert_eq!(left(Stopped, 3, AttemptResult::Again { after_ms: 5 }), Some((Stopped, 3, Some(1_005))));
        assert_eq!(left(Waiting, 3, AttemptResult::Again { after_ms: 5 }), Some((Waiting, 3, Some(1_005))));
        assert_eq!(left(Waiting, 3, AttemptResult::Withheld), Some((Withheld, 2, None)));
        assert_eq!(left(Stopped, 3, AttemptResult::Withheld), Some((Stopped, 2, None)));
    }

    #[test]
    fn one_url_in_two_notations_is_one_url() {
        assert!(same_url("http://n8n.test", "http://N8N.test:80/"));
        assert!(!same_url("http://n8n.test/a", "http://n8n.test/b"));
        assert!(!same_url("http://n8n.test/a?s=1", "http://n8n.test/a?s=2"));
    }
}
