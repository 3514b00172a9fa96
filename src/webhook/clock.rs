//! How long the daemon ran between two moments of wall time, although the wall clock may jump. Pure.
//!
//! Due times and attempts are stored as wall time; patience counts only while the process runs (design 4, rules 4, 9).

use std::time::Duration;

/// Less is an adjustment, not a jump.
pub const JUMP_MS_MIN: u64 = 2_000;
/// Jumps remembered; older ones only make a delivery more patient.
const SEGMENTS_MAX: usize = 64;

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Milliseconds since 1970.
    pub wall_ms: i64,
    /// Since this process began to count.
    pub uptime: Duration,
}

/// The wall clock as this process saw it: segments between jumps.
#[derive(Clone, Debug)]
pub struct Clock {
    /// Oldest first; never empty.
    segments: Vec<Segment>,
    seen: Moment,
}

/// A time without a jump. It overlaps its neighbour by the time between two looks, for the jump came somewhere in it.
#[derive(Clone, Copy, Debug)]
struct Segment {
    begin: Moment,
    /// The uptime at its end; of the last one, not yet known.
    end: Option<Duration>,
}

impl Clock {
    pub fn starting(now: Moment) -> Self {
        Self { segments: vec![Segment { begin: now, end: None }], seen: now }
    }

    /// Compares the clocks; says by how much the wall clock jumped since the last look.
    pub fn observe(&mut self, now: Moment) -> Option<i64> {
        let jump_ms = now.wall_ms - expected(self.seen, now.uptime);
        let seen = std::mem::replace(&mut self.seen, now);
        if jump_ms.unsigned_abs() <= JUMP_MS_MIN {
            return None;
        }
        if self.segments.len() == SEGMENTS_MAX {
            self.segments.remove(0);
        }
        if let Some(last) = self.segments.last_mut() {
            last.end = Some(now.uptime);
        }
        let begin = Moment { wall_ms: seen.wall_ms.saturating_add(jump_ms), uptime: seen.uptime };
        self.segments.push(Segment { begin, end: None });
        Some(jump_ms)
    }

    /// The uptime at `wall_ms`, a moment in the past; zero if it was before this process, or under another clock.
    pub fn uptime_at(&self, wall_ms: i64, now: Moment) -> Duration {
        self.uptime_within(wall_ms, now).unwrap_or_default()
    }

    fn uptime_within(&self, wall_ms: i64, now: Moment) -> Option<Duration> {
        // The newest that fits: what is doubtful after a jump back makes a delivery more patient, not less.
        self.segments.iter().rev().find_map(|Segment { begin, end }| {
            let into = u64::try_from(wall_ms - begin.wall_ms).ok()?;
            let uptime = begin.uptime + Duration::from_millis(into);
            (uptime <= end.unwrap_or(now.uptime)).then_some(uptime)
        })
    }

    /// How long the daemon ran since `wall_ms`.
    pub fn ran_since(&self, wall_ms: i64, now: Moment) -> Duration {
        now.uptime.saturating_sub(self.uptime_at(wall_ms, now))
    }

    /// How long ago `wall_ms` was, whether or not the daemon ran: a jump makes it neither longer nor shorter.
    pub fn passed_since(&self, wall_ms: i64, now: Moment) -> Duration {
        let Some(uptime) = self.uptime_within(wall_ms, now) else {
            // Before this process; or in the future of its first clock, and then only its own time is known.
            let before_ms =
                u64::try_from(self.segments[0].begin.wall_ms.saturating_sub(wall_ms)).unwrap_or_default();
            return now.uptime + Duration::from_millis(before_ms);
        };
        now.uptime.saturating_sub(uptime)
    }
}

/// The wall time at `uptime` if the wall clock had gone on from `seen`.
fn expected(seen: Moment, uptime: Duration) -> i64 {
    let ran = uptime.saturating_sub(seen.uptime).as_millis();
    seen.wall_ms.saturating_add(i64::try_from(ran).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall_ms: i64, uptime_ms: u64) -> Moment {
        Moment { wall_ms, uptime: Duration::from_millis(uptime_ms) }
    }

    #[test]
    fn a_steady_clock_never_jumps() {
        let mut clock = Clock::starting(at(1_000_000, 0));
        for n in 1..100 {
            // Slewed by a tenth of a second at each look: ten seconds in all, and no jump.
            assert_eq!(clock.observe(at(1_000_000 + n * 1_100, n as u64 * 1_000)), None);
        }
    }

    #[test]
    fn a_jump_is_told_once_with_its_size() {
        let mut clock = Clock::starting(at(1_000_000, 0));
        assert_eq!(clock.observe(at(4_601_000, 1_000)), Some(3_600_000));
        assert_eq!(clock.observe(at(4_602_000, 2_000)), None);
        assert_eq!(clock.observe(at(1_003_000, 3_000)), Some(-3_600_000));
    }

    #[test]
    fn time_before_this_process_does_not_count() {
        let clock = Clock::starting(at(1_000_000, 0));
        assert_eq!(clock.ran_since(5_000, at(1_060_000, 60_000)), Duration::from_secs(60));
        assert_eq!(clock.ran_since(1_050_000, at(1_060_000, 60_000)), Duration::from_secs(10));
    }

    #[test]
    fn a_jump_uses_up_no_patience() {
        let mut clock = Clock::starting(at(1_000_000, 0));
        let attempt_ms = 1_010_000;
        let day_ms = 86_400_000;
        assert_eq!(clock.observe(at(1_020_000 + day_ms, 20_000)), Some(day_ms));
        assert_eq!(clock.ran_since(attempt_ms, at(1_030_000 + day_ms, 30_000)), Duration::from_secs(20));
        assert_eq!(clock.observe(at(1_040_000, 40_000)), Some(-day_ms));
        assert_eq!(clock.ran_since(1_025_000 + day_ms, at(1_050_000, 50_000)), Duration::from_secs(25));
    }

    #[test]
    fn what_happened_between_a_jump_and_the_look_that_found_it_is_known() {
        let mut clock = Clock::starting(at(1_000_000, 0));
        let hour_ms = 3_600_000;
        assert_eq!(clock.observe(at(1_060_000, 60_000)), None);
        assert_eq!(clock.observe(at(1_061_000 + hour_ms, 61_000)), Some(hour_ms));
        for wall_ms in [1_060_500, 1_060_500 + hour_ms] {
            let passed = clock.passed_since(wall_ms, at(1_070_000 + hour_ms, 70_000));
            assert_eq!(passed, Duration::from_millis(9_500), "{wall_ms}");
        }
    }

    #[test]
    fn what_passed_before_this_process_counts_and_a_jump_does_not() {
        let mut clock = Clock::starting(at(1_000_000, 0));
        let hour_ms = 3_600_000;
        assert_eq!(clock.passed_since(400_000, at(1_010_000, 10_000)), Duration::from_secs(610));
        assert_eq!(clock.observe(at(1_020_000 + hour_ms, 20_000)), Some(hour_ms));
        assert_eq!(clock.passed_since(1_010_000, at(1_030_000 + hour_ms, 30_000)), Duration::from_secs(20));
        assert_eq!(clock.observe(at(1_040_000, 40_000)), Some(-hour_ms));
        let ended_ms = 1_030_000 + hour_ms;
        assert_eq!(clock.passed_since(ended_ms, at(1_050_000, 50_000)), Duration::from_secs(20));
        assert_eq!(clock.passed_since(i64::MAX, at(1_050_000, 50_000)), Duration::from_secs(50));
    }

    #[test]
    fn an_attempt_in_the_future_was_made_under_another_clock() {
        let clock = Clock::starting(at(1_000_000, 0));
        assert_eq!(clock.ran_since(9_000_000, at(1_010_000, 10_000)), Duration::from_secs(10));
    }
}
