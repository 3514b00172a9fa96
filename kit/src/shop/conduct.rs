//! How a shop behaves: well, or badly in one of the ways that hurt.

use std::{fmt, io::Write, sync::Arc, sync::OnceLock, time::Duration};

use bytes::Bytes;
use http::{Response, Version};
use tokio::sync::mpsc;

use super::{Hit, Purpose, structure::Document, wary::Wariness};
use crate::{
    Gate,
    server::{self, Content, HungUp, Wire},
};

/// Decoded size of the [`Conduct::GzipBomb`].
pub const BOMB_BYTES: usize = 100 << 20;

/// Size of the nested tags of [`Conduct::NestedDivs`].
pub const NESTED_BYTES: usize = 1 << 20;

/// One way to answer a request.
#[derive(Clone, Debug)]
pub enum Conduct {
    /// As a shop should.
    Normal,
    /// The answer comes when the gate is open.
    Held(Gate, Box<Conduct>),
    /// The answer comes after a time.
    After(Duration, Box<Conduct>),
    /// No answer, until the client goes away.
    Silent,
    /// The normal answer, one byte at a time with this pause after each.
    Drip(Duration),
    /// A body without an end, as fast as the client reads.
    Endless,
    /// 100 MB that are sent as some 100 KB of gzip.
    GzipBomb,
    /// The normal answer, as gzip.
    Gzip,
    /// A page with 1 MB of nested `<div>`.
    NestedDivs,
    /// A redirect to the same path, again and again.
    RedirectLoop,
    /// A redirect to this URL.
    RedirectTo(String),
    /// This status, with a small page.
    Status(u16),
    /// As [`Conduct::Status`], with this `Retry-After`.
    RetryAfter(u16, &'static str),
    /// Normal for the first requests that reach each address of the shop (so from each exit); then 403.
    BlockedAfter(usize),
    /// Normal, but with a 403 for exits that come too often.
    Wary(Wariness),
    /// Half of the normal answer without a length, then an orderly end: it looks complete.
    CutShort,
    /// Half of the normal answer with its whole length announced, then the end.
    Truncated,
    /// The normal page, filled up to this many bytes.
    Filler(usize),
    /// Another product: as the only result of a search, and on a page.
    WrongProduct,
    /// The search finds nothing, the page is not there.
    Nothing,
    /// A reset of the connection.
    Reset,
    /// Exactly this: status, type, body.
    Exactly(u16, &'static str, String),
}

impl Conduct {
    /// This, when `gate` is open.
    pub fn held(self, gate: &Gate) -> Self {
        Self::Held(gate.clone(), Box::new(self))
    }

    /// This, after `delay`.
    pub fn after(self, delay: Duration) -> Self {
        Self::After(delay, Box::new(self))
    }
}

/// Which requests a [`Conduct`] is for.
#[derive(Clone)]
pub enum When {
    /// All.
    Always,
    /// Searches.
    Searches,
    /// Pages of products.
    Pages,
    /// `/robots.txt`, which no other rule fits.
    Robots,
    /// Paths that begin so.
    Path(String),
    /// Searches for this barcode, and its page.
    Ean(String),
    /// The nth request of all, from 1.
    Nth(usize),
    /// Whatever the closure says of the request (its `conduct` is not chosen yet).
    Is(Arc<dyn Fn(&Hit) -> bool + Send + Sync>),
}

impl When {
    /// The requests of which the closure says so.
    pub fn is(fits: impl Fn(&Hit) -> bool + Send + Sync + 'static) -> Self {
        Self::Is(Arc::new(fits))
    }

    pub(super) fn fits(&self, hit: &Hit) -> bool {
        if hit.purpose == Purpose::Robots {
            return matches!(self, Self::Robots);
        }
        match self {
            Self::Always => true,
            Self::Robots => false,
            Self::Searches => hit.purpose == Purpose::Search,
            Self::Pages => hit.purpose == Purpose::Page,
            Self::Path(prefix) => hit.path.starts_with(prefix),
            Self::Ean(ean) => hit.is_about(ean),
            Self::Nth(n) => hit.order + 1 == *n,
            Self::Is(fits) => fits(hit),
        }
    }
}

impl fmt::Debug for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("Always"),
            Self::Searches => f.write_str("Searches"),
            Self::Pages => f.write_str("Pages"),
            Self::Robots => f.write_str("Robots"),
            Self::Path(prefix) => f.debug_tuple("Path").field(prefix).finish(),
            Self::Ean(ean) => f.debug_tuple("Ean").field(ean).finish(),
            Self::Nth(n) => f.debug_tuple("Nth").field(n).finish(),
            Self::Is(_) => f.write_str("Is"),
        }
    }
}

/// Which of a shop's documents.
#[derive(Clone, Copy, Debug)]
pub(super) enum Variant {
    Right,
    Wrong,
    Nothing,
}

/// Answers `hit` as `conduct` says; only the document that is needed is made.
pub(super) async fn perform(
    mut conduct: Conduct,
    hit: &Hit,
    wire: &Wire,
    document: impl Fn(Variant) -> Document,
) -> Result<Response<Content>, HungUp> {
    let right = || document(Variant::Right);
    loop {
        return Ok(match conduct {
            Conduct::Held(gate, then) => {
                gate.passed().await;
                conduct = *then;
                continue;
            }
            Conduct::After(delay, then) => {
                tokio::time::sleep(delay).await;
                conduct = *then;
                continue;
            }
            Conduct::Silent => std::future::pending().await,
            Conduct::Reset => {
                wire.reset_on_close();
                return Err(HungUp);
            }
            // These two were decided when the request was recorded.
            Conduct::Normal | Conduct::BlockedAfter(_) | Conduct::Wary(_) => whole(right()),
            Conduct::WrongProduct => whole(document(Variant::Wrong)),
            Conduct::Nothing => whole(document(Variant::Nothing)),
            Conduct::Drip(pause) => dripping(right(), pause),
            Conduct::Endless => endless(),
            Conduct::GzipBomb => gzipped(bomb().await),
            Conduct::Gzip => gzipped(gzip(&mut right().text.as_bytes())),
            Conduct::NestedDivs => nested(right()),
            Conduct::RedirectLoop => redirect(&next_hop(&hit.path)),
            Conduct::RedirectTo(url) => redirect(&url),
            Conduct::Status(status) => small_page(status),
            Conduct::RetryAfter(status, after) => {
                let mut response = small_page(status);
                response.headers_mut().insert("retry-after", http::HeaderValue::from_static(after));
                response
            }
            Conduct::CutShort => cut(right(), None),
            Conduct::Truncated => {
                let document = right();
                let length = document.text.len();
                cut(document, Some(length))
            }
            Conduct::Filler(size) => whole(filled(right(), size)),
            Conduct::Exactly(status, content_type, body) => server::page(status, content_type, body),
        });
    }
}

fn small_page(status: u16) -> Response<Content> {
    let body = format!("<!DOCTYPE html><html><body><h1>{status}</h1></body></html>");
    server::page(status, "text/html; charset=utf-8", body)
}

fn whole(document: Document) -> Response<Content> {
    server::page(document.status, document.content_type, document.text)
}

fn piped(content_type: &str) -> (mpsc::Sender<std::io::Result<Bytes>>, Response<Content>) {
    let (feed, pipe) = Content::pipe();
    let response = Response::builder().header("content-type", content_type).body(pipe);
    (feed, response.expect("the header is valid"))
}

fn dripping(document: Document, pause: Duration) -> Response<Content> {
    let (feed, response) = piped(document.content_type);
    tokio::spawn(async move {
        for byte in document.text.into_bytes() {
            if feed.send(Ok(Bytes::from(vec![byte]))).await.is_err() {
                return; // The client has gone.
            }
            tokio::time::sleep(pause).await;
        }
    });
    response
}

fn endless() -> Response<Content> {
    let (feed, response) = piped("text/html; charset=utf-8");
    tokio::spawn(async move {
        let piece = Bytes::from("<p>encore</p>\n".repeat(1_000));
        while feed.send(Ok(piece.clone())).await.is_ok() {}
    });
    response
}

fn gzipped(body: Bytes) -> Response<Content> {
    let mut response = server::page(200, "text/html; charset=utf-8", body);
    response.headers_mut().insert("content-encoding", http::HeaderValue::from_static("gzip"));
    response
}

fn gzip(from: &mut dyn std::io::Read) -> Bytes {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(from, &mut encoder).expect("writing to memory cannot fail");
    encoder.flush().expect("writing to memory cannot fail");
    encoder.finish().expect("writing to memory cannot fail").into()
}

/// Made once per process, away from the threads that answer.
async fn bomb() -> Bytes {
    static BOMB: OnceLock<Bytes> = OnceLock::new();
    let make = || {
        use std::io::Read;
        BOMB.get_or_init(|| gzip(&mut std::io::repeat(b'a').take(BOMB_BYTES as u64))).clone()
    };
    tokio::task::spawn_blocking(make).await.expect("compressing does not panic")
}

fn nested(mut document: Document) -> Response<Content> {
    let divs = "<div>".repeat(NESTED_BYTES / "<div>".len());
    let at = document.text.find("<body>").map_or(0, |at| at + "<body>".len());
    document.text.insert_str(at, &divs);
    whole(document)
}

fn filled(mut document: Document, size: usize) -> Document {
    const LINE: &str = "<p class=\"rien\">Livraison offerte dès 49 euros.</p>\n";
    let at = document.text.find("</body>").unwrap_or(document.text.len());
    let lines = size.saturating_sub(document.text.len()).div_ceil(LINE.len());
    document.text.insert_str(at, &LINE.repeat(lines));
    document
}

fn redirect(to: &str) -> Response<Content> {
    let mut response = server::page(302, "text/html", "");
    let to = to.parse().expect("the test redirects to a valid URL");
    response.headers_mut().insert("location", to);
    response
}

fn next_hop(path: &str) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let hop: u32 = query.strip_prefix("hop=").and_then(|hop| hop.parse().ok()).unwrap_or(0);
    format!("{path}?hop={}", hop + 1)
}

/// The first half: closed in good order if no length was announced, else broken off.
fn cut(document: Document, announced: Option<usize>) -> Response<Content> {
    let (feed, mut response) = piped(document.content_type);
    match announced {
        // Only in HTTP/1.0 does the end of the connection end the body.
        None => *response.version_mut() = Version::HTTP_10,
        Some(length) => {
            response.headers_mut().insert("content-length", length.into());
        }
    }
    let mut half = document.text.into_bytes();
    half.truncate(half.len() / 2);
    tokio::spawn(async move {
        // Both fail only if the client has gone.
        let _ = feed.send(Ok(half.into())).await;
        if announced.is_some() {
            let _ = feed.send(Err(std::io::Error::other("cut on request of the test"))).await;
        }
    });
    response
}
