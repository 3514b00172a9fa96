//! When the pool looks again: one timer for the earliest moment, however often it is asked for. Pure.

use tokio::time::Instant;

/// The earliest moment for which a timer is under way.
#[derive(Debug, Default)]
pub(super) struct NextLook(Option<Instant>);

impl NextLook {
    /// Whether a timer for this moment is to be started.
    pub fn plan(&mut self, at: Instant) -> bool {
        let is_first = self.0.is_none_or(|planned| at < planned);
        if is_first {
            self.0 = Some(at);
        }
        is_first
    }

    /// A timer is over. One for a later moment goes on counting: whoever forgot it would plan it once more at each look.
    pub fn looked(&mut self, now: Instant) {
        self.0 = self.0.filter(|planned| now < *planned);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A shop that is held for long beside one with a slow visit now and then: each of its looks leaves a timer behind.
    #[test]
    fn timers_that_are_one_too_many_plan_no_more() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let (mut next, mut timers) = (NextLook::default(), Vec::new());
        let plan = |next: &mut NextLook, timers: &mut Vec<Instant>, moment| {
            if next.plan(moment) {
                timers.push(moment);
            }
        };
        for round in 1..100 {
            plan(&mut next, &mut timers, at(1000 * round));
            plan(&mut next, &mut timers, at(1000 * round - 500));
            timers.sort();
            let due: Vec<Instant> = timers.extract_if(.., |timer| *timer <= at(1000 * round)).collect();
            for timer in due {
                next.looked(timer);
                plan(&mut next, &mut timers, at(1000 * (round + 1)));
            }
            assert!(timers.len() <= 2, "round {round}: {}", timers.len());
        }
    }

    #[test]
    fn only_an_earlier_moment_is_planned_beside_one_that_is() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut next = NextLook::default();
        assert!(next.plan(now + 2 * second));
        assert!(!next.plan(now + 2 * second) && !next.plan(now + 3 * second));
        assert!(next.plan(now + second));
        next.looked(now);
        assert!(!next.plan(now + second), "that was another one");
        next.looked(now + second);
        assert!(next.plan(now + 2 * second));
    }
}
