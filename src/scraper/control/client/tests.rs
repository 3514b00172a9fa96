use super::*;
use std::future::Future;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// The other side of one connection.
struct Port {
    lines: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

impl Port {
    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).await.unwrap();
        line.trim_end().to_owned()
    }

    async fn say(&mut self, text: &str) {
        let _ = self.to.write_all(text.as_bytes()).await;
    }

    async fn greet(&mut self, methods: &str) {
        assert_eq!(self.line().await, "PROTOCOLINFO 1");
        self.say(&format!(
            "250-PROTOCOLINFO 1\r\n250-AUTH METHODS={methods}\r\n250-VERSION Tor=\"0.4.9.11\"\r\n250 OK\r\n"
        ))
        .await;
    }

    async fn let_in(&mut self) {
        self.greet("NULL").await;
        assert_eq!(self.line().await, "AUTHENTICATE");
        self.say("250 OK\r\n").await;
    }
}

/// A port that does `part` with its first visitor.
async fn port<F>(part: impl FnOnce(Port) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (from, to) = listener.accept().await.unwrap().0.into_split();
        part(Port { lines: BufReader::new(from), to }).await;
    });
    address
}

/// Keeps a connection open until the other side closes it.
async fn linger(mut port: Port) {
    while !port.line().await.is_empty() {}
}

#[tokio::test]
async fn replies_go_to_their_askers_and_events_to_whoever_listens() {
    let address = port(|mut port| async move {
        port.let_in().await;
        let asked = [port.line().await, port.line().await];
        assert_eq!(asked, ["GETINFO a", "GETCONF B"]);
        port.say(
            "650 CIRC 1 LAUNCHED PURPOSE=GENERAL\r\n250-a=1\r\n250 OK\r\n650 CIRC 2 LAUNCHED\r\n250 b=2\r\n",
        )
        .await;
        linger(port).await;
    })
    .await;
    let (client, mut events) = Client::connect(address, None).await.unwrap();
    assert_eq!(client.version(), "0.4.9.11");
    let (a, b) = tokio::join!(client.get_info("a"), client.get_conf("B"));
    assert_eq!((a.unwrap().as_str(), b.unwrap().as_deref()), ("1", Some("2")));
    for id in [1, 2] {
        let Some(Event::Circuit(circuit)) = events.next().await else { panic!("a circuit") };
        assert_eq!(circuit.id, CircuitNo(id));
    }
}

#[tokio::test]
async fn a_refusal_is_told_with_its_code_and_without_the_line_that_was_sent() {
    let address = port(|mut port| async move {
        port.let_in().await;
        port.line().await;
        port.say("552-Unrecognized key \"x\"\r\n552 Unrecognized key \"y\"\r\n").await;
        linger(port).await;
    })
    .await;
    let (client, _events) = Client::connect(address, None).await.unwrap();
    let error = client.get_info("secret").await.unwrap_err().to_string();
    assert_eq!(error, "the control port refused GETINFO: 552 Unrecognized key \"y\"");
}

#[tokio::test]
async fn a_connection_that_ends_or_speaks_rubbish_ends_every_wait() {
    for last in ["", "HTTP/1.1 400 Bad Request\r\n", "250 OK\r\n250 OK\r\n"] {
        let address = port(move |mut port| async move {
            port.let_in().await;
            port.line().await;
            port.say(last).await;
        })
        .await;
        let (client, mut events) = Client::connect(address, None).await.unwrap();
        let (asked, heard) = tokio::join!(client.get_info("a"), events.next());
        assert!(asked.is_err() && heard.is_none(), "{last:?}: {asked:?}");
        assert!(matches!(client.get_info("a").await, Err(ControlError::Closed)));
    }
}

#[tokio::test]
async fn a_port_that_says_nothing_is_left_after_the_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let began = std::time::Instant::now();
    let error = Client::connect(address, None).await.unwrap_err();
    assert!(matches!(error, ControlError::Timeout { command: "PROTOCOLINFO", .. }), "{error}");
    assert!(ANSWER_WITHIN <= began.elapsed());
}

#[tokio::test]
async fn a_wrong_or_missing_password_is_told_in_plain_words() {
    let password = Password("s3\"cret".to_owned());
    for (given, expected) in
        [(Some(&password), "refused the password"), (None, "set tor.control_password_file")]
    {
        let address = port(|mut port| async move {
            port.greet("HASHEDPASSWORD").await;
            if port.line().await == "AUTHENTICATE \"s3\\\"cret\"" {
                port.say("515 Authentication failed: Password did not match\r\n").await;
            }
        })
        .await;
        let error = Client::connect(address, given).await.unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("cret\""), "{error}");
    }
}

#[tokio::test]
async fn a_cookie_that_cannot_be_read_names_the_file_the_group_and_the_line_of_torrc() {
    let address = port(|mut port| async move {
        port.greet("COOKIE,SAFECOOKIE COOKIEFILE=\"/nonexistent/control.authcookie\"").await;
        linger(port).await;
    })
    .await;
    let error = Client::connect(address, None).await.unwrap_err().to_string();
    for part in [
        "/nonexistent/control.authcookie",
        "debian-tor",
        "CookieAuthFileGroupReadable 1",
        "control_password_file",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_the_other_side_names_is_not_shown_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    std::fs::write(&path, [0x5a; COOKIE_BYTES]).unwrap();
    let told = path.clone();
    // Offers the plain method alone, or claims to know the cookie.
    for methods in ["COOKIE", "COOKIE,SAFECOOKIE"] {
        let (told, (heard, hears)) = (told.clone(), oneshot::channel());
        let address = port(move |mut port| async move {
            port.greet(&format!("{methods} COOKIEFILE=\"{}\"", told.display())).await;
            let mut lines = Vec::new();
            loop {
                match port.line().await {
                    line if line.is_empty() => break,
                    line => lines.push(line),
                }
                let zeros = "00".repeat(32);
                port.say(&format!("250 AUTHCHALLENGE SERVERHASH={zeros} SERVERNONCE={zeros}\r\n")).await;
            }
            heard.send(lines).unwrap();
        })
        .await;
        let error = Client::connect(address, None).await.unwrap_err();
        assert!(matches!(error, ControlError::NoMethod | ControlError::Impostor { .. }), "{error}");
        let lines = hears.await.unwrap();
        assert!(lines.iter().all(|line| line.starts_with("AUTHCHALLENGE")), "{lines:?}");
    }
}

#[test]
fn a_cookie_is_a_plain_file_of_32_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cookie");
    for (size, right) in [(31, false), (32, true), (33, false)] {
        std::fs::write(&path, vec![1; size]).unwrap();
        assert_eq!(read_cookie(&path).is_ok(), right, "{size} bytes");
    }
    assert!(read_cookie(dir.path()).is_err());
    assert!(read_cookie(Path::new("/dev/zero")).is_err());
}
