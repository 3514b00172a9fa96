//! Where the daemon listens: at the socket that was handed over, else at `server.listen`.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

use super::complain_and;
use crate::config::Server;
use crate::exit::Exit;

/// Connections that may wait to be accepted, as many as the unit of the socket has; the kernel's own limit
/// (`net.core.somaxconn`) is as high. With the usual 128 a burst waits for SYNs to be sent again.
const BACKLOG: u32 = 4096;

/// The listener, and the address that it really has.
pub async fn listener(
    handed: Option<std::net::TcpListener>,
    server: &Server,
) -> Result<(TcpListener, SocketAddr), Exit> {
    let Some(handed) = handed else { return bind(server.listen).await };
    let failed = |error| complain_and(Exit::Listen, format_args!("the socket handed over: {error}"));
    let listener = TcpListener::from_std(handed).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    may_listen_at(address, server).map_err(|refusal| complain_and(Exit::Config, refusal))?;
    Ok((listener, address))
}

async fn bind(listen: SocketAddr) -> Result<(TcpListener, SocketAddr), Exit> {
    let failed = |error| complain_and(Exit::Listen, format_args!("server.listen = \"{listen}\": {error}"));
    let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
    // The port of a process that has just ended can be bound at once.
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(listen).map_err(failed)?;
    let listener = socket.listen(BACKLOG).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// The rule of `server.listen` for an address that the configuration does not know: one that was handed over, or that
/// of a process that has been running under another configuration.
pub fn may_listen_at(address: SocketAddr, server: &Server) -> Result<(), String> {
    let guarded = server.token_file.is_some() || !server.allow_from.is_empty();
    if guarded || address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(format!(
        "the daemon listens at {address}, which can be reached from other machines: set `server.token_file` or \
         `server.allow_from`; or start it at an address of loopback (ListenStream= of its socket, else `server.listen`)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Server {
        let text = format!("[webhooks]\nproduct_url = \"none\"\n[server]\n{text}\n");
        crate::config::parse("config.toml", &text).unwrap().server
    }

    #[test]
    fn a_socket_beyond_loopback_wants_a_token_or_allow_from() {
        let (open, ours) = ("0.0.0.0:8080".parse().unwrap(), "[::ffff:127.0.0.1]:8080".parse().unwrap());
        let refusal = may_listen_at(open, &server("")).unwrap_err();
        assert!(refusal.contains("0.0.0.0:8080") && refusal.contains("server.token_file"), "{refusal}");
        assert_eq!(may_listen_at(ours, &server("")), Ok(()));
        assert_eq!(may_listen_at(open, &server("allow_from = [\"10.0.0.0/8\"]")), Ok(()));
        assert_eq!(may_listen_at(open, &server("token_file = \"/t\"")), Ok(()));
    }
}
