//! The real daemon as a child process: started as a user would, read by its log, killed at any moment.
//!
//! It runs in a directory of its own with a generated `config.toml` (the ledger is there too) on a port the system
//! picks. Its standard error is shown only when the test fails, and dropping it kills it, by its own id.

pub mod config;
pub mod proc;

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Response;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::oneshot,
    task::JoinHandle,
};

use crate::{Because, Manager, Result, Trouble, client, records::Records};
pub use config::Config;

/// Longer than any start on a loaded machine: it only ends a test that would wait for ever.
const START_MAX: Duration = Duration::from_secs(30);

/// As [`START_MAX`], for events.
const EVENT_MAX: Duration = Duration::from_secs(60);

/// As [`START_MAX`], for the end of a process that was told to end (its drain time is 20 s).
const EXIT_MAX: Duration = Duration::from_secs(60);

/// How many lines of standard error are kept to be shown.
const TAIL_LINES_MAX: usize = 200;

/// What the daemon says on standard output once it listens.
const LISTENING: &str = "listening on http://";

/// One line of the daemon's log.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// Which start of the daemon wrote it, from 1.
    pub run: u32,
    /// When it was read.
    pub at: Instant,
    /// The line, with what the formatter may have put under `fields` on the top level; a string if it was no JSON
    /// object; `null` marks the end of the run's standard error.
    pub json: Value,
}

impl LogLine {
    /// The name of its event.
    pub fn event(&self) -> Option<&str> {
        self.json.get("event")?.as_str()
    }
}

/// How a daemon is to be started.
#[derive(Debug)]
pub struct Setup {
    binary: PathBuf,
    config: String,
    arguments: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    handed: Option<Handed>,
    before: Vec<OsString>,
}

/// A socket that the daemon gets as its descriptors 3 and following.
#[derive(Debug)]
struct Handed {
    socket: OwnedFd,
    times: u32,
}

impl Setup {
    /// The text of its `config.toml`; [`config::DIR`] in it stands for its directory.
    pub fn config(mut self, config: impl Into<String>) -> Self {
        self.config = config.into();
        self
    }

    /// Another argument, before `--config FILE serve`.
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Another environment variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Lets it tell this manager what it does.
    pub fn under(mut self, manager: &Manager) -> Self {
        self.env.extend(manager.env());
        self
    }

    /// Hands a socket over as a manager does, as often as `times` says; it stays open here.
    pub fn hand_over(mut self, socket: impl Into<OwnedFd>, times: u32) -> Self {
        self.handed = Some(Handed { socket: socket.into(), times });
        self
    }

    /// Has these words before the binary: a program that becomes it, as `nsenter … --` does.
    pub fn behind(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.before = words.into_iter().map(Into::into).collect();
        self
    }

    /// What starts the binary. A socket to be handed over is its standard input, from where a shell moves it: only there
    /// the process id that `LISTEN_PID` must name is known.
    fn command(&self) -> Result<Command> {
        let Some(Handed { socket, times }) = &self.handed else {
            let mut words = self.before.iter().map(OsString::as_os_str).chain([self.binary.as_os_str()]);
            let mut command = Command::new(words.next().unwrap_or_default());
            command.args(words);
            command.stdin(Stdio::null());
            return Ok(command);
        };
        let socket = socket.try_clone().because("hand a socket over")?;
        let places: String = (3..3 + times).map(|place| format!(" {place}<&0")).collect();
        let script =
            format!("export LISTEN_PID=$$ LISTEN_FDS={times}; exec \"$0\" \"$@\"{places} 0</dev/null");
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script).arg(&self.binary).stdin(Stdio::from(socket));
        Ok(command)
    }

    /// Starts it, and waits until it says where it listens.
    pub async fn start(self) -> Result<Daemon> {
        let dir = tempfile::Builder::new().prefix("glaneur-").tempdir().because("make a directory")?;
        let mut daemon = Daemon {
            setup: self,
            dir,
            run: 0,
            child: None,
            api: None,
            log: Records::default(),
            tail: Arc::default(),
            readers: Vec::new(),
        };
        daemon.write_config()?;
        daemon.launch().await?;
        Ok(daemon)
    }
}

/// The daemon.
#[derive(Debug)]
pub struct Daemon {
    setup: Setup,
    dir: TempDir,
    run: u32,
    child: Option<Child>,
    api: Option<Api>,
    log: Records<LogLine>,
    tail: Arc<Mutex<VecDeque<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Daemon {
    /// A daemon to be set up; tests pass `env!("CARGO_BIN_EXE_glaneur")`.
    pub fn builder(binary: impl Into<PathBuf>) -> Setup {
        Setup {
            binary: binary.into(),
            config: String::new(),
            arguments: Vec::new(),
            env: Vec::new(),
            handed: None,
            before: Vec::new(),
        }
    }

    /// Starts a daemon with this configuration.
    pub async fn start(binary: impl Into<PathBuf>, config: impl Into<String>) -> Result<Self> {
        Self::builder(binary).config(config).start().await
    }

    /// Its directory, which is also its working directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.dir().join("config.toml")
    }

    /// Its ledger, where [`Config`] puts it.
    pub fn ledger_path(&self) -> PathBuf {
        self.dir().join("ledger.sqlite")
    }

    /// Changes the text of the configuration. The daemon learns of it by [`Daemon::hang_up`] or [`Daemon::restart`].
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut String)) -> Result<()> {
        change(&mut self.setup.config);
        self.write_config()
    }

    /// Sets an environment variable for the next start.
    pub fn set_env(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        let name = name.into();
        self.setup.env.retain(|(other, _)| *other != name);
        self.setup.env.push((name, value.into()));
    }

    fn write_config(&self) -> Result<()> {
        let path = self.config_path();
        let text = self.setup.config.replace(config::DIR, &self.dir().to_string_lossy());
        fs::write(&path, text).because(format_args!("write {}", path.display()))
    }

    async fn launch(&mut self) -> Result<()> {
        self.run += 1;
        self.api = None;
        let binary = &self.setup.binary;
        let mut child = self
            .setup
            .command()?
            .args(&self.setup.arguments)
            .arg("--config")
            .arg(self.config_path())
            .arg("serve")
            .current_dir(self.dir())
            .env_remove("GLANEUR_CONFIG")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .envs(self.setup.env.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .because(format_args!("start {}", binary.display()))?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        self.child = Some(child);
        let (told, listening) = oneshot::channel();
        self.readers = vec![
            tokio::spawn(read_stdout(stdout, told)),
            tokio::spawn(read_log(stderr, self.run, self.log.clone(), Arc::clone(&self.tail))),
        ];
        match tokio::time::timeout(START_MAX, listening).await {
            Ok(Ok(address)) => {
                self.api = Some(Api { address });
                Ok(())
            }
            Ok(Err(_)) => {
                let code = self.wait_exit().await?;
                Err(self.failed_start(&format!("ended with code {code} before it listened")))
            }
            Err(_) => Err(self.failed_start(&format!("did not say where it listens within {START_MAX:?}"))),
        }
    }

    fn failed_start(&self, what: &str) -> Trouble {
        Trouble::new(format!("the daemon {what}; its standard error:\n{}", self.stderr_tail()))
    }

    /// The last lines of its standard error, of all runs.
    pub fn stderr_tail(&self) -> String {
        let tail = self.tail.lock().expect("no panic under this lock");
        tail.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Its API. Panics if it was never started well.
    pub fn api(&self) -> Api {
        self.api.expect("the daemon has not been started well")
    }

    /// `POST /api/scrape` with this body: status and answer.
    pub async fn submit(&self, body: &Value) -> Result<(u16, Value)> {
        self.api().submit(body).await
    }

    /// `GET path`: status and answer.
    pub async fn get(&self, path: &str) -> Result<(u16, Value)> {
        self.api().get(path).await
    }

    /// `POST /api/scrape` with these bytes as `application/json`.
    pub async fn post_raw(&self, body: impl Into<Bytes>) -> Result<Response<Bytes>> {
        self.api().post_raw(body).await
    }

    /// The log of all runs, for looking and waiting.
    pub fn log(&self) -> &Records<LogLine> {
        &self.log
    }

    /// Which start this is, from 1.
    pub fn run(&self) -> u32 {
        self.run
    }

    /// The events of this name in this run.
    pub fn events(&self, name: &str) -> Vec<Value> {
        self.log.with(|log| matching(log, name, Some(self.run)))
    }

    /// The events of this name in all runs.
    pub fn events_of_all_runs(&self, name: &str) -> Vec<Value> {
        self.log.with(|log| matching(log, name, None))
    }

    /// Waits for an event of this run, past or to come. It fails at once if the daemon ends without it.
    pub async fn wait_for_event(
        &self,
        name: &str,
        mut fits: impl FnMut(&Value) -> bool + Send,
    ) -> Result<Value> {
        let run = self.run;
        let find = |log: &[LogLine]| {
            let ours = || log.iter().filter(|line| line.run == run);
            match ours().find(|line| line.event() == Some(name) && fits(&line.json)) {
                Some(line) => Some(Some(line.json.clone())),
                None => ours().any(|line| line.json.is_null()).then_some(None),
            }
        };
        let seeing = format!("see the event {name} in the daemon's log");
        let found = self.log.wait_for(find, EVENT_MAX).await.because(&seeing)?;
        found.ok_or_else(|| Trouble::new(format!("could not {seeing}: it ended")))
    }

    /// Kills it with SIGKILL and waits until it is gone and its log is read to the end.
    pub async fn kill_9(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_exit().await.map(drop)
    }

    /// Sends SIGTERM.
    pub fn term(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends SIGHUP: read the configuration again.
    pub fn hang_up(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// Changes the configuration to this text, sends SIGHUP, and waits for what the daemon says of it: the event
    /// `reloaded`, `reload_refused` or `reload_ignored`. A right one becomes that of the next start as well.
    pub async fn reload(&mut self, config: impl Into<String>) -> Result<Value> {
        let before = self.log.len();
        let old = std::mem::replace(&mut self.setup.config, config.into());
        self.write_config()?;
        self.hang_up()?;
        let find = |log: &[LogLine]| {
            let said = |line: &&LogLine| line.event().is_some_and(|event| event.starts_with("reload"));
            // What needs a restart is said first.
            let last = |line: &&LogLine| line.event() != Some("reload_needs_restart");
            log[before..].iter().filter(said).find(last).map(|line| line.json.clone())
        };
        let event = self.log.wait_for(find, EVENT_MAX).await.because("see what became of a reload")?;
        if event["event"] == "reload_refused" {
            self.setup.config = old;
        }
        Ok(event)
    }

    /// Sends any signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(self.pid_raw()?, signal)
            .because(format_args!("send {signal:?} to the daemon"))
    }

    /// Waits until it ends by itself, and until its log is read to the end. A death by signal n is 128 + n.
    pub async fn wait_exit(&mut self) -> Result<i32> {
        let child = self.child.as_mut().ok_or_else(not_running)?;
        let status = tokio::time::timeout(EXIT_MAX, child.wait())
            .await
            .because("see the daemon end")?
            .because("wait for the daemon")?;
        self.child = None;
        for reader in self.readers.drain(..) {
            // It ends with the pipe; a panic in it is no news of the daemon.
            let _ = tokio::time::timeout(EXIT_MAX, reader).await;
        }
        Ok(code(status))
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Starts it again in the same directory with the same configuration; kills it first if it still runs.
    pub async fn restart(&mut self) -> Result<()> {
        if self.child.is_some() {
            if self.is_running() {
                self.signal(Signal::KILL)?;
            }
            self.wait_exit().await?;
        }
        self.launch().await
    }

    /// Its process id.
    pub fn pid(&self) -> Result<u32> {
        self.child.as_ref().and_then(Child::id).ok_or_else(not_running)
    }

    fn pid_raw(&self) -> Result<Pid> {
        let pid = i32::try_from(self.pid()?).because("read a process id")?;
        Pid::from_raw(pid).ok_or_else(not_running)
    }

    /// Its resident memory.
    pub fn rss_bytes(&self) -> Result<u64> {
        proc::rss_bytes(self.pid()?)
    }

    /// The CPU time of this run.
    pub fn cpu_time(&self) -> Result<Duration> {
        proc::cpu_time(self.pid()?)
    }

    /// Its TCP sockets.
    pub fn sockets(&self) -> Result<Vec<proc::Socket>> {
        proc::sockets(self.pid()?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It fails if the daemon has ended meanwhile. Tokio reaps it.
            let _ = child.start_kill();
        }
        if std::thread::panicking() {
            eprintln!("--- the daemon's standard error, last lines ---\n{}---", self.stderr_tail());
        }
    }
}

/// The daemon's HTTP API, to be copied into tasks.
#[derive(Clone, Copy, Debug)]
pub struct Api {
    /// Where it listens.
    pub address: SocketAddr,
}

impl Api {
    /// `POST /api/scrape` with this body: status and answer.
    pub async fn submit(&self, body: &Value) -> Result<(u16, Value)> {
        Ok(parsed(&self.post_raw(body.to_string()).await?))
    }

    /// `GET path`: status and answer.
    pub async fn get(&self, path: &str) -> Result<(u16, Value)> {
        Ok(parsed(&client::get(self.address, path).await?))
    }

    /// `POST path` with a JSON body: status and answer.
    pub async fn post(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        Ok(parsed(&client::post_json(self.address, path, body.to_string()).await?))
    }

    /// `POST /api/scrape` with these bytes as `application/json`.
    pub async fn post_raw(&self, body: impl Into<Bytes>) -> Result<Response<Bytes>> {
        client::post_json(self.address, "/api/scrape", body).await
    }
}

/// Status and JSON of an answer; what is no JSON becomes a string.
pub fn parsed(answer: &Response<Bytes>) -> (u16, Value) {
    let text = || Value::from(String::from_utf8_lossy(answer.body()).into_owned());
    (answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap_or_else(|_| text()))
}

fn matching(log: &[LogLine], name: &str, run: Option<u32>) -> Vec<Value> {
    log.iter()
        .filter(|line| run.is_none_or(|run| run == line.run) && line.event() == Some(name))
        .map(|line| line.json.clone())
        .collect()
}

fn not_running() -> Trouble {
    Trouble::new("the daemon does not run")
}

fn code(status: ExitStatus) -> i32 {
    // One of both is there once a process has ended.
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or_default()
}

/// Tells the address of the first line that has one, and reads on so that the pipe never fills.
async fn read_stdout(stdout: impl AsyncRead + Unpin, told: oneshot::Sender<SocketAddr>) {
    let mut told = Some(told);
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let address = line.strip_prefix(LISTENING).and_then(|address| address.trim().parse().ok());
        if let (Some(address), Some(told)) = (address, told.take_if(|_| address.is_some())) {
            let _ = told.send(address);
        }
    }
}

async fn read_log(
    stderr: impl AsyncRead + Unpin,
    run: u32,
    log: Records<LogLine>,
    tail: Arc<Mutex<VecDeque<String>>>,
) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    while matches!(stderr.read_until(b'\n', &mut line).await, Ok(1..)) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        log.push(LogLine { run, at: Instant::now(), json: flattened(&text) });
        let mut tail = tail.lock().expect("no panic under this lock");
        if tail.len() == TAIL_LINES_MAX {
            tail.pop_front();
        }
        tail.push_back(text);
    }
    log.push(LogLine { run, at: Instant::now(), json: Value::Null });
}

/// A log line as JSON, with what is under `fields` moved to the top.
fn flattened(text: &str) -> Value {
    let Ok(Value::Object(mut line)) = serde_json::from_str(text) else {
        return Value::from(text);
    };
    if let Some(Value::Object(fields)) = line.remove("fields") {
        for (name, value) in fields {
            line.entry(name).or_insert(value);
        }
    }
    Value::Object(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Receiver, receiver::Answer};

    /// A shell script in the daemon's place, with a receiver as its API.
    fn script(receiver: &Receiver, script: &str) -> Setup {
        let says = format!("echo listening on http://{}", receiver.address());
        Daemon::builder("/bin/sh")
            .argument("-c")
            .argument(format!(r#"echo "{{\"event\":\"started\",\"config\":\"$1\"}}" >&2; {says}; {script}"#))
            .config(Config::new())
    }

    #[tokio::test]
    async fn a_daemon_is_read_by_its_log_and_its_exit_code() {
        let receiver = Receiver::start().unwrap();
        receiver.behave(Answer::Status(202, r#"{"success":true}"#.into()));
        let mut daemon = script(&receiver, "echo '{\"fields\":{\"event\":\"ended\",\"n\":7}}' >&2; exit 3")
            .start()
            .await
            .unwrap();
        assert_eq!(daemon.submit(&Value::Null).await.unwrap().0, 202);
        assert_eq!(receiver.seen()[0].path, "/api/scrape");
        let ended = daemon.wait_for_event("ended", |json| json["n"] == 7).await.unwrap();
        assert_eq!(ended["n"], 7);
        assert_eq!(daemon.wait_exit().await.unwrap(), 3);
        let late = daemon.wait_for_event("never", |_| true).await.unwrap_err();
        assert!(late.to_string().contains("the event never"), "{late}");
        let text = fs::read_to_string(daemon.config_path()).unwrap();
        assert!(text.contains(&format!("sqlite:{}/ledger.sqlite", daemon.dir().display())), "{text}");
    }

    #[tokio::test]
    async fn a_killed_daemon_starts_again_in_its_directory() {
        let receiver = Receiver::start().unwrap();
        // `exec`, so that the process that is killed is the only one that holds the pipes.
        let mut daemon = script(&receiver, "exec sleep 1000").start().await.unwrap();
        assert!(daemon.is_running());
        assert!(daemon.sockets().unwrap().is_empty());
        assert!(daemon.rss_bytes().unwrap() > 0);
        daemon.kill_9().await.unwrap();
        daemon.reconfigure(|toml| toml.push_str("# changed\n")).unwrap();
        daemon.restart().await.unwrap();
        daemon.wait_for_event("started", |_| true).await.unwrap();
        assert_eq!((daemon.run(), daemon.events("started").len()), (2, 1));
        assert_eq!(daemon.events_of_all_runs("started").len(), 2);
        daemon.term().unwrap();
        assert_eq!(daemon.wait_exit().await.unwrap(), 128 + 15);
    }

    #[tokio::test]
    async fn a_failed_start_shows_why() {
        let setup = Daemon::builder("/bin/sh").argument("-c").argument("echo no product_url >&2; exit 78");
        let error = setup.start().await.unwrap_err().to_string();
        assert!(error.contains("code 78") && error.contains("no product_url"), "{error}");
    }
}
