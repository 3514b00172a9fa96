//! A visit that is slow for its shop starts once more on another circuit, and to everybody outside it stays one visit.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use glaneur_kit::receiver::{Seen, is_product, taken_once};
use glaneur_kit::shop::{Conduct, Hit, Purpose, When};
use glaneur_kit::{Catalogue, Daemon, Gate, Proxy, Receiver, Shop, ShopKind, Shops};
use serde_json::{Value, json};

use crate::restart::waiting::until_at_rest;
use crate::support::{BINARY, LONG, Stage, accepted, batch, brisk, impatient, own_search};
use crate::tor;

/// As many answered visits as it takes to know what is slow; while they go on nothing is hedged.
const KNOWN: usize = 8;
const CIRCUITS: usize = 6;
const KIND: ShopKind = ShopKind::Pharmagdd;
const NORMAL: [Conduct; 2] = [Conduct::Normal, Conduct::Normal];

fn catalogue() -> Catalogue {
    Catalogue::synthetic(KNOWN + CIRCUITS + 2, 5)
}

/// The barcodes by which the shop is got to know, one that will be slow, and others.
fn eans() -> (Vec<String>, String, Vec<String>) {
    let mut known = catalogue().eans();
    let mut others = known.split_off(KNOWN);
    let slow = others.remove(0);
    (known, slow, others)
}

/// One shop, behind the stand-in for tor.
struct World {
    stage: Stage,
    proxy: Proxy,
}

impl World {
    fn new() -> Self {
        let proxy = Proxy::start().unwrap();
        let shops = Shops::start_here(catalogue()).unwrap();
        let receiver = Receiver::start().unwrap();
        let mut config = impatient(&receiver).socks(proxy.address());
        for shop in &shops.all {
            config = brisk(config.site(shop.kind().name(), shop.base()), shop.kind().name());
        }
        let stage = Stage { shops, receiver, config: own_search(config) };
        Self { stage: hedging(stage.only(KIND)), proxy }
    }
}

/// Each visit earns a twin, and no time of a visit runs out: an exchange that ends was ended.
fn hedging(stage: Stage) -> Stage {
    let stage = stage.set("fetch", "first_byte_timeout", "1h").set("fetch", "visit_deadline", "1h");
    stage.set("tor", "hedge_percent", 100)
}

/// A daemon that knows how long a visit of its shop takes.
async fn start_knowing(stage: &Stage, fail: &str) -> Daemon {
    let setup = Daemon::builder(BINARY).config(stage.config.clone()).env("GLANEUR_FAIL", fail);
    let daemon = setup.start().await.unwrap();
    let known = eans().0;
    submit(&daemon, &known).await;
    ended(stage, &known).await;
    daemon
}

async fn submit<'a>(daemon: &Daemon, eans: impl IntoIterator<Item = &'a String>) -> Value {
    accepted(daemon.submit(&batch(eans.into_iter().map(String::as_str))).await.unwrap())
}

/// Waits until the receiver has taken a webhook of each of these products; the bodies of the last one's.
async fn ended(stage: &Stage, eans: &[String]) -> Vec<Value> {
    let last = eans.last().unwrap();
    let of = |seen: &[Seen], ean: &str| -> Vec<Value> {
        let bodies = taken_once(seen).into_iter().map(Seen::json).filter(is_product);
        bodies.filter(|body| body["ean"] == ean).collect()
    };
    let all = |seen: &[Seen]| eans.iter().all(|ean| !of(seen, ean).is_empty());
    of(&stage.receiver.wait_until(all, LONG).await.unwrap(), last)
}

fn asks_page(hit: &Hit, ean: &str) -> bool {
    hit.purpose == Purpose::Page && hit.is_about(ean)
}

/// The first request for this page is answered so, and any later one otherwise.
fn answer(shop: &Shop, ean: &str, first: &Conduct, later: &Conduct) {
    let (ean, first_order) = (ean.to_owned(), Arc::<OnceLock<usize>>::default());
    let is_first = {
        let (ean, first_order) = (ean.clone(), Arc::clone(&first_order));
        move |hit: &Hit| asks_page(hit, &ean) && *first_order.get_or_init(|| hit.order) == hit.order
    };
    shop.behave(When::is(move |hit| asks_page(hit, &ean)), later.clone());
    shop.behave(When::is(is_first), first.clone());
}

/// Waits until so many requests for this page have come.
async fn asked(shop: &Shop, ean: &str, times: usize) {
    let enough = |hits: &[Hit]| times <= hits.iter().filter(|hit| asks_page(hit, ean)).count();
    shop.wait_until(enough, LONG).await.unwrap();
}

fn about(daemon: &Daemon, event: &str, ean: &str) -> Vec<Value> {
    daemon.events(event).into_iter().filter(|event| event["ean"] == ean).collect()
}

/// What the log says of the visits of one product: attempt, outcome, and who won.
fn visits_of(daemon: &Daemon, ean: &str) -> Vec<(u64, String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let visit = |event: &Value| {
        (event["attempt"].as_u64().unwrap(), text(&event["outcome"]).unwrap(), text(&event["won_by"]))
    };
    about(daemon, "visit_ended", ean).iter().map(visit).collect()
}

fn visit(attempt: u64, outcome: &str, won_by: Option<&str>) -> (u64, String, Option<String>) {
    (attempt, outcome.to_owned(), won_by.map(str::to_owned))
}

/// Whatever happened: a product has one webhook, and nothing that a person must look at but what the test did.
async fn check(stage: &Stage, daemon: &Daemon) {
    let mut seen = std::collections::BTreeSet::new();
    for product in stage.receiver.products() {
        let of = (product["batch_id"].to_string(), product["index"].to_string());
        assert!(seen.insert(of), "twice: {product}");
    }
    for event in ["claim_stranded", "conservation_broken", "ledger_command_refused", "outcome_dropped"] {
        assert!(daemon.events(event).is_empty(), "{event}");
    }
    let (status, ready) = daemon.get("/readyz").await.unwrap();
    assert_eq!(status, 200, "{ready}");
}

/// All scrapers are free: as many visits stand at the shop side by side. (Without twins, which would take their place.)
async fn all_scrapers_are_free(stage: &Stage, daemon: &mut Daemon) {
    let reloaded = daemon.reload(stage.config.clone().set("tor", "hedge_percent", 0)).await.unwrap();
    assert_eq!(reloaded["event"], "reloaded", "{reloaded}");
    let (gate, others) = (Gate::closed(), eans().2);
    let shop = stage.shops.of(KIND);
    let others = &others[..CIRCUITS];
    for ean in others {
        answer(shop, ean, &Conduct::Normal.held(&gate), &Conduct::Normal.held(&gate));
    }
    submit(daemon, others).await;
    for ean in others {
        asked(shop, ean, 1).await;
    }
    gate.open();
    ended(stage, others).await;
    assert!(others.iter().all(|ean| about(daemon, "visit_hedged", ean).is_empty()), "switched off");
}

/// The shop never answers the first request: only the twin can bring the page.
async fn is_answered_by_its_twin(stage: &Stage) {
    let (_, slow, _) = eans();
    let gate = Gate::closed();
    let shop = stage.shops.of(KIND);
    answer(shop, &slow, &Conduct::Normal.held(&gate), &Conduct::Normal);
    let mut daemon = start_knowing(stage, "").await;
    submit(&daemon, [&slow]).await;
    let products = ended(stage, std::slice::from_ref(&slow)).await;
    assert_eq!(products[0]["status"], "found", "{}", products[0]);
    assert_eq!(visits_of(&daemon, &slow), [visit(1, "found", Some("twin"))]);
    assert_eq!(about(&daemon, "visit_started", &slow).len(), 1);
    let hedged = &about(&daemon, "visit_hedged", &slow)[..];
    let [hedged] = hedged else { panic!("once: {hedged:?}") };
    assert_ne!(hedged["circuit"], hedged["first"], "on another circuit");
    assert_eq!(about(&daemon, "visit_ended", &slow)[0]["circuit"], hedged["circuit"]);
    let (after, median) = (hedged["after_ms"].as_u64().unwrap(), hedged["median_ms"].as_u64().unwrap());
    assert!(2 * median <= after, "{hedged}");
    // The request that was overtaken is dropped while the shop still has it in hand.
    tokio::time::timeout(LONG, gate.left()).await.unwrap();
    all_scrapers_are_free(stage, &mut daemon).await;
    check(stage, &daemon).await;
}

#[tokio::test]
async fn a_visit_on_a_slow_circuit_is_answered_by_its_twin_and_its_own_request_is_dropped() {
    is_answered_by_its_twin(&World::new().stage).await;
}

#[tokio::test]
async fn through_the_real_tor_a_slow_visit_is_answered_by_its_twin() {
    let network = tor::network().await;
    let stage = hedging(tor::stage_behind(&network, catalogue()).only(KIND));
    is_answered_by_its_twin(&stage).await;
    tor::assert_only_exits_came(&network, &stage);
}

/// A visit whose page the shop holds back, and its twin, whose page it holds back as well.
struct Pair {
    world: World,
    daemon: Daemon,
    ean: String,
    first: Gate,
    twin: Gate,
}

impl Pair {
    /// Charged attempts end the product at this number of them.
    async fn with(conducts: [Conduct; 2], attempts_max: u32, fail: &str) -> Self {
        Self::at(World::new(), conducts, attempts_max, fail).await
    }

    async fn at(mut world: World, [of_first, of_twin]: [Conduct; 2], attempts_max: u32, fail: &str) -> Self {
        world.stage = world.stage.set("fetch", "attempts_max", attempts_max);
        let (_, ean, _) = eans();
        let (first, twin) = (Gate::closed(), Gate::closed());
        let shop = world.stage.shops.of(KIND);
        answer(shop, &ean, &of_first.held(&first), &of_twin.held(&twin));
        let daemon = start_knowing(&world.stage, fail).await;
        submit(&daemon, [&ean]).await;
        asked(shop, &ean, 2).await;
        Self { world, daemon, ean, first, twin }
    }

    async fn ended(&self) -> Value {
        ended(&self.world.stage, std::slice::from_ref(&self.ean)).await.remove(0)
    }

    fn visits(&self) -> Vec<(u64, String, Option<String>)> {
        visits_of(&self.daemon, &self.ean)
    }

    async fn check(&self) {
        check(&self.world.stage, &self.daemon).await;
    }
}

#[tokio::test]
async fn the_first_answer_wins_also_if_it_is_the_firsts_and_the_twin_is_dropped() {
    let mut pair = Pair::with(NORMAL, 1, "").await;
    pair.first.open();
    assert_eq!(pair.ended().await["status"], "found");
    assert_eq!(pair.visits(), [visit(1, "found", Some("first"))]);
    tokio::time::timeout(LONG, pair.twin.left()).await.unwrap();
    all_scrapers_are_free(&pair.world.stage, &mut pair.daemon).await;
    pair.check().await;
}

#[tokio::test]
async fn a_failure_of_one_waits_for_the_other_and_costs_nothing() {
    for twin_fails in [false, true] {
        let (block, normal) = (Conduct::Status(403), Conduct::Normal);
        let conducts = if twin_fails { [normal, block] } else { [block, normal] };
        let pair = Pair::with(conducts, 1, "").await;
        let (fails, answers) = if twin_fails { (&pair.twin, &pair.first) } else { (&pair.first, &pair.twin) };
        fails.open();
        pair.daemon.wait_for_event("circuit_retired", |event| event["reason"] == "blocked").await.unwrap();
        answers.open();
        let product = pair.ended().await;
        assert_eq!((&product["status"], &product["errors"]), (&json!("found"), &json!({})));
        let winner = if twin_fails { "first" } else { "twin" };
        assert_eq!(pair.visits(), [visit(1, "found", Some(winner))]);
        pair.check().await;
    }
}

#[tokio::test]
async fn what_both_fail_at_is_one_failure_and_one_attempt() {
    let pair = Pair::with([Conduct::Status(500), Conduct::Status(500)], 2, "").await;
    let shop = pair.world.stage.shops.of(KIND);
    shop.behave_well(); // The next attempt finds it.
    pair.twin.open();
    pair.first.open();
    assert_eq!(pair.ended().await["status"], "found");
    assert_eq!(pair.visits()[0], visit(1, "status", Some("first")));
    let attempts = |event| -> Vec<u64> {
        about(&pair.daemon, event, &pair.ean).iter().map(|event| event["attempt"].as_u64().unwrap()).collect()
    };
    assert_eq!((attempts("visit_started"), attempts("visit_ended")), (vec![1, 2], vec![1, 2]));
    pair.check().await;
}

#[tokio::test]
async fn a_panic_of_one_of_the_two_neither_doubles_the_outcome_nor_costs_an_attempt() {
    for twin_panics in [false, true] {
        let (_, slow, _) = eans();
        let fail = format!("scraper.fetched[{slow}]=panic");
        let pair = Pair::with(NORMAL, 1, &fail).await;
        let (panics, answers) =
            if twin_panics { (&pair.twin, &pair.first) } else { (&pair.first, &pair.twin) };
        panics.open();
        pair.daemon.wait_for_event("actor_restarted", |_| true).await.unwrap();
        assert!(pair.visits().is_empty(), "the other one is at work");
        answers.open();
        let product = pair.ended().await;
        assert_eq!((&product["status"], &product["errors"]), (&json!("found"), &json!({})));
        let winner = if twin_panics { "first" } else { "twin" };
        assert_eq!(pair.visits(), [visit(1, "found", Some(winner))]);
        assert_eq!(about(&pair.daemon, "visit_started", &pair.ean).len(), 1);
        pair.check().await;
    }
}

#[tokio::test]
async fn a_death_of_the_process_is_charged_to_a_hedged_product_once_while_either_is_at_work() {
    /// Twice as often as the coordinator looks for what is at rest.
    const LOOKED_AT: Duration = Duration::from_secs(2);
    let conducts = [Conduct::Status(403), Conduct::Normal];
    let mut pair = Pair::with(conducts, 1, "").await;
    pair.first.open();
    pair.daemon.wait_for_event("circuit_retired", |event| event["reason"] == "blocked").await.unwrap();
    // The claim is about this time: only the twin is at work, and the product is not at rest.
    tokio::time::sleep(LOOKED_AT).await;
    pair.daemon.kill_9().await.unwrap();
    pair.world.stage.shops.of(KIND).behave_well();
    pair.daemon.restart().await.unwrap();
    let charged = pair.daemon.wait_for_event("deaths_charged", |_| true).await.unwrap();
    assert_eq!(charged["products"], 1, "one product, one death");
    let product = pair.ended().await;
    assert_eq!((&product["status"], &product["errors"]), (&json!("found"), &json!({})));
    pair.check().await;
}

#[tokio::test]
async fn a_death_of_the_process_is_not_charged_to_a_hedged_product_that_waits_after_both() {
    let world = World::new();
    let stage = world.stage.set("fetch", "retry_min", "1h").set("fetch", "retry_max", "1h");
    let mut pair =
        Pair::at(World { stage, ..world }, [Conduct::Status(500), Conduct::Status(500)], 2, "").await;
    pair.first.open();
    pair.twin.open();
    pair.daemon.wait_for_event("visit_ended", |event| event["ean"] == *pair.ean).await.unwrap();
    until_at_rest(&pair.daemon, 1).await;
    pair.daemon.kill_9().await.unwrap();
    pair.world.stage.shops.of(KIND).behave_well();
    pair.daemon.restart().await.unwrap();
    assert_eq!(pair.ended().await["status"], "found");
    assert!(pair.daemon.events("deaths_charged").is_empty());
    pair.check().await;
}

#[tokio::test]
async fn both_are_put_back_uncharged_when_tor_goes_away() {
    let world = World::new();
    let stage = world.stage.set("tor", "probe_timeout", "1s");
    let pair = Pair::at(World { stage, ..world }, NORMAL, 1, "").await;
    pair.world.proxy.stop_listening().await;
    pair.daemon.wait_for_event("visit_ended", |event| event["ean"] == *pair.ean).await.unwrap();
    assert_eq!(pair.visits(), [visit(1, "put_back", Some("first"))]);
    pair.world.stage.shops.of(KIND).behave_well();
    pair.world.proxy.listen_again().unwrap();
    let product = pair.ended().await;
    assert_eq!((&product["status"], &product["errors"]), (&json!("found"), &json!({})));
    let attempts = about(&pair.daemon, "visit_started", &pair.ean);
    assert!(attempts.iter().all(|event| event["attempt"] == 1), "nobody was charged");
    pair.check().await;
}

#[tokio::test]
async fn both_are_put_back_uncharged_at_the_end_of_a_drain() {
    let world = World::new();
    let stage = world.stage.set("shutdown", "drain", "1s");
    let mut pair = Pair::at(World { stage, ..world }, NORMAL, 1, "").await;
    pair.daemon.term().unwrap();
    assert_eq!(pair.daemon.wait_exit().await.unwrap(), 0);
    assert_eq!(pair.visits(), [visit(1, "put_back", Some("first"))]);
    pair.world.stage.shops.of(KIND).behave_well();
    pair.daemon.restart().await.unwrap();
    let product = pair.ended().await;
    assert_eq!((&product["status"], &product["errors"]), (&json!("found"), &json!({})));
    assert!(pair.daemon.events("deaths_charged").is_empty());
    pair.check().await;
}

#[tokio::test]
async fn a_pool_that_dies_with_both_in_flight_charges_nobody_and_the_product_ends_once() {
    // The known ones, the slow one, and then another.
    let fail = format!("scrapers.ask=panic@{}", KNOWN + 2);
    let pair = Pair::with(NORMAL, 1, &fail).await;
    let others = &eans().2[..1];
    submit(&pair.daemon, others).await;
    pair.daemon.wait_for_event("actor_restarted", |event| event["actor"] == "scrapers").await.unwrap();
    pair.first.open();
    pair.twin.open();
    let product = pair.ended().await;
    assert_eq!((&product["status"], &product["errors"]), (&json!("found"), &json!({})));
    ended(&pair.world.stage, others).await;
    assert_eq!(pair.visits(), [visit(1, "found", None)], "asked for again, and not hedged by a new pool");
    pair.check().await;
}

#[tokio::test]
async fn a_coordinator_that_dies_with_both_in_flight_is_followed_by_one_that_asks_for_itself() {
    let fail = format!("coordinator.visit_ended=panic@{}", KNOWN + 1);
    let world = World::new();
    let shop = world.stage.shops.of(KIND);
    let (_, slow, others) = eans();
    let other = &others[0];
    let (held, beside) = (Gate::closed(), Gate::closed());
    answer(shop, &slow, &Conduct::Normal.held(&held), &Conduct::Normal.held(&held));
    answer(shop, other, &Conduct::Normal.held(&beside), &Conduct::Normal.held(&beside));
    let daemon = start_knowing(&world.stage, &fail).await;
    submit(&daemon, [&slow, other]).await;
    asked(shop, &slow, 2).await;
    beside.open();
    daemon.wait_for_event("panicked", |_| true).await.unwrap();
    asked(shop, &slow, 3).await;
    held.open();
    let both = [slow.clone(), other.clone()];
    ended(&world.stage, &both).await;
    daemon.wait_for_event("batch_ended", |_| true).await.unwrap();
    let products = world.stage.receiver.products();
    assert_eq!(products.len(), KNOWN + 2, "one webhook each");
    assert!(products.iter().all(|product| product["status"] == "found" && product["errors"] == json!({})));
    let attempts = daemon.events("visit_started");
    assert!(attempts.iter().all(|event| event["attempt"] == 1), "nobody was charged");
    assert_eq!(daemon.events("panicked").len(), 1, "answers that nobody wants any more harm nobody");
    check(&world.stage, &daemon).await;
}

#[tokio::test]
async fn over_many_visits_no_more_are_hedged_than_the_budget_grants() {
    const PRODUCTS: usize = 120;
    const PERCENT: usize = 10;
    /// Every third page is slow at the first request: far more than may be hedged.
    const SLOW: Duration = Duration::from_millis(300);
    let proxy = Proxy::start().unwrap();
    let shops = Shops::start_here(Catalogue::synthetic(PRODUCTS, 6)).unwrap();
    let receiver = Receiver::start().unwrap();
    let shop = shops.of(KIND);
    let config =
        brisk(impatient(&receiver).socks(proxy.address()).site(KIND.name(), shop.base()), KIND.name());
    // Fewer products than scrapers at a time: one is free for a twin.
    let stage =
        Stage { shops, receiver, config }.set("batches", "window", 3).set("tor", "hedge_percent", PERCENT);
    let eans = Catalogue::synthetic(PRODUCTS, 6).eans();
    for ean in eans.iter().step_by(3) {
        answer(stage.shops.of(KIND), ean, &Conduct::Normal.after(SLOW), &Conduct::Normal);
    }
    let daemon = stage.start().await;
    submit(&daemon, &eans).await;
    let (products, _) = stage.finished(PRODUCTS).await;
    assert!(products.iter().all(|product| product["status"] == "found"));
    let hedged = daemon.events("visit_hedged").len();
    let granted = PRODUCTS * PERCENT / 100;
    assert!((1..=granted).contains(&hedged), "{hedged} of {granted}");
    let ended = daemon.events("visit_ended");
    assert_eq!(ended.len(), PRODUCTS, "one end each");
    assert_eq!(ended.iter().filter(|event| event["won_by"].is_string()).count(), hedged);
    let pages = stage.shops.of(KIND).hits().iter().filter(|hit| hit.purpose == Purpose::Page).count();
    assert!(pages <= PRODUCTS + hedged, "{pages} pages, {hedged} twins");
    check(&stage, &daemon).await;
}

#[tokio::test]
async fn a_shop_that_counts_requests_and_one_without_tor_are_never_hedged() {
    let proxy = Proxy::start().unwrap();
    let shops = Shops::start_here(catalogue()).unwrap();
    let receiver = Receiver::start().unwrap();
    let mut config = impatient(&receiver).socks(proxy.address());
    for shop in &shops.all {
        config = brisk(config.site(shop.kind().name(), shop.base()), shop.kind().name());
    }
    let (counting, direct) = (ShopKind::Drakkars.name(), ShopKind::Cocooncenter);
    let base = shops.of(direct).direct_base();
    let config = own_search(config)
        .site_key(counting, "hedge", false)
        .site_key(direct.name(), "base", base)
        .site_key(direct.name(), "via", "direct");
    let stage = hedging(Stage { shops, receiver, config });
    let (_, slow, _) = eans();
    let gate = Gate::closed();
    for shop in &stage.shops.all {
        answer(shop, &slow, &Conduct::Normal.held(&gate), &Conduct::Normal.held(&gate));
    }
    let daemon = start_knowing(&stage, "").await;
    // They are slow first, and would be hedged first.
    let mut body = batch([slow.as_str()]);
    body["sites"] = json!([counting, direct.name()]);
    accepted(daemon.submit(&body).await.unwrap());
    asked(stage.shops.of(ShopKind::Drakkars), &slow, 1).await;
    asked(stage.shops.of(direct), &slow, 1).await;
    body["sites"] = json!([KIND.name()]);
    accepted(daemon.submit(&body).await.unwrap());
    asked(stage.shops.of(KIND), &slow, 2).await;
    let sites: Vec<_> =
        about(&daemon, "visit_hedged", &slow).iter().map(|event| event["site"].clone()).collect();
    assert_eq!(sites, [KIND.name()]);
    gate.open();
    check(&stage, &daemon).await;
}
