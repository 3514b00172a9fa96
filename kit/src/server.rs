//! The listeners under the stand-ins, and the HTTP server (hyper) under the receiver and the shops: one listener per
//! address, able to hang up badly.
//!
//! Listeners can be closed and opened again on the same port. In between the port stays reserved by a socket that is
//! bound and never listens, so that connections are refused and nobody else can take it.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
    task::{JoinHandle, JoinSet},
};

use crate::{Because, Result, Trouble};

/// How many ports are tried before a set of addresses is given up.
const PORT_TRIES_MAX: usize = 50;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Says that the connection is to be closed without an answer.
#[derive(Debug)]
pub(crate) struct HungUp;

impl fmt::Display for HungUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hung up on request of the test")
    }
}

impl std::error::Error for HungUp {}

/// What answers the requests of [`Listeners::http`].
pub(crate) trait Answering: Send + Sync + 'static {
    /// Answers, or hangs up. Never ending is allowed: the connection's end cancels it.
    fn answer(
        self: Arc<Self>,
        wire: Arc<Wire>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Content>, HungUp>> + Send;
}

/// The connection a request came by.
#[derive(Debug)]
pub(crate) struct Wire {
    /// The address it was reached on: with a private Tor network this tells the exit.
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    socket: OwnedFd,
}

impl Wire {
    /// Makes the coming close a reset instead of an orderly end.
    pub(crate) fn reset_on_close(&self) {
        // It only fails if the peer has gone already, and then there is nothing left to reset.
        let _ = rustix::net::sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
    }
}

/// A body: whole, or fed piece by piece.
pub(crate) enum Content {
    Whole(Option<Bytes>),
    /// An error in the pipe cuts the body short.
    Piped(mpsc::Receiver<io::Result<Bytes>>),
}

impl Content {
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// A pipe, and the end that feeds it: one piece waits at most, so that the reader sets the pace.
    pub(crate) fn pipe() -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (feed, pipe) = mpsc::channel(1);
        (feed, Self::Piped(pipe))
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Piped(pipe) => pipe.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Piped(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Piped(_) => SizeHint::default(),
        }
    }
}

/// What a listener does with each connection.
type Serve = Arc<dyn Fn(TcpStream, Arc<Wire>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Listeners on one port of several addresses. Dropping it closes them and cuts every connection.
pub(crate) struct Listeners {
    serve: Serve,
    addresses: Vec<SocketAddr>,
    /// Bound, never listening: see the module.
    _reserved: Vec<TcpSocket>,
    running: Mutex<Vec<Running>>,
}

struct Running {
    /// Dropped to stop.
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Listeners {
    /// Listens on one free port of all `ips`, and gives each connection to `serve`.
    pub(crate) fn start<F>(
        ips: &[IpAddr],
        serve: impl Fn(TcpStream, Arc<Wire>) -> F + Send + Sync + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let reserved = reserve(ips).because(format_args!("find a port free on {ips:?}"))?;
        let addresses = reserved
            .iter()
            .map(TcpSocket::local_addr)
            .collect::<io::Result<Vec<_>>>()
            .because("read the port that was bound")?;
        let serve: Serve = Arc::new(move |stream, wire| Box::pin(serve(stream, wire)));
        let listeners = Self { serve, addresses, _reserved: reserved, running: Mutex::default() };
        listeners.listen_again()?;
        Ok(listeners)
    }

    /// Listens on one free port of all `ips`, and answers HTTP.
    pub(crate) fn http<A: Answering>(ips: &[IpAddr], answering: Arc<A>) -> Result<Self> {
        Self::start(ips, move |stream, wire| serve_http(stream, wire, Arc::clone(&answering)))
    }

    /// Where it listens: one address per `ip`, all with the same port.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Closes the listeners and cuts every connection; new ones are refused when this returns.
    pub(crate) async fn stop_listening(&self) {
        let running = std::mem::take(&mut *self.running.lock().expect("no panic under this lock"));
        for Running { stop, ended } in running {
            drop(stop);
            // An error is a panic in the accept loop, which closed its listener as well.
            let _ = ended.await;
        }
    }

    /// Listens again where it did before. Does nothing if it listens.
    pub(crate) fn listen_again(&self) -> Result<()> {
        let mut running = self.running.lock().expect("no panic under this lock");
        if !running.is_empty() {
            return Ok(());
        }
        for &address in &self.addresses {
            let listener = bind(address)
                .and_then(|socket| socket.listen(BACKLOG))
                .because(format!("listen on {address}"))?;
            let (stop, stopped) = oneshot::channel();
            let ended = tokio::spawn(accept(listener, Arc::clone(&self.serve), stopped));
            running.push(Running { stop, ended });
        }
        Ok(())
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Binds one port that is free on all of `ips`; the system picks it on the first.
fn reserve(ips: &[IpAddr]) -> io::Result<Vec<TcpSocket>> {
    let mut last = io::Error::other("no address was given");
    for _ in 0..PORT_TRIES_MAX {
        let mut port = 0;
        let mut sockets = Vec::new();
        for &ip in ips {
            match bind(SocketAddr::new(ip, port)) {
                Ok(socket) => {
                    port = socket.local_addr()?.port();
                    sockets.push(socket);
                }
                Err(error) => {
                    last = error;
                    break;
                }
            }
        }
        if !sockets.is_empty() && sockets.len() == ips.len() {
            return Ok(sockets);
        }
    }
    Err(last)
}

async fn accept(listener: TcpListener, serve: Serve, mut stop: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stop => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                // If there is no wire, the peer has gone already.
                Ok((stream, peer)) => if let Ok(wire) = wire(&stream, peer) {
                    connections.spawn(serve(stream, Arc::new(wire)));
                },
                // Out of descriptors: without a pause this would be a busy loop until some are free.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
        }
    }
    // Closing alone is not enough: a child process of a neighbouring test may hold a copy between its fork and its exec,
    // and would keep the port open. It fails only if nobody listens any more.
    let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Read);
    drop(listener);
    connections.shutdown().await;
}

fn wire(stream: &TcpStream, peer: SocketAddr) -> io::Result<Wire> {
    // Small answers must not wait for the acknowledgement of the head.
    stream.set_nodelay(true)?;
    Ok(Wire { local: stream.local_addr()?, peer, socket: stream.as_fd().try_clone_to_owned()? })
}

async fn serve_http<A: Answering>(stream: TcpStream, wire: Arc<Wire>, answering: Arc<A>) {
    let service = service_fn(|request| Arc::clone(&answering).answer(Arc::clone(&wire), request));
    // Errors are what the test asked for, or a client that went away: neither is news.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Collects a request's body; a client that goes away meanwhile is hung up on.
pub(crate) async fn collect(body: Incoming) -> Result<Bytes, HungUp> {
    use http_body_util::BodyExt;
    Ok(body.collect().await.map_err(|_| HungUp)?.to_bytes())
}

/// An answer with a body and its type.
pub(crate) fn page(status: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Content> {
    Response::builder()
        .status(status)
        .header("content-type", content_type)
        .body(Content::whole(body))
        .expect("status and header are valid")
}

/// The first address of a server that has one.
pub(crate) fn first(addresses: &[SocketAddr]) -> Result<SocketAddr> {
    addresses.first().copied().ok_or_else(|| Trouble::new("a server needs an address to listen on"))
}
