//! One line that says what the daemon does.

use std::time::Duration;

use glaneur_kit::manager::Said;
use glaneur_kit::receiver::Answer;
use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{Gate, Manager};

use super::setup;
use crate::support::{LONG, REAL, Stage, accepted, batch};

#[tokio::test]
async fn the_line_follows_the_work_and_says_that_tor_is_away() {
    let stage = Stage::real_batch().set("tor", "socks", "127.0.0.1:1");
    let (shop_gate, hook_gate) = (Gate::closed(), Gate::closed());
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&shop_gate));
    stage.receiver.behave(Answer::Started.held(&hook_gate));
    let manager = Manager::start().unwrap();
    let daemon = setup(&stage).under(&manager).start().await.unwrap();
    manager.wait_for("STATUS", |status| status.starts_with("idle; Tor away, work waits: ")).await.unwrap();
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    let visiting = |status: &str| status.starts_with("1 batch open, ") && status.contains(" 6 visits");
    manager.wait_for("STATUS", visiting).await.unwrap();
    shop_gate.open();
    manager.wait_for("STATUS", |status| status.starts_with("8 deliveries; ")).await.unwrap();
    hook_gate.open();
    stage.finished(8).await;
    let idle_again = |said: &[Said]| {
        let last = said.iter().rev().find_map(|said| said.of("STATUS"));
        last.is_some_and(|status| status.starts_with("idle; "))
    };
    manager.said().wait_until(idle_again, LONG).await.unwrap();
}

#[tokio::test]
async fn a_line_that_did_not_change_is_not_said_again() {
    let stage = Stage::real_batch();
    let manager = Manager::start().unwrap().watchdog(Duration::from_millis(900));
    let _daemon = setup(&stage).under(&manager).start().await.unwrap();
    let beats = |said: &[Said]| said.iter().filter(|said| said.of("WATCHDOG").is_some()).count() >= 12;
    manager.said().wait_until(beats, LONG).await.unwrap();
    let mut lines = manager.all_of("STATUS");
    let said = lines.len();
    lines.dedup();
    assert_eq!(lines.len(), said, "{lines:?}");
}

#[tokio::test]
async fn a_start_that_is_refused_leaves_its_reason_in_the_line() {
    let stage = Stage::real_batch();
    let manager = Manager::start().unwrap();
    let mut daemon = setup(&stage).under(&manager).start().await.unwrap();
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    std::fs::write(daemon.ledger_path(), "no ledger".repeat(1000)).unwrap();
    let refused = daemon.restart().await.unwrap_err().to_string();
    let line = manager.wait_for("STATUS", |status| status.contains("ledger.sqlite")).await.unwrap();
    assert!(refused.contains(&line), "{line:?} is not in {refused}");
}

/// A manager that starts it again at once would fill the disk with the log of that.
#[tokio::test]
async fn a_start_that_may_go_better_later_takes_its_time_to_end() {
    let stage = Stage::real_batch();
    let manager = Manager::start().unwrap();
    let stage = stage.set("server", "token_file", "/nonexistent/token");
    let begun = std::time::Instant::now();
    let refused = setup(&stage).under(&manager).start().await.unwrap_err();
    assert!(refused.to_string().contains("server.token_file"), "{refused}");
    assert!(begun.elapsed() >= Duration::from_secs(2), "after {:?}", begun.elapsed());
}
