//! Restarts under load: nothing is refused, nothing is lost, nothing happens twice.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use glaneur_kit::receiver::{is_product, taken_once};
use glaneur_kit::records::Records;
use glaneur_kit::systemd::uptime;
use glaneur_kit::{ShopKind, client};
use http::HeaderValue;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::service::{PORT, Service, under_systemd};
use crate::support::{LONG, REAL, Stage, stocked};

const CLIENTS: u64 = 4;
const EACH_WAY: usize = 10;
/// Submits that are answered between two restarts at least, so that each meets a daemon at work.
const BETWEEN: usize = 8;

/// Entries of each batch, and what they end as: a product that is visited, one that is ignored, one that is no barcode.
const ENTRIES: usize = 3;

/// One batch that was accepted.
#[derive(Clone, Debug)]
struct Accepted {
    id: String,
    number: u64,
    /// Times on the clock of [`uptime`]: of the first try, and of the 202.
    begun: Duration,
    answered: Duration,
}

/// What the clients saw.
#[derive(Default)]
struct Seen {
    accepted: Records<Accepted>,
    not_connected: AtomicU64,
    server_errors: AtomicU64,
    /// Connections that ended without an answer; their batches were sent again with the same key.
    unanswered: AtomicU64,
    enough: AtomicBool,
}

async fn client(seen: Arc<Seen>, client: u64) {
    for n in 0.. {
        if seen.enough.load(Ordering::SeqCst) {
            return;
        }
        let ean = REAL[(n as usize) % REAL.len()];
        let metadata = json!({"client": client, "n": n});
        let body = json!({"eans": [ean, "3400930000007", "123"], "metadata": metadata}).to_string();
        let key = HeaderValue::try_from(format!("client-{client}-batch-{n}")).unwrap();
        let begun = uptime();
        loop {
            let Ok(stream) = TcpStream::connect(std::net::SocketAddr::from(PORT)).await else {
                seen.not_connected.fetch_add(1, Ordering::SeqCst);
                continue;
            };
            let mut request = client::request("POST", "/api/scrape", body.clone()).unwrap();
            request.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
            request.headers_mut().insert("idempotency-key", key.clone());
            let Ok(answer) = client::exchange(stream, request).await else {
                seen.unanswered.fetch_add(1, Ordering::SeqCst);
                continue;
            };
            if answer.status().is_server_error() {
                seen.server_errors.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let text = String::from_utf8_lossy(answer.body());
            assert_eq!(answer.status(), 202, "{text}");
            let body: Value = serde_json::from_str(&text).unwrap();
            let id = body["batch_id"].as_str().unwrap().to_owned();
            let number = body["thread_id"].as_u64().unwrap();
            seen.accepted.push(Accepted { id, number, begun, answered: uptime() });
            break;
        }
    }
}

#[test]
fn twenty_restarts_under_load_refuse_nothing_and_lose_nothing() {
    under_systemd(|service| async move {
        // Kills are no fault of the products that they meet, and this test kills more often than a page would.
        let stage =
            Stage::direct(stocked(&REAL)).only(ShopKind::Cocooncenter).set("ledger", "claims_max", 1_000);
        service.configure_for(&stage);
        service.does("start");
        let seen = Arc::new(Seen::default());
        let clients: Vec<_> =
            (0..CLIENTS).map(|number| tokio::spawn(client(Arc::clone(&seen), number))).collect();

        let mut to_first = BTreeMap::<_, Vec<Duration>>::new();
        for turn in 0..2 * EACH_WAY {
            let way = if turn % 2 == 0 { "systemctl restart" } else { "kill -9" };
            let so_far = seen.accepted.len();
            seen.accepted.wait_until(|all| all.len() >= so_far + BETWEEN, LONG).await.unwrap();
            let begun = uptime();
            let started = restart(&service, way == "kill -9").await;
            let first = |all: &[Accepted]| all.iter().map(|one| one.answered).find(|at| *at > started);
            let first = seen.accepted.wait_for(first, LONG).await.unwrap();
            to_first.entry(way).or_default().push(first - begun);
        }
        seen.enough.store(true, Ordering::SeqCst);
        for client in clients {
            client.await.unwrap();
        }
        let accepted = seen.accepted.all();
        say(&seen, &accepted, &to_first);
        assert_eq!(seen.not_connected.load(Ordering::SeqCst), 0, "a connection was refused");
        assert_eq!(seen.server_errors.load(Ordering::SeqCst), 0, "an answer was 5xx");

        let ids: BTreeSet<&str> = accepted.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(ids.len(), accepted.len(), "a batch for each key");
        let numbers: BTreeSet<u64> = accepted.iter().map(|one| one.number).collect();
        let last = numbers.last().copied().unwrap();
        assert_eq!(last as usize, numbers.len(), "a repeat with its key made no second batch");
        every_outcome_is_sent_once(&stage, &ids).await;
    });
}

/// Restarts it, and gives the time at which the new process began.
async fn restart(service: &Service, kill: bool) -> Duration {
    let pid = service.show("MainPID");
    if kill {
        service.signal("KILL");
    } else {
        service.does("restart");
    }
    service.wait_until("MainPID", |now| now != "0" && now != pid).await;
    // What systemd did by itself since somebody last told it to.
    assert_eq!(service.show("NRestarts"), if kill { "1" } else { "0" });
    Duration::from_micros(service.show("ExecMainStartTimestampMonotonic").parse().unwrap())
}

fn say(seen: &Seen, accepted: &[Accepted], to_first: &BTreeMap<&str, Vec<Duration>>) {
    let longest = accepted.iter().map(|one| one.answered - one.begun).max().unwrap_or_default();
    let mut out = std::io::stderr();
    for (way, times) in to_first {
        let mut times = times.clone();
        times.sort();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        let _ = writeln!(out, "{way} to the first 202: {median:.0?} at the median, {worst:.0?} at worst");
    }
    let _ = writeln!(
        out,
        "{} batches over {} restarts, the longest wait of a submit {longest:.0?}; {} sent again with their key",
        accepted.len(),
        2 * EACH_WAY,
        seen.unanswered.load(Ordering::SeqCst),
    );
}

/// For each batch its product webhooks and its summary, each with one id and one body.
async fn every_outcome_is_sent_once(stage: &Stage, batches: &BTreeSet<&str>) {
    let wanted = batches.len() * (ENTRIES + 1);
    stage.receiver.wait_for_taken(wanted, LONG).await.unwrap();
    let seen = stage.receiver.seen();
    let mut outcomes = BTreeMap::new();
    for one in taken_once(&seen) {
        let body = one.json();
        let place = (body["batch_id"].as_str().unwrap().to_owned(), body["index"].as_u64());
        assert!(batches.contains(place.0.as_str()), "a batch that nobody has: {body}");
        let status = is_product(&body).then(|| body["status"].as_str().unwrap().to_owned());
        assert_eq!(outcomes.insert(place, status), None, "a second outcome: {body}");
    }
    assert_eq!(outcomes.len(), wanted);
    for id in batches {
        let of = |index| outcomes[&((*id).to_owned(), index)].as_deref();
        assert_eq!(
            [of(Some(1)), of(Some(2)), of(Some(3))],
            [Some("found"), Some("ignored"), Some("skipped")]
        );
        assert_eq!(of(None), None, "its summary");
    }
    for (id, sent) in stage.receiver.by_webhook_id() {
        assert!(sent.iter().all(|one| one.body == sent[0].body), "{id} has two bodies");
    }
}
