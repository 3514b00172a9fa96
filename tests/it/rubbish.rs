//! Rubbish to the API: every answer is a 202 or a 4xx with a sentence, the daemon lives, and its memory comes back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use glaneur_kit::receiver::Answer;
use glaneur_kit::{Config, Daemon, Receiver};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{BINARY, LONG, impatient, until};

/// Which mutations are tried; the same in every run.
const SEED: u64 = 20_251_017;

/// A valid body whose products end in the accept: what stays valid costs no visit.
fn valid(receiver: &Receiver) -> Vec<u8> {
    format!(
        r#"{{"eans": [{{"primary": "3400930000120", "replacement": null}}, "7.48E+11", 3400930000120,
            {{"primary": " '3400930000120", "replacement": "0748322148474"}}, {{"primary": "", "replacement": ""}}],
            "ignored3400": ["3400930000120", 3400930000120], "callback_url": "{}", "webhook_url": null,
            "metadata": {{"sheet": "Commande n° 7 \u00e9\ud83d\udc8a", "rows": [1, 2.5e3, -0.0], "deep": {{"er": [[]]}}}},
            "sites": ["cocooncenter", "drakkars"], "force": false}}"#,
        receiver.url("/s")
    )
    .into_bytes()
}

/// A shop that is never asked, and limits that end a slow peer soon.
fn config(receiver: &Receiver) -> Config {
    let host = receiver.address().to_string();
    ["cocooncenter", "drakkars"].into_iter().fold(
        impatient(receiver)
            .product_url("none")
            .socks(([127, 0, 0, 1], 9).into())
            .set("webhooks", "hosts", vec![host])
            .set("server", "header_timeout", "700ms")
            .set("server", "body_timeout", "700ms"),
        |config, shop| config.site_key(shop, "enabled", true),
    )
}

async fn start(receiver: &Receiver) -> Daemon {
    Daemon::start(BINARY, config(receiver)).await.unwrap()
}

/// What may be answered: 202, or a 4xx with a sentence. The status.
#[track_caller]
fn told(answer: &Response<Bytes>, what: &dyn std::fmt::Display) -> u16 {
    let status = answer.status().as_u16();
    let body: Value = serde_json::from_slice(answer.body())
        .unwrap_or_else(|_| panic!("{what}: {status} is no JSON: {:?}", answer.body()));
    if status == 202 {
        assert_eq!(body["success"], true, "{what}: {body}");
    } else {
        assert!((400..500).contains(&status), "{what}: {status} {body}");
        assert_eq!(body["success"], false, "{what}: {body}");
        let error = body["error"].as_str().unwrap_or_default();
        assert!(error.ends_with(['.', ')']) && error.len() < 1000, "{what}: no sentence: {body}");
    }
    status
}

/// Bodies that no change of a byte would make, with what they get.
fn bodies() -> Vec<(&'static str, u16, Vec<u8>)> {
    let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
    let objects = r#"{"a":"#.repeat(100_000);
    let digits = "9".repeat(400);
    let million = "1".repeat(1_000_000);
    let eans = |value: &str| format!(r#"{{"eans": [{value}]}}"#);
    let with = |rest: &str| format!(r#"{{"eans": ["3400930000120"], {rest}}}"#);
    let text: Vec<(&'static str, u16, String)> = vec![
        ("nothing", 400, String::new()),
        ("spaces", 400, " \n\t ".into()),
        ("words", 400, "Bonjour, voici mes codes".into()),
        ("a form", 400, "eans=3400930000120&force=1".into()),
        ("null", 400, "null".into()),
        ("a number", 400, "7".into()),
        ("a list", 400, r#"["3400930000120"]"#.into()),
        ("an empty object", 400, "{}".into()),
        ("two objects", 400, format!("{}{}", eans("1"), eans("1"))),
        ("half an object", 400, r#"{"eans": ["#.into()),
        ("a comma too many", 400, eans(r#""3400930000120","#)),
        ("single quotes", 400, "{'eans': ['3400930000120']}".into()),
        ("a barcode with a leading zero and no quotes", 400, eans("0748322148474")),
        ("NaN", 400, eans("NaN")),
        ("eans is text", 400, r#"{"eans": "3400930000120"}"#.into()),
        ("eans is an object", 400, r#"{"eans": {"primary": "3400930000120"}}"#.into()),
        ("an entry is true", 400, eans("true")),
        ("an entry is a list", 400, eans("[]")),
        ("a primary is an object", 400, eans(r#"{"primary": {}}"#)),
        ("a primary is half a surrogate pair", 400, eans(r#""\ud800""#)),
        ("a replacement is a list", 400, eans(r#"{"primary": "3400930000120", "replacement": []}"#)),
        ("ignored3400 holds objects", 400, with(r#""ignored3400": [{}]"#)),
        ("metadata is text", 400, with(r#""metadata": "x""#)),
        ("metadata holds 1e400", 400, with(r#""metadata": {"x": 1e400}"#)),
        ("metadata is nested", 400, with(&format!(r#""metadata": {{"x": {open}{close}}}"#))),
        ("metadata is large", 400, with(&format!(r#""metadata": {{"x": "{million}"}}"#))),
        ("sites is empty", 400, with(r#""sites": []"#)),
        ("sites names nobody", 400, with(r#""sites": ["nobody"]"#)),
        ("force is a word", 400, with(r#""force": "yes""#)),
        ("the callback is no URL", 400, with(r#""callback_url": "::""#)),
        ("the callback is a file", 400, with(r#""callback_url": "file:///etc/passwd""#)),
        ("the webhook goes elsewhere", 400, with(r#""webhook_url": "http://192.0.2.1/""#)),
        ("eans twice", 400, with(r#""eans": ["3400930000120"]"#)),
        ("primary twice", 400, eans(r#"{"primary": "1", "primary": "2"}"#)),
        ("nested lists, not closed", 400, open.clone()),
        ("nested lists", 400, format!("{open}{close}")),
        ("nested objects, not closed", 400, objects),
        ("a nested entry", 400, eans(&format!("{open}{close}"))),
        ("a number of a million digits, and no end", 400, million.clone()),
        ("a key that nobody knows, nested", 202, with(&format!(r#""x": {open}{close}"#))),
        ("a key that nobody knows, 1e400", 202, with(r#""x": 1e400"#)),
        ("1e400", 202, eans("1e400")),
        ("1e-400", 202, eans("1e-400")),
        ("an exponent of 400 digits", 202, eans(&format!("1e{digits}"))),
        ("400 digits", 202, eans(&digits)),
        ("a million digits", 202, eans(&million)),
        ("a million digits as text", 202, eans(&format!(r#""{million}""#))),
        ("a minus", 202, eans("-1")),
        ("control characters", 202, eans(r#""\u0000\u001b[31m""#)),
    ];
    let mut all: Vec<_> =
        text.into_iter().map(|(name, status, text)| (name, status, text.into_bytes())).collect();
    all.push(("invalid UTF-8", 400, b"{\"eans\": [\"\xff\xfe\"]}".to_vec()));
    all.push(("UTF-16", 400, "{\"eans\": [1]}".encode_utf16().flat_map(u16::to_le_bytes).collect()));
    all.push(("zeros", 400, vec![0; 10_000]));
    all.push(("over the limit", 413, vec![b' '; (8 << 20) + 1]));
    all
}

#[tokio::test]
async fn a_body_that_is_no_submit_gets_a_4xx_with_a_sentence() {
    let receiver = Receiver::start().unwrap();
    let mut daemon = start(&receiver).await;
    let mut client = Client::new(daemon.api().address);
    for (name, wanted, body) in bodies() {
        let answer = client.post(body).await;
        assert_eq!(told(&answer, &name), wanted, "{name}: {:?}", answer.body());
    }
    assert!(daemon.is_running());
    assert!(daemon.events("panicked").is_empty());
}

/// Heads, byte for byte, with the status each gets and whether the sentence is ours.
fn heads(address: SocketAddr) -> Vec<(u16, bool, Vec<u8>)> {
    let body = r#"{"eans": ["3400930000120"]}"#;
    let post = |headers: &str| {
        format!(
            "POST /api/scrape HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let json = "content-type: application/json\r\n";
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    let method = |method: &str, path: &str| get(path).replacen("GET", method, 1);
    let no_host = post(json).replacen(&format!("host: {address}\r\n"), "", 1);
    let unsized_post = |headers: &str, rest: &str| {
        format!(
            "POST /api/scrape HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{json}{headers}\r\n{rest}"
        )
    };
    let mut all: Vec<(u16, bool, String)> = vec![
        (202, true, post(json)),
        (202, true, post("content-type: Application/JSON; charset=utf-8\r\n")),
        (400, true, unsized_post("", "")),
        (415, true, post("")),
        (415, true, post("content-type: text/plain\r\n")),
        (415, true, post("content-type: application/x-www-form-urlencoded\r\n")),
        (415, true, post("content-type: application/jsonx\r\n")),
        (415, true, post(&format!("{json}content-encoding: gzip\r\n"))),
        (400, true, no_host.clone()),
        (400, true, post(&format!("{json}host: localhost\r\n"))),
        (403, true, no_host.replacen("connection", "host: evil.example\r\nconnection", 1)),
        (403, true, no_host.replacen("connection", "host: \u{e9}\r\nconnection", 1)),
        (403, true, post(json).replacen("/api/scrape", "http://evil.example/api/scrape", 1)),
        (403, true, post(&format!("{json}origin: http://evil.example\r\n"))),
        (403, true, post(&format!("{json}origin: null\r\n"))),
        (400, true, post(&format!("{json}idempotency-key: \r\n"))),
        (400, true, post(&format!("{json}idempotency-key: {}\r\n", "k".repeat(256)))),
        (400, true, post(&format!("{json}idempotency-key: a\r\nidempotency-key: b\r\n"))),
        (405, true, get("/api/scrape")),
        (405, true, method("DELETE", "/api/scrape")),
        (405, true, method("BREW", "/api/scrape")),
        (405, true, method("POST", "/api/health")),
        (404, true, get("/")),
        (404, true, get("/api/scrape/")),
        (404, true, get("/api/scrape%2f")),
        (404, true, get("/../../etc/passwd")),
        (404, true, get("/api/batches/")),
        (404, true, get("/api/batches/%00")),
        (404, true, get(&format!("/api/batches/{}", "9".repeat(4_000)))),
        (404, true, get("/api/batches/18446744073709551616")),
        (404, true, get("/api/batches/-1")),
        (400, true, get("/api/batches/1?limit=-1")),
        (400, true, get("/api/batches/1?after=99999999999")),
        (404, true, method("CONNECT", "evil.example:443")),
        (404, true, method("OPTIONS", "*")),
        (400, true, unsized_post("transfer-encoding: chunked\r\n", "zz\r\n")),
        (400, true, unsized_post("transfer-encoding: chunked\r\n", "ffffffffffffffffff\r\n")),
        (400, false, unsized_post("content-length: -1\r\n", body)),
        (400, false, unsized_post("content-length: 27\r\ncontent-length: 28\r\n", body)),
        (400, false, unsized_post("transfer-encoding: gzip\r\n", body)),
        (400, false, "Bonjour\r\n\r\n".into()),
        (400, false, "GET / HTTP/9.9\r\n\r\n".into()),
        (400, false, format!("GET /\u{0} HTTP/1.1\r\nhost: {address}\r\n\r\n")),
        (400, false, format!("GET / HTTP/1.1\r\nhost: {address}\r\nx y: z\r\n\r\n")),
        (431, false, post(&format!("{json}x-large: {}\r\n", "x".repeat(64_000)))),
        (431, false, post(&format!("{json}{}", "x: y\r\n".repeat(1_000)))),
    ];
    all.push((413, true, unsized_post(&format!("content-length: {}\r\n", 1_u64 << 40), body)));
    all.push((431, false, unsized_post(&format!("content-length: {}\r\n", u64::MAX), body)));
    let mut all: Vec<_> =
        all.into_iter().map(|(status, ours, text)| (status, ours, text.into_bytes())).collect();
    // What a browser sends that was told https.
    all.push((400, false, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03rubbish rubbish rubbish".to_vec()));
    all
}

#[tokio::test]
async fn a_head_that_is_wrong_gets_its_status_with_a_sentence() {
    let receiver = Receiver::start().unwrap();
    let mut daemon = start(&receiver).await;
    let address = daemon.api().address;
    for (wanted, ours, bytes) in heads(address) {
        let what = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
        let answer = raw(address, &bytes).await;
        let answer = answer.unwrap_or_else(|| panic!("no answer to {what}"));
        assert_eq!(answer.status().as_u16(), wanted, "{what}: {:?}", answer.body());
        if ours {
            told(&answer, &what);
        }
    }
    assert!(daemon.is_running());
    assert!(daemon.events("panicked").is_empty());
}

#[tokio::test]
async fn slow_and_half_open_peers_are_let_go_of_and_others_served_meanwhile() {
    let receiver = Receiver::start().unwrap();
    let daemon = start(&receiver).await;
    let address = daemon.api().address;
    let mut peers = Vec::new();
    for at in 0..400_usize {
        let mut peer = TcpStream::connect(address).await.unwrap();
        if at % 2 == 1 {
            peer.write_all(b"POST /api/scrape HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-le").await.unwrap();
        }
        if at % 4 == 3 {
            peer.shutdown().await.unwrap();
        }
        peers.push(peer);
    }
    let slow_head = tokio::spawn(byte_by_byte(address, String::new()));
    let head = "POST /api/scrape HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
                content-length: 100000\r\n\r\n";
    let slow_body = tokio::spawn(byte_by_byte(address, head.into()));

    let answer = daemon.post_raw(valid(&receiver)).await.unwrap();
    assert_eq!(told(&answer, &"a submit amid silent peers"), 202);
    let started = Instant::now();
    for mut peer in peers {
        let mut rest = Vec::new();
        // Closed or reset, it is gone.
        let _ = tokio::time::timeout(LONG, peer.read_to_end(&mut rest))
            .await
            .expect("a silent peer is let go of");
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&rest));
    }
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    let (sent, answer) = slow_head.await.unwrap();
    assert!(sent < 5_000, "a head of {sent} bytes was waited for");
    assert!(
        answer.is_none_or(|answer| answer.status().as_u16() == 408),
        "a head that never came was answered"
    );
    let (sent, answer) = slow_body.await.unwrap();
    assert!(sent < 5_000, "a body of {sent} bytes was waited for");
    assert_eq!(told(&answer.expect("an answer to a slow body"), &"a slow body"), 408);
    only_the_listener_is_left(&daemon).await;
}

#[tokio::test]
async fn more_connections_than_allowed_wait_and_are_served_in_the_end() {
    let receiver = Receiver::start().unwrap();
    let config = config(&receiver).set("server", "connections_max", 8);
    let daemon = Daemon::start(BINARY, config).await.unwrap();
    let address = daemon.api().address;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let taken = || {
        daemon.sockets().unwrap().iter().filter(|socket| socket.local == address && !socket.listening).count()
    };
    let (api, body) = (daemon.api(), valid(&receiver));
    let answer = tokio::spawn(async move { api.post_raw(body).await.unwrap() });
    while !answer.is_finished() {
        // A look takes time: connections that ended meanwhile are counted with those that took their places.
        let taken = taken();
        assert!(taken < 40, "{taken} connections were taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(told(&answer.await.unwrap(), &"a submit behind 200 silent peers"), 202);
}

#[tokio::test]
async fn a_low_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
    let receiver = Receiver::start().unwrap();
    // Silent peers are kept for longer than the test is patient.
    let config = config(&receiver).set("server", "header_timeout", "10m");
    let daemon = Daemon::builder("prlimit").argument("--nofile=64:4096").argument(BINARY).config(config);
    let daemon = daemon.start().await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(daemon.api().address).await.unwrap());
    }
    let answer = tokio::time::timeout(LONG, daemon.post_raw(valid(&receiver))).await.unwrap();
    assert_eq!(told(&answer.unwrap(), &"a submit behind 200 silent peers"), 202);
    assert!(daemon.events("listener_paused").is_empty());
}

#[tokio::test]
async fn ten_thousand_mutations_and_all_other_rubbish_leave_the_memory_as_it_was() {
    /// What the daemon may keep of all that.
    const KEPT_MAX: u64 = 10_000_000;
    let receiver = Receiver::start().unwrap();
    receiver.behave(Answer::Started);
    let mut daemon = start(&receiver).await;
    // Warm-up: the same kinds, and as many at once, so that every pool, cache and page of code has been in use.
    rubbish(&daemon, &receiver, SEED, 2_000).await;
    let level = settled(&daemon).await;
    let statuses = rubbish(&daemon, &receiver, SEED + 1, 10_000).await;
    let loaded = daemon.rss_bytes().unwrap();
    only_the_listener_is_left(&daemon).await;
    // Not a matter of time but of whether it comes back at all, so it is waited for.
    let begun = Instant::now();
    let after = loop {
        let now = daemon.rss_bytes().unwrap();
        if now < level + KEPT_MAX || begun.elapsed() > Duration::from_secs(30) {
            break now;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    println!(
        "{statuses:?}; resident after warm-up {level}, right after the load {loaded}, {:?} later {after}",
        begun.elapsed()
    );
    assert!(after < level + KEPT_MAX, "{level} bytes after warm-up, {after} after the load");
    assert!(statuses[0] > 100 && statuses[1] > 1_000, "the mutations were all of one kind: {statuses:?}");
    assert!(daemon.is_running());
    assert!(daemon.events("panicked").is_empty() && daemon.events("actor_restarted").is_empty());
    let answer = daemon.post_raw(valid(&receiver)).await.unwrap();
    assert_eq!(told(&answer, &"an ordinary submit"), 202);
}

/// Mutations over kept connections, large and nested bodies, wrong heads, silent peers: side by side. How many got a 202
/// and how many a 4xx.
async fn rubbish(daemon: &Daemon, receiver: &Receiver, seed: u64, mutations: usize) -> [usize; 2] {
    const CONNECTIONS: usize = 16;
    let address = daemon.api().address;
    let mut tasks = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let valid = valid(receiver);
        tasks.spawn(async move {
            let mut dice = Dice(seed.wrapping_mul(1_000_003) + connection as u64);
            let mut client = Client::new(address);
            let mut statuses = [0, 0];
            for nth in 0..mutations / CONNECTIONS {
                let body = mutated(&valid, &mut dice);
                let what = format!(
                    "mutation {nth} of connection {connection}, seed {seed}: {}",
                    body.escape_ascii()
                );
                statuses[usize::from(told(&client.post(body).await, &what) != 202)] += 1;
            }
            statuses
        });
    }
    for _ in 0..3 {
        tasks.spawn(async move {
            let mut client = Client::new(address);
            for (name, wanted, body) in bodies() {
                assert_eq!(told(&client.post(body).await, &name), wanted, "{name}");
            }
            for (wanted, _, bytes) in heads(address) {
                let answer = raw(address, &bytes).await;
                assert_eq!(answer.map(|answer| answer.status().as_u16()), Some(wanted));
            }
            [0, 0]
        });
    }
    tasks.spawn(async move {
        let mut silent = Vec::new();
        for _ in 0..200 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        for mut peer in silent {
            let _ = peer.read(&mut [0]).await;
        }
        [0, 0]
    });
    let all = tasks.join_all().await;
    all.into_iter().fold([0, 0], |sum, one| [sum[0] + one[0], sum[1] + one[1]])
}

/// Resident memory once nobody is connected and it has not moved for a second.
async fn settled(daemon: &Daemon) -> u64 {
    const STILL: u64 = 256 << 10;
    only_the_listener_is_left(daemon).await;
    let begun = Instant::now();
    let (mut since, mut level) = (Instant::now(), daemon.rss_bytes().unwrap());
    while since.elapsed() < Duration::from_secs(1) {
        assert!(begun.elapsed() < LONG, "memory never stood still");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = daemon.rss_bytes().unwrap();
        if now.abs_diff(level) > STILL {
            (since, level) = (Instant::now(), now);
        }
    }
    level
}

async fn only_the_listener_is_left(daemon: &Daemon) {
    let address = daemon.api().address;
    let is_left = || daemon.sockets().unwrap().iter().any(|it| it.local == address && !it.listening);
    until("only the listener is left", || !is_left()).await;
}

/// Sends this, then a byte every few milliseconds until it is told to stop; how many bytes, and the answer.
async fn byte_by_byte(address: SocketAddr, head: String) -> (usize, Option<Response<Bytes>>) {
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let sending = async {
        write.write_all(head.as_bytes()).await.unwrap();
        let mut sent = 0;
        while sent < 5_000 && write.write_all(b"P").await.is_ok() {
            sent += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sent
    };
    let mut answer = Vec::new();
    let mut sent = 0;
    let reading = async {
        // A reset ends it as well as an end.
        let _ = read.read_to_end(&mut answer).await;
    };
    tokio::select! {
        all = sending => sent = all,
        () = reading => {}
    }
    (sent, parsed(&answer))
}

/// Sends these bytes and reads until the other end closes.
async fn raw(address: SocketAddr, bytes: &[u8]) -> Option<Response<Bytes>> {
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let sending = async {
        // A peer that has answered already may not take the rest.
        let _ = write.write_all(bytes).await;
    };
    let mut answer = Vec::new();
    let reading = async {
        let _ =
            tokio::time::timeout(LONG, read.read_to_end(&mut answer)).await.expect("the other end closes");
    };
    tokio::join!(sending, reading);
    parsed(&answer)
}

/// An answer as it came over a connection that ended after it.
fn parsed(bytes: &[u8]) -> Option<Response<Bytes>> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status: u16 = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Response::builder().status(status).body(Bytes::copy_from_slice(body.as_bytes())).ok()
}

/// One kept connection, made anew when the daemon closes it.
struct Client {
    address: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    async fn post(&mut self, body: Vec<u8>) -> Response<Bytes> {
        let body = Bytes::from(body);
        loop {
            let kept = self.sender.take_if(|sender| !sender.is_closed());
            let fresh = kept.is_none();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect().await,
            };
            let request = Request::post("/api/scrape")
                .header("host", self.address.to_string())
                .header("content-type", "application/json")
                .body(Full::new(body.clone()))
                .unwrap();
            let answer = async {
                sender.ready().await?;
                let (head, body) = sender.send_request(request).await?.into_parts();
                Ok::<_, hyper::Error>(Response::from_parts(head, body.collect().await?.to_bytes()))
            };
            match answer.await {
                Ok(answer) => {
                    self.sender = Some(sender);
                    return answer;
                }
                // An idle connection may be closed just as it is used.
                Err(error) => assert!(!fresh, "a fresh connection failed: {error}"),
            }
        }
    }

    async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }
}

/// One to four changes: bits flipped, a cut, a piece copied to another place, a piece doubled many times.
fn mutated(valid: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut body = valid.to_vec();
    for _ in 0..=dice.below(4) {
        let (at, length) = (dice.below(body.len()), dice.below(60));
        let end = (at + length).min(body.len());
        match dice.below(8) {
            0..=2 => {
                if let Some(byte) = body.get_mut(at) {
                    *byte ^= 1 << dice.below(8);
                }
            }
            3 => {
                if let Some(byte) = body.get_mut(at) {
                    *byte = dice.roll() as u8;
                }
            }
            4 => body.truncate(at),
            5 => {
                let piece = body[at..end].to_vec();
                let to = dice.below(body.len());
                body.splice(to..to, piece);
            }
            6 => drop(body.drain(at..end)),
            _ => {
                let piece = body[at..end].repeat(dice.below(200));
                body.splice(at..end, piece);
            }
        }
    }
    body
}
