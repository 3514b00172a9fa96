//! When a shop is left alone, for how long, and when it is over. Pure; time is passed in.
//!
//! Two things suspend a shop: its visits make scrapers fail ([`Cause::Crashes`]), or it refuses most exits
//! ([`Cause::Blocks`]). What differs is what counts, and what a trial must bring.
//!
//! ```text
//!            one crash more than CRASHES allows; refused by REFUSALS in a row
//!   ┌────────┐ ─────────────────────────────────────────▶ ┌───────────┐
//!   │  Open  │                                            │ Suspended │ ◀─┐
//!   └────────┘ ◀──────────┐                               └─────┬─────┘   │ a crash, or another refusal:
//!                         │ it ends by itself (crashes)         │ its     │ for twice as long
//!                         │ it is let in (blocks)               │ time    │
//!                         │                                ┌────▼────┐    │ is over
//!                         └─────────────────────────────── │  Trial  │ ───┘
//!                                                          └─────────┘
//! ```
//!
//! A crash is charged to the visit that had dialled, as ever (rule 1), and a refusal to the visit that met it. What waits
//! while the shop is suspended is charged nothing (rule 4).

mod refusals;

use std::time::Duration;

use tokio::time::Instant;

use crate::model::way::Way;
use crate::supervisor::policy::{Backoff, Decision, History, Intensity, Roll};
use refusals::Refusals;

/// More than one poisonous page brings about with all its attempts, far less than the machine notices.
pub const CRASHES: Intensity = Intensity {
    at_most: 10,
    within: Duration::from_secs(60),
    backoff: Backoff { min: Duration::from_millis(20), max: Duration::from_secs(1) },
};

/// Doubles with each trial that fails. The longest is short enough to notice within the hour that the shop has mended the
/// page, or its mind.
const SUSPENDED_FOR: Backoff = Backoff { min: Duration::from_secs(15), max: Duration::from_secs(3_600) };

/// Why a shop is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Crashes,
    Blocks,
}

impl Cause {
    /// The word in the log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Crashes => "crashes",
            Self::Blocks => "blocks",
        }
    }
}

/// One shop.
#[derive(Debug, Default)]
pub struct Suspension {
    crashes: History,
    refusals: Refusals,
    state: State,
    /// In a row, with no end between them that opened the shop.
    times: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    Suspended {
        cause: Cause,
        until: Instant,
    },
    /// Its time was over, and no visit has shown since how it is.
    Trial {
        cause: Cause,
    },
}

/// How a visit went that left its scraper whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Went {
    /// Put back, or void: it says nothing of the shop.
    Nowhere,
    /// It met the shop, or would have, and came to no answer.
    Astray,
    /// The shop answered as it answers people.
    LetIn,
    /// The shop refused what came by this way, by this rule.
    Refused { way: Way, rule: String },
}

/// A shop is left alone from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspended {
    pub cause: Cause,
    pub pause: Duration,
    /// Crashes or refusals that led to it.
    pub count: u64,
    /// By a trial that failed: it had been left alone before.
    pub again: bool,
}

/// What a crash leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The scraper is started again after this long; so many crashes of the shop count.
    Restart {
        after: Duration,
        crashes: u64,
    },
    Suspend(Suspended),
    /// It is left alone already: this visit was under way before.
    Known,
}

/// What the end of a visit changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Suspended(Suspended),
    /// It is open again, which it was not because of this.
    Resumed(Cause),
}

impl Suspension {
    pub fn on_crash(&mut self, now: Instant, roll: Roll) -> Verdict {
        let is_trial = match self.state {
            State::Suspended { .. } => return Verdict::Known,
            State::Trial { .. } => true,
            State::Open => false,
        };
        match self.crashes.on_failure(CRASHES, now, roll) {
            Decision::Restart { after } if !is_trial => {
                Verdict::Restart { after, crashes: self.crashes.failures() }
            }
            Decision::Restart { .. } | Decision::Escalate => {
                let count = self.crashes.failures();
                Verdict::Suspend(self.suspend(Cause::Crashes, count, now, roll))
            }
        }
    }

    /// A visit ended and left its scraper whole.
    pub fn on_end(&mut self, went: &Went, now: Instant, roll: Roll) -> Option<Change> {
        match (self.state, went) {
            // Those that were under way before neither prolong nor end it.
            (State::Suspended { .. }, _) | (_, Went::Nowhere) => None,
            (State::Trial { cause: Cause::Blocks }, Went::Refused { .. }) => {
                Some(Change::Suspended(self.suspend(Cause::Blocks, 1, now, roll)))
            }
            // A shop that was refusing everybody is open when it lets one in, not when a circuit fails.
            (State::Trial { cause: Cause::Blocks }, Went::Astray) => None,
            (State::Open | State::Trial { cause: Cause::Crashes }, Went::Astray) => self.open(),
            (State::Open | State::Trial { .. }, Went::LetIn) => {
                self.refusals.clear();
                self.open()
            }
            (State::Open | State::Trial { cause: Cause::Crashes }, Went::Refused { way, .. }) => {
                let opened = self.open();
                let Some(count) = self.refusals.note(way, now) else { return opened };
                Some(Change::Suspended(self.suspend(Cause::Blocks, count, now, roll)))
            }
        }
    }

    /// How many visits may be in flight, of those that the shop's concurrency allows.
    pub fn allows(&self, concurrency: u32) -> u32 {
        match self.state {
            State::Suspended { .. } => 0,
            State::Trial { .. } => concurrency.min(1),
            State::Open => concurrency,
        }
    }

    /// Whether it is left alone now because it refuses most exits.
    pub fn refuses(&self) -> bool {
        matches!(self.state, State::Suspended { cause: Cause::Blocks, .. })
    }

    /// Whether there is nothing to remember of it but what may be forgotten.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Lets one visit be tried if its time is over.
    pub fn resume(&mut self, now: Instant) {
        if let State::Suspended { cause, until } = self.state
            && until <= now
        {
            self.state = State::Trial { cause };
        }
    }

    fn open(&mut self) -> Option<Change> {
        self.times = 0;
        match std::mem::take(&mut self.state) {
            State::Trial { cause } => Some(Change::Resumed(cause)),
            State::Open | State::Suspended { .. } => None,
        }
    }

    fn suspend(&mut self, cause: Cause, count: u64, now: Instant, roll: Roll) -> Suspended {
        let pause = SUSPENDED_FOR.pause(self.times, roll);
        let again = matches!(self.state, State::Trial { cause: of } if of == cause);
        self.times = self.times.saturating_add(1);
        self.state = State::Suspended { cause, until: now + pause };
        match cause {
            Cause::Crashes => self.crashes = History::default(),
            Cause::Blocks => self.refusals.clear(),
        }
        Suspended { cause, pause, count, again }
    }
}

#[cfg(test)]
mod tests {
    use super::refusals::REFUSALS;
    use super::*;

    const ROLL: Roll = Roll(0);
    const FIRST: Duration = SUSPENDED_FOR.min;

    fn suspend(cause: Cause, pause: Duration, count: u64, again: bool) -> Suspended {
        Suspended { cause, pause, count, again }
    }

    fn crashed(now: Instant) -> Suspension {
        let mut shop = Suspension::default();
        for _ in 0..CRASHES.at_most {
            assert!(matches!(shop.on_crash(now, ROLL), Verdict::Restart { .. }));
        }
        let verdict = Verdict::Suspend(suspend(Cause::Crashes, FIRST, 11, false));
        assert_eq!(shop.on_crash(now, ROLL), verdict);
        shop
    }

    fn refused_by(number: usize) -> Went {
        Went::Refused { way: Way::Circuit(number.to_string().into()), rule: "status 403".into() }
    }

    fn refusing(now: Instant) -> Suspension {
        let mut shop = Suspension::default();
        for number in 1..REFUSALS.in_a_row {
            assert_eq!(shop.on_end(&refused_by(number), now, ROLL), None);
        }
        let change = Change::Suspended(suspend(Cause::Blocks, FIRST, REFUSALS.in_a_row as u64, false));
        assert_eq!(shop.on_end(&refused_by(0), now, ROLL), Some(change));
        shop
    }

    #[test]
    fn a_shop_is_suspended_by_one_crash_too_many_and_tried_when_its_time_is_over() {
        let now = Instant::now();
        let mut shop = crashed(now);
        assert_eq!(shop.allows(5), 0);
        shop.resume(now + FIRST - Duration::from_millis(1));
        assert_eq!(shop.allows(5), 0);
        shop.resume(now + FIRST);
        assert_eq!(shop.allows(5), 1);
    }

    #[test]
    fn after_its_time_one_visit_is_tried_and_its_end_opens_the_shop() {
        let now = Instant::now();
        for went in [Went::Astray, Went::LetIn, refused_by(1)] {
            let mut shop = crashed(now);
            shop.resume(now + FIRST);
            assert_eq!(shop.on_end(&Went::Nowhere, now, ROLL), None);
            assert_eq!(shop.allows(5), 1, "that proved nothing");
            assert_eq!(shop.on_end(&went, now, ROLL), Some(Change::Resumed(Cause::Crashes)));
            assert_eq!(shop.allows(5), 5);
            assert!(matches!(shop.on_crash(now + FIRST, ROLL), Verdict::Restart { .. }), "forgiven");
        }
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
        let (mut crashing, mut blocking) = (crashed(now), refusing(now));
        let mut pause = FIRST;
        for seconds in [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600] {
            now += pause;
            crashing.resume(now);
            blocking.resume(now);
            pause = Duration::from_secs(seconds);
            let verdict = Verdict::Suspend(suspend(Cause::Crashes, pause, 1, true));
            assert_eq!(crashing.on_crash(now, ROLL), verdict);
            let change = Change::Suspended(suspend(Cause::Blocks, pause, 1, true));
            assert_eq!(blocking.on_end(&refused_by(1), now, ROLL), Some(change));
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
                Verdict::Suspend(suspended) => {
                    now += suspended.pause;
                    shop.resume(now);
                }
                Verdict::Known => panic!("it was resumed"),
            }
        }
        assert_eq!(crashes, 19);
    }

    #[test]
    fn an_hour_of_a_shop_that_refuses_everybody_costs_thirty_two_visits() {
        const SHORTEST: Roll = Roll(u16::MAX);
        let (mut shop, begin) = (Suspension::default(), Instant::now());
        let (mut now, mut visits) = (begin, 0);
        while now - begin < Duration::from_secs(3_600) {
            visits += 1;
            match shop.on_end(&refused_by(visits), now, SHORTEST) {
                None => {}
                Some(Change::Suspended(suspended)) => {
                    now += suspended.pause;
                    shop.resume(now);
                }
                Some(Change::Resumed(cause)) => panic!("{cause:?}"),
            }
        }
        assert_eq!(visits, 32);
    }

    #[test]
    fn visits_that_were_under_way_when_it_was_suspended_neither_prolong_nor_end_it() {
        let now = Instant::now();
        let mut shop = crashed(now);
        assert_eq!(shop.on_crash(now, ROLL), Verdict::Known);
        for went in [Went::Astray, Went::LetIn, refused_by(1)] {
            assert_eq!(shop.on_end(&went, now, ROLL), None);
        }
        assert_eq!(shop.allows(5), 0);
        shop.resume(now + FIRST);
        let doubled = Verdict::Suspend(suspend(Cause::Crashes, 2 * FIRST, 1, true));
        assert_eq!(shop.on_crash(now + FIRST, ROLL), doubled, "it proved nothing");
    }

    #[test]
    fn a_shop_that_refused_everybody_opens_by_one_answer_and_by_nothing_less() {
        let now = Instant::now();
        let mut shop = refusing(now);
        assert!(shop.refuses());
        shop.resume(now + FIRST);
        assert!(!shop.refuses(), "the next is tried");
        assert_eq!(shop.on_end(&Went::Astray, now + FIRST, ROLL), None);
        assert_eq!(shop.allows(5), 1, "a circuit that fails says nothing of the shop");
        let resumed = Some(Change::Resumed(Cause::Blocks));
        assert_eq!(shop.on_end(&Went::LetIn, now + FIRST, ROLL), resumed);
        assert_eq!(shop.allows(5), 5);
        assert_eq!(shop.on_end(&refused_by(1), now + FIRST, ROLL), None, "it counts from the start");
    }

    #[test]
    fn a_crash_while_a_refusing_shop_is_tried_leaves_it_alone_as_well() {
        let now = Instant::now();
        let mut shop = refusing(now);
        shop.resume(now + FIRST);
        let verdict = Verdict::Suspend(suspend(Cause::Crashes, 2 * FIRST, 1, false));
        assert_eq!(shop.on_crash(now + FIRST, ROLL), verdict);
        assert!(!shop.refuses(), "its visits wait");
    }
}
