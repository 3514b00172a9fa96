//! What the service manager is told, from READY to the end; nothing at all without one.

use std::time::Duration;

use ractor::ActorRef;
use ractor::rpc::CallResult;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ledger::LedgerHandle;
use crate::supervisor::{self, Parts};
use crate::systemd::teller::{self, Sources};
use crate::systemd::{Note, Notifier};
use crate::watchdog;

#[derive(Debug)]
pub struct Manager {
    notifier: Notifier,
    sources: Sources,
}

impl Manager {
    /// `draining`: when the drain is to be over, once there is one.
    pub fn new(
        notifier: Notifier,
        ledger: &LedgerHandle,
        parts: &Parts,
        draining: watch::Receiver<Option<Instant>>,
    ) -> Self {
        let gear = parts.gear.borrow();
        let sources = Sources {
            ledger: ledger.clone(),
            tor: gear.tor.clone(),
            visits: gear.deadlines.clone(),
            webhooks: parts.webhook_handle.clone(),
            drain: draining,
        };
        Self { notifier, sources }
    }

    /// READY once all parts run, then what the daemon does, and signs of life if they are wanted.
    pub fn keep_telling(&self, root: &ActorRef<supervisor::Msg>) {
        if !self.notifier.has_manager() {
            return;
        }
        let (notifier, root, sources) = (self.notifier.clone(), root.clone(), self.sources.clone());
        let interval = watchdog::interval();
        tokio::spawn(async move {
            if !all_run(&root).await {
                return;
            }
            notifier.tell(&[Note::Ready]);
            if let Some(interval) = interval {
                let Sources { ledger, visits, drain, .. } = sources.clone();
                let parts = watchdog::Parts { root, ledger, visits, drain };
                tokio::spawn(watchdog::keep_feeding(notifier.clone(), interval, parts));
            }
            teller::keep_telling(notifier, sources).await;
        });
    }

    /// Before anything of the drain is done.
    pub fn tell_stopping(&self, until: Instant) {
        self.notifier.tell(&[Note::Stopping, teller::extension(until)]);
    }
}

/// Whether every part of the tree came to run, so that what waits for this unit finds the listener and the ledger.
async fn all_run(root: &ActorRef<supervisor::Msg>) -> bool {
    /// A part whose start failed is started again by the root; nobody waits for this pause otherwise.
    const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);
    loop {
        match root.call(|reply| supervisor::Msg::Ask { reply }, None).await {
            Ok(CallResult::Success(true)) => return true,
            Ok(CallResult::Success(false)) => tokio::time::sleep(LOOK_AGAIN_AFTER).await,
            // The root is gone, and the process is about to be.
            Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => return false,
        }
    }
}
