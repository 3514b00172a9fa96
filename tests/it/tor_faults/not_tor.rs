//! What listens at the port is not Tor: nothing goes out, one event says why, and it is looked at without spinning.

use std::net::SocketAddr;

use glaneur_kit::proxy::Manner;
use glaneur_kit::{Catalogue, Daemon, Proxy, Receiver, Shops};

use super::{WINDOW, idles};
use crate::support::{BINARY, REAL, accepted, batch, brisk, impatient, own_search};

async fn waits_at(socks: SocketAddr, reason: &str, shops: &Shops, receiver: &Receiver) {
    let mut config = impatient(receiver).socks(socks).set("tor", "probe_timeout", "1s");
    for shop in &shops.all {
        config = brisk(config.site(shop.kind().name(), shop.base()), shop.kind().name());
    }
    let daemon = Daemon::start(BINARY, own_search(config)).await.unwrap();
    let lost = daemon.wait_for_event("tor_lost", |_| true).await.unwrap();
    assert!(lost["reason"].as_str().unwrap().contains(reason), "{lost}");
    let taken = accepted(daemon.submit(&batch(REAL)).await.unwrap());
    daemon.wait_for_event("batch_taken", |event| event["batch_id"] == taken["batch_id"]).await.unwrap();
    idles(&daemon, WINDOW).await;
    assert_eq!(daemon.events("tor_lost").len(), 1, "one event, not one for each look: {reason}");
    assert_eq!(daemon.events("visit_started").len(), 0, "{reason}");
}

#[tokio::test]
async fn a_port_that_is_not_tor_is_waited_at_and_nothing_goes_out() {
    let shops = Shops::start_here(Catalogue::of(REAL)).unwrap();
    let receiver = Receiver::start().unwrap();
    let (no_password, silent) = (Proxy::start().unwrap(), Proxy::start().unwrap());
    no_password.behave(Manner::NoAuth);
    silent.behave(Manner::Mute);
    let web_server = Receiver::start().unwrap();
    tokio::join!(
        waits_at(no_password.address(), "takes no password", &shops, &receiver),
        waits_at(silent.address(), "said nothing", &shops, &receiver),
        waits_at(web_server.address(), "SOCKS", &shops, &receiver),
    );
    assert!(no_password.dials().is_empty() && silent.dials().is_empty());
    assert!(shops.all.iter().all(|shop| shop.hits().is_empty()));
    assert!(receiver.seen().is_empty());
}
