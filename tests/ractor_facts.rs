//! Facts about ractor that restart and drain rest on. If an update of ractor breaks one, the supervision has to change.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use ractor::rpc::CallResult;
use ractor::{Actor, ActorProcessingErr, ActorRef, ActorStatus, RpcReplyPort, SupervisionEvent};
use tokio::sync::{Notify, mpsc};

#[derive(Clone, Debug, Default)]
struct Seen {
    handled: Arc<AtomicU32>,
    post_stops: Arc<AtomicU32>,
    slow_began: Arc<Notify>,
}

#[derive(Debug)]
enum Msg {
    Work,
    /// Takes a second of paused time.
    Slow,
    Fail,
    /// With this error, of a type of ours.
    FailAs(std::num::ParseIntError),
    Panic,
    PanicWithACall(RpcReplyPort<()>),
}

struct Probe;

impl Actor for Probe {
    type Msg = Msg;
    type State = Seen;
    type Arguments = Seen;

    async fn pre_start(&self, _: ActorRef<Msg>, seen: Seen) -> Result<Seen, ActorProcessingErr> {
        Ok(seen)
    }

    async fn handle(&self, _: ActorRef<Msg>, msg: Msg, seen: &mut Seen) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Work => {
                seen.handled.fetch_add(1, SeqCst);
                Ok(())
            }
            Msg::Slow => {
                seen.slow_began.notify_one();
                tokio::time::sleep(Duration::from_secs(1)).await;
                seen.handled.fetch_add(100, SeqCst);
                Ok(())
            }
            Msg::Fail => Err("failed".into()),
            Msg::FailAs(error) => Err(error.into()),
            Msg::Panic => panic!("asked to"),
            Msg::PanicWithACall(reply) => {
                let _held = reply; // Never answered: what the caller sees is the end of the port.
                panic!("asked to")
            }
        }
    }

    async fn post_stop(&self, _: ActorRef<Msg>, seen: &mut Seen) -> Result<(), ActorProcessingErr> {
        seen.post_stops.fetch_add(1, SeqCst);
        Ok(())
    }
}

/// A supervisor that tells a channel what it heard, and stays.
struct Watch;

impl Actor for Watch {
    type Msg = ();
    type State = mpsc::UnboundedSender<String>;
    type Arguments = mpsc::UnboundedSender<String>;

    async fn pre_start(
        &self,
        _: ActorRef<()>,
        heard: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(heard)
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<()>,
        event: SupervisionEvent,
        heard: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let text = match event {
            SupervisionEvent::ActorFailed(_, error) if error.is::<std::num::ParseIntError>() => {
                "failed, with the error itself".to_owned()
            }
            SupervisionEvent::ActorFailed(..) => {
                let again =
                    Actor::spawn_linked(Some("named".into()), Probe, Seen::default(), me.get_cell()).await;
                format!("failed, name free: {}", again.is_ok())
            }
            SupervisionEvent::ActorTerminated(..) => "terminated".to_owned(),
            SupervisionEvent::ActorStarted(..) | SupervisionEvent::ProcessGroupChanged(..) => return Ok(()),
        };
        heard.send(text).map_err(|_| "nobody listens".into())
    }
}

async fn probe() -> (ActorRef<Msg>, tokio::task::JoinHandle<()>, Seen) {
    let seen = Seen::default();
    let (actor, join) = Actor::spawn(None, Probe, seen.clone()).await.unwrap();
    (actor, join, seen)
}

/// In the middle of a slow message, with five more queued.
async fn busy_probe() -> (ActorRef<Msg>, tokio::task::JoinHandle<()>, Seen) {
    let (actor, join, seen) = probe().await;
    actor.cast(Msg::Slow).unwrap();
    for _ in 0..5 {
        actor.cast(Msg::Work).unwrap();
    }
    seen.slow_began.notified().await;
    (actor, join, seen)
}

fn counts(seen: &Seen) -> (u32, u32) {
    (seen.handled.load(SeqCst), seen.post_stops.load(SeqCst))
}

#[tokio::test(start_paused = true)]
async fn err_and_panic_in_handle_and_kill_all_skip_post_stop() {
    for end in [Msg::Fail, Msg::Panic] {
        let (actor, join, seen) = probe().await;
        actor.cast(end).unwrap();
        join.await.unwrap();
        assert_eq!(counts(&seen), (0, 0));
    }
    let (actor, join, seen) = probe().await;
    actor.kill();
    join.await.unwrap();
    assert_eq!(counts(&seen), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn stop_lets_the_running_handler_finish_and_drops_the_queue() {
    let (actor, join, seen) = busy_probe().await;
    actor.stop(None);
    join.await.unwrap();
    assert_eq!(counts(&seen), (100, 1));
}

#[tokio::test(start_paused = true)]
async fn drain_works_the_queue_off() {
    let (actor, join, seen) = busy_probe().await;
    actor.drain().unwrap();
    join.await.unwrap();
    assert_eq!(counts(&seen), (105, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_drops_the_queue_and_the_pending_call_hears_of_it_at_once() {
    let (actor, join, seen) = probe().await;
    let call = actor.call(Msg::PanicWithACall, None);
    let (result, _) = tokio::join!(call, async { actor.cast(Msg::Work) });
    assert!(matches!(result, Ok(CallResult::SenderError)), "{result:?}");
    join.await.unwrap();
    assert_eq!(counts(&seen), (0, 0));
    assert!(actor.cast(Msg::Work).is_err(), "a later message comes back to its sender");
}

#[tokio::test(start_paused = true)]
async fn a_parent_that_stops_kills_its_children_mid_message_without_post_stop() {
    let (heard, _hears) = mpsc::unbounded_channel();
    let (parent, parent_join) = Actor::spawn(None, Watch, heard).await.unwrap();
    let seen = Seen::default();
    let (child, join) = Actor::spawn_linked(None, Probe, seen.clone(), parent.get_cell()).await.unwrap();
    child.cast(Msg::Slow).unwrap();
    seen.slow_began.notified().await;
    parent.stop(None);
    parent_join.await.unwrap();
    join.await.unwrap();
    assert_eq!(counts(&seen), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_name_of_a_failed_child_is_free_inside_the_event_of_its_failure() {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let (parent, _join) = Actor::spawn(None, Watch, heard).await.unwrap();
    let child =
        Actor::spawn_linked(Some("named".into()), Probe, Seen::default(), parent.get_cell()).await.unwrap().0;
    child.cast(Msg::Panic).unwrap();
    assert_eq!(hears.recv().await.as_deref(), Some("failed, name free: true"));
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_gets_the_very_error_that_its_child_returned() {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let (parent, _join) = Actor::spawn(None, Watch, heard).await.unwrap();
    let child = Actor::spawn_linked(None, Probe, Seen::default(), parent.get_cell()).await.unwrap().0;
    child.cast(Msg::FailAs("x".parse::<u8>().unwrap_err())).unwrap();
    assert_eq!(hears.recv().await.as_deref(), Some("failed, with the error itself"));
}

/// Does not start.
struct Unborn;

impl Actor for Unborn {
    type Msg = ();
    type State = ();
    type Arguments = bool;

    async fn pre_start(&self, _: ActorRef<()>, panics: bool) -> Result<(), ActorProcessingErr> {
        assert!(!panics, "asked to");
        Err("it does not start".into())
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_start_that_fails_only_the_spawner_hears() {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let (parent, _join) = Actor::spawn(None, Watch, heard).await.unwrap();
    for panics in [false, true] {
        let spawned = Actor::spawn_linked(None, Unborn, panics, parent.get_cell()).await;
        assert!(spawned.is_err());
    }
    let child = Actor::spawn_linked(None, Probe, Seen::default(), parent.get_cell()).await.unwrap().0;
    child.stop(None);
    assert_eq!(hears.recv().await.as_deref(), Some("terminated"), "of the third, and nothing before it");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_taken_fails_the_start() {
    let name = || Some("taken".to_owned());
    let (_first, _join) = Actor::spawn(name(), Probe, Seen::default()).await.unwrap();
    assert!(Actor::spawn(name(), Probe, Seen::default()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_interrupt_a_handler_a_kill_does_and_a_wait_sees_the_end() {
    let (actor, _join, seen) = busy_probe().await;
    actor.stop(None);
    let half = Duration::from_millis(500);
    assert!(actor.get_cell().wait(Some(half)).await.is_err(), "it is in the middle of a second");
    assert_eq!(actor.get_status(), ActorStatus::Running);
    actor.kill();
    let before = tokio::time::Instant::now();
    actor.get_cell().wait(Some(half)).await.unwrap();
    assert!(before.elapsed() < half);
    assert_eq!(actor.get_status(), ActorStatus::Stopped);
    assert_eq!(counts(&seen), (0, 0));
    assert!(actor.get_cell().wait(Some(half)).await.is_ok(), "again and again");
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_has_no_bound() {
    let (actor, _join, seen) = busy_probe().await;
    for _ in 0..100_000 {
        actor.cast(Msg::Work).unwrap();
    }
    actor.drain().unwrap();
    actor.get_cell().wait(None).await.unwrap();
    assert_eq!(counts(&seen), (100_105, 1));
}

#[tokio::test(start_paused = true)]
async fn a_timer_of_an_actor_does_not_reach_its_successor() {
    let (actor, join, _) = probe().await;
    let timer = actor.send_after(Duration::from_secs(1), || Msg::Work);
    actor.stop(None);
    join.await.unwrap();
    let (_successor, _join, seen) = probe().await;
    assert!(timer.await.unwrap().is_err(), "it finds nobody");
    assert_eq!(counts(&seen), (0, 0));
}
