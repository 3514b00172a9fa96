//! The actor of one lane: asks for due deliveries, sends each in a task of its own, and has every result recorded.
//! It decides nothing: [`Lane`] and [`verdict`] do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::{Failure, Lane};
use crate::descriptors;
use crate::failpoint::Point;
use crate::ledger::store::{Recorded, Store, StoreError};
use crate::ledger::{LedgerError, LedgerHandle};
use crate::model::delivery::{
    AttemptRecord, AttemptResult, DeliveryNo, DueDelivery, Endpoint, LaneNo, UrlHash,
};
use crate::telemetry::Event;
use crate::webhook::actor::{Deps, gave_up};
use crate::webhook::client::{NoDescriptor, REFUSAL_BYTES_MAX, Request};
use crate::webhook::clock::{Clock, Moment};
use crate::webhook::in_hand::Hold;
use crate::webhook::verdict::{self, Answer, Verdict};
use crate::webhook::{Settings, target};

/// The delivery whose step runs now: charged if the lane panics. Read by the sender after the death of the lane.
#[derive(Clone, Debug, Default)]
pub struct Handling(Arc<Mutex<Option<Arc<DueDelivery>>>>);

impl Handling {
    pub fn take(&self) -> Option<Arc<DueDelivery>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, delivery: &Arc<DueDelivery>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(delivery));
    }
}

/// What a lane is started with.
#[derive(Debug)]
pub struct Args {
    pub no: LaneNo,
    pub endpoint: Endpoint,
    pub deps: Deps,
    pub clock: watch::Receiver<Clock>,
    pub handling: Handling,
}

#[derive(Debug)]
pub enum Msg {
    /// Tell: something of this lane is due, the first of it at `foreign_ms` if that is a time of another clock. Sent by
    /// the sender at each of its looks.
    Wake { foreign_ms: Option<i64> },
    /// Tell: the time of the next probe has come. Sent by the lane's own timer.
    Look,
    /// Tell: what is due. Sent by the lane's own question to the ledger.
    Due(Result<Vec<DueDelivery>, StoreError>),
    /// Tell: how an attempt went. Sent by its task, once.
    Attempted { no: DeliveryNo, attempted: Attempted },
    /// Tell: an attempt's task panicked. Sent by its task as it goes down.
    Lost { no: DeliveryNo },
    /// Tell: the record of an attempt is on disk. Sent by the task that wrote it.
    Recorded { no: DeliveryNo, written: Written },
    /// Tell: nothing new; end as soon as nothing is in flight. Sent by the sender.
    Drain,
}

/// How an attempt went.
#[derive(Debug)]
pub enum Attempted {
    Answered {
        verdict: Verdict,
        answer: Answer,
        /// No other delivery of the lane waits; only looked up after a failure.
        only: bool,
        /// Where it was sent; none if it is not known any more.
        url: Option<UrlHash>,
        took: Duration,
    },
    /// There is nowhere to send it to, by the configuration of now.
    Withheld { reason: String },
}

/// The fate of a record.
#[derive(Debug)]
pub struct Written {
    recorded: Recorded,
    /// As stored: panics may have made it `Dead`.
    result: AttemptResult,
}

#[derive(Debug)]
pub struct LaneActor;

#[expect(missing_debug_implementations, reason = "ractor wants it public; nobody prints it")]
pub struct State {
    args: Args,
    lane: Lane,
    in_flight: HashMap<DeliveryNo, Flight>,
    /// The question is out; at most one.
    asking: bool,
    /// The ledger may have more than the last answer held.
    more: bool,
    /// As the sender said; for one question.
    foreign_ms: Option<i64>,
    draining: bool,
    /// Attempts, records and questions: all end with the actor.
    tasks: JoinSet<()>,
    timer: Option<(Duration, AbortHandle)>,
}

/// A delivery from the start of its attempt to the record of it.
struct Flight {
    delivery: Arc<DueDelivery>,
    /// What is being recorded, and how it is told once it is on disk.
    settled: Option<Settled>,
    _hold: Arc<Hold>,
}

struct Settled {
    record: AttemptRecord,
    reason: String,
    note: Option<&'static str>,
    took: Duration,
}

impl Actor for LaneActor {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, _: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        Ok(State {
            foreign_ms: None,
            args,
            lane: Lane::default(),
            in_flight: HashMap::new(),
            asking: false,
            more: false,
            draining: false,
            tasks: JoinSet::new(),
            timer: None,
        })
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        while state.tasks.try_join_next().is_some() {}
        match msg {
            Msg::Wake { foreign_ms } => {
                state.args.deps.pass(Point::LaneWake, None);
                state.lane.woken();
                state.more = true;
                state.foreign_ms = foreign_ms;
            }
            Msg::Look => {
                state.timer = None;
                state.more = true;
            }
            Msg::Due(due) => state.start_due(&me, due),
            Msg::Attempted { no, attempted } => state.on_attempted(&me, no, attempted),
            Msg::Lost { no } => state.on_lost(&me, no),
            Msg::Recorded { no, written } => state.on_recorded(no, &written),
            Msg::Drain => {
                state.draining = true;
                state.args.deps.pass(Point::LaneDrain, None);
            }
        }
        // Reached without a panic: nobody is to be charged for what comes next.
        state.args.handling.take();
        if state.draining && state.in_flight.is_empty() {
            me.stop(None);
        } else {
            state.ask(&me);
            state.set_timer(&me);
        }
        Ok(())
    }
}

impl State {
    fn now(&self) -> Moment {
        self.args.deps.time.now()
    }

    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.args.deps.settings.borrow())
    }

    /// Asks the ledger for as many due deliveries as there are free slots.
    fn ask(&mut self, me: &ActorRef<Msg>) {
        if self.asking || self.draining || !self.more {
            return;
        }
        let settings = self.settings();
        let now = self.now();
        let Some(ask) = self.lane.ask(now.uptime, self.in_flight.len(), settings.concurrency.max(1)) else {
            return;
        };
        self.asking = true;
        self.more = false;
        let mut leave_out = ask.leave_out;
        leave_out.extend(self.in_flight.keys());
        // Once: what comes back from it has a due time of this clock, and waits for it.
        let until_ms = self.foreign_ms.take().unwrap_or(now.wall_ms);
        let limit = u32::try_from(ask.limit).unwrap_or(u32::MAX);
        let (lane, reader) = (self.args.no, self.args.deps.ledger.reader().clone());
        let me = me.clone();
        self.tasks.spawn(async move {
            let due = reader.read(move |read| read.due(lane, until_ms, &leave_out, limit)).await;
            // Fails only if the lane is gone, and then nobody wants to know.
            let _ = me.cast(Msg::Due(due));
        });
    }

    fn start_due(&mut self, me: &ActorRef<Msg>, due: Result<Vec<DueDelivery>, StoreError>) {
        self.asking = false;
        // A read that failed is repeated when the sender looks again.
        let due = due.unwrap_or_default();
        if self.draining {
            return;
        }
        let now = self.now();
        self.more |= due.is_empty() && self.lane.nobody_else(now.uptime);
        let window = self.settings().concurrency.max(1);
        for delivery in due {
            // Somebody of an earlier life may still be at it; it is due again then.
            let Some(hold) = self.args.deps.in_hand.take(delivery.no) else { continue };
            if self.lane.start(delivery.no, now.uptime, self.in_flight.len(), window) {
                self.start(me, Arc::new(delivery), Arc::new(hold));
            }
        }
    }

    fn start(&mut self, me: &ActorRef<Msg>, delivery: Arc<DueDelivery>, hold: Arc<Hold>) {
        self.args.handling.set(&delivery);
        self.args.deps.pass(Point::LaneAttempt, Some(delivery.no));
        let attempt = attempt(self.args.deps.clone(), self.args.no, Arc::clone(&delivery));
        let (me, no) = (me.clone(), delivery.no);
        let held = Arc::clone(&hold);
        self.tasks.spawn(async move {
            // Held by the task as well: what is still being cut is still in hand (W3).
            let _held = held;
            let mourner = Mourner { me: me.clone(), no };
            let attempted = attempt.await;
            let _ = me.cast(Msg::Attempted { no, attempted });
            drop(mourner);
        });
        self.in_flight.insert(no, Flight { delivery, settled: None, _hold: hold });
        self.args.handling.take();
    }

    fn on_attempted(&mut self, me: &ActorRef<Msg>, no: DeliveryNo, attempted: Attempted) {
        let Some(flight) = self.in_flight.get(&no) else { return };
        let delivery = Arc::clone(&flight.delivery);
        self.args.handling.set(&delivery);
        self.args.deps.pass(Point::LaneAnswered, Some(no));
        let settled = self.settle(&delivery, attempted);
        self.record(me, no, settled, None);
    }

    /// Its task panicked: charged like a panic of the lane, and due again after a while if it may be.
    fn on_lost(&mut self, me: &ActorRef<Msg>, no: DeliveryNo) {
        let Some(flight) = self.in_flight.get(&no) else { return };
        let delivery = Arc::clone(&flight.delivery);
        self.args.handling.set(&delivery);
        let verdict = Verdict::Again { reason: "the attempt panicked".into(), retry_after: None };
        let answer = Answer::Unseen { reason: String::new() };
        let attempted = Attempted::Answered { verdict, answer, only: false, url: None, took: Duration::ZERO };
        let settled = self.settle(&delivery, attempted);
        self.record(me, no, settled, Some(self.args.deps.claims_max));
    }

    /// What an attempt leads to, for the lane and for its delivery.
    fn settle(&mut self, delivery: &DueDelivery, attempted: Attempted) -> Settled {
        let now = self.now();
        let mut record = AttemptRecord {
            no: delivery.no,
            attempt: delivery.attempts + 1,
            at_ms: now.wall_ms,
            result: AttemptResult::Withheld,
            http_status: None,
            detail: String::new(),
            answer_unseen: delivery.answer_unseen,
            patience_used_ms: delivery.patience_used_ms,
        };
        let (verdict, answer, only, url, took) = match attempted {
            Attempted::Withheld { reason } => {
                record.detail.clone_from(&reason);
                return Settled { record, reason, note: None, took: Duration::ZERO };
            }
            Attempted::Answered { verdict, answer, only, url, took } => (verdict, answer, only, url, took),
        };
        record.patience_used_ms = self.patience_used_ms(delivery, now);
        record.answer_unseen |= matches!(answer, Answer::Unseen { .. });
        let (mut result, reason, note) = self.weigh(delivery, verdict, only, record.patience_used_ms, now);
        if let AttemptResult::StopEndpoint { url: stopped } = &mut result {
            *stopped = url;
        }
        record.result = result;
        record.detail = detail(&reason, &answer, &record.result);
        if let Answer::Response(response) = &answer {
            record.http_status = Some(response.status);
        }
        Settled { record, reason, note, took }
    }

    /// Tells the lane, and hears from it how long the delivery waits.
    fn weigh(
        &mut self,
        delivery: &DueDelivery,
        verdict: Verdict,
        only: bool,
        patience_used_ms: u64,
        now: Moment,
    ) -> (AttemptResult, String, Option<&'static str>) {
        let settings = self.settings();
        match verdict {
            Verdict::Taken { note } => {
                self.endpoint_answered(now);
                (AttemptResult::Taken, String::new(), note)
            }
            Verdict::Dead { reason } => {
                self.endpoint_answered(now);
                (AttemptResult::Dead, reason, None)
            }
            Verdict::StopEndpoint => {
                self.lane.stop();
                (AttemptResult::StopEndpoint { url: None }, "410: gone".into(), None)
            }
            Verdict::Again { reason, retry_after } => {
                let webhook_id = webhook_id(delivery);
                let last = delivery.last_attempt_at_ms;
                let failure = Failure {
                    no: delivery.no,
                    webhook_id: &webhook_id,
                    attempts: delivery.attempts,
                    last_attempt: last.map(|ms| self.args.clock.borrow().uptime_at(ms, now)),
                    only,
                    retry_after,
                };
                let setback = self.lane.failed(&failure, now.uptime, &settings.pace());
                if let Some(failures) = setback.parked {
                    let endpoint = self.args.endpoint.for_log();
                    Event::LaneParked { endpoint, failures: failures.into(), reason: &reason }.emit();
                }
                if settings.patience <= Duration::from_millis(patience_used_ms) {
                    return (AttemptResult::Dead, format!("out of patience: {reason}"), None);
                }
                (AttemptResult::Again { after_ms: millis(setback.after) }, reason, None)
            }
        }
    }

    fn endpoint_answered(&mut self, now: Moment) {
        if self.lane.answered(now.uptime) {
            Event::LaneResumed { endpoint: self.args.endpoint.for_log() }.emit();
        }
    }

    /// Rule 9: from the first own attempt, only while the process ran.
    fn patience_used_ms(&self, delivery: &DueDelivery, now: Moment) -> u64 {
        let last_ms = delivery.last_attempt_at_ms.filter(|_| 0 < delivery.attempts);
        let ran = last_ms.map(|last_ms| self.args.clock.borrow().ran_since(last_ms, now));
        delivery.patience_used_ms.saturating_add(ran.map_or(0, millis))
    }

    fn record(&mut self, me: &ActorRef<Msg>, no: DeliveryNo, settled: Settled, claims_max: Option<u32>) {
        let Some(flight) = self.in_flight.get_mut(&no) else { return };
        let record = settled.record.clone();
        flight.settled = Some(settled);
        let (ledger, me) = (self.args.deps.ledger.clone(), me.clone());
        self.tasks.spawn(async move {
            let written = match claims_max {
                None => write_record(&ledger, record).await,
                Some(claims_max) => write_panic(&ledger, record, claims_max).await,
            };
            let _ = me.cast(Msg::Recorded { no, written });
        });
    }

    fn on_recorded(&mut self, no: DeliveryNo, written: &Written) {
        let Some(flight) = self.in_flight.get(&no) else { return };
        self.args.handling.set(&flight.delivery);
        self.args.deps.pass(Point::LaneRecorded, Some(no));
        let Some(flight) = self.in_flight.remove(&no) else { return };
        let Some(settled) = &flight.settled else { return };
        if matches!(settled.record.result, AttemptResult::StopEndpoint { .. }) {
            self.lane.stop_recorded();
        }
        tell(&flight.delivery, settled, written);
        self.more = true;
    }

    /// One timer for the next probe.
    fn set_timer(&mut self, me: &ActorRef<Msg>) {
        let wanted = self.lane.next_look();
        if self.timer.as_ref().map(|(at, _)| *at) == wanted {
            return;
        }
        if let Some((_, timer)) = self.timer.take() {
            timer.abort();
        }
        let now = self.now().uptime;
        // In the past: the probe is out, or waits for what was in flight.
        if let Some(at) = wanted.filter(|at| now < *at) {
            let me = me.clone();
            let wait = async move {
                tokio::time::sleep(at - now).await;
                let _ = me.cast(Msg::Look);
            };
            self.timer = Some((at, self.tasks.spawn(wait)));
        }
    }
}

/// Says that the task of an attempt panicked. An abort is no panic: then the lane itself is gone.
struct Mourner {
    me: ActorRef<Msg>,
    no: DeliveryNo,
}

impl Drop for Mourner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.me.cast(Msg::Lost { no: self.no });
        }
    }
}

/// One attempt, with the configuration of this moment.
async fn attempt(deps: Deps, lane: LaneNo, delivery: Arc<DueDelivery>) -> Attempted {
    let settings = Arc::clone(&deps.settings.borrow());
    let url = match target::resolve(&delivery.endpoint, &settings) {
        Ok(url) => url,
        Err(reason) => return Attempted::Withheld { reason },
    };
    let sent_to = UrlHash::of(&url);
    let begin = Instant::now();
    let answer = loop {
        let request = Request {
            url: url.clone(),
            webhook_id: &webhook_id(&delivery),
            timestamp_s: deps.time.now().wall_ms / 1_000,
            secret: settings.secret.as_ref(),
            body: delivery.body.clone(),
            timeout: settings.timeout,
        };
        match deps.client.send(request).await {
            Ok(answer) => break answer,
            // No attempt was made: the lane must not park for it, and nothing is recorded.
            Err(NoDescriptor) => descriptors::wait().await,
        }
    };
    let took = begin.elapsed();
    deps.spring(delivery.no);
    let verdict = verdict::judge(&answer, delivery.answer_unseen, deps.time.now().wall_ms);
    let only = match verdict {
        Verdict::Again { .. } => {
            let no = delivery.no;
            let others = deps.ledger.reader().read(move |read| read.due(lane, i64::MAX, &[no], 1)).await;
            others.is_ok_and(|others| others.is_empty())
        }
        Verdict::Taken { .. } | Verdict::Dead { .. } | Verdict::StopEndpoint => false,
    };
    Attempted::Answered { verdict, answer, only, url: Some(sent_to), took }
}

pub fn webhook_id(delivery: &DueDelivery) -> String {
    delivery.subject.webhook_id(&delivery.batch_id)
}

/// For the ledger: the reason, and what a refusal said.
fn detail(reason: &str, answer: &Answer, result: &AttemptResult) -> String {
    match (answer, result) {
        (_, AttemptResult::Taken) | (Answer::NotSent { .. } | Answer::Unseen { .. }, _) => reason.to_owned(),
        (Answer::Response(response), _) => {
            let said = &response.body[..response.body.len().min(REFUSAL_BYTES_MAX)];
            let said = String::from_utf8_lossy(said);
            if said.trim().is_empty() { reason.to_owned() } else { format!("{reason}\n{}", said.trim()) }
        }
    }
}

/// Tells in the log what is on disk now.
fn tell(delivery: &DueDelivery, settled: &Settled, written: &Written) {
    let id = webhook_id(delivery);
    let (batch_id, webhook_id) = (delivery.batch_id.as_str(), id.as_str());
    let endpoint = delivery.endpoint.for_log();
    let attempt = settled.record.attempt.into();
    let status = settled.record.http_status.map(u64::from);
    let reason = settled.reason.as_str();
    if written.recorded == Recorded::Late {
        return Event::DeliveryRecordLate { webhook_id, attempt }.emit();
    }
    match written.result {
        AttemptResult::Taken => Event::DeliveryTaken {
            batch_id,
            webhook_id,
            endpoint,
            attempt,
            status: status.unwrap_or_default(),
            duration_ms: millis(settled.took),
            note: settled.note,
        }
        .emit(),
        AttemptResult::Again { after_ms } => {
            let again_in_ms = after_ms;
            Event::DeliveryRetried { batch_id, webhook_id, endpoint, attempt, status, reason, again_in_ms }
                .emit();
        }
        AttemptResult::Dead => {
            Event::DeliveryDead { batch_id, webhook_id, endpoint, attempt, status, reason }.emit();
        }
        AttemptResult::StopEndpoint { .. } => Event::EndpointStopped { endpoint }.emit(),
        AttemptResult::Withheld => Event::DeliveryWithheld { batch_id, webhook_id, endpoint, reason }.emit(),
    }
}

/// Transaction 3, repeated until its fate is known. Conditional on the attempt's number, so a repeat is harmless.
async fn write_record(ledger: &LedgerHandle, record: AttemptRecord) -> Written {
    let result = record.result.clone();
    let (recorded, unsure) = insist(ledger, move |store| store.record_attempt(&record)).await;
    Written { recorded: ours(recorded, unsure), result }
}

/// A panic with this delivery in hand: counted, and at `claims_max` its end (rule 2).
async fn write_panic(ledger: &LedgerHandle, record: AttemptRecord, claims_max: u32) -> Written {
    let mut record = record;
    let ((recorded, result), unsure) = insist(ledger, move |store| {
        let panics = store.record_lane_panic(record.no)?;
        if claims_max <= panics {
            record.result = AttemptResult::Dead;
            record.detail = gave_up(panics);
        }
        Ok((store.record_attempt(&record)?, record.result))
    })
    .await;
    Written { recorded: ours(recorded, unsure), result }
}

/// Late after a write of unknown fate: that write was our own.
fn ours(recorded: Recorded, unsure: bool) -> Recorded {
    if unsure { Recorded::Applied } else { recorded }
}

/// Between two tries to write the same thing.
const INSIST_MIN: Duration = Duration::from_millis(20);
const INSIST_MAX: Duration = Duration::from_secs(10);

/// Writes until it is written. `true`: an earlier try may have been the one.
pub async fn insist<T, F>(ledger: &LedgerHandle, command: F) -> (T, bool)
where
    T: Send + 'static,
    F: FnOnce(&mut dyn Store) -> Result<T, StoreError> + Clone + Send + 'static,
{
    let mut wait = INSIST_MIN;
    let mut unsure = false;
    loop {
        match ledger.write(command.clone()).await {
            Ok(result) => return (result, unsure),
            Err(LedgerError::Unknown) => unsure = true,
            // Refused is a mistake of this program, which the ledger has told. Not to send again is the lesser evil.
            Err(
                LedgerError::Busy
                | LedgerError::Away
                | LedgerError::Full
                | LedgerError::ReadOnly
                | LedgerError::Refused(_),
            ) => {}
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(INSIST_MAX);
    }
}

pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
