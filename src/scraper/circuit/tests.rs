use super::{Circuit, CircuitId, Origin, Settings, WearLimits, Worn};
use crate::model::page::{Method, Request, Via};
use crate::model::way::Way;
use crate::scraper::fetch::tests::{limits, soon};
use crate::scraper::relay::ExitRelay;
use crate::scraper::stand_in::{Manner, Shop, Socks, Visitor, certified};
use crate::scraper::tls::Tls;
use crate::scraper::tor::TorGate;
use rustls::HandshakeKind;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use url::Url;

fn circuit(worker: u32, socks: &str, pem: Option<&str>) -> Circuit {
    let tls = Tls::new(pem.map(str::as_bytes)).unwrap();
    Circuit::new(worker, 41, 1, Settings::new(TorGate::new(socks.parse().unwrap()), tls))
}

/// Answers once and says goodbye, so that each fetch needs a connection of its own.
async fn answer_once(mut visitor: Visitor) -> Option<()> {
    visitor.request().await?;
    visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await?;
    visitor.close().await;
    Some(())
}

#[test]
fn an_id_reads_as_worker_and_generation() {
    assert_eq!(CircuitId { worker: 3, generation: 17 }.to_string(), "w3.g17");
}

#[tokio::test]
async fn two_circuits_share_no_credentials_connection_or_tls_session() {
    let (pem, acceptor) = certified("www.shop.example");
    let shop = Shop::start(Some(acceptor), answer_once).await;
    let socks = Socks::start(Manner::Forwards { to: shop.address }).await;
    let request = Request::get(Url::parse("https://www.shop.example/").unwrap());

    // The same settings, as all circuits of a process have.
    let settings = circuit(1, &socks.address, Some(&pem)).settings.clone();
    let mut one = Circuit::new(1, 41, 1, settings.clone());
    let mut two = Circuit::new(2, 41, 1, settings);
    for circuit in [&mut one, &mut two] {
        circuit.fetch(&request, Via::Tor, &limits(), &[], soon()).await.unwrap();
    }
    one.fetch(&request, Via::Tor, &limits(), &[], soon()).await.unwrap();
    assert_eq!(one.rotate(), CircuitId { worker: 1, generation: 2 });
    one.fetch(&request, Via::Tor, &limits(), &[], soon()).await.unwrap();

    let full = Some(HandshakeKind::Full);
    // Only the second visit of the same generation resumes: the store works, and is shared with nobody.
    assert_eq!(shop.connections(), [full, full, Some(HandshakeKind::Resumed), full]);
    let dials = socks.dials();
    let users: Vec<_> = dials.iter().map(|dial| dial.user.as_str()).collect();
    assert_eq!(users, ["glaneur-w1", "glaneur-w2", "glaneur-w1", "glaneur-w1"]);
    assert!(dials[0].password.starts_with("41-1-") && dials[3].password.starts_with("41-2-"), "{dials:?}");
    assert_eq!(dials[0].password, dials[2].password);
    // The name goes to the exit as it is.
    assert!(
        dials.iter().all(|dial| (dial.host.as_str(), dial.port) == ("www.shop.example", 443)),
        "{dials:?}"
    );
}

#[tokio::test]
async fn a_kept_connection_carries_the_next_request_of_its_own_circuit_and_way_only() {
    let shop = Shop::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let socks = Socks::start(Manner::Forwards { to: shop.address }).await;
    let (mut one, mut two) = (circuit(1, &socks.address, None), circuit(2, &socks.address, None));
    let request = Request::get(shop.url("/"));
    for _ in 0..3 {
        one.fetch(&request, Via::Tor, &limits(), &[], soon()).await.unwrap();
    }
    assert_eq!((shop.connections().len(), shop.requests().len()), (1, 3));
    two.fetch(&request, Via::Tor, &limits(), &[], soon()).await.unwrap();
    assert_eq!(shop.connections().len(), 2);
    one.fetch(&request, Via::Direct, &limits(), &[], soon()).await.unwrap();
    assert_eq!((shop.connections().len(), socks.dials().len()), (3, 2));
    assert_eq!((one.uses(), two.uses()), (3, 1), "direct requests wear no circuit");
}

#[tokio::test]
async fn rotation_closes_every_connection_at_once() {
    let shop = Shop::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let socks = Socks::start(Manner::Forwards { to: shop.address }).await;
    let mut circuit = circuit(1, &socks.address, None);
    circuit.fetch(&Request::get(shop.url("/")), Via::Tor, &limits(), &[], soon()).await.unwrap();
    circuit.rotate();
    shop.ended(1).await;
    assert_eq!(circuit.uses(), 0);
}

#[tokio::test]
async fn a_connection_closed_while_idle_costs_not_even_a_post() {
    let shop = Shop::start(None, |mut visitor| async move {
        visitor.request().await?;
        // Without a word about closing, as a server whose idle limit is over.
        visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
        visitor.close().await;
        Some(())
    })
    .await;
    let mut circuit = circuit(1, &Socks::nobody().await, None);
    let mut request = Request::get(shop.url("/"));
    circuit.fetch(&request, Via::Direct, &limits(), &[], soon()).await.unwrap();
    while circuit.kept.values().any(|kept| !kept.sender.is_closed()) {
        tokio::task::yield_now().await;
    }
    request.method = Method::Post;
    circuit.fetch(&request, Via::Direct, &limits(), &[], soon()).await.unwrap();
    assert_eq!((shop.connections().len(), shop.requests().len()), (2, 2));
}

#[tokio::test]
async fn idle_connections_are_few_and_not_old() {
    let shop = Shop::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let socks = Socks::start(Manner::Forwards { to: shop.address }).await;
    let mut circuit = circuit(1, &socks.address, None);
    for number in 0..20 {
        let url = Url::parse(&format!("http://shop{number}.example/")).unwrap();
        circuit.fetch(&Request::get(url), Via::Tor, &limits(), &[], soon()).await.unwrap();
    }
    assert_eq!(circuit.kept.len(), super::KEPT_MAX);
    let first = Origin::of(&Url::parse("http://shop0.example/").unwrap(), Via::Tor).unwrap();
    assert!(!circuit.kept.contains_key(&first), "the one idle for longest goes first");

    let last = Origin::of(&Url::parse("http://shop19.example/").unwrap(), Via::Tor).unwrap();
    let old = Instant::now().checked_sub(super::KEPT_FOR).unwrap();
    circuit.kept.get_mut(&last).unwrap().idle_since = old;
    assert!(circuit.take_kept(&last).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_generation_wears_by_age_from_its_first_use_and_by_uses() {
    let mut circuit = circuit(1, "127.0.0.1:9050", None);
    let limits = WearLimits { age_max: Duration::from_secs(400), uses_max: 2 };
    tokio::time::advance(Duration::from_secs(1000)).await;
    assert_eq!(circuit.worn(&limits, Instant::now()), None, "not used, so not worn");
    circuit.note_use(Via::Direct);
    circuit.note_use(Via::Tor);
    let first = Instant::now();
    assert_eq!(circuit.worn(&limits, first + Duration::from_secs(399)), None);
    assert_eq!(circuit.worn(&limits, first + Duration::from_secs(400)), Some(Worn::Age));
    circuit.note_use(Via::Tor);
    assert_eq!(circuit.worn(&limits, first), Some(Worn::Uses));
    circuit.rotate();
    assert_eq!(circuit.worn(&limits, first + Duration::from_secs(400)), None);
}

#[test]
fn a_way_is_known_by_its_exit_and_else_by_its_generation() {
    let mut circuit = circuit(3, "127.0.0.1:9050", None);
    assert_eq!(circuit.way(Via::Direct), Way::Direct);
    assert_eq!(circuit.way(Via::Tor), Way::Circuit("w3.g1".into()));
    circuit.exit = Some(Arc::new(ExitRelay {
        fingerprint: "AB".repeat(20).into(),
        nickname: "quiet".into(),
        address: None,
        country: None,
    }));
    assert_eq!(circuit.way(Via::Tor), Way::Exit("AB".repeat(20).into()));
    assert_eq!(circuit.way(Via::Direct), Way::Direct);
}

fn no_limits() -> WearLimits {
    WearLimits { age_max: Duration::from_secs(400), uses_max: 100 }
}

#[test]
fn failures_in_a_row_that_may_be_its_doing_wear_a_generation_out() {
    let mut circuit = circuit(1, "127.0.0.1:9050", None);
    let worn = |circuit: &Circuit| circuit.worn(&no_limits(), Instant::now());
    circuit.note_failure();
    circuit.note_success();
    circuit.note_failure();
    assert_eq!(worn(&circuit), None, "one at a time may be the shop's");
    circuit.note_failure();
    assert_eq!(worn(&circuit), Some(Worn::Failures));
    circuit.rotate();
    assert_eq!(worn(&circuit), None);
}

#[test]
fn a_circuit_that_is_slow_against_its_peers_is_worn_and_they_are_not() {
    const SECOND: Duration = Duration::from_secs(1);
    let settings = circuit(1, "127.0.0.1:9050", None).settings.clone();
    let mut circuits = [1, 2, 3].map(|worker| Circuit::new(worker, 41, 1, settings.clone()));
    for (circuit, seconds) in circuits.iter_mut().zip([10, 1, 1]) {
        circuit.serve(Some("a".into()));
        (0..5).for_each(|_| circuit.note_latency(seconds * SECOND));
    }
    let latencies: Vec<_> = settings.roster.rows().iter().map(|row| row.latency).collect();
    assert_eq!(latencies, [Some(10 * SECOND), Some(SECOND), Some(SECOND)]);
    let worn = |circuit: &Circuit| circuit.worn(&no_limits(), Instant::now());
    assert_eq!(circuits.each_ref().map(worn), [Some(Worn::Slow), None, None]);
    circuits[0].rotate();
    assert_eq!(worn(&circuits[0]), None, "another generation begins anew");
    assert_eq!(settings.roster.rows()[0].latency, None);
}

#[tokio::test]
async fn an_exchange_that_another_circuit_overtook_counts_for_as_long_as_it_took_so_far() {
    let shop = Shop::start(None, |mut visitor| async move {
        visitor.request().await?;
        visitor.linger().await;
        Some(())
    })
    .await;
    let socks = Socks::start(Manner::Forwards { to: shop.address }).await;
    let mut circuit = circuit(1, &socks.address, None);
    let request = Request::get(Url::parse("http://www.shop.example/").unwrap());
    circuit.serve(Some("a".into()));
    circuit.note_overtaken();
    assert_eq!(circuit.recent.median(), None, "nothing was under way");
    let so_far = Duration::from_millis(40);
    let limits = limits();
    {
        let mut fetch = Box::pin(circuit.fetch(&request, Via::Tor, &limits, &[], soon()));
        while shop.requests().is_empty() {
            assert!(timeout(Duration::from_millis(1), &mut fetch).await.is_err());
        }
        assert!(timeout(so_far, fetch).await.is_err());
    }
    circuit.note_overtaken();
    assert!(circuit.recent.median() >= Some(so_far), "{:?}", circuit.recent);
    assert_eq!(circuit.settings.roster.rows()[0].latency, circuit.recent.median());
}

#[tokio::test]
async fn only_the_first_dial_of_a_generation_waits_for_its_turn_to_build() {
    let shop = Shop::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let socks = Socks::start(Manner::Forwards { to: shop.address }).await;
    let mut circuit = circuit(1, &socks.address, None);
    let request = Request::get(Url::parse("http://www.shop.example/").unwrap());
    let all_turns = circuit.builds().all_turns().await;
    {
        let limits = limits();
        let fetch = circuit.fetch(&request, Via::Tor, &limits, &[], soon());
        tokio::pin!(fetch);
        // Nothing else is to happen: nobody gives a turn back.
        assert!(timeout(Duration::from_millis(50), &mut fetch).await.is_err());
        assert!(socks.dials().is_empty(), "it has not dialled");
        drop(all_turns);
        fetch.await.unwrap();
    }
    assert_eq!(socks.dials().len(), 1);
    let _taken = circuit.builds().all_turns().await;
    circuit.fetch(&request, Via::Tor, &limits(), &[], soon()).await.unwrap();
    circuit.rotate();
    let limits = limits();
    let fetch = circuit.fetch(&request, Via::Tor, &limits, &[], soon());
    assert!(timeout(Duration::from_millis(50), fetch).await.is_err(), "the next generation is built as well");
}
