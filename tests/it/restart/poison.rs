//! A page that aborts the whole process, among innocents: it alone ends as crashed.

use glaneur::ledger::sqlite;
use glaneur::ledger::store::Read;
use glaneur_kit::Daemon;
use serde_json::json;

use super::{CLAIMS_MAX, SIGABRT};
use crate::support::{BINARY, REAL, Stage, accepted, batch, stocked};

/// The fourth of the eight.
const POISON: &str = REAL[3];

/// Starts it again after each death, as a service manager does.
async fn outlive_its_deaths(daemon: &mut Daemon) {
    for death in 1..=CLAIMS_MAX {
        // If it died before it listened, its end was seen already.
        if daemon.pid().is_ok() {
            assert_eq!(daemon.wait_exit().await.unwrap(), SIGABRT, "death {death}");
        }
        let _ = daemon.restart().await;
    }
}

/// Deaths charged to each product, by its place.
async fn poisoned(stage: Stage) -> Vec<u32> {
    let fail = format!("scraper.fetched[{POISON}]=abort");
    let setup = Daemon::builder(BINARY).config(stage.config.clone()).env("GLANEUR_FAIL", fail);
    let mut daemon = setup.start().await.unwrap();
    let answer = accepted(daemon.submit(&batch(REAL)).await.unwrap());
    outlive_its_deaths(&mut daemon).await;

    let (products, summary) = stage.finished(REAL.len()).await;
    for product in &products {
        let (status, kind) =
            if product["ean"] == POISON { ("failed", json!("crashed")) } else { ("found", json!(null)) };
        assert_eq!((&product["status"], &product["reason"]["kind"]), (&json!(status), &kind), "{product}");
    }
    assert_eq!((&summary["counts"]["found"], &summary["counts"]["failed"]), (&json!(7), &json!(1)));
    assert_eq!(stage.receiver.by_webhook_id().len(), REAL.len() + 1, "each outcome is told under one id");

    // It stays up: another batch, with the same fail point set, comes to its end.
    let next = accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let id = &next["batch_id"];
    daemon.wait_for_event("batch_ended", |event| event["batch_id"] == *id).await.unwrap();
    assert!(daemon.is_running());
    let mut ledger = sqlite::open_read_only(&daemon.ledger_path()).unwrap();
    let no = ledger.batch(answer["batch_id"].as_str().unwrap()).unwrap().unwrap().no;
    ledger.products(no, 0, 100).unwrap().iter().map(|product| product.deaths).collect()
}

#[tokio::test]
async fn a_page_that_aborts_the_process_ends_as_crashed_and_its_innocent_neighbours_are_found() {
    let deaths = poisoned(Stage::direct(stocked(&REAL))).await;
    assert_eq!(deaths[3], 4);
    for (at, deaths) in deaths.iter().enumerate().filter(|(at, _)| *at != 3) {
        assert!(*deaths <= 2, "product {at} was charged only while visited together with it: {deaths}");
    }
}

#[tokio::test]
async fn those_who_wait_while_a_page_aborts_the_process_are_not_charged() {
    let deaths = poisoned(Stage::direct(stocked(&REAL)).set("tor", "circuits", 1)).await;
    assert_eq!(deaths, [0, 0, 0, 4, 0, 0, 0, 0]);
}
