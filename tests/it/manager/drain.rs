//! A drain shows its arithmetic and is not killed while it works.

use std::time::Duration;

use glaneur::exit::Exit;
use glaneur_kit::manager::Said;
use glaneur_kit::receiver::Answer;
use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{Daemon, Gate, Manager, Shop};

use super::setup;
use crate::support::{LONG, REAL, Stage, accepted, batch, stocked};

const WATCHDOG: Duration = Duration::from_secs(2);

/// A line of a drain: visits, deliveries, seconds left.
fn arithmetic(line: &str) -> Option<[u64; 3]> {
    let mut words = line.strip_prefix("draining ")?.split_whitespace().filter_map(|word| word.parse().ok());
    Some([words.next()?, words.next()?, words.next()?])
}

fn drain_lines(said: &[Said]) -> Vec<[u64; 3]> {
    said.iter().filter_map(|said| arithmetic(said.of("STATUS")?)).collect()
}

/// One webhook is held at the receiver, and visits at the shops.
async fn busy(stage: &Stage, manager: &Manager, shops: &Gate, hooks: &Gate) -> Daemon {
    stage.receiver.behave(Answer::Started.held(hooks));
    let daemon = setup(stage).under(manager).start().await.unwrap();
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    stage.receiver.wait_until(|seen| !seen.is_empty(), LONG).await.unwrap();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(shops));
    accepted(daemon.submit(&batch([REAL[1]])).await.unwrap());
    manager.wait_for("STATUS", |status| status.contains(" 3 visits, 1 delivery")).await.unwrap();
    daemon
}

#[tokio::test]
async fn each_second_of_a_drain_is_told_and_the_manager_waits_for_its_end() {
    let stage = Stage::direct(stocked(&REAL)).set("shutdown", "drain", "30s").set("fetch", "attempts_max", 1);
    let (shops, hooks) = (Gate::closed(), Gate::closed());
    let manager = Manager::start().unwrap().watchdog(WATCHDOG);
    let mut daemon = busy(&stage, &manager, &shops, &hooks).await;
    let before = manager.said().len();
    daemon.term().unwrap();
    manager.said().wait_until(|said| drain_lines(said).len() >= 5, LONG).await.unwrap();
    shops.open();
    hooks.open();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    let said = manager.said().all().split_off(before);
    let lines = drain_lines(&said);
    assert_eq!(&lines[0][..2], [3, 1], "{lines:?}");
    assert!(lines.is_sorted_by(|one, next| next[2] <= one[2]), "time runs: {lines:?}");
    assert!(lines[4][2] < lines[0][2], "{lines:?}");
    let told = |name: &str| said.iter().filter(|said| said.of(name).is_some()).count();
    assert!(told("EXTEND_TIMEOUT_USEC") >= lines.len(), "each line comes with more time");
    assert!(told("WATCHDOG") >= 3, "fed meanwhile");
    for extension in said.iter().filter_map(|said| said.of("EXTEND_TIMEOUT_USEC")) {
        let seconds = extension.parse::<u64>().unwrap() / 1_000_000;
        assert!((5..=40).contains(&seconds), "to the end of the drain, and not for ever: {seconds}");
    }
    daemon.restart().await.unwrap();
    assert_eq!(daemon.events("deaths_charged").len(), 0);
    let summaries = |seen: &[glaneur_kit::receiver::Seen]| {
        seen.iter().filter(|seen| glaneur_kit::receiver::is_summary(&seen.json())).count() >= 2
    };
    stage.receiver.wait_until(summaries, LONG).await.unwrap();
    let found = |product: &serde_json::Value| product["status"] == "found";
    assert!(stage.receiver.products().iter().all(found), "nothing was charged");
}

#[tokio::test]
async fn a_second_signal_does_not_wait_for_the_end_that_was_told() {
    let stage = Stage::direct(stocked(&REAL)).set("shutdown", "drain", "10m");
    let (shops, hooks) = (Gate::closed(), Gate::closed());
    let manager = Manager::start().unwrap();
    let mut daemon = busy(&stage, &manager, &shops, &hooks).await;
    daemon.term().unwrap();
    manager.wait_for("STATUS", |status| arithmetic(status).is_some()).await.unwrap();
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), i32::from(Exit::Cut.code()));
    stage.shops.all.iter().for_each(Shop::behave_well);
}
