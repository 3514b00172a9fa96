//! The batches' supervisor: one coordinator for each open batch.
//!
//! It finds open batches in the ledger, at its start and whenever one was accepted. A coordinator that fails is started
//! again with a new incarnation; one that fails past its limit has its batch set aside: the batch's open products end as
//! `failed`, reason `crashed`, by plain transactions without a coordinator (design 4, rule 2).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Settings;
use super::actor::{self, Coordinator};
use crate::failpoint::{self, Point};
use crate::ledger::LedgerHandle;
use crate::ledger::store::{Claim, OpenBatch, StoreError};
use crate::model::BatchNo;
use crate::model::batch::Outcome;
use crate::scraper::ScrapersHandle;
use crate::supervisor::address::{self, Address, Publisher};
use crate::supervisor::policy::{Backoff, Decision, History, Intensity, Roll};
use crate::telemetry::Event;
use crate::wall;

/// A batch whose coordinator fails more often is poisonous to it.
const COORDINATOR_RESTARTS: Intensity = Intensity {
    at_most: 5,
    within: Duration::from_secs(60),
    backoff: Backoff { min: Duration::from_millis(50), max: Duration::from_secs(5) },
};
/// Coordinators at once. A batch beyond it waits for one to end; each costs some 10 KB and a window.
const COORDINATORS_MAX: usize = 1_000;
/// How often the ledger is asked for batches that nobody told of.
const TICK: Duration = Duration::from_secs(5);
/// Products of a batch set aside that end in one transaction.
const SET_ASIDE_STEP: u32 = 200;
/// How soon a batch set aside goes on after a write that failed.
const SET_ASIDE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What all coordinators share.
#[derive(Clone, Debug)]
pub struct Arguments {
    pub epoch: i64,
    pub ledger: LedgerHandle,
    pub scrapers: ScrapersHandle,
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Changes with each accepted batch.
    pub accepted: watch::Receiver<u64>,
}

/// The way to drain the coordinators; outlives restarts of their supervisor.
#[derive(Clone, Debug)]
pub struct BatchesHandle {
    address: Address<Msg>,
}

impl BatchesHandle {
    /// Nothing more is claimed. Returns when outcomes in hand are on disk and claims are put back.
    pub async fn drain(&self) {
        if let Some(batches) = self.address.current() {
            // If it dies meanwhile its claims die with the process.
            let _ = batches.call(|reply| Msg::Drain { reply }, None).await;
        }
    }
}

/// What the root keeps: starts the supervisor, again if need be.
#[derive(Debug)]
pub struct Batches {
    publisher: Publisher<Msg>,
}

/// Makes the handle and what starts the actor behind it.
pub fn handle() -> (BatchesHandle, Batches) {
    let (publisher, address) = address::channel();
    (BatchesHandle { address }, Batches { publisher })
}

impl Batches {
    pub async fn start(&self, arguments: Arguments, root: ActorCell) -> Result<ActorCell, SpawnErr> {
        self.publisher.start(Some("batches"), Supervisor, arguments, Some(Msg::Look), root).await
    }
}

enum Msg {
    /// Tell: look for batches that are younger than those known. When some were accepted; the port keeps it to one such
    /// message at a time.
    LookForNew { told: RpcReplyPort<()> },
    /// Tell: look for all open batches. The first message, and from a timer that it sets.
    Look,
    /// Tell: open batches, oldest first. From a task of the supervisor's own.
    Opened(Result<Vec<OpenBatch>, StoreError>),
    /// Tell: start a failed coordinator again. From a timer.
    Revive(BatchNo),
    /// Tell: all products of a batch that was set aside have ended. From the task that ended them.
    SetAside(BatchNo),
    /// Ask: answered when all coordinators have drained.
    Drain { reply: RpcReplyPort<()> },
}

impl fmt::Debug for Msg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LookForNew { .. } => "LookForNew",
            Self::Look => "Look",
            Self::Opened(_) => "Opened",
            Self::Revive(_) => "Revive",
            Self::SetAside(_) => "SetAside",
            Self::Drain { .. } => "Drain",
        })
    }
}

struct Supervisor;

struct State {
    arguments: Arguments,
    running: HashMap<BatchNo, Child>,
    /// Every open batch up to this one has, or had, a coordinator.
    youngest: BatchNo,
    looking: bool,
    /// A batch was accepted while the supervisor was looking.
    look_again: bool,
    draining: bool,
    watcher: JoinHandle<()>,
}

struct Child {
    batch: OpenBatch,
    actor: Option<ActorRef<actor::Msg>>,
    history: History,
    set_aside: bool,
}

/// Incarnations of coordinators are numbered over the whole life of the process, also past a restart of this supervisor.
static INCARNATIONS: AtomicI64 = AtomicI64::new(0);

impl Drop for State {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Actor for Supervisor {
    type Msg = Msg;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, me: ActorRef<Msg>, arguments: Arguments) -> Result<State, ActorProcessingErr> {
        let accepted = arguments.accepted.clone();
        let watcher = tokio::spawn(address::tell_changes(accepted, me, |told| Msg::LookForNew { told }));
        let running = HashMap::new();
        Ok(State {
            arguments,
            running,
            youngest: BatchNo(0),
            looking: false,
            look_again: false,
            draining: false,
            watcher,
        })
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::LookForNew { told } => {
                let _ = told.send(()); // Its asker ends with this incarnation.
                state.look(state.youngest, &me);
            }
            Msg::Look => {
                me.send_after(TICK, || Msg::Look);
                failpoint::hit(Point::BatchesTick);
                state.look(BatchNo(0), &me);
            }
            Msg::Opened(opened) => {
                failpoint::hit(Point::BatchesOpened);
                state.looking = false;
                // A read that failed is repeated at the next look.
                for batch in opened.unwrap_or_default() {
                    state.open(batch, &me).await;
                }
                if std::mem::take(&mut state.look_again) {
                    state.look(state.youngest, &me);
                }
            }
            Msg::Revive(batch) => state.start_coordinator(batch, &me).await,
            Msg::SetAside(batch) => {
                if let Some(child) = state.running.remove(&batch) {
                    Event::BatchEnded { batch_id: child.batch.batch_id.as_str() }.emit();
                }
                state.look(state.youngest, &me); // Another one may have waited for its place.
            }
            Msg::Drain { reply } => state.drain(reply),
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
                if let Some(no) = state.batch_of(&cell) {
                    state.coordinator_failed(no, &error.to_string(), &me);
                }
            }
            SupervisionEvent::ActorTerminated(cell, _, _) => {
                state.running.retain(|_, child| !child.is(&cell));
                state.look(state.youngest, &me); // One that waited for a coordinator to end may start.
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}

impl State {
    fn look(&mut self, after: BatchNo, me: &ActorRef<Msg>) {
        if self.draining || self.running.len() >= COORDINATORS_MAX {
            return;
        }
        if self.looking {
            self.look_again = true;
            return;
        }
        self.looking = true;
        let (reader, me) = (self.arguments.ledger.reader().clone(), me.clone());
        tokio::spawn(async move {
            let opened = reader.read(move |read| read.open_batches(after, COORDINATORS_MAX as u32)).await;
            let _ = me.cast(Msg::Opened(opened)); // A successor looks for itself.
        });
    }

    async fn open(&mut self, batch: OpenBatch, me: &ActorRef<Msg>) {
        if self.draining || self.running.contains_key(&batch.no) || self.running.len() >= COORDINATORS_MAX {
            return;
        }
        let no = batch.no;
        self.youngest = self.youngest.max(no);
        self.running.insert(no, Child { batch, actor: None, history: History::default(), set_aside: false });
        self.start_coordinator(no, me).await;
    }

    async fn start_coordinator(&mut self, no: BatchNo, me: &ActorRef<Msg>) {
        let arguments = &self.arguments;
        let Some(child) = self.running.get_mut(&no) else { return };
        if child.actor.is_some() || child.set_aside || self.draining {
            return;
        }
        let incarnation = INCARNATIONS.fetch_add(1, Ordering::Relaxed) + 1;
        let coordinator = actor::Arguments {
            batch: child.batch.clone(),
            claim: Claim { epoch: arguments.epoch, incarnation },
            settings: arguments.settings.clone(),
            ledger: arguments.ledger.clone(),
            scrapers: arguments.scrapers.clone(),
        };
        match Actor::spawn_linked(None, Coordinator, coordinator, me.get_cell()).await {
            Ok((actor, _)) => {
                // If it is gone already, the news of it is on its way.
                let _ = actor.cast(actor::Msg::Start);
                child.actor = Some(actor);
            }
            // A start that fails counts like a run that failed.
            Err(error) => self.coordinator_failed(no, &error.to_string(), me),
        }
    }

    fn coordinator_failed(&mut self, no: BatchNo, detail: &str, me: &ActorRef<Msg>) {
        let Some(child) = self.running.get_mut(&no) else { return };
        child.actor = None;
        let now = tokio::time::Instant::now();
        let decision = child.history.on_failure(COORDINATOR_RESTARTS, now, Roll::by_chance());
        let batch_id = child.batch.batch_id.clone();
        match decision {
            Decision::Restart { after } => {
                let actor = format!("coordinator of {batch_id}");
                Event::ActorRestarted { actor: &actor, failures: child.history.failures(), detail }.emit();
                me.send_after(after, move || Msg::Revive(no));
            }
            Decision::Escalate if child.set_aside => {}
            Decision::Escalate => {
                child.set_aside = true;
                Event::BatchSetAside { batch_id: batch_id.as_str() }.emit();
                let detail = format!(
                    "the coordinator of this batch failed {} times: {detail}",
                    child.history.failures()
                );
                let (work, me) = (set_aside(self.arguments.ledger.clone(), no, detail), me.clone());
                tokio::spawn(async move {
                    work.await;
                    let _ = me.cast(Msg::SetAside(no)); // A successor finds the batch ended.
                });
            }
        }
    }

    fn batch_of(&self, cell: &ActorCell) -> Option<BatchNo> {
        self.running.iter().find(|(_, child)| child.is(cell)).map(|(no, _)| *no)
    }

    fn drain(&mut self, reply: RpcReplyPort<()>) {
        self.draining = true;
        let actors: Vec<_> = self.running.values().filter_map(|child| child.actor.clone()).collect();
        tokio::spawn(async move {
            let mut calls = tokio::task::JoinSet::new();
            for actor in actors {
                calls.spawn(
                    async move { actor.call(|reply| actor::Msg::Drain { reply }, None).await.is_ok() },
                );
            }
            // A coordinator that dies meanwhile has nothing left to put back.
            calls.join_all().await;
            let _ = reply.send(());
        });
    }
}

impl Child {
    fn is(&self, cell: &ActorCell) -> bool {
        self.actor.as_ref().is_some_and(|actor| actor.get_id() == cell.get_id())
    }
}

/// Ends what is open in a batch, a step at a time, until nothing is.
async fn set_aside(ledger: LedgerHandle, batch: BatchNo, detail: String) {
    let outcome = Arc::new(Outcome::crashed(&detail));
    loop {
        let step = Arc::clone(&outcome);
        let ended = ledger
            .write(move |store| store.end_set_aside(batch, &step, SET_ASIDE_STEP, wall::now_ms()))
            .await;
        match ended {
            Ok(ended) if ended.is_empty() => return,
            Ok(ended) => ended.iter().for_each(|product| product.tell(&outcome)),
            Err(_) => tokio::time::sleep(SET_ASIDE_AGAIN_AFTER).await,
        }
    }
}
