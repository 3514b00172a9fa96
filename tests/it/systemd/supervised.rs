//! What the manager does for the daemon: start, end, restart, and the port that it holds meanwhile.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{Gate, Result, client};
use serde_json::json;
use tokio::net::TcpStream;

use super::service::{PORT, Service, under_systemd};
use crate::support::{LONG, REAL, Stage, accepted, batch};

/// The status of an answer, or that there was none; a connection that nobody takes ends the test.
async fn livez() -> Result<u16> {
    let answer = tokio::time::timeout(LONG, client::get(PORT.into(), "/livez")).await;
    answer.expect("an answer, or a refusal").map(|answer| answer.status().as_u16())
}

/// Waits until the daemon reads from the pipe, and gives the other end.
async fn at_the_gate(service: &Service) -> File {
    let gate = service.lab.root().join("etc/glaneur/gate");
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
    let open = || OpenOptions::new().write(true).custom_flags(nonblock).open(&gate);
    let begin = Instant::now();
    loop {
        // As long as nobody reads there is no such device or address.
        match open() {
            Ok(gate) => return gate,
            Err(error) => assert!(begin.elapsed() < LONG, "{error}\n{}", service.journal()),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_start_waits_for_ready() {
    under_systemd(|service| async move {
        // The daemon reads its secrets before it is ready; a pipe in the place of one is a gate.
        service.configure("[webhooks]\nproduct_url = \"none\"\nsecret_file = \"/etc/glaneur/gate\"\n");
        service.lab.run(&["mkfifo", "-m", "644", "/etc/glaneur/gate"]).unwrap().ok().unwrap();
        service.systemctl(&["start", "--no-block", "glaneur"]);
        let mut gate = at_the_gate(&service).await;
        let early = tokio::spawn(livez());
        assert_eq!(service.states(), ["activating", "active"]);
        assert!(!early.is_finished(), "who comes early waits in the kernel");
        gate.write_all(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        drop(gate);
        service.does("start");
        assert_eq!(service.states(), ["active", "active"]);
        assert_eq!(early.await.unwrap().unwrap(), 200);
    });
}

#[test]
fn a_wrong_configuration_fails_the_start_once_and_says_why() {
    under_systemd(|service| async move {
        service.configure("[webhooks]\nproduct_url = \"none\"\n[sever]\n");
        let ran = service.systemctl(&["start", "glaneur"]);
        assert_eq!(ran.code, 1, "{ran}");
        assert!(ran.stderr.contains("Job for glaneur.service failed"), "{ran}");
        assert_eq!(service.said("config.toml:3:2: unknown key `sever`; did you mean `server`?"), 1);
        // Callers are refused at once, and none of them starts it again.
        service.wait_until("ActiveState", |state| state == "failed").await;
        for _ in 0..50 {
            assert!(livez().await.is_err());
        }
        assert_eq!(service.states(), ["failed", "inactive"]);
        assert_eq!((service.said("unknown key"), service.show("NRestarts")), (1, "0".into()));

        // Somebody opens the port by itself, and callers wait at it.
        service.systemctl(&["start", "glaneur.socket"]);
        let callers: Vec<_> = (0..20).map(|_| tokio::spawn(livez())).collect();
        for caller in callers {
            assert!(caller.await.unwrap().is_err());
        }
        service.wait_until("ActiveState", |state| state == "failed").await;
        assert_eq!(service.states(), ["failed", "inactive"]);
        assert_eq!(service.said("unknown key"), 2, "{}", service.journal());

        service.configure("[webhooks]\nproduct_url = \"none\"\n");
        service.does("start");
        assert_eq!(service.get("/livez").await.unwrap().0, 200);
    });
}

#[test]
fn a_stop_of_the_service_alone_is_undone_by_the_next_connection() {
    under_systemd(|service| async move {
        service.does("start");
        service.does("stop");
        assert_eq!(service.states(), ["inactive", "active"]);
        assert_eq!(service.get("/livez").await.unwrap().0, 200);
        assert_eq!(service.states(), ["active", "active"]);
        service.systemctl(&["stop", "glaneur.socket", "glaneur.service"]);
        assert!(service.get("/livez").await.is_err());
        assert_eq!(service.states(), ["inactive", "inactive"]);
        // Nothing of it is for ever.
        service.does("restart");
        assert_eq!(service.get("/livez").await.unwrap().0, 200);
    });
}

#[test]
fn a_killed_daemon_is_restarted_and_its_batch_ends() {
    under_systemd(|service| async move {
        let stage = Stage::real_batch();
        service.configure_for(&stage);
        let gate = Gate::closed();
        stage.shops.behave(&When::Always, &Conduct::Normal.held(&gate));
        service.does("start");
        accepted(service.submit(&batch(REAL)).await.unwrap());
        stage.shops.all[0].records().wait_until(|hits| !hits.is_empty(), LONG).await.unwrap();
        service.signal("KILL");
        gate.open();
        stage.finished(REAL.len()).await;
        assert_eq!(service.show("NRestarts"), "1");
        assert_eq!(service.states(), ["active", "active"]);
    });
}

#[test]
fn a_daemon_that_dies_again_and_again_is_started_until_it_lives() {
    const DEATHS: u32 = 30;
    under_systemd(|service| async move {
        // As many deaths as are half a minute's otherwise.
        service.drop_in("quick", "RestartSec=10ms");
        service.drop_in("deadly", "Environment=GLANEUR_FAIL=sender.tick=abort");
        service.systemctl(&["start", "--no-block", "glaneur"]);
        service.wait_until("MainPID", |pid| pid != "0").await;
        let patient = tokio::spawn(async {
            loop {
                // The port is open all the time; only what takes the connection may die.
                let stream = TcpStream::connect(SocketAddr::from(PORT)).await.unwrap();
                let request = client::request("GET", "/livez", "").unwrap();
                if let Ok(answer) = client::exchange(stream, request).await {
                    return answer.status().as_u16();
                }
            }
        });
        let many = |restarts: &str| restarts.parse::<u32>().unwrap() >= DEATHS;
        service.wait_until("NRestarts", many).await;
        service.take_back("deadly");
        service.wait_until("ActiveState", |state| state == "active").await;
        assert_eq!(patient.await.unwrap(), 200);
        assert_eq!(service.states(), ["active", "active"]);
    });
}

#[test]
fn a_first_start_succeeds_and_names_the_keys_to_set() {
    under_systemd(|service| async move {
        service.does("start");
        assert_eq!(service.get("/livez").await.unwrap().0, 200);
        for key in ["webhooks.product_url", "sites.<name>.enabled"] {
            assert_eq!(service.said(&format!("set {key}")), 1, "{}", service.journal());
        }
        // journalctl -x says what to do about it.
        assert!(service.explained().contains("Set webhooks.product_url in the configuration and reload"));
        let (status, answer) = service.submit(&json!({"eans": REAL})).await.unwrap();
        assert_eq!(status, 503, "no shop is in use: {answer}");
    });
}
