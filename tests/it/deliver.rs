//! Every outcome reaches its receiver, whatever the receiver does meanwhile.

use std::time::Duration;

use glaneur_kit::receiver::{Answer, Behaviour};

use crate::support::{LONG, REAL, Stage, accepted, batch};

async fn delivers_through(behaviour: impl Into<Behaviour>) {
    let stage = Stage::real_batch().set("webhooks", "timeout", "1s");
    stage.receiver.behave(behaviour);
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    stage.finished(8).await;
    for (id, seen) in stage.receiver.by_webhook_id() {
        assert!(seen.iter().all(|one| one.body == seen[0].body), "{id}: the same body at each attempt");
    }
}

#[tokio::test]
async fn a_receiver_that_resets_gets_everything() {
    delivers_through(Behaviour::script((0..6).map(|_| Answer::Reset))).await;
}

#[tokio::test]
async fn a_receiver_that_hangs_gets_everything() {
    delivers_through(Behaviour::script((0..4).map(|_| Answer::Hang))).await;
}

#[tokio::test]
async fn a_receiver_that_answers_404_html_for_a_while_gets_everything() {
    delivers_through(Behaviour::for_a_while(Answer::NotYet, Duration::from_secs(8))).await;
}

#[tokio::test]
async fn the_start_up_page_is_not_taken_for_a_yes() {
    delivers_through(Behaviour::for_a_while(Answer::StartingUp, Duration::from_secs(2))).await;
}

#[tokio::test]
async fn a_receiver_that_took_it_and_hung_up_is_asked_again_with_the_same_id() {
    let stage = Stage::real_batch();
    stage.receiver.behave_at("/p", Behaviour::script([Answer::TakenThenHungUp]));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    stage.finished(1).await;
    let by_id = stage.receiver.by_webhook_id();
    assert!(by_id.values().any(|seen| seen.len() == 2), "asked again, under its own id");
    assert_eq!(by_id.len(), 2, "one product, one summary");
}

#[tokio::test]
async fn a_receiver_that_is_down_delays_no_other_and_gets_everything_later() {
    let stage = Stage::real_batch();
    let daemon = stage.start().await;
    stage.receiver.stop_listening().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    daemon.wait_for_event("batch_ended", |_| true).await.unwrap();
    daemon.wait_for_event("lane_parked", |event| event["endpoint"] == "product").await.unwrap();
    stage.receiver.listen_again().unwrap();
    stage.finished(8).await;
}

#[tokio::test]
async fn one_refused_body_blocks_nobody() {
    let stage = Stage::real_batch();
    stage.receiver.behave_at(
        "/p",
        Behaviour::decide(|seen| match seen.json()["ean"] == REAL[2] {
            true => Answer::Status(422, "malformed".into()),
            false => Answer::Started,
        }),
    );
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    let summaries = |seen: &[glaneur_kit::receiver::Seen]| {
        seen.iter().any(|seen| glaneur_kit::receiver::is_summary(&seen.json()))
    };
    stage.receiver.wait_until(summaries, LONG).await.unwrap();
    let summary = &stage.receiver.summaries()[0];
    assert_eq!(summary["deliveries"]["taken"], 7);
    assert_eq!(summary["deliveries"]["dead"], 1);
    daemon.wait_for_event("delivery_dead", |event| event["status"] == 422).await.unwrap();
}

#[tokio::test]
async fn a_mistyped_url_once_mended_gets_everything_that_waited() {
    let stage = Stage::real_batch();
    let mistyped = stage.config.clone().product_url("http://127.0.0.1:9/mistyped");
    let mut daemon = glaneur_kit::Daemon::start(crate::support::BINARY, mistyped).await.unwrap();
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    daemon.wait_for_event("batch_ended", |_| true).await.unwrap();
    daemon.wait_for_event("delivery_retried", |event| event["endpoint"] == "product").await.unwrap();
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    daemon.reconfigure(|text| *text = stage.config.to_string()).unwrap();
    daemon.restart().await.unwrap();
    stage.finished(8).await;
}

#[tokio::test]
async fn without_a_product_url_outcomes_are_kept_and_counted_as_unaddressed() {
    let stage = Stage::real_batch().set("webhooks", "product_url", "none");
    let daemon = stage.start().await;
    let answer = accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let summaries = |seen: &[glaneur_kit::receiver::Seen]| !seen.is_empty();
    stage.receiver.wait_until(summaries, LONG).await.unwrap();
    let (_, view) = daemon.get(answer["status_url"].as_str().unwrap()).await.unwrap();
    assert_eq!(view["deliveries"]["unaddressed"], 1, "{view}");
}

/// Its first workflow is gone, and says so; the other path takes everything.
async fn everything_stopped(stage: &Stage) -> glaneur_kit::Daemon {
    stage.receiver.behave_at("/p", Behaviour::decide(|_| Answer::Status(410, String::new())));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    daemon.wait_for_event("batch_ended", |_| true).await.unwrap();
    daemon.wait_for_event("endpoint_stopped", |event| event["endpoint"] == "product").await.unwrap();
    daemon
}

#[tokio::test]
async fn a_gone_endpoint_gets_everything_at_its_other_url_after_a_reload() {
    let stage = Stage::real_batch();
    let mut daemon = everything_stopped(&stage).await;
    let same = daemon.reload(stage.config.clone().circuits(5)).await.unwrap();
    assert_eq!(same["changed"], "tor.circuits");
    let other = stage.config.clone().product_url(stage.receiver.url("/other"));
    assert_eq!(daemon.reload(other).await.unwrap()["event"], "reloaded");
    stage.finished(8).await;
    assert_eq!(daemon.events("endpoint_resumed").len(), 1, "by the other URL, not by the same");
}

#[tokio::test]
async fn a_gone_endpoint_gets_everything_at_its_other_url_after_a_restart_and_nothing_at_the_same() {
    let stage = Stage::real_batch();
    let mut daemon = everything_stopped(&stage).await;
    let tried = stage.receiver.seen().len();
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    daemon.restart().await.unwrap();
    // The summary of an empty batch comes by the same sender, which has looked at everything by then.
    let only_ignored = serde_json::json!({"eans": [], "ignored3400": ["3400930000000"]});
    accepted(daemon.submit(&only_ignored).await.unwrap());
    let summaries = |seen: &[glaneur_kit::receiver::Seen]| {
        seen[tried..].iter().any(|seen| glaneur_kit::receiver::is_summary(&seen.json()))
    };
    stage.receiver.wait_until(summaries, LONG).await.unwrap();
    assert_eq!(stage.receiver.seen().len(), tried + 1, "the same URL stays stopped");
    assert!(daemon.events("endpoint_resumed").is_empty());
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    let other = stage.config.clone().product_url(stage.receiver.url("/other"));
    daemon.reconfigure(|text| *text = other.to_string()).unwrap();
    daemon.restart().await.unwrap();
    daemon.wait_for_event("endpoint_resumed", |event| event["endpoint"] == "product").await.unwrap();
    let products = |seen: &[glaneur_kit::receiver::Seen]| {
        let taken = glaneur_kit::receiver::taken_once(seen);
        taken.iter().filter(|seen| glaneur_kit::receiver::is_product(&seen.json())).count() == 8
    };
    stage.receiver.wait_until(products, LONG).await.unwrap();
}
