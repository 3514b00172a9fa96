//! People who connect and say nothing: more than one process has descriptors for, so they are processes of their own.

use std::io::Read;
use std::net::SocketAddr;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt as _, BufReader, Lines};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdout, Command};

/// Tells this very program to be a crowd: how many, from where, to where.
const ORDER: &str = "GLANEUR_TEST_CROWD";
const GATHERED: &str = "the crowd is gathered";

/// A crowd; it goes away when dropped.
pub struct Crowd {
    child: Child,
    /// Held open: a program that cannot write its last line fails.
    _lines: Lines<BufReader<ChildStdout>>,
}

impl Crowd {
    /// Connects `n` from `from`, whose ports nobody else uses, to `to`.
    pub async fn gather(n: usize, from: &str, to: SocketAddr) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "faults::crowd::a_crowd_stays_until_it_is_sent_away", "--nocapture"])
            .env(ORDER, format!("{n} {from}:0 {to}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.ends_with(GATHERED) {
                return Self { child, _lines: lines };
            }
        }
        panic!("the crowd did not gather");
    }

    pub async fn send_away(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().await.unwrap().success());
    }
}

#[expect(clippy::print_stdout, reason = "whoever gave the order reads it")]
async fn stand(order: &str) {
    let [n, from, to] = order.split(' ').collect::<Vec<_>>()[..] else { panic!("{order}") };
    let (n, from, to): (usize, SocketAddr, SocketAddr) =
        (n.parse().unwrap(), from.parse().unwrap(), to.parse().unwrap());
    let mut crowd: Vec<TcpStream> = Vec::with_capacity(n);
    for _ in 0..n {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(from).unwrap();
        crowd.push(socket.connect(to).await.unwrap());
    }
    println!("\n{GATHERED}");
    // Until whoever gave the order closes it, or is gone.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[tokio::test]
async fn a_crowd_stays_until_it_is_sent_away() {
    if let Ok(order) = std::env::var(ORDER) {
        return stand(&order).await;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let crowd = Crowd::gather(3, "127.0.0.3", listener.local_addr().unwrap()).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (stream, peer) = listener.accept().await.unwrap();
        assert_eq!(peer.ip().to_string(), "127.0.0.3");
        assert!(stream.try_read(&mut [0]).is_err(), "open, and silent");
        seen.push(stream);
    }
    crowd.send_away().await;
    for mut stream in seen {
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }
}
