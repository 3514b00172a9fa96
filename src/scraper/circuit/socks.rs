//! The way through Tor's SOCKS port: own credentials, checked isolation, and what a reply does and does not say.
//!
//! tokio-socks does the talking, and [`Witness`] listens: tokio-socks offers "no authentication" beside the password,
//! and if the port picks it, goes on without credentials and says nothing; the isolation is gone. The witness sees the
//! port's choice before tokio-socks does and ends the dial before the request is written. It also keeps the reply's
//! code, because tokio-socks knows no code above 0x08 and calls Tor's own (0xF0 to 0xF7) an "unknown auth method".

use crate::scraper::control::protocol::Owner;
use crate::scraper::probe::{TorAway, check_method, check_password};
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_socks::tcp::Socks5Stream;

/// How long the port may take to greet and to take the password. It answers both by itself, without any circuit, in
/// about a millisecond; a stopped one accepts and says nothing for ever.
const GREETING_WITHIN: Duration = Duration::from_secs(10);

/// Makes the credentials of this process unlike those of any other that uses the same Tor, or that used it before a
/// ledger was lost and the epochs began again.
static SALT: LazyLock<String> = LazyLock::new(|| {
    let mut bytes = [0; 8];
    // Without it isolation between the circuits of this process still holds.
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
});

static PROBES: AtomicU64 = AtomicU64::new(0);

/// How the user names of workers begin.
const WORKER: &str = "glaneur-w";

/// Whether a user is a worker's; the password tells whether of this process.
pub(in crate::scraper) fn is_ours(user: &str) -> bool {
    user.starts_with(WORKER)
}

/// A SOCKS user name and password: what Tor keeps circuits apart by.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::scraper) struct Credentials {
    pub(super) user: String,
    password: String,
}

impl Credentials {
    pub(super) fn new(worker: u32, epoch: u64, generation: u64) -> Self {
        let password = format!("{epoch}-{generation}-{}", *SALT);
        Self { user: format!("{WORKER}{worker}"), password }
    }

    /// By which a control port tells whose a stream is.
    pub(super) fn owner(&self) -> Owner {
        Owner { user: self.user.as_str().into(), password: self.password.as_str().into() }
    }

    /// New ones at each call, so that the answer comes from a new circuit.
    pub(in crate::scraper) fn for_a_probe() -> Self {
        let number = PROBES.fetch_add(1, Ordering::Relaxed);
        Self { user: "glaneur-probe".to_owned(), password: format!("{number}-{}", *SALT) }
    }

    /// The message of RFC 1929. Both texts are made above and far below its 255 bytes.
    pub(in crate::scraper) fn message(&self) -> Vec<u8> {
        let mut message = vec![0x01];
        for text in [&self.user, &self.password] {
            debug_assert!((1..=255).contains(&text.len()), "credentials have a length of one byte");
            message.push(text.len() as u8);
            message.extend_from_slice(text.as_bytes());
        }
        message
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Where a dial through Tor ended.
#[derive(Debug)]
pub(super) enum Dialled {
    Connected(TcpStream),
    Refused(SocksReply),
    Away(TorAway),
}

/// Asks the port at `socks` for a connection to `host`, whose name goes to the exit as it is.
pub(super) async fn dial(socks: &str, host: &str, port: u16, credentials: &Credentials) -> Dialled {
    let tcp = match tokio::time::timeout(GREETING_WITHIN, TcpStream::connect(socks)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Dialled::Away(TorAway::unreached(socks, &error)),
        Err(_) => {
            return Dialled::Away(TorAway::new(format!("cannot reach {socks} within {GREETING_WITHIN:?}")));
        }
    };
    // A request is one small packet; waiting for more of it would only add a round trip.
    let _ = tcp.set_nodelay(true);
    let mut witness = Witness::new(socks, tcp);
    let (user, password) = (credentials.user.as_str(), credentials.password.as_str());
    let done = Socks5Stream::connect_with_password_and_socket(&mut witness, (host, port), user, password)
        .await
        .map(|_| ());
    witness.conclude(done)
}

/// A stream to the SOCKS port that remembers how the handshake went.
struct Witness<'a, S> {
    socks: &'a str,
    socket: S,
    /// Method selection, password status, and the first two bytes of the reply.
    head: [u8; 6],
    seen: usize,
    away: Option<TorAway>,
    greeting: Pin<Box<Sleep>>,
}

/// Bytes of `head` after which the port has taken the password and the rest is up to the network.
const METHOD_KNOWN: usize = 2;
const PASSWORD_TAKEN: usize = 4;
const REPLY_KNOWN: usize = 6;

impl<'a, S> Witness<'a, S> {
    fn new(socks: &'a str, socket: S) -> Self {
        let greeting = Box::pin(sleep(GREETING_WITHIN));
        Self { socks, socket, head: [0; 6], seen: 0, away: None, greeting }
    }

    /// Takes note of what was read; an error ends the handshake where it stands.
    fn note(&mut self, bytes: &[u8]) -> io::Result<()> {
        for &byte in bytes {
            if self.seen == REPLY_KNOWN {
                break;
            }
            self.head[self.seen] = byte;
            self.seen += 1;
            let [version, method, auth, status, ..] = self.head;
            match self.seen {
                METHOD_KNOWN => self.end_if(check_method(self.socks, [version, method]))?,
                PASSWORD_TAKEN => self.end_if(check_password(self.socks, [auth, status]))?,
                _ => {}
            }
        }
        Ok(())
    }

    fn end_if(&mut self, checked: Result<(), TorAway>) -> io::Result<()> {
        checked.map_err(|away| {
            let error = io::Error::other(away.clone());
            self.away = Some(away);
            error
        })
    }
}

impl Witness<'_, TcpStream> {
    fn conclude(self, done: Result<(), tokio_socks::Error>) -> Dialled {
        let Err(error) = done else {
            debug_assert_eq!(
                self.head[..5],
                [0x05, 0x02, 0x01, 0x00, 0x05],
                "no stream without its password"
            );
            return Dialled::Connected(self.socket);
        };
        if let Some(away) = self.away {
            return Dialled::Away(away);
        }
        if self.seen == REPLY_KNOWN && self.head[4] == 0x05 && self.head[5] != 0x00 {
            return Dialled::Refused(SocksReply::of(self.head[5]));
        }
        // Tor replies before it closes, whatever happened to the circuit: silence and a close are its own end.
        Dialled::Away(TorAway::new(format!("{} broke off the handshake: {error}", self.socks)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Witness<'_, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(&mut this.socket).poll_read(cx, buf) {
            Poll::Ready(done) => {
                done?;
                Poll::Ready(this.note(&buf.filled()[before..]))
            }
            Poll::Pending if this.seen < PASSWORD_TAKEN => {
                ready!(this.greeting.as_mut().poll(cx));
                let stalled = format!("{} said nothing for {GREETING_WITHIN:?}", this.socks);
                Poll::Ready(this.end_if(Err(TorAway::new(stalled))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Witness<'_, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// What Tor said to a request. It tells less than it seems to: see each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocksReply {
    Succeeded,
    /// 0x01: a refused port (after three circuits), a policy of all exits, a dead circuit, a silent shop after two
    /// minutes, no circuit at all. Says nothing about the shop.
    General,
    NotAllowed,
    NetworkUnreachable,
    /// 0x04: to CONNECT, the exit could not resolve the name or found no route. To RESOLVE, any failure at all.
    NameOrRoute,
    Refused,
    /// 0x06: no circuit within `SocksTimeout`, or the exit's own connect timed out.
    Expired,
    NotSupported,
    /// 0xF0 to 0xF7, given where the port has `ExtendedErrors`.
    Onion(OnionFailure),
    Other(u8),
}

/// Why an onion service was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnionFailure {
    DescriptorNotFound,
    DescriptorInvalid,
    Introduction,
    Rendezvous,
    ClientAuthMissing,
    ClientAuthWrong,
    BadAddress,
    IntroductionTimedOut,
}

impl SocksReply {
    pub(in crate::scraper) fn of(code: u8) -> Self {
        match code {
            0x00 => Self::Succeeded,
            0x01 => Self::General,
            0x02 => Self::NotAllowed,
            0x03 => Self::NetworkUnreachable,
            0x04 => Self::NameOrRoute,
            0x05 => Self::Refused,
            0x06 => Self::Expired,
            0x07 | 0x08 => Self::NotSupported,
            0xf0 => Self::Onion(OnionFailure::DescriptorNotFound),
            0xf1 => Self::Onion(OnionFailure::DescriptorInvalid),
            0xf2 => Self::Onion(OnionFailure::Introduction),
            0xf3 => Self::Onion(OnionFailure::Rendezvous),
            0xf4 => Self::Onion(OnionFailure::ClientAuthMissing),
            0xf5 => Self::Onion(OnionFailure::ClientAuthWrong),
            0xf6 => Self::Onion(OnionFailure::BadAddress),
            0xf7 => Self::Onion(OnionFailure::IntroductionTimedOut),
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for SocksReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Succeeded => "0x00, succeeded",
            Self::General => "0x01, general failure: refused port, policy or dead circuit",
            Self::NotAllowed => "0x02, not allowed by policy",
            Self::NetworkUnreachable => "0x03, network unreachable",
            Self::NameOrRoute => "0x04, the name does not resolve or has no route",
            Self::Refused => "0x05, connection refused",
            Self::Expired => "0x06, no circuit or no connection in time",
            Self::NotSupported => "0x07 or 0x08, not supported",
            Self::Onion(OnionFailure::DescriptorNotFound) => "0xF0, onion service not found",
            Self::Onion(OnionFailure::DescriptorInvalid) => "0xF1, onion descriptor invalid",
            Self::Onion(OnionFailure::Introduction) => "0xF2, onion introduction failed",
            Self::Onion(OnionFailure::Rendezvous) => "0xF3, onion rendezvous failed",
            Self::Onion(OnionFailure::ClientAuthMissing) => "0xF4, onion service wants client authorization",
            Self::Onion(OnionFailure::ClientAuthWrong) => {
                "0xF5, onion service refuses the client authorization"
            }
            Self::Onion(OnionFailure::BadAddress) => "0xF6, not an onion address",
            Self::Onion(OnionFailure::IntroductionTimedOut) => "0xF7, onion introduction timed out",
            Self::Other(code) => return write!(f, "{code:#04x}, unknown"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Credentials, Dialled, OnionFailure, SocksReply, dial};
    use crate::scraper::stand_in::{Manner, Socks};

    #[tokio::test]
    async fn a_port_that_takes_no_auth_gets_no_request() {
        let socks = Socks::start(Manner::TakesNoAuth).await;
        let dialled = dial(&socks.address, "shop.example", 80, &Credentials::new(1, 1, 1)).await;
        assert!(matches!(&dialled, Dialled::Away(away) if away.reason.contains("isolated")), "{dialled:?}");
        // The stand-in reads on to the end of the connection: not one byte of a request came.
        assert_eq!(socks.bytes_after_the_lie().await, 0);
    }

    #[tokio::test]
    async fn a_wrong_port_is_tor_away() {
        for manner in [
            Manner::RefusesMethods,
            Manner::RefusesPassword,
            Manner::SpeaksHttp,
            Manner::HangsUpAtOnce,
            Manner::HangsUpAfterRequest,
        ] {
            let socks = Socks::start(manner).await;
            let dialled = dial(&socks.address, "shop.example", 80, &Credentials::new(1, 1, 1)).await;
            assert!(matches!(dialled, Dialled::Away(_)), "{manner:?}: {dialled:?}");
        }
        let dialled = dial(&Socks::nobody().await, "shop.example", 80, &Credentials::new(1, 1, 1)).await;
        assert!(matches!(dialled, Dialled::Away(_)), "{dialled:?}");
    }

    #[tokio::test]
    async fn every_code_is_read_as_tor_means_it() {
        for (code, reply) in [
            (0x01, SocksReply::General),
            (0x04, SocksReply::NameOrRoute),
            (0x06, SocksReply::Expired),
            (0xf0, SocksReply::Onion(OnionFailure::DescriptorNotFound)),
            (0xf6, SocksReply::Onion(OnionFailure::BadAddress)),
            (0xf7, SocksReply::Onion(OnionFailure::IntroductionTimedOut)),
            (0x63, SocksReply::Other(0x63)),
        ] {
            let socks = Socks::start(Manner::Replies { connect: code, resolve: code }).await;
            let dialled = dial(&socks.address, "shop.example", 80, &Credentials::new(1, 1, 1)).await;
            assert!(matches!(dialled, Dialled::Refused(got) if got == reply), "{code:#04x}: {dialled:?}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let shown = format!("{:?}", Credentials::new(3, 41, 17));
        assert!(shown.contains("glaneur-w3") && !shown.contains("41-17"), "{shown}");
    }
}
