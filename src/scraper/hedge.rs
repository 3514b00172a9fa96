//! When a visit is slow enough to be started once more, and how often that may be. Pure.
//!
//! A visit that takes more than twice its shop's median has most likely a slow circuit, and another circuit would answer
//! before it. What that may cost the shop is a budget: so many twins for a hundred visits, and never more.
//!
//! The limits: a slow visit that its twin overtook never says how long it would have taken, so the median is of those that
//! were answered; at the default budget that leaves out one in twenty at most. A shop that slows down as a whole makes
//! all its visits look slow until the window has seen it, and only the budget keeps it from being asked twice.

use std::collections::VecDeque;
use std::time::Duration;

/// Visits that the median is of: enough for a few odd ones to leave it alone, and at a visit a second forgotten within
/// about a minute, so that it follows the shop and the hour.
const WINDOW: usize = 64;
/// With fewer nothing is hedged: half of them would have to be odd to mislead, and of eight that is four.
const SAMPLES_MIN: usize = 8;
/// So many times the median is slow.
const SLOW: u32 = 2;
/// What one twin costs, where a visit earns the share that the configuration grants, in hundredths.
const TWIN: u32 = 100;
/// Twins that a quiet time may save up: enough for a batch of a few products on a bad circuit, and no second visit for
/// each of those in flight when the whole shop slows down.
const SAVED_MAX: u32 = 5;

/// One shop.
#[derive(Debug, Default)]
pub struct Hedging {
    /// How long its last answered visits took, the oldest first.
    recent: VecDeque<Duration>,
    median: Option<Duration>,
    /// In hundredths of a twin.
    saved: u32,
}

impl Hedging {
    /// A visit starts, which is no twin; `percent` of them may have one.
    pub fn started(&mut self, percent: u32) {
        self.saved = self.saved.saturating_add(percent).min(SAVED_MAX * TWIN);
    }

    /// A visit, or a twin, was answered after this long.
    pub fn took(&mut self, time: Duration) {
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(time);
        let mut sorted: Vec<Duration> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        self.median = (SAMPLES_MIN <= sorted.len()).then(|| sorted[sorted.len() / 2]);
    }

    /// Where enough visits were answered to tell.
    pub fn median(&self) -> Option<Duration> {
        self.median
    }

    /// How long a visit takes that is slow; `None` where nobody can tell, or no twin is left in the budget, which is now
    /// `percent` of the visits.
    pub fn slow_after(&self, percent: u32) -> Option<Duration> {
        let median = self.median.filter(|_| 0 < percent && TWIN <= self.saved)?;
        Some(median.saturating_mul(SLOW))
    }

    /// A twin starts.
    pub fn spend(&mut self) {
        self.saved = self.saved.saturating_sub(TWIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// With a full budget.
    fn after(times: impl IntoIterator<Item = u64>) -> Hedging {
        let mut shop = Hedging::default();
        shop.started(SAVED_MAX * TWIN);
        times.into_iter().for_each(|time| shop.took(seconds(time)));
        shop
    }

    #[test]
    fn slow_is_twice_the_median_of_what_was_answered_of_late() {
        assert_eq!(after([1; SAMPLES_MIN - 1]).slow_after(5), None, "too few to tell");
        assert_eq!(after([1; SAMPLES_MIN]).slow_after(5), Some(seconds(2)));
        assert_eq!(after([1, 1, 1, 1, 1, 1, 60, 60, 60]).slow_after(5), Some(seconds(2)), "a few odd ones");
        let slower = [1; WINDOW].into_iter().chain([5; WINDOW / 2 + 1]);
        assert_eq!(after(slower).slow_after(5), Some(seconds(10)), "it follows the shop");
    }

    #[test]
    fn the_window_does_not_grow() {
        let shop = after((0..10_000).map(|n| n % 7));
        assert_eq!(shop.recent.len(), WINDOW);
        assert!(shop.recent.capacity() <= 2 * WINDOW);
    }

    /// Twins that were started when `visits` had been, as soon as each may be.
    fn twins(percent: u32, visits: u32) -> u32 {
        let mut shop = after([1; SAMPLES_MIN]);
        shop.saved = 0;
        let mut twins = 0;
        for visit in 1..=visits {
            shop.started(percent);
            while shop.slow_after(percent).is_some() {
                shop.spend();
                twins += 1;
            }
            assert!(twins * TWIN <= visit * percent, "{percent} %: {twins} of {visit}");
        }
        twins
    }

    #[test]
    fn at_no_time_have_more_twins_started_than_the_budget_grants() {
        assert_eq!(twins(0, 10_000), 0);
        for (percent, of_a_thousand) in [(1, 10), (5, 50), (7, 70), (100, 1_000)] {
            assert_eq!(twins(percent, 1_000), of_a_thousand, "{percent} %");
        }
    }

    #[test]
    fn what_was_saved_up_is_worth_nothing_once_hedging_is_switched_off() {
        let shop = after([1; SAMPLES_MIN]);
        assert_eq!((shop.slow_after(1), shop.slow_after(0)), (Some(seconds(2)), None));
    }

    #[test]
    fn what_a_quiet_time_saves_up_is_bounded() {
        let mut shop = after([1; SAMPLES_MIN]);
        (0..1_000).for_each(|_| shop.started(50));
        let mut twins = 0;
        while shop.slow_after(50).is_some() {
            shop.spend();
            twins += 1;
        }
        assert_eq!(twins, SAVED_MAX);
    }
}
