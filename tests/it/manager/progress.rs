//! The watchdog is fed by progress, a long start by its own; a hang gets neither.

use std::time::{Duration, Instant};

use glaneur_kit::manager::Said;
use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{Catalogue, Daemon, Gate, Manager, ShopKind};

use super::setup;
use crate::disk::SmallDisk;
use crate::support::{LONG, REAL, Stage, accepted, batch};

/// Short for a test, and several times what a commit takes on a machine that is busy with others.
const WATCHDOG: Duration = Duration::from_secs(2);

/// Visits whose deadline a test can wait for.
fn stage() -> Stage {
    Stage::real_batch()
        .set("fetch", "visit_deadline", "1s")
        .set("tor", "probe_timeout", "50ms")
        .set("extract", "time_max", "100ms")
}

async fn withheld(point: &str, part: &str) {
    let stage = stage();
    let manager = Manager::start().unwrap().watchdog(WATCHDOG);
    let setup = setup(&stage).under(&manager).env("GLANEUR_FAIL", format!("{point}=hang@3"));
    let daemon = setup.start().await.unwrap();
    manager.wait_for("WATCHDOG", |value| value == "1").await.unwrap();
    let api = daemon.api();
    // It has no answer where the commit is what hangs.
    let submit = tokio::spawn(async move { api.submit(&batch(REAL)).await });
    let event = daemon.wait_for_event("watchdog_withheld", |_| true).await.unwrap();
    assert_eq!(event["part"], part, "{event}");
    let fed = manager.all_of("WATCHDOG").len();
    // The claim is about this time: the manager would act in it.
    tokio::time::sleep(WATCHDOG).await;
    assert_eq!(manager.all_of("WATCHDOG").len(), fed, "{part}: not fed any more");
    assert_eq!(daemon.events("watchdog_withheld").len(), 1, "one event, not one for each beat");
    submit.abort();
}

#[tokio::test]
async fn a_root_that_hangs_is_not_called_alive() {
    withheld("root.tick", "root").await;
}

#[tokio::test]
async fn a_commit_that_does_not_return_is_not_called_alive() {
    withheld("ledger.commit", "ledger").await;
}

#[tokio::test]
async fn a_visit_past_its_deadline_is_not_called_alive() {
    withheld("scraper.visit", "visit").await;
}

/// The longest time between two signs of life, the last one being now.
fn longest_silence(manager: &Manager) -> Duration {
    let mut times: Vec<Instant> = manager
        .said()
        .with(|all| all.iter().filter(|said| said.of("WATCHDOG").is_some()).map(|s| s.at).collect());
    times.push(Instant::now());
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
}

#[tokio::test]
async fn a_busy_daemon_whose_shops_are_silent_is_alive() {
    let catalogue = Catalogue::synthetic(400, 7);
    let body = catalogue.batch();
    let stage = Stage::direct(catalogue).set("fetch", "visit_deadline", "1s").set("fetch", "attempts_max", 1);
    let first = &stage.shops.all[0];
    first.behave(When::Pages, Conduct::Silent);
    let manager = Manager::start().unwrap().watchdog(WATCHDOG);
    let daemon = setup(&stage).under(&manager).start().await.unwrap();
    accepted(daemon.submit(&body).await.unwrap());
    manager.wait_for("STATUS", |status| status.contains("visit")).await.unwrap();
    // Several visits in a row hang until their deadline.
    let timed_out = |hits: &[glaneur_kit::shop::Hit]| hits.len() >= 40;
    first.wait_until(timed_out, LONG).await.unwrap();
    assert!(longest_silence(&manager) < WATCHDOG, "{:?}", longest_silence(&manager));
    assert!(daemon.events("watchdog_withheld").is_empty());
}

#[tokio::test]
async fn a_visit_that_waits_for_its_pace_longer_than_its_deadline_is_alive() {
    // Four seconds between the search and the page.
    let only = ShopKind::Pharmagdd;
    let mut stage = stage().set("fetch", "visit_deadline", "300ms").only(only);
    stage.config = stage.config.site_key(only.name(), "rate", "15/m");
    let manager = Manager::start().unwrap().watchdog(WATCHDOG);
    let daemon = setup(&stage).under(&manager).start().await.unwrap();
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["status"], "found");
    assert!(daemon.events("watchdog_withheld").is_empty());
    assert!(longest_silence(&manager) < WATCHDOG, "{:?}", longest_silence(&manager));
}

#[tokio::test]
async fn a_full_disk_is_a_failure_that_was_understood_and_no_hang() {
    let disk = SmallDisk::mount(4 << 20);
    let stage = stage().set("ledger", "url", disk.url());
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    let manager = Manager::start().unwrap().watchdog(WATCHDOG);
    let daemon = setup(&stage).under(&manager).start().await.unwrap();
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    disk.fill_up_to(0);
    gate.open();
    manager.wait_for("STATUS", |status| status.contains("no room on the ledger's disk")).await.unwrap();
    // The claim is about this time.
    tokio::time::sleep(2 * WATCHDOG).await;
    assert!(longest_silence(&manager) < WATCHDOG, "{:?}", longest_silence(&manager));
    assert!(daemon.events("watchdog_withheld").is_empty());
    disk.make_room();
    stage.finished(8).await;
}

/// A daemon that was killed with products in hand, and takes them over slowly.
async fn killed(stage: &Stage, manager: &Manager, fail: &str) -> Daemon {
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    let mut daemon = setup(stage).under(manager).start().await.unwrap();
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    let first = &stage.shops.all[0];
    first.wait_until(|hits| hits.len() >= 2, LONG).await.unwrap();
    daemon.kill_9().await.unwrap();
    stage.shops.all.iter().for_each(glaneur_kit::Shop::behave_well);
    daemon.set_env("GLANEUR_FAIL", fail);
    daemon
}

#[tokio::test]
async fn a_long_recovery_puts_the_end_of_the_start_off_while_it_moves() {
    let (stage, manager) = (stage(), Manager::start().unwrap());
    let mut daemon = killed(&stage, &manager, "ledger.take_over=slow").await;
    assert!(manager.all_of("EXTEND_TIMEOUT_USEC").is_empty(), "a start that is not long asks for nothing");
    daemon.restart().await.unwrap();
    let ready_again = |said: &[Said]| said.iter().filter(|said| said.of("READY").is_some()).count() == 2;
    let said = manager.said().wait_until(ready_again, LONG).await.unwrap();
    let last = |name| said.iter().rposition(|said| said.of(name).is_some()).unwrap();
    assert!(last("EXTEND_TIMEOUT_USEC") < last("READY"), "not ready before the ledger is open");
    assert!(manager.all_of("EXTEND_TIMEOUT_USEC").len() >= 2, "{:?}", manager.said().all());
    let opening = |status: &&String| *status == "opening the ledger";
    assert_eq!(manager.all_of("STATUS").iter().filter(opening).count(), 2, "one for each start");
    stage.finished(8).await;
}

#[tokio::test]
async fn a_recovery_that_hangs_does_not() {
    /// In which a recovery that moves says so twice.
    const LOOKED_AT: Duration = Duration::from_millis(2_500);
    let (stage, manager) = (stage(), Manager::start().unwrap());
    let mut daemon = killed(&stage, &manager, "ledger.take_over=hang").await;
    let seen = manager.said().len();
    tokio::select! {
        started = daemon.restart() => panic!("it started: {started:?}"),
        // The claim is about this time.
        () = tokio::time::sleep(LOOKED_AT) => {}
    }
    let said: Vec<_> = manager.said().all()[seen..].iter().map(|said| said.note.clone()).collect();
    assert_eq!(said, ["STATUS=opening the ledger"]);
}
