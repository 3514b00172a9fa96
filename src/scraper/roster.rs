//! What each circuit is and did, for the people who ask: one row for each worker, of its generation of now.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::circuit::CircuitId;
use super::relay::ExitRelay;
use crate::model::SiteName;

/// All circuits of this process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Roster(Arc<Mutex<BTreeMap<u32, Row>>>);

/// One circuit.
#[derive(Clone, Debug)]
pub struct Row {
    pub circuit: CircuitId,
    /// Of its first use of Tor.
    pub first_used: Option<Instant>,
    /// Fetches through Tor.
    pub uses: u32,
    /// Where a control port tells it.
    pub exit: Option<Arc<ExitRelay>>,
    pub flow: Arc<Flow>,
    /// How long its answers took of late.
    pub latency: Option<Duration>,
    /// The shop that is visited through it now.
    pub visiting: Option<SiteName>,
    /// How often each shop blocked a generation of this worker.
    pub blocks: BTreeMap<SiteName, u64>,
}

/// Bytes through one generation, TLS included.
#[derive(Debug, Default)]
pub struct Flow {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Flow {
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Roster {
    /// A new generation takes its worker's row.
    pub(super) fn begin(&self, circuit: CircuitId) -> Arc<Flow> {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let blocks = rows.remove(&circuit.worker).map(|row| row.blocks).unwrap_or_default();
        let flow = Arc::<Flow>::default();
        let row = Row {
            circuit,
            first_used: None,
            uses: 0,
            exit: None,
            flow: Arc::clone(&flow),
            latency: None,
            visiting: None,
            blocks,
        };
        rows.insert(circuit.worker, row);
        flow
    }

    /// Changes the row of this generation, if it is still the one of now.
    pub(super) fn note(&self, circuit: CircuitId, change: impl FnOnce(&mut Row)) {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = rows.get_mut(&circuit.worker).filter(|row| row.circuit == circuit) {
            change(row);
        }
    }

    /// The worker is gone, unless another generation took its row.
    pub(super) fn end(&self, circuit: CircuitId) {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if rows.get(&circuit.worker).is_some_and(|row| row.circuit == circuit) {
            rows.remove(&circuit.worker);
        }
    }

    /// All of them, by worker.
    pub fn rows(&self) -> Vec<Row> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circuit(generation: u64) -> CircuitId {
        CircuitId { worker: 3, generation }
    }

    #[test]
    fn a_generation_begins_anew_but_for_the_blocks_of_its_worker() {
        let roster = Roster::default();
        roster.begin(circuit(1)).count_received(7);
        roster.note(circuit(1), |row| {
            row.uses = 5;
            *row.blocks.entry("a".into()).or_default() += 1;
        });
        roster.begin(circuit(2));
        let row = &roster.rows()[0];
        assert_eq!((row.circuit, row.uses, row.flow.received()), (circuit(2), 0, 0));
        assert_eq!(row.blocks["a"], 1);
    }

    #[test]
    fn what_an_old_generation_says_changes_nothing() {
        let roster = Roster::default();
        roster.begin(circuit(1));
        roster.begin(circuit(2));
        roster.note(circuit(1), |row| row.uses = 5);
        roster.end(circuit(1));
        assert_eq!(roster.rows()[0].uses, 0);
        roster.end(circuit(2));
        assert!(roster.rows().is_empty());
    }
}
