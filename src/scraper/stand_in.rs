//! Stand-ins for the tests of this component: a SOCKS port that can lie, and shops that misbehave.

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{HandshakeKind, ServerConfig};
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// How a SOCKS port behaves.
#[derive(Clone, Copy, Debug)]
pub(super) enum Manner {
    /// As Tor does; every host is this shop.
    Forwards {
        to: SocketAddr,
    },
    /// Takes the password and gives these codes.
    Replies {
        connect: u8,
        resolve: u8,
    },
    TakesNoAuth,
    RefusesMethods,
    RefusesPassword,
    SpeaksHttp,
    HangsUpAtOnce,
    StallsAtOnce,
    HangsUpAfterRequest,
    StallsReply,
    /// To RESOLVE; a CONNECT does not resolve.
    StallsResolve,
    /// Forwards what is no probe; a probe gets no answer, and is hung up on at [`Socks::hang_up_on_probes`].
    HoldsProbes {
        to: SocketAddr,
    },
}

/// The user name of probes.
pub(super) const PROBE: &str = "glaneur-probe";

/// What one client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dial {
    pub user: String,
    pub password: String,
    pub command: u8,
    pub host: String,
    pub port: u16,
}

/// A SOCKS port; it ends when dropped, with all its streams.
pub(super) struct Socks {
    pub address: String,
    dials: watch::Sender<Vec<Dial>>,
    after_the_lie: watch::Receiver<Option<usize>>,
    probes_over: watch::Sender<bool>,
    task: AbortHandle,
}

impl Drop for Socks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Socks {
    pub async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dials = watch::Sender::new(Vec::new());
        let (lie, after_the_lie) = watch::channel(None);
        let (probes_over, over) = watch::channel(false);
        let seen = dials.clone();
        let task = tokio::spawn(async move {
            let mut clients = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (seen, lie, over) = (seen.clone(), lie.clone(), over.clone());
                clients.spawn(async move { serve(tcp, manner, &seen, &lie, over).await });
            }
        });
        Self { address, dials, after_the_lie, probes_over, task: task.abort_handle() }
    }

    /// An address where nobody listens.
    pub async fn nobody() -> String {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
    }

    pub fn dials(&self) -> Vec<Dial> {
        self.dials.borrow().clone()
    }

    /// Waits until somebody asks who is such a client.
    pub async fn dialled(&self, user: &str) {
        self.dialled_times(user, 1).await;
    }

    /// Waits until such clients asked so often.
    pub async fn dialled_times(&self, user: &str, times: usize) {
        let asked = |dials: &Vec<Dial>| dials.iter().filter(|dial| dial.user == user).count() >= times;
        self.dials.subscribe().wait_for(asked).await.unwrap();
    }

    pub fn hang_up_on_probes(&self) {
        self.probes_over.send_replace(true);
    }

    /// Bytes that a client sent after the port had chosen no authentication, once it hung up.
    pub async fn bytes_after_the_lie(&self) -> usize {
        self.after_the_lie.clone().wait_for(Option::is_some).await.unwrap().unwrap()
    }
}

/// `None` is a client that hung up.
async fn serve(
    mut tcp: TcpStream,
    manner: Manner,
    dials: &watch::Sender<Vec<Dial>>,
    lie: &watch::Sender<Option<usize>>,
    mut probes_over: watch::Receiver<bool>,
) -> Option<()> {
    match manner {
        Manner::HangsUpAtOnce => return None,
        Manner::StallsAtOnce => pending().await,
        Manner::SpeaksHttp => {
            tcp.write_all(b"HTTP/1.0 501 Tor is not an HTTP Proxy\r\n\r\n").await.ok()?;
            let _ = tcp.read_to_end(&mut Vec::new()).await;
            return None;
        }
        _ => {}
    }
    let _version = tcp.read_u8().await.ok()?;
    text(&mut tcp).await?;
    match manner {
        Manner::TakesNoAuth => {
            tcp.write_all(&[5, 0]).await.ok()?;
            let mut rest = Vec::new();
            let _ = tcp.read_to_end(&mut rest).await;
            lie.send_replace(Some(rest.len()));
            return None;
        }
        Manner::RefusesMethods => return tcp.write_all(&[5, 0xff]).await.ok(),
        _ => tcp.write_all(&[5, 2]).await.ok()?,
    }
    let _version = tcp.read_u8().await.ok()?;
    let (user, password) = (text(&mut tcp).await?, text(&mut tcp).await?);
    if let Manner::RefusesPassword = manner {
        return tcp.write_all(&[1, 1]).await.ok();
    }
    tcp.write_all(&[1, 0]).await.ok()?;
    let mut request = [0; 4];
    tcp.read_exact(&mut request).await.ok()?;
    let [_, command, _, kind] = request;
    let host = match kind {
        1 => {
            let mut octets = [0; 4];
            tcp.read_exact(&mut octets).await.ok()?;
            std::net::Ipv4Addr::from(octets).to_string()
        }
        _ => text(&mut tcp).await?,
    };
    let port = tcp.read_u16().await.ok()?;
    let is_probe = user == PROBE;
    dials.send_modify(|dials| dials.push(Dial { user, password, command, host, port }));
    match manner {
        Manner::HoldsProbes { .. } if is_probe => {
            let _ = probes_over.wait_for(|over| *over).await;
        }
        Manner::Forwards { to } | Manner::HoldsProbes { to } => {
            let mut shop = TcpStream::connect(to).await.ok()?;
            tcp.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.ok()?;
            copy_bidirectional(&mut tcp, &mut shop).await.ok()?;
        }
        Manner::Replies { connect, resolve } => {
            let code = if command == 1 { connect } else { resolve };
            tcp.write_all(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0]).await.ok()?;
        }
        Manner::StallsReply => pending().await,
        Manner::StallsResolve if command == 0xf0 => pending().await,
        Manner::StallsResolve => tcp.write_all(&[5, 4, 0, 1, 0, 0, 0, 0, 0, 0]).await.ok()?,
        _ => {}
    }
    None
}

/// A length of one byte and as many bytes.
async fn text(tcp: &mut TcpStream) -> Option<String> {
    let length = tcp.read_u8().await.ok()?;
    let mut bytes = vec![0; length.into()];
    tcp.read_exact(&mut bytes).await.ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Io for S {}

/// One connection to a shop, as the shop sees it. Dropping it resets or closes it without TLS's goodbye.
pub(super) struct Visitor {
    io: Box<dyn Io>,
    heads: Arc<Mutex<Vec<String>>>,
    ended: watch::Sender<usize>,
}

impl Visitor {
    /// Reads one request with its body, and remembers it.
    pub async fn request(&mut self) -> Option<String> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(self.io.read_u8().await.ok()?);
        }
        let head = String::from_utf8_lossy(&bytes).into_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.io.read_exact(&mut body).await.ok()?;
        let request = head + &String::from_utf8_lossy(&body);
        self.heads.lock().unwrap().push(request.clone());
        Some(request)
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> Option<()> {
        self.io.write_all(bytes.as_ref()).await.ok()?;
        self.io.flush().await.ok()
    }

    /// Waits until the client closes; tells how much it still sent.
    pub async fn linger(&mut self) -> usize {
        let mut rest = Vec::new();
        let _ = self.io.read_to_end(&mut rest).await;
        rest.len()
    }

    /// Ends the connection as a good server does.
    pub async fn close(&mut self) {
        let _ = self.io.shutdown().await;
        self.linger().await;
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.ended.send_modify(|count| *count += 1);
    }
}

/// A shop; it ends when dropped.
pub(super) struct Shop {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<Vec<Option<HandshakeKind>>>>,
    ended: watch::Receiver<usize>,
    task: AbortHandle,
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shop {
    pub async fn start<F, D>(tls: Option<TlsAcceptor>, serve: F) -> Self
    where
        F: Fn(Visitor) -> D + Send + Sync + 'static,
        D: Future<Output = Option<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = watch::channel(0);
        let (seen, opened, serve) = (heads.clone(), connections.clone(), Arc::new(serve));
        let task = tokio::spawn(async move {
            let mut visitors = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (heads, opened, serve, tls) = (seen.clone(), opened.clone(), serve.clone(), tls.clone());
                let ended = end.clone();
                visitors.spawn(async move {
                    let (io, kind): (Box<dyn Io>, _) = match tls {
                        None => (Box::new(tcp), None),
                        Some(tls) => {
                            let Ok(stream) = tls.accept(tcp).await else { return };
                            let kind = stream.get_ref().1.handshake_kind();
                            (Box::new(stream), kind)
                        }
                    };
                    opened.lock().unwrap().push(kind);
                    serve(Visitor { io, heads, ended }).await;
                });
            }
        });
        Self { address, heads, connections, ended, task: task.abort_handle() }
    }

    /// Answers every request on a connection with the same bytes.
    pub async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer: Arc<[u8]> = answer.into().into();
        Self::start(None, move |mut visitor| {
            let answer = answer.clone();
            async move {
                loop {
                    visitor.request().await?;
                    visitor.write(&answer).await?;
                }
            }
        })
        .await
    }

    pub fn url(&self, path: &str) -> url::Url {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    pub fn requests(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// How TLS was agreed on, for each connection.
    pub fn connections(&self) -> Vec<Option<HandshakeKind>> {
        self.connections.lock().unwrap().clone()
    }

    /// Waits until as many connections have ended.
    pub async fn ended(&self, count: usize) {
        let mut ended = self.ended.clone();
        let enough = ended.wait_for(|ended| count <= *ended);
        // Only to fail instead of hanging.
        tokio::time::timeout(std::time::Duration::from_secs(30), enough).await.expect("still open").unwrap();
    }
}

/// A certificate made on the spot for `name`: its PEM, and a server that has it.
pub(super) fn certified(name: &str) -> (String, TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (made.cert.pem(), TlsAcceptor::from(Arc::new(config)))
}
