//! When a shop is left alone because its visits make scrapers fail, and for how long. Pure; time is passed in.
//!
//! ```text
//!              one crash more than CRASHES allows
//!   ┌────────┐ ─────────────────────────────────▶ ┌───────────┐
//!   │ Normal │                                    │ Suspended │ ◀─┐
//!   └────────┘ ◀──────────┐                       └─────┬─────┘   │ one crash: for twice as long
//!                         │ a visit ends well           │ its time is over
//!                         └─────────────────────── ┌────▼────┐    │
//!                                                  │  Trial  │ ───┘
//!                                                  └─────────┘
//! ```
//!
//! A crash is charged to the visit that had dialled, as ever (rule 1), so a page that no scraper survives ends its product
//! after its attempts. What waits while the shop is suspended is charged nothing (rule 4).

use std::time::Duration;

use tokio::time::Instant;

use crate::supervisor::policy::{Backoff, Decision, History, Intensity, Roll};

/// More than one poisonous page brings about with all its attempts, far less than the machine notices.
pub const CRASHES: Intensity = Intensity {
    at_most: 10,
    within: Duration::from_secs(60),
    backoff: Backoff { min: Duration::from_millis(20), max: Duration::from_secs(1) },
};

/// Doubles with each trial that fails. The longest is short enough to notice within the hour that the shop has mended the
/// page.
const SUSPENDED_FOR: Backoff = Backoff { min: Duration::from_secs(15), max: Duration::from_secs(3_600) };

/// One shop.
#[derive(Debug, Default)]
pub struct Suspension {
    crashes: History,
    /// In a row, with no visit between them that ended well.
    times: u32,
    until: Option<Instant>,
    /// Resumed, and no visit has ended since.
    trial: bool,
}

/// What a crash leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The scraper is started again after this long; so many crashes of the shop count.
    Restart { after: Duration, crashes: u64 },
    /// The shop is left alone for so long, because of so many crashes.
    Suspend { pause: Duration, crashes: u64 },
    /// It is left alone already: this visit was under way before.
    Known,
}

impl Suspension {
    pub fn on_crash(&mut self, now: Instant, roll: Roll) -> Verdict {
        if self.until.is_some() {
            return Verdict::Known;
        }
        let decision = self.crashes.on_failure(CRASHES, now, roll);
        match decision {
            Decision::Restart { after } if !self.trial => {
                Verdict::Restart { after, crashes: self.crashes.failures() }
            }
            Decision::Restart { .. } | Decision::Escalate => {
                let pause = SUSPENDED_FOR.pause(self.times, roll);
                let crashes = self.crashes.failures();
                self.times = self.times.saturating_add(1);
                self.until = Some(now + pause);
                self.trial = false;
                self.crashes = History::default();
                Verdict::Suspend { pause, crashes }
            }
        }
    }

    /// A visit ended by itself, and its scraper is there.
    pub fn on_end(&mut self) {
        if self.until.is_none() {
            self.times = 0;
            self.trial = false;
        }
    }

    /// How many visits may be in flight, of those that the shop's concurrency allows.
    pub fn allows(&self, concurrency: u32) -> u32 {
        match (self.until, self.trial) {
            (Some(_), _) => 0,
            (None, true) => concurrency.min(1),
            (None, false) => concurrency,
        }
    }

    /// Whether its time is over just now.
    pub fn resume(&mut self, now: Instant) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.until = None;
            self.trial = true;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLL: Roll = Roll(0);
    const FIRST: Duration = SUSPENDED_FOR.min;

    fn suspended(now: Instant) -> Suspension {
        let mut shop = Suspension::default();
        for _ in 0..CRASHES.at_most {
            assert!(matches!(shop.on_crash(now, ROLL), Verdict::Restart { .. }));
        }
        assert_eq!(shop.on_crash(now, ROLL), Verdict::Suspend { pause: FIRST, crashes: 11 });
        shop
    }

    #[test]
    fn a_shop_is_suspended_by_one_crash_too_many_and_resumed_when_its_time_is_over() {
        let now = Instant::now();
        let mut shop = suspended(now);
        assert_eq!(shop.allows(5), 0);
        assert!(!shop.resume(now + FIRST - Duration::from_millis(1)));
        assert!(shop.resume(now + FIRST));
        assert!(!shop.resume(now + FIRST), "once");
    }

    #[test]
    fn after_its_time_one_visit_is_tried_and_its_end_opens_the_shop() {
        let now = Instant::now();
        let mut shop = suspended(now);
        shop.resume(now + FIRST);
        assert_eq!(shop.allows(5), 1);
        shop.on_end();
        assert_eq!(shop.allows(5), 5);
        assert!(matches!(shop.on_crash(now + FIRST, ROLL), Verdict::Restart { .. }), "forgiven");
    }

    #[test]
    fn crashes_now_and_then_suspend_nobody() {
        let (mut shop, mut now) = (Suspension::default(), Instant::now());
        for _ in 0..100 {
            assert!(matches!(shop.on_crash(now, ROLL), Verdict::Restart { .. }));
            now += CRASHES.within / 9;
        }
    }

    #[test]
    fn a_trial_that_fails_suspends_at_once_for_twice_as_long_up_to_an_hour() {
        let mut now = Instant::now();
        let mut shop = suspended(now);
        let mut pause = FIRST;
        for seconds in [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600] {
            now += pause;
            assert!(shop.resume(now));
            pause = Duration::from_secs(seconds);
            assert_eq!(shop.on_crash(now, ROLL), Verdict::Suspend { pause, crashes: 1 });
        }
    }

    #[test]
    fn an_hour_of_a_shop_that_always_crashes_costs_nineteen_scrapers() {
        /// Chance may take half of each pause.
        const SHORTEST: Roll = Roll(u16::MAX);
        let (mut shop, begin) = (Suspension::default(), Instant::now());
        let (mut now, mut crashes) = (begin, 0);
        while now - begin < Duration::from_secs(3_600) {
            crashes += 1;
            match shop.on_crash(now, SHORTEST) {
                Verdict::Restart { after, .. } => now += after,
                Verdict::Suspend { pause, .. } => {
                    now += pause;
                    assert!(shop.resume(now));
                }
                Verdict::Known => panic!("it was resumed"),
            }
        }
        assert_eq!(crashes, 19);
    }

    #[test]
    fn visits_that_were_under_way_when_it_was_suspended_neither_prolong_nor_end_it() {
        let now = Instant::now();
        let mut shop = suspended(now);
        assert_eq!(shop.on_crash(now, ROLL), Verdict::Known);
        shop.on_end();
        assert_eq!(shop.allows(5), 0);
        assert!(shop.resume(now + FIRST));
        let doubled = Verdict::Suspend { pause: 2 * FIRST, crashes: 1 };
        assert_eq!(shop.on_crash(now + FIRST, ROLL), doubled, "it proved nothing");
    }
}
