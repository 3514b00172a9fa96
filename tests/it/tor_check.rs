//! `glaneur tor check` against the real tor, as it should be and as it should not be.

use std::process::Stdio;

use glaneur_kit::{Catalogue, Config, Daemon, Shop, TorNetwork};
use tokio::process::Command;

use crate::support::{BINARY, REAL, accepted, batch};
use crate::tor::{network, stage_behind};

/// Beside the port that the network's client has; nobody else uses its address.
const OTHER_PORT: u16 = 9_152;
const QUESTIONS: [&str; 9] =
    ["port", "password", "control", "bootstrap", "isolation", "lifetime", "conflux", "resolving", "exits"];

/// What the command said, and the code it ended with.
struct Said {
    code: i32,
    text: String,
}

impl Said {
    /// The line that answers this question, and what mends it.
    fn of(&self, question: &str) -> (&str, &str) {
        let mut lines = self.text.lines();
        let line = lines.find(|line| line.split_whitespace().nth(1) == Some(question));
        let line = line.unwrap_or_else(|| panic!("nothing about {question} in:\n{}", self.text));
        (line, lines.next().filter(|next| next.starts_with("    ")).unwrap_or_default())
    }

    #[track_caller]
    fn assert(&self, question: &str, verdict: &str, words: &str, mend: &str) {
        let (line, next) = self.of(question);
        let is = line.split_whitespace().next() == Some(verdict) && line.contains(words);
        assert!(
            is && next.contains(mend),
            "{question}: not {verdict} with {words:?} and {mend:?}:\n{}",
            self.text
        );
    }

    #[track_caller]
    fn assert_all(&self, questions: &[&str], verdict: &str) {
        questions.iter().for_each(|question| self.assert(question, verdict, "", ""));
    }
}

async fn check(config: &Config) -> Said {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, config.to_string()).unwrap();
    let output = Command::new(BINARY)
        .args(["tor", "check", "--config"])
        .arg(&file)
        .env_remove("GLANEUR_CONFIG")
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code().unwrap(), text: text(&output.stdout) + &text(&output.stderr) }
}

fn configuration(network: &TorNetwork) -> Config {
    Config::new()
        .product_url("none")
        .socks(network.socks())
        .set("tor", "control", network.control().to_string())
        .site("drakkars", "http://drakkars.test")
}

/// Checks while the client of the network is configured so, and puts it back before anything is claimed.
async fn check_with(network: &TorNetwork, change: &str, back: &str, config: &Config) -> Said {
    let mut control = network.open_control().await.unwrap();
    control.command(&format!("SETCONF {change}")).await.unwrap();
    let said = check(config).await;
    control.command(&format!("SETCONF {back}")).await.unwrap();
    said
}

#[tokio::test]
async fn a_tor_as_the_readme_wants_it_is_ok_with_and_without_the_daemon_and_no_shop_is_asked() {
    let network = network().await;
    let stage = stage_behind(&network, Catalogue::of([REAL[0]]));
    let config = stage.config.clone().set("tor", "control", network.control().to_string());
    let alone = check(&config).await;
    let daemon = Daemon::start(BINARY, config.clone()).await.unwrap();
    daemon.wait_for_event("tor_found", |_| true).await.unwrap();
    let beside = check(&config).await;
    for said in [&alone, &beside] {
        assert_eq!(said.code, 0, "{}", said.text);
        said.assert_all(&QUESTIONS, "ok");
        said.assert("resolving", "ok", "cocooncenter.test", "");
        let (exits, _) = said.of("exits");
        let known =
            network.exits().iter().filter(|exit| exits.contains(&format!("{} at {}", exit.name, exit.ip)));
        assert!((1..=2).contains(&known.count()), "{exits}");
    }
    assert!(stage.shops.all.iter().all(|shop| shop.hits().is_empty()), "no shop was asked");
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["status"], "found", "and the daemon goes on");
}

#[tokio::test]
async fn conflux_is_told_with_the_line_that_ends_it() {
    let network = network().await;
    let said =
        check_with(&network, "ConfluxEnabled=auto", "ConfluxEnabled=0", &configuration(&network)).await;
    assert_eq!(said.code, 1, "{}", said.text);
    said.assert("conflux", "bad", "ConfluxEnabled auto", "torrc: ConfluxEnabled 0");
    said.assert_all(&["port", "password", "control", "bootstrap", "resolving"], "ok");
}

#[tokio::test]
async fn a_socks_port_that_does_not_isolate_is_told_and_one_without_flags_isolates() {
    let network = network().await;
    let other = std::net::SocketAddr::new(network.socks().ip(), OTHER_PORT);
    let config = configuration(&network).socks(other);
    let back = format!(
        "SocksPort=\"{} IsolateSOCKSAuth KeepAliveIsolateSOCKSAuth ExtendedErrors\"",
        network.socks()
    );
    let plain = check_with(&network, &format!("SocksPort={other}"), &back, &config).await;
    let shared =
        check_with(&network, &format!("SocksPort=\"{other} NoIsolateSOCKSAuth\""), &back, &config).await;
    let open =
        check_with(&network, &format!("SocksPort=\"{other} PreferSOCKSNoAuth\""), &back, &config).await;

    assert_eq!(plain.code, 0, "{}", plain.text);
    plain.assert("isolation", "ok", "two circuits", "");
    plain.assert("lifetime", "ok", "600 s after its first use", "");
    assert_eq!(shared.code, 1, "{}", shared.text);
    shared.assert("isolation", "bad", "one circuit", &format!("torrc: SocksPort {other} IsolateSOCKSAuth"));
    assert_eq!(open.code, 1, "{}", open.text);
    open.assert("password", "bad", "no authentication", "PreferSOCKSNoAuth");
}

#[tokio::test]
async fn a_tor_that_is_stopped_is_told_and_nothing_else_is_guessed() {
    let network = network().await;
    network.stop_client();
    let said = check(&configuration(&network)).await;
    network.start_client().await.unwrap();
    assert_eq!(said.code, 1, "{}", said.text);
    said.assert("port", "bad", "cannot reach", &format!("torrc: SocksPort {}", network.socks()));
    said.assert("control", "bad", "cannot reach the control port", "");
    said.assert_all(
        &QUESTIONS
            .map(|question| if question == "port" || question == "control" { "exits" } else { question }),
        "unknown",
    );
}

#[tokio::test]
async fn a_port_that_speaks_http_is_not_taken_for_tor() {
    let network = network().await;
    let catalogue = std::sync::Arc::new(Catalogue::real_batch());
    let shop = Shop::start_here(glaneur_kit::ShopKind::Drakkars, catalogue).unwrap();
    let address = ([127, 0, 0, 1], shop.port()).into();
    let said = check(&configuration(&network).socks(address)).await;
    assert_eq!(said.code, 1, "{}", said.text);
    said.assert("port", "bad", "does not speak SOCKS5", "tor.socks");
    said.assert_all(&["password", "isolation", "resolving", "exits"], "unknown");
    said.assert_all(&["control", "bootstrap", "conflux"], "ok");
}

#[tokio::test]
async fn without_a_control_port_what_it_alone_sees_is_unknown_and_nothing_is_bad() {
    let network = network().await;
    let config =
        Config::new().product_url("none").socks(network.socks()).site("drakkars", "http://drakkars.test");
    let said = check(&config).await;
    assert_eq!(said.code, 0, "{}", said.text);
    said.assert_all(&["port", "password", "bootstrap", "resolving"], "ok");
    said.assert_all(&["isolation", "lifetime", "exits"], "unknown");
    said.assert("conflux", "unknown", "cannot be seen", "ConfluxEnabled 0");
    said.assert("control", "unknown", "tor.control is not set", "ControlPort 127.0.0.1:9051");
}

#[tokio::test]
async fn a_control_port_with_another_password_is_told_and_with_the_right_one_it_tells() {
    let network = network().await;
    let dir = tempfile::tempdir().unwrap();
    let hashed = Command::new("tor").args(["--hash-password", "sesame"]).output().await.unwrap();
    let hashed = String::from_utf8(hashed.stdout).unwrap();
    let hash = hashed.lines().last().unwrap();
    let config = |password: &str| {
        let file = dir.path().join(password);
        std::fs::write(&file, password).unwrap();
        configuration(&network).set("tor", "control_password_file", file.to_str().unwrap())
    };
    let change = format!("HashedControlPassword={hash}");
    let wrong = check_with(&network, &change, "HashedControlPassword", &config("open")).await;
    let right = check_with(&network, &change, "HashedControlPassword", &config("sesame")).await;
    assert_eq!(wrong.code, 1, "{}", wrong.text);
    wrong.assert("control", "bad", "refused the password in tor.control_password_file", "torrc:");
    wrong.assert_all(&["port", "password", "bootstrap", "resolving"], "ok");
    wrong.assert_all(&["isolation", "conflux", "exits"], "unknown");
    assert!(!wrong.text.contains("open\n") && !right.text.contains("sesame"), "{}", right.text);
    assert_eq!(right.code, 0, "{}", right.text);
    right.assert_all(&QUESTIONS, "ok");
}
