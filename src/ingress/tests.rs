//! The way in over real sockets, before a ledger that is a list in memory and misbehaves on request.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ractor::ActorCell;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Args, Authority, Drain, Ingress, Limits, Settings, Token};
use crate::config::HostRule;
use crate::ledger::store::{
    AcceptAnswer, Addressing, BatchView, Claim, Claimed, DeliveryView, Ended, EndedAside, LaneView,
    OpenBatch, ProductState, ProductView, Read, Readmitted, Recorded, Store, StoreError, Tally,
};
use crate::ledger::{self, LedgerReader};
use crate::model::batch::{Accepted, NewBatch, Outcome, Repeat};
use crate::model::delivery::{AttemptRecord, DeliveryNo, DueDelivery, LaneNo, UrlHash};
use crate::model::{BatchId, BatchNo, Language, ProductKey};
use crate::scraper::roster::Roster;
use crate::supervisor::bystander::bystander;

pub(super) fn settings() -> Settings {
    Settings {
        language: Language::French,
        hosts: vec![Authority::parse("glaneur.example").unwrap()],
        allow_from: Vec::new(),
        token: None,
        sites: vec!["alpha".into(), "beta".into()],
        direct: vec!["shop beta".into()],
        circuits: 2,
        ignore_prefixes: vec!["3400".into()],
        webhook_hosts: ["n8n:5678", "hooks.example"].map(|host| HostRule::parse(host).unwrap()).into(),
        limits: Limits {
            products_max: 100,
            body_bytes_max: 100_000,
            metadata_bytes_max: 1000,
            header_bytes_max: 8192,
            header_timeout: Duration::from_secs(20),
            body_timeout: Duration::from_secs(20),
            request_timeout: Duration::from_secs(20),
        },
    }
}

/// Settings for batches of the largest size, as by the default of the configuration.
pub(super) fn generous(products_max: usize) -> Settings {
    let mut settings = settings();
    settings.limits.products_max = products_max;
    settings.limits.metadata_bytes_max = 16 << 10;
    settings.limits.body_bytes_max = 1 << 20;
    settings
}

/// Shorter than any patience of a test, longer than anything on a loaded machine.
const SHORT: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Writing,
    Full,
    ReadOnly,
    Refusing,
    /// A commit takes until somebody asks whether it is there.
    UntilAsked,
    /// A commit takes until the mode changes.
    Stuck,
    /// The counters do not add up.
    Miscounted,
}

#[derive(Debug, Default)]
struct Book {
    mode: Mode,
    /// Commits that have begun, also those that wait.
    begun: u32,
    asked: u32,
    batches: Vec<(Accepted, NewBatch)>,
}

#[derive(Clone, Debug, Default)]
struct Fake(Arc<(Mutex<Book>, Condvar)>);

impl Fake {
    fn with<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let result = change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
        result
    }

    fn set(&self, mode: Mode) {
        self.with(|book| book.mode = mode);
    }

    fn stored(&self) -> usize {
        self.with(|book| book.batches.len())
    }
}

fn not_here<T>() -> Result<T, StoreError> {
    Err(StoreError::Other("the fake ledger has none of that".into()))
}

impl Store for Fake {
    fn begin(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn savepoint(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn release(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn rollback_to_savepoint(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn commit(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn rollback(&mut self) {}
    fn is_read_only(&mut self) -> bool {
        self.with(|book| book.mode) == Mode::ReadOnly
    }
    fn readdress(&mut self, _: Addressing) {}

    fn accept(&mut self, batch: &NewBatch, _: i64) -> Result<AcceptAnswer, StoreError> {
        let mut book = self.0.0.lock().unwrap();
        book.begun += 1;
        loop {
            match book.mode {
                Mode::Full => return Err(StoreError::Full { group_lost: false }),
                Mode::ReadOnly => return Err(StoreError::Unwritten("on purpose".into())),
                Mode::Refusing => return not_here(),
                Mode::UntilAsked if book.asked == 0 => book = self.0.1.wait(book).unwrap(),
                Mode::Stuck => book = self.0.1.wait(book).unwrap(),
                Mode::Writing | Mode::UntilAsked | Mode::Miscounted => break,
            }
        }
        for (first, stored) in &book.batches {
            let repeat = match (&batch.key, &stored.key) {
                (Some(key), Some(first_key)) if key == first_key => {
                    if batch.body_hash != stored.body_hash {
                        return Ok(AcceptAnswer::KeyReused);
                    }
                    Repeat::Key
                }
                (None, None) if batch.body_hash == stored.body_hash && !batch.force => Repeat::Body,
                _ => continue,
            };
            return Ok(AcceptAnswer::Accepted(Accepted { repeat: Some(repeat), ..first.clone() }));
        }
        let accepted = Accepted {
            batch: BatchNo(book.batches.len() as i64 + 1),
            batch_id: batch.batch_id.clone(),
            total: batch.products.len() as u32,
            counts: batch.counts(),
            refused: batch.refused(),
            repeat: None,
        };
        book.batches.push((accepted.clone(), batch.clone()));
        Ok(AcceptAnswer::Accepted(accepted))
    }

    fn touch(&mut self) -> Result<(), StoreError> {
        match self.with(|book| book.mode) {
            Mode::Full => Err(StoreError::Full { group_lost: false }),
            Mode::ReadOnly => Err(StoreError::Unwritten("on purpose".into())),
            _ => Ok(()),
        }
    }

    fn claim(&mut self, _: BatchNo, _: Claim, _: u32) -> Result<Vec<Claimed>, StoreError> {
        not_here()
    }
    fn start(&mut self, _: ProductKey, _: Claim) -> Result<bool, StoreError> {
        not_here()
    }
    fn rest(&mut self, _: ProductKey, _: Claim) -> Result<(), StoreError> {
        not_here()
    }
    fn rest_all_but(&mut self, _: ProductKey) -> Result<(), StoreError> {
        not_here()
    }
    fn put_back(&mut self, _: ProductKey, _: Claim) -> Result<(), StoreError> {
        not_here()
    }
    fn release_older(&mut self, _: BatchNo, _: Claim) -> Result<u32, StoreError> {
        not_here()
    }
    fn release_claims(&mut self, _: BatchNo, _: Claim, _: &[u32]) -> Result<Vec<u32>, StoreError> {
        not_here()
    }
    fn end(&mut self, _: ProductKey, _: Claim, _: &Outcome, _: i64) -> Result<Ended, StoreError> {
        not_here()
    }
    fn end_set_aside(
        &mut self,
        _: BatchNo,
        _: &Outcome,
        _: u32,
        _: i64,
    ) -> Result<Vec<EndedAside>, StoreError> {
        not_here()
    }
    fn record_attempt(&mut self, _: &AttemptRecord) -> Result<Recorded, StoreError> {
        not_here()
    }
    fn record_lane_panic(&mut self, _: DeliveryNo) -> Result<u32, StoreError> {
        not_here()
    }
    fn readmit(&mut self, _: LaneNo, _: UrlHash, _: i64, _: u32) -> Result<Readmitted, StoreError> {
        not_here()
    }
    fn shift_due(&mut self, _: i64) -> Result<(), StoreError> {
        not_here()
    }
    fn release_summaries(&mut self, _: i64, _: &dyn Fn(i64) -> bool) -> Result<u32, StoreError> {
        not_here()
    }
    fn mark_stopping(&mut self) -> Result<(), StoreError> {
        not_here()
    }
}

/// A note that makes a page of products larger than what two sockets buffer.
const LONG_NOTE_BYTES: usize = 20_000;

impl Read for Fake {
    fn claimed(&mut self, _: BatchNo, _: Claim) -> Result<Vec<u32>, StoreError> {
        not_here()
    }
    fn batch(&mut self, name: &str) -> Result<Option<BatchView>, StoreError> {
        let view = |(accepted, batch): &(Accepted, NewBatch)| BatchView {
            no: accepted.batch,
            batch_id: accepted.batch_id.clone(),
            accepted_at_ms: 0,
            ended_at_ms: None,
            total: accepted.total,
            queued: accepted.counts.queued,
            claimed: 0,
            ended: [0, 0, 0, 0, accepted.counts.ignored, accepted.counts.skipped, 0, 0],
            deliveries: [0; 6],
            sites: batch.sites.clone(),
            ignored_3400: batch.ignored_3400.clone(),
            callback_url: batch.callback_url.clone(),
            webhook_url: batch.webhook_url.clone(),
            metadata: batch.metadata.as_ref().map(|metadata| metadata.get().to_owned()),
            summary_released: false,
        };
        let named =
            |accepted: &Accepted| accepted.batch_id.as_str() == name || accepted.batch.0.to_string() == name;
        Ok(self.with(|book| book.batches.iter().find(|(accepted, _)| named(accepted)).map(view)))
    }

    fn accepted(&mut self, batch_id: &BatchId) -> Result<Option<Accepted>, StoreError> {
        Ok(self.with(|book| {
            book.asked += 1;
            let found = book.batches.iter().find(|(accepted, _)| accepted.batch_id == *batch_id);
            found.map(|(accepted, _)| accepted.clone())
        }))
    }

    fn products(&mut self, batch: BatchNo, after: u32, limit: u32) -> Result<Vec<ProductView>, StoreError> {
        Ok(self.with(|book| {
            let (accepted, stored) = &book.batches[batch.0 as usize - 1];
            let view = |(index, product): (u32, &crate::model::batch::NewProduct)| ProductView {
                batch_id: accepted.batch_id.clone(),
                index,
                ean: product.ean.clone(),
                replacement: None,
                duplicate_of: None,
                note: Some("x".repeat(LONG_NOTE_BYTES)),
                state: ProductState::Queued,
                reason: None,
                deaths: 0,
                ended_at_ms: None,
                delivery: None,
                body: None,
            };
            (1..).zip(&stored.products).skip(after as usize).take(limit as usize).map(view).collect()
        }))
    }

    fn summaries(&mut self, _: BatchNo) -> Result<Vec<DeliveryView>, StoreError> {
        Ok(Vec::new())
    }

    fn tally(&mut self) -> Result<Tally, StoreError> {
        let accepted = i64::from(self.with(|book| book.mode) == Mode::Miscounted);
        Ok(Tally { accepted, ..Tally::default() })
    }

    fn recount(&mut self) -> Result<Tally, StoreError> {
        self.tally()
    }
    fn open_batch_count(&mut self) -> Result<u64, StoreError> {
        not_here()
    }
    fn open_batches(&mut self, _: BatchNo, _: u32) -> Result<Vec<OpenBatch>, StoreError> {
        not_here()
    }
    fn products_by_gtin(&mut self, _: &str, _: u32) -> Result<Vec<ProductView>, StoreError> {
        not_here()
    }
    fn lanes(&mut self) -> Result<Vec<LaneView>, StoreError> {
        not_here()
    }
    fn due(&mut self, _: LaneNo, _: i64, _: &[DeliveryNo], _: u32) -> Result<Vec<DueDelivery>, StoreError> {
        not_here()
    }
}

struct Server {
    fake: Fake,
    ingress: Ingress,
    listener: Arc<TcpListener>,
    actor: ActorCell,
    root: ActorCell,
    settings: watch::Sender<Arc<Settings>>,
    status: watch::Sender<Value>,
    batches: watch::Receiver<u64>,
    at: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        // A commit that waits for ever would keep the runtime's blocking thread, and with it the test.
        self.fake.set(Mode::Writing);
    }
}

impl Server {
    async fn start(settings: Settings) -> Self {
        Self::with_ledger(settings, 100, PATIENCE).await
    }

    async fn with_ledger(settings: Settings, queue_max: usize, reply_within: Duration) -> Self {
        Self::with(settings, queue_max, reply_within, 64).await
    }

    /// One connection at a time.
    async fn alone(settings: Settings) -> Self {
        Self::with(settings, 100, PATIENCE, 1).await
    }

    async fn with(settings: Settings, queue_max: usize, reply_within: Duration, connections: usize) -> Self {
        let fake = Fake::default();
        let root = bystander().await;
        let reader = LedgerReader::new(vec![Box::new(fake.clone()), Box::new(fake.clone())]);
        let limits = ledger::actor::Limits { queue_max, group_max: 100, reply_within };
        let (handle, ledger) = ledger::actor::handle(reader, limits);
        ledger.start(Box::new(fake.clone()), root.clone()).await.unwrap();
        let (settings, settings_rx) = watch::channel(Arc::new(settings));
        let (status, status_rx) = watch::channel(Value::Null);
        let (batches_tx, batches) = watch::channel(0);
        let ingress = Ingress::new(Args {
            ledger: handle,
            settings: settings_rx,
            connections,
            status: status_rx,
            roster: Roster::default(),
            batches: batches_tx,
        });
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let at = listener.local_addr().unwrap();
        let actor = ingress.start(Arc::clone(&listener), root.clone()).await.unwrap();
        Self { fake, ingress, listener, actor, root, settings, status, batches, at }
    }

    async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.at).await.unwrap())
    }

    /// One request on a connection of its own.
    async fn ask(&self, request: impl AsRef<[u8]>) -> Reply {
        let mut client = self.connect().await;
        client.send(request).await;
        client.reply().await.expect("an answer")
    }

    async fn post(&self, body: &str) -> Reply {
        self.ask(post("", body)).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await
    }
}

struct Client(TcpStream);

impl Client {
    /// What cannot be sent was not wanted any more.
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.0.write_all(bytes.as_ref()).await;
    }

    /// The next answer; `None` if the connection ends without one.
    async fn reply(&mut self) -> Option<Reply> {
        timeout(PATIENCE, self.read_reply()).await.expect("an answer or the end of the connection in time")
    }

    async fn read_reply(&mut self) -> Option<Reply> {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            if let Some(reply) = Reply::parse(&bytes) {
                return Some(reply);
            }
            match self.0.read(&mut buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            }
        }
    }

    /// Waits for the end of the connection; what came before it.
    async fn end(&mut self) -> String {
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("the connection ends in time");
        String::from_utf8(rest).unwrap()
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    text: String,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let head = head.to_lowercase();
        let length =
            head.split_once("content-length: ").map_or("0", |(_, rest)| rest.lines().next().unwrap());
        let length: usize = length.trim().parse().unwrap();
        let status = head[9..12].parse().unwrap();
        (length <= body.len()).then(|| Self { status, text: body[..length].to_owned(), head })
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// An error in the form of the contract.
    fn error(&self) -> String {
        let json = self.json();
        assert_eq!(json["success"], false, "{self:?}");
        assert!(self.head.contains("content-type: application/json"), "{self:?}");
        json["error"].as_str().unwrap().to_owned()
    }

    fn closes(&self) -> bool {
        self.head.contains("connection: close")
    }
}

fn post(headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /api/scrape HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

const BODY: &str = r#"{"eans": [{"primary": "0748322148474", "replacement": null}, "123"]}"#;

#[tokio::test]
async fn a_batch_is_stored_answered_and_told_to_the_coordinators() {
    let mut server = Server::start(settings()).await;
    let reply = server.post(BODY).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    let json = reply.json();
    assert_eq!((&json["total_products"], &json["thread_id"]), (&2.into(), &1.into()));
    assert_eq!(json["counts"], serde_json::json!({"queued": 1, "skipped": 1, "ignored": 0}));
    assert_eq!((&json["refused"][0]["index"], &json["refused"][0]["ean"]), (&2.into(), &"123".into()));
    assert_eq!(server.fake.stored(), 1);
    timeout(PATIENCE, server.batches.changed()).await.unwrap().unwrap();
    server.fake.with(|book| {
        assert_eq!(book.batches[0].1.requester, "addr:127.0.0.1");
        assert_eq!(book.batches[0].1.sites, ["alpha".into(), "beta".into()]);
    });
}

#[tokio::test]
async fn a_large_body_is_read_like_a_small_one() {
    let server = Server::start(settings()).await;
    let padding = "x".repeat(super::service::PARSE_HERE_BYTES_MAX);
    let reply = server.post(&format!(r#"{{"eans": ["0748322148474"], "unknown": "{padding}"}}"#)).await;
    assert_eq!((reply.status, server.fake.stored()), (202, 1));
    let refused = server.post(&format!(r#"{{"eans": ["1", true], "unknown": "{padding}"}}"#)).await;
    assert_eq!(refused.json()["field"], "eans[1]");
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer() {
    let server = Server::start(settings()).await;
    let first = server.post(BODY).await.text;
    let by_body = server.post(BODY).await;
    assert_eq!(by_body.status, 202);
    assert_eq!(by_body.json()["duplicate"], true);
    assert_eq!(by_body.json()["batch_id"], serde_json::from_str::<Value>(&first).unwrap()["batch_id"]);
    let with_key = post("Idempotency-Key: abc\r\n", BODY);
    let first = server.ask(&with_key).await;
    assert_eq!(server.ask(&with_key).await.text, first.text);
    let other = server.ask(post("Idempotency-Key: abc\r\n", r#"{"eans": ["1"]}"#)).await;
    assert_eq!(other.status, 422);
    assert!(other.error().contains("Idempotency-Key"));
    assert_eq!(server.fake.stored(), 2);
}

#[tokio::test]
async fn what_is_refused_stores_nothing_and_says_why() {
    let server = Server::start(settings()).await;
    let big = format!(r#"{{"eans": ["{}"]}}"#, "x".repeat(150_000));
    let chunked = format!(
        "POST /api/scrape HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{big}\r\n0\r\n\r\n",
        big.len()
    );
    let get = |path: &str, headers: &str| format!("GET {path} HTTP/1.1\r\n{headers}\r\n");
    for (status, request, word) in [
        (400, post("", "eans=1"), "JSON"),
        (400, post("", r#"{"eans": [true]}"#), "eans[0]"),
        (400, post("Idempotency-Key: a b\r\n", BODY), "Idempotency-Key"),
        (400, post(&format!("Idempotency-Key: {}\r\n", "k".repeat(256)), BODY), "Idempotency-Key"),
        (400, post("Idempotency-Key: a\r\nIdempotency-Key: b\r\n", BODY), "Idempotency-Key"),
        (400, get("/api/batches/1", ""), "Host"),
        (400, get("/api/batches/1?limit=1001", "Host: localhost\r\n"), "1000"),
        (400, get("/api/batches/1?after=-1", "Host: localhost\r\n"), "after"),
        (403, get("/api/batches/1", "Host: evil.example\r\n"), "server.hosts"),
        (403, get("/api/circuits", "Host: evil.example\r\n"), "server.hosts"),
        (403, post("Origin: http://evil.example\r\n", BODY), "evil.example"),
        (404, get("/api/nothing", "Host: localhost\r\n"), "/api/nothing"),
        (404, get("/api/scrape/", "Host: localhost\r\n"), "/api/scrape/"),
        (404, get("/api/batches/7", "Host: localhost\r\n"), "7"),
        (405, get("/api/scrape", "Host: localhost\r\n"), "POST"),
        (405, post("", BODY).replace("POST", "DELETE"), "POST"),
        (405, post("", BODY).replace("/api/scrape", "/api/health"), "GET"),
        (405, post("", BODY).replace("/api/scrape", "/api/circuits"), "GET"),
        (413, post("", &big), "server.body_bytes_max"),
        (413, chunked, "server.body_bytes_max"),
        (415, post("", BODY).replace("application/json", "text/plain"), "application/json"),
        (415, post("", BODY).replace("Content-Type", "X-Type"), "application/json"),
        (415, post("Content-Encoding: gzip\r\n", BODY), "Content-Encoding"),
    ] {
        let reply = server.ask(&request).await;
        assert_eq!(reply.status, status, "{reply:?} to {:.200}", request);
        assert!(reply.error().contains(word), "{reply:?}");
    }
    assert!(server.get("/api/scrape").await.head.contains("allow: post"));
    assert_eq!(server.fake.stored(), 0);
    assert_eq!(server.post(BODY).await.status, 202, "and the server lives");
}

#[tokio::test]
async fn metadata_repeated_for_more_products_than_a_transaction_bears_are_refused() {
    let server = Server::start(generous(10_000)).await;
    let body = |products: usize| {
        let (eans, metadata) = (r#""1","#.repeat(products - 1), "x".repeat(16_000));
        format!(r#"{{"eans": [{eans}"1"], "metadata": {{"a": "{metadata}"}}}}"#)
    };
    let reply = server.post(&body(10_000)).await;
    assert_eq!((reply.status, reply.json()["field"].as_str()), (413, Some("metadata")), "{reply:?}");
    assert!(reply.error().contains("plusieurs lots"), "{reply:?}");
    assert_eq!(server.fake.stored(), 0);
    assert_eq!(server.post(&body(100)).await.status, 202);
}

#[tokio::test]
async fn a_body_announced_as_too_large_is_never_asked_for() {
    let server = Server::start(settings()).await;
    let head = "POST /api/scrape HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Expect: 100-continue\r\nContent-Length: 100001\r\n\r\n";
    let reply = server.ask(head).await;
    assert_eq!((reply.status, reply.closes()), (413, true));
    let mut client = server.connect().await;
    client.send(head.replace("100001", &BODY.len().to_string())).await;
    assert_eq!(client.reply().await.unwrap().status, 100);
    client.send(BODY).await;
    assert_eq!(client.reply().await.unwrap().status, 202);
}

#[tokio::test]
async fn a_token_is_asked_for_everywhere_but_at_the_signs_of_life() {
    let mut settings = settings();
    settings.token = Some(Token::new("api", b"s3cret"));
    let server = Server::start(settings).await;
    let without = server.post(BODY).await;
    assert_eq!(without.status, 401);
    assert!(without.head.contains("www-authenticate: bearer"));
    assert_eq!(server.ask(post("Authorization: Bearer wrong\r\n", BODY)).await.status, 401);
    assert_eq!(server.get("/api/batches/1").await.status, 401);
    assert_eq!(server.get("/api/circuits").await.status, 401);
    assert_eq!(server.ask(post("Authorization: Bearer s3cret\r\n", BODY)).await.status, 202);
    server.fake.with(|book| assert_eq!(book.batches[0].1.requester, "token:api"));
    for path in ["/api/health", "/livez", "/readyz"] {
        let open = server.ask(format!("GET {path} HTTP/1.1\r\nHost: any.name\r\n\r\n")).await;
        assert_eq!(open.status, 200, "{path}");
        assert!(!open.text.contains("details"), "{path}");
    }
    assert_eq!(server.get("/api/health").await.text, r#"{"status":"ok"}"#);
    let mut head = server.connect().await;
    head.send("HEAD /livez HTTP/1.0\r\n\r\n").await;
    let answer = head.end().await;
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn the_circuits_come_with_the_state_of_tor_and_the_number_that_is_configured() {
    let server = Server::start(settings()).await;
    server.status.send_replace(serde_json::json!({"tor": "away", "reason": "gone"}));
    let reply = server.get("/api/circuits").await;
    let expected = serde_json::json!({"tor": "away", "reason": "gone", "configured": 2, "circuits": []});
    assert_eq!((reply.status, reply.json()), (200, expected));
}

#[tokio::test]
async fn a_sentence_is_english_by_setting_from_one_request_to_the_next() {
    let server = Server::start(settings()).await;
    assert!(server.post("{}").await.error().starts_with("Rien à faire"));
    server.settings.send_replace(Arc::new(Settings { language: Language::English, ..settings() }));
    assert!(server.post("{}").await.error().starts_with("Nothing to do"));
}

#[tokio::test]
async fn what_the_ledger_refuses_is_503_with_a_time_to_come_back() {
    let server = Server::start(settings()).await;
    for mode in [Mode::Full, Mode::ReadOnly, Mode::Refusing] {
        server.fake.set(mode);
        let reply = server.post(BODY).await;
        assert_eq!(reply.status, 503);
        assert!(reply.head.contains("retry-after: "), "{reply:?}");
        reply.error();
    }
    let busy = Server::with_ledger(settings(), 0, PATIENCE).await;
    assert!(busy.post(BODY).await.head.contains("retry-after: 1"));
    assert_eq!(server.fake.stored(), 0);
}

#[tokio::test]
async fn without_a_shop_in_use_the_key_to_set_is_named() {
    let server = Server::start(Settings { sites: Vec::new(), ..settings() }).await;
    let reply = server.post(BODY).await;
    assert_eq!(reply.status, 503);
    assert!(reply.error().contains("sites.<name>.enabled"));
    assert_eq!(server.get("/readyz").await.status, 503);
}

#[tokio::test]
async fn a_commit_that_is_found_when_asked_for_again_is_answered() {
    let mut server = Server::with_ledger(settings(), 100, Duration::from_millis(20)).await;
    server.fake.set(Mode::UntilAsked);
    let reply = server.post(BODY).await;
    assert_eq!((reply.status, server.fake.stored()), (202, 1));
    assert!(server.fake.with(|book| book.asked) > 0);
    timeout(PATIENCE, server.batches.changed()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_commit_that_stays_unknown_is_not_answered() {
    let mut settings = settings();
    settings.limits.request_timeout = SHORT;
    let server = Server::with_ledger(settings, 100, Duration::from_millis(20)).await;
    server.fake.set(Mode::Stuck);
    let mut client = server.connect().await;
    client.send(post("Idempotency-Key: k\r\n", BODY)).await;
    assert!(client.reply().await.is_none(), "closed without a byte");
    server.fake.set(Mode::Writing);
    let repeat = server.ask(post("Idempotency-Key: k\r\n", BODY)).await;
    assert_eq!((repeat.status, server.fake.stored()), (202, 1), "the repeat finds the first");
}

#[tokio::test]
async fn a_peer_that_hangs_up_during_the_commit_loses_no_batch() {
    let mut server = Server::start(settings()).await;
    server.fake.set(Mode::Stuck);
    let mut client = server.connect().await;
    client.send(post("", BODY)).await;
    while server.fake.with(|book| book.begun) == 0 {
        tokio::task::yield_now().await;
    }
    drop(client);
    // The reactor tells of the hang-up before it tells of what is sent after it.
    assert_eq!(server.get("/livez").await.status, 200);
    server.fake.set(Mode::Writing);
    timeout(PATIENCE, server.batches.changed()).await.unwrap().unwrap();
    assert_eq!(server.fake.stored(), 1);
}

#[tokio::test]
async fn slow_peers_are_let_go_of_and_others_served() {
    let mut limited = settings();
    limited.limits.header_timeout = SHORT;
    limited.limits.body_timeout = SHORT;
    let server = Server::start(limited).await;
    let half_a_header = "POST /api/scrape HTTP/1.1\r\nHost: loc";
    let half_a_body = &post("", BODY)[..post("", BODY).len() - 5];
    let (mut silent, mut slow_header, mut slow_body, mut half_open) =
        (server.connect().await, server.connect().await, server.connect().await, server.connect().await);
    slow_header.send(half_a_header).await;
    slow_body.send(half_a_body).await;
    half_open.send(half_a_body).await;
    half_open.0.shutdown().await.unwrap();
    assert_eq!(server.get("/livez").await.status, 200);
    let reply = slow_body.reply().await.unwrap();
    assert_eq!((reply.status, reply.closes()), (408, true));
    assert!(reply.error().contains("server.body_timeout"));
    for client in [&mut silent, &mut slow_header, &mut slow_body, &mut half_open] {
        client.end().await;
    }
    assert_eq!(server.fake.stored(), 0);
}

#[tokio::test]
async fn a_header_that_is_too_large_is_refused() {
    let server = Server::start(settings()).await;
    let reply = server.ask(post(&format!("X-Long: {}\r\n", "x".repeat(20_000)), BODY)).await;
    assert_eq!(reply.status, 431);
    assert_eq!(server.fake.stored(), 0);
}

#[tokio::test]
async fn a_peer_that_does_not_read_its_answer_is_let_go_of() {
    let server = Server::alone(settings()).await;
    let eans = vec!["1"; 100];
    let mut client = server.connect().await;
    client.send(post("Connection: close\r\n", &serde_json::json!({"eans": eans}).to_string())).await;
    assert_eq!(client.reply().await.unwrap().status, 202);
    client.end().await;
    drop(client);
    let mut limited = settings();
    limited.limits.request_timeout = SHORT;
    server.settings.send_replace(Arc::new(limited));
    let mut deaf = server.connect().await;
    // Far more pages than the sockets' buffers hold; hyper answers one after the other.
    let page = "GET /api/batches/1 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    deaf.send(page.repeat(20)).await;
    assert_eq!(server.get("/livez").await.status, 200, "the only slot is free again");
}

#[tokio::test]
async fn over_the_limit_of_connections_the_next_one_waits() {
    let server = Server::alone(settings()).await;
    let first = server.connect().await;
    let mut second = server.connect().await;
    second.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(timeout(SHORT, second.read_reply()).await.is_err(), "not while the first is open");
    drop(first);
    assert_eq!(second.reply().await.unwrap().status, 200);
}

#[tokio::test]
async fn readyz_says_whether_a_submit_would_be_taken() {
    let server = Server::start(settings()).await;
    server.status.send_replace(serde_json::json!({"tor": "away"}));
    let ready = server.get("/readyz").await;
    assert_eq!(ready.status, 200, "Tor changes nothing: {ready:?}");
    assert_eq!(ready.json()["details"]["tor"], "away");
    assert_eq!(ready.json()["direct"], serde_json::json!(["shop beta"]), "what goes out without Tor");
    for (mode, reason) in [
        (Mode::Full, "ledger_full"),
        (Mode::ReadOnly, "ledger_read_only"),
        (Mode::Miscounted, "conservation_broken"),
    ] {
        server.fake.set(mode);
        let mut reply = server.get("/readyz").await;
        // Until the last probe is too old, and the writer has looked for room again.
        while reply.json()["reasons"] != serde_json::json!([reason]) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            reply = server.get("/readyz").await;
        }
        assert_eq!(reply.status, 503);
    }
}

#[tokio::test]
async fn a_batch_is_shown_by_either_name_page_by_page() {
    let server = Server::start(settings()).await;
    let accepted =
        server.post(r#"{"eans": ["0748322148474", "1", "2"], "metadata": {"a": 1.50}}"#).await.json();
    let by_id = server.get(accepted["status_url"].as_str().unwrap()).await;
    assert_eq!(by_id.status, 200);
    assert_eq!(by_id.json()["products"].as_array().unwrap().len(), 3);
    let page = server.get("/api/batches/1?after=1&limit=1").await.json();
    assert_eq!(page["batch_id"], accepted["batch_id"]);
    assert_eq!(
        (page["products"][0]["index"].clone(), page["products"].as_array().unwrap().len()),
        (2.into(), 1)
    );
    let next = server.get(page["next"].as_str().unwrap()).await.json();
    assert_eq!((next["products"][0]["index"].clone(), next["next"].clone()), (3.into(), Value::Null));
}

#[tokio::test]
async fn a_restart_of_the_actor_cuts_nobody_off_and_loses_nobody_who_waits() {
    let server = Server::start(settings()).await;
    let keep_alive = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut open = server.connect().await;
    open.send(keep_alive).await;
    assert_eq!(open.reply().await.unwrap().status, 200);
    server.actor.kill_and_wait(None).await.unwrap();
    let mut waiting = server.connect().await;
    waiting.send(keep_alive).await;
    open.send(keep_alive).await;
    assert_eq!(open.reply().await.unwrap().status, 200, "an open connection outlives the actor");
    assert!(timeout(SHORT, waiting.read_reply()).await.is_err(), "the loop ended with its actor");
    server.ingress.start(Arc::clone(&server.listener), server.root.clone()).await.unwrap();
    assert_eq!(waiting.reply().await.unwrap().status, 200);
}

#[tokio::test]
async fn a_drain_still_commits_and_answers_what_comes_on_open_connections() {
    let server = Server::start(settings()).await;
    let (mut busy, mut idle) = (server.connect().await, server.connect().await);
    server.fake.set(Mode::Stuck);
    busy.send(post("", BODY)).await;
    idle.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(!idle.reply().await.unwrap().closes());
    while server.fake.with(|book| book.begun) == 0 {
        tokio::task::yield_now().await;
    }
    let ingress = server.ingress.clone();
    let drain =
        tokio::spawn(async move { ingress.drain(Drain { idle_for: PATIENCE, within: PATIENCE }).await });
    while !server.ingress.is_draining() {
        tokio::task::yield_now().await;
    }
    server.fake.set(Mode::Writing);
    idle.send(post("", r#"{"eans": ["0748322148481"]}"#)).await;
    for client in [&mut busy, &mut idle] {
        let reply = client.reply().await.unwrap();
        assert_eq!((reply.status, reply.closes()), (202, true), "{reply:?}");
    }
    assert_eq!(drain.await.unwrap().cut, 0);
    assert_eq!(server.fake.stored(), 2);
    while Arc::strong_count(&server.listener) > 1 {
        tokio::task::yield_now().await; // The accept loop lets go of the listener, so that its owner can close it.
    }
}

#[tokio::test]
async fn a_drain_closes_silent_connections_and_cuts_the_rest_at_its_deadline() {
    let server = Server::start(settings()).await;
    let (mut silent, mut stuck) = (server.connect().await, server.connect().await);
    server.fake.set(Mode::Stuck);
    stuck.send(post("", BODY)).await;
    while server.fake.with(|book| book.begun) == 0 {
        tokio::task::yield_now().await;
    }
    let drained = server.ingress.drain(Drain { idle_for: SHORT, within: 2 * SHORT }).await;
    assert_eq!(drained.cut, 1);
    silent.end().await;
    assert!(stuck.reply().await.is_none(), "cut without an answer: it may be stored yet");
}
