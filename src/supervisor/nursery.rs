//! The children of a supervisor: does what [`super::plan`] asks for, with real actors.
//!
//! ractor has neither restart nor order: it tells a supervisor of an end, and kills children mid-message when their parent
//! stops. What is added here is the order, the wait until a child is really gone, and that a start which fails is a failure
//! like any other.

use std::time::Duration;

use ractor::{ActorCell, ActorRef, Message, SpawnErr};
use tokio::time::Instant;

use super::plan::{Action, Input, Plan, Spec, Timer};
use super::policy::Roll;
use crate::telemetry::Event;

/// From the kill to the end: a kill comes through at the next await, so only code that blocks takes longer, and a
/// shutdown does not wait for that.
pub const GONE_WITHIN: Duration = Duration::from_millis(200);

/// Makes the actor of a child.
pub trait Cradle {
    fn spawn(
        &mut self,
        child: usize,
        supervisor: ActorCell,
    ) -> impl Future<Output = Result<ActorCell, SpawnErr>> + Send;
}

/// A child failed past its limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    pub child: usize,
    pub detail: String,
}

#[derive(Debug)]
pub struct Nursery {
    plan: Plan,
    actors: Vec<Option<ActorCell>>,
}

impl Nursery {
    pub fn new(specs: impl IntoIterator<Item = Spec>) -> Self {
        let specs: Vec<Spec> = specs.into_iter().collect();
        Self { actors: specs.iter().map(|_| None).collect(), plan: Plan::new(specs) }
    }

    /// Which child this is the running actor of.
    pub fn child_of(&self, cell: &ActorCell) -> Option<usize> {
        let is_it = |actor: &ActorCell| actor.get_id() == cell.get_id();
        self.actors.iter().position(|actor| actor.as_ref().is_some_and(is_it))
    }

    pub fn all_run(&self) -> bool {
        self.actors.iter().all(Option::is_some)
    }

    /// Does what follows from `input`; returns when all of it is done. `detail` says why a child ended. A timer comes back
    /// to `me` as the message that `later` makes of it.
    pub async fn apply<M: Message>(
        &mut self,
        input: Input,
        detail: &str,
        cradle: &mut (impl Cradle + Send),
        me: &ActorRef<M>,
        later: fn(Timer) -> M,
    ) -> Option<GivenUp> {
        let mut next = Some((input, detail.to_owned()));
        while let Some((input, detail)) = next.take() {
            if let Input::Ended(child, _) = input {
                self.actors[child] = None;
            }
            for action in self.plan.apply(input, Instant::now(), Roll::by_chance()) {
                match action {
                    Action::Stop(child) => self.stop(child).await,
                    Action::Start(child) => {
                        next = Some(match cradle.spawn(child, me.get_cell()).await {
                            Ok(actor) => {
                                self.actors[child] = Some(actor);
                                (Input::Started(child), String::new())
                            }
                            Err(error) => (Input::StartFailed(child), error.to_string()),
                        });
                    }
                    Action::StartLater(timer, after) => {
                        let failures = self.plan.failures(timer.child);
                        let actor = self.plan.spec(timer.child).name;
                        Event::ActorRestarted { actor, failures, detail: &detail }.emit();
                        me.send_after(after, move || later(timer));
                    }
                    Action::Escalate(child) => {
                        let (actor, failures) = (self.plan.spec(child).name, self.plan.failures(child));
                        Event::ActorEscalated { actor, failures, detail: &detail }.emit();
                        return Some(GivenUp { child, detail });
                    }
                }
            }
        }
        None
    }

    /// Asks it to stop, kills it if it does not, and waits until it is gone.
    async fn stop(&mut self, child: usize) {
        let Some(actor) = self.actors[child].take() else { return };
        let Spec { name, stop_within, .. } = *self.plan.spec(child);
        actor.stop(None);
        if actor.wait(Some(stop_within)).await.is_err() {
            Event::ActorKilled { actor: name }.emit();
            actor.kill();
            // A thread that blocks keeps it longer; nothing durable depends on it.
            let _ = actor.wait(Some(GONE_WITHIN)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use ractor::{Actor, ActorProcessingErr, ActorStatus, RpcReplyPort, SupervisionEvent};
    use tokio::sync::{mpsc, oneshot};

    use super::super::plan::{End, Restart, Strategy};
    use super::super::policy::{Backoff, Intensity};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FEW: Intensity = Intensity {
        at_most: 5,
        within: Duration::from_secs(60),
        backoff: Backoff { min: Duration::from_millis(50), max: Duration::from_secs(5) },
    };

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Manner {
        Lives,
        FailsToStart,
        FailsAtOnce,
        /// In the middle of a message, for an hour.
        Busy,
    }

    /// What happened, in order.
    type Told = Arc<Mutex<Vec<String>>>;

    struct Child;

    struct ChildState {
        at: usize,
        told: Told,
    }

    /// Also after a kill, which skips `post_stop`.
    impl Drop for ChildState {
        fn drop(&mut self) {
            self.told.lock().unwrap().push(format!("gone {}", self.at));
        }
    }

    enum ChildMsg {
        Fail,
        Work,
    }

    impl Actor for Child {
        type Msg = ChildMsg;
        type State = ChildState;
        type Arguments = (ChildState, Manner);

        async fn pre_start(
            &self,
            me: ActorRef<ChildMsg>,
            (state, manner): Self::Arguments,
        ) -> Result<ChildState, ActorProcessingErr> {
            match manner {
                Manner::Lives => {}
                Manner::FailsToStart => return Err("it does not start".into()),
                Manner::FailsAtOnce => me.cast(ChildMsg::Fail)?,
                Manner::Busy => me.cast(ChildMsg::Work)?,
            }
            Ok(state)
        }

        async fn handle(
            &self,
            _: ActorRef<ChildMsg>,
            msg: ChildMsg,
            _: &mut ChildState,
        ) -> Result<(), ActorProcessingErr> {
            match msg {
                ChildMsg::Fail => panic!("asked to"),
                ChildMsg::Work => tokio::time::sleep(3_600 * SECOND).await,
            }
            Ok(())
        }
    }

    struct Cots {
        manners: Arc<Mutex<Vec<Manner>>>,
        told: Told,
        made: Vec<ActorCell>,
        cells: mpsc::UnboundedSender<ActorCell>,
    }

    impl Cradle for Cots {
        async fn spawn(&mut self, child: usize, supervisor: ActorCell) -> Result<ActorCell, SpawnErr> {
            self.told.lock().unwrap().push(format!("start {child}"));
            let (told, manner) = (Arc::clone(&self.told), self.manners.lock().unwrap()[child]);
            let arguments = (ChildState { at: child, told }, manner);
            let (actor, _) = Actor::spawn_linked(None, Child, arguments, supervisor).await?;
            self.made.push(actor.get_cell());
            let _ = self.cells.send(actor.get_cell());
            Ok(actor.get_cell())
        }
    }

    struct Parent;

    enum Msg {
        Revive(Timer),
        /// Answered with whether they are all gone.
        Stop(RpcReplyPort<bool>),
    }

    struct ParentState {
        nursery: Nursery,
        cots: Cots,
        given_up: Option<oneshot::Sender<GivenUp>>,
    }

    impl ParentState {
        async fn apply(&mut self, input: Input, me: &ActorRef<Msg>) {
            let given_up = self.nursery.apply(input, "because", &mut self.cots, me, Msg::Revive).await;
            if let Some(given_up) = given_up {
                self.given_up.take().expect("once").send(given_up).unwrap();
            }
        }
    }

    impl Actor for Parent {
        type Msg = Msg;
        type State = ParentState;
        type Arguments = ParentState;

        async fn pre_start(
            &self,
            _: ActorRef<Msg>,
            state: ParentState,
        ) -> Result<ParentState, ActorProcessingErr> {
            Ok(state)
        }

        async fn post_start(
            &self,
            me: ActorRef<Msg>,
            state: &mut ParentState,
        ) -> Result<(), ActorProcessingErr> {
            state.apply(Input::Start, &me).await;
            Ok(())
        }

        async fn handle(
            &self,
            me: ActorRef<Msg>,
            msg: Msg,
            state: &mut ParentState,
        ) -> Result<(), ActorProcessingErr> {
            match msg {
                Msg::Revive(timer) => state.apply(Input::Due(timer), &me).await,
                Msg::Stop(reply) => {
                    state.apply(Input::Stop, &me).await;
                    // Looked at here and now: nobody gets the time to end afterwards.
                    let gone = |cell: &ActorCell| cell.get_status() == ActorStatus::Stopped;
                    reply.send(state.cots.made.iter().all(gone))?;
                }
            }
            Ok(())
        }

        async fn handle_supervisor_evt(
            &self,
            me: ActorRef<Msg>,
            event: SupervisionEvent,
            state: &mut ParentState,
        ) -> Result<(), ActorProcessingErr> {
            let (cell, end) = match event {
                SupervisionEvent::ActorFailed(cell, _) => (cell, End::Failed),
                SupervisionEvent::ActorTerminated(cell, ..) => (cell, End::Normal),
                SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
            };
            if let Some(child) = state.nursery.child_of(&cell) {
                state.apply(Input::Ended(child, end), &me).await;
            }
            Ok(())
        }
    }

    struct Lab {
        parent: ActorRef<Msg>,
        told: Told,
        manners: Arc<Mutex<Vec<Manner>>>,
        cells: mpsc::UnboundedReceiver<ActorCell>,
        given_up: oneshot::Receiver<GivenUp>,
    }

    impl Lab {
        async fn start<const N: usize>(children: [(Strategy, Manner); N]) -> Self {
            let (told, (given_up, gives_up)) = (Told::default(), oneshot::channel());
            let (cell, cells) = mpsc::unbounded_channel();
            let manners = Arc::new(Mutex::new(children.map(|(_, manner)| manner).to_vec()));
            let spec = |(strategy, _)| Spec {
                name: "child",
                restart: Restart::Permanent,
                strategy,
                intensity: FEW,
                stop_within: SECOND,
            };
            let (told_too, manners_too) = (Arc::clone(&told), Arc::clone(&manners));
            let cots = Cots { manners: manners_too, told: told_too, made: Vec::new(), cells: cell };
            let nursery = Nursery::new(children.map(spec));
            let state = ParentState { nursery, cots, given_up: Some(given_up) };
            let (parent, _) = Actor::spawn(None, Parent, state).await.unwrap();
            Self { parent, told, manners, cells, given_up: gives_up }
        }

        fn told(&self) -> Vec<String> {
            self.told.lock().unwrap().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_that_fails_for_ever_at_its_start_or_at_once_costs_a_bounded_number_of_restarts() {
        for manner in [Manner::FailsToStart, Manner::FailsAtOnce] {
            let lab = Lab::start([(Strategy::OneForOne, Manner::Lives), (Strategy::OneForOne, manner)]).await;
            let begin = Instant::now();
            let given_up = tokio::time::timeout(600 * SECOND, lab.given_up).await;
            assert_eq!(given_up.expect("it ends").unwrap().child, 1);
            assert!(begin.elapsed() < 2 * SECOND, "{manner:?}: the window is long not over");
            tokio::time::sleep(3_600 * SECOND).await;
            let told = lab.told.lock().unwrap();
            let starts = |child: &str| told.iter().filter(|what| **what == format!("start {child}")).count();
            assert_eq!((starts("0"), starts("1")), (1, FEW.at_most + 1), "{manner:?}: {told:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rest_for_one_has_those_after_a_failed_child_gone_before_it_starts_again() {
        let lives = Manner::Lives;
        let mut lab = Lab::start([
            (Strategy::OneForOne, lives),
            (Strategy::RestForOne, lives),
            (Strategy::OneForOne, lives),
            (Strategy::OneForOne, lives),
        ])
        .await;
        let mut cells = Vec::new();
        for _ in 0..4 {
            cells.push(lab.cells.recv().await.unwrap());
        }
        // Its next start fails once: the others wait for the one after.
        lab.manners.lock().unwrap()[1] = Manner::FailsToStart;
        cells[1].send_message(ChildMsg::Fail).unwrap();
        tokio::time::sleep(SECOND / 100).await;
        lab.manners.lock().unwrap()[1] = lives;
        tokio::time::sleep(SECOND).await;
        let told = lab.told();
        let expected = [
            "start 0", "start 1", "start 2", "start 3", // in order
            "gone 1", "gone 3", "gone 2", // in reverse
            "start 1", "gone 1", "start 1", "start 2", "start 3",
        ];
        assert_eq!(told, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_is_in_reverse_and_waits_also_for_what_it_had_to_kill() {
        let one = Strategy::OneForOne;
        let mut lab = Lab::start([(one, Manner::Busy), (one, Manner::Lives), (one, Manner::Busy)]).await;
        for _ in 0..3 {
            lab.cells.recv().await.unwrap();
        }
        tokio::time::sleep(SECOND).await;
        let begin = Instant::now();
        let all_gone = ractor::call!(lab.parent, Msg::Stop).unwrap();
        assert!(all_gone, "it answered before they were");
        assert_eq!(begin.elapsed().as_secs(), 2, "their time to stop, and no more");
        assert_eq!(lab.told()[3..], ["gone 2", "gone 1", "gone 0"]);
    }
}
