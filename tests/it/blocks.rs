//! Shops that refuse: what is a block, whom it costs its circuit, and when a shop is left alone. Through the real tor,
//! whose exits a shop tells apart.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;
use std::time::Duration;

use glaneur_kit::shop::{Conduct, Purpose, Wariness, Wary, When};
use glaneur_kit::{Catalogue, Daemon, Gate, ShopKind, TorNetwork};
use serde_json::{Value, json};

use crate::support::{LONG, REAL, Stage, accepted, batch};
use crate::tor::{assert_only_exits_came, network, stage_behind};

const CIRCUITS: usize = 4;
/// `refusals::REFUSALS` allows one less.
const REFUSALS: usize = 24;

/// No visit is started twice at this shop, whose requests are counted.
fn counted(mut stage: Stage, shop: ShopKind) -> Stage {
    stage.config = stage.config.site_key(shop.name(), "hedge", false);
    stage
}

/// One shop, whose circuits are changed for nothing but blocks.
fn stage_of(network: &TorNetwork, catalogue: Catalogue, shop: ShopKind) -> Stage {
    let stage = counted(stage_behind(network, catalogue).only(shop), shop);
    stage.set("tor", "circuits", CIRCUITS).set("tor", "uses_max", 1_000_000)
}

fn retired(daemon: &Daemon) -> Vec<String> {
    let text = |event: &Value| event["circuit"].as_str().unwrap().to_owned();
    let events = daemon.events("circuit_retired");
    assert!(events.iter().all(|event| event["reason"] == "blocked"), "{events:?}");
    events.iter().map(text).collect()
}

fn refused(stage: &Stage, shop: ShopKind) -> usize {
    let hits = stage.shops.of(shop).hits();
    hits.iter().filter(|hit| matches!(hit.conduct, Conduct::Status(403))).count()
}

/// A shop that has enough of an exit after eight requests, for as long as it takes to serve sixteen others.
const WARY: Wariness = Wariness { free: 8, grudge: 16 };
const PRODUCTS: usize = 300;

/// A new circuit takes as long as several requests on one that stands (75 ms against 11 ms on an idle machine), and the
/// others go on meanwhile. It sits out these turns: fewer than it does, so that what is expected is rather too much.
const BUILD_TURNS: usize = 3;

/// How many rotations the same products take at the same shop, by circuits that get each new exit by chance: each circuit
/// makes a request in turn, a search and a page for a product; a refused product goes to the end of the line.
fn rotations_by_chance(exits: usize, mut dice: impl FnMut() -> usize) -> usize {
    let mut any_exit = || IpAddr::from(Ipv4Addr::new(127, 0, 0, (dice() % exits) as u8));
    let mut shop = Wary::new(WARY);
    let mut circuits: Vec<(IpAddr, usize)> = (0..CIRCUITS).map(|_| (any_exit(), 0)).collect();
    let mut searched = [None; CIRCUITS];
    let (mut line, mut found, mut rotations) = (PRODUCTS, 0, 0);
    for turn in (0..CIRCUITS).cycle() {
        let (exit, built_in) = &mut circuits[turn];
        if 0 < *built_in {
            *built_in -= 1;
            continue;
        }
        if searched[turn].is_none() {
            if line == 0 {
                continue;
            }
            line -= 1;
        }
        let has_searched = searched[turn].take().is_some();
        if shop.refuses(*exit) {
            rotations += 1;
            line += 1;
            (*exit, *built_in) = (any_exit(), BUILD_TURNS);
        } else if has_searched {
            found += 1;
        } else {
            searched[turn] = Some(());
        }
        if found == PRODUCTS {
            break;
        }
    }
    rotations
}

/// The mean of as many runs, and the most of any.
fn rotations_expected(exits: usize) -> (f64, usize) {
    const RUNS: usize = 2_000;
    let mut state = 20_251_017_u64;
    let mut dice = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let runs: Vec<usize> = (0..RUNS).map(|_| rotations_by_chance(exits, &mut dice)).collect();
    (runs.iter().sum::<usize>() as f64 / RUNS as f64, runs.into_iter().max().unwrap())
}

/// The mean of 2 000 simulated runs is near 236 with a standard deviation near 11: 1.25 times the mean is more than five of
/// them away, and chance alone passes it less than once in a million runs.
#[tokio::test]
async fn a_shop_that_blocks_exits_after_a_few_requests_is_finished_with_no_more_rotations_than_chance_asks() {
    const SHOP: ShopKind = ShopKind::Pharmagdd;
    let network = network().await;
    let (expected, most) = rotations_expected(network.exits().len());
    let bound = 1.25 * expected;
    assert!((most as f64) < bound, "chance alone would break this: {expected} expected, {most} at most");
    let catalogue = Catalogue::synthetic(PRODUCTS, 11);
    let eans = catalogue.eans();
    // The exits of this network are few: there are attempts enough to meet each of them often.
    let stage = stage_of(&network, catalogue, SHOP).set("fetch", "attempts_max", 40);
    stage.shops.of(SHOP).behave(When::Always, Conduct::Wary(WARY));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(eans.iter().map(String::as_str))).await.unwrap());
    let (products, summary) = stage.finished(PRODUCTS).await;
    assert_eq!(
        summary["counts"]["found"],
        PRODUCTS,
        "{:?}",
        products.iter().find(|p| p["status"] != "found")
    );
    let rotations = retired(&daemon).len();
    assert_eq!(rotations, refused(&stage, SHOP), "one circuit for each block, and none for anything else");
    assert!(rotations > PRODUCTS / 4, "it was wary: {rotations}");
    println!("{rotations} rotations, {expected:.0} expected by chance");
    assert!((rotations as f64) <= bound, "{rotations} rotations, {expected:.0} expected by chance");
    assert!(daemon.events("shop_suspended").is_empty(), "it let others in all the time");
    assert_only_exits_came(&network, &stage);
}

/// Which circuits of tor the scrapers have, by their users.
async fn circuits(network: &TorNetwork, others: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<String>> {
    let mut control = network.open_control().await.unwrap();
    let mut circuits: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for circuit in control.circuit_status().await.unwrap() {
        if let (Some(user), Some(password)) = (circuit.socks_username, circuit.socks_password)
            && user.starts_with("glaneur-w")
        {
            let circuit = format!("{} {password}", circuit.id);
            if !others.contains(&circuit) {
                circuits.entry(user).or_default().insert(circuit);
            }
        }
    }
    circuits
}

#[tokio::test]
async fn a_block_rotates_the_circuit_that_met_it_and_no_other() {
    const SHOP: ShopKind = ShopKind::Pharmagdd;
    let network = network().await;
    let stage = stage_of(&network, Catalogue::of(REAL), SHOP);
    let (shop, gate) = (stage.shops.of(SHOP), Gate::closed());
    shop.behave(When::Pages, Conduct::Normal.held(&gate));
    let blocked = stage.shops.of(SHOP).page_path(REAL[0]).unwrap();
    let first = When::is(move |hit| hit.path == blocked && hit.order < 2 * CIRCUITS);
    shop.behave(first, Conduct::Status(403).held(&gate));
    // Tor goes on with circuits of daemons before this one for a while.
    let others = circuits(&network, &BTreeSet::new()).await.into_values().flatten().collect();
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    // Every circuit has fetched a search and waits for its page.
    let pages = |hits: &[glaneur_kit::shop::Hit]| {
        hits.iter().filter(|hit| hit.purpose == Purpose::Page).count() == CIRCUITS
    };
    shop.wait_until(pages, LONG).await.unwrap();
    let before = circuits(&network, &others).await;
    gate.open();
    let (products, _) = stage.finished(REAL.len()).await;
    assert!(products.iter().all(|product| product["status"] == "found"), "{products:?}");
    let after = circuits(&network, &others).await;

    let retired = retired(&daemon);
    assert_eq!(retired.len(), 1, "{retired:?}");
    let (worker, generation) = retired[0].split_once('.').unwrap();
    assert_eq!(generation, "g1");
    let its = format!("glaneur-{worker}");
    let (mut rotated, mut stayed) = (0, 0);
    for (user, circuits) in &before {
        let is_kept = after.get(user).is_some_and(|now| circuits.is_subset(now));
        if *user == its {
            rotated += 1;
            let new = after.get(user).is_some_and(|now| !now.is_subset(circuits));
            let served_again = daemon
                .events("visit_started")
                .iter()
                .any(|event| event["circuit"] == json!(format!("{worker}.g2")));
            assert_eq!(new, served_again, "{before:?} {after:?}");
        } else {
            stayed += 1;
            assert!(is_kept, "{user}: {before:?} {after:?}");
            let now = after.get(user).unwrap();
            assert_eq!(now, circuits, "{user} has no further circuit");
        }
    }
    assert_eq!((rotated, stayed), (1, CIRCUITS - 1));
    // Their connections stayed open as well: a kept one brings a search and a page after another.
    for worker in daemon.events("visit_started").iter().filter_map(|event| event["circuit"].as_str()) {
        let is_rotated = worker.starts_with(&its["glaneur-".len()..]);
        assert!(is_rotated || worker.ends_with(".g1"), "{worker}");
    }
}

#[tokio::test]
async fn a_challenge_a_marker_and_a_small_page_each_rotate_and_name_their_rule() {
    const MARKER: &str = "Veuillez prouver que vous êtes humain";
    let network = network().await;
    let (search, page) = ("status 403", format!("marker \"{MARKER}\""));
    let small = "page of 24 bytes, smaller than blocks.small";
    let html = "text/html; charset=utf-8";
    let elsewhere = Conduct::RedirectTo("http://guard.test/challenge?back=%2Fsecret".into());
    let here = Conduct::RedirectTo("/challenge?back=%2Fsecret".into());
    for (conduct, rule) in [
        (Conduct::Status(403), search),
        (Conduct::Exactly(200, html, format!("<!DOCTYPE html><html><body>{MARKER}.</body></html>")), &page),
        (Conduct::Exactly(200, html, "<html><p>Non</p></html>\n".into()), small),
        (elsewhere, "redirect to guard.test/challenge"),
        (here, "redirect to /challenge"),
    ] {
        const SHOP: ShopKind = ShopKind::Drakkars;
        let mut stage = stage_of(&network, Catalogue::of([REAL[0]]), SHOP);
        let blocks = format!("sites.{}.blocks", SHOP.name());
        for (key, value) in
            [("markers", json!([MARKER])), ("redirect", json!(["/challenge$"])), ("small", json!("500B"))]
        {
            stage = stage.set(&blocks, key, value);
        }
        // The first page alone; its search, of JSON, is smaller than any page may be.
        let first = When::is(|hit| hit.purpose == Purpose::Page && hit.order < 2);
        stage.shops.of(SHOP).behave(first, conduct);
        let daemon = stage.start().await;
        accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
        let (products, _) = stage.finished(1).await;
        assert_eq!(products[0]["status"], "found", "{rule}: {}", products[0]);
        let ended = daemon.events("visit_ended");
        assert_eq!((&ended[0]["outcome"], &ended[0]["detail"]), (&json!("blocked"), &json!(rule)));
        assert_eq!(retired(&daemon), [ended[0]["circuit"].as_str().unwrap()], "{rule}");
        let asked: Vec<_> = stage.shops.of(SHOP).hits().into_iter().map(|hit| hit.path).collect();
        assert_eq!(asked.len(), 4, "a challenge is not gone to: {asked:?}");
    }
}

#[tokio::test]
async fn a_circuit_whose_answers_are_cut_short_twice_in_a_row_is_retired() {
    const SHOP: ShopKind = ShopKind::Pharmagdd;
    let network = network().await;
    let stage = stage_of(&network, Catalogue::of([REAL[0]]), SHOP);
    let stage = stage.set("tor", "circuits", 1).set("fetch", "attempts_max", 5);
    // A search and a page for each visit: the third finds it.
    let twice = When::is(|hit| hit.purpose == Purpose::Page && hit.order < 4);
    stage.shops.of(SHOP).behave(twice, Conduct::CutShort);
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["status"], "found", "{}", products[0]);
    let text = |events: Vec<Value>, key: &str| -> Vec<String> {
        events.iter().map(|event| event[key].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(text(daemon.events("visit_ended"), "outcome"), ["truncated", "truncated", "found"]);
    assert_eq!(text(daemon.events("visit_ended"), "circuit"), ["w0.g1", "w0.g1", "w0.g2"]);
    assert_eq!(text(daemon.events("circuit_retired"), "reason"), ["failures"]);
}

/// Which circuits have the slow exit is chance, drawn anew every thirty fetches: for the test to fail, most of them would
/// have to have it each time.
#[tokio::test]
async fn a_circuit_that_is_slow_against_its_peers_is_retired() {
    const SHOP: ShopKind = ShopKind::Pharmagdd;
    const USUAL: Duration = Duration::from_millis(100);
    const SLOW: Duration = Duration::from_millis(1_500);
    let network = network().await;
    let catalogue = Catalogue::synthetic(2_000, 19);
    let eans = catalogue.eans();
    let stage = stage_of(&network, catalogue, SHOP);
    let stage = stage.set("tor", "circuits", 8).set("tor", "uses_max", 30);
    let stage = stage.set(&format!("sites.{}", SHOP.name()), "concurrency", 8);
    let slow_exit = OnceLock::new();
    let through_it = When::is(move |hit| *slow_exit.get_or_init(|| hit.local) == hit.local);
    stage.shops.of(SHOP).behave(When::Always, Conduct::Normal.after(USUAL));
    stage.shops.of(SHOP).behave(through_it, Conduct::Normal.after(SLOW));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(eans.iter().map(String::as_str))).await.unwrap());
    daemon.wait_for_event("circuit_retired", |event| event["reason"] == "slow").await.unwrap();
}

#[tokio::test]
async fn a_shop_that_refuses_everybody_is_suspended_once_and_its_visits_end_as_blocked_without_a_request() {
    const BAD: ShopKind = ShopKind::Pharmagdd;
    const PRODUCTS: usize = 60;
    let network = network().await;
    let catalogue = Catalogue::synthetic(PRODUCTS, 13);
    let eans = catalogue.eans();
    let stage = counted(stage_behind(&network, catalogue), BAD).set("fetch", "attempts_max", 5);
    stage.shops.of(BAD).behave(When::Always, Conduct::Status(403));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(eans.iter().map(String::as_str))).await.unwrap());
    let (products, summary) = stage.finished(PRODUCTS).await;
    assert_eq!(summary["counts"]["found"], PRODUCTS, "the other shops go on");
    let mut turned_away = 0;
    for product in &products {
        assert_eq!(product["data"].as_object().unwrap().len(), 2, "{product}");
        let error = &product["errors"][BAD.name()];
        assert_eq!(error["kind"], "blocked", "{product}");
        turned_away += usize::from(error["detail"].as_str().unwrap().contains("most exits"));
    }
    let suspended = daemon.events("shop_suspended");
    assert_eq!(suspended.len(), 1, "{suspended:?}");
    let told = ["site", "reason", "count", "detail"].map(|key| suspended[0][key].clone());
    assert_eq!(told, [json!(BAD.name()), json!("blocks"), json!(REFUSALS), json!("status 403")]);
    // One for each refusal, those in flight at that moment, and at most a trial now and then.
    let tried = daemon.events("shop_probed").len();
    let hits = stage.shops.of(BAD).hits().len();
    assert!((REFUSALS..REFUSALS + 6 + tried).contains(&hits), "{hits} requests, {tried} trials");
    assert!(turned_away > PRODUCTS / 2, "{turned_away}");
    assert_only_exits_came(&network, &stage);
}

#[tokio::test]
async fn a_shop_with_on_block_wait_is_waited_for_and_goes_on_when_it_lets_one_in() {
    const BAD: ShopKind = ShopKind::Pharmagdd;
    const PRODUCTS: usize = 12;
    let network = network().await;
    let catalogue = Catalogue::synthetic(PRODUCTS, 17);
    let eans: VecDeque<String> = catalogue.eans().into();
    let mut stage = counted(stage_behind(&network, catalogue), BAD).set("fetch", "attempts_max", 20);
    stage.config = stage.config.site_key(BAD.name(), "on_block", "wait");
    stage.shops.of(BAD).behave(When::Always, Conduct::Status(403));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(eans.iter().map(String::as_str))).await.unwrap());
    daemon.wait_for_event("shop_suspended", |event| event["site"] == BAD.name()).await.unwrap();
    stage.shops.of(BAD).behave_well();
    let before = stage.shops.of(BAD).hits().len();
    let resumed = daemon.wait_for_event("shop_resumed", |_| true).await.unwrap();
    assert_eq!(resumed["reason"], "blocks");
    let (products, _) = stage.finished(PRODUCTS).await;
    for product in &products {
        assert_eq!(product["data"].as_object().unwrap().len(), 3, "nobody was given up: {product}");
    }
    assert_eq!(daemon.events("shop_suspended").len(), 1);
    // A search and a page for each, and nothing for the wait; a visit may have been refused just before.
    let after = stage.shops.of(BAD).hits().len() - before;
    assert!((2 * PRODUCTS..=2 * PRODUCTS + 6).contains(&after), "{after} requests");
    let attempts = daemon.events("visit_started").iter().filter(|event| event["site"] == BAD.name()).count();
    assert!(attempts <= REFUSALS + 6 + PRODUCTS + 6, "{attempts}");
}
