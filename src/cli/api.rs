//! One question to the running daemon, over its own API, as anybody would ask it: at the address and with the token of
//! the configuration.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONNECTION, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The daemon answers this from memory; one that is stopped says nothing for ever.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// 512 circuits with a hundred shops each are below this; what is larger is not the daemon's.
const BODY_BYTES_MAX: usize = 16 << 20;

/// Why there is no answer, in words for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error("no daemon answers at {at} ({error}): start it with `glaneur serve`{}", elsewhere(*.listens))]
    NotRunning { at: SocketAddr, listens: SocketAddr, error: io::Error },
    #[error("what listens at {at} said nothing for {ANSWER_WITHIN:?}: the daemon is stopped or overloaded")]
    Silent { at: SocketAddr },
    #[error("what listens at {at} is not glaneur: {what}")]
    Another { at: SocketAddr, what: String },
    #[error("the daemon at {at} wants a token, and this configuration names none: set `server.token_file`")]
    TokenMissing { at: SocketAddr },
    #[error(
        "the daemon at {at} refuses the token of `server.token_file`: it runs with another one, or read this file before \
         it was changed (reload it)"
    )]
    TokenWrong { at: SocketAddr },
    #[error("the daemon at {at} refuses this machine's address: {error} (`server.allow_from`)")]
    Refused { at: SocketAddr, error: String },
    #[error("the daemon at {at} is older than this command: it does not know {path}")]
    Older { at: SocketAddr, path: &'static str },
    #[error("the daemon at {at} answers {status}: {error}")]
    Other { at: SocketAddr, status: StatusCode, error: String },
}

fn elsewhere(listens: SocketAddr) -> String {
    if listens.port() == 0 {
        "; `server.listen` lets the system choose a port, so say which with --at".into()
    } else {
        ", or say with --at where it listens if a socket unit decides that".into()
    }
}

/// From where a daemon that listens at `listens` is asked: a wildcard is no address to go to.
pub fn reachable(listens: SocketAddr) -> SocketAddr {
    let ip = match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listens.port())
}

/// `GET path` from the daemon that listens at `listens`; the body of a 200.
pub async fn get(listens: SocketAddr, token: Option<&str>, path: &'static str) -> Result<Bytes, NoAnswer> {
    let at = reachable(listens);
    let (status, body) = timeout(ANSWER_WITHIN, ask(at, listens, token, path))
        .await
        .map_err(|_| NoAnswer::Silent { at })??;
    let error = || sentence(&body);
    match status {
        StatusCode::OK => Ok(body),
        StatusCode::UNAUTHORIZED if token.is_none() => Err(NoAnswer::TokenMissing { at }),
        StatusCode::UNAUTHORIZED => Err(NoAnswer::TokenWrong { at }),
        status => match error() {
            None => Err(NoAnswer::Another { at, what: format!("it answers {status}") }),
            Some(_) if status == StatusCode::NOT_FOUND => Err(NoAnswer::Older { at, path }),
            Some(error) if status == StatusCode::FORBIDDEN => Err(NoAnswer::Refused { at, error }),
            Some(error) => Err(NoAnswer::Other { at, status, error }),
        },
    }
}

/// What the daemon says in each refusal.
fn sentence(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    body["error"].as_str().map(str::to_owned)
}

async fn ask(
    at: SocketAddr,
    listens: SocketAddr,
    token: Option<&str>,
    path: &'static str,
) -> Result<(StatusCode, Bytes), NoAnswer> {
    let reached = TcpStream::connect(at).await;
    let tcp = reached.map_err(|error| NoAnswer::NotRunning { at, listens, error })?;
    let another = |what: String| NoAnswer::Another { at, what };
    let mut request = Request::get(path).header(HOST, at.to_string()).header(CONNECTION, "close");
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.header(ACCEPT, "application/json").body(Empty::<Bytes>::new());
    // The one thing in it that may be no header is the token.
    let request = request.map_err(|_| NoAnswer::TokenWrong { at })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(tcp)).await.map_err(|error| another(error.to_string()))?;
    let exchange = async {
        let (head, body) =
            sender.send_request(request).await.map_err(|error| another(error.to_string()))?.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
        Ok((head.status, body.map_err(|error| another(error.to_string()))?.to_bytes()))
    };
    // The connection moves only while it is polled, and tells nothing that the exchange does not.
    let (mut exchange, mut connection) = (pin!(exchange), pin!(connection));
    tokio::select! {
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_on_every_address_is_asked_on_loopback() {
        for (listens, at) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("172.17.0.1:8080", "172.17.0.1:8080"),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
        ] {
            assert_eq!(reachable(listens.parse().unwrap()), at.parse().unwrap());
        }
    }
}
