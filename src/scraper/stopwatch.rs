//! How long a visit has been at work: from its first dial, and not while it waits for a pace.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Run by the scraper, read by the pool. Cheap to clone; clones are the same watch.
#[derive(Clone, Debug, Default)]
pub struct Stopwatch(Arc<Mutex<Reading>>);

#[derive(Debug, Default)]
struct Reading {
    spent: Duration,
    /// Since when it runs.
    since: Option<Instant>,
    answered: bool,
}

impl Reading {
    fn spent(&self, now: Instant) -> Duration {
        self.spent + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

impl Stopwatch {
    /// It runs from now on, if it does not already.
    pub fn run(&self, now: Instant) {
        self.reading().since.get_or_insert(now);
    }

    /// What follows is waiting.
    pub fn pause(&self, now: Instant) {
        let mut reading = self.reading();
        reading.spent = reading.spent(now);
        reading.since = None;
    }

    /// The shop answered: the time says how fast it is.
    pub fn answered(&self, now: Instant) {
        self.pause(now);
        self.reading().answered = true;
    }

    pub fn spent(&self, now: Instant) -> Duration {
        self.reading().spent(now)
    }

    pub fn runs(&self) -> bool {
        self.reading().since.is_some()
    }

    /// What it took to get the shop's answer, if it came.
    pub fn took(&self) -> Option<Duration> {
        let reading = self.reading();
        reading.answered.then_some(reading.spent)
    }

    fn reading(&self) -> std::sync::MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_does_not_count_and_a_time_without_an_answer_says_nothing() {
        let (watch, begin) = (Stopwatch::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        watch.pause(at(1));
        assert_eq!((watch.spent(at(9)), watch.runs()), (Duration::ZERO, false), "it has not dialled");
        watch.run(at(10));
        watch.run(at(11));
        assert_eq!((watch.spent(at(12)), watch.runs()), (Duration::from_secs(2), true));
        watch.pause(at(13));
        assert_eq!(watch.clone().spent(at(99)), Duration::from_secs(3), "it waits for its pace");
        watch.run(at(100));
        watch.pause(at(101));
        assert_eq!(watch.took(), None);
        watch.answered(at(102));
        assert_eq!(watch.took(), Some(Duration::from_secs(4)));
    }
}
