//! Restart policy: how often a child may fail, and how long to wait before it is started again. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// At most this many failures in this time; one more escalates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intensity {
    pub at_most: usize,
    pub within: Duration,
    /// The pause before the second restart in a row; doubles with each, up to `backoff_max`. The first is at once.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start it again after this long.
    Restart {
        after: Duration,
    },
    Escalate,
}

/// The failures of one child, newest last; never longer than the policy needs.
#[derive(Clone, Debug, Default)]
pub struct History(VecDeque<Instant>);

impl History {
    /// Counts a failure and says what follows.
    pub fn on_failure(&mut self, intensity: Intensity, now: Instant) -> Decision {
        while self.0.front().is_some_and(|at| intensity.within < now.saturating_duration_since(*at)) {
            self.0.pop_front();
        }
        self.0.push_back(now);
        if intensity.at_most < self.0.len() {
            return Decision::Escalate;
        }
        let after = match self.0.len() {
            0 | 1 => Duration::ZERO,
            n => intensity.backoff_min.saturating_mul(1 << (n - 2).min(16)).min(intensity.backoff_max),
        };
        Decision::Restart { after }
    }

    /// Failures that still count.
    pub fn failures(&self) -> u64 {
        self.0.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: Intensity = Intensity {
        at_most: 3,
        within: Duration::from_secs(60),
        backoff_min: Duration::from_millis(100),
        backoff_max: Duration::from_millis(150),
    };

    #[test]
    fn one_failure_too_many_within_the_window_escalates() {
        let (mut history, now) = (History::default(), Instant::now());
        let after = |ms| Decision::Restart { after: Duration::from_millis(ms) };
        let decisions: Vec<_> =
            (0..4).map(|s| history.on_failure(FEW, now + Duration::from_secs(s))).collect();
        assert_eq!(decisions, [after(0), after(100), after(150), Decision::Escalate]);
    }

    #[test]
    fn failures_older_than_the_window_are_forgiven() {
        let (mut history, mut now) = (History::default(), Instant::now());
        for _ in 0..20 {
            assert!(matches!(history.on_failure(FEW, now), Decision::Restart { .. }));
            now += Duration::from_secs(21);
        }
    }
}
