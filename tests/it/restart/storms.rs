//! What fails at once and for ever costs a bounded number of restarts, and before that only what is near to it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};

use glaneur::exit::Exit;
use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{Daemon, Gate, ShopKind};
use serde_json::{Value, json};

use crate::support::{BINARY, LONG, REAL, Stage, accepted, batch, stocked};

/// `supervisor::Child::spec` allows five restarts within a minute.
const RUNS_MAX: usize = 6;
/// `suspension::CRASHES` allows ten within a minute.
const CRASHES_MAX: usize = 11;

async fn start(stage: &Stage, fail: &str) -> Daemon {
    let setup = Daemon::builder(BINARY).config(stage.config.clone()).env("GLANEUR_FAIL", fail);
    setup.start().await.unwrap()
}

fn of_shop(eans: impl IntoIterator<Item = impl AsRef<str>>, shop: ShopKind) -> Value {
    let eans: Vec<String> = eans.into_iter().map(|ean| ean.as_ref().to_owned()).collect();
    let mut body = batch(eans.iter().map(String::as_str));
    body["sites"] = json!([shop.name()]);
    body
}

#[tokio::test]
async fn a_part_that_fails_at_once_for_ever_ends_the_process_after_a_bounded_number_of_restarts() {
    for point in ["sender.tick", "scrapers.tick", "batches.opened"] {
        let stage = Stage::direct(stocked(&REAL));
        let mut daemon = start(&stage, &format!("{point}=panic@*")).await;
        assert_eq!(daemon.wait_exit().await.unwrap(), i32::from(Exit::Escalated.code()), "{point}");
        assert_eq!(daemon.events("panicked").len(), RUNS_MAX, "{point}");
        assert_eq!(daemon.events("actor_restarted").len(), RUNS_MAX - 1, "{point}");
        assert_eq!(daemon.events("actor_escalated").len(), 1, "{point}");
        daemon.set_env("GLANEUR_FAIL", "");
        daemon.restart().await.unwrap();
        accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
        stage.finished(1).await;
        assert!(daemon.events("deaths_charged").is_empty(), "an escalation is nobody's fault");
    }
}

#[tokio::test]
async fn a_shop_that_makes_scrapers_crash_is_suspended_and_everything_else_goes_on() {
    const PRODUCTS: usize = 30;
    let (bad, good) = (ShopKind::Pharmagdd, ShopKind::Cocooncenter);
    let stage = Stage::of(PRODUCTS);
    let eans = glaneur_kit::Catalogue::synthetic(PRODUCTS, 7).eans();
    let mut daemon = start(&stage, &format!("scraper.fetched[{}]=panic@*", bad.name())).await;
    let waits = accepted(daemon.submit(&of_shop(&eans, bad)).await.unwrap());
    let first = daemon.wait_for_event("shop_suspended", |_| true).await.unwrap();
    assert_eq!(first["site"], bad.name());
    assert_eq!((&first["reason"], &first["count"]), (&json!("crashes"), &json!(CRASHES_MAX)));
    assert!(first["until"].as_str().is_some_and(|until| until.ends_with('Z')), "{first}");

    // Accepting goes on, and so does the other shop.
    accepted(daemon.submit(&of_shop(&eans[..5], good)).await.unwrap());
    stage.finished(5).await;
    let (status, ready) = daemon.get("/readyz").await.unwrap();
    assert_eq!(status, 200, "{ready}");

    // It is tried again after its time, with one visit, and left alone for longer.
    let longer = |event: &Value| event["seconds"].as_u64() > first["seconds"].as_u64();
    daemon.wait_for_event("shop_probed", longer).await.unwrap();
    assert_eq!((daemon.events("shop_suspended").len(), daemon.events("shop_resumed").len()), (1, 0));
    let visits = daemon.events("visit_started");
    let bad_visits = visits.iter().filter(|event| event["site"] == bad.name());
    // Those in flight on the other circuits at the moment of the suspension had started too.
    let bound = CRASHES_MAX + 5 + 1;
    assert!(bad_visits.count() <= bound, "the storm has ended");
    assert!(daemon.events("panicked").len() <= bound);
    assert!(daemon.events("actor_escalated").is_empty());
    let failures = daemon.events("actor_restarted").iter().map(|event| event["failures"].as_u64()).max();
    assert_eq!(failures, Some(Some(CRASHES_MAX as u64)), "the log shows that they repeat");
    for event in ["product_ended", "claim_stranded"] {
        let of_bad = |event: &&Value| event["batch_id"] == waits["batch_id"];
        assert_eq!(daemon.events(event).iter().filter(of_bad).count(), 0, "they wait: {event}");
    }

    // Who mends it restarts it: all of them are found, and nobody lost more than the attempts that crashed.
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    daemon.set_env("GLANEUR_FAIL", "");
    daemon.restart().await.unwrap();
    let id = &waits["batch_id"];
    let ended = |event: &Value| event["batch_id"] == *id;
    daemon.wait_for_event("batch_ended", ended).await.unwrap();
    let (_, view) = daemon.get(waits["status_url"].as_str().unwrap()).await.unwrap();
    assert_eq!(view["counts"]["found"], PRODUCTS, "{view}");
}

#[tokio::test]
async fn a_shop_that_mended_itself_goes_on_after_its_suspension_and_no_attempt_was_charged_for_the_wait() {
    let shop = ShopKind::Pharmagdd;
    let stage = Stage::of(20);
    let eans = glaneur_kit::Catalogue::synthetic(20, 7).eans();
    let name = shop.name();
    let fail: Vec<String> = (1..=CRASHES_MAX).map(|n| format!("scraper.fetched[{name}]=panic@{n}")).collect();
    let daemon = start(&stage, &fail.join(",")).await;
    accepted(daemon.submit(&of_shop(&eans, shop)).await.unwrap());
    daemon.wait_for_event("shop_suspended", |_| true).await.unwrap();
    daemon.wait_for_event("shop_resumed", |event| event["site"] == name).await.unwrap();
    let (products, _) = stage.finished(20).await;
    assert!(products.iter().all(|product| product["status"] == "found"), "{products:?}");
    let charged = daemon.events("visit_started").iter().filter(|event| event["attempt"] != 1).count();
    assert_eq!(charged, CRASHES_MAX, "one attempt for each crash");
    let suspended: BTreeSet<String> =
        daemon.events("shop_suspended").iter().map(|event| event["site"].to_string()).collect();
    assert_eq!((suspended.len(), daemon.events("shop_suspended").len()), (1, 1));
}

/// A person has to restore it: a manager that starts it again must be told not to.
#[tokio::test]
async fn a_ledger_damaged_under_a_running_daemon_ends_it_with_the_code_that_is_not_restarted() {
    let stage = Stage::direct(stocked(&REAL));
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    stage.finished(REAL.len()).await;
    // Closed and opened again: everything is in the file, and nothing of it in a cache.
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    daemon.restart().await.unwrap();
    let path = daemon.ledger_path();
    let length = fs::metadata(&path).unwrap().len();
    let mut file = File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(4096)).unwrap();
    file.write_all(&vec![0x5a; usize::try_from(length).unwrap() - 4096]).unwrap();
    drop(file);

    let exit = tokio::time::timeout(LONG, daemon.wait_exit()).await.unwrap().unwrap();
    assert_eq!(exit, i32::from(Exit::LedgerDamaged.code()), "{}", daemon.stderr_tail());
    assert_eq!(daemon.events("ledger_lost").len(), 1);
    let told = daemon.stderr_tail();
    assert!(told.contains(&*path.to_string_lossy()) && told.contains("restore a backup"), "{told}");
    let refused = daemon.restart().await.unwrap_err().to_string();
    assert!(refused.contains("ended with code 65 "), "{refused}");
}

/// The root hears and answers while it drains, so what fails in a drain is not taken for its end.
#[tokio::test]
async fn a_root_that_fails_while_it_drains_ends_the_process_as_failed() {
    let stage = Stage::real_batch();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&Gate::closed()));
    // It ticks once a second, and the visits are held far longer.
    let mut daemon = start(&stage, "root.tick=panic@6").await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    stage.shops.all[0].wait_until(|hits| hits.len() >= 2, LONG).await.unwrap();
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), i32::from(Exit::Escalated.code()));
    assert_eq!((daemon.events("drain_started").len(), daemon.events("drain_ended").len()), (1, 0));
    daemon.set_env("GLANEUR_FAIL", "");
    stage.shops.all.iter().for_each(glaneur_kit::Shop::behave_well);
    daemon.restart().await.unwrap();
    assert!(daemon.events("deaths_charged").is_empty(), "it is nobody's fault");
    stage.finished(REAL.len()).await;
}
