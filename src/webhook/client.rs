//! One exchange with a receiver: no proxy, no redirects, one deadline.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::redirect::Policy;
use url::Url;

use super::sign::{self, Secret};
use super::verdict::{Answer, Response};
use crate::descriptors;

/// Of a refusal, kept for the person who looks.
pub const REFUSAL_BYTES_MAX: usize = 2 * 1024;
/// Of a 2xx: enough to know n8n's start-up page.
const TAKEN_BYTES_MAX: usize = 16 * 1024;
/// n8n closes idle connections after about 5 s; a request on one that just closes is lost.
const IDLE_MAX: Duration = Duration::from_secs(4);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The client of all lanes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client(reqwest::Client);

/// What is sent.
#[derive(Debug)]
pub struct Request<'a> {
    pub url: Url,
    pub webhook_id: &'a str,
    pub timestamp_s: i64,
    pub secret: Option<&'a Secret>,
    pub body: Vec<u8>,
    pub timeout: Duration,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[error("build the client of the webhooks")]
pub struct ClientError(#[source] Box<dyn Error + Send + Sync>);

/// Nothing was sent, through no fault of the receiver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDescriptor;

impl Client {
    pub fn new() -> Result<Self, ClientError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| ClientError(error.into()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(Policy::none())
            // What reqwest repeats by itself would be a second attempt that nobody recorded.
            .retry(reqwest::retry::never())
            .pool_idle_timeout(IDLE_MAX)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("glaneur/", env!("CARGO_PKG_VERSION")));
        client.build().map(Self).map_err(|error| ClientError(error.into()))
    }

    /// Sends once. Whatever happens is an answer, unless this machine had no descriptor to ask with.
    pub async fn send(&self, request: Request<'_>) -> Result<Answer, NoDescriptor> {
        let Request { url, webhook_id, timestamp_s, secret, body, timeout } = request;
        let mut post = self.0.post(url).timeout(timeout).header(CONTENT_TYPE, "application/json");
        for (name, value) in sign::headers(secret, webhook_id, timestamp_s, &body) {
            post = post.header(name, value);
        }
        Ok(match post.body(body).send().await {
            Ok(response) => read(response).await,
            Err(error) if error.is_connect() && descriptors::is_lack(&error) => return Err(NoDescriptor),
            Err(error) if error.is_connect() || error.is_builder() => {
                Answer::NotSent { reason: reason(error, "no connection") }
            }
            Err(error) => Answer::Unseen { reason: reason(error, "no answer") },
        })
    }
}

/// The head decides, but for a page that may be n8n's start-up page: that one must be read to its end.
async fn read(mut response: reqwest::Response) -> Answer {
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let html = text(CONTENT_TYPE)
        .is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"));
    let retry_after = text(RETRY_AFTER).map(str::to_owned);
    let status = response.status();
    let limit = if status.is_success() { TAKEN_BYTES_MAX } else { REFUSAL_BYTES_MAX };
    let mut body = Vec::new();
    // An answer that says all in its head is not waited for; its connection is simply not used again.
    let needed = html || !status.is_success() || response.content_length().is_some_and(|n| n <= limit as u64);
    while needed && body.len() < limit {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(error) if html && status.is_success() => {
                return Answer::Unseen { reason: reason(error, "half an answer") };
            }
            Err(_) => break,
        }
    }
    body.truncate(limit);
    Answer::Response(Response { status: status.as_u16(), html, retry_after, body })
}

/// What went wrong, from the innermost cause, without the URL.
fn reason(error: reqwest::Error, what: &str) -> String {
    let error = error.without_url();
    if error.is_timeout() {
        return format!("{what} in time");
    }
    let mut innermost: &dyn Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    format!("{what}: {innermost}")
}
