//! A small HTTP client: one request, one connection. Also through a SOCKS5 proxy, as the daemon does it.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{Because, Result, Trouble};

/// Sends one request to `address` over a connection of its own and reads the whole answer.
pub async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Response<Bytes>> {
    let stream = TcpStream::connect(address).await.because(format_args!("connect to {address}"))?;
    exchange(stream, request).await
}

/// `GET path` from `address`.
pub async fn get(address: SocketAddr, path: &str) -> Result<Response<Bytes>> {
    send(address, request("GET", path, Bytes::new())?).await
}

/// `POST path` with a JSON body to `address`.
pub async fn post_json(address: SocketAddr, path: &str, body: impl Into<Bytes>) -> Result<Response<Bytes>> {
    let mut request = request("POST", path, body)?;
    request.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    send(address, request).await
}

/// A request for [`send`] and [`exchange`]; they add `host` if it has none.
pub fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Result<Request<Full<Bytes>>> {
    Request::builder()
        .method(method)
        .uri(path)
        .body(Full::new(body.into()))
        .because(format_args!("make a request for {path}"))
}

/// Sends one request over `stream` and reads the whole answer.
pub async fn exchange(stream: TcpStream, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>> {
    if !request.headers().contains_key("host") {
        let peer = stream.peer_addr().because("read the peer's address")?.to_string();
        request.headers_mut().insert("host", peer.parse().because("make a host header")?);
    }
    let deed = format!("{} {}", request.method(), request.uri());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.because(&deed)?;
    let answer = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok::<_, hyper::Error>(Response::from_parts(head, body.collect().await?.to_bytes()))
    };
    // The connection only moves while it is polled; both end together.
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    }
    .because(&deed)
}

/// The name and the password of a SOCKS5 user: with tor, a circuit of its own.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// User name.
    pub user: &'a str,
    /// Password.
    pub password: &'a str,
}

/// Connects to `host:port` through the SOCKS5 proxy; the name is resolved behind it.
pub async fn through_socks(
    proxy: SocketAddr,
    credentials: Credentials<'_>,
    host: &str,
    port: u16,
) -> Result<TcpStream> {
    let mut stream =
        TcpStream::connect(proxy).await.because(format_args!("connect to the proxy at {proxy}"))?;
    let code = socks_handshake(&mut stream, credentials, host, port)
        .await
        .because(format_args!("reach {host}:{port} through the proxy at {proxy}"))?;
    if code != 0 {
        return Err(Trouble::new(format!("the proxy answered 0x{code:02x} for {host}:{port}")));
    }
    Ok(stream)
}

async fn socks_handshake(
    stream: &mut TcpStream,
    Credentials { user, password }: Credentials<'_>,
    host: &str,
    port: u16,
) -> io::Result<u8> {
    let short = |text: &str| u8::try_from(text.len()).map_err(|_| io::Error::other("longer than 255 bytes"));
    stream.write_all(&[5, 1, 2]).await?;
    let mut pair = [0; 2];
    stream.read_exact(&mut pair).await?;
    if pair != [5, 2] {
        return Err(io::Error::other(format!("the proxy refuses user and password: {pair:?}")));
    }
    let mut login = vec![1, short(user)?];
    login.extend_from_slice(user.as_bytes());
    login.push(short(password)?);
    login.extend_from_slice(password.as_bytes());
    stream.write_all(&login).await?;
    stream.read_exact(&mut pair).await?;
    if pair != [1, 0] {
        return Err(io::Error::other(format!("the proxy refuses this user: {pair:?}")));
    }
    let mut connect = vec![5, 1, 0, 3, short(host)?];
    connect.extend_from_slice(host.as_bytes());
    connect.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&connect).await?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await?;
    Ok(reply[1])
}
