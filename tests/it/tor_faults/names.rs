//! An exit that gets a name wrong, or refuses: what Tor says of it tells little, so another exit is tried.

use std::net::Ipv4Addr;
use std::time::Duration;

use glaneur_kit::client::{self, Credentials};
use glaneur_kit::tor::Lie;
use glaneur_kit::{Catalogue, ShopKind, TorNetwork};

use super::{assert_within_attempts, network};
use crate::support::{REAL, accepted, batch, until_told};
use crate::tor::{assert_only_exits_came, stage_behind};

/// The only exit that is used, until the fault was met.
const EXIT: usize = 0;

const ATTEMPTS_MAX: u64 = 20;

const SHOP: ShopKind = ShopKind::Cocooncenter;

/// Has one visit meet a fault at its exit; with the fault gone, or another exit, it ends well. `fault` gets the shop's port.
async fn is_got_over(
    network: &TorNetwork,
    name: &str,
    outcomes: &[&str],
    fault: impl AsyncFnOnce(u16),
    mend: impl AsyncFnOnce(),
) {
    let stage = stage_behind(network, Catalogue::of([REAL[0]]))
        .only(SHOP)
        .set("fetch", "attempts_max", ATTEMPTS_MAX)
        .set("fetch", "connect_timeout", "2s")
        .set("tor", "probe_timeout", "5s");
    // An exit keeps what it was told of a name: each fault has one of its own.
    let port = stage.shops.of(SHOP).port();
    let host = format!("{name}.test");
    let stage = stage.set("sites.cocooncenter", "base", format!("http://{host}:{port}"));
    network.use_exit(EXIT).await.unwrap();
    // Relays that were stopped a moment ago may still have trouble with each other.
    let mut tries = 0..;
    until_told("somebody else gets through", async || reaches(network, port, tries.next().unwrap()).await)
        .await;
    fault(port).await;
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let end = daemon.wait_for_event("visit_ended", |_| true).await.unwrap();
    assert!(outcomes.contains(&end["outcome"].as_str().unwrap()), "{name}: {end}");
    let asked = network.dns().queries().with(|queries| queries.iter().any(|query| query.name == host));
    assert!(asked, "{name}: the exit asked its nameserver");
    network.use_all_exits().await.unwrap();
    mend().await;
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["status"], "found", "{name}: {}", products[0]);
    assert_eq!(daemon.events("tor_lost").len(), 0, "{name}: Tor was there");
    assert_within_attempts(&daemon, &stage, ATTEMPTS_MAX);
    assert_only_exits_came(network, &stage);
}

/// Each try has a circuit of its own.
async fn reaches(network: &TorNetwork, port: u16, number: u32) -> bool {
    const TRY: Duration = Duration::from_secs(5);
    let credentials = Credentials { user: "neighbour", password: &number.to_string() };
    let dial = client::through_socks(network.socks(), credentials, "any.test", port);
    matches!(tokio::time::timeout(TRY, dial).await, Ok(Ok(_)))
}

#[tokio::test]
async fn an_exit_that_lies_about_a_name_or_refuses_the_port_is_left_for_another() {
    let network = network().await;
    let alias = network.exits()[EXIT].alias;
    let std::net::IpAddr::V4(ip) = alias else { unreachable!("the network is on 127/8") };
    let [a, b, c, _] = ip.octets();
    // Nobody listens there.
    let elsewhere = Ipv4Addr::new(a, b, c, 250);
    let lies = async |name, outcomes: &[&str], lie| {
        let mend = async || network.dns().be_honest();
        is_got_over(&network, name, outcomes, async |_| network.dns().lie(alias, lie), mend).await;
    };
    lies("nobody", &["connect"], Lie::NoSuchName).await;
    lies("elsewhere", &["connect"], Lie::Address(elsewhere)).await;
    let refuse = async |port: u16| network.refuse_port(EXIT, Some(port)).await.unwrap();
    // With no exit left that may be asked, the client waits for one.
    is_got_over(&network, "refused", &["connect", "timeout"], refuse, async || {}).await;
    // The exit gives up or tries again, as it likes.
    lies("failing", &["connect", "timeout"], Lie::Failure).await;
    lies("silent", &["timeout"], Lie::Silence).await;
    // Both remember for as long as they run: an exit that its nameserver failed, and the client which exit refused.
    network.refuse_port(EXIT, None).await.unwrap();
    network.mend().await.unwrap();
}
