//! With tor's control port: whose circuit is which, by tor's own words, in both grades of binding.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use glaneur_kit::client::{self, Credentials};
use glaneur_kit::shop::{Conduct, Purpose, When};
use glaneur_kit::tor::Circuit;
use glaneur_kit::{Catalogue, Daemon, Gate, Shop, ShopKind, TorNetwork};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, MutexGuard, OnceCell, watch};

use crate::support::{BINARY, LONG, Stage, accepted, batch, until};
use crate::tor::{assert_only_exits_came, network, stage_behind};

const PASSWORD: &str = "open sesame";

/// A network whose client has Conflux as tor has it by default, and a control port with a password beside its cookie.
async fn default_network() -> MutexGuard<'static, TorNetwork> {
    static NETWORK: OnceCell<Mutex<TorNetwork>> = OnceCell::const_new();
    let start = || async {
        glaneur_kit::ensure_tor().unwrap();
        let hashed = Command::new("tor").args(["--quiet", "--hash-password", PASSWORD]).output().unwrap();
        let hashed = String::from_utf8(hashed.stdout).unwrap();
        let hash = hashed.lines().find(|line| line.starts_with("16:")).unwrap();
        let lines = format!("ConfluxEnabled auto\nHashedControlPassword {hash}");
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tor");
        std::fs::create_dir_all(&cache).unwrap();
        Mutex::new(TorNetwork::start_with(Some(&cache), &lines).await.unwrap())
    };
    NETWORK.get_or_init(start).await.lock().await
}

/// One shop, whose visits may all run at once.
fn stage(network: &TorNetwork, products: usize, circuits: u32) -> Stage {
    stage_behind(network, Catalogue::synthetic(products, 7))
        .only(ShopKind::Drakkars)
        .set("tor", "control", network.control().to_string())
        .set("tor", "circuits", circuits)
        .set("sites.drakkars", "concurrency", circuits)
}

fn shop(stage: &Stage) -> &Shop {
    stage.shops.of(ShopKind::Drakkars)
}

fn eans(products: usize) -> Vec<String> {
    Catalogue::synthetic(products, 7).eans()
}

/// The circuits of the daemon's scrapers, by tor's own words.
async fn circuits(network: &TorNetwork) -> Vec<Circuit> {
    let circuits = network.open_control().await.unwrap().circuit_status().await.unwrap();
    let is_ours = |circuit: &Circuit| {
        circuit.state == "BUILT"
            && circuit.socks_username.as_deref().is_some_and(|user| user.starts_with("glaneur-w"))
    };
    circuits.into_iter().filter(is_ours).collect()
}

/// The circuit of each stream that is open, by the number of the stream.
async fn streams(network: &TorNetwork) -> BTreeMap<String, String> {
    let lines = network.open_control().await.unwrap().command("GETINFO stream-status").await.unwrap();
    let open = lines.iter().filter_map(|line| {
        let line = line.strip_prefix("stream-status=").unwrap_or(line);
        let mut words = line.split(' ');
        let (id, status, circuit) = (words.next()?, words.next()?, words.next()?);
        (status == "SUCCEEDED").then(|| (id.to_owned(), circuit.to_owned()))
    });
    open.collect()
}

async fn leaves_streams_unattached(network: &TorNetwork) -> bool {
    let lines =
        network.open_control().await.unwrap().command("GETCONF __LeaveStreamsUnattached").await.unwrap();
    lines == ["__LeaveStreamsUnattached=1"]
}

/// Somebody else who uses this tor.
async fn neighbour(network: &TorNetwork, shop: &Shop) -> glaneur_kit::Result<()> {
    let credentials = Credentials { user: "neighbour", password: "p" };
    let host = shop.host();
    let dial = client::through_socks(network.socks(), credentials, &host, shop.port());
    let stream = tokio::time::timeout(LONG, dial).await.expect("a neighbour is not made to wait")?;
    client::exchange(stream, client::request("GET", "/", "")?).await.map(drop)
}

/// The exit that each finished visit was logged with is the one that the shop saw.
fn assert_logged_exits_are_those_that_were_seen(network: &TorNetwork, stage: &Stage, daemon: &Daemon) {
    let hits = shop(stage).hits();
    let ended = daemon.events("visit_ended");
    let told: Vec<&Value> = ended.iter().filter(|visit| visit["exit"].is_string()).collect();
    assert!(!told.is_empty(), "{ended:?}");
    for visit in told {
        let ean = visit["ean"].as_str().unwrap();
        let mut exits =
            hits.iter().filter(|hit| hit.is_about(ean)).filter_map(|hit| network.exit_of(hit.local));
        assert!(exits.any(|exit| exit.name == visit["exit"]), "{visit}");
    }
}

async fn sixteen_circuits(network: &TorNetwork, binding: &str) {
    const SCRAPERS: usize = 16;
    let stage = stage(network, SCRAPERS, SCRAPERS as u32)
        .set("tor", "binding", binding)
        .set("fetch", "attempts_max", 1)
        .set("fetch", "first_byte_timeout", "60s");
    let eans = eans(SCRAPERS);
    let (blocked, others) = (Gate::closed(), Gate::closed());
    let victim = eans[0].clone();
    let is_victim = When::is({
        let victim = victim.clone();
        move |hit| hit.purpose == Purpose::Page && hit.is_about(&victim)
    });
    let is_other = When::is({
        let victim = victim.clone();
        move |hit| hit.purpose == Purpose::Page && !hit.is_about(&victim)
    });
    stage.shops.behave(&is_victim, &Conduct::Status(403).held(&blocked));
    stage.shops.behave(&is_other, &Conduct::Normal.held(&others));
    let daemon = stage.start().await;
    daemon.wait_for_event("control_found", |_| true).await.unwrap();
    accepted(daemon.submit(&batch(eans.iter().map(String::as_str))).await.unwrap());
    let at_pages = |hits: &[glaneur_kit::shop::Hit]| {
        hits.iter().filter(|hit| hit.purpose == Purpose::Page).count() == SCRAPERS
    };
    shop(&stage).wait_until(at_pages, LONG).await.unwrap();

    let before = streams(network).await;
    let distinct: BTreeSet<&String> = before.values().collect();
    assert_eq!((before.len(), distinct.len()), (SCRAPERS, SCRAPERS), "{before:?}");
    let users: BTreeSet<_> = circuits(network)
        .await
        .into_iter()
        .filter(|circuit| distinct.contains(&circuit.id))
        .map(|circuit| circuit.socks_username.unwrap())
        .collect();
    assert_eq!(users.len(), SCRAPERS, "each has its own");

    blocked.open();
    daemon.wait_for_event("visit_ended", |visit| visit["outcome"] == "blocked").await.unwrap();
    let retired = daemon.events("circuit_retired");
    assert_eq!(retired.len(), 1, "{retired:?}");
    // The retired circuit is closed, and everybody else's stream is where it was.
    let mut after = before.clone();
    let begun = std::time::Instant::now();
    let is_open = |id: &String, circuits: &[Circuit]| circuits.iter().any(|circuit| circuit.id == *id);
    loop {
        let gone: Vec<&String> =
            before.values().filter(|id| !after.values().any(|other| other == *id)).collect();
        let circuits = circuits(network).await;
        if gone.len() == 1 && !is_open(gone[0], &circuits) {
            break;
        }
        assert!(begun.elapsed() < LONG, "the retired circuit stays: {after:?}");
        after = streams(network).await;
    }
    assert_eq!(after.len(), SCRAPERS - 1);
    assert!(after.iter().all(|(stream, circuit)| before[stream] == *circuit), "{before:?} {after:?}");

    others.open();
    let (products, _) = stage.finished(SCRAPERS).await;
    assert_eq!(products.iter().filter(|product| product["status"] == "found").count(), SCRAPERS - 1);
    assert_eq!(daemon.events("circuit_retired").len(), 1);
    assert_only_exits_came(network, &stage);
    assert_logged_exits_are_those_that_were_seen(network, &stage, &daemon);
    let exit = &daemon.events("visit_ended")[0]["exit"];
    assert!(exit.is_string(), "a blocked visit is told with its exit");
    daemon.stop_well().await;
}

trait StopWell {
    async fn stop_well(self);
}

impl StopWell for Daemon {
    async fn stop_well(mut self) {
        self.term().unwrap();
        assert_eq!(self.wait_exit().await.unwrap(), 0);
    }
}

#[tokio::test]
async fn sixteen_scrapers_have_sixteen_circuits_and_a_block_rotates_one_of_them() {
    sixteen_circuits(&*network().await, "credentials").await;
}

#[tokio::test]
async fn sixteen_strict_scrapers_have_sixteen_circuits_and_a_block_rotates_one_of_them() {
    sixteen_circuits(&*network().await, "strict").await;
}

#[tokio::test]
async fn strict_scrapers_stay_on_their_circuits_for_thirty_visits_with_conflux_on() {
    const SCRAPERS: usize = 12;
    const VISITS: usize = 30 * SCRAPERS;
    let network = default_network().await;
    let stage = stage(&network, VISITS, SCRAPERS as u32)
        .set("tor", "binding", "strict")
        .set("tor", "uses_max", 1_000);
    let eans = eans(VISITS);
    // Nobody goes on before all have a circuit of their own.
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch(eans.iter().map(String::as_str))).await.unwrap());
    let all_there = |hits: &[glaneur_kit::shop::Hit]| {
        hits.iter().filter(|hit| hit.purpose == Purpose::Page).count() == SCRAPERS
    };
    shop(&stage).wait_until(all_there, LONG).await.unwrap();
    let in_use: BTreeSet<String> = streams(&network).await.into_values().collect();
    let mut begin = circuits(&network).await;
    begin.retain(|circuit| in_use.contains(&circuit.id));
    assert!(begin.iter().all(|circuit| circuit.purpose == "CONTROLLER"), "{begin:?}");
    let passwords: BTreeSet<_> = begin.iter().map(|circuit| circuit.socks_password.clone()).collect();
    let ids = |circuits: &[Circuit]| -> BTreeSet<String> {
        let of_these = circuits.iter().filter(|circuit| passwords.contains(&circuit.socks_password));
        of_these.map(|circuit| circuit.id.clone()).collect()
    };
    assert_eq!(ids(&begin).len(), SCRAPERS, "{begin:?}");
    gate.open();
    let (products, _) = stage.finished(VISITS).await;
    assert!(products.iter().all(|product| product["status"] == "found"));
    assert_eq!(ids(&circuits(&network).await), ids(&begin), "nobody moved, and nobody has a second circuit");
    assert!(daemon.events("circuit_retired").is_empty());
    // Each stayed at its exit, by the shop's own eyes.
    let mut exits: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for visit in daemon.events("visit_ended") {
        let circuit = visit["circuit"].as_str().unwrap().to_owned();
        exits.entry(circuit).or_default().insert(visit["exit"].as_str().unwrap().to_owned());
    }
    assert_eq!(exits.len(), SCRAPERS);
    assert!(exits.values().all(|exits| exits.len() == 1), "{exits:?}");
    assert_logged_exits_are_those_that_were_seen(&network, &stage, &daemon);
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    assert!(!leaves_streams_unattached(&network).await, "a clean stop gives tor back");
}

/// One scraper and a shop that blocks each exit after so many requests.
async fn each_exit_blocks_once(binding: &str) {
    const PRODUCTS: usize = 40;
    const REQUESTS_MAX: usize = 30;
    let network = network().await;
    let stage = stage(&network, PRODUCTS, 1).set("tor", "binding", binding).set("tor", "uses_max", 1_000);
    stage.shops.behave(&When::Always, &Conduct::BlockedAfter(REQUESTS_MAX));
    let daemon = stage.start().await;
    daemon.wait_for_event("control_found", |_| true).await.unwrap();
    let eans = eans(PRODUCTS);
    accepted(daemon.submit(&batch(eans.iter().map(String::as_str))).await.unwrap());
    let (products, _) = stage.finished(PRODUCTS).await;
    assert!(products.iter().all(|product| product["status"] == "found"), "every product is found");
    // More than 30 requests at an address is a refusal, and nobody comes back for a second one.
    let mut requests: BTreeMap<_, usize> = BTreeMap::new();
    for hit in shop(&stage).hits() {
        *requests.entry(hit.local).or_default() += 1;
    }
    assert!(requests.values().all(|count| *count <= REQUESTS_MAX + 1), "{requests:?}");
    let refusals = requests.values().filter(|count| REQUESTS_MAX < **count).count();
    let retired = daemon.events("circuit_retired");
    let blocked = retired.iter().filter(|event| event["reason"] == "blocked").count();
    assert!(2 <= refusals, "{requests:?}");
    assert_eq!(blocked, refusals, "{retired:?}");
    if binding == "strict" {
        assert_eq!(retired.len(), refusals, "the least possible: {retired:?}");
    }
    daemon.stop_well().await;
}

#[tokio::test]
async fn an_exit_that_blocked_is_not_asked_again_by_credentials() {
    each_exit_blocks_once("credentials").await;
}

#[tokio::test]
async fn an_exit_that_blocked_is_not_asked_again_and_costs_one_rotation_when_strict() {
    each_exit_blocks_once("strict").await;
}

/// Four exits, each of which the shop refused once: from then on nothing is sent, and it still counts as refused.
#[tokio::test]
async fn a_shop_that_blocked_every_exit_is_suspended_and_is_sent_no_more_than_one_request_by_each() {
    const PRODUCTS: usize = 40;
    let network = network().await;
    let stage = stage(&network, PRODUCTS, 4).set("tor", "binding", "strict").set("fetch", "attempts_max", 1);
    stage.shops.behave(&When::Always, &Conduct::Status(403));
    let daemon = stage.start().await;
    let eans = eans(PRODUCTS);
    accepted(daemon.submit(&batch(eans.iter().map(String::as_str))).await.unwrap());
    daemon.wait_for_event("shop_suspended", |event| event["reason"] == "blocks").await.unwrap();
    let (products, _) = stage.finished(PRODUCTS).await;
    assert!(
        products.iter().all(|product| product["errors"]["drakkars"]["kind"] == "blocked"),
        "{products:?}"
    );
    let exits: Vec<_> = shop(&stage).hits().iter().map(|hit| hit.local).collect();
    let distinct: BTreeSet<_> = exits.iter().collect();
    // Scrapers side by side may meet one exit before any of them is refused there.
    assert!(exits.len() <= 4 * distinct.len(), "{exits:?}");
    assert_eq!(daemon.events("shop_suspended").len(), 1);
}

/// A way to the control port that can be cut.
struct Wire {
    address: SocketAddr,
    whole: watch::Sender<bool>,
}

impl Wire {
    async fn to(port: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, (whole, cuts)) = (listener.local_addr().unwrap(), watch::channel(true));
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let mut cuts = cuts.clone();
                if !*cuts.borrow_and_update() {
                    continue; // Hung up on at once.
                }
                tokio::spawn(async move {
                    let mut to = TcpStream::connect(port).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                        _ = cuts.wait_for(|whole| !whole) => {}
                    }
                });
            }
        });
        Self { address, whole }
    }
}

#[tokio::test]
async fn a_strict_daemon_whose_control_connection_is_cut_waits_and_goes_on_by_itself() {
    const PRODUCTS: usize = 24;
    let network = network().await;
    let wire = Wire::to(network.control()).await;
    let stage = stage(&network, PRODUCTS, 4)
        .set("tor", "binding", "strict")
        .set("tor", "control", wire.address.to_string())
        .set("fetch", "attempts_max", 1);
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    let daemon = stage.start().await;
    let eans = eans(PRODUCTS);
    accepted(daemon.submit(&batch(eans.iter().map(String::as_str))).await.unwrap());
    let four =
        |hits: &[glaneur_kit::shop::Hit]| hits.iter().filter(|hit| hit.purpose == Purpose::Page).count() == 4;
    shop(&stage).wait_until(four, LONG).await.unwrap();
    wire.whole.send_replace(false);
    let lost = daemon.wait_for_event("tor_lost", |_| true).await.unwrap();
    assert!(lost["reason"].as_str().unwrap().contains("control port"), "{lost}");
    until("all four are put back", || daemon.events("visit_ended").len() == 4).await;
    assert!(daemon.events("visit_ended").iter().all(|visit| visit["outcome"] == "put_back"));
    let (hits, started) = (shop(&stage).hits().len(), daemon.events("visit_started").len());
    let (status, ready) = daemon.get("/readyz").await.unwrap();
    assert_eq!((status, &ready["details"]["control"]["state"]), (200, &"away".into()), "{ready}");
    accepted(daemon.submit(&batch([eans[0].as_str()])).await.unwrap());
    daemon.wait_for_event("batch_taken", |_| true).await.unwrap();
    gate.open();
    assert_eq!(shop(&stage).hits().len(), hits, "nothing goes out");
    assert_eq!(daemon.events("visit_started").len(), started);
    wire.whole.send_replace(true);
    let summaries = |seen: &[glaneur_kit::receiver::Seen]| {
        seen.iter().filter(|seen| seen.taken() && glaneur_kit::receiver::is_summary(&seen.json())).count()
            == 2
    };
    stage.receiver.wait_until(summaries, LONG).await.unwrap();
    assert!(
        stage.receiver.products().iter().all(|product| product["status"] == "found"),
        "nothing was charged"
    );
    assert_eq!(daemon.events("tor_lost").len(), 1, "one event");
    neighbour(&network, shop(&stage)).await.unwrap();
    daemon.stop_well().await;
    assert!(!leaves_streams_unattached(&network).await);
}

#[tokio::test]
async fn others_who_use_the_same_tor_are_not_harmed_by_a_strict_daemon() {
    let network = network().await;
    let stage = stage(&network, 8, 4).set("tor", "binding", "strict");
    let mut daemon = stage.start().await;
    daemon.wait_for_event("tor_found", |_| true).await.unwrap();
    assert!(leaves_streams_unattached(&network).await);
    neighbour(&network, shop(&stage)).await.unwrap();

    // A reload of tor forgets what it was told; it is told again.
    network.open_control().await.unwrap().command("SIGNAL RELOAD").await.unwrap();
    let begun = std::time::Instant::now();
    while !leaves_streams_unattached(&network).await {
        assert!(begun.elapsed() < LONG, "tor was not told again");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    neighbour(&network, shop(&stage)).await.unwrap();

    // Killed, it leaves the others without a way; a person can give tor back.
    daemon.kill_9().await.unwrap();
    assert!(leaves_streams_unattached(&network).await, "nobody was left to put it back");
    let released =
        Command::new(BINARY).arg("--config").arg(daemon.config_path()).args(["tor", "release"]).output();
    let said = String::from_utf8(released.unwrap().stdout).unwrap();
    assert!(said.starts_with("tor attaches streams by itself again"), "{said}");
    assert!(!leaves_streams_unattached(&network).await);
    neighbour(&network, shop(&stage)).await.unwrap();
    daemon.restart().await.unwrap();
    daemon.wait_for_event("tor_found", |_| true).await.unwrap();

    // Killed again; the next start takes them up, also one that waits already.
    daemon.kill_9().await.unwrap();
    assert!(leaves_streams_unattached(&network).await, "nobody was left to put it back");
    let waits = neighbour(&network, shop(&stage));
    let restart = async {
        let mut control = network.open_control().await.unwrap();
        loop {
            let lines = control.command("GETINFO stream-status").await.unwrap();
            if lines.iter().any(|line| line.contains(" NEW 0 ")) {
                break;
            }
        }
        daemon.restart().await.unwrap();
    };
    let (served, ()) = tokio::join!(waits, restart);
    served.unwrap();
    let eans = eans(8);
    accepted(daemon.submit(&batch(eans.iter().map(String::as_str))).await.unwrap());
    let (products, _) = stage.finished(8).await;
    assert!(products.iter().all(|product| product["status"] == "found"));

    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    assert!(!leaves_streams_unattached(&network).await);
    neighbour(&network, shop(&stage)).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_told_once_and_the_right_one_is_taken_by_a_reload() {
    let network = default_network().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let stage = stage(&network, 4, 2).set("tor", "control_password_file", file.to_str().unwrap());
    let daemon = stage.start().await;
    let lost = daemon.wait_for_event("control_lost", |_| true).await.unwrap();
    assert!(lost["reason"].as_str().unwrap().contains("control_password_file"), "{lost}");
    assert!(!lost.to_string().contains("wrong"));
    let announced = &daemon.events("binding_announced")[0];
    assert_eq!(announced["binding"], "credentials");
    // Only exits are not known.
    let eans = eans(4);
    accepted(daemon.submit(&batch(eans.iter().map(String::as_str))).await.unwrap());
    let (products, _) = stage.finished(4).await;
    assert!(products.iter().all(|product| product["status"] == "found"));
    assert!(daemon.events("visit_ended").iter().all(|visit| visit["exit"].is_null()));
    std::fs::write(&file, PASSWORD).unwrap();
    daemon.hang_up().unwrap();
    daemon.wait_for_event("control_found", |_| true).await.unwrap();
    daemon.wait_for_event("conflux_found", |_| true).await.unwrap();
    assert_eq!(daemon.events("control_lost").len(), 1, "one event, not one for each try");
    let (_, ready) = daemon.get("/readyz").await.unwrap();
    let control = &ready["details"]["control"];
    assert_eq!((&control["state"], &control["conflux"]), (&"there".into(), &true.into()), "{ready}");
    assert_eq!(control["bootstrap"]["progress"], 100, "{ready}");
    daemon.stop_well().await;
}

#[tokio::test]
async fn a_tor_that_is_paused_or_restarted_under_a_strict_daemon_costs_nothing() {
    let network = network().await;
    let stage = stage(&network, 8, 4).set("tor", "binding", "strict").set("tor", "probe_timeout", "1s").set(
        "fetch",
        "attempts_max",
        1,
    );
    let daemon = stage.start().await;
    daemon.wait_for_event("tor_found", |_| true).await.unwrap();
    let eans = eans(8);
    let again = async |event: &str, times: usize| {
        until(event, || daemon.events(event).len() == times).await;
    };
    network.pause_client().unwrap();
    again("tor_lost", 1).await;
    accepted(daemon.submit(&batch(eans[..4].iter().map(String::as_str))).await.unwrap());
    daemon.wait_for_event("batch_taken", |_| true).await.unwrap();
    assert_eq!(daemon.get("/readyz").await.unwrap().0, 200, "a paused tor blocks nothing");
    network.resume_client().unwrap();
    again("tor_found", 2).await;
    again("batch_ended", 1).await;

    network.stop_client();
    again("tor_lost", 2).await;
    accepted(daemon.submit(&batch(eans[4..].iter().map(String::as_str))).await.unwrap());
    network.start_client().await.unwrap();
    again("tor_found", 3).await;
    again("batch_ended", 2).await;
    assert!(stage.receiver.products().iter().all(|product| product["status"] == "found"));
    assert!(leaves_streams_unattached(&network).await, "the new tor was told as well");
    daemon.stop_well().await;
    assert!(!leaves_streams_unattached(&network).await);
}
