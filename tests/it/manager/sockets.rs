//! READY, STOPPING, and the listener that outlives the daemon.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use glaneur::exit::Exit;
use glaneur_kit::{Manager, Trouble};

use super::setup;
use crate::support::{REAL, Stage, accepted, batch};

#[tokio::test]
async fn ready_is_said_when_a_submit_would_be_taken_and_stopping_when_the_drain_begins() {
    let stage = Stage::real_batch();
    let manager = Manager::start().unwrap();
    let mut daemon = setup(&stage).under(&manager).start().await.unwrap();
    manager.wait_for("READY", |value| value == "1").await.unwrap();
    assert_eq!(daemon.get("/readyz").await.unwrap().0, 200);
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    assert!(manager.all_of("STOPPING").is_empty());
    daemon.term().unwrap();
    manager.wait_for("STOPPING", |value| value == "1").await.unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    assert_eq!(manager.all_of("READY").len(), 1);
}

#[tokio::test]
async fn a_submit_made_while_the_daemon_is_away_waits_for_the_next_one() {
    let stage = Stage::real_batch();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut daemon = setup(&stage).hand_over(socket, 1).start().await.unwrap();
    assert_eq!(daemon.api().address, address, "server.listen is not used");
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    let mut client = TcpStream::connect(address).expect("nobody is refused while the daemon is away");
    let body = batch(REAL).to_string();
    let length = body.len();
    write!(
        client,
        "POST /api/scrape HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
    daemon.restart().await.unwrap();
    stage.finished(8).await;
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
}

async fn refusal(socket: impl Into<OwnedFd>, times: u32) -> String {
    let stage = Stage::real_batch();
    let refused: Trouble = setup(&stage).hand_over(socket, times).start().await.unwrap_err();
    refused.to_string()
}

#[tokio::test]
async fn what_is_no_single_tcp_listener_is_refused_in_words_that_name_it() {
    let code = format!("code {}", Exit::Config.code());
    let dir = tempfile::tempdir().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let unix = UnixListener::bind(dir.path().join("socket")).unwrap();
    let file = std::fs::File::create(dir.path().join("file")).unwrap();
    let connected = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    };
    let given = [
        (refusal(TcpListener::bind("127.0.0.1:0").unwrap(), 2).await, "2 sockets"),
        (refusal(udp, 1).await, "a UDP socket"),
        (refusal(unix, 1).await, "a Unix stream socket"),
        (refusal(file, 1).await, "/file, which is neither"),
        (refusal(connected, 1).await, "does not listen"),
    ];
    for (refusal, name) in given {
        assert!(refusal.contains(name) && refusal.contains(&code), "no {name:?} in {refusal}");
    }
}

#[tokio::test]
async fn a_socket_beyond_loopback_without_a_guard_is_refused_as_server_listen_would_be() {
    let refusal = refusal(TcpListener::bind("0.0.0.0:0").unwrap(), 1).await;
    assert!(refusal.contains(&format!("code {}", Exit::Config.code())), "{refusal}");
    assert!(refusal.contains("0.0.0.0:") && refusal.contains("server.allow_from"), "{refusal}");
}
