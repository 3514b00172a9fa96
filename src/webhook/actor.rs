//! The sender: looks into the outbox, keeps a lane for each endpoint that has something to send, and does what must be
//! done now and then for all of them. It never sends, and never waits for a receiver.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::client::{Client, ClientError};
use super::clock::{Clock, Moment};
use super::in_hand::InHand;
use super::lane::actor::{self as lane_actor, Handling, LaneActor, insist, millis, webhook_id};
use super::{Settings, target};
use crate::failpoint::{self, Point};
use crate::ledger::store::{HeldLane, LaneView, Recorded, Store};
use crate::ledger::{LedgerError, LedgerHandle};
use crate::model::delivery::{
    AttemptRecord, AttemptResult, DeliveryNo, DueDelivery, Endpoint, LaneNo, UrlHash,
};
use crate::supervisor::address::{self, Address, Publisher};
use crate::supervisor::policy::{Backoff, Roll};
use crate::telemetry::Event;

/// The outbox is looked at this often although nobody calls.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And at most this often although commits follow each other.
const LOOK_GAP: Duration = Duration::from_millis(20);
const CHORES_EVERY: Duration = Duration::from_secs(5);
/// Held deliveries that wait again in one transaction: the writer has others to serve in between.
const READMIT_STEP: u32 = 1_000;
/// A lane with nothing to send ends after this.
const LANE_IDLE_MAX: Duration = Duration::from_secs(60);
/// A lane is started again for ever: the delivery that it does not survive ends at `claims_max`, the others wait.
const LANE_RESTARTS: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) };
/// Failures of a lane that lived this long are forgiven.
const LANE_HEALED_AFTER: Duration = Duration::from_secs(60);
/// Past the deadline of a drain, for the sender itself to end.
pub const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// What the sender needs of the rest of the daemon.
#[derive(Debug)]
pub struct Args {
    pub ledger: LedgerHandle,
    /// A reload sends a new one; it applies at the next attempt.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// At this many panics of its lane a delivery is dead (design 4, rule 2).
    pub claims_max: u32,
}

/// The way to the sender. Cheap to clone; outlives restarts.
#[derive(Clone, Debug)]
pub struct WebhookHandle {
    address: Address<Msg>,
    in_hand: InHand,
}

impl WebhookHandle {
    /// How many deliveries are being sent right now.
    pub fn in_hand(&self) -> usize {
        self.in_hand.count()
    }

    /// Ends the sender: no new attempts; those in flight end, or are cut at `deadline` with nothing recorded, so that
    /// they are due again at the next start. Returns when it is over.
    pub async fn drain(&self, deadline: Instant) {
        let Some(sender) = self.address.current() else { return };
        if sender.cast(Msg::Drain { deadline }).is_err() {
            return;
        }
        let within = deadline.saturating_duration_since(Instant::now()) + DRAIN_GRACE;
        if sender.get_cell().wait(Some(within)).await.is_err() {
            sender.kill(); // Whoever stops it afterwards waits until it is gone.
        }
    }
}

/// What the supervisor keeps: starts the sender, again if need be.
#[derive(Debug)]
pub struct Webhook {
    publisher: Publisher<Msg>,
    deps: Deps,
    clock: watch::Sender<Clock>,
}

/// Makes the handle and what starts the actor behind it.
pub fn handle(args: Args) -> Result<(WebhookHandle, Webhook), ClientError> {
    let (publisher, address) = address::channel();
    let time = Time::starting();
    let clock = watch::Sender::new(Clock::starting(time.now()));
    let Args { ledger, settings, claims_max } = args;
    let client = Client::new()?;
    let in_hand = InHand::default();
    let handle = WebhookHandle { address, in_hand: in_hand.clone() };
    #[cfg(test)]
    let trap = Trap::default();
    let deps = Deps {
        ledger,
        settings,
        claims_max,
        client,
        in_hand,
        time,
        #[cfg(test)]
        trap,
    };
    Ok((handle, Webhook { publisher, deps, clock }))
}

impl Webhook {
    /// Starts the sender. Not before the one before it is dead.
    pub async fn start(&self, supervisor: ActorCell) -> Result<ActorCell, SpawnErr> {
        let state = State {
            deps: self.deps.clone(),
            clock: self.clock.clone(),
            lanes: BTreeMap::new(),
            tasks: JoinSet::new(),
            chores: None,
            chores_due: Instant::now(),
            shift_ms: 0,
            shifting: false,
            chores_at_once: true,
            draining: false,
        };
        // Without a name: names are one for the whole process, and tests run several senders in it.
        self.publisher.start(None, Sender, state, None, supervisor).await
    }

    #[cfg(test)]
    pub(super) fn deps(&self) -> &Deps {
        &self.deps
    }
}

/// What sender, lanes and attempts share.
#[derive(Clone, Debug)]
pub struct Deps {
    pub(super) ledger: LedgerHandle,
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) claims_max: u32,
    pub(super) client: Client,
    pub(super) in_hand: InHand,
    pub(super) time: Time,
    #[cfg(test)]
    pub(super) trap: Trap,
}

impl Deps {
    /// A place where a test can make a lane fail, for one delivery or for whatever comes first.
    pub(super) fn pass(&self, point: Point, no: Option<DeliveryNo>) {
        failpoint::hit(point);
        #[cfg(test)]
        self.trap.step(Some(point), no);
        #[cfg(not(test))]
        let _ = no;
    }

    /// The same inside the task of an attempt.
    pub(super) fn spring(&self, no: DeliveryNo) {
        #[cfg(test)]
        self.trap.step(None, Some(no));
        #[cfg(not(test))]
        let _ = no;
    }
}

/// Makes a lane panic, and counts what it passes.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub(super) struct Trap(Arc<std::sync::Mutex<TrapState>>);

#[cfg(test)]
#[derive(Debug, Default)]
struct TrapState {
    /// Point (none: in the task of an attempt), delivery, and how many times yet.
    set: Vec<(Option<Point>, Option<DeliveryNo>, u32)>,
    passed: Vec<Point>,
}

#[cfg(test)]
impl Trap {
    pub(super) fn set(&self, point: Option<Point>, no: Option<DeliveryNo>, times: u32) {
        self.0.lock().unwrap().set.push((point, no, times));
    }

    pub(super) fn passed(&self, point: Point) -> usize {
        self.0.lock().unwrap().passed.iter().filter(|passed| **passed == point).count()
    }

    fn step(&self, point: Option<Point>, no: Option<DeliveryNo>) {
        let mut state = self.0.lock().unwrap();
        state.passed.extend(point);
        let sprung = state.set.iter_mut().find(|(p, n, left)| *p == point && *n == no && 0 < *left);
        let Some((_, _, left)) = sprung else { return };
        *left -= 1;
        drop(state);
        panic!("trap at {point:?} for {no:?}");
    }
}

/// Both clocks. Counts from the making of the handle, so restarts of the sender do not begin again.
#[derive(Clone, Debug)]
pub struct Time {
    begin: Instant,
    #[cfg(test)]
    pub(super) skew_ms: Arc<std::sync::atomic::AtomicI64>,
}

impl Time {
    fn starting() -> Self {
        Self {
            begin: Instant::now(),
            #[cfg(test)]
            skew_ms: Arc::default(),
        }
    }

    pub(super) fn now(&self) -> Moment {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let wall_ms = i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX);
        #[cfg(test)]
        let wall_ms = wall_ms + self.skew_ms.load(std::sync::atomic::Ordering::SeqCst);
        Moment { wall_ms, uptime: self.begin.elapsed() }
    }
}

#[derive(Debug)]
enum Msg {
    /// Tell: look into the outbox. Sent by the sender's own watcher, of which there is one.
    Tick,
    /// Tell: what the chores left undone. Sent by their task.
    ChoresDone { shift_ms: i64 },
    /// Tell: the panic of a lane is charged; it may be started again. Sent by the task that wrote it.
    Charged { lane: LaneNo },
    /// Tell: no new attempts; end when those in flight are over, at the latest at `deadline`.
    Drain { deadline: Instant },
    /// Tell: the deadline of the drain has come. Sent by the sender's own timer.
    Cut,
}

#[derive(Debug)]
struct Sender;

struct State {
    deps: Deps,
    clock: watch::Sender<Clock>,
    lanes: BTreeMap<LaneNo, Child>,
    /// End with the actor.
    tasks: JoinSet<()>,
    chores: Option<JoinHandle<()>>,
    chores_due: Instant,
    /// Jumps back of the wall clock that the ledger has not heard of.
    shift_ms: i64,
    /// The chores that run tell it of one.
    shifting: bool,
    /// The settings changed: what is held may be allowed now.
    chores_at_once: bool,
    draining: bool,
}

/// A lane as the sender sees it.
struct Child {
    endpoint: Endpoint,
    /// In a row, each soon after the one before.
    failures: u32,
    life: Life,
}

enum Life {
    Running {
        actor: ActorRef<lane_actor::Msg>,
        handling: Handling,
        since: Instant,
        /// When it last had something waiting.
        busy: Instant,
    },
    Down {
        until: Instant,
        charging: bool,
    },
}

impl Actor for Sender {
    type Msg = Msg;
    type State = State;
    type Arguments = State;

    async fn pre_start(&self, me: ActorRef<Msg>, state: State) -> Result<State, ActorProcessingErr> {
        me.cast(Msg::Tick)?;
        Ok(state)
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        while state.tasks.try_join_next().is_some() {}
        match msg {
            Msg::Tick => {
                state.deps.pass(Point::SenderTick, None);
                if !state.draining {
                    state.tick(&me).await?;
                }
            }
            Msg::ChoresDone { shift_ms } => state.shift_ms += shift_ms,
            Msg::Charged { lane } => {
                if let Some(Child { life: Life::Down { charging, .. }, .. }) = state.lanes.get_mut(&lane) {
                    *charging = false;
                }
            }
            Msg::Drain { deadline } => state.drain(&me, deadline),
            Msg::Cut => {
                for actor in state.running() {
                    actor.kill();
                }
                me.stop(None);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                state.on_lane_failed(&me, &cell, &error.to_string())
            }
            SupervisionEvent::ActorTerminated(cell, _, _) => {
                if let Some(lane) = state.lane_of(&cell) {
                    state.lanes.remove(&lane);
                }
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        if state.draining && state.running().next().is_none() {
            me.stop(None);
        }
        Ok(())
    }
}

impl State {
    async fn tick(&mut self, me: &ActorRef<Msg>) -> Result<(), ActorProcessingErr> {
        let now = self.deps.time.now();
        self.look_at_the_clock(now);
        self.chores_at_once |= self.deps.settings.has_changed().unwrap_or(false);
        let settings = Arc::clone(&self.deps.settings.borrow_and_update());
        self.do_chores(me, &settings);
        // While due times are on their way to a clock that jumped back, they say nothing.
        let readable = !(self.chores_run() && (self.shifting || self.shift_ms != 0));
        // Before the read: what is committed after this line wakes the watcher.
        let mut outbox = self.deps.ledger.outbox();
        outbox.mark_unchanged();
        let read = self.deps.ledger.reader().read(|read| read.lanes()).await;
        let mut next = LOOK_EVERY;
        if let (Ok(views), true) = (read, readable) {
            for view in &views {
                next = next.min(self.wake(me, view, now, &settings).await);
            }
            self.end_idle_lanes();
        }
        self.watch(me, outbox, next);
        Ok(())
    }

    /// Wakes the lane of `view` if it has something to send; says when to look again for its sake.
    async fn wake(
        &mut self,
        me: &ActorRef<Msg>,
        view: &LaneView,
        now: Moment,
        settings: &Settings,
    ) -> Duration {
        if view.stopped {
            return LOOK_EVERY;
        }
        let due = due(view.next_due_at_ms, now.wall_ms, settings.interval_max());
        let foreign_ms = match due {
            Due::Now => None,
            Due::Foreign => Some(view.next_due_at_ms),
            Due::In(wait) => {
                self.keep(view.no);
                return wait;
            }
        };
        if let Some(Child { life: Life::Down { until, charging }, .. }) = self.lanes.get(&view.no) {
            let rest = until.saturating_duration_since(Instant::now());
            if *charging || !rest.is_zero() {
                return rest.max(LOOK_GAP);
            }
        }
        let Some(actor) = self.running_lane(me, view).await else { return LOOK_GAP };
        self.keep(view.no);
        // Fails only between the lane's end and the news of it; the next look finds it still due.
        let _ = actor.cast(lane_actor::Msg::Wake { foreign_ms });
        LOOK_EVERY
    }

    /// None: it does not start, which counts like a run that failed.
    async fn running_lane(
        &mut self,
        me: &ActorRef<Msg>,
        view: &LaneView,
    ) -> Option<ActorRef<lane_actor::Msg>> {
        if let Some(Child { life: Life::Running { actor, .. }, .. }) = self.lanes.get(&view.no) {
            return Some(actor.clone());
        }
        let handling = Handling::default();
        let args = lane_actor::Args {
            no: view.no,
            endpoint: view.endpoint.clone(),
            deps: self.deps.clone(),
            clock: self.clock.subscribe(),
            handling: handling.clone(),
        };
        // Without a name: its predecessor may still hold it.
        let spawned = Actor::spawn_linked(None, LaneActor, args, me.get_cell()).await;
        let now = Instant::now();
        let endpoint = view.endpoint.clone();
        let down = Life::Down { until: now, charging: false };
        let child = self.lanes.entry(view.no).or_insert(Child { endpoint, failures: 0, life: down });
        match spawned {
            Ok((actor, _)) => {
                child.life = Life::Running { actor: actor.clone(), handling, since: now, busy: now };
                Some(actor)
            }
            Err(error) => {
                child.fail(Duration::ZERO, false, &error.to_string());
                None
            }
        }
    }

    /// Something of the lane waits, so its actor stays.
    fn keep(&mut self, lane: LaneNo) {
        if let Some(Child { life: Life::Running { busy, .. }, .. }) = self.lanes.get_mut(&lane) {
            *busy = Instant::now();
        }
    }

    /// What is in flight waits in the ledger too: a lane that nobody kept has nothing in hand.
    fn end_idle_lanes(&mut self) {
        self.lanes.retain(|_, child| match &child.life {
            Life::Running { actor, busy, .. } => {
                if LANE_IDLE_MAX <= busy.elapsed() {
                    actor.stop(None);
                }
                true
            }
            Life::Down { until, charging } => *charging || until.elapsed() < LANE_HEALED_AFTER,
        });
    }

    /// One watcher at a time: it calls when something may have changed, and then ends.
    fn watch(&mut self, me: &ActorRef<Msg>, mut outbox: watch::Receiver<u64>, next: Duration) {
        let mut settings = self.deps.settings.clone();
        let me = me.clone();
        self.tasks.spawn(async move {
            let begin = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                Ok(()) = outbox.changed() => {}
                Ok(()) = settings.changed() => {}
            }
            tokio::time::sleep_until(begin + LOOK_GAP).await;
            // Fails only if the sender is gone.
            let _ = me.cast(Msg::Tick);
        });
    }

    fn look_at_the_clock(&mut self, now: Moment) {
        let mut jump = None;
        self.clock.send_if_modified(|clock| {
            jump = clock.observe(now);
            jump.is_some()
        });
        if let Some(jump_ms) = jump {
            Event::ClockJumped { by_ms: jump_ms }.emit();
            // Ahead: due times only come early. To move them would put off what was accepted since the jump.
            self.shift_ms += jump_ms.min(0);
            self.chores_due = Instant::now();
        }
    }

    fn chores_run(&self) -> bool {
        self.chores.as_ref().is_some_and(|chores| !chores.is_finished())
    }

    /// In a task: the sender never waits for a commit.
    fn do_chores(&mut self, me: &ActorRef<Msg>, settings: &Arc<Settings>) {
        if self.chores_run() || (Instant::now() < self.chores_due && !self.chores_at_once) {
            return;
        }
        self.chores_due = Instant::now() + CHORES_EVERY;
        let clock = self.clock.borrow().clone();
        let chores = Chores { deps: self.deps.clone(), settings: Arc::clone(settings), clock };
        let shift_ms = std::mem::take(&mut self.shift_ms);
        self.shifting = shift_ms != 0;
        self.chores_at_once = false;
        let me = me.clone();
        self.chores = Some(tokio::spawn(async move {
            let shift_ms = if shift_ms == 0 { 0 } else { chores.shift(shift_ms).await };
            chores.readmit().await;
            chores.release_summaries().await;
            let _ = me.cast(Msg::ChoresDone { shift_ms });
        }));
    }

    fn on_lane_failed(&mut self, me: &ActorRef<Msg>, cell: &ActorCell, error: &str) {
        let Some(lane) = self.lane_of(cell) else { return };
        let Some(child) = self.lanes.get_mut(&lane) else { return };
        let Life::Running { handling, since, .. } = &child.life else { return };
        let charged = handling.take();
        let lived = since.elapsed();
        child.fail(lived, charged.is_some(), error);
        if let Some(delivery) = charged {
            let (deps, me) = (self.deps.clone(), me.clone());
            self.tasks.spawn(async move {
                charge(&deps, &delivery).await;
                let _ = me.cast(Msg::Charged { lane });
            });
        }
    }

    fn drain(&mut self, me: &ActorRef<Msg>, deadline: Instant) {
        self.draining = true;
        for actor in self.running() {
            // Fails only if it is gone already.
            let _ = actor.cast(lane_actor::Msg::Drain);
        }
        if self.running().next().is_none() {
            me.stop(None);
        }
        me.send_after(deadline.saturating_duration_since(Instant::now()), || Msg::Cut);
    }

    fn running(&self) -> impl Iterator<Item = &ActorRef<lane_actor::Msg>> {
        self.lanes.values().filter_map(|child| match &child.life {
            Life::Running { actor, .. } => Some(actor),
            Life::Down { .. } => None,
        })
    }

    fn lane_of(&self, cell: &ActorCell) -> Option<LaneNo> {
        let of = |child: &Child| match &child.life {
            Life::Running { actor, .. } => actor.get_id() == cell.get_id(),
            Life::Down { .. } => false,
        };
        self.lanes.iter().find(|(_, child)| of(child)).map(|(lane, _)| *lane)
    }
}

impl Child {
    /// It rests before it is started again; the longer, the more often it failed in a row.
    fn fail(&mut self, lived: Duration, charging: bool, error: &str) {
        let healed = LANE_HEALED_AFTER <= lived;
        self.failures = if healed { 1 } else { self.failures.saturating_add(1) };
        let rest = LANE_RESTARTS.pause(self.failures - 1, Roll::by_chance());
        self.life = Life::Down { until: Instant::now() + rest, charging };
        let actor = format!("lane {}", self.endpoint.for_log());
        Event::ActorRestarted { actor: &actor, failures: self.failures.into(), detail: error }.emit();
    }
}

/// When something is due that is due at `at_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Now,
    In(Duration),
    /// Further off than anything is ever put off: it was written under another clock, and must not wait (rule 4).
    Foreign,
}

/// More than an interval is ever off by, for clocks that drift.
const DRIFT_MAX: Duration = Duration::from_secs(60);

fn due(at_ms: i64, now_ms: i64, interval_max: Duration) -> Due {
    match u64::try_from(at_ms.saturating_sub(now_ms)) {
        Ok(0) | Err(_) => Due::Now,
        Ok(wait_ms) if millis(interval_max + DRIFT_MAX) < wait_ms => Due::Foreign,
        Ok(wait_ms) => Due::In(Duration::from_millis(wait_ms)),
    }
}

/// A lane died while it handled this delivery: counted, and at `claims_max` its end (rule 2). No attempt is charged.
async fn charge(deps: &Deps, delivery: &DueDelivery) {
    let claims_max = deps.claims_max;
    let record = AttemptRecord {
        no: delivery.no,
        attempt: delivery.attempts + 1,
        at_ms: deps.time.now().wall_ms,
        result: AttemptResult::Dead,
        http_status: None,
        detail: String::new(),
        answer_unseen: true,
        patience_used_ms: delivery.patience_used_ms,
    };
    let command = move |store: &mut dyn Store| {
        let panics = store.record_lane_panic(record.no)?;
        if panics < claims_max {
            return Ok(None);
        }
        let record = AttemptRecord { detail: gave_up(panics), ..record.clone() };
        Ok((store.record_attempt(&record)? == Recorded::Applied).then_some(panics))
    };
    if let (Some(panics), _) = insist(&deps.ledger, command).await {
        Event::DeliveryDead {
            batch_id: delivery.batch_id.as_str(),
            webhook_id: &webhook_id(delivery),
            endpoint: delivery.endpoint.for_log(),
            attempt: u64::from(delivery.attempts) + 1,
            status: None,
            reason: &gave_up(panics),
        }
        .emit();
    }
}

/// The reason of a delivery that its lane did not survive.
pub(super) fn gave_up(panics: u32) -> String {
    format!("given up: its lane panicked {panics} times with it in hand")
}

/// What is done now and then for all lanes. What fails is done the next time.
struct Chores {
    deps: Deps,
    settings: Arc<Settings>,
    clock: Clock,
}

impl Chores {
    /// The clock jumped back: due times follow, and wait no longer than before (rule 4). Returns what is still to be
    /// shifted.
    async fn shift(&self, by_ms: i64) -> i64 {
        match self.deps.ledger.write(move |store| store.shift_due(by_ms)).await {
            // Unknown is most likely done; twice would be worse than late.
            Ok(()) | Err(LedgerError::Unknown) => 0,
            Err(
                LedgerError::Busy
                | LedgerError::Away
                | LedgerError::Full
                | LedgerError::ReadOnly
                | LedgerError::Refused(_),
            ) => by_ms,
        }
    }

    /// What was withheld waits again if there is somewhere to send it to, and what a 410 stopped if its endpoint has
    /// another URL now. Each time anew: an attempt under way by the old configuration may be recorded after the change.
    async fn readmit(&self) {
        let held = self.deps.ledger.reader().read(|read| read.held_lanes()).await.unwrap_or_default();
        for lane in held {
            let Ok(url) = target::resolve(&lane.endpoint, &self.settings) else { continue };
            let url = UrlHash::of(&url);
            if lane.is_to_be_readmitted(url) {
                self.readmit_lane(&lane, url).await;
            }
        }
    }

    async fn readmit_lane(&self, lane: &HeldLane, url: UrlHash) {
        let (no, now_ms) = (lane.no, self.deps.time.now().wall_ms);
        let (mut resumed, mut deliveries) = (false, 0);
        let step = move |store: &mut dyn Store| store.readmit(no, url, now_ms, READMIT_STEP);
        while let Ok(step) = self.deps.ledger.write(step).await {
            resumed |= step.resumed;
            deliveries += u64::from(step.moved);
            if step.moved < READMIT_STEP {
                break;
            }
        }
        if resumed {
            Event::EndpointResumed { endpoint: lane.endpoint.for_log(), deliveries }.emit();
        }
    }

    async fn release_summaries(&self) {
        let (clock, now, wait) = (self.clock.clone(), self.deps.time.now(), self.settings.summary_wait);
        let release = move |store: &mut dyn Store| {
            let waited = |ended_at_ms| wait <= clock.passed_since(ended_at_ms, now);
            store.release_summaries(now.wall_ms, &waited)
        };
        let released = self.deps.ledger.write(release).await;
        if let Ok(batches @ 1..) = released {
            Event::SummaryReleased { batches: batches.into() }.emit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_fails_at_once_for_ever_is_started_a_few_times_a_minute() {
        let starts = |roll| {
            let pauses = (0..).map(|nth| LANE_RESTARTS.pause(nth, roll));
            let begun = pauses.scan(Duration::ZERO, |at, pause| {
                *at += pause;
                Some(*at)
            });
            begun.take_while(|at| *at < Duration::from_secs(60)).count()
        };
        assert_eq!((starts(Roll(0)), starts(Roll(u16::MAX))), (9, 11));
        let rest = |nth| LANE_RESTARTS.pause(nth, Roll(u16::MAX));
        assert_eq!(rest(1_000_000), LANE_RESTARTS.max / 2, "and later two to four times");
    }

    #[test]
    fn a_due_time_beyond_every_interval_is_of_another_clock() {
        let hour = Duration::from_secs(3_600);
        for (at_ms, expected) in [
            (i64::MIN, Due::Now),
            (-1, Due::Now),
            (0, Due::Now),
            (1, Due::In(Duration::from_millis(1))),
            (3_600_000, Due::In(hour)),
            (3_660_001, Due::Foreign),
            (i64::MAX, Due::Foreign),
        ] {
            assert_eq!(due(at_ms, 0, hour), expected, "{at_ms}");
        }
    }
}
