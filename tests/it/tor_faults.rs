//! The real Tor at its worst: every batch ends with right outcomes, within its attempts, and nothing goes another way.

mod away;
mod exits;
mod names;
mod not_tor;
mod onion;
mod town;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use glaneur_kit::shop::Purpose;
use glaneur_kit::{Daemon, Shop, TorNetwork};
use tokio::sync::MutexGuard;

use crate::support::{Stage, until};

/// As long as the claim needs to be measured: 1 % of it is ten ticks of the clock that counts CPU time.
const WINDOW: Duration = Duration::from_secs(10);

/// The network, in good order: the test before may have failed in the middle of its mischief.
async fn network() -> MutexGuard<'static, TorNetwork> {
    let network = crate::tor::network().await;
    network.mend().await.unwrap();
    network
}

/// Lets a while pass in which there is nothing to do, and measures what the daemon does nevertheless.
async fn idles(daemon: &Daemon, window: Duration) {
    let (before, begun) = (daemon.cpu_time().unwrap(), Instant::now());
    tokio::time::sleep(window).await;
    let (used, passed) = (daemon.cpu_time().unwrap() - before, begun.elapsed());
    assert!(used < passed / 100, "a busy loop: {used:?} of CPU in {passed:?} without Tor");
}

/// No visit is in flight.
async fn is_at_rest(daemon: &Daemon) {
    let all = |name| daemon.events(name).len();
    until("no visit is in flight", || all("visit_started") == all("visit_ended")).await;
}

/// No visit of a product at a shop was charged more often than `most`, and no shop was asked more often than visits began.
fn assert_within_attempts(daemon: &Daemon, stage: &Stage, most: u64) {
    let mut charged = BTreeMap::<_, u64>::new();
    for end in daemon.events("visit_ended") {
        assert!(end["attempt"].as_u64().unwrap() <= most, "an attempt beyond the limit: {end}");
        if end["outcome"] != "put_back" {
            let visit = ["batch_id", "index", "site"].map(|key| end[key].to_string());
            *charged.entry(visit).or_default() += 1;
        }
    }
    let over = charged.iter().find(|(_, times)| **times > most);
    assert_eq!(over, None, "charged more often than {most} times");
    for shop in &stage.shops.all {
        let name = shop.kind().name();
        let begun = ["visit_started", "visit_hedged"]
            .map(|event| daemon.events(event).iter().filter(|event| event["site"] == name).count());
        let searches = hits(shop, Purpose::Search);
        assert!(searches <= begun.iter().sum(), "{name} was searched {searches} times in {begun:?} visits");
    }
}

fn hits(shop: &Shop, purpose: Purpose) -> usize {
    shop.records().with(|hits| hits.iter().filter(|hit| hit.purpose == purpose).count())
}
