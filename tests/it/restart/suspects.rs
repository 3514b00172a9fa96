//! A product that may be what kills the process runs alone, and only a death while it ran alone counts further.

use std::collections::BTreeMap;

use glaneur::ledger::sqlite;
use glaneur::ledger::store::Read;
use glaneur_kit::shop::{Conduct, Hit, Purpose, When};
use glaneur_kit::{Daemon, Gate, ShopKind};
use serde_json::json;

use super::CLAIMS_MAX;
use crate::support::{Stage, accepted, batch, stocked};

const POISON: &str = "0748322148474";
const INNOCENT: [&str; 3] = ["0748322148481", "3701129820322", "3701129811955"];

/// Deaths charged to each open or ended product of the first batch, by index.
fn deaths(daemon: &Daemon, batch: &str) -> BTreeMap<u32, u32> {
    let mut ledger = sqlite::open_read_only(&daemon.ledger_path()).unwrap();
    let no = ledger.batch(batch).unwrap().unwrap().no;
    let products = ledger.products(no, 0, 100).unwrap();
    products.iter().map(|product| (product.index, product.deaths)).collect()
}

/// The page of the poison at this shop is never answered, until it behaves well.
fn hold_page_of_poison(stage: &Stage, shop: ShopKind) {
    let page = |hit: &Hit| hit.purpose == Purpose::Page && hit.is_about(POISON);
    stage.shops.of(shop).behave(When::is(page), Conduct::Normal.held(&Gate::closed()));
}

async fn die_in_visit_of_poison(daemon: &mut Daemon, stage: &Stage, shop: ShopKind, since: usize) {
    let shop = stage.shops.of(shop);
    let page = |hit: &Hit| hit.purpose == Purpose::Page && hit.is_about(POISON);
    shop.wait_until(|hits| hits[since..].iter().any(page), crate::support::LONG).await.unwrap();
    daemon.kill_9().await.unwrap();
}

fn mark(stage: &Stage, shop: ShopKind) -> usize {
    stage.shops.of(shop).records().len()
}

#[tokio::test]
async fn a_lone_suspect_killed_claims_max_minus_one_times_ends_normally() {
    let stage = Stage::real_batch();
    hold_page_of_poison(&stage, ShopKind::Pharmagdd);
    let mut daemon = stage.start().await;
    let answer = accepted(daemon.submit(&batch([POISON])).await.unwrap());
    let mut since = 0;
    for death in 1..CLAIMS_MAX {
        die_in_visit_of_poison(&mut daemon, &stage, ShopKind::Pharmagdd, since).await;
        since = mark(&stage, ShopKind::Pharmagdd);
        if death + 1 == CLAIMS_MAX {
            stage.shops.all.iter().for_each(glaneur_kit::Shop::behave_well);
        }
        daemon.restart().await.unwrap();
        let charged = daemon.events("deaths_charged");
        assert_eq!((charged.len(), &charged[0]["products"]), (1, &json!(1)), "death {death}");
        assert_eq!(charged[0]["crashed"], 0);
    }
    let (products, summary) = stage.finished(1).await;
    assert_eq!(products[0]["status"], "found");
    assert_eq!(summary["counts"]["found"], 1);
    assert_eq!(deaths(&daemon, answer["batch_id"].as_str().unwrap()), BTreeMap::from([(1, 3)]));
}

/// Kills `claims_max` times while the page of the poison is held, and expects the innocents unharmed. Deaths by index.
async fn claims_max_deaths(stage: &Stage, eans: &[&str]) -> BTreeMap<u32, u32> {
    hold_page_of_poison(stage, ShopKind::Pharmagdd);
    let mut daemon = stage.start().await;
    let answer = accepted(daemon.submit(&batch(eans.iter().copied())).await.unwrap());
    let mut since = 0;
    for death in 1..=CLAIMS_MAX {
        die_in_visit_of_poison(&mut daemon, stage, ShopKind::Pharmagdd, since).await;
        since = mark(stage, ShopKind::Pharmagdd);
        daemon.restart().await.unwrap();
        let charged = daemon.events("deaths_charged");
        assert_eq!(charged.len(), 1, "death {death}");
        if 2 < death {
            assert_eq!(charged[0]["products"], 1, "death {death}: it ran alone");
        }
        assert_eq!(charged[0]["crashed"], u64::from(death == CLAIMS_MAX), "death {death}");
        let told = daemon.events("product_ended").into_iter().filter(|event| event["kind"] == "crashed");
        assert_eq!(told.count(), usize::from(death == CLAIMS_MAX), "death {death}: its end is told");
    }
    let (products, summary) = stage.finished(eans.len()).await;
    for product in &products {
        let (status, kind) =
            if product["ean"] == POISON { ("failed", json!("crashed")) } else { ("found", json!(null)) };
        assert_eq!((&product["status"], &product["reason"]["kind"]), (&json!(status), &kind), "{product}");
    }
    assert_eq!(summary["counts"]["failed"], 1);
    assert_eq!(summary["failed"][0]["ean"], POISON);
    deaths(&daemon, answer["batch_id"].as_str().unwrap())
}

fn all_in_stock() -> Stage {
    Stage::direct(stocked(&[POISON, INNOCENT[0], INNOCENT[1], INNOCENT[2]]))
}

#[tokio::test]
async fn a_poison_killed_claims_max_times_ends_as_crashed_and_those_who_waited_are_not_charged() {
    let stage = all_in_stock().only(ShopKind::Pharmagdd).set("tor", "circuits", 1);
    let deaths = claims_max_deaths(&stage, &[POISON, INNOCENT[0], INNOCENT[1], INNOCENT[2]]).await;
    assert_eq!(deaths, BTreeMap::from([(1, 4), (2, 0), (3, 0), (4, 0)]));
}

#[tokio::test]
async fn a_poison_among_many_scrapers_is_told_from_the_innocents_visited_with_it() {
    let stage = all_in_stock();
    let deaths = claims_max_deaths(&stage, &[INNOCENT[0], INNOCENT[1], POISON, INNOCENT[2]]).await;
    assert_eq!(deaths[&3], 4);
    for index in [1, 2, 4] {
        assert!(deaths[&index] <= 2, "charged at most while visited together with it: {deaths:?}");
    }
}

/// With two scrapers and three shops, the innocent's third visit still waits when the suspect gets the floor.
#[tokio::test]
async fn an_innocent_half_visited_when_a_suspect_gets_the_floor_does_not_take_its_death() {
    let stage = all_in_stock()
        .set("tor", "circuits", 2)
        .set("fetch", "attempts_max", 5)
        .set("fetch", "retry_min", "10m")
        .set("fetch", "retry_max", "10m");
    // The innocent stays open over the first deaths, and at rest: its third shop fails and is tried again later.
    let third = stage.shops.of(ShopKind::Drakkars);
    third.behave(When::Ean(INNOCENT[0].into()), Conduct::Status(503));
    hold_page_of_poison(&stage, ShopKind::Pharmagdd);
    let mut daemon = stage.start().await;
    let answer = accepted(daemon.submit(&batch([INNOCENT[0], POISON])).await.unwrap());
    let mut since = 0;
    for death in 1..CLAIMS_MAX {
        if death < 3 {
            let third_of_innocent =
                |event: &serde_json::Value| event["index"] == 1 && event["site"] == "drakkars";
            daemon.wait_for_event("visit_ended", third_of_innocent).await.unwrap();
            super::waiting::until_at_rest(&daemon, 1).await;
        }
        die_in_visit_of_poison(&mut daemon, &stage, ShopKind::Pharmagdd, since).await;
        since = mark(&stage, ShopKind::Pharmagdd);
        if death + 1 == CLAIMS_MAX {
            stage.shops.all.iter().for_each(glaneur_kit::Shop::behave_well);
        }
        daemon.restart().await.unwrap();
        let deaths = deaths(&daemon, answer["batch_id"].as_str().unwrap());
        assert_eq!(deaths, BTreeMap::from([(1, 0), (2, u32::try_from(death).unwrap())]));
    }
}

/// A commit after all that was written so far.
async fn fence(daemon: &Daemon, n: usize) {
    accepted(daemon.submit(&json!({"eans": ["7.48E+11"], "metadata": {"fence": n}})).await.unwrap());
}

/// Its other shops have answered before it kills: it is charged all the same.
#[tokio::test]
async fn a_suspect_whose_other_visits_have_ended_is_still_charged() {
    let stage = Stage::real_batch();
    hold_page_of_poison(&stage, ShopKind::Pharmagdd);
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch([POISON])).await.unwrap());
    let mut since = 0;
    for death in 1..=CLAIMS_MAX {
        for site in ["cocooncenter", "drakkars"] {
            daemon.wait_for_event("visit_ended", |event| event["site"] == site).await.unwrap();
        }
        // What the scrapers write at the end of a visit is on disk before what the API writes now.
        fence(&daemon, death).await;
        die_in_visit_of_poison(&mut daemon, &stage, ShopKind::Pharmagdd, since).await;
        since = mark(&stage, ShopKind::Pharmagdd);
        daemon.restart().await.unwrap();
        assert_eq!(daemon.events("deaths_charged").len(), 1, "death {death}");
    }
    let of_poison = |seen: &[glaneur_kit::receiver::Seen]| {
        seen.iter().map(glaneur_kit::receiver::Seen::json).find(|body| body["ean"] == POISON)
    };
    let body = stage.receiver.records().wait_for(of_poison, crate::support::LONG).await.unwrap();
    assert_eq!(body["reason"]["kind"], "crashed");
}
