//! Tor is gone: what is in flight is put back and charged nothing, one event and one line say why, nothing goes another
//! way, nothing spins and no deadline runs; and when Tor is back all goes on by itself.

use std::time::Duration;

use glaneur_kit::shop::{Conduct, Hit, Purpose, When};
use glaneur_kit::{Catalogue, Daemon, Gate, Manager, TorNetwork};

use super::{WINDOW, assert_within_attempts, idles, is_at_rest, network};
use crate::support::{BINARY, LONG, REAL, accepted, batch};
use crate::tor::{assert_no_way_around, assert_only_exits_came, stage_behind};

/// What a test expects of its way to lose Tor.
struct Loss {
    /// How long Tor is away: longer than any deadline.
    lasts: Duration,
    /// More than one only where a visit may have met a failing exit before Tor was gone.
    attempts_max: u64,
}

/// Visits hang at the shops when Tor goes.
async fn survives<T>(
    network: &TorNetwork,
    loss: Loss,
    take_away: impl AsyncFnOnce() -> T,
    bring_back: impl AsyncFnOnce(T),
) {
    let stage = stage_behind(network, Catalogue::of(REAL))
        .set("fetch", "visit_deadline", "8s")
        .set("fetch", "attempts_max", loss.attempts_max)
        .set("tor", "probe_timeout", "1s");
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    let manager = Manager::start().unwrap();
    let daemon = Daemon::builder(BINARY).config(stage.config.clone()).under(&manager).start().await.unwrap();
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    let asks_page = |hits: &[Hit]| hits.iter().any(|hit| hit.purpose == Purpose::Page);
    for shop in &stage.shops.all {
        shop.wait_until(asks_page, LONG).await.unwrap();
    }
    let taken = take_away().await;
    daemon.wait_for_event("tor_lost", |_| true).await.unwrap();
    is_at_rest(&daemon).await;
    assert_no_way_around(network, &stage, &daemon);
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let before = daemon.events("visit_started").len();
    idles(&daemon, loss.lasts).await;
    assert_no_way_around(network, &stage, &daemon);
    assert_eq!(daemon.events("visit_started").len(), before, "nothing starts while Tor is away");
    assert_told_once(&daemon, &manager).await;
    gate.open();
    stage.shops.all.iter().for_each(glaneur_kit::Shop::behave_well);
    bring_back(taken).await;
    let found = |found: &[glaneur_kit::receiver::Seen]| {
        let summary = |seen: &&glaneur_kit::receiver::Seen| {
            seen.taken() && glaneur_kit::receiver::is_summary(&seen.json())
        };
        found.iter().filter(summary).count() == 2
    };
    stage.receiver.wait_until(found, LONG).await.unwrap();
    let products = stage.receiver.products();
    assert!(products.iter().all(|product| product["status"] == "found"), "{products:?}");
    for product in &products {
        assert_eq!(product["errors"].as_object().map(serde_json::Map::len), Some(0), "{product}");
    }
    assert_within_attempts(&daemon, &stage, loss.attempts_max);
    assert_eq!(daemon.events("tor_lost").len(), 1, "one event, not one for each visit");
    assert_eq!(daemon.events("tor_found").len(), 2, "at the start, and now");
    assert_only_exits_came(network, &stage);
    stage.receiver.stop_listening().await;
}

/// By one event, one reason in one status line, and `readyz`.
async fn assert_told_once(daemon: &Daemon, manager: &Manager) {
    let lost = daemon.events("tor_lost");
    assert_eq!(lost.len(), 1, "{lost:?}");
    let away = format!("Tor away, work waits: {}", lost[0]["reason"].as_str().unwrap());
    let lines = manager.all_of("STATUS");
    assert!(lines.last().is_some_and(|line| line.ends_with(&away)), "{away:?} is not in {lines:?}");
    assert!(lines.iter().all(|line| !line.contains("Tor away") || line.ends_with(&away)), "{lines:?}");
    let (status, ready) = daemon.get("/readyz").await.unwrap();
    assert_eq!((status, &ready["details"]["tor"]), (200, &"away".into()), "submits are taken: {ready}");
}

#[tokio::test]
async fn a_client_that_is_killed_and_started_again_costs_nothing() {
    let network = network().await;
    let take_away = async || network.stop_client();
    survives(&network, Loss { lasts: WINDOW, attempts_max: 1 }, take_away, async |()| {
        network.start_client().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_client_that_is_paused_for_twenty_seconds_costs_nothing() {
    let network = network().await;
    let take_away = async || network.pause_client().unwrap();
    survives(&network, Loss { lasts: Duration::from_secs(20), attempts_max: 1 }, take_away, async |()| {
        network.resume_client().unwrap();
    })
    .await;
}

#[tokio::test]
async fn relays_that_die_all_at_once_and_come_back_are_waited_for() {
    let network = network().await;
    let all = 0..network.exits().len();
    let take_away = async || all.clone().for_each(|exit| network.kill_exit(exit));
    // An exit that dies alone looks the same, until no other answers.
    survives(&network, Loss { lasts: WINDOW, attempts_max: 3 }, take_away, async |()| {
        for exit in all.clone() {
            network.revive_exit(exit).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn while_every_circuit_fails_work_waits() {
    let network = network().await;
    let take_away = async || network.break_circuits().await.unwrap();
    survives(&network, Loss { lasts: WINDOW, attempts_max: 3 }, take_away, async |saboteur| {
        assert!(saboteur.closed() > 1, "circuits were built, and broken");
    })
    .await;
}
