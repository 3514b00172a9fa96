//! No file descriptor is left, or as many connections are open as may be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{Catalogue, Daemon, Gate, client};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::crowd::Crowd;
use crate::support::{BINARY, LONG, Stage};

/// Long enough to see a loop; a daemon that tries once a second uses next to nothing of it.
const WATCHED_FOR: Duration = Duration::from_secs(5);

/// A connection to the API that is open already: a new one needs a descriptor.
struct Kept(SendRequest<Full<Bytes>>);

impl Kept {
    async fn open(daemon: &Daemon) -> Self {
        let stream = TcpStream::connect(daemon.api().address).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn ask(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut request = client::request(method, path, body).unwrap();
        request.headers_mut().insert("host", "127.0.0.1".parse().unwrap());
        request.headers_mut().insert("content-type", "application/json".parse().unwrap());
        self.0.ready().await.unwrap();
        let (head, body) = self.0.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), serde_json::from_slice(&body).unwrap_or_default())
    }
}

/// Sets how many descriptors the daemon may have; what is open stays open.
fn limit(daemon: &Daemon, current: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(daemon.pid().unwrap()).unwrap());
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap();
}

/// It does next to nothing, and says little.
#[expect(clippy::print_stdout, reason = "shown when the test fails")]
async fn assert_no_spin(daemon: &Daemon) {
    let (cpu, lines, begun) = (daemon.cpu_time().unwrap(), daemon.log().len(), Instant::now());
    tokio::time::sleep(WATCHED_FOR).await;
    let (cpu, lines) = (daemon.cpu_time().unwrap() - cpu, daemon.log().len() - lines);
    let watched = begun.elapsed();
    println!("{cpu:?} of CPU and {lines} lines of log in {watched:?}");
    assert!(cpu < watched / 5, "{cpu:?} of CPU in {watched:?}");
    assert!(lines < 300, "{lines} lines of log in {watched:?}");
}

#[tokio::test]
async fn without_descriptors_visits_and_webhooks_wait_uncharged_and_go_on_when_there_are_some() {
    const N: usize = 20;
    let stage = Stage::of(N).set("fetch", "attempts_max", 1);
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    let daemon = stage.start().await;
    let mut kept = Kept::open(&daemon).await;
    let batch = json!({"eans": Catalogue::synthetic(N, 7).eans()});
    assert_eq!(kept.ask("POST", "/api/scrape", &batch).await.0, 202);
    // Two products are in the middle of their visits: their webhooks will find no descriptor, nor will the visits of
    // the others, which need a connection to another shop than the one that their scraper has.
    for shop in &stage.shops.all {
        shop.records().wait_until(|hits| 4 <= hits.len(), LONG).await.unwrap();
    }
    let before = getrlimit(Resource::Nofile).current;
    limit(&daemon, Some(0));
    gate.open();
    daemon.wait_for_event("descriptors_used_up", |_| true).await.unwrap();
    daemon.wait_for_event("product_ended", |_| true).await.unwrap();
    let _waits = TcpStream::connect(daemon.api().address).await.unwrap();
    daemon.wait_for_event("listener_paused", |_| true).await.unwrap();
    assert_no_spin(&daemon).await;
    assert!(stage.receiver.records().is_empty(), "no webhook can have been sent");
    assert_eq!(kept.ask("GET", "/readyz", &Value::Null).await.0, 200, "the ledger opens nothing to commit");
    let another = json!({"eans": [Catalogue::synthetic(N, 7).eans()[0]], "force": true});
    assert_eq!(kept.ask("POST", "/api/scrape", &another).await.0, 202);

    limit(&daemon, before);
    let all = |seen: &[glaneur_kit::receiver::Seen]| glaneur_kit::receiver::taken_once(seen).len() == N + 3;
    stage.receiver.wait_until(all, LONG).await.unwrap();
    let products = stage.receiver.products();
    assert_eq!(products.len(), N + 1);
    assert!(products.iter().all(|product| product["status"] == "found"), "no attempt was charged");
    for quiet in ["delivery_retried", "lane_parked", "circuit_retired", "actor_restarted"] {
        assert_eq!(daemon.events(quiet), Vec::<Value>::new(), "{quiet}");
    }
    for once in ["descriptors_used_up", "listener_paused"] {
        assert_eq!(daemon.events(once).len(), 1, "{once} is told once");
    }
    assert_eq!(daemon.get("/readyz").await.unwrap().0, 200);
}

#[tokio::test]
async fn twenty_thousand_silent_connections_keep_nobody_from_working() {
    const N: usize = 20;
    const WANTED: u64 = 20_000;
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(WANTED).min(WANTED);
    let stage = Stage::of(N).set("server", "connections_max", 65_536).set("server", "header_timeout", "10m");
    let dir = tempfile::tempdir().unwrap();
    let with_limit = dir.path().join("glaneur");
    fs::write(&with_limit, format!("#!/bin/sh\nulimit -n {limit}\nexec {BINARY} \"$@\"\n")).unwrap();
    fs::set_permissions(&with_limit, fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = Daemon::start(&with_limit, stage.config.clone()).await.unwrap();
    let capped = daemon.wait_for_event("connections_capped", |_| true).await.unwrap();
    let allowed = capped["allowed"].as_u64().unwrap();
    assert!(limit / 2 < allowed && allowed < limit, "{capped}");
    let mut kept = Kept::open(&daemon).await;
    assert_eq!(kept.ask("GET", "/readyz", &Value::Null).await.0, 200);

    // One more than may be, with the one above; it waits in the kernel.
    let (half, api) = (usize::try_from(allowed).unwrap() / 2, daemon.api().address);
    let rest = usize::try_from(allowed).unwrap() - half;
    let crowds = [Crowd::gather(half, "127.0.0.4", api).await, Crowd::gather(rest, "127.0.0.5", api).await];
    daemon.wait_for_event("connections_full", |_| true).await.unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid().unwrap())).unwrap().count();
    println!("{open} descriptors open of {limit}");
    assert_no_spin(&daemon).await;
    let batch = json!({"eans": Catalogue::synthetic(N, 7).eans()});
    assert_eq!(kept.ask("POST", "/api/scrape", &batch).await.0, 202);
    let (products, _) = stage.finished(N).await;
    assert!(products.iter().all(|product| product["status"] == "found"));
    for quiet in ["listener_paused", "descriptors_used_up"] {
        assert_eq!(daemon.events(quiet), Vec::<Value>::new(), "there are descriptors for the work");
    }
    let another = json!({"eans": [Catalogue::synthetic(N, 7).eans()[0]], "force": true});
    let api = daemon.api();
    let late = tokio::spawn(async move { api.submit(&another).await });
    for crowd in crowds {
        crowd.send_away().await;
    }
    let (status, answer) = late.await.unwrap().unwrap();
    assert_eq!(status, 202, "who waited gets in when somebody leaves: {answer}");
}
