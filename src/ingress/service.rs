//! One request: who asks, what for, and the answer.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Buf;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT};
use http::request::Parts;
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use matchit::Router;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::access::{self, Head};
use super::actor::{Phase, Shared};
use super::submission::{Envelope, Submission};
use super::wire::{self, Answer, Problem};
use super::{Settings, circuits, view};
use crate::ledger::LedgerError;
use crate::ledger::actor::Health;
use crate::ledger::store::AcceptAnswer;
use crate::model::BatchId;
use crate::model::batch::{Accepted, NewBatch, Repeat};
use crate::telemetry::Event;
use crate::wall;

/// One connection's view of the daemon.
#[derive(Debug)]
pub struct Asker {
    pub shared: Arc<Shared>,
    pub peer: SocketAddr,
    /// Held by the connection and by each of its commits (I1).
    pub slot: Arc<OwnedSemaphorePermit>,
}

/// Why no answer is sent: whether the batch is on disk is not known, and the request's time is over.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("closed without an answer: the commit's result is not known")]
pub struct Unanswered;

enum Failure {
    Problem(Problem),
    Unknown,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Health,
    Live,
    Ready,
    Scrape,
    Batch,
    Circuits,
}

impl Route {
    fn allow(self) -> &'static str {
        match self {
            Self::Health | Self::Live | Self::Ready | Self::Batch | Self::Circuits => "GET, HEAD",
            Self::Scrape => "POST",
        }
    }

    fn takes(self, method: &Method) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method.as_str())
    }
}

static ROUTES: LazyLock<Router<Route>> = LazyLock::new(|| {
    let mut routes = Router::new();
    for (path, route) in [
        ("/api/health", Route::Health),
        ("/livez", Route::Live),
        ("/readyz", Route::Ready),
        ("/api/scrape", Route::Scrape),
        ("/api/batches/{id}", Route::Batch),
        ("/api/circuits", Route::Circuits),
    ] {
        // Fails only on two routes that cannot be told apart; `every_route_is_found` passes by each.
        let _ = routes.insert(path, route);
    }
    routes
});

/// Bodies above this are read off on a blocking thread: parsing takes about a millisecond per 100 KB, and the runtime's
/// few threads also carry every visit.
pub(super) const PARSE_HERE_BYTES_MAX: usize = 64 * 1024;
/// How often the ledger is asked again about a commit whose result is not known.
const ASK_AGAIN_EVERY: Duration = Duration::from_millis(50);
/// How long the result of a probe stands: `/readyz` is open to all, and each probe costs an fsync.
const PROBE_AGE_MAX: Duration = Duration::from_millis(500);
/// Products on one page of a batch, and when nothing is said.
const PAGE_MAX: u32 = 1000;
const PAGE_DEFAULT: u32 = 100;
/// The longest name of a batch is a UUID of 36 characters.
const BATCH_NAME_BYTES_MAX: usize = 64;

impl Asker {
    pub async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer, Unanswered> {
        let settings = Arc::clone(&self.shared.settings.borrow());
        let deadline = Instant::now() + settings.limits.request_timeout;
        let (parts, mut body) = request.into_parts();
        let answer = match self.route(&parts, &mut body, &settings, deadline).await {
            Ok(answer) => answer,
            Err(Failure::Unknown) => return Err(Unanswered),
            Err(Failure::Problem(problem)) => {
                self.log_refusal(&parts, &problem);
                if !matches!(problem, Problem::BodySlow { .. }) && !parts.headers.contains_key(EXPECT) {
                    discard(&mut body, &settings, deadline).await;
                }
                problem.answer(settings.language)
            }
        };
        let last = !body.is_end_stream() || *self.shared.phase.borrow() != Phase::Serving;
        Ok(if last { wire::closing(answer) } else { answer })
    }

    async fn route(
        &self,
        parts: &Parts,
        body: &mut Incoming,
        settings: &Arc<Settings>,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let path = parts.uri.path();
        let matched = ROUTES.at(path).map_err(|_| Problem::NoRoute { path: path.to_owned() })?;
        let route = *matched.value;
        if !route.takes(&parts.method) {
            return Err(Problem::WrongMethod { allow: route.allow() }.into());
        }
        let head =
            Head { version: parts.version, uri: &parts.uri, headers: &parts.headers, peer: self.peer.ip() };
        let known = access::check_host(head, settings).and_then(|()| access::identify(head, settings));
        match route {
            // Old monitors come without a token and under any name, and learn nothing but that we are here.
            Route::Health | Route::Live => Ok(wire::ok(wire::to_json(&Alive { status: "ok" }))),
            Route::Ready => Ok(self.ready(settings, deadline, known.is_ok()).await),
            Route::Batch => {
                known?;
                let name = matched.params.get("id").unwrap_or_default();
                self.batch(name, parts.uri.query().unwrap_or_default(), deadline).await
            }
            Route::Circuits => {
                known?;
                let status = self.shared.status.borrow().clone();
                let rows = self.shared.roster.rows();
                Ok(wire::ok(circuits::circuits(&status, settings.circuits, &rows, Instant::now())))
            }
            Route::Scrape => {
                access::check_origin(head)?;
                self.scrape(known?, &parts.headers, body, settings, deadline).await
            }
        }
    }

    async fn scrape(
        &self,
        requester: String,
        headers: &HeaderMap,
        body: &mut Incoming,
        settings: &Arc<Settings>,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        if settings.sites.is_empty() {
            return Err(Problem::NoShop.into());
        }
        check_media(headers)?;
        let key = idempotency_key(headers)?;
        let bytes = read_body(body, settings, deadline).await?;
        let settings_then = Arc::clone(settings);
        let large = bytes.len() > PARSE_HERE_BYTES_MAX;
        let read = move || {
            let body_hash = access::sha256(&bytes);
            let submission = Submission::parse(&bytes, &settings_then)?;
            let envelope = Envelope { batch_id: BatchId::mint(), requester, key, body_hash };
            Ok::<_, Problem>(submission.into_batch(envelope, &settings_then))
        };
        let batch = if large {
            // A panic over there is one here: it closes this connection (I3), with nothing stored.
            tokio::task::spawn_blocking(read).await.map_err(|_| Failure::Unknown)??
        } else {
            read()?
        };
        let shared = Arc::clone(&self.shared);
        let slot = Arc::clone(&self.slot);
        // A task of its own: the peer may hang up, and hyper then drops what it was waiting for; but once the batch is
        // on disk, somebody must say so to the log and to the coordinators.
        let commit = tokio::spawn(async move {
            let committed = commit(&shared, batch, deadline).await;
            drop(slot);
            committed
        });
        let accepted = commit.await.map_err(|_| Failure::Unknown)??;
        Ok(wire::accepted(&accepted, settings.language))
    }

    async fn batch(&self, name: &str, query: &str, deadline: Instant) -> Result<Answer, Failure> {
        let (mut after, mut limit) = (0, PAGE_DEFAULT);
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match key.as_ref() {
                "after" => after = number_up_to(u32::MAX, "after", &value)?,
                "limit" => limit = number_up_to(PAGE_MAX, "limit", &value)?,
                _ => {}
            }
        }
        let unknown = || Failure::from(Problem::NoBatch { id: name.to_owned() });
        if name.len() > BATCH_NAME_BYTES_MAX {
            return Err(unknown());
        }
        let id = name.to_owned();
        let read = self.shared.ledger.reader().read(move |ledger| {
            let Some(batch) = ledger.batch(&id)? else { return Ok(None) };
            let summaries = ledger.summaries(batch.no)?;
            let page = ledger.products(batch.no, after, limit)?;
            Ok(Some(view::batch(&batch, &summaries, &page, limit)))
        });
        match timeout_at(deadline, read).await {
            Ok(Ok(Some(body))) => Ok(wire::ok(body)),
            Ok(Ok(None)) => Err(unknown()),
            Ok(Err(error)) => {
                Event::LedgerCommandRefused { detail: &error.to_string() }.emit();
                Err(Problem::LedgerSlow.into())
            }
            Err(_) => Err(Problem::LedgerSlow.into()),
        }
    }

    /// Ready means that a valid submit would get 202 now, and that the conservation law holds. What else is known is
    /// told to those who may know, and changes nothing.
    async fn ready(&self, settings: &Settings, deadline: Instant, may_know: bool) -> Answer {
        let mut reasons = Vec::new();
        if *self.shared.phase.borrow() != Phase::Serving {
            reasons.push("draining");
        }
        if settings.sites.is_empty() {
            reasons.push("no_shop_enabled");
        }
        let probe = timeout_at(deadline, self.shared.probe()).await;
        // After the probe, which may have found the disk full.
        let health = *self.shared.ledger.health().borrow();
        match probe {
            _ if matches!(health, Health::Low | Health::Full) => reasons.push("ledger_full"),
            _ if health == Health::ReadOnly => reasons.push("ledger_read_only"),
            Ok(Probe { writes: true, conserved: true }) => {}
            Ok(Probe { writes: true, conserved: false }) => reasons.push("conservation_broken"),
            Ok(Probe { writes: false, .. }) | Err(_) => reasons.push("ledger_away"),
        }
        let details = may_know.then(|| self.shared.status.borrow().clone());
        let direct = may_know.then_some(settings.direct.as_slice());
        let ready = reasons.is_empty();
        wire::readiness(ready, &Readiness { ready, reasons, direct, details })
    }

    fn log_refusal(&self, parts: &Parts, problem: &Problem) {
        let path = parts.uri.path();
        Event::RequestRefused {
            status: u64::from(problem.status().as_u16()),
            path: &path[..path.floor_char_boundary(LOGGED_PATH_BYTES_MAX)],
            field: problem.field(),
            detail: &problem.sentence(crate::model::Language::English),
            peer: &self.peer.ip().to_canonical().to_string(),
        }
        .emit();
    }
}

const LOGGED_PATH_BYTES_MAX: usize = 200;

#[derive(Serialize)]
struct Alive {
    status: &'static str,
}

#[derive(Serialize)]
struct Readiness<'a> {
    ready: bool,
    /// Why not, in stable words.
    reasons: Vec<&'static str>,
    /// What goes out without Tor, as `direct_announced` names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    direct: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<serde_json::Value>,
}

/// What the ledger showed when it was last tried.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    writes: bool,
    conserved: bool,
}

impl Shared {
    /// Tries the ledger as a submit would; many askers share one try.
    async fn probe(&self) -> Probe {
        let mut last = self.probe.lock().await;
        if let Some((at, probe)) = *last
            && at.elapsed() < PROBE_AGE_MAX
        {
            return probe;
        }
        let writes = self.ledger.write(|store| store.touch()).await.is_ok();
        let tally = self.ledger.reader().read(|ledger| ledger.tally()).await;
        let probe = Probe {
            writes,
            conserved: tally.is_ok_and(|tally| tally.holds()) && self.ledger.reader().is_conserved(),
        };
        *last = Some((Instant::now(), probe));
        probe
    }
}

/// Rule 5 of design 4: a refusal only if nothing is stored, an answer only if it is, and silence where neither is known.
async fn commit(shared: &Shared, batch: NewBatch, deadline: Instant) -> Result<Accepted, Failure> {
    let batch_id = batch.batch_id.clone();
    let requester = batch.requester.clone();
    let now_ms = wall::now_ms();
    let write = shared.ledger.write(move |store| store.accept(&batch, now_ms));
    let accepted = match timeout_at(deadline, write).await.unwrap_or(Err(LedgerError::Unknown)) {
        Ok(AcceptAnswer::Accepted(accepted)) => accepted,
        Ok(AcceptAnswer::KeyReused) => return Err(Problem::KeyReused.into()),
        Err(error) => match wire::refusal(&error) {
            Some(problem) => return Err(problem.into()),
            None => match ask_again(shared, &batch_id, deadline).await {
                Some(accepted) => accepted,
                None => {
                    // It may be there yet.
                    shared.wake_coordinators();
                    Event::AnswerWithheld { batch_id: batch_id.as_str() }.emit();
                    return Err(Failure::Unknown);
                }
            },
        },
    };
    match accepted.repeat {
        Some(repeat) => {
            let by = match repeat {
                Repeat::Key => "key",
                Repeat::Body => "body",
            };
            Event::BatchRepeated { batch_id: accepted.batch_id.as_str(), by }.emit();
        }
        None => {
            log_accepted(&accepted, &requester);
            shared.wake_coordinators();
        }
    }
    Ok(accepted)
}

fn log_accepted(accepted: &Accepted, requester: &str) {
    Event::BatchAccepted {
        batch_id: accepted.batch_id.as_str(),
        total: accepted.total.into(),
        queued: accepted.counts.queued.into(),
        skipped: accepted.counts.skipped.into(),
        ignored: accepted.counts.ignored.into(),
        requester,
    }
    .emit();
}

/// Asks for the batch by the name chosen beforehand, until it is there or the time is over. Not being there yet proves
/// nothing: the command may still be in the queue.
async fn ask_again(shared: &Shared, batch_id: &BatchId, deadline: Instant) -> Option<Accepted> {
    loop {
        let id = batch_id.clone();
        let read = shared.ledger.reader().read(move |ledger| ledger.accepted(&id));
        match timeout_at(deadline, read).await {
            Ok(Ok(Some(accepted))) => return Some(accepted),
            // A read that fails proves nothing either.
            Ok(Ok(None) | Err(_)) => {}
            Err(_) => return None,
        }
        let next = Instant::now() + ASK_AGAIN_EVERY;
        if deadline <= next {
            return None;
        }
        sleep_until(next).await;
    }
}

/// JSON, and not compressed.
fn check_media(headers: &HeaderMap) -> Result<(), Problem> {
    let media = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    if !media.eq_ignore_ascii_case("application/json") {
        return Err(Problem::NotJson);
    }
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => Err(Problem::Encoded),
        Some(_) | None => Ok(()),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let visible = key.as_bytes().iter().all(u8::is_ascii_graphic);
    let sound = visible && (1..=255).contains(&key.len()) && keys.next().is_none();
    match key.to_str() {
        Ok(key) if sound => Ok(Some(key.to_owned())),
        Ok(_) | Err(_) => Err(Problem::KeyMalformed),
    }
}

async fn read_body(body: &mut Incoming, settings: &Settings, deadline: Instant) -> Result<Vec<u8>, Problem> {
    let (bytes_max, within) = (settings.limits.body_bytes_max, settings.limits.body_timeout);
    let too_large = || Problem::BodyTooLarge { bytes_max };
    // Before the first byte is asked for: with `Expect: 100-continue` it is never sent.
    if usize::try_from(body.size_hint().lower()).is_ok_and(|announced| announced > bytes_max) {
        return Err(too_large());
    }
    let until = deadline.min(Instant::now() + within);
    let mut bytes = Vec::new();
    loop {
        let frame = timeout_at(until, body.frame()).await.map_err(|_| Problem::BodySlow { within })?;
        let Some(frame) = frame else { return Ok(bytes) };
        let Ok(data) = frame.map_err(|_| Problem::BodyCutOff)?.into_data() else { continue };
        if bytes.len() + data.remaining() > bytes_max {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
}

/// Takes in what the peer is still sending, within the limits of a body: a socket closed over unread bytes is reset, and
/// n8n would show "connection reset" in place of our sentence.
async fn discard(body: &mut Incoming, settings: &Settings, deadline: Instant) {
    let until = deadline.min(Instant::now() + settings.limits.body_timeout);
    let mut bytes_left = settings.limits.body_bytes_max;
    while let Ok(Some(Ok(frame))) = timeout_at(until, body.frame()).await {
        let taken = frame.data_ref().map_or(0, |data| data.remaining());
        match bytes_left.checked_sub(taken) {
            Some(left) => bytes_left = left,
            None => break,
        }
    }
}

fn number_up_to(max: u32, field: &'static str, value: &str) -> Result<u32, Problem> {
    value.parse().ok().filter(|n| *n <= max).ok_or(Problem::QueryMalformed { field, max })
}
