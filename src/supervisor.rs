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
//! ractor kills children mid-message when their parent stops, without `post_stop`, so the drain is written out here: each
//! part is asked to finish, with a deadline, and only then stopped. Nothing durable depends on any of it.

pub mod address;
pub mod policy;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::batch;
use crate::failpoint::{self, Point};
use crate::ingress;
use crate::ledger::actor::Ledger;
use crate::ledger::store::Store;
use crate::scraper;
use crate::scraper::actor::Gear;
use crate::telemetry::Event;
use crate::webhook;
use policy::{Decision, History, Intensity};

/// The root's children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    Ledger,
    Sender,
    Scrapers,
    Batches,
    Ingress,
}

/// What a failure of a child leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    Restart(Intensity),
    /// End the process with its own exit code; systemd starts it from a clean slate.
    Escalate,
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

    pub const fn on_failure(self) -> OnFailure {
        /// A part that fails more often does not mend by itself.
        const FEW: Intensity = Intensity {
            at_most: 5,
            within: Duration::from_secs(60),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
        };
        match self {
            // After a failed fsync, or a panic between two statements, what is on disk is not what memory says.
            Self::Ledger => OnFailure::Escalate,
            Self::Sender | Self::Scrapers | Self::Batches | Self::Ingress => OnFailure::Restart(FEW),
        }
    }
}

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
    pub gear: Arc<Gear>,
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
}

#[derive(Debug)]
pub enum Msg {
    /// Tell: start all children, in order. The first message.
    Start,
    /// Tell: start a failed child again. From a timer.
    Revive(Child),
    /// Tell: still there? From a timer.
    Tick,
    /// Ask: does every child run? The answer itself shows that the root handles its messages.
    Ask { reply: RpcReplyPort<bool> },
    /// Ask: drain everything; answered when the ledger is closed.
    Drain { plan: DrainPlan, reply: RpcReplyPort<()> },
}

/// Sent to itself; the watchdog will rest on it.
const TICK: Duration = Duration::from_secs(1);

/// Starts the root. Its escalations come through `escalations`; the caller ends the process.
pub async fn start(
    parts: Parts,
    escalations: mpsc::UnboundedSender<Escalation>,
) -> Result<(ActorRef<Msg>, tokio::task::JoinHandle<()>), SpawnErr> {
    let (root, join) = Actor::spawn(Some("root".into()), Root, (parts, escalations)).await?;
    root.cast(Msg::Start).map_err(|error| SpawnErr::StartupFailed(error.into()))?;
    Ok((root, join))
}

struct Root;

struct State {
    parts: Parts,
    escalations: mpsc::UnboundedSender<Escalation>,
    children: Vec<Slot>,
    draining: bool,
}

struct Slot {
    child: Child,
    actor: Option<ActorCell>,
    history: History,
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
        let slot = |child| Slot { child, actor: None, history: History::default() };
        let children = Child::START_ORDER.map(slot).into();
        Ok(State { parts, escalations, children, draining: false })
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Start => {
                for child in Child::START_ORDER {
                    state.start_child(child, &me).await;
                }
            }
            Msg::Revive(child) => state.start_child(child, &me).await,
            Msg::Tick => {
                failpoint::hit(Point::RootTick);
                me.send_after(TICK, || Msg::Tick);
            }
            Msg::Ask { reply } => {
                let all_run = state.children.iter().all(|slot| slot.actor.is_some());
                let _ = reply.send(all_run); // Whoever asked may have stopped waiting.
            }
            Msg::Drain { plan, reply } => {
                state.drain(plan).await;
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
        let (cell, detail) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                (cell, reason.unwrap_or_else(|| "it stopped unasked".into()))
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        let is_it = |slot: &&Slot| slot.actor.as_ref().is_some_and(|actor| actor.get_id() == cell.get_id());
        if let Some(child) = state.children.iter().find(is_it).map(|slot| slot.child) {
            state.child_failed(child, detail, &me);
        }
        Ok(())
    }
}

impl State {
    fn slot(&mut self, child: Child) -> &mut Slot {
        let at = self.children.iter().position(|slot| slot.child == child);
        &mut self.children[at.expect("every child has a slot")]
    }

    /// A start that fails counts like a run that failed.
    async fn start_child(&mut self, child: Child, me: &ActorRef<Msg>) {
        if self.draining || self.slot(child).actor.is_some() {
            return;
        }
        match self.spawn(child, me.get_cell()).await {
            Ok(cell) => self.slot(child).actor = Some(cell),
            Err(error) => self.child_failed(child, error.to_string(), me),
        }
    }

    async fn spawn(&mut self, child: Child, root: ActorCell) -> Result<ActorCell, SpawnErr> {
        let parts = &mut self.parts;
        match child {
            Child::Ledger => {
                let gone = || SpawnErr::StartupFailed("the store is gone with the last ledger".into());
                parts
                    .ledger
                    .start(
                        parts
                            .store
                            .get_mut()
                            .unwrap_or_else(PoisonError::into_inner)
                            .take()
                            .ok_or_else(gone)?,
                        root,
                    )
                    .await
            }
            Child::Sender => parts.webhook.start(root).await,
            Child::Scrapers => parts.pool.start(Arc::clone(&parts.gear), root).await,
            Child::Batches => parts.batches.start(parts.batches_arguments.clone(), root).await,
            Child::Ingress => {
                let closed = || SpawnErr::StartupFailed("the listener is closed".into());
                parts.ingress.start(parts.listener.clone().ok_or_else(closed)?, root).await
            }
        }
    }

    fn child_failed(&mut self, child: Child, detail: String, me: &ActorRef<Msg>) {
        if self.draining {
            return;
        }
        let slot = self.slot(child);
        slot.actor = None;
        let decision = match child.on_failure() {
            OnFailure::Escalate => Decision::Escalate,
            OnFailure::Restart(intensity) => slot.history.on_failure(intensity, Instant::now()),
        };
        let failures = slot.history.failures().max(1);
        match decision {
            Decision::Restart { after } => {
                Event::ActorRestarted { actor: child.name(), failures, detail: &detail }.emit();
                me.send_after(after, move || Msg::Revive(child));
            }
            Decision::Escalate => {
                Event::ActorEscalated { actor: child.name(), failures, detail: &detail }.emit();
                // Nobody listens only when the process is ending already.
                let _ = self.escalations.send(Escalation { child: child.name(), detail });
            }
        }
    }

    /// In reverse order of start; visits and coordinators end together, since each waits for the other.
    async fn drain(&mut self, plan: DrainPlan) {
        self.draining = true;
        self.parts.listener = None; // Who connects from now on is refused, or waits in the kernel for the next process.
        let parts = &self.parts;
        let ingress = parts.ingress.drain(plan.ingress);
        let visits = async {
            let scrapers = parts.scrapers.drain(plan.visits);
            let coordinators = tokio::time::timeout_at(plan.batches, parts.batches_handle.drain());
            let (_, coordinators) =
                tokio::join!(tokio::time::timeout_at(plan.batches, scrapers), coordinators);
            if coordinators.is_err() {
                Event::ActorKilled { actor: Child::Batches.name() }.emit();
            }
        };
        tokio::join!(ingress, visits);
        parts.webhook_handle.drain(plan.webhooks).await;
        for child in Child::START_ORDER.into_iter().rev() {
            self.stop(child).await;
        }
    }

    async fn stop(&mut self, child: Child) {
        /// A drained child has nothing left to do but to return.
        const STOP_WITHIN: Duration = Duration::from_secs(2);
        let Some(actor) = self.slot(child).actor.take() else { return };
        actor.stop(None);
        if actor.wait(Some(STOP_WITHIN)).await.is_err() {
            Event::ActorKilled { actor: child.name() }.emit();
            actor.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_ledger_always_escalates_and_no_other_does_at_once() {
        for child in Child::START_ORDER {
            let escalates = child.on_failure() == OnFailure::Escalate;
            assert_eq!(escalates, child == Child::Ledger, "{}", child.name());
        }
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
