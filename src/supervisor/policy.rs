//! Restart policy: how often a child may fail, and how long to wait before it is started again. Pure.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

/// At most this many failures in this time; one more escalates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intensity {
    pub at_most: usize,
    pub within: Duration,
    /// The first restart is at once; this is the pause before the second in a row and those after it.
    pub backoff: Backoff,
}

impl Intensity {
    /// No failure is mended by a restart.
    pub const NEVER: Self = Self {
        at_most: 0,
        within: Duration::ZERO,
        backoff: Backoff { min: Duration::ZERO, max: Duration::ZERO },
    };
}

/// A pause that doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub min: Duration,
    pub max: Duration,
}

impl Backoff {
    /// The pause after the `nth` failure in a row, counted from 0. The roll takes off up to half of it, so that those who
    /// failed together do not all come back together.
    pub fn pause(self, nth: u32, roll: Roll) -> Duration {
        let full = self.min.saturating_mul(2_u32.saturating_pow(nth)).min(self.max);
        full - full.mul_f64(f64::from(roll.0) / f64::from(u16::MAX) / 2.0)
    }
}

/// A share from none to all, by chance; the arithmetic itself knows no chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roll(pub u16);

impl Roll {
    /// A hasher of the standard library has a random key: no more is needed to spread restarts.
    pub fn by_chance() -> Self {
        Self((RandomState::new().build_hasher().finish() & u64::from(u16::MAX)) as u16)
    }
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
    pub fn on_failure(&mut self, intensity: Intensity, now: Instant, roll: Roll) -> Decision {
        while self.0.front().is_some_and(|at| intensity.within < now.saturating_duration_since(*at)) {
            self.0.pop_front();
        }
        self.0.push_back(now);
        // One more than allowed tells all there is to tell.
        while intensity.at_most + 1 < self.0.len() {
            self.0.pop_front();
        }
        if intensity.at_most < self.0.len() {
            return Decision::Escalate;
        }
        let after = match self.0.len() as u32 {
            0 | 1 => Duration::ZERO,
            n => intensity.backoff.pause(n - 2, roll),
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

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const NONE_OFF: Roll = Roll(0);
    const FEW: Intensity = Intensity {
        at_most: 3,
        within: Duration::from_secs(60),
        backoff: Backoff { min: ms(100), max: ms(150) },
    };

    #[test]
    fn one_failure_too_many_within_the_window_escalates() {
        let (mut history, now) = (History::default(), Instant::now());
        let after = |n| Decision::Restart { after: ms(n) };
        let decisions: Vec<_> =
            (0..4).map(|s| history.on_failure(FEW, now + Duration::from_secs(s), NONE_OFF)).collect();
        assert_eq!(decisions, [after(0), after(100), after(150), Decision::Escalate]);
    }

    #[test]
    fn the_boundary_of_the_window_still_counts_and_what_is_older_is_forgiven() {
        for (at, expected) in [(60_000, true), (60_001, false)] {
            let (mut history, now) = (History::default(), Instant::now());
            for n in 0..3 {
                history.on_failure(FEW, now + ms(n), NONE_OFF);
            }
            let last = history.on_failure(FEW, now + ms(at), NONE_OFF);
            assert_eq!(last == Decision::Escalate, expected, "after {at} ms");
        }
    }

    #[test]
    fn failures_older_than_the_window_are_forgiven() {
        let (mut history, mut now) = (History::default(), Instant::now());
        for _ in 0..20 {
            assert!(matches!(history.on_failure(FEW, now, NONE_OFF), Decision::Restart { .. }));
            now += Duration::from_secs(21);
        }
    }

    #[test]
    fn who_may_never_fail_escalates_at_once() {
        let decision = History::default().on_failure(Intensity::NEVER, Instant::now(), NONE_OFF);
        assert_eq!(decision, Decision::Escalate);
    }

    #[test]
    fn a_history_does_not_grow_with_the_failures() {
        let (mut history, now) = (History::default(), Instant::now());
        for _ in 0..1_000 {
            history.on_failure(FEW, now, NONE_OFF);
        }
        assert_eq!(history.failures(), 4);
    }

    #[test]
    fn the_pause_doubles_to_its_limit_and_chance_takes_off_at_most_half() {
        let backoff = Backoff { min: ms(100), max: ms(1_000) };
        for (nth, full) in [(0, 100), (1, 200), (3, 800), (4, 1_000), (31, 1_000), (u32::MAX, 1_000)] {
            assert_eq!(backoff.pause(nth, Roll(0)), ms(full), "nothing off at {nth}");
            assert_eq!(backoff.pause(nth, Roll(u16::MAX)), ms(full / 2), "most off at {nth}");
        }
        for roll in 0..=u16::MAX {
            let pause = backoff.pause(1, Roll(roll));
            assert!(ms(100) <= pause && pause <= ms(200), "{pause:?} by {roll}");
        }
    }

    #[test]
    fn chance_spreads_who_failed_together() {
        let rolls: std::collections::BTreeSet<u16> = (0..100).map(|_| Roll::by_chance().0).collect();
        assert!(10 < rolls.len(), "{rolls:?}");
    }
}
