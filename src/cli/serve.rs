//! `glaneur serve`: configuration → log → ledger → listener → supervision tree → wait → drain.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ractor::rpc::CallResult;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{complain, find};
use crate::config::Config;
use crate::descriptors;
use crate::exit::Exit;
use crate::ledger::audit;
use crate::ledger::sqlite::{self, OpenError};
use crate::model::Outcome;
use crate::scraper::control::Control;
use crate::supervisor::{self, DrainPlan, Escalation};
use crate::systemd::{Note, Notifier, opening, sockets};
use crate::telemetry::{self, Event};

mod assemble;
mod listen;
mod manager;
mod reload;

/// The pause before an end after which another start may go better: under a manager that starts it again at once, a disk
/// without room would be filled with the log of that, several starts a second.
const REST_BEFORE_NEXT: Duration = Duration::from_secs(2);

pub fn run(config: Option<&Path>) -> Exit {
    let notifier = Notifier::from_env();
    let exit = start(config, notifier.clone());
    if notifier.has_manager() && matches!(exit, Exit::Listen | Exit::File) {
        rest();
    }
    exit
}

#[expect(clippy::disallowed_methods, reason = "nothing runs any more")]
fn rest() {
    std::thread::sleep(REST_BEFORE_NEXT);
}

fn start(config: Option<&Path>, notifier: Notifier) -> Exit {
    let loaded = match find::load(config) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let level = telemetry::init(&loaded.config.log);
    // Before there are threads: it changes the environment.
    let handed = match sockets::take_listener() {
        Ok(handed) => handed,
        // A mistake in the units, which no restart mends.
        Err(error) => return complain_and(Exit::Config, error),
    };
    descriptors::raise_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain_and(Exit::Escalated, format_args!("cannot start threads: {error}")),
    };
    let exit = runtime.block_on(serve(loaded, level, handed, notifier)).unwrap_or_else(|exit| exit);
    // Threads that still parse or read are not waited for: what counts is on disk.
    runtime.shutdown_timeout(Duration::ZERO);
    exit
}

async fn serve(
    loaded: find::Loaded,
    level: telemetry::Level,
    handed: Option<std::net::TcpListener>,
    notifier: Notifier,
) -> Result<Exit, Exit> {
    let find::Loaded { path, config, secrets } = &loaded;
    let (listener, address) = listen::listener(handed, &config.server).await?;
    let ledger_path = config.ledger.path.clone();
    let opened = open_ledger(&notifier, config).await?;
    tell_start(config, path, address, opened.report.epoch);
    if opened.report.charged > 0 {
        let (products, crashed) = (opened.report.charged.into(), opened.report.crashed.into());
        Event::DeathsCharged { products, crashed }.emit();
    }
    for product in &opened.crashed {
        product.tell(&Outcome::crashed("")); // Of a reason the log tells only the kind.
        if product.batch_over {
            Event::BatchEnded { batch_id: product.batch_id.as_str() }.emit();
        }
    }
    if opened.report.released > 0 {
        Event::ClaimsReleased { products: opened.report.released.into() }.emit();
    }
    // Before the tree: a signal from now on drains.
    let mut signals = Signals::new()?;
    let hangups = Signals::listen(SignalKind::hangup())?;
    let (parts, ledger, inlets) = assemble::parts(config, secrets, opened, listener)?;
    let control = inlets.control().cloned();
    let (drain_tx, draining) = watch::channel(None);
    let manager = manager::Manager::new(notifier, &ledger, &parts, draining);
    let (escalations_tx, mut escalations) = mpsc::unbounded_channel();
    let (root, mut joined) = supervisor::start(parts, escalations_tx).await.map_err(|error| {
        complain_and(Exit::Escalated, format_args!("the supervision tree did not start: {error}"))
    })?;
    say_address(address);
    manager.keep_telling(&root);
    let reloads = reload::Reloader { running: loaded, address, inlets, level }.listen(hangups);
    tokio::spawn(audit::keep_counting(ledger.reader().clone()));

    let name = tokio::select! {
        name = signals.next() => name,
        escalation = escalations.recv() => {
            release(control.as_ref()).await;
            return Ok(escalate(&ledger_path, escalation));
        }
        _ = &mut joined => {
            release(control.as_ref()).await;
            return Ok(escalate(&ledger_path, None));
        }
    };
    let started = Instant::now();
    let drain = reloads.close();
    Event::DrainStarted { signal: name, seconds: drain.as_secs() }.emit();
    manager.tell_stopping(started + drain);
    drain_tx.send_replace(Some(started + drain));
    let work = async {
        // The coming death is nobody's fault: said in the ledger, or beside it where there is no room.
        if ledger.write(|store| store.mark_stopping()).await.is_err() {
            mark_beside(&ledger_path);
        }
        let plan = DrainPlan::new(started, drain);
        root.call(|reply| supervisor::Msg::Drain { plan, reply }, None).await
    };
    let exit = tokio::select! {
        drained = work => {
            if matches!(drained, Ok(CallResult::Success(()))) {
                release(control.as_ref()).await;
                Event::DrainEnded { duration_ms: started.elapsed().as_millis() as u64 }.emit();
                return Ok(Exit::Ok);
            }
            escalate(&ledger_path, None) // The root went down in the middle of it.
        }
        _ = signals.next() => {
            Event::DrainCut {}.emit();
            // The ledger may not have been told yet that this stop was asked for; the file beside it says so at once.
            mark_beside(&ledger_path);
            Exit::Cut
        }
        // A part that failed in the drain ends it; the next start goes on from the ledger.
        escalation = escalations.recv() => escalate(&ledger_path, escalation),
    };
    release(control.as_ref()).await;
    Ok(exit)
}

/// Others who use this tor must not wait for a process that is gone.
async fn release(control: Option<&Control>) {
    let Some(control) = control else { return };
    if let Err(reason) = control.release().await {
        Event::ControlHeld { control: &control.address().to_string(), reason: &reason }.emit();
    }
}

/// SIGTERM and SIGINT; the second one cuts the drain short.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> Result<Self, Exit> {
        Ok(Self { term: Self::listen(SignalKind::terminate())?, int: Self::listen(SignalKind::interrupt())? })
    }

    /// From now on it no longer ends the process by itself.
    fn listen(kind: SignalKind) -> Result<Signal, Exit> {
        signal(kind)
            .map_err(|error| complain_and(Exit::Escalated, format_args!("cannot hear signals: {error}")))
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// A recovery of many products, or a migration, may take longer than the manager grants: it is told while that moves.
async fn open_ledger(notifier: &Notifier, config: &Config) -> Result<sqlite::Opened, Exit> {
    let (path, options) = (config.ledger.path.clone(), assemble::open_options(config));
    let progress = sqlite::Progress::default();
    let shown = progress.clone();
    let open = move || sqlite::open_visibly(&path, options, &progress);
    let opened = opening::visibly(notifier, "opening the ledger", || shown.count(), open).await;
    opened.map_err(|error| {
        notifier.tell(&[Note::Status(&error.to_string())]);
        refuse(&error)
    })
}

/// The one line on standard output: tests and scripts read the port that was really bound.
fn say_address(address: SocketAddr) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // Nobody reads a closed pipe.
    let _ = writeln!(out, "listening on http://{address}").and_then(|()| out.flush());
}

fn tell_start(config: &Config, path: &Path, address: SocketAddr, epoch: i64) {
    let shops = config.enabled_sites();
    Event::DaemonStarted {
        version: env!("CARGO_PKG_VERSION"),
        listen: &address.to_string(),
        config: &path.display().to_string(),
        ledger: &config.ledger.path.display().to_string(),
        epoch,
        shops: shops.len() as u64,
    }
    .emit();
    if shops.is_empty() {
        Event::NoShopEnabled {}.emit();
    }
    if config.webhooks.product_url.url().is_none() {
        Event::WebhooksUnaddressed {}.emit();
    }
    for what in assemble::direct_ways(config) {
        Event::DirectAnnounced { what: &what }.emit();
    }
    let control = config.tor.control.map(|control| control.to_string());
    Event::BindingAnnounced { binding: config.tor.binding.as_str(), control: control.as_deref() }.emit();
}

fn refuse(error: &OpenError) -> Exit {
    let exit = match error {
        OpenError::Locked { .. } => Exit::LedgerLocked,
        OpenError::Newer { .. } => Exit::LedgerNewer,
        OpenError::Corrupt { .. } => Exit::LedgerDamaged,
        OpenError::Foreign { .. } | OpenError::Full { .. } | OpenError::Io { .. } => Exit::File,
    };
    complain_and(exit, error)
}

/// Nothing in memory is trusted any more: the next process goes on from the ledger, and charges nobody for this end.
fn escalate(ledger: &Path, escalation: Option<Escalation>) -> Exit {
    mark_beside(ledger);
    let Some(escalation) = escalation else {
        Event::ActorEscalated { actor: "root", failures: 1, detail: "the root ended" }.emit();
        return Exit::Escalated;
    };
    if escalation.exit == Exit::LedgerDamaged {
        let (ledger, detail) = (ledger.display(), &escalation.detail);
        complain(format_args!("{ledger}: {detail}. Move it away with its -wal and restore a backup"));
    }
    escalation.exit
}

fn mark_beside(ledger: &Path) {
    if let Err(error) = sqlite::mark_escalated(ledger) {
        complain(format_args!(
            "cannot say beside {} that this end is nobody's fault: {error}",
            ledger.display()
        ));
    }
}

fn complain_and(exit: Exit, message: impl std::fmt::Display) -> Exit {
    complain(message);
    exit
}
