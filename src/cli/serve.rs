//! `glaneur serve`: configuration → log → ledger → listener → supervision tree → wait → drain.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{complain, find};
use crate::config::Config;
use crate::descriptors;
use crate::exit::Exit;
use crate::ledger::audit;
use crate::ledger::sqlite::{self, OpenError};
use crate::supervisor::{self, DrainPlan, Escalation};
use crate::telemetry::{self, Event};

mod assemble;

pub fn run(config: Option<&Path>) -> Exit {
    let found = match find::config(config) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    telemetry::init(&found.config.log);
    descriptors::raise_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain_and(Exit::Escalated, format_args!("cannot start threads: {error}")),
    };
    let exit = runtime.block_on(serve(found)).unwrap_or_else(|exit| exit);
    // Threads that still parse or read are not waited for: what counts is on disk.
    runtime.shutdown_timeout(Duration::ZERO);
    exit
}

async fn serve(found: find::Found) -> Result<Exit, Exit> {
    let find::Found { path, config } = found;
    let secrets = assemble::Secrets::read(&config)?;
    let (listener, address) = bind(config.server.listen).await?;
    let ledger_path = config.ledger.path.clone();
    let opened =
        sqlite::open(&ledger_path, assemble::open_options(&config)).map_err(|error| refuse(&error))?;
    tell_start(&config, &path, address, opened.report.epoch);
    if opened.report.charged > 0 {
        let (products, crashed) = (opened.report.charged.into(), opened.report.crashed.into());
        Event::DeathsCharged { products, crashed }.emit();
    }
    if opened.report.released > 0 {
        Event::ClaimsReleased { products: opened.report.released.into() }.emit();
    }
    // Before the tree: a signal from now on drains.
    let mut signals = Signals::new()?;
    let drain = config.shutdown.drain;
    let (parts, ledger) = assemble::parts(&config, secrets, opened, listener)?;
    let (escalations_tx, mut escalations) = mpsc::unbounded_channel();
    let (root, mut joined) = supervisor::start(parts, escalations_tx).await.map_err(|error| {
        complain_and(Exit::Escalated, format_args!("the supervision tree did not start: {error}"))
    })?;
    say_address(address);
    tokio::spawn(audit::keep_counting(ledger.reader().clone()));

    let name = tokio::select! {
        name = signals.next() => name,
        escalation = escalations.recv() => return Ok(escalate(&ledger_path, escalation)),
        _ = &mut joined => return Ok(escalate(&ledger_path, None)),
    };
    let started = Instant::now();
    Event::DrainStarted { signal: name, seconds: drain.as_secs() }.emit();
    let work = async {
        // The coming death is nobody's fault: said in the ledger, or beside it where there is no room.
        if ledger.write(|store| store.mark_stopping()).await.is_err() {
            mark_beside(&ledger_path);
        }
        let plan = DrainPlan::new(started, drain);
        root.call(|reply| supervisor::Msg::Drain { plan, reply }, None).await
    };
    tokio::select! {
        _ = work => {
            Event::DrainEnded { duration_ms: started.elapsed().as_millis() as u64 }.emit();
            Ok(Exit::Ok)
        }
        _ = signals.next() => {
            Event::DrainCut {}.emit();
            // The ledger may not have been told yet that this stop was asked for; the file beside it says so at once.
            mark_beside(&ledger_path);
            Ok(Exit::Cut)
        }
        // A part that failed in the drain ends it; the next start goes on from the ledger.
        escalation = escalations.recv() => Ok(escalate(&ledger_path, escalation)),
    }
}

/// SIGTERM and SIGINT; the second one cuts the drain short.
struct Signals {
    term: Signal,
    int: Signal,
    /// Heard so that it does not end the process, which is what it does to one that does not listen.
    hup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Exit> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| complain_and(Exit::Escalated, format_args!("cannot hear signals: {error}")))
        };
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
            hup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.term.recv() => return "SIGTERM",
                _ = self.int.recv() => return "SIGINT",
                _ = self.hup.recv() => Event::ReloadIgnored {}.emit(),
            }
        }
    }
}

async fn bind(listen: SocketAddr) -> Result<(tokio::net::TcpListener, SocketAddr), Exit> {
    let failed = |error| complain_and(Exit::Listen, format_args!("server.listen = \"{listen}\": {error}"));
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
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
    for what in assemble::direct_ways(config) {
        Event::DirectAnnounced { what: &what }.emit();
    }
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
    if escalation.is_none() {
        Event::ActorEscalated { actor: "root", failures: 1, detail: "the root ended" }.emit();
    }
    Exit::Escalated
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
