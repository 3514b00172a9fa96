//! One request and one answer on one connection.

use super::error::rustls_error;
use super::{FetchError, FetchLimits, redirect};
use crate::model::page::{End, Page};
use crate::scraper::circuit::{Circuit, Connection, Origin, Traffic};
use crate::scraper::decode::{Coding, DecodeError};
use bytes::Bytes;
use http::header::{self, HeaderMap};
use http_body_util::{BodyExt, Full};
use hyper::Response;
use hyper::body::{Body, Incoming};
use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::select;
use tokio::time::{Instant, sleep_until, timeout};
use url::Url;

/// The body of a redirect is read, to keep the connection, only if it is this small and comes at once.
const REDIRECT_BYTES_MAX: usize = 16 * 1024;
const REDIRECT_BODY_WITHIN: Duration = Duration::from_secs(2);
/// No shop's wish is followed for longer: a product that pauses keeps its place in its batch's window, so a shop that
/// says a day would hold the batch for days. What is still refused then costs an attempt, and those are few.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);

pub(super) enum Answer {
    Page(Page),
    Redirect { status: u16, location: String },
}

/// Sends `message` and reads its answer; keeps the connection if it can be of use again. The second value tells
/// whether nothing of the request had been sent when it failed.
pub(super) async fn run(
    circuit: &mut Circuit,
    origin: &Origin,
    mut connection: Connection,
    message: http::Request<Full<Bytes>>,
    url: &Url,
    limits: &FetchLimits,
) -> (Result<Answer, FetchError>, bool) {
    let sent_before = connection.plain.sent();
    let head = send(&mut connection, message, limits).await;
    let nothing_sent = connection.plain.sent() == sent_before;
    let response = match head {
        Ok(response) => response,
        Err(error) => return (Err(error), nothing_sent),
    };
    circuit.retry_after = retry_after(response.headers(), SystemTime::now());
    let answer = match redirect_of(&response) {
        Some((status, location)) => {
            if drain(response.into_body()).await {
                circuit.keep(origin.clone(), connection);
            }
            Ok(Answer::Redirect { status, location })
        }
        None => match read(response, url, limits).await {
            Ok(unread) => {
                circuit.keep(origin.clone(), connection);
                unread.decode(limits.decoded_bytes_max).await.map(Answer::Page)
            }
            Err(error) => Err(error),
        },
    };
    (answer, nothing_sent)
}

/// Waits for the head of the answer: its first byte for one limit, then no silence beyond another.
async fn send(
    connection: &mut Connection,
    message: http::Request<Full<Bytes>>,
    limits: &FetchLimits,
) -> Result<Response<Incoming>, FetchError> {
    let (raw_mark, plain_mark) = (connection.raw.received(), connection.plain.received());
    let first_byte_by = Instant::now() + limits.first_byte;
    // On a new connection the TLS handshake has shown the shop a moment ago.
    let seen_before = !connection.kept && 0 < raw_mark;
    let raw = connection.raw.clone();
    let seen = || seen_before || raw_mark < raw.received();
    let answer = connection.sender.send_request(message);
    tokio::pin!(answer);
    loop {
        let last = connection.plain.last_received_after(plain_mark);
        // Nothing wakes this task for a byte, so it looks often enough to notice silence on time.
        let until = last.unwrap_or_else(Instant::now) + limits.silence;
        let until = if last.is_none() { until.min(first_byte_by) } else { until };
        select! {
            biased;
            head = &mut answer => {
                return head.map_err(|error| of_head(error, &connection.plain, plain_mark, connection.kept, seen()));
            }
            () = sleep_until(until) => {}
        }
        match connection.plain.last_received_after(plain_mark) {
            None if first_byte_by <= Instant::now() => {
                return Err(FetchError::FirstByteTimeout { limit: limits.first_byte, seen: seen() });
            }
            Some(silent_since) if Some(silent_since) == last => {
                return Err(FetchError::SilenceTimeout { limit: limits.silence });
            }
            None | Some(_) => {}
        }
    }
}

/// What an error before the end of the head means.
fn of_head(error: hyper::Error, plain: &Traffic, mark: u64, kept: bool, seen: bool) -> FetchError {
    if let Some(source) = rustls_error(&error) {
        return FetchError::Tls { source, seen };
    }
    if error.is_parse_too_large() {
        return FetchError::HeadTooLarge { source: error };
    }
    if error.is_parse() {
        return FetchError::Protocol { source: error };
    }
    if error.is_user() {
        return FetchError::Request { reason: "the HTTP library refuses it" };
    }
    if plain.received() == mark {
        return FetchError::HungUp { kept, seen, source: error };
    }
    FetchError::Truncated { bytes: 0, source: error.into() }
}

/// Status and target of an answer that is to be followed.
fn redirect_of(response: &Response<Incoming>) -> Option<(u16, String)> {
    let status = response.status().as_u16();
    let location = response.headers().get(header::LOCATION).filter(|_| redirect::is_followed(status))?;
    // Many servers write what is not ASCII as it is; a URL takes it as UTF-8.
    Some((status, String::from_utf8_lossy(location.as_bytes()).into_owned()))
}

/// Whether the body was small and is now over.
async fn drain(body: Incoming) -> bool {
    let read = http_body_util::Limited::new(body, REDIRECT_BYTES_MAX).collect();
    matches!(timeout(REDIRECT_BODY_WITHIN, read).await, Ok(Ok(_)))
}

/// A whole answer, still packed.
struct Packed {
    coding: Coding,
    page: Page,
}

/// Reads the body to its end.
async fn read(response: Response<Incoming>, url: &Url, limits: &FetchLimits) -> Result<Packed, FetchError> {
    let (head, body) = response.into_parts();
    let codings = head.headers.get_all(header::CONTENT_ENCODING).iter();
    let coding = Coding::named(codings.map(|value| value.to_str().unwrap_or("?")))
        .map_err(|source| FetchError::Encoding { source })?;
    let content_type = head.headers.get(header::CONTENT_TYPE);
    let content_type = content_type.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let end = end_of(&head.headers, &body);
    let bytes = read_body(body, limits).await?;
    let page = Page { url: url.clone(), status: head.status.as_u16(), content_type, bytes, end };
    Ok(Packed { coding, page })
}

/// How the end of the body will be known. hyper has refused what is ambiguous.
fn end_of(headers: &HeaderMap, body: &Incoming) -> End {
    let chunked = headers.get_all(header::TRANSFER_ENCODING).iter().next_back().is_some_and(|value| {
        let last = value.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
        last.trim_ascii().eq_ignore_ascii_case(b"chunked")
    });
    if chunked || body.size_hint().exact().is_some() { End::Framed } else { End::Closed }
}

async fn read_body(mut body: Incoming, limits: &FetchLimits) -> Result<Vec<u8>, FetchError> {
    let too_large = || FetchError::BodyTooLarge { limit_bytes: limits.body_bytes_max };
    let announced = usize::try_from(body.size_hint().exact().unwrap_or(0)).unwrap_or(usize::MAX);
    if limits.body_bytes_max < announced {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(announced.min(ANNOUNCED_BYTES_TRUSTED));
    loop {
        let frame = timeout(limits.silence, body.frame()).await;
        let Some(frame) = frame.map_err(|_| FetchError::SilenceTimeout { limit: limits.silence })? else {
            return Ok(bytes);
        };
        let frame = frame.map_err(|error| of_body(error, bytes.len()))?;
        if let Some(data) = frame.data_ref() {
            if limits.body_bytes_max - bytes.len() < data.len() {
                return Err(too_large());
            }
            bytes.extend_from_slice(data);
        }
    }
}

/// A length costs a shop nothing to claim; beyond this, memory is taken as bytes come.
const ANNOUNCED_BYTES_TRUSTED: usize = 256 * 1024;

/// What an error in the body means: bad framing, or an early end.
fn of_body(error: hyper::Error, bytes: usize) -> FetchError {
    if let Some(source) = rustls_error(&error) {
        return FetchError::Tls { source, seen: true };
    }
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match cause.map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
            FetchError::Protocol { source: error }
        }
        _ => FetchError::Truncated { bytes, source: error.into() },
    }
}

impl Packed {
    /// Undoes the coding on a thread that may block.
    async fn decode(self, bytes_max: usize) -> Result<Page, FetchError> {
        let Self { coding, mut page } = self;
        if coding == Coding::Identity {
            if bytes_max < page.bytes.len() {
                return Err(FetchError::DecodedTooLarge { limit_bytes: bytes_max });
            }
            return Ok(page);
        }
        let packed = std::mem::take(&mut page.bytes);
        let bytes_read = packed.len();
        let decoded = tokio::task::spawn_blocking(move || coding.decode(&packed, bytes_max)).await;
        // A decoder that panics has met bytes that are not its own.
        let decoded = decoded.unwrap_or_else(|panic| Err(DecodeError::Corrupt(io::Error::other(panic))));
        match decoded {
            Ok(bytes) => Ok(Page { bytes, ..page }),
            Err(DecodeError::TooLarge { limit_bytes }) => Err(FetchError::DecodedTooLarge { limit_bytes }),
            // Its own end is missing, and nothing else vouched for one: the connection was cut.
            Err(source @ DecodeError::Cut) if page.end == End::Closed => {
                Err(FetchError::Truncated { bytes: bytes_read, source: source.into() })
            }
            Err(source) => Err(FetchError::Encoding { source }),
        }
    }
}

/// `Retry-After` as a wait: seconds, or a date seen from `now`.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let due = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_second();
            let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
            Duration::from_secs(u64::try_from(due).ok()?.saturating_sub(now))
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::{RETRY_AFTER_MAX, retry_after};
    use http::header::{HeaderMap, RETRY_AFTER};
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_shop_that_says_a_day_holds_a_batch_for_minutes() {
        let says_a_day = HeaderMap::from_iter([(RETRY_AFTER, "86400".parse().unwrap())]);
        let wait = retry_after(&says_a_day, UNIX_EPOCH).unwrap();
        assert_eq!(wait, Duration::from_secs(15 * 60));
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_700);
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(77)));
        assert_eq!(read("Sat, 05 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(read("99999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(read("Mon, 07 Nov 1994 08:49:37 GMT"), Some(RETRY_AFTER_MAX));
        assert_eq!((read("soon"), read("-3"), read("")), (None, None, None));
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
