//! The service as a user installs it, in a lab that all tests of this binary share, one after the other.

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use std::{panic, thread};

use glaneur_kit::daemon::Config;
use glaneur_kit::systemd::{Lab, Ran};
use glaneur_kit::{Result, client};
use serde_json::Value;

use crate::support::{BINARY, LONG, Stage};

pub const UNITS: [&str; 2] = ["glaneur.service", "glaneur.socket"];

/// Where `glaneur.socket` listens.
pub const PORT: ([u8; 4], u16) = ([127, 0, 0, 1], 8080);

const DROP_INS: &str = "/etc/systemd/system/glaneur.service.d";

/// Between two looks at what systemd tells nobody.
pub const POLL: Duration = Duration::from_millis(20);

pub fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

/// The service, installed and not started: no state, no drop-ins, no secrets.
pub struct Service {
    pub lab: &'static Lab,
    began: SystemTime,
    _turn: MutexGuard<'static, ()>,
}

/// Runs a test inside the lab's network, if there is a lab.
pub fn under_systemd<F: Future<Output = ()>>(test: impl FnOnce(Service) -> F + Send) {
    let Some(lab) = lab() else { return };
    static TURN: Mutex<()> = Mutex::new(());
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            // A test that failed has left nothing that the next one does not clear away.
            let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            lab.enter_network().unwrap();
            let service = Service { lab, began: SystemTime::now(), _turn: turn };
            service.clear().unwrap();
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
            runtime.block_on(test(service));
        });
        if let Err(panicked) = run.join() {
            panic::resume_unwind(panicked);
        }
    });
}

/// It ends with this process: see the kit.
fn lab() -> Option<&'static Lab> {
    static LAB: OnceLock<Result<Lab>> = OnceLock::new();
    let lab = LAB.get_or_init(|| {
        let lab = Lab::start().and_then(|lab| install(&lab).map(|()| lab));
        // Past the capture of the tests' output: whoever reads the run is to know.
        let mut out = std::io::stderr();
        let _ = match lab.as_ref().map_err(Clone::clone).and_then(Lab::version) {
            Ok(version) => writeln!(out, "the manager is the real {version}, in namespaces"),
            Err(trouble) => {
                writeln!(out, "no real systemd here ({trouble}): the tests alone play the manager")
            }
        };
        lab
    });
    match lab {
        Ok(lab) => Some(lab),
        Err(trouble) if std::env::var("GLANEUR_LAB").is_ok_and(|value| value == "required") => {
            panic!("GLANEUR_LAB=required: {trouble}")
        }
        Err(_) => None,
    }
}

/// Does what the README's section "Install" says, with the program under test.
fn install(lab: &Lab) -> Result<()> {
    let readme = include_str!("../../../README.md");
    let section = readme.split("\n## Install\n").nth(1).expect("the README has a section Install");
    let block = section.split("```\n").nth(1).expect("it begins with commands");
    let mut copied = 0;
    for line in block.lines().filter_map(|line| line.strip_prefix("install ")) {
        let mut words: Vec<&str> = line.split(' ').filter(|word| *word != "-D" && *word != "-m").collect();
        let (mode, to) = (u32::from_str_radix(words.remove(0), 8).expect("a mode"), words.pop().unwrap());
        for from in words {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(from);
            let name = source.file_name().unwrap().to_string_lossy().into_owned();
            let to = if to.ends_with('/') { format!("{to}{name}") } else { to.to_owned() };
            lab.copy(if name == "glaneur" { Path::new(BINARY) } else { &source }, &to, mode)?;
            copied += 1;
        }
    }
    assert_eq!(copied, 6, "the program, glaneurctl, the configuration, two units, the catalogue");
    lab.run(&["journalctl", "--update-catalog"])?.ok()?;
    lab.run(&["systemctl", "daemon-reload"])?.ok().map(drop)
}

impl Service {
    fn clear(&self) -> Result<()> {
        self.systemctl(&["kill", "--signal=KILL", "glaneur.service"]);
        self.systemctl(&["stop", "glaneur.socket", "glaneur.service"]);
        for path in [DROP_INS, "/etc/glaneur", "/var/lib/private/glaneur"] {
            self.lab.remove(path)?;
        }
        install(self.lab)?;
        self.systemctl(&["reset-failed"]);
        Ok(())
    }

    pub fn systemctl(&self, arguments: &[&str]) -> Ran {
        self.lab.run(&[&["systemctl"], arguments].concat()).unwrap()
    }

    /// `systemctl VERB glaneur`, which must succeed.
    #[track_caller]
    pub fn does(&self, verb: &str) {
        let ran = self.systemctl(&[verb, "glaneur"]);
        assert_eq!(ran.code, 0, "systemctl {verb}: {ran}\n{}", self.journal());
    }

    /// Makes this the whole configuration.
    pub fn configure(&self, config: impl Into<String>) {
        self.lab.write("/etc/glaneur/config.toml", config.into(), 0o644).unwrap();
    }

    /// Makes the stage's configuration the service's: the ledger where the unit keeps it.
    pub fn configure_for(&self, stage: &Stage) {
        self.configure(for_service(stage.config.clone()));
    }

    /// `systemctl edit`: lines for the section of the service.
    pub fn drop_in(&self, name: &str, lines: &str) {
        self.lab.write(&format!("{DROP_INS}/{name}.conf"), format!("[Service]\n{lines}\n"), 0o644).unwrap();
        self.reread();
    }

    pub fn take_back(&self, name: &str) {
        self.lab.remove(&format!("{DROP_INS}/{name}.conf")).unwrap();
        self.reread();
    }

    fn reread(&self) {
        self.lab.run(&["systemctl", "daemon-reload"]).unwrap().ok().unwrap();
    }

    /// One property of the service.
    pub fn show(&self, property: &str) -> String {
        self.systemctl(&["show", "--value", "--property", property, "glaneur.service"]).stdout
    }

    /// `active`, `failed`, `inactive`, … of the service and of its socket.
    pub fn states(&self) -> [String; 2] {
        UNITS.map(|unit| self.systemctl(&["is-active", unit]).stdout)
    }

    /// Waits until a property of the service is as wanted.
    pub async fn wait_until(&self, property: &str, wanted: impl Fn(&str) -> bool) -> String {
        let begin = Instant::now();
        loop {
            let value = self.show(property);
            if wanted(&value) {
                return value;
            }
            assert!(begin.elapsed() < LONG, "{property} stays {value:?}\n{}", self.journal());
            tokio::time::sleep(POLL).await;
        }
    }

    pub fn signal(&self, signal: &str) {
        let ran = self.systemctl(&["kill", "--kill-who=main", "--signal", signal, "glaneur.service"]);
        assert_eq!(ran.code, 0, "{ran}");
    }

    /// What the journal has of the service since the test began.
    pub fn journal(&self) -> String {
        let units = ["-u", UNITS[0], "-u", UNITS[1]];
        let _ = self.lab.run(&["journalctl", "--sync"]);
        self.lab
            .run(&[&["journalctl", "-q", "-o", "cat", &self.since()], &units[..]].concat())
            .unwrap()
            .stdout
    }

    /// As [`Service::journal`], with what the catalogue says of each event.
    pub fn explained(&self) -> String {
        let _ = self.lab.run(&["journalctl", "--sync"]);
        self.lab.run(&["journalctl", "-q", "-x", "-u", UNITS[0], &self.since()]).unwrap().stdout
    }

    fn since(&self) -> String {
        let began = self.began.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        format!("--since=@{began:.6}")
    }

    /// How many lines of the journal say this.
    pub fn said(&self, what: &str) -> usize {
        self.journal().lines().filter(|line| line.contains(what)).count()
    }

    pub async fn submit(&self, body: &Value) -> Result<(u16, Value)> {
        let answer = client::post_json(PORT.into(), "/api/scrape", body.to_string()).await?;
        Ok((answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap_or_default()))
    }

    pub async fn get(&self, path: &str) -> Result<(u16, Value)> {
        let answer = client::get(PORT.into(), path).await?;
        Ok((answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap_or_default()))
    }
}

pub fn for_service(config: Config) -> Config {
    config.set("ledger", "url", "sqlite:/var/lib/glaneur/glaneur.db")
}
