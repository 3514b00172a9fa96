//! Through the real tor, in a private network on loopback: names resolve only at its exits, to addresses of their own,
//! so a shop sees which exit was used, and a request that came another way shows.

use std::path::Path;
use std::time::Duration;

use glaneur_kit::proxy::Manner;
use glaneur_kit::shop::{Conduct, Purpose, When};
use glaneur_kit::{Catalogue, Daemon, Gate, Proxy, Receiver, ShopKind, Shops, TorNetwork};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::support::{BINARY, LONG, REAL, Stage, accepted, batch, brisk, impatient, own_search};

/// One network for the whole run; a test that stops its client has it for itself.
pub async fn network() -> MutexGuard<'static, TorNetwork> {
    static NETWORK: OnceCell<Mutex<TorNetwork>> = OnceCell::const_new();
    let start = || async {
        glaneur_kit::ensure_tor().unwrap();
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tor");
        std::fs::create_dir_all(&cache).unwrap();
        Mutex::new(TorNetwork::start(Some(&cache)).await.unwrap())
    };
    NETWORK.get_or_init(start).await.lock().await
}

pub fn stage_behind(network: &TorNetwork, catalogue: Catalogue) -> Stage {
    let shops = Shops::start(catalogue, &network.aliases()).unwrap();
    let receiver = Receiver::start().unwrap();
    let mut config = impatient(&receiver).socks(network.socks());
    for shop in &shops.all {
        config = brisk(config.site(shop.kind().name(), shop.base()), shop.kind().name());
    }
    Stage { shops, receiver, config: own_search(config) }
}

pub fn assert_only_exits_came(network: &TorNetwork, stage: &Stage) {
    for hit in stage.shops.all.iter().flat_map(glaneur_kit::Shop::hits) {
        assert!(network.exit_of(hit.local).is_some(), "{hit:?} came by no exit");
    }
}

/// Peers of the daemon's connections: the SOCKS port, the receiver, and this test, which is on loopback as well.
fn assert_no_way_around(network: &TorNetwork, stage: &Stage, daemon: &Daemon) {
    for socket in daemon.sockets().unwrap() {
        let (local, remote) = (socket.local, socket.remote);
        let known = remote == network.socks()
            || remote == stage.receiver.address()
            || local.port() == daemon.api().address.port();
        assert!(known, "a connection to {remote}");
    }
}

/// A word of the log, in the order in which it was said.
fn told<'a>(events: &'a [Value], key: &str) -> Vec<&'a str> {
    events.iter().filter_map(|event| event[key].as_str()).collect()
}

#[tokio::test]
async fn the_real_batch_goes_through_real_circuits() {
    let network = network().await;
    let stage = stage_behind(&network, Catalogue::real_batch());
    let daemon = stage.start().await;
    accepted(daemon.submit(&glaneur_kit::shop::catalogue::real_batch_body()).await.unwrap());
    let (products, summary) = stage.finished(8).await;
    let statuses: Vec<_> = products.iter().map(|product| product["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["found", "found", "found", "found", "found", "found", "found", "not_found"]);
    assert_eq!(summary["counts"]["found"], 7);
    assert_only_exits_came(&network, &stage);
    let mut control = network.open_control().await.unwrap();
    let circuits = control.circuit_status().await.unwrap();
    let users = circuits.iter().filter(|circuit| {
        circuit.socks_username.as_deref().is_some_and(|user| user.starts_with("glaneur-w"))
    });
    assert!(users.count() > 1, "several circuits at once: {circuits:?}");
}

/// Visits hang at the shops when Tor goes; all of them are put back, and nothing is charged or sent another way.
async fn survives(network: &TorNetwork, take_away: impl Fn(), bring_back: impl AsyncFnOnce()) {
    const DEADLINE: Duration = Duration::from_secs(3);
    let stage = stage_behind(network, Catalogue::of(REAL))
        .set("fetch", "visit_deadline", "3s")
        .set("fetch", "attempts_max", 1)
        .set("tor", "probe_timeout", "1s");
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    let asks_page = |hits: &[glaneur_kit::shop::Hit]| hits.iter().any(|hit| hit.purpose == Purpose::Page);
    for shop in &stage.shops.all {
        shop.wait_until(asks_page, LONG).await.unwrap();
    }
    take_away();
    daemon.wait_for_event("tor_lost", |_| true).await.unwrap();
    assert_no_way_around(network, &stage, &daemon);
    let before = daemon.events("visit_ended").len();
    // The claim is about this time: longer than any deadline, and none runs.
    tokio::time::sleep(DEADLINE + Duration::from_secs(1)).await;
    assert_no_way_around(network, &stage, &daemon);
    assert!(daemon.events("visit_ended").len() <= before + 6, "nothing spins while Tor is away");
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    gate.open();
    stage.shops.all.iter().for_each(glaneur_kit::Shop::behave_well);
    bring_back().await;
    daemon.wait_for_event("tor_found", |_| true).await.unwrap();
    let seen = |seen: &[glaneur_kit::receiver::Seen]| {
        seen.iter().filter(|seen| seen.taken() && glaneur_kit::receiver::is_summary(&seen.json())).count()
            == 2
    };
    stage.receiver.wait_until(seen, LONG).await.unwrap();
    let products = stage.receiver.products();
    assert!(products.iter().all(|product| product["status"] == "found"), "{products:?}");
    let errors =
        products.iter().filter(|product| product["errors"].as_object().is_some_and(|e| !e.is_empty()));
    assert_eq!(errors.count(), 0, "no attempt was charged");
    let outcomes = daemon.events("visit_ended");
    assert!(
        told(&outcomes, "outcome").iter().all(|outcome| ["found", "put_back"].contains(outcome)),
        "{outcomes:?}"
    );
    assert_eq!(daemon.events("tor_lost").len(), 1, "one event, not one for each visit");
    assert_only_exits_came(network, &stage);
    stage.receiver.stop_listening().await;
}

#[tokio::test]
async fn tor_stopped_in_the_middle_and_started_again_costs_nothing() {
    let network = network().await;
    survives(&network, || network.stop_client(), async || network.start_client().await.unwrap()).await;
}

#[tokio::test]
async fn tor_paused_and_resumed_costs_nothing() {
    let network = network().await;
    survives(&network, || network.pause_client().unwrap(), async || network.resume_client().unwrap()).await;
}

#[tokio::test]
async fn an_answer_without_a_length_that_ends_early_is_not_trusted_and_is_fetched_again() {
    let network = network().await;
    let stage = stage_behind(&network, Catalogue::of([REAL[0]]));
    let first_page = When::is(|hit| hit.purpose == Purpose::Page && hit.order < 2);
    stage.shops.behave(&first_page, &Conduct::CutShort);
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["data"].as_object().unwrap().len(), 3, "{}", products[0]);
    let outcomes = daemon.events("visit_ended");
    assert!(told(&outcomes, "outcome").contains(&"truncated"), "{outcomes:?}");
}

#[tokio::test]
async fn a_proxy_that_takes_no_password_is_refused_and_nothing_goes_out() {
    let proxy = Proxy::start().unwrap();
    proxy.behave(Manner::NoAuth);
    let shops = Shops::start_here(Catalogue::of([REAL[0]])).unwrap();
    let receiver = Receiver::start().unwrap();
    let mut config = impatient(&receiver).socks(proxy.address());
    for shop in &shops.all {
        config = brisk(config.site(shop.kind().name(), shop.base()), shop.kind().name());
    }
    let daemon = Daemon::start(BINARY, own_search(config)).await.unwrap();
    daemon
        .wait_for_event("tor_lost", |event| event["reason"].as_str().is_some_and(|r| !r.is_empty()))
        .await
        .unwrap();
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    daemon.wait_for_event("batch_taken", |_| true).await.unwrap();
    assert!(shops.all.iter().all(|shop| shop.hits().is_empty()));
    assert_eq!(daemon.events("visit_started").len(), 0);
}

#[tokio::test]
async fn a_shop_whose_search_alone_goes_through_tor_waits_for_tor() {
    let proxy = Proxy::start().unwrap();
    proxy.behave(Manner::NoAuth);
    let mut stage = Stage::direct(Catalogue::of([REAL[0]]));
    stage.config = stage.config.socks(proxy.address()).set("sites.cocooncenter.search", "via", "tor");
    let daemon = stage.start().await;
    daemon.wait_for_event("tor_lost", |_| true).await.unwrap();
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    for direct in ["pharmagdd", "drakkars"] {
        daemon.wait_for_event("visit_ended", |event| event["site"] == direct).await.unwrap();
    }
    let started = daemon.events("visit_started");
    assert_eq!(started.len(), 2, "{started:?}");
    assert!(stage.shops.of(ShopKind::Cocooncenter).hits().is_empty());
}
