//! The scrapers' supervisor: owns the visit queue and hands a visit to a free scraper.
//!
//! Its mailbox is bounded by its askers: a coordinator asks for at most its window of products. A scraper is told of one
//! visit at a time and says when it is over, so no scraper has a queue of its own.

mod alone;
mod change;
mod hedge;
mod look;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::look::NextLook;
use super::actor::{self, Gear, ScraperActor};
use super::hedge::Hedging;
use super::queue::{Label, Next, Open, Queue};
use super::stopwatch::Stopwatch;
use super::suspension::{CRASHES, Verdict, Went};
use super::{Twin, Visit};
use crate::failpoint::{self, Point};
use crate::model::SiteName;
use crate::supervisor::address::{self, Address, Publisher};
use crate::supervisor::policy::{Backoff, Decision, History, Intensity, Roll};
use crate::telemetry::Event;

/// Scrapers that fail without a visit, or do not even start: not the doing of a shop. For those that fail in a visit see
/// [`super::suspension`].
const SCRAPER_RESTARTS: Intensity = Intensity {
    at_most: 60,
    within: Duration::from_secs(60),
    backoff: Backoff { min: Duration::from_millis(20), max: Duration::from_secs(1) },
};

/// The only way to ask for a visit. Cheap to clone; outlives restarts of the pool.
#[derive(Clone, Debug)]
pub struct ScrapersHandle {
    address: Address<Msg>,
}

impl ScrapersHandle {
    /// Queues a visit. It comes back if the pool is between two incarnations; ask again a little later.
    pub fn ask(&self, visit: Visit) -> Result<(), Box<Visit>> {
        self.address.cast(Msg::Ask(Box::new(visit))).map_err(|message| match message {
            Msg::Ask(visit) => visit,
            Msg::Over { .. } | Msg::Revive { .. } | Msg::Look | Msg::Changed { .. } | Msg::Drain { .. } => {
                unreachable!("the message that was sent comes back")
            }
        })
    }

    /// No new visit starts; those in flight end, or are put back at `until`. Returns when no scraper is at work.
    pub async fn drain(&self, until: Instant) {
        if let Some(pool) = self.address.current() {
            // A pool that dies meanwhile has no visit in flight either.
            let _ = pool.call(|reply| Msg::Drain { until, reply }, None).await;
        }
    }
}

/// What the root keeps: starts the pool, again if need be.
#[derive(Debug)]
pub struct Pool {
    publisher: Publisher<Msg>,
}

/// Makes the handle and what starts the actor behind it.
pub fn handle() -> (ScrapersHandle, Pool) {
    let (publisher, address) = address::channel();
    (ScrapersHandle { address }, Pool { publisher })
}

impl Pool {
    /// `gears`: what the scrapers share; a new one is for what starts after it.
    pub async fn start(
        &self,
        gears: watch::Receiver<Arc<Gear>>,
        supervisor: ActorCell,
    ) -> Result<ActorCell, SpawnErr> {
        self.publisher.start(Some("scrapers"), PoolActor, gears, Some(Msg::Look), supervisor).await
    }
}

pub enum Msg {
    /// Tell: queue this visit. It is answered through its ticket.
    Ask(Box<Visit>),
    /// Tell: a scraper is free again, and its visit went so.
    Over { worker: usize, incarnation: u64, label: Label, went: Went },
    /// Tell: start a failed scraper again. Sent by the pool to itself.
    Revive { worker: usize },
    /// Tell: the time of a pace or of a suspension is over; see what may start. The first message, and from timers.
    Look,
    /// Tell: Tor, the disk or the gear changed; see what may start. One at a time from each of the watchers.
    Changed { told: RpcReplyPort<()> },
    /// Ask: answered when no visit is in flight.
    Drain { until: Instant, reply: RpcReplyPort<()> },
}

impl fmt::Debug for Msg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ask(_) => "Ask",
            Self::Over { .. } => "Over",
            Self::Revive { .. } => "Revive",
            Self::Look => "Look",
            Self::Changed { .. } => "Changed",
            Self::Drain { .. } => "Drain",
        })
    }
}

struct PoolActor;

struct State {
    gear: Arc<Gear>,
    gears: watch::Receiver<Arc<Gear>>,
    queue: Queue<Box<Visit>>,
    workers: Vec<Worker>,
    hedging: BTreeMap<SiteName, Hedging>,
    history: History,
    incarnations: u64,
    drain: watch::Sender<Option<Instant>>,
    drained: Option<RpcReplyPort<()>>,
    next_look: NextLook,
    tor_watcher: Watcher,
    /// Where there is a control port.
    _control_watcher: Option<Watcher>,
    /// Watch what changes outside; end with this incarnation.
    _watchers: [Watcher; 3],
}

#[derive(Debug, Default)]
struct Worker {
    actor: Option<ActorRef<actor::Msg>>,
    incarnation: u64,
    visit: Option<InHand>,
    /// It took no visit any more; whoever hears of its end starts it again.
    dying: bool,
}

/// A visit that a scraper is at.
#[derive(Debug)]
struct InHand {
    label: Label,
    stopwatch: Stopwatch,
    /// What it began with.
    gear: Arc<Gear>,
    /// As long as it may be started once more.
    twin: Option<Twin>,
}

/// A task that ends when its owner does.
struct Watcher(JoinHandle<()>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Actor for PoolActor {
    type Msg = Msg;
    type State = State;
    type Arguments = watch::Receiver<Arc<Gear>>;

    async fn pre_start(
        &self,
        me: ActorRef<Msg>,
        mut gears: watch::Receiver<Arc<Gear>>,
    ) -> Result<State, ActorProcessingErr> {
        let gear = Arc::clone(&gears.borrow_and_update());
        let mut queue = Queue::new(gear.scrapers as u32);
        for (shop, limits) in change::limits(&gear) {
            queue.open_shop(shop, limits, Instant::now());
        }
        let watchers = [
            Watcher(tokio::spawn(address::tell_changes(gear.tor.watch(), me.clone(), changed))),
            Watcher(tokio::spawn(address::tell_changes(gear.ledger.health(), me.clone(), changed))),
            Watcher(tokio::spawn(address::tell_changes(gears.clone(), me, changed))),
        ];
        let workers = (0..gear.scrapers).map(|_| Worker::default()).collect();
        Ok(State {
            queue,
            workers,
            hedging: BTreeMap::new(),
            history: History::default(),
            incarnations: 0,
            drain: watch::channel(None).0,
            drained: None,
            next_look: NextLook::default(),
            tor_watcher: watch_tor(&gear),
            _control_watcher: gear
                .tor
                .control()
                .cloned()
                .map(|control| Watcher(tokio::spawn(control.keep_watching(gear.tor.clone())))),
            _watchers: watchers,
            gear,
            gears,
        })
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.follow(&me).await?;
        match msg {
            Msg::Ask(visit) => {
                failpoint::hit(Point::ScrapersAsk);
                state.push(visit);
            }
            Msg::Over { worker, incarnation, label, went } => {
                failpoint::hit(Point::ScrapersIdle);
                state.visit_over(worker, incarnation, &label, &went, &me);
            }
            Msg::Revive { worker } => state.revive(worker, &me).await?,
            Msg::Look => {
                failpoint::hit(Point::ScrapersTick);
                state.next_look.looked(Instant::now());
                state.start_missing(&me).await?;
                state.queue.resume(Instant::now());
            }
            Msg::Changed { told } => {
                let _ = told.send(()); // Its asker ends with this incarnation.
            }
            Msg::Drain { until, reply } => {
                state.drain.send_replace(Some(until));
                state.queue.clear();
                state.drained = Some(reply);
            }
        }
        state.dispatch(&me);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, detail) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, reason) => (cell, reason.unwrap_or_default()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        let Some(worker) = state.worker_of(&cell) else { return Ok(()) };
        state.worker_failed(worker, &detail, &me)?;
        state.dispatch(&me);
        Ok(())
    }
}

impl State {
    fn push(&mut self, visit: Box<Visit>) {
        if self.drain.borrow().is_some() {
            return; // Dropped: its ticket says that it never dialled.
        }
        let label = visit.label();
        if let Err(visit) = self.queue.push(label, visit) {
            change::removed(*visit);
        }
    }

    fn visit_over(
        &mut self,
        worker: usize,
        incarnation: u64,
        label: &Label,
        went: &Went,
        me: &ActorRef<Msg>,
    ) {
        let Some(slot) = self.workers.get_mut(worker) else { return };
        if slot.incarnation == incarnation
            && let Some(in_hand) = slot.visit.take()
        {
            self.note_time(&in_hand);
            self.queue.ended(label);
            if let Some(change) = self.queue.went(label, went, Instant::now(), Roll::by_chance()) {
                alone::tell(&label.site, change, went, me);
            }
            self.let_go();
        }
    }

    fn worker_of(&self, cell: &ActorCell) -> Option<usize> {
        let is_it =
            |worker: &Worker| worker.actor.as_ref().is_some_and(|actor| actor.get_id() == cell.get_id());
        self.workers.iter().position(is_it)
    }

    /// Fails past the limit of what no shop is to blame for.
    fn worker_failed(
        &mut self,
        worker: usize,
        detail: &str,
        me: &ActorRef<Msg>,
    ) -> Result<(), ActorProcessingErr> {
        let slot = &mut self.workers[worker];
        slot.actor = None;
        let (now, roll) = (Instant::now(), Roll::by_chance());
        let verdict = slot.visit.take().and_then(|InHand { label, .. }| {
            self.queue.ended(&label);
            Some((self.queue.crashed(&label, now, roll)?, label.site))
        });
        let (after, failures) = match verdict {
            Some((Verdict::Restart { after, crashes }, _)) => (after, crashes),
            Some((Verdict::Known, _)) => (CRASHES.backoff.pause(0, roll), 1),
            Some((Verdict::Suspend(suspended), site)) => {
                alone::leave(&site, suspended, detail, me);
                (CRASHES.backoff.pause(0, roll), suspended.count)
            }
            None => match self.history.on_failure(SCRAPER_RESTARTS, now, roll) {
                Decision::Restart { after } => (after, self.history.failures()),
                Decision::Escalate => return Err(format!("scrapers fail too often: {detail}").into()),
            },
        };
        self.let_go();
        if self.gear.scrapers <= worker {
            return Ok(()); // There are fewer circuits now.
        }
        let actor = format!("scraper {worker}");
        Event::ActorRestarted { actor: &actor, failures, detail }.emit();
        me.send_after(after, move || Msg::Revive { worker });
        Ok(())
    }

    async fn start_missing(&mut self, me: &ActorRef<Msg>) -> Result<(), ActorProcessingErr> {
        for worker in 0..self.gear.scrapers {
            if self.workers[worker].incarnation == 0 {
                self.revive(worker, me).await?;
            }
        }
        Ok(())
    }

    async fn revive(&mut self, worker: usize, me: &ActorRef<Msg>) -> Result<(), ActorProcessingErr> {
        // There may be fewer circuits now than when its scraper failed.
        let is_missing = worker < self.gear.scrapers && self.workers[worker].actor.is_none();
        if !is_missing || self.drain.borrow().is_some() {
            return Ok(());
        }
        self.incarnations += 1;
        let incarnation = self.incarnations;
        let arguments = actor::Arguments {
            worker,
            incarnation,
            gear: Arc::clone(&self.gear),
            pool: me.clone(),
            drain: self.drain.subscribe(),
        };
        self.workers[worker].incarnation = incarnation;
        match Actor::spawn_linked(None, ScraperActor, arguments, me.get_cell()).await {
            Ok((actor, _)) => {
                self.workers[worker] = Worker { actor: Some(actor), incarnation, ..Worker::default() };
                Ok(())
            }
            // A start that fails counts like a run that failed.
            Err(error) => self.worker_failed(worker, &error.to_string(), me),
        }
    }

    /// Hands out visits until no scraper is free or none may start.
    fn dispatch(&mut self, me: &ActorRef<Msg>) {
        if self.drain.borrow().is_some() {
            if self.queue.in_flight() == 0
                && let Some(reply) = self.drained.take()
            {
                // The root waits for it; if it does not any more, nothing is lost.
                let _ = reply.send(());
            }
            return;
        }
        self.queue.turned_away().into_iter().for_each(|visit| alone::turn_away(*visit));
        let writable = self.gear.ledger.health().borrow().takes_outcomes();
        let open = Open { tor: writable && self.gear.tor.is_there(), direct: writable };
        while let Some(free) = self.workers.iter().take(self.gear.scrapers).position(Worker::is_free) {
            match self.queue.next(Instant::now(), open) {
                Next::Start(label, visit) => self.hand_over(free, label, visit),
                Next::Wait(until) => {
                    let next = [until, self.hedge(open)].into_iter().flatten().min();
                    return self.look_at(next, me);
                }
            }
        }
    }

    fn hand_over(&mut self, free: usize, label: Label, visit: Box<Visit>) {
        if !visit.ticket.is_wanted() {
            self.queue.ended(&label); // Its coordinator was restarted and asks again itself.
            return;
        }
        let in_hand = self.in_hand(label, &visit);
        self.send(free, in_hand, visit);
    }

    fn look_at(&mut self, until: Option<Instant>, me: &ActorRef<Msg>) {
        let Some(until) = until else { return };
        if self.next_look.plan(until) {
            me.send_after(until.saturating_duration_since(Instant::now()), || Msg::Look);
        }
    }
}

impl Worker {
    fn is_free(&self) -> bool {
        self.actor.is_some() && self.visit.is_none() && !self.dying
    }
}

fn watch_tor(gear: &Gear) -> Watcher {
    Watcher(tokio::spawn(gear.tor.clone().keep_looking(gear.probe_timeout)))
}

fn changed(told: RpcReplyPort<()>) -> Msg {
    Msg::Changed { told }
}
