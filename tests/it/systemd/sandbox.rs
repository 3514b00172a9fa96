//! The hardened unit does the whole job, and from inside it nothing else can be done.

use std::net::SocketAddr;
use std::path::Path;

use glaneur_kit::shop::catalogue::real_batch_body;
use glaneur_kit::systemd::ELSEWHERE;
use glaneur_kit::{Catalogue, Receiver, TorNetwork, client};
use http::HeaderValue;

use super::service::{PORT, Service, under_systemd, units};
use crate::support::{REAL, Stage, batch};
use crate::tor::{assert_only_exits_came, stage_behind};

const SECRET: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[test]
fn the_hardened_service_does_the_main_job_with_its_credentials() {
    under_systemd(|service| async move {
        let credential = |name: &str| format!("/run/credentials/glaneur.service/{name}");
        let stage = Stage::real_batch().set("server", "token_file", credential("token")).set(
            "webhooks",
            "secret_file",
            credential("webhook-secret"),
        );
        service.configure_for(&stage);
        service.lab.write("/etc/glaneur/token", "a secret word\n", 0o600).unwrap();
        service.lab.write("/etc/glaneur/webhook-secret", format!("whsec_{SECRET}\n"), 0o600).unwrap();
        service.does("start");
        assert_eq!(service.submit(&batch(REAL)).await.unwrap().0, 401);
        let mut request = client::request("POST", "/api/scrape", batch(REAL).to_string()).unwrap();
        let headers = request.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        headers.insert("authorization", HeaderValue::from_static("Bearer a secret word"));
        assert_eq!(client::send(PORT.into(), request).await.unwrap().status(), 202);
        stage.finished(REAL.len()).await;
        let key = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, SECRET).unwrap();
        assert!(stage.receiver.seen().iter().all(|seen| seen.is_signed_with(&key)));

        let owner = |path: &str| service.lab.run(&["stat", "-c", "%U %a", path]).unwrap().stdout;
        assert_eq!(owner("/var/lib/private/glaneur/glaneur.db"), "glaneur 600");
        assert_eq!(owner("/var/lib/private/glaneur"), "glaneur 700");
        let uid = service.lab.run(&["id", "-u", "glaneur"]).unwrap().stdout;
        assert!((61184..=65519).contains(&uid.parse().unwrap()), "a dynamic user: {uid}");
    });
}

#[test]
fn the_service_for_one_machine_visits_through_the_real_tor() {
    under_systemd(|service| async move {
        glaneur_kit::ensure_tor().unwrap();
        // Not the other tests' cache: their network may be up at the same addresses.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tor-lab");
        std::fs::create_dir_all(&cache).unwrap();
        let network = TorNetwork::start(Some(&cache)).await.unwrap();
        let stage = stage_behind(&network, Catalogue::real_batch());
        service.configure_for(&stage);
        let local = std::fs::read_to_string(units().join("local-only.conf")).unwrap();
        service.drop_in("local-only", &local);
        service.does("start");
        assert_eq!(service.submit(&real_batch_body()).await.unwrap().0, 202);
        let (_, summary) = stage.finished(REAL.len()).await;
        assert_eq!(summary["counts"]["found"], 7, "{summary}");
        assert_only_exits_came(&network, &stage);
    });
}

#[test]
fn a_secret_that_the_configuration_names_and_nobody_wrote_fails_the_start_and_says_so() {
    under_systemd(|service| async move {
        let token = "\n[server]\ntoken_file = \"/run/credentials/glaneur.service/token\"\n";
        service.configure(format!("[webhooks]\nproduct_url = \"none\"\n{token}"));
        assert_eq!(service.systemctl(&["start", "glaneur"]).code, 1);
        assert!(service.said("server.token_file") >= 1, "{}", service.journal());
        // It may come at any moment, so this is tried again.
        service.lab.write("/etc/glaneur/token", "a secret word\n", 0o600).unwrap();
        service.wait_until("ActiveState", |state| state == "active").await;
    });
}

#[test]
fn an_operator_reads_the_ledger_beside_the_daemon_and_without_it() {
    under_systemd(|service| async move {
        let stage = Stage::real_batch();
        service.configure_for(&stage);
        service.does("start");
        assert_eq!(service.submit(&batch(REAL)).await.unwrap().0, 202);
        stage.finished(REAL.len()).await;
        let explain = || service.lab.run(&["glaneurctl", "explain", REAL[0]]).unwrap().ok().unwrap();
        // The ledger is still the daemon's: another user would have been given the whole directory.
        let owner =
            || service.lab.run(&["stat", "-c", "%u", "/var/lib/private/glaneur/glaneur.db"]).unwrap().stdout;
        let before = owner();
        assert!(explain().contains("found at"), "{}", explain());
        assert_eq!(owner(), before);
        service.systemctl(&["stop", "glaneur.socket", "glaneur.service"]);
        assert!(explain().contains("found at"));
        assert_eq!(service.lab.run(&["glaneurctl", "explain", "0000000000000"]).unwrap().code, 1);
        // What it left in the directory is the daemon's.
        service.does("start");
        assert_eq!(service.get("/readyz").await.unwrap().0, 200);
        // As the daemon's user, and so with none of root's rights.
        service.lab.write("/etc/glaneur/token", "a secret word", 0o600).unwrap();
        let spied = service.lab.run(&["glaneurctl", "--config", "/etc/glaneur/token", "check"]).unwrap();
        assert!(spied.code != 0 && !spied.stderr.contains("secret"), "{spied}");
    });
}

/// Runs shell lines in the daemon's place and with its rights: its program is a copy of bash then, and what bash does
/// by itself needs no other program. Its words are kept in the state directory.
async fn probe(service: &Service, lines: &str) -> String {
    service.lab.copy(Path::new("/bin/bash"), "/usr/local/bin/glaneur", 0o755).unwrap();
    service.lab.write("/etc/glaneur/probe", lines, 0o644).unwrap();
    let run = "exec >/var/lib/glaneur/said 2>&1; . /etc/glaneur/probe; exit 0";
    service.drop_in(
        "probe",
        &format!("Type=oneshot\nWatchdogSec=0\nRestart=no\nExecStart=\nExecStart=glaneur -c '{run}'"),
    );
    service.does("start");
    std::fs::read_to_string(service.lab.root().join("var/lib/private/glaneur/said")).unwrap()
}

#[test]
fn from_inside_nothing_else_can_be_written() {
    const LOOK: &str = "shopt -s dotglob nullglob
        for at in / /* /*/* /*/*/*; do
            case $at in /proc/*|/sys/*) continue;; esac
            if [ -d $at ] && [ ! -L $at ] && echo x 2>/dev/null >$at/probe; then echo $at; fi
        done
        for at in /etc/passwd /proc/sys/kernel/hostname /sys/fs/cgroup/cgroup.procs /dev/kmsg /usr/local/bin/glaneur; do
            if echo x 2>/dev/null >>$at; then echo $at; fi
        done
        cd /var/lib/glaneur && echo x >probe && echo state";
    under_systemd(|service| async move {
        let said = probe(&service, LOOK).await;
        assert_eq!(said.lines().collect::<Vec<_>>(), ["/tmp", "/var/tmp", "state"]);
        // Both are its own, and gone with it.
        for path in ["/tmp/probe", "/var/tmp/probe"] {
            assert!(!service.lab.root().join(path.trim_start_matches('/')).exists(), "{path}");
        }
    });
}

#[test]
fn from_inside_no_other_program_can_be_executed() {
    const LOOK: &str = "umask 0
        for program in /bin/true /usr/bin/env /bin/sh; do
            $program; echo $program $?
            /lib64/ld-linux-x86-64.so.2 $program; echo ld.so $program $?
        done
        (exec /usr/local/bin/glaneur -c 'echo itself'); echo $?";
    under_systemd(|service| async move {
        let said = probe(&service, LOOK).await;
        let ended: Vec<&str> = said.lines().filter(|line| !line.contains(": ")).collect();
        let expected = [
            "/bin/true 126",
            "ld.so /bin/true 127",
            "/usr/bin/env 126",
            "ld.so /usr/bin/env 127",
            "/bin/sh 126",
            "ld.so /bin/sh 127",
            "itself",
            "0",
        ];
        assert_eq!(ended, expected, "{said}");
    });
}

#[test]
fn with_the_drop_in_for_one_machine_no_other_address_is_reached() {
    under_systemd(|service| async move {
        let near = Receiver::start().unwrap();
        let far = Receiver::start_on(ELSEWHERE.into()).unwrap();
        // What is denied is dropped, not refused: bash would wait for minutes. It waits at the near address instead.
        let wait = format!("exec 3<>/dev/tcp/127.0.0.1/{}", near.address().port());
        let look = |address: SocketAddr| {
            let (ip, port) = (address.ip(), address.port());
            format!(
                "(echo 2>/dev/null >/dev/tcp/{ip}/{port} && echo reached {ip}) & try=$!
                for n in {{1..20}}; do kill -0 $try 2>/dev/null || break; read -t 0.1 <&3; done
                kill $try 2>/dev/null; wait\n"
            )
        };
        let look = format!("{wait}\n{}{}echo done", look(near.address()), look(far.address()));
        let both = "reached 127.0.0.1\nreached 10.99.0.1\ndone\n";
        assert_eq!(probe(&service, &look).await, both, "webhooks go to any host");
        let local = std::fs::read_to_string(units().join("local-only.conf")).unwrap();
        service.drop_in("local-only", &local);
        assert_eq!(probe(&service, &look).await, "reached 127.0.0.1\ndone\n");
    });
}
