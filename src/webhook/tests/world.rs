//! A ledger, a sender and a receiver, with what a test needs to hold them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ractor::ActorCell;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

use crate::config::HostRule;
use crate::failpoint::Point;
use crate::ledger::actor::Limits;
use crate::ledger::sqlite::{self, OpenOptions};
use crate::ledger::store::{AcceptAnswer, Addressing, DeliveryView};
use crate::ledger::{LedgerHandle, actor as ledger_actor};
use crate::model::batch::{Fate, NewBatch, NewProduct};
use crate::model::delivery::DeliveryState;
use crate::model::{BatchId, BatchNo, Language, Reason, Status};
use crate::supervisor::bystander::bystander;
use crate::webhook::actor::{Args, Time, Trap, Webhook, WebhookHandle, handle};
use crate::webhook::{Secret, Settings};

/// Far longer than anything here takes; a test that waits so long has failed.
const LIMIT: Duration = Duration::from_secs(60);
const CLAIMS_MAX: u32 = 3;

/// Short intervals, and everything sent to `product_url`.
pub fn settings(product_url: &str) -> Settings {
    Settings {
        product_url: Some(product_url.parse().unwrap()),
        summary_url: None,
        allowed_hosts: vec![HostRule::parse("127.0.0.1").unwrap()],
        secret: Some(Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap()),
        timeout: Duration::from_secs(20),
        concurrency: 4,
        park_after: 5,
        patience: Duration::from_secs(3 * 86_400),
        backoff_min: Duration::from_millis(20),
        backoff_max: Duration::from_millis(500),
        parked_probe_max: Duration::from_millis(100),
        summary_wait: Duration::from_secs(900),
    }
}

/// What n8n says of an execution that is over.
pub fn finished() -> Reply {
    Reply::json(409, r#"{"message":"The execution \"7\" has finished already."}"#)
}

pub struct World {
    pub receiver: Receiver,
    pub ledger: LedgerHandle,
    pub handle: WebhookHandle,
    webhook: Webhook,
    settings: watch::Sender<Arc<Settings>>,
    root: ActorCell,
    sender: Mutex<Option<ActorCell>>,
    /// The ledger's own end stays until the world's.
    _ledger: ledger_actor::Ledger,
    _directory: tempfile::TempDir,
}

pub struct Batch {
    pub id: BatchId,
    no: BatchNo,
}

impl World {
    /// A world whose sender runs.
    pub async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let world = Self::idle(change).await;
        world.begin().await;
        world
    }

    /// A world whose sender is to be begun.
    pub async fn idle(change: impl FnOnce(&mut Settings)) -> Self {
        let receiver = Receiver::start().await;
        let mut settings = settings(receiver.url.as_str());
        settings.summary_url = Some(receiver.url.join("/summary").unwrap());
        change(&mut settings);
        let directory = tempfile::tempdir().unwrap();
        let addressing = Addressing {
            product: true,
            summary_url: settings.summary_url.as_ref().map(Url::to_string),
            language: Language::French,
            dedupe_window: Duration::ZERO,
        };
        let options = OpenOptions {
            addressing,
            claims_max: CLAIMS_MAX,
            free_bytes_min: 0,
            readers: 2,
            boot_id: "test".into(),
        };
        let opened = sqlite::open(&directory.path().join("ledger.db"), options).unwrap();
        let limits = Limits { queue_max: 64, group_max: 64, reply_within: LIMIT };
        let (ledger, starter) = ledger_actor::handle(opened.reader, limits);
        let root = bystander().await;
        starter.start(Box::new(opened.store), root.clone()).await.unwrap();
        let settings = watch::Sender::new(Arc::new(settings));
        let args = Args { ledger: ledger.clone(), settings: settings.subscribe(), claims_max: CLAIMS_MAX };
        let (handle, webhook) = handle(args).unwrap();
        Self {
            receiver,
            ledger,
            handle,
            webhook,
            settings,
            root,
            sender: Mutex::new(None),
            _ledger: starter,
            _directory: directory,
        }
    }

    pub async fn begin(&self) {
        let sender = self.webhook.start(self.root.clone()).await.unwrap();
        *self.sender.lock().unwrap() = Some(sender);
    }

    pub async fn kill_sender(&self) {
        self.sender().kill();
        self.until_sender_is_dead().await;
    }

    pub async fn until_sender_is_dead(&self) {
        // An error means that it is dead already.
        let _ = self.sender().wait(Some(LIMIT)).await;
    }

    fn sender(&self) -> ActorCell {
        self.sender.lock().unwrap().clone().unwrap()
    }

    pub async fn end(self) {
        self.root.stop(None);
        let _ = self.root.wait(Some(LIMIT)).await;
    }

    pub fn time(&self) -> Time {
        self.webhook.deps().time.clone()
    }

    pub fn trap(&self) -> &Trap {
        &self.webhook.deps().trap
    }

    pub fn reload(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = Settings::clone(&self.settings.borrow());
        change(&mut settings);
        self.settings.send_replace(Arc::new(settings));
    }

    /// A batch whose `total` products are over at once, so that their webhooks are due.
    pub async fn batch(&self, total: usize, path: Option<&str>) -> Batch {
        let product = |index| NewProduct {
            ean: format!("{index:013}"),
            fate: Fate::Over { status: Status::Skipped, reason: Reason::new("not_digits", "no barcode") },
            note: None,
        };
        let batch = NewBatch {
            batch_id: BatchId::mint(),
            requester: "test".into(),
            key: None,
            body_hash: [0; 32],
            force: true,
            sites: Vec::new(),
            webhook_url: path.map(|path| self.receiver.url.join(path).unwrap().into()),
            callback_url: None,
            metadata: None,
            products: (1..=total).map(product).collect(),
            ignored_3400: Vec::new(),
        };
        let id = batch.batch_id.clone();
        let now_ms = self.time().now().wall_ms;
        let answer = self.ledger.write(move |store| store.accept(&batch, now_ms)).await.unwrap();
        let AcceptAnswer::Accepted(accepted) = answer else { panic!("a key without a key") };
        Batch { id, no: accepted.batch }
    }

    /// The product deliveries, in order.
    pub async fn deliveries(&self, batch: &Batch) -> Vec<DeliveryView> {
        let no = batch.no;
        let products = self.ledger.reader().read(move |read| read.products(no, 0, 1_000)).await.unwrap();
        products.into_iter().filter_map(|product| product.delivery).collect()
    }

    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let wait = async {
            while !holds().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(LIMIT, wait).await.is_err() {
            panic!("never: {what}; seen: {:#?}", self.receiver.seen());
        }
    }

    pub async fn until_all(&self, batch: &Batch, state: DeliveryState) {
        let all = async || self.deliveries(batch).await.iter().all(|delivery| delivery.state == state);
        self.until(state.as_str(), all).await;
    }

    /// Waits until a point was passed so many times more.
    pub async fn until_passed(&self, point: Point, times: usize) {
        self.until_passed_so_far(point, self.trap().passed(point) + times).await;
    }

    /// Waits until the sender looked into the outbox so many times more.
    pub async fn until_looked(&self, times: usize) {
        self.until_passed(Point::SenderTick, times).await;
    }

    /// Waits until a point was passed so many times.
    pub async fn until_passed_so_far(&self, point: Point, times: usize) {
        self.until(point.name(), async || times <= self.trap().passed(point)).await;
    }
}

/// One request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub path: String,
    pub id: String,
    pub timestamp: String,
    pub signature: String,
    pub content_type: String,
    pub user_agent: String,
    pub body: String,
    /// Requests with this id so far, this one included.
    pub count: usize,
    /// Requests so far, this one included.
    pub total: usize,
    /// Requests under way, this one included.
    pub at_once: usize,
}

#[derive(Clone, Debug)]
pub enum Reply {
    Answer {
        status: u16,
        content_type: &'static str,
        body: &'static str,
        location: &'static str,
    },
    Hang,
    Reset,
    /// 200 once this is true.
    When(watch::Receiver<bool>),
}

impl Reply {
    pub fn ok() -> Self {
        Self::json(200, r#"{"message":"Workflow was started"}"#)
    }

    pub fn status(status: u16) -> Self {
        Self::json(status, "")
    }

    pub fn json(status: u16, body: &'static str) -> Self {
        Self::Answer { status, content_type: "application/json", body, location: "" }
    }

    pub fn html(status: u16, body: &'static str) -> Self {
        Self::Answer { status, content_type: "text/html; charset=utf-8", body, location: "" }
    }

    pub fn redirect(location: &'static str) -> Self {
        Self::Answer { status: 302, content_type: "text/plain", body: "", location }
    }
}

type Script = Box<dyn Fn(&Seen) -> Reply + Send>;

/// Stands for n8n.
pub struct Receiver {
    pub url: Url,
    desk: Arc<Mutex<Desk>>,
    _tasks: JoinSet<()>,
}

struct Desk {
    script: Script,
    seen: Vec<Seen>,
    under_way: BTreeMap<String, usize>,
    most_at_once_per_id: usize,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let url = format!("http://{}/product", listener.local_addr().unwrap()).parse().unwrap();
        let desk = Arc::new(Mutex::new(Desk {
            script: Box::new(|_| Reply::ok()),
            seen: Vec::new(),
            under_way: BTreeMap::new(),
            most_at_once_per_id: 0,
        }));
        let mut tasks = JoinSet::new();
        let served = Arc::clone(&desk);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let desk = Arc::clone(&served);
                let service = service_fn(move |request| serve(Arc::clone(&desk), request));
                connections.spawn(async move {
                    // Cut by the client or by a script: both are meant.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { url, desk, _tasks: tasks }
    }

    pub fn answer(&self, script: impl Fn(&Seen) -> Reply + Send + 'static) {
        self.desk.lock().unwrap().script = Box::new(script);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.desk.lock().unwrap().seen.clone()
    }

    /// The same without summaries and per-batch URLs.
    pub fn products(&self) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.path == "/product").collect()
    }

    pub fn most_at_once_per_id(&self) -> usize {
        self.desk.lock().unwrap().most_at_once_per_id
    }

    /// The indexes of the products in the order in which each was first seen.
    pub fn first_seen_indexes(&self) -> Vec<u32> {
        let mut first = HashMap::new();
        let indexes = self
            .products()
            .into_iter()
            .filter_map(|seen| seen.id.rsplit('_').next().and_then(|index| index.parse().ok()));
        indexes.filter(|index| first.insert(*index, ()).is_none()).collect()
    }
}

/// Ends the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("cut by the script")]
struct Cut;

/// Counts a request as under way.
struct UnderWay {
    desk: Arc<Mutex<Desk>>,
    id: String,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(count) = self.desk.lock().unwrap().under_way.get_mut(&self.id) {
            *count -= 1;
        }
    }
}

async fn serve(desk: Arc<Mutex<Desk>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Cut> {
    let (head, body) = request.into_parts();
    let header = |name| head.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let mut seen = Seen {
        path: head.uri.to_string(),
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp"),
        signature: header("webhook-signature"),
        content_type: header("content-type"),
        user_agent: header("user-agent"),
        ..Seen::default()
    };
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    seen.body = String::from_utf8_lossy(&body).into_owned();
    let (reply, _under_way) = {
        let mut guard = desk.lock().unwrap();
        let under_way = guard.under_way.entry(seen.id.clone()).or_default();
        *under_way += 1;
        let of_id = *under_way;
        guard.most_at_once_per_id = guard.most_at_once_per_id.max(of_id);
        seen.count = guard.seen.iter().filter(|earlier| earlier.id == seen.id).count() + 1;
        seen.total = guard.seen.len() + 1;
        seen.at_once = guard.under_way.values().sum();
        guard.seen.push(seen.clone());
        ((guard.script)(&seen), UnderWay { desk: Arc::clone(&desk), id: seen.id.clone() })
    };
    let (status, content_type, body, location) = match reply {
        Reply::Answer { status, content_type, body, location } => (status, content_type, body, location),
        Reply::Hang => std::future::pending().await,
        Reply::Reset => return Err(Cut),
        Reply::When(mut open) => {
            let _ = open.wait_for(|open| *open).await;
            (200, "application/json", "{}", "")
        }
    };
    let mut response = Response::builder().status(status).header("content-type", content_type);
    if !location.is_empty() {
        response = response.header("location", location);
    }
    Ok(response.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap())
}
