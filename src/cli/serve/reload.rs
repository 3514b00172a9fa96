//! SIGHUP: the changed configuration as a whole, or the old one and why.
//!
//! ```text
//! SIGHUP ──▶ read, check, read secrets ──▶ put in ──▶ reloaded
//!                    └── any mistake ─────▶ reload_refused: nothing has changed
//! ```
//!
//! One reload at a time. Signals that come meanwhile are one more reload after it, however many they were, so the file as
//! it was at the last signal is what runs in the end. A drain takes no reload: who drains starts nothing new.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::watch;

use super::assemble::{self, Inlets};
use super::listen;
use crate::cli::find::{self, Loaded, Refusal};
use crate::cli::secrets::{self, CREDENTIALS};
use crate::config::{self, Changes};
use crate::exit::Exit;
use crate::telemetry::{Event, Level};

/// Problems told in one event, so that it fits a line of the journal; `glaneur check` tells all.
const PROBLEMS_TOLD_MAX: usize = 50;

/// What runs now, and where a new one is put in.
#[derive(Debug)]
pub struct Reloader {
    pub running: Loaded,
    /// Where the daemon listens, which no reload changes.
    pub address: SocketAddr,
    pub inlets: Inlets,
    pub level: Level,
}

/// The end that the drain holds.
#[derive(Debug)]
pub struct Reloads {
    closed: watch::Sender<bool>,
    drain: watch::Receiver<Duration>,
}

impl Reloads {
    /// From now on SIGHUP changes nothing. Gives the time that the configuration of now leaves for the drain.
    pub fn close(&self) -> Duration {
        self.closed.send_replace(true);
        *self.drain.borrow()
    }
}

impl Reloader {
    /// Reloads at each of `hangups`, until [`Reloads::close`].
    pub fn listen(mut self, mut hangups: Signal) -> Reloads {
        let closed = watch::Sender::new(false);
        let (drain_tx, drain) = watch::channel(self.running.config.shutdown.drain);
        let reloads = Reloads { closed, drain };
        let closed = reloads.closed.subscribe();
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                let loaded = load(self.running.path.clone()).await;
                match loaded.and_then(|loaded| self.may_run_here(loaded)) {
                    _ if *closed.borrow() => Event::ReloadIgnored {}.emit(),
                    Ok(loaded) => self.take(loaded, &drain_tx).await,
                    Err(refusal) => self.refuse(&refusal),
                }
            }
        });
        reloads
    }

    /// The file may be right for the listener that it names, and wrong for the one that there is.
    fn may_run_here(&self, loaded: Loaded) -> Result<Loaded, Refusal> {
        match listen::may_listen_at(self.address, &loaded.config.server) {
            Ok(()) => Ok(loaded),
            Err(refusal) => {
                let problem = format!("{}: {refusal}", loaded.path.display());
                Err(Refusal { problems: vec![problem], exit: Exit::Config })
            }
        }
    }

    async fn take(&mut self, loaded: Loaded, drain: &watch::Sender<Duration>) {
        let Loaded { path, config: new, secrets } = loaded;
        let old = &self.running.config;
        let direct_before = assemble::direct_ways(old);
        let (old_level, (config, mut changes)) = (old.log.level, config::take(old, new));
        for key in secrets.changed(&self.running.secrets) {
            if !changes.applied.iter().any(|applied| applied == key) {
                changes.applied.push(key.into());
            }
        }
        self.inlets.put(&config, &secrets).await;
        drain.send_replace(config.shutdown.drain);
        // What is said now is said at the more talkative of both levels.
        self.level.set(old_level.max(config.log.level));
        self.running = Loaded { path, config, secrets };
        self.tell(&changes, &direct_before);
        self.level.set(self.running.config.log.level);
    }

    fn tell(&self, changes: &Changes, direct_before: &[String]) {
        let Loaded { path, config, .. } = &self.running;
        if !changes.needs_restart.is_empty() {
            Event::ReloadNeedsRestart { keys: &changes.needs_restart.join(", ") }.emit();
        }
        let directory = std::env::var_os(CREDENTIALS).map(PathBuf::from);
        let kept = secrets::credentials(config, directory.as_deref());
        if !kept.is_empty() {
            Event::CredentialsKept { keys: &kept.join(", ") }.emit();
        }
        for what in assemble::direct_ways(config).iter().filter(|what| !direct_before.contains(what)) {
            Event::DirectAnnounced { what }.emit();
        }
        let shops = config.enabled_sites().len();
        if shops == 0 {
            Event::NoShopEnabled {}.emit();
        }
        let (config, changed) = (path.display().to_string(), changes.applied.join(", "));
        Event::Reloaded { config: &config, changed: &changed, shops: shops as u64 }.emit();
    }

    fn refuse(&self, refusal: &Refusal) {
        let config = self.running.path.display().to_string();
        let detail = told(&refusal.problems);
        Event::ReloadRefused { config: &config, problems: refusal.problems.len() as u64, detail: &detail }
            .emit();
    }
}

/// On a thread where a slow disk holds up nobody.
async fn load(path: PathBuf) -> Result<Loaded, Refusal> {
    let name = path.display().to_string();
    let loaded = tokio::task::spawn_blocking(move || find::load_at(&path)).await;
    let failed = |error| Refusal { problems: vec![format!("{name}: {error}")], exit: Exit::Config };
    loaded.map_err(failed)?
}

fn told(problems: &[String]) -> String {
    let mut told = problems[..problems.len().min(PROBLEMS_TOLD_MAX)].join("; ");
    if let more @ 1.. = problems.len().saturating_sub(PROBLEMS_TOLD_MAX) {
        told.push_str(&format!("; and {more} more"));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_problems_fit_one_event() {
        let problems: Vec<String> = (1..=52).map(|line| format!("c.toml:{line}:1: wrong")).collect();
        assert_eq!(told(&problems[..2]), "c.toml:1:1: wrong; c.toml:2:1: wrong");
        assert!(told(&problems).ends_with("c.toml:50:1: wrong; and 2 more"));
    }
}
