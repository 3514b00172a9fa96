//! How often a shop may be asked: one slot every `interval`, shared by all circuits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Hands out the moments at which requests to one shop may leave. Cheap to clone; clones share the slots.
#[derive(Clone, Debug)]
pub struct Pace {
    interval: Duration,
    next: Arc<Mutex<Instant>>,
}

impl Pace {
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, next: Arc::new(Mutex::new(now)) }
    }

    /// When the next request could leave.
    pub fn next_at(&self) -> Instant {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next slot: the moment at which its owner may send. Slots missed while nobody asked are not made up for.
    pub fn take(&self, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (*next).max(now);
        *next = slot + self.interval;
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_an_interval_apart_and_missed_ones_are_not_made_up_for() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let pace = Pace::new(second, start);
        assert_eq!([pace.take(start), pace.clone().take(start)], [start, start + second]);
        assert_eq!(pace.take(start + 9 * second), start + 9 * second);
        assert_eq!(pace.next_at(), start + 10 * second);
    }
}
