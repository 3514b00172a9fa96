//! The daemon in a network where there is nobody but Tor's port and the receiver, with every packet in it counted.
//!
//! Where no such network can be made the run says so; GLANEUR_LAB=required makes that a failure.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;

use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::tor::Dns;
use glaneur_kit::town::{CELL, Cell, TOWN};
use glaneur_kit::{Catalogue, Daemon, Gate, Receiver, Shops, TorNetwork, Town};
use serde_json::{Value, json};

use super::onion::NOBODY;
use crate::support::{BINARY, LONG, REAL, Stage, accepted, batch, brisk, impatient, own_search, until};
use crate::tor::assert_only_exits_came;

const SOCKS: u16 = 9_050;

/// A port of every nameserver.
const NAMES: u16 = 53;

fn in_a_town(test: impl AsyncFnOnce(Town) + Send + 'static) {
    let ran = thread::spawn(|| {
        let town = match Town::enter() {
            Ok(town) => town,
            Err(trouble) if std::env::var("GLANEUR_LAB").is_ok_and(|value| value == "required") => {
                panic!("GLANEUR_LAB=required: {trouble}")
            }
            // Past the capture of the tests' output: whoever reads the run is to know.
            Err(trouble) => {
                let _ = writeln!(
                    std::io::stderr(),
                    "no network of its own here ({trouble}): packets are not counted"
                );
                return;
            }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(test(town));
    });
    if let Err(panicked) = ran.join() {
        std::panic::resume_unwind(panicked);
    }
}

/// Where packets went, or came from, that are neither for Tor's port, nor the receiver's, nor the daemon's own.
fn strays(cell: &Cell, known: &[SocketAddr]) -> BTreeSet<SocketAddr> {
    let is_known = |end: &SocketAddr| known.contains(end);
    cell.packets().with(|packets| {
        packets
            .iter()
            .filter(|packet| !is_known(&packet.from) && !is_known(&packet.to))
            .map(|packet| packet.to)
            .collect()
    })
}

/// The names that somebody in the cell asked for.
fn asked(names: &Dns) -> BTreeSet<String> {
    names.queries().with(|queries| queries.iter().map(|query| query.name.clone()).collect())
}

#[test]
fn beside_tor_and_the_receiver_nothing_is_sent_and_no_name_is_looked_up() {
    in_a_town(async |town| {
        glaneur_kit::ensure_tor().unwrap();
        // Not the other tests' cache: their network may be up at the same addresses.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tor-town");
        std::fs::create_dir_all(&cache).unwrap();
        let cell = town.build_cell().unwrap();
        let door =
            format!("SocksPort {TOWN}:{SOCKS} IsolateSOCKSAuth KeepAliveIsolateSOCKSAuth ExtendedErrors");
        let network = TorNetwork::start_with(Some(&cache), &door).await.unwrap();
        let names = Dns::start(TOWN, &[(NAMES, TOWN)]).unwrap();

        let at: Vec<_> = network.aliases().into_iter().chain([TOWN.into()]).collect();
        let shops = Shops::start(Catalogue::of(REAL), &at).unwrap();
        let receiver = Receiver::start_on(TOWN.into()).unwrap();
        let mut config = impatient(&receiver)
            .socks((TOWN, SOCKS).into())
            .set("tor", "probe_timeout", "1s")
            .set("server", "listen", format!("{CELL}:0"))
            .set("server", "allow_from", json!([TOWN.to_string()]));
        for shop in &shops.all {
            config = brisk(config.site(shop.kind().name(), shop.base()), shop.kind().name());
        }
        let stage = Stage { shops, receiver, config: own_search(config) };
        let mut daemon =
            Daemon::builder(BINARY).config(stage.config.clone()).behind(cell.words()).start().await.unwrap();
        let known = [(TOWN, SOCKS).into(), stage.receiver.address(), daemon.api().address];
        let none = BTreeSet::new();

        // With no other way everything works.
        accepted(daemon.submit(&batch(REAL)).await.unwrap());
        let (_, summary) = stage.finished(REAL.len()).await;
        assert_eq!(summary["counts"]["found"], 8, "{summary}");
        assert_only_exits_came(&network, &stage);
        assert_eq!((strays(&cell, &known), asked(&names)), (none.clone(), BTreeSet::new()));

        // Tor goes in the middle, with a way to everywhere for what would try it.
        cell.open_way_to_nowhere().unwrap();
        let gate = Gate::closed();
        stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
        let again = forced(batch(REAL));
        accepted(daemon.submit(&again).await.unwrap());
        until("visits are in flight", || daemon.events("visit_started").len() > 3 * REAL.len()).await;
        network.stop_client();
        daemon.wait_for_event("tor_lost", |_| true).await.unwrap();
        let seen = cell.packets().len();
        // The daemon looks for Tor twice a second; so it has had its chances after this many packets to the port.
        let looks = |packets: &[glaneur_kit::town::Packet]| {
            packets[seen..].iter().filter(|packet| packet.to == known[0]).count() >= 10
        };
        cell.packets().wait_until(looks, LONG).await.unwrap();
        assert_eq!(
            (strays(&cell, &known), asked(&names)),
            (none.clone(), BTreeSet::new()),
            "while Tor is away"
        );
        gate.open();
        network.start_client().await.unwrap();
        until("the second batch is done", || stage.receiver.summaries().len() == 2).await;
        assert!(stage.receiver.products().iter().all(|product| product["status"] == "found"));
        assert_eq!((strays(&cell, &known), asked(&names)), (none, BTreeSet::new()), "after Tor came back");
        assert_only_exits_came(&network, &stage);

        what_is_direct_is_announced_and_seen(&mut daemon, &stage, &cell, &names, &known).await;
    });
}

/// The counters would have seen it: a shop without Tor is looked up and dialled, and an onion name even so is neither.
async fn what_is_direct_is_announced_and_seen(
    daemon: &mut Daemon,
    stage: &Stage,
    cell: &Cell,
    names: &Dns,
    known: &[SocketAddr],
) {
    let before = daemon.get("/readyz").await.unwrap().1;
    assert_eq!(before["direct"], json!([]), "{before}");
    let config = stage
        .config
        .clone()
        .set("sites.pharmagdd", "via", "direct")
        .set("sites.drakkars", "via", "direct")
        .set("sites.drakkars", "base", format!("http://{NOBODY}"))
        .set("fetch", "attempts_max", 1);
    daemon.reload(config).await.unwrap();
    let ready = daemon.get("/readyz").await.unwrap().1;
    assert_eq!(ready["direct"], json!(["shop pharmagdd", "shop drakkars"]), "{ready}");
    let announced = daemon.events("direct_announced");
    assert_eq!(announced.len(), 2, "{announced:?}");

    accepted(daemon.submit(&forced(batch([REAL[0]]))).await.unwrap());
    until("the third batch is done", || stage.receiver.summaries().len() == 3).await;
    let last = stage.receiver.products().pop().unwrap();
    assert!(last["data"]["pharmagdd"].is_object() && last["data"]["cocooncenter"].is_object(), "{last}");
    assert_eq!(last["errors"]["drakkars"]["kind"], "request", "{last}");
    assert_eq!(asked(names), BTreeSet::from(["pharmagdd.test".to_owned()]));
    let shop = stage.shops.of(glaneur_kit::ShopKind::Pharmagdd).port();
    let own = (TOWN, shop).into();
    let strays = strays(cell, known);
    assert!(strays.contains(&(TOWN, NAMES).into()) && strays.contains(&own), "{strays:?}");
}

fn forced(mut body: Value) -> Value {
    body["force"] = json!(true);
    body
}
