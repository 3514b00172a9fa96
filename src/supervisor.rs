//! The root: starts the parts in order, restarts what fails by the table, and drains in reverse.
//!
//! ```text
//!  root ─┬─ ledger      one writer; a failure escalates: nothing in memory is trusted after it
//!        ├─ sender      due deliveries; a lane for each endpoint
//!        ├─ scrapers    the visit queue; one circuit each
//!        ├─ batches     a coordinator for each open batch
//!        └─ ingress     the listener; the socket itself is the root's
//! ```
//!
//! What a child's end leads to is data ([`Child::spec`]), decided in [`plan`] and done in [`nursery`]. Each child but the
//! ledger is restarted alone: handles outlive restarts, a visit whose pool died answers through its ticket, and a
//! coordinator asks again. All of them rest on the ledger, and what they hold is worth nothing after it failed: rest for
//! one, but by the process, since what is on disk then is not what memory says.
//!
//! ractor kills children mid-message when their parent stops, without `post_stop`, so the drain is written out here: each
//! part is asked to finish, with a deadline, and only then stopped. The root answers meanwhile, and hears of a ledger that
//! fails in the drain. Nothing durable depends on any of it.

pub mod address;
#[cfg(test)]
pub mod bystander;
pub mod nursery;
pub mod plan;
pub mod policy;

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::batch;
use crate::exit::Exit;
use crate::failpoint::{self, Point};
use crate::ingress;
use crate::ledger::actor::Ledger;
use crate::ledger::store::{Store, StoreError};
use crate::scraper;
use crate::scraper::actor::Gear;
use crate::telemetry::Event;
use crate::webhook;
use nursery::{Cradle, Nursery};
use plan::{End, Input, Restart, Spec, Strategy, Timer};
use policy::{Backoff, Intensity};

/// The root's children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    Ledger,
    Sender,
    Scrapers,
    Batches,
    Ingress,
}

impl Child {
    /// Start order; the drain goes in reverse. A child calls only children before it.
    pub const START_ORDER: [Self; 5] =
        [Self::Ledger, Self::Sender, Self::Scrapers, Self::Batches, Self::Ingress];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ledger => "ledger",
            Self::Sender => "sender",
            Self::Scrapers => "scrapers",
            Self::Batches => "batches",
            Self::Ingress => "ingress",
        }
    }

    pub const fn spec(self) -> Spec {
        /// A part that fails more often does not mend by itself.
        const FEW: Intensity = Intensity {
            at_most: 5,
            within: Duration::from_secs(60),
            backoff: Backoff { min: Duration::from_millis(50), max: Duration::from_secs(5) },
        };
        /// A drained child has nothing left to do but to return.
        const STOP_WITHIN: Duration = Duration::from_millis(750);
        /// It waits for the group in hand, and copies what is still only in SQLite's log to where it belongs: little,
        /// since that is done all the time.
        const CLOSE_WITHIN: Duration = Duration::from_secs(5);
        let alone = Spec {
            name: self.name(),
            restart: Restart::Permanent,
            strategy: Strategy::OneForOne,
            intensity: FEW,
            stop_within: STOP_WITHIN,
        };
        match self {
            // After a failed fsync, or a panic between two statements, what is on disk is not what memory says.
            Self::Ledger => Spec {
                strategy: Strategy::RestForOne,
                intensity: Intensity::NEVER,
                stop_within: CLOSE_WITHIN,
                ..alone
            },
            Self::Sender | Self::Scrapers | Self::Batches | Self::Ingress => alone,
        }
    }
}

/// How long the parts may take to stop after the drain, one after the other, and to be gone if they have to be killed.
pub const STOPPED_WITHIN: Duration = {
    let (mut within, mut child) = (Duration::ZERO, 0);
    while child < Child::START_ORDER.len() {
        let stop = Child::START_ORDER[child].spec().stop_within;
        within = within.saturating_add(stop).saturating_add(nursery::GONE_WITHIN);
        child += 1;
    }
    within
};

/// How the drain time is spent. Visits get most of it; then the webhooks in flight; the ledger closes last.
#[derive(Clone, Copy, Debug)]
pub struct DrainPlan {
    /// For requests in flight, and for those that are on their way on an open connection.
    pub ingress: ingress::Drain,
    /// Visits in flight end, or are put back, by then.
    pub visits: Instant,
    /// Coordinators have written their outcomes by then.
    pub batches: Instant,
    /// Webhooks in flight end, or are cut, by then.
    pub webhooks: Instant,
}

impl DrainPlan {
    /// Shares of the whole, in tenths: outcomes need two fsyncs after the last visit, webhooks the rest.
    pub fn new(now: Instant, drain: Duration) -> Self {
        let tenth = drain / 10;
        let ingress = ingress::Drain { idle_for: tenth / 4, within: 3 * tenth };
        Self { ingress, visits: now + 6 * tenth, batches: now + 8 * tenth, webhooks: now + drain }
    }
}

/// Everything that the children are made from; it outlives them.
pub struct Parts {
    pub ledger: Ledger,
    /// Taken by the ledger's one and only start; in a mutex because a store is not to be shared.
    pub store: Mutex<Option<Box<dyn Store>>>,
    pub webhook: webhook::Webhook,
    pub webhook_handle: webhook::WebhookHandle,
    pub pool: scraper::pool::Pool,
    pub scrapers: scraper::ScrapersHandle,
    /// The gear of now, also after a restart of the scrapers.
    pub gear: watch::Receiver<Arc<Gear>>,
    pub batches: batch::Batches,
    pub batches_handle: batch::BatchesHandle,
    pub batches_arguments: batch::supervisor::Arguments,
    pub ingress: ingress::Ingress,
    /// Outlives restarts of the ingress; closed when the drain begins.
    pub listener: Option<Arc<TcpListener>>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("gear", &self.gear).finish_non_exhaustive()
    }
}

/// Why the root gives the process up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Escalation {
    pub child: &'static str,
    pub detail: String,
    /// With which code the process ends.
    pub exit: Exit,
}

#[derive(Debug)]
pub enum Msg {
    /// Tell: start all children, in order. The first message.
    Start,
    /// Tell: start a failed child again. From a timer.
    Revive(Timer),
    /// Tell: nothing. From a timer: where the fail point `root.tick` has a message that comes by itself.
    Tick,
    /// Ask: does every child run? The answer itself shows that the root handles its messages.
    Ask { reply: RpcReplyPort<bool> },
    /// Ask: drain everything; answered when the ledger is closed.
    Drain { plan: DrainPlan, reply: RpcReplyPort<()> },
    /// Tell: all parts have finished, or their time is over; stop them. From the root's own task.
    Drained { reply: RpcReplyPort<()> },
}

const TICK: Duration = Duration::from_secs(1);

/// Starts the root. Its escalations come through `escalations`; the caller ends the process.
pub async fn start(
    parts: Parts,
    escalations: mpsc::UnboundedSender<Escalation>,
) -> Result<(ActorRef<Msg>, JoinHandle<()>), SpawnErr> {
    let (root, join) = Actor::spawn(Some("root".into()), Root, (parts, escalations)).await?;
    root.cast(Msg::Start).map_err(|error| SpawnErr::StartupFailed(error.into()))?;
    Ok((root, join))
}

struct Root;

struct State {
    parts: Parts,
    escalations: mpsc::UnboundedSender<Escalation>,
    nursery: Nursery,
    drain: JoinHandle<()>,
}

impl Actor for Root {
    type Msg = Msg;
    type State = State;
    type Arguments = (Parts, mpsc::UnboundedSender<Escalation>);

    async fn pre_start(
        &self,
        me: ActorRef<Msg>,
        (parts, escalations): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        me.send_after(TICK, || Msg::Tick);
        let nursery = Nursery::new(Child::START_ORDER.map(Child::spec));
        Ok(State { parts, escalations, nursery, drain: tokio::spawn(async {}) })
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Start => state.apply(Input::Start, "", Exit::Escalated, &me).await,
            Msg::Revive(timer) => state.apply(Input::Due(timer), "", Exit::Escalated, &me).await,
            Msg::Tick => {
                failpoint::hit(Point::RootTick);
                me.send_after(TICK, || Msg::Tick);
            }
            Msg::Ask { reply } => {
                let _ = reply.send(state.nursery.all_run()); // Whoever asked may have stopped waiting.
            }
            Msg::Drain { plan, reply } => {
                state.apply(Input::Drain, "", Exit::Escalated, &me).await;
                state.parts.listener = None; // Who connects from now on is refused, or waits in the kernel for the next process.
                let (drain, root) = (drain(&state.parts, plan), me.clone());
                state.drain = tokio::spawn(async move {
                    drain.await;
                    let _ = root.cast(Msg::Drained { reply }); // A root that is gone has ended the process.
                });
            }
            Msg::Drained { reply } => {
                state.apply(Input::Stop, "", Exit::Escalated, &me).await;
                let _ = reply.send(()); // A second signal may have ended the wait.
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
        let (cell, end, detail, exit) = match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                (cell, End::Failed, error.to_string(), exit_after(&*error))
            }
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                let detail = reason.unwrap_or_else(|| "it stopped unasked".into());
                (cell, End::Normal, detail, Exit::Escalated)
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        if let Some(child) = state.nursery.child_of(&cell) {
            state.apply(Input::Ended(child, end), &detail, exit, &me).await;
        }
        Ok(())
    }
}

/// With which code the process ends if this failure of a child is not survived. A damaged ledger does not mend by a
/// restart: a person has to restore it.
fn exit_after(error: &(dyn Error + 'static)) -> Exit {
    match error.downcast_ref::<StoreError>() {
        Some(StoreError::Corrupt(_)) => Exit::LedgerDamaged,
        Some(
            StoreError::Unwritten(_) | StoreError::Medium(_) | StoreError::Full { .. } | StoreError::Other(_),
        )
        | None => Exit::Escalated,
    }
}

impl State {
    async fn apply(&mut self, input: Input, detail: &str, exit: Exit, me: &ActorRef<Msg>) {
        let given_up = self.nursery.apply(input, detail, &mut self.parts, me, Msg::Revive).await;
        if let Some(nursery::GivenUp { child, detail }) = given_up {
            let child = Child::START_ORDER[child].name();
            // Nobody listens only when the process is ending already.
            let _ = self.escalations.send(Escalation { child, detail, exit });
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.drain.abort();
    }
}

impl Cradle for Parts {
    async fn spawn(&mut self, child: usize, root: ActorCell) -> Result<ActorCell, SpawnErr> {
        match Child::START_ORDER[child] {
            Child::Ledger => {
                let gone = || SpawnErr::StartupFailed("the store is gone with the last ledger".into());
                let store = self.store.get_mut().unwrap_or_else(PoisonError::into_inner).take();
                self.ledger.start(store.ok_or_else(gone)?, root).await
            }
            Child::Sender => self.webhook.start(root).await,
            Child::Scrapers => self.pool.start(self.gear.clone(), root).await,
            Child::Batches => self.batches.start(self.batches_arguments.clone(), root).await,
            Child::Ingress => {
                let closed = || SpawnErr::StartupFailed("the listener is closed".into());
                self.ingress.start(self.listener.clone().ok_or_else(closed)?, root).await
            }
        }
    }
}

/// In reverse order of start; visits and coordinators end together, since each waits for the other.
fn drain(parts: &Parts, plan: DrainPlan) -> impl Future<Output = ()> + Send + use<> {
    let (ingress, scrapers) = (parts.ingress.clone(), parts.scrapers.clone());
    let (batches, webhooks) = (parts.batches_handle.clone(), parts.webhook_handle.clone());
    async move {
        let visits = async {
            let scrapers = tokio::time::timeout_at(plan.batches, scrapers.drain(plan.visits));
            let coordinators = tokio::time::timeout_at(plan.batches, batches.drain());
            let (_, coordinators) = tokio::join!(scrapers, coordinators);
            if coordinators.is_err() {
                Event::ActorKilled { actor: Child::Batches.name() }.emit();
            }
        };
        tokio::join!(ingress.drain(plan.ingress), visits);
        webhooks.drain(plan.webhooks).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_ledger_always_escalates_and_no_other_does_at_once() {
        for child in Child::START_ORDER {
            let escalates = child.spec().intensity == Intensity::NEVER;
            assert_eq!(escalates, child == Child::Ledger, "{}", child.name());
        }
    }

    #[test]
    fn a_damaged_ledger_ends_the_process_for_good_and_a_failed_disk_for_a_restart() {
        let exit = |error: StoreError| exit_after(&*ActorProcessingErr::from(error));
        assert_eq!(exit(StoreError::Corrupt("a page".into())), Exit::LedgerDamaged);
        assert_eq!(exit(StoreError::Medium("EIO".into())), Exit::Escalated);
        assert_eq!(exit(StoreError::Other("a mistake".into())), Exit::Escalated);
        assert_eq!(exit_after(&*ActorProcessingErr::from("a panic")), Exit::Escalated);
    }

    #[test]
    fn the_drain_plan_spends_the_whole_time_in_order() {
        let now = Instant::now();
        let plan = DrainPlan::new(now, Duration::from_secs(20));
        assert!(now < plan.visits && plan.visits < plan.batches && plan.batches < plan.webhooks);
        assert!(plan.ingress.idle_for < plan.ingress.within);
        assert_eq!(plan.webhooks, now + Duration::from_secs(20));
    }
}
