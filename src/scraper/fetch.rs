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
//!
//! Deliberately absent: cookies, caching, proxies of the environment.
//!
//! [`Closed`]: crate::model::page::End::Closed

mod error;
mod exchange;
mod redirect;

pub use error::{FetchError, Verdict};
pub use redirect::Redirects;

use crate::model::page::{Method, Page, Request, Via};
use crate::scraper::circuit::{Circuit, Origin, Sight};
use crate::scraper::decode::ACCEPT_ENCODING;
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

impl Circuit {
    /// Fetches `request` and what it redirects to, within `hosts` (`host` for the scheme's own port, or `host:port`).
    ///
    /// Dropping the future ends the exchange and its connection. The visit's start must have been committed before.
    pub async fn fetch(
        &mut self,
        request: &Request,
        via: Via,
        limits: &FetchLimits,
        hosts: &[String],
        deadline: Instant,
    ) -> Result<Page, FetchError> {
        self.fetch_within(request, via, limits, Redirects { hosts, blocks: None }, deadline).await
    }

    /// [`Self::fetch`], of a shop whose recipe says which redirects are its way to say no.
    pub async fn fetch_within(
        &mut self,
        request: &Request,
        via: Via,
        limits: &FetchLimits,
        redirects: Redirects<'_>,
        deadline: Instant,
    ) -> Result<Page, FetchError> {
        self.retry_after = None;
        let mut sight = Sight::default();
        if deadline <= Instant::now() {
            return Err(FetchError::Deadline { seen: false });
        }
        self.note_use(via);
        let began = Instant::now();
        self.asked = (via == Via::Tor).then_some(began);
        let fetched = timeout_at(deadline, self.follow(request, via, limits, &redirects, &mut sight)).await;
        let fetched = fetched.unwrap_or_else(|_| Err(FetchError::Deadline { seen: sight.seen() }));
        if self.asked.take().is_some() && fetched.is_ok() {
            self.note_latency(began.elapsed());
        }
        fetched
    }

    /// Goes from redirect to redirect.
    async fn follow(
        &mut self,
        request: &Request,
        via: Via,
        limits: &FetchLimits,
        redirects: &Redirects<'_>,
        sight: &mut Sight,
    ) -> Result<Page, FetchError> {
        let mut current = request.clone();
        for _ in 0..=limits.redirects_max {
            match self.hop(&current, via, limits, sight).await? {
                Answer::Page(page) => return Ok(page),
                Answer::Redirect { status, location } => {
                    current = redirect::next(current, status, &location, redirects)?;
                }
            }
        }
        Err(FetchError::TooManyRedirects { limit: limits.redirects_max })
    }

    /// One exchange, on the kept connection if there is one.
    async fn hop(
        &mut self,
        request: &Request,
        via: Via,
        limits: &FetchLimits,
        sight: &mut Sight,
    ) -> Result<Answer, FetchError> {
        let origin = Origin::of(&request.url, via)?;
        let message = message(request, &limits.user_agent)?;
        if let Some(connection) = self.take_kept(&origin).await {
            sight.watch(&connection.raw);
            let (result, nothing_sent) =
                exchange::run(self, &origin, connection, message.clone(), &request.url, limits).await;
            let repeatable = request.method == Method::Get || nothing_sent;
            match result {
                Err(FetchError::HungUp { .. }) if repeatable => {}
                done => return done,
            }
        }
        let connection = self.dial(&origin, limits.connect, sight).await?;
        if via == Via::Tor {
            self.note_built();
        }
        // Not watched anew: what came while TLS was agreed on is the shop's as well, and a moment old.
        exchange::run(self, &origin, connection, message, &request.url, limits).await.0
    }
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
