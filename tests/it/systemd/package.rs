//! The Debian package, as `cargo deb` makes it: installed, upgraded, downgraded, removed, purged.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use glaneur_kit::client;
use glaneur_kit::systemd::Ran;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::service::{PORT, Service, UNITS, under_systemd};
use crate::support::{BINARY, REAL, Stage, batch};

const LEDGER: &str = "var/lib/private/glaneur/glaneur.db";

/// Makes packages of the binary under test; none where `cargo deb` is not installed.
struct Maker {
    dir: TempDir,
}

impl Maker {
    fn new() -> Option<Self> {
        let known = Command::new("cargo").args(["deb", "--version"]).output();
        if !known.is_ok_and(|output| output.status.success()) {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "no package here: cargo install cargo-deb --locked");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let release = dir.path().join("release");
        std::fs::create_dir(&release).unwrap();
        std::fs::hard_link(BINARY, release.join("glaneur"))
            .or_else(|_| std::fs::copy(BINARY, release.join("glaneur")).map(drop))
            .unwrap();
        Some(Self { dir })
    }

    fn make(&self, revision: &str) -> PathBuf {
        let package = self.dir.path().join(format!("glaneur_{revision}.deb"));
        let made = Command::new("cargo")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("CARGO_TARGET_DIR", self.dir.path())
            .args([
                "deb",
                "--no-build",
                "--no-strip",
                "--fast",
                "--offline",
                "--deb-revision",
                revision,
                "-o",
            ])
            .arg(&package)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        package
    }
}

fn dpkg(service: &Service, arguments: &[&str]) -> Ran {
    let ran =
        service.lab.run(&[&["env", "DEBIAN_FRONTEND=noninteractive", "dpkg"], arguments].concat()).unwrap();
    assert_eq!(ran.code, 0, "dpkg {arguments:?}: {ran}\n{}", service.journal());
    ran
}

fn install(service: &Service, package: &Path) {
    service.lab.copy(package, "/tmp/glaneur.deb", 0o644).unwrap();
    dpkg(service, &["--force-confold", "-i", "/tmp/glaneur.deb"]);
}

fn exists(service: &Service, path: &str) -> bool {
    service.lab.root().join(path).symlink_metadata().is_ok()
}

/// Changes the version of the schema in the ledger of a service that is stopped; what it was.
fn change_version(service: &Service, change: impl Fn(i64) -> i64) -> i64 {
    let (there, here) = (service.lab.root().join(LEDGER), tempfile::NamedTempFile::new().unwrap());
    std::fs::copy(&there, here.path()).unwrap();
    let ledger = rusqlite::Connection::open(here.path()).unwrap();
    let version: i64 = ledger.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    ledger.pragma_update(None, "journal_mode", "delete").unwrap();
    ledger.pragma_update(None, "user_version", change(version)).unwrap();
    ledger.close().unwrap();
    // In place, so that it keeps its owner.
    std::fs::write(&there, std::fs::read(here.path()).unwrap()).unwrap();
    version
}

/// Connects again and again until told to end; how often it was refused.
async fn knock(enough: Arc<AtomicBool>) -> (usize, usize) {
    let (mut answered, mut refused) = (0, 0);
    while !enough.load(Ordering::SeqCst) {
        match TcpStream::connect(std::net::SocketAddr::from(PORT)).await {
            Ok(stream) => {
                let request = client::request("GET", "/livez", "").unwrap();
                answered += usize::from(client::exchange(stream, request).await.is_ok());
            }
            Err(_) => refused += 1,
        }
    }
    (answered, refused)
}

#[test]
fn the_package_is_installed_upgraded_downgraded_removed_and_purged() {
    let Some(maker) = Maker::new() else { return };
    let (older, newer) = (maker.make("1"), maker.make("2"));
    under_systemd(|service| async move {
        // Nothing of the installation by hand, and services may be started.
        for path in [
            "/usr/local/bin/glaneur",
            "/usr/local/bin/glaneurctl",
            "/usr/local/lib/systemd/catalog",
            "/etc/glaneur",
            "/usr/sbin/policy-rc.d",
        ] {
            service.lab.remove(path).unwrap();
        }
        for unit in UNITS {
            service.lab.remove(&format!("/etc/systemd/system/{unit}")).unwrap();
        }
        service.systemctl(&["daemon-reload"]);

        install(&service, &older);
        assert_eq!(service.states(), ["active", "active"]);
        assert_eq!(service.said("set webhooks.product_url"), 1, "{}", service.journal());
        assert!(service.explained().contains("Set webhooks.product_url in the configuration and reload"));
        let page = service.lab.run(&["man", "--where", "glaneur-explain"]).unwrap().stdout;
        assert!(page.starts_with("/usr/share/man/man1/"), "{page}");
        let enabled = |unit| service.systemctl(&["is-enabled", unit]).stdout;
        assert_eq!(UNITS.map(enabled), ["enabled", "enabled"]);

        let stage = Stage::real_batch();
        service.configure_for(&stage);
        service.does("restart");
        let batch = service.submit(&batch(REAL)).await.unwrap().1;
        stage.finished(REAL.len()).await;

        let enough = Arc::new(AtomicBool::new(false));
        let knocking = tokio::spawn(knock(Arc::clone(&enough)));
        let before = service.show("MainPID");
        install(&service, &newer);
        enough.store(true, Ordering::SeqCst);
        let (answered, refused) = knocking.await.unwrap();
        assert_eq!(refused, 0, "the port is open all the time");
        assert!(answered > 0);
        assert_ne!(service.show("MainPID"), before, "the new program runs");
        assert_eq!(
            service.get(batch["status_url"].as_str().unwrap()).await.unwrap().0,
            200,
            "ledger and configuration stay"
        );

        // A ledger that a later version has changed.
        service.systemctl(&["stop", UNITS[1], UNITS[0]]);
        let version = change_version(&service, |version| version + 1);
        install(&service, &older);
        assert_eq!(service.systemctl(&["start", "glaneur"]).code, 1);
        assert_eq!(service.show("ExecMainStatus"), "76");
        let [ours, theirs] = [version, version + 1].map(|version| version.to_string());
        let names_both =
            |line: &str| line.contains("newer") && line.contains(&ours) && line.contains(&theirs);
        assert!(service.journal().lines().any(names_both), "{}", service.journal());
        assert_eq!(service.states(), ["failed", "inactive"]);
        change_version(&service, |_| version);
        service.does("start");

        dpkg(&service, &["-r", "glaneur"]);
        assert!(service.get("/livez").await.is_err());
        assert!(exists(&service, LEDGER) && exists(&service, "etc/glaneur/config.toml"));
        install(&service, &newer);
        assert_eq!(service.get(batch["status_url"].as_str().unwrap()).await.unwrap().0, 200, "it goes on");
        dpkg(&service, &["-P", "glaneur"]);
        for path in [
            "etc/glaneur",
            "var/lib/private/glaneur",
            "var/lib/glaneur",
            "usr/bin/glaneur",
            "usr/bin/glaneurctl",
        ] {
            assert!(!exists(&service, path), "{path} is left");
        }
        assert_eq!(service.systemctl(&["list-unit-files", "--no-legend", "glaneur.*"]).stdout, "");
    });
}
