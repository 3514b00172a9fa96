//! The sender against a receiver in this process and a real ledger.

mod world;

use std::time::Duration;

use tokio::time::Instant;

pub use self::world::settings;
use self::world::{Reply, World, finished};
use crate::config::HostRule;
use crate::failpoint::Point;
use crate::model::delivery::{DeliveryState, Subject};

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn each_attempt_has_the_same_id_and_body_and_a_fresh_timestamp_and_signature() {
    let world = World::start(|_| ()).await;
    let time = world.time();
    world.receiver.answer(move |seen| {
        // A second passes between two attempts, and nobody waits for it.
        time.skew_ms.fetch_add(1_000, std::sync::atomic::Ordering::SeqCst);
        if seen.count < 3 { Reply::status(500) } else { Reply::ok() }
    });
    let batch = world.batch(1, None).await;
    world.until_all(&batch, DeliveryState::Taken).await;
    let seen = world.receiver.products();
    assert_eq!(seen.len(), 3);
    for pair in seen.windows(2) {
        assert_eq!((&pair[0].id, &pair[0].body), (&pair[1].id, &pair[1].body));
        assert_ne!(pair[0].timestamp, pair[1].timestamp);
        assert_ne!(pair[0].signature, pair[1].signature);
    }
    assert_eq!(seen[0].id, Subject::Product(1).webhook_id(&batch.id));
    assert!(seen[0].signature.starts_with("v1,"));
    assert_eq!(seen[0].content_type, "application/json");
    assert_eq!(seen[0].user_agent, concat!("glaneur/", env!("CARGO_PKG_VERSION")));
    world.end().await;
}

#[tokio::test]
async fn a_receiver_that_hangs_is_asked_again_and_its_late_yes_is_believed() {
    let world = World::start(|settings| settings.timeout = Duration::from_millis(100)).await;
    world.receiver.answer(|seen| if seen.count == 1 { Reply::Hang } else { finished() });
    let batch = world.batch(1, None).await;
    world.until_all(&batch, DeliveryState::Taken).await;
    assert_eq!(world.receiver.products().len(), 2);
    world.end().await;
}

#[tokio::test]
async fn finished_without_an_attempt_unseen_is_the_end() {
    let world = World::start(|_| ()).await;
    world.receiver.answer(|_| finished());
    let batch = world.batch(1, None).await;
    world.until_all(&batch, DeliveryState::Dead).await;
    world.end().await;
}

#[tokio::test]
async fn a_receiver_that_resets_answers_404_or_starts_up_gets_everything_later() {
    for bad in
        [Reply::Reset, Reply::html(404, "Cannot POST"), Reply::html(200, "n8n is starting up. Please wait")]
    {
        let world = World::start(|_| ()).await;
        world.receiver.answer(move |seen| if seen.total <= 9 { bad.clone() } else { Reply::ok() });
        let batch = world.batch(4, None).await;
        world.until_all(&batch, DeliveryState::Taken).await;
        assert!(world.receiver.most_at_once_per_id() == 1);
        world.end().await;
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_until_someone_listens() {
    let world = World::start(|_| ()).await;
    let url = world.receiver.url.clone();
    world.reload(|settings| settings.product_url = Some("http://127.0.0.1:1/".parse().unwrap()));
    let batch = world.batch(3, None).await;
    world
        .until("an attempt failed", async || world.deliveries(&batch).await.iter().any(|d| d.attempts > 1))
        .await;
    assert!(
        world
            .deliveries(&batch)
            .await
            .iter()
            .any(|d| { d.last_detail.as_deref().is_some_and(|detail| detail.contains("no connection")) })
    );
    world.reload(|settings| settings.product_url = Some(url.clone()));
    world.until_all(&batch, DeliveryState::Taken).await;
    world.end().await;
}

#[tokio::test]
async fn a_body_that_is_refused_does_not_block_its_lane() {
    let world = World::start(|settings| settings.concurrency = 1).await;
    world.receiver.answer(|seen| {
        if seen.id.ends_with("_2") {
            Reply::json(422, r#"{"message":"Failed to parse"}"#)
        } else {
            Reply::ok()
        }
    });
    let batch = world.batch(5, None).await;
    world
        .until("all are over", async || {
            world.deliveries(&batch).await.iter().all(|delivery| !delivery.state.is_open())
        })
        .await;
    let deliveries = world.deliveries(&batch).await;
    assert_eq!(deliveries[1].state, DeliveryState::Dead);
    assert!(deliveries[1].last_detail.as_deref().unwrap_or_default().contains("Failed to parse"));
    assert_eq!(deliveries.iter().filter(|d| d.state == DeliveryState::Taken).count(), 4);
    assert_eq!(world.receiver.products().len(), 5);
    world.end().await;
}

#[tokio::test]
async fn a_body_that_fails_among_others_that_are_taken_backs_off_alone() {
    let world = World::start(|settings| settings.concurrency = 1).await;
    world.receiver.answer(|seen| if seen.id.ends_with("_1") { Reply::status(500) } else { Reply::ok() });
    let batch = world.batch(20, None).await;
    world
        .until("19 are taken", async || {
            world.deliveries(&batch).await.iter().filter(|d| d.state == DeliveryState::Taken).count() == 19
        })
        .await;
    assert_eq!(world.deliveries(&batch).await[0].state, DeliveryState::Waiting);
    world.end().await;
}

#[tokio::test]
async fn a_parked_lane_probes_one_at_a_time_and_resumes_oldest_first() {
    let world = World::start(|settings| {
        settings.concurrency = 4;
        settings.park_after = 4;
    })
    .await;
    let (open, receiver_open) = tokio::sync::watch::channel(false);
    world.receiver.answer(move |_| if *receiver_open.borrow() { Reply::ok() } else { Reply::status(503) });
    let batch = world.batch(30, None).await;
    world.until("eight probes came", async || world.receiver.seen().len() >= 16).await;
    // What was in flight when the lane parked is over after the first eight.
    let probes = world.receiver.seen().split_off(8);
    assert!(probes.iter().all(|seen| seen.at_once == 1), "one at a time");
    let ids: std::collections::BTreeSet<_> = probes.iter().map(|seen| seen.id.clone()).collect();
    assert_eq!(ids.len(), probes.len(), "each with another delivery");
    open.send_replace(true);
    world.until_all(&batch, DeliveryState::Taken).await;
    let first_seen = world.receiver.first_seen_indexes();
    let late = first_seen.iter().enumerate().filter(|(at, index)| **index as usize > at + 4).count();
    assert_eq!((first_seen.len(), late), (30, 0), "in order, but for the window: {first_seen:?}");
    world.end().await;
}

#[tokio::test]
async fn one_dead_endpoint_delays_no_other() {
    let world = World::start(|settings| settings.timeout = LONG).await;
    world.receiver.answer(|seen| if seen.path == "/dead" { Reply::Hang } else { Reply::ok() });
    let dead = world.batch(40, Some("/dead")).await;
    world.until("the dead one has its window full", async || world.receiver.seen().len() >= 4).await;
    let alive = world.batch(40, None).await;
    world.until_all(&alive, DeliveryState::Taken).await;
    assert_eq!(world.receiver.seen().iter().filter(|seen| seen.path == "/dead").count(), 4, "the window");
    assert!(world.deliveries(&dead).await.iter().all(|delivery| delivery.attempts == 0));
    world.end().await;
}

#[tokio::test]
async fn a_panic_of_a_lane_costs_nothing_else() {
    for point in [Point::LaneWake, Point::LaneAttempt, Point::LaneAnswered, Point::LaneRecorded] {
        let world = World::idle(|_| ()).await;
        let batch = world.batch(8, Some("/trapped")).await;
        let no = (point != Point::LaneWake).then_some(world.deliveries(&batch).await[4].no);
        world.trap().set(Some(point), no, 2);
        let other = world.batch(8, None).await;
        world.begin().await;
        world.until_all(&batch, DeliveryState::Taken).await;
        world.until_all(&other, DeliveryState::Taken).await;
        assert_eq!(world.receiver.most_at_once_per_id(), 1);
        let others = world.receiver.products().len();
        assert_eq!(others, 8, "the other lane saw nothing of it at {point:?}");
        world.end().await;
    }
}

#[tokio::test]
async fn a_delivery_that_panics_its_lane_too_often_is_dead_and_the_rest_goes_on() {
    for point in [Some(Point::LaneAnswered), None] {
        let world = World::idle(|_| ()).await;
        let batch = world.batch(8, None).await;
        world.trap().set(point, Some(world.deliveries(&batch).await[4].no), 100);
        world.begin().await;
        world
            .until("all are over", async || {
                world.deliveries(&batch).await.iter().all(|delivery| !delivery.state.is_open())
            })
            .await;
        let deliveries = world.deliveries(&batch).await;
        assert_eq!(deliveries[4].state, DeliveryState::Dead);
        assert!(deliveries[4].last_detail.as_deref().unwrap_or_default().contains("panicked 3 times"));
        assert_eq!(deliveries.iter().filter(|d| d.state == DeliveryState::Taken).count(), 7);
        world.end().await;
    }
}

#[tokio::test]
async fn a_sender_that_dies_is_started_again_and_never_sends_one_delivery_twice_at_a_time() {
    let world = World::start(|settings| settings.timeout = Duration::from_millis(300)).await;
    world.receiver.answer(|seen| if seen.count == 1 { Reply::Hang } else { Reply::ok() });
    let batch = world.batch(6, None).await;
    world.until("the window is full", async || world.receiver.seen().len() >= 4).await;
    world.kill_sender().await;
    world.begin().await;
    world.until_all(&batch, DeliveryState::Taken).await;
    world.end().await;
}

#[tokio::test]
async fn a_drain_cuts_at_its_deadline_and_records_nothing() {
    let world = World::start(|settings| settings.timeout = LONG).await;
    world.receiver.answer(|_| Reply::Hang);
    let batch = world.batch(6, None).await;
    world.until("the window is full", async || world.receiver.seen().len() >= 4).await;
    let begin = Instant::now();
    world.handle.drain(begin + Duration::from_millis(200)).await;
    assert!(begin.elapsed() >= Duration::from_millis(200) && begin.elapsed() < Duration::from_secs(5));
    for delivery in world.deliveries(&batch).await {
        assert_eq!((delivery.state, delivery.attempts), (DeliveryState::Waiting, 0));
    }
    // Nobody is left to send or to record.
    world.until_sender_is_dead().await;
    assert_eq!(world.receiver.seen().len(), 4);
    world.end().await;
}

#[tokio::test]
async fn a_drain_lets_what_is_in_flight_end_and_begins_nothing() {
    let world = World::start(|settings| settings.timeout = LONG).await;
    let (open, receiver_open) = tokio::sync::watch::channel(false);
    world.receiver.answer(move |_| Reply::When(receiver_open.clone()));
    let batch = world.batch(6, None).await;
    world.until("the window is full", async || world.receiver.seen().len() >= 4).await;
    let handle = world.handle.clone();
    let drain = tokio::spawn(async move { handle.drain(Instant::now() + LONG).await });
    world.until_passed_so_far(Point::LaneDrain, 1).await;
    let begin = Instant::now();
    open.send_replace(true);
    drain.await.unwrap();
    assert!(begin.elapsed() < LONG / 2, "over when the last of them is over");
    let states: Vec<_> = world.deliveries(&batch).await.iter().map(|delivery| delivery.state).collect();
    assert_eq!(states.iter().filter(|state| **state == DeliveryState::Taken).count(), 4, "{states:?}");
    assert_eq!(world.receiver.seen().len(), 4);
    world.end().await;
}

#[tokio::test]
async fn a_record_that_finds_the_ledger_busy_is_written_later_and_nothing_is_sent_again_meanwhile() {
    let world = World::idle(|_| ()).await;
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let ledger = world.ledger.clone();
    let batch = world.batch(1, None).await;
    let blocker = tokio::spawn(async move {
        let blocked = ledger.write(move |_| Ok(held.lock().unwrap().recv().is_err())).await;
        assert_eq!(blocked, Ok(true));
    });
    world
        .until("the writer is blocked and its queue is full", async || {
            // What is not answered in time stays in the queue.
            let write = world.ledger.write(|_| Ok(()));
            let answer = tokio::time::timeout(Duration::from_millis(5), write).await;
            matches!(answer, Ok(Err(crate::ledger::LedgerError::Busy)))
        })
        .await;
    world.begin().await;
    world.until("it was sent", async || world.receiver.seen().len() == 1).await;
    world.until_passed(Point::LaneWake, 2).await;
    assert_eq!(world.receiver.seen().len(), 1);
    drop(hold);
    blocker.await.unwrap();
    world.until_all(&batch, DeliveryState::Taken).await;
    assert_eq!(world.receiver.products().len(), 1);
    world.end().await;
}

#[tokio::test]
async fn what_has_nowhere_to_go_is_withheld_and_sent_when_it_has() {
    let world = World::start(|settings| settings.allowed_hosts.clear()).await;
    let url = world.receiver.url.clone();
    world.reload(|settings| settings.product_url = None);
    let named = world.batch(2, None).await;
    let own = world.batch(2, Some("/own?signature=secret")).await;
    world.until_all(&named, DeliveryState::Withheld).await;
    world.until_all(&own, DeliveryState::Withheld).await;
    let detail = world.deliveries(&own).await[0].last_detail.clone().unwrap_or_default();
    assert!(detail.contains("webhooks.hosts") && !detail.contains("secret"), "{detail}");
    assert!(world.receiver.seen().is_empty());
    world.reload(|settings| settings.product_url = Some(url.clone()));
    world.until_all(&named, DeliveryState::Taken).await;
    world.reload(|settings| settings.allowed_hosts = vec![HostRule::parse("127.0.0.1").unwrap()]);
    world.until_all(&own, DeliveryState::Taken).await;
    assert!(world.receiver.seen().iter().any(|seen| seen.path == "/own?signature=secret"));
    assert!(world.deliveries(&own).await.iter().all(|delivery| delivery.attempts == 1));
    world.end().await;
}

#[tokio::test]
async fn an_endpoint_that_is_gone_stops_its_lane_and_no_other() {
    let world = World::start(|settings| settings.concurrency = 1).await;
    world.receiver.answer(|seen| if seen.path == "/gone" { Reply::status(410) } else { Reply::ok() });
    let gone = world.batch(5, Some("/gone")).await;
    let other = world.batch(5, None).await;
    world.until_all(&gone, DeliveryState::Stopped).await;
    world.until_all(&other, DeliveryState::Taken).await;
    assert_eq!(world.receiver.seen().iter().filter(|seen| seen.path == "/gone").count(), 1);
    world.end().await;
}

#[tokio::test]
async fn an_endpoint_that_is_gone_sends_again_once_it_has_another_url() {
    let world = World::start(|_| ()).await;
    world.receiver.answer(|seen| if seen.path == "/product" { Reply::status(410) } else { Reply::ok() });
    let batch = world.batch(5, None).await;
    world.until_all(&batch, DeliveryState::Stopped).await;
    let sent = world.receiver.products().len();
    world.reload(|settings| settings.patience += Duration::from_secs(1));
    world.until_looked(3).await;
    assert_eq!(world.receiver.products().len(), sent, "the same URL is left alone");
    let moved = world.receiver.url.join("/moved").unwrap();
    world.reload(|settings| settings.product_url = Some(moved));
    world.until_all(&batch, DeliveryState::Taken).await;
    let seen = world.receiver.seen();
    let mut ids: Vec<_> = seen.iter().filter(|seen| seen.path == "/moved").map(|seen| &seen.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5, "{seen:?}");
    world.end().await;
}

#[tokio::test]
async fn what_is_withheld_by_the_settings_of_before_a_change_is_sent_by_those_after_it() {
    let world = World::start(|settings| settings.product_url = None).await;
    // The chores of the start are over.
    world.until_looked(3).await;
    let batch = world.batch(1, None).await;
    // At once, so before the record of an attempt: it waits for the writer, and the change comes in between.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let ledger = world.ledger.clone();
    let hold = tokio::spawn(async move { ledger.write(move |_| Ok(held.recv().is_err())).await });
    world.until_passed_so_far(Point::LaneAnswered, 1).await;
    let url = world.receiver.url.clone();
    world.reload(|settings| settings.product_url = Some(url));
    world.until_looked(3).await;
    drop(release);
    assert!(hold.await.unwrap().unwrap(), "held until now");
    world.until_all(&batch, DeliveryState::Taken).await;
    world.end().await;
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let world = World::start(|_| ()).await;
    world.receiver.answer(|seen| if seen.count == 1 { Reply::redirect("/elsewhere") } else { Reply::ok() });
    let batch = world.batch(1, None).await;
    world.until_all(&batch, DeliveryState::Taken).await;
    assert!(world.receiver.seen().iter().all(|seen| seen.path != "/elsewhere"));
    world.end().await;
}

#[tokio::test]
async fn patience_ends_a_delivery_only_by_its_own_failed_attempt() {
    let world = World::start(|settings| settings.patience = Duration::from_millis(300)).await;
    world.receiver.answer(|_| Reply::status(500));
    let batch = world.batch(1, None).await;
    world.until_all(&batch, DeliveryState::Dead).await;
    let delivery = world.deliveries(&batch).await.remove(0);
    assert!(delivery.last_detail.unwrap_or_default().starts_with("out of patience"));
    assert!(delivery.attempts >= 2);
    assert_eq!(delivery.attempts as usize, world.receiver.products().len());
    world.end().await;
}

#[tokio::test]
async fn the_summary_follows_the_last_product_or_goes_out_after_its_wait() {
    let world = World::start(|settings| settings.concurrency = 1).await;
    let batch = world.batch(3, None).await;
    world
        .until("the summary came", async || world.receiver.seen().iter().any(|s| s.path == "/summary"))
        .await;
    let paths: Vec<_> = world.receiver.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths, ["/product", "/product", "/product", "/summary"]);
    world.until_all(&batch, DeliveryState::Taken).await;

    world.receiver.answer(|seen| if seen.path == "/product" { Reply::status(410) } else { Reply::ok() });
    let stopped = world.batch(3, None).await;
    world.until_all(&stopped, DeliveryState::Stopped).await;
    world.reload(|settings| settings.summary_wait = Duration::ZERO);
    world
        .until("it names what is open", async || {
            world
                .receiver
                .seen()
                .last()
                .is_some_and(|seen| seen.path == "/summary" && seen.body.contains(r#""open":3"#))
        })
        .await;
    world.end().await;
}

#[tokio::test]
async fn no_delivery_waits_longer_than_its_interval_when_the_clock_jumps() {
    let hour = Duration::from_secs(3_600);
    let world = World::start(|settings| (settings.backoff_min, settings.backoff_max) = (hour, hour)).await;
    world.receiver.answer(|_| Reply::status(500));
    let batch = world.batch(1, None).await;
    let attempts = async || world.deliveries(&batch).await[0].attempts;
    let waits_ms = async || world.deliveries(&batch).await[0].due_at_ms - world.time().now().wall_ms;
    world.until("it failed once", async || attempts().await == 1).await;
    let day_ms = 86_400_000;
    world.time().skew_ms.fetch_add(day_ms, std::sync::atomic::Ordering::SeqCst);
    world.until("ahead: it is due early", async || attempts().await == 2).await;
    // Two jumps between two looks are one to the sender.
    world.until_looked(2).await;
    world.time().skew_ms.fetch_sub(2 * day_ms, std::sync::atomic::Ordering::SeqCst);
    assert!(waits_ms().await > day_ms);
    world.until("back: its due time follows", async || waits_ms().await <= 3_600_000).await;
    assert_eq!(attempts().await, 2);
    world.end().await;
}

#[tokio::test]
async fn a_jump_of_the_clock_sends_no_summary_early_and_keeps_none_back() {
    let day_ms = 86_400_000;
    let world = World::start(|settings| settings.concurrency = 1).await;
    world.receiver.answer(|seen| if seen.path == "/product" { Reply::status(410) } else { Reply::ok() });
    let summaries = || world.receiver.seen().into_iter().filter(|seen| seen.path == "/summary").count();
    let batch = world.batch(1, None).await;
    world.until_all(&batch, DeliveryState::Stopped).await;
    world.until_looked(2).await;
    world.time().skew_ms.fetch_add(day_ms, std::sync::atomic::Ordering::SeqCst);
    // The first of these looks finds the jump and starts the chores; a second lies between two looks.
    world.until_looked(4).await;
    assert_eq!(summaries(), 0, "ahead: its wait of 15 minutes has only begun");
    // Two jumps between two looks would be one to the sender.
    world.time().skew_ms.fetch_sub(2 * day_ms, std::sync::atomic::Ordering::SeqCst);
    world.until_looked(2).await;
    world.reload(|settings| settings.summary_wait = Duration::from_millis(1));
    world.until("back: it waits for nothing but its time", async || summaries() == 1).await;
    world.end().await;
}

#[tokio::test]
async fn a_due_time_of_another_clock_is_sent_once_and_then_keeps_its_interval() {
    let hour = Duration::from_secs(3_600);
    let world = World::idle(|settings| (settings.backoff_min, settings.backoff_max) = (hour, hour)).await;
    world.receiver.answer(|_| Reply::status(500));
    // The clock was years ahead when the batch came, and was put right while the daemon was down.
    let years_ms = 5 * 365 * 86_400_000;
    world.time().skew_ms.fetch_add(years_ms, std::sync::atomic::Ordering::SeqCst);
    let batch = world.batch(3, None).await;
    world.time().skew_ms.fetch_sub(years_ms, std::sync::atomic::Ordering::SeqCst);
    world.begin().await;
    world
        .until("each was sent", async || world.deliveries(&batch).await.iter().all(|d| d.attempts > 0))
        .await;
    world.until_looked(2).await;
    assert_eq!(world.receiver.products().len(), 3);
    world.end().await;
}
