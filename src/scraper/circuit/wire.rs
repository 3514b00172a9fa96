//! Counted streams and the connections made of them.
//!
//! Two questions are answered by counting bytes on both sides of TLS. Below it: was one byte of the shop seen? (Rule
//! 4: a time-out without one is charged only if Tor was there.) Above it: did a byte of *this* answer come, was one of
//! this request sent? (Whether a kept connection that broke may be tried again; the TLS alert that closes an idle
//! connection is no answer.)

use crate::scraper::roster::Flow;
use crate::scraper::tor::TorGate;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// The head of an answer: twice what nginx and Apache send at most. More is a trap.
const HEAD_BYTES_MAX: usize = 32 * 1024;
const HEADERS_MAX: usize = 128;
/// hyper's read buffer; it holds the head, so it is no smaller.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// What went through one stream.
#[derive(Debug)]
pub(in crate::scraper) struct Traffic {
    born: Instant,
    sent: AtomicU64,
    received: AtomicU64,
    /// When the last byte was received, in microseconds after `born`.
    received_at_us: AtomicU64,
}

impl Traffic {
    pub(in crate::scraper) fn new() -> Arc<Self> {
        let zero = AtomicU64::default;
        Arc::new(Self { born: Instant::now(), sent: zero(), received: zero(), received_at_us: zero() })
    }

    pub(in crate::scraper) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(in crate::scraper) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// When the last byte beyond the first `mark` came, if one came.
    pub(in crate::scraper) fn last_received_after(&self, mark: u64) -> Option<Instant> {
        let any = mark < self.received();
        any.then(|| self.born + Duration::from_micros(self.received_at_us.load(Ordering::Relaxed)))
    }
}

/// A stream that counts.
#[derive(Debug)]
pub(super) struct Counted<S> {
    socket: S,
    traffic: Arc<Traffic>,
    /// What a byte from it proves to be there, and the count of the circuit.
    through: Option<(TorGate, Arc<Flow>)>,
}

impl<S> Counted<S> {
    pub(super) fn new(socket: S, traffic: Arc<Traffic>) -> Self {
        Self { socket, traffic, through: None }
    }

    /// Its bytes come through Tor, from beyond an exit.
    pub(super) fn through(self, tor: TorGate, flow: Arc<Flow>) -> Self {
        Self { through: Some((tor, flow)), ..self }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        let count = buf.filled().len() - before;
        if 0 < count {
            let age = this.traffic.born.elapsed().as_micros();
            this.traffic.received_at_us.store(u64::try_from(age).unwrap_or(u64::MAX), Ordering::Relaxed);
            this.traffic.received.fetch_add(count as u64, Ordering::Release);
            if let Some((tor, flow)) = &this.through {
                tor.prove();
                flow.count_received(count);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.socket).poll_write(cx, buf))?;
        this.traffic.sent.fetch_add(count as u64, Ordering::Relaxed);
        if let Some((_, flow)) = &this.through {
            flow.count_sent(count);
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// One HTTP/1.1 connection to a shop. Dropping it closes it.
#[derive(Debug)]
pub(in crate::scraper) struct Connection {
    pub(in crate::scraper) sender: SendRequest<Full<Bytes>>,
    /// Below TLS.
    pub(in crate::scraper) raw: Arc<Traffic>,
    /// Above TLS: HTTP alone.
    pub(in crate::scraper) plain: Arc<Traffic>,
    /// Whether it has carried an exchange before.
    pub(in crate::scraper) kept: bool,
    pub(super) idle_since: Instant,
    _driver: Driver,
}

impl Connection {
    /// Speaks HTTP over `io`, whose bytes below TLS are counted in `raw`.
    pub(in crate::scraper) async fn over<S>(io: S, raw: Arc<Traffic>) -> hyper::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let plain = Traffic::new();
        let io = TokioIo::new(Counted::new(io, plain.clone()));
        let (sender, connection) = http1::Builder::new()
            // As browsers write them.
            .title_case_headers(true)
            .max_headers(HEADERS_MAX)
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .handshake(io)
            .await?;
        // Whoever waits for an answer hears of the error; on an idle connection nobody needs to.
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        let idle_since = Instant::now();
        Ok(Self { sender, raw, plain, kept: false, idle_since, _driver: Driver(driver.abort_handle()) })
    }
}

/// The task behind a connection; it ends with it. hyper ends most connections by itself once nobody holds their sender,
/// but not one that is stuck in writing.
#[derive(Debug)]
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
