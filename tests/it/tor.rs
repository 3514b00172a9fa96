//! Through the real tor, in a private network on loopback: names resolve only at its exits, to addresses of their own,
//! so a shop sees which exit was used, and a request that came another way shows.

use std::path::Path;

use glaneur_kit::proxy::Manner;
use glaneur_kit::shop::{Conduct, Purpose, When};
use glaneur_kit::{Catalogue, Daemon, Proxy, Receiver, ShopKind, Shops, TorNetwork};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::support::{REAL, Stage, accepted, batch, brisk, impatient, own_search};

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
pub fn assert_no_way_around(network: &TorNetwork, stage: &Stage, daemon: &Daemon) {
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
