//! The service manager above the daemon, played by the test: hears what the daemon tells systemd.

use std::{
    ffi::OsString,
    sync::Arc,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{net::UnixDatagram, task::JoinHandle};

use crate::{Because, Result, records::Records};

/// Only ends a test that would wait for ever.
const NOTE_MAX: Duration = Duration::from_secs(60);

/// One note, such as `READY=1`.
#[derive(Clone, Debug)]
pub struct Said {
    /// When it was read.
    pub at: Instant,
    /// The whole note.
    pub note: String,
}

impl Said {
    /// What it says of `name`, if it is about that.
    pub fn of(&self, name: &str) -> Option<&str> {
        self.note.strip_prefix(name)?.strip_prefix('=')
    }
}

/// A manager that listens for as long as it lives, to all runs of its daemon.
#[derive(Debug)]
pub struct Manager {
    dir: TempDir,
    watchdog: Option<Duration>,
    said: Records<Said>,
    listening: JoinHandle<()>,
}

impl Manager {
    /// One that wants no sign of life.
    pub fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("manager-").tempdir().because("make a directory")?;
        let socket = UnixDatagram::bind(dir.path().join("notify")).because("make the manager's socket")?;
        let said = Records::default();
        let listening = tokio::spawn(listen(Arc::new(socket), said.clone()));
        Ok(Self { dir, watchdog: None, said, listening })
    }

    /// Says to the daemon that it will be ended after this long without a sign of life. It is not really ended.
    pub fn watchdog(mut self, within: Duration) -> Self {
        self.watchdog = Some(within);
        self
    }

    /// What the daemon finds in its environment.
    pub fn env(&self) -> Vec<(OsString, OsString)> {
        let mut env = vec![("NOTIFY_SOCKET".into(), self.dir.path().join("notify").into_os_string())];
        if let Some(within) = self.watchdog {
            env.push(("WATCHDOG_USEC".into(), within.as_micros().to_string().into()));
        }
        env
    }

    /// Every note so far, for looking and waiting.
    pub fn said(&self) -> &Records<Said> {
        &self.said
    }

    /// What was said of `name` so far.
    pub fn all_of(&self, name: &str) -> Vec<String> {
        self.said.with(|all| all.iter().filter_map(|said| said.of(name)).map(ToOwned::to_owned).collect())
    }

    /// Waits for the first note about `name` that fits, past or to come, and gives what it says.
    pub async fn wait_for(&self, name: &str, mut fits: impl FnMut(&str) -> bool + Send) -> Result<String> {
        let find = |all: &[Said]| {
            let about = all.iter().filter_map(|said| said.of(name));
            about.into_iter().find(|what| fits(what)).map(ToOwned::to_owned)
        };
        self.said.wait_for(find, NOTE_MAX).await.because(format_args!("hear {name} from the daemon"))
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(socket: Arc<UnixDatagram>, said: Records<Said>) {
    // As much as systemd takes.
    let mut buffer = [0; 4096];
    while let Ok(length) = socket.recv(&mut buffer).await {
        let at = Instant::now();
        for note in String::from_utf8_lossy(&buffer[..length]).lines() {
            said.push(Said { at, note: note.to_owned() });
        }
    }
}
