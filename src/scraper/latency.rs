//! How long answers took of late, by shop and circuit, and which circuit is slow against its peers. What decides is pure;
//! the store is a map behind a lock.
//!
//! A circuit is held against the others at the same shop alone: shops differ more than circuits do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::circuit::CircuitId;
use crate::model::SiteName;

/// Answers that are remembered of each circuit at each shop: a slow quarter of an hour is not held against it for ever.
const RECENT: usize = 8;
/// Below this many a median is one answer's luck: the first of a circuit also paid for its being built.
const SAMPLES_MIN: usize = 5;
/// Fewer others are no measure.
const PEERS_MIN: usize = 2;
/// Paths through the world differ by two or three times as a matter of course.
const SLOW_TIMES: u32 = 4;
/// What is faster than this is not worth a new circuit, which takes about as long.
const SLOW_MIN: Duration = Duration::from_secs(1);

/// The last answers' times, the newest last.
#[derive(Clone, Debug, Default)]
pub struct Recent(VecDeque<Duration>);

impl Recent {
    pub fn note(&mut self, took: Duration) {
        if RECENT <= self.0.len() {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    /// The middle of them; of an even number the lower one.
    pub fn median(&self) -> Option<Duration> {
        median(self.0.iter().copied())
    }

    /// [`Self::median`], where there are enough of them to go by.
    fn typical(&self) -> Option<Duration> {
        self.median().filter(|_| SAMPLES_MIN <= self.0.len())
    }
}

fn median(times: impl Iterator<Item = Duration>) -> Option<Duration> {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times.get(times.len().checked_sub(1)? / 2).copied()
}

/// Whether a circuit whose answers took so long is slow against these others.
fn is_slow(own: &Recent, others: impl Iterator<Item = Duration>) -> bool {
    let others: Vec<Duration> = others.collect();
    let (Some(own), true) = (own.typical(), PEERS_MIN <= others.len()) else { return false };
    let usual = median(others.into_iter()).unwrap_or_default();
    SLOW_MIN <= own && usual.saturating_mul(SLOW_TIMES) <= own
}

/// Of all circuits of this process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Arc<Mutex<BTreeMap<SiteName, BTreeMap<CircuitId, Recent>>>>);

impl Latencies {
    /// An answer of this shop came through this circuit after so long.
    pub(super) fn note(&self, site: &SiteName, circuit: CircuitId, took: Duration) {
        let mut sites = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sites.entry(site.clone()).or_default().entry(circuit).or_default().note(took);
    }

    /// A generation is over, and with it what is known of it.
    pub(super) fn forget(&self, circuit: CircuitId) {
        let mut sites = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sites.retain(|_, circuits| {
            circuits.remove(&circuit);
            !circuits.is_empty()
        });
    }

    /// Whether it is slow against the others, at any shop.
    pub fn is_slow(&self, circuit: CircuitId) -> bool {
        let sites = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sites.values().any(|circuits| {
            let others = circuits.iter().filter(|(other, _)| **other != circuit);
            circuits
                .get(&circuit)
                .is_some_and(|own| is_slow(own, others.filter_map(|(_, recent)| recent.typical())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn id(worker: u32) -> CircuitId {
        CircuitId { worker, generation: 1 }
    }

    /// Circuits 1 to n at the shop "a", each with so many answers of so many milliseconds.
    fn circuits(of: &[(usize, u32)]) -> Latencies {
        let all = Latencies::default();
        for (worker, (answers, ms)) in (1..).zip(of) {
            (0..*answers).for_each(|_| all.note(&"a".into(), id(worker), *ms * MS));
        }
        all
    }

    #[test]
    fn a_circuit_of_four_times_the_usual_is_slow_and_the_usual_ones_are_not() {
        let all = circuits(&[(5, 2_000), (5, 500), (5, 500), (5, 400)]);
        assert_eq!([1, 2, 3, 4].map(|worker| all.is_slow(id(worker))), [true, false, false, false]);
        assert!(!circuits(&[(5, 1_999), (5, 500), (5, 500)]).is_slow(id(1)));
    }

    #[test]
    fn one_answer_alone_makes_no_circuit_slow() {
        let all = circuits(&[(4, 9_000), (5, 100), (5, 100)]);
        assert!(!all.is_slow(id(1)), "too few of its own");
        all.note(&"a".into(), id(1), 9_000 * MS);
        assert!(all.is_slow(id(1)));
        let all = circuits(&[(5, 100), (5, 100), (5, 100)]);
        all.note(&"a".into(), id(1), 60_000 * MS);
        assert!(!all.is_slow(id(1)), "the others of its own were fast");
    }

    #[test]
    fn without_peers_nobody_is_slow() {
        assert!(!circuits(&[(8, 60_000)]).is_slow(id(1)));
        assert!(!circuits(&[(8, 60_000), (8, 100)]).is_slow(id(1)), "one other is no measure");
        assert!(!circuits(&[(8, 60_000), (8, 100), (4, 100)]).is_slow(id(1)), "nor one that is new");
        assert!(!circuits(&[(5, 900), (5, 1), (5, 1)]).is_slow(id(1)), "fast enough");
    }

    #[test]
    fn shops_are_not_held_against_each_other() {
        let all = circuits(&[(5, 100), (5, 100), (5, 100)]);
        (0..5).for_each(|_| all.note(&"b".into(), id(1), 9_000 * MS));
        assert!(!all.is_slow(id(1)), "the shop is slow");
        for worker in [2, 3] {
            (0..5).for_each(|_| all.note(&"b".into(), id(worker), 100 * MS));
        }
        assert!(all.is_slow(id(1)));
    }

    #[test]
    fn what_was_long_ago_and_what_is_over_is_forgotten() {
        let all = circuits(&[(8, 9_000), (5, 100), (5, 100)]);
        (0..5).for_each(|_| all.note(&"a".into(), id(1), 100 * MS));
        assert!(!all.is_slow(id(1)), "it recovered");
        let all = circuits(&[(8, 9_000), (5, 100), (5, 100)]);
        (1..=3).for_each(|worker| all.forget(id(worker)));
        assert!(all.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_median_is_the_one_in_the_middle() {
        let mut recent = Recent::default();
        assert_eq!(recent.median(), None);
        for (ms, median) in [(3, 3), (1, 1), (2, 2), (9, 2), (9, 3)] {
            recent.note(ms * MS);
            assert_eq!(recent.median(), Some(median * MS));
        }
    }
}
