//! Any actor may panic at any message: it costs at most one attempt of one visit, and the tree is whole again.

use std::collections::BTreeMap;

use glaneur::exit::Exit;
use glaneur::failpoint::Point;
use glaneur_kit::receiver::{Answer, is_product, is_summary, taken_once};
use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{Daemon, Gate, ShopKind};
use serde_json::{Value, json};

use crate::support::{BINARY, LONG, REAL, Stage, accepted, stocked};

const PRODUCTS: usize = 3;

fn stage() -> Stage {
    Stage::direct(stocked(&REAL))
}

async fn start(stage: &Stage, fail: &str) -> Daemon {
    let setup = Daemon::builder(BINARY).config(stage.config.clone()).env("GLANEUR_FAIL", fail);
    setup.start().await.unwrap()
}

fn batch(n: usize) -> Value {
    let eans: Vec<Value> = REAL[..PRODUCTS].iter().map(|ean| json!({"primary": ean})).collect();
    json!({"eans": eans, "metadata": {"n": n}})
}

/// Submits until it is accepted: a connection may be what the daemon panics at.
async fn submit(daemon: &mut Daemon, body: &Value) -> Value {
    loop {
        match daemon.submit(body).await {
            Ok(answer) => return accepted(answer),
            Err(trouble) => assert!(daemon.is_running(), "it has ended: {trouble}"),
        }
    }
}

/// As [`submit`], to a daemon that may end before it accepts; until it does, it may say that nothing was stored.
async fn submit_or_see_it_end(daemon: &mut Daemon, body: &Value) -> Option<Value> {
    loop {
        match daemon.submit(body).await {
            Ok((503, _)) => {}
            Ok(answer) => return Some(accepted(answer)),
            Err(_) if daemon.is_running() => {}
            Err(_) => return None,
        }
    }
}

/// Waits until the receiver has taken every product and the summary of this batch, by its metadata.
async fn finished(stage: &Stage, n: usize) {
    let over = |seen: &[glaneur_kit::receiver::Seen]| {
        let bodies: Vec<_> = taken_once(seen).iter().map(|seen| seen.json()).collect();
        let ours = || bodies.iter().filter(|body| body["metadata"]["n"] == n);
        ours().filter(|body| is_product(body)).count() == PRODUCTS && ours().any(is_summary)
    };
    stage.receiver.wait_until(over, LONG).await.unwrap();
}

/// Everything that was accepted came to its end, once, and well.
async fn check(stage: &Stage, daemon: &Daemon, batches: &[Value]) {
    let by_id = stage.receiver.by_webhook_id();
    assert_eq!(by_id.len(), batches.len() * (PRODUCTS + 1), "one id for each product and summary");
    for (id, seen) in &by_id {
        assert!(seen.iter().all(|one| one.body == seen[0].body), "{id}: one body");
    }
    for answer in batches {
        let (status, view) = daemon.get(answer["status_url"].as_str().unwrap()).await.unwrap();
        assert_eq!(status, 200);
        assert_eq!(view["counts"]["found"], PRODUCTS, "{view}");
        assert_eq!(view["deliveries"]["taken"], PRODUCTS, "{view}");
    }
    assert!(daemon.events_of_all_runs("deaths_charged").is_empty(), "an escalation is nobody's fault");
    for event in ["claim_stranded", "conservation_broken", "batch_set_aside", "ledger_command_refused"] {
        assert!(daemon.events_of_all_runs(event).is_empty(), "{event}");
    }
    let (status, ready) = daemon.get("/readyz").await.unwrap();
    assert_eq!(status, 200, "the tree is whole: {ready}");
}

/// Visits whose attempt number tells that an attempt was charged.
fn attempts_lost(daemon: &Daemon) -> usize {
    let mut attempts = BTreeMap::<_, u64>::new();
    for event in daemon.events_of_all_runs("visit_started") {
        let visit = ["batch_id", "index", "site"].map(|key| event[key].to_string());
        let attempt = attempts.entry(visit).or_default();
        *attempt = event["attempt"].as_u64().unwrap().max(*attempt);
    }
    attempts.values().map(|attempt| usize::try_from(*attempt).unwrap() - 1).sum()
}

fn escalates(point: Point) -> bool {
    matches!(point, Point::LedgerWrite | Point::LedgerCommit | Point::LedgerCommitted | Point::RootTick)
}

fn panics(daemon: &Daemon, point: Point) -> usize {
    let detail = format!("fail point {}", point.name());
    daemon.events_of_all_runs("panicked").iter().filter(|event| event["detail"] == *detail).count()
}

#[tokio::test]
async fn an_actor_that_panics_at_any_message_costs_at_most_one_attempt() {
    for point in Point::ALL {
        // The sixth write comes when visits are in flight.
        let times = if point == Point::LedgerWrite { &[1, 2, 6][..] } else { &[1, 2] };
        for &nth in times {
            let begin = std::time::Instant::now();
            println!("{} @{nth}", point.name());
            match point {
                // No actor runs yet.
                Point::LedgerTakeOver => {}
                Point::LaneDrain => panic_in_the_drain(nth).await,
                _ if escalates(point) => panic_that_ends_the_process(point, nth).await,
                _ => panic_that_is_survived(point, nth).await,
            }
            println!("{} @{nth}: {:?}", point.name(), begin.elapsed());
        }
    }
}

async fn panic_that_is_survived(point: Point, nth: u32) {
    let stage = stage();
    let gate = Gate::closed();
    // Some points are passed once a second: the first batch waits for them with visits in flight.
    let by_time = matches!(
        point,
        Point::CoordinatorTick | Point::ScrapersTick | Point::SenderTick | Point::BatchesTick
    );
    if by_time {
        stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    }
    let mut daemon = start(&stage, &format!("{}=panic@{nth}", point.name())).await;
    let mut batches = Vec::new();
    for n in 0..3 {
        batches.push(submit(&mut daemon, &batch(n)).await);
        if by_time && n == 0 {
            let detail = format!("fail point {}", point.name());
            daemon.wait_for_event("panicked", |event| event["detail"] == *detail).await.unwrap();
            gate.open();
        }
        finished(&stage, n).await;
    }
    assert_eq!(panics(&daemon, point), 1, "{} is reached, and fails once", point.name());
    let expected = usize::from(point == Point::ScraperFetched);
    assert_eq!(
        attempts_lost(&daemon),
        expected,
        "{} @{nth}: only the hit visit lost an attempt",
        point.name()
    );
    check(&stage, &daemon, &batches).await;
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    daemon.set_env("GLANEUR_FAIL", "");
    daemon.restart().await.unwrap();
    check(&stage, &daemon, &batches).await;
}

async fn panic_that_ends_the_process(point: Point, nth: u32) {
    let stage = stage();
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    let mut daemon = start(&stage, &format!("{}=panic@{nth}", point.name())).await;
    let before = submit_or_see_it_end(&mut daemon, &batch(0)).await;
    let exit = daemon.wait_exit().await.unwrap();
    assert_eq!(exit, i32::from(Exit::Escalated.code()), "{} @{nth}", point.name());
    assert_eq!(panics(&daemon, point), 1, "{} is reached", point.name());
    daemon.set_env("GLANEUR_FAIL", "");
    gate.open();
    daemon.restart().await.unwrap();
    let after = submit(&mut daemon, &batch(0)).await;
    if let Some(before) = before {
        assert_eq!(before["batch_id"], after["batch_id"], "what was accepted is there");
    }
    finished(&stage, 0).await;
    let second = submit(&mut daemon, &batch(1)).await;
    finished(&stage, 1).await;
    assert_eq!(attempts_lost(&daemon), 0);
    check(&stage, &daemon, &[after, second]).await;
}

/// At the second lane to be drained, or the first.
async fn panic_in_the_drain(nth: u32) {
    let stage = stage();
    let mut daemon = start(&stage, &format!("lane.drain=panic@{nth}")).await;
    let first = submit(&mut daemon, &batch(0)).await;
    finished(&stage, 0).await;
    // The lanes of products and of summaries are both there; one of them is in the middle of something.
    let gate = Gate::closed();
    stage.receiver.behave(Answer::Started.held(&gate));
    let second = submit(&mut daemon, &batch(1)).await;
    let before = 1 + PRODUCTS;
    stage.receiver.wait_until(|seen| before < seen.len(), LONG).await.unwrap();
    daemon.term().unwrap();
    daemon.wait_for_event("panicked", |_| true).await.unwrap();
    gate.open();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0, "it drains all the same");
    assert_eq!(panics(&daemon, Point::LaneDrain), 1);
    daemon.set_env("GLANEUR_FAIL", "");
    daemon.restart().await.unwrap();
    finished(&stage, 1).await;
    check(&stage, &daemon, &[first, second]).await;
}

/// The `claims_max` panics of a lane with one delivery in hand end that delivery, and nothing else.
#[tokio::test]
async fn a_delivery_that_its_lane_does_not_survive_is_dead_and_the_others_are_taken() {
    let fail: Vec<String> = (1..=4).map(|n| format!("lane.attempt=panic@{n}")).collect();
    // One at a time, the oldest first: it is in hand each time, and the three of the other batch wait behind it.
    let stage = stage().set("webhooks", "concurrency", 1);
    let mut daemon = start(&stage, &fail.join(",")).await;
    submit(&mut daemon, &json!({"eans": [REAL[0]], "metadata": {"n": 0}})).await;
    daemon.wait_for_event("panicked", |_| true).await.unwrap();
    submit(&mut daemon, &batch(1)).await;
    let dead = daemon.wait_for_event("delivery_dead", |_| true).await.unwrap();
    finished(&stage, 1).await;
    let summary_of_it = |seen: &[glaneur_kit::receiver::Seen]| {
        let bodies = seen.iter().map(glaneur_kit::receiver::Seen::json);
        bodies.into_iter().find(|body| is_summary(body) && body["metadata"]["n"] == 0)
    };
    let summary = stage.receiver.records().wait_for(summary_of_it, LONG).await.unwrap();
    assert_eq!(panics(&daemon, Point::LaneAttempt), 4);
    assert_eq!(summary["batch_id"], dead["batch_id"]);
    assert_eq!(summary["counts"]["found"], 1);
    assert_eq!((&summary["deliveries"]["dead"], &summary["deliveries"]["taken"]), (&json!(1), &json!(0)));
    assert_eq!(stage.receiver.products().len(), PRODUCTS, "all but the dead one");
    assert!(daemon.events("actor_escalated").is_empty());
}

/// A batch that takes its coordinator past its limit is set aside; the batch beside it does not notice.
#[tokio::test]
async fn a_batch_whose_coordinator_keeps_failing_is_set_aside_alone() {
    // Five restarts are granted.
    let fail: Vec<String> = (1..=6).map(|n| format!("coordinator.visit_ended=panic@{n}")).collect();
    let stage = stage();
    let gate = Gate::closed();
    let unharmed = ShopKind::Pharmagdd;
    stage.shops.of(unharmed).behave(When::Always, Conduct::Normal.held(&gate));
    let mut daemon = start(&stage, &fail.join(",")).await;
    let mut body = batch(1);
    body["sites"] = json!([unharmed.name()]);
    submit(&mut daemon, &body).await;
    stage.shops.of(unharmed).wait_until(|hits| !hits.is_empty(), LONG).await.unwrap();
    let mut body = batch(0);
    body["sites"] = json!(["cocooncenter"]);
    let poison = submit(&mut daemon, &body).await;
    let id = poison["batch_id"].clone();
    daemon.wait_for_event("batch_set_aside", |event| event["batch_id"] == id).await.unwrap();
    daemon.wait_for_event("batch_ended", |event| event["batch_id"] == id).await.unwrap();
    let crashed = |event: &Value| event["batch_id"] == id && event["kind"] == "crashed";
    daemon.wait_for_event("product_ended", crashed).await.unwrap();
    finished(&stage, 0).await;
    gate.open();
    finished(&stage, 1).await;
    let products = stage.receiver.products();
    for product in &products {
        let set_aside = product["metadata"]["n"] == 0;
        let (status, kind) = if set_aside { ("failed", json!("crashed")) } else { ("found", json!(null)) };
        assert_eq!((&product["status"], &product["reason"]["kind"]), (&json!(status), &kind), "{product}");
    }
    assert_eq!(products.len(), 2 * PRODUCTS);
    let (_, view) = daemon.get(poison["status_url"].as_str().unwrap()).await.unwrap();
    assert_eq!((&view["status"], &view["counts"]["failed"]), (&json!("ended"), &json!(PRODUCTS)));
    assert!(daemon.events("actor_escalated").is_empty());
    submit(&mut daemon, &batch(2)).await;
    finished(&stage, 2).await;
    let (status, ready) = daemon.get("/readyz").await.unwrap();
    assert_eq!(status, 200, "{ready}");
}
