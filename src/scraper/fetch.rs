//! One fetch: a request and what came of it, within limits, redirects followed by hand.
//!
//! Promise: a fetch ends at its deadline with a page or with one [`FetchError`], having held no more than its limits
//! allow, and having spoken to no host but those it was given. A status is no error: the caller knows the shop.
//!
//! * F1 A redirect stays within `hosts`, never goes from https to http, and there are at most `redirects_max`.
//! * F2 An answer with a length that ends early is an error; one without is marked [`Closed`], because an exit that
//!   dies looks like a clean end. Under TLS the end must be said (RFC 9112, 9.8), or it is an error as well.
//! * F3 A body is capped while it is read, and again while it is decoded.
//! * F4 A request is repeated by itself only where a kept connection ended before any byte of the answer, and then
//!   once, if it is a GET or if nothing of it was sent.
//! * F5 Every request that leaves, also to follow a redirect or to repeat one, had its turn by its [`Errand`]; the time
//!   that it waited for it is added to the deadline.
//!
//! Deliberately absent: cookies, caching, proxies of the environment.
//!
//! [`Closed`]: crate::model::page::End::Closed

mod error;
mod exchange;
mod redirect;

pub use error::{FetchError, Verdict};
pub use redirect::Redirects;

use crate::config;
use crate::model::page::{Method, Page, Request, Via};
use crate::scraper::circuit::{Circuit, Connection, Origin, Sight};
use crate::scraper::decode::ACCEPT_ENCODING;
use crate::scraper::errand::Errand;
use bytes::Bytes;
use exchange::Answer;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body_util::Full;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use url::{Position, Url};

/// What one fetch may take.
#[derive(Clone, Debug)]
pub struct FetchLimits {
    /// Until a connection stands: circuit, TCP and TLS together.
    pub connect: Duration,
    /// From the request to the first byte of its answer.
    pub first_byte: Duration,
    /// Between two bytes of an answer.
    pub silence: Duration,
    /// As it travels.
    pub body_bytes_max: usize,
    /// After decoding.
    pub decoded_bytes_max: usize,
    pub redirects_max: u32,
    /// Valid as a header's value; checked when the configuration was read.
    pub user_agent: String,
}

impl From<&config::Fetch> for FetchLimits {
    fn from(fetch: &config::Fetch) -> Self {
        Self {
            connect: fetch.connect_timeout,
            first_byte: fetch.first_byte_timeout,
            silence: fetch.silence_timeout,
            body_bytes_max: fetch.body_bytes_max,
            decoded_bytes_max: fetch.decoded_bytes_max,
            redirects_max: fetch.redirects_max,
            user_agent: fetch.user_agent.clone(),
        }
    }
}

impl Circuit {
    /// Fetches `request` and what it redirects to, within `hosts` (`host` for the scheme's own port, or `host:port`).
    ///
    /// Dropping the future ends the exchange and its connection. The visit's start must have been committed before.
    pub async fn fetch_in_turn(
        &mut self,
        request: &Request,
        limits: &FetchLimits,
        redirects: Redirects<'_>,
        errand: &mut Errand<'_>,
    ) -> Result<Page, FetchError> {
        self.retry_after = None;
        if errand.deadline() <= Instant::now() {
            return Err(FetchError::Deadline { seen: false });
        }
        self.note_use(errand.via);
        let mut sight = Sight::default();
        let mut current = request.clone();
        for _ in 0..=limits.redirects_max {
            match self.hop(&current, limits, errand, &mut sight).await? {
                Answer::Page(page) => {
                    if let (Via::Tor, Some(took)) = (errand.via, errand.latency()) {
                        self.note_latency(took);
                    }
                    return Ok(page);
                }
                Answer::Redirect { status, location } => {
                    current = redirect::next(current, status, &location, &redirects)?;
                }
            }
        }
        Err(FetchError::TooManyRedirects { limit: limits.redirects_max })
    }

    /// As [`Self::fetch_in_turn`], of a server that may be asked at any time: one of a test or a benchmark.
    pub async fn fetch(
        &mut self,
        request: &Request,
        via: Via,
        limits: &FetchLimits,
        hosts: &[String],
        deadline: Instant,
    ) -> Result<Page, FetchError> {
        let redirects = Redirects { hosts, blocks: None };
        self.fetch_in_turn(request, limits, redirects, &mut Errand::unpaced(via, deadline)).await
    }

    /// One exchange, on the kept connection if there is one.
    async fn hop(
        &mut self,
        request: &Request,
        limits: &FetchLimits,
        errand: &mut Errand<'_>,
        sight: &mut Sight,
    ) -> Result<Answer, FetchError> {
        let origin = Origin::of(&request.url, errand.via)?;
        let message = message(request, &limits.user_agent)?;
        let exchange = Exchange { origin: &origin, url: &request.url, limits };
        errand.turn().await;
        let kept = timeout_at(errand.deadline(), self.take_kept(&origin)).await;
        if let Some(connection) = kept.map_err(|_| FetchError::Deadline { seen: sight.seen() })? {
            sight.watch(&connection.raw);
            let (result, nothing_sent) =
                self.exchange(exchange, connection, message.clone(), errand, sight).await;
            let repeatable = request.method == Method::Get || nothing_sent;
            match result {
                Err(FetchError::HungUp { .. }) if repeatable => {}
                done => return done,
            }
            errand.turn().await;
        }
        let connection = self.dial_in_turn(&origin, limits.connect, errand, sight).await?;
        // Not watched anew: what came while TLS was agreed on is the shop's as well, and a moment old.
        self.exchange(exchange, connection, message, errand, sight).await.0
    }

    /// The first dial of a generation has Tor build a circuit, which is not asked for too many at once; waiting for a turn
    /// counts against nothing.
    async fn dial_in_turn(
        &mut self,
        origin: &Origin,
        within: Duration,
        errand: &mut Errand<'_>,
        sight: &mut Sight,
    ) -> Result<Connection, FetchError> {
        let builds = errand.via == Via::Tor && !self.built;
        let _building = if builds { Some(errand.wait(self.builds().turn()).await) } else { None };
        let dialled = timeout_at(errand.deadline(), self.dial(origin, within, sight)).await;
        let connection = dialled.unwrap_or_else(|_| Err(FetchError::Deadline { seen: sight.seen() }))?;
        self.built |= builds;
        Ok(connection)
    }

    /// Sends `message` when it may leave, and reads its answer. The second value is that of [`exchange::run`].
    async fn exchange(
        &mut self,
        Exchange { origin, url, limits }: Exchange<'_>,
        mut connection: Connection,
        message: http::Request<Full<Bytes>>,
        errand: &mut Errand<'_>,
        sight: &mut Sight,
    ) -> (Result<Answer, FetchError>, bool) {
        errand.leave().await;
        if !connection.kept && connection.sender.is_closed() {
            // The shop was to be left alone for longer than it keeps a connection that says nothing. No wait is charged.
            connection = match self.dial_in_turn(origin, limits.connect, errand, sight).await {
                Ok(connection) => connection,
                Err(error) => return (Err(error), true),
            };
            errand.leave().await;
        }
        let asked = Instant::now();
        self.asked = (errand.via == Via::Tor).then_some(asked);
        let run = exchange::run(self, origin, connection, message, url, limits);
        let done = timeout_at(errand.deadline(), run).await;
        self.asked = None;
        let Ok((result, nothing_sent)) = done else {
            return (Err(FetchError::Deadline { seen: sight.seen() }), false);
        };
        if result.is_ok() {
            errand.answered(asked.elapsed());
        }
        (result, nothing_sent)
    }
}

/// What an exchange needs besides its connection.
#[derive(Clone, Copy)]
struct Exchange<'a> {
    origin: &'a Origin,
    url: &'a Url,
    limits: &'a FetchLimits,
}

/// The message of `request` in origin form, with headers in the order a browser has them.
fn message(request: &Request, user_agent: &str) -> Result<http::Request<Full<Bytes>>, FetchError> {
    const BAD_HEADER: FetchError = FetchError::Request { reason: "a header is not valid" };
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| BAD_HEADER);
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, value(&request.url[Position::BeforeHost..Position::AfterPort])?);
    headers.insert(header::USER_AGENT, value(user_agent)?);
    headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
    headers.insert(header::ACCEPT_LANGUAGE, HeaderValue::from_static(ACCEPT_LANGUAGE));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(ACCEPT_ENCODING));
    let (content_type, body) = match &request.body {
        Some((content_type, bytes)) => (Some(content_type), Bytes::copy_from_slice(bytes)),
        None => (None, Bytes::new()),
    };
    if let Some(content_type) = content_type {
        headers.insert(header::CONTENT_TYPE, value(content_type)?);
    }
    for (name, text) in &request.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| BAD_HEADER)?;
        if !OURS.contains(&name) {
            headers.insert(name, value(text)?);
        }
    }
    let method = match request.method {
        Method::Get => http::Method::GET,
        Method::Post => http::Method::POST,
    };
    let target = target(&request.url);
    let message = http::Request::builder().method(method).uri(target).body(Full::new(body));
    let mut message = message.map_err(|_| FetchError::Request { reason: "the URL is not valid in HTTP" })?;
    *message.headers_mut() = headers;
    Ok(message)
}

fn target(url: &Url) -> &str {
    &url[Position::BeforePath..Position::AfterQuery]
}

const ACCEPT: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
const ACCEPT_LANGUAGE: &str = "fr-FR,fr;q=0.9,en;q=0.5";

/// Headers that frame the message or say what this client can do; a recipe's are passed over.
const OURS: [HeaderName; 9] = [
    header::HOST,
    header::ACCEPT_ENCODING,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

#[cfg(test)]
pub(super) mod tests;
