//! Tells the manager what the daemon does: when it changes, once a second at most, and each second of a drain.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::doing::{Doing, Draining};
use super::{Note, Notifier};
use crate::ledger::LedgerHandle;
use crate::model::delivery::DeliveryState;
use crate::scraper::deadlines::Deadlines;
use crate::scraper::tor::TorGate;
use crate::watchdog::DRAIN_GRACE;
use crate::webhook::WebhookHandle;

/// A person who looks sees what was true a second ago.
const EVERY: Duration = Duration::from_secs(1);

/// Where the numbers come from: memory, and two counters of the ledger.
#[derive(Clone, Debug)]
pub struct Sources {
    pub ledger: LedgerHandle,
    pub tor: TorGate,
    pub visits: Deadlines,
    pub webhooks: WebhookHandle,
    /// When the drain is to be over, once there is one.
    pub drain: watch::Receiver<Option<Instant>>,
}

/// Tells until the process ends.
pub async fn keep_telling(notifier: Notifier, sources: Sources) {
    let mut drain = sources.drain.clone();
    let mut seconds = tokio::time::interval(EVERY);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = String::new();
    let mut backlog = Backlog::new(&sources.ledger);
    loop {
        tokio::select! {
            biased;
            // The beginning of a drain is told at once; afterwards its end does not change.
            changed = drain.changed() => if changed.is_err() { return },
            _ = seconds.tick() => {}
        }
        let until = *drain.borrow();
        if let Some(until) = until {
            let draining = Draining {
                visits: sources.visits.in_flight() as u64,
                deliveries: sources.webhooks.in_hand() as u64,
                left: until.saturating_duration_since(Instant::now()),
            };
            notifier.tell(&[Note::Status(&draining.to_string()), extension(until)]);
            continue;
        }
        backlog.look(&sources.ledger).await;
        let line = sources.doing(&backlog).to_string();
        if line != told {
            notifier.tell(&[Note::Status(&line)]);
            told = line;
        }
    }
}

/// The stop may take until the drain is over and the parts are stopped; never longer, however often it is said.
pub fn extension(until: Instant) -> Note<'static> {
    Note::Extend((until + DRAIN_GRACE).saturating_duration_since(Instant::now()))
}

impl Sources {
    fn doing(&self, backlog: &Backlog) -> Doing {
        Doing {
            batches: backlog.batches,
            queued: backlog.queued,
            visits: self.visits.in_flight() as u64,
            deliveries: backlog.deliveries,
            tor: self.tor.watch().borrow().clone(),
            ledger: *self.ledger.health().borrow(),
        }
    }
}

/// What the ledger counts, read again only after a commit.
struct Backlog {
    commits: watch::Receiver<u64>,
    batches: u64,
    queued: u64,
    deliveries: u64,
}

impl Backlog {
    fn new(ledger: &LedgerHandle) -> Self {
        let mut commits = ledger.outbox();
        commits.mark_changed();
        Self { commits, batches: 0, queued: 0, deliveries: 0 }
    }

    async fn look(&mut self, ledger: &LedgerHandle) {
        if !self.commits.has_changed().unwrap_or(false) {
            return;
        }
        self.commits.mark_unchanged();
        let read = ledger.reader().read(|read| Ok((read.open_batch_count()?, read.tally()?))).await;
        match read {
            Ok((batches, tally)) => {
                let count = |count: i64| u64::try_from(count).unwrap_or_default();
                self.batches = batches;
                self.queued = count(tally.queued);
                self.deliveries = count(tally.deliveries[DeliveryState::Waiting as usize]);
            }
            // Whoever needs what is there tells of it; here it means to look again.
            Err(_) => self.commits.mark_changed(),
        }
    }
}
