//! Slowing down where a shop slows down. Pure.
//!
//! The idea is that of Scrapy's AutoThrottle extension (docs.scrapy.org, "AutoThrottle extension"): one request in flight
//! on average, so the delay between two requests goes half-way towards the latency of the shop, and only a good answer
//! may lower it. Theirs holds from the first answer on. Through Tor that would take a long way for a busy shop, and
//! make the configured rate and concurrency mean nothing; so here it begins where the shop is slower than itself:
//!
//! * `latency` moves by an eighth of the difference with each good answer, as TCP smooths its round trips (RFC 6298, 2.3).
//! * `usual` is the `latency` after `GOOD_MIN` answers: searches and pages differ, and the first answers prove little. It
//!   falls by a 32nd of the difference and rises by a 256th, so a shop that became slow for good is taken as it is after
//!   some hundreds of answers.
//! * The shop is *strained* if `latency` is over twice the usual one and over a second.
//! * After each answer `interval = (interval + target) / 2`, where `target` is
//!   for 429 and 503: twice the interval, at least a second, at least `latency`;
//!   while strained: `latency`, which is one request in flight;
//!   after any other good answer: the configured interval; after any other answer: what it is.
//! * Never under the configured interval, never over `INTERVAL_MAX` or the configured interval, if that is longer.

use std::time::Duration;

/// A shop that answers 429 for an hour is asked 60 times more; what it wants beyond that it can say by `Retry-After`.
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// The least that a refusal aims at: half-way to it is a pause that a server notices, whatever the rate was.
const REFUSED_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Whoever answers within a second is in no distress, though it may have been faster.
const STRAINED_LATENCY_MIN: Duration = Duration::from_secs(1);
/// A circuit is easily twice as slow as another; their average is not.
const STRAINED_FACTOR: u32 = 2;

/// Good answers that make what is usual.
const GOOD_MIN: u32 = 16;

/// What one answer says of the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// 2xx.
    Good,
    /// 429 or 503: too much for it.
    Refused,
    /// Whatever else; a page that is not there is quickly said and proves nothing.
    Other,
}

impl Mood {
    pub fn of(status: u16) -> Self {
        match status {
            200..=299 => Self::Good,
            429 | 503 => Self::Refused,
            _ => Self::Other,
        }
    }
}

/// A change worth telling: at least a factor of two since the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub interval: Duration,
    /// As configured.
    pub configured: Duration,
    pub latency: Duration,
}

/// The interval of one shop.
#[derive(Clone, Copy, Debug)]
pub struct Slowing {
    configured: Duration,
    interval: Duration,
    /// That was last told.
    told: Duration,
    /// Good answers so far.
    good: u32,
    latency: Duration,
    usual: Duration,
}

impl Slowing {
    pub fn new(configured: Duration) -> Self {
        let (latency, usual) = (Duration::ZERO, Duration::ZERO);
        Self { configured, interval: configured, told: configured, good: 0, latency, usual }
    }

    /// Between two requests, now.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// What slows the shop is no less for a new configuration; but a longer interval holds at once, and a shorter one too
    /// where nothing slows it.
    pub fn configure(&mut self, configured: Duration) {
        let was_slowed = self.configured < self.interval;
        self.interval = if was_slowed { self.interval.max(configured) } else { configured };
        self.told = if was_slowed { self.told.max(configured) } else { configured };
        self.configured = configured;
    }

    /// As if the shop had never been slow.
    pub fn forget(&mut self) {
        *self = Self::new(self.configured);
    }

    /// Takes an answer that took so long; what is to be told, if anything.
    pub fn on_answer(&mut self, took: Duration, mood: Mood) -> Option<Change> {
        if mood == Mood::Good {
            self.learn(took);
        }
        let latency = self.latency;
        let is_strained = GOOD_MIN < self.good
            && STRAINED_LATENCY_MIN < latency
            && self.usual.saturating_mul(STRAINED_FACTOR) < latency;
        let target = match mood {
            Mood::Refused => (2 * self.interval).max(REFUSED_INTERVAL_MIN).max(latency),
            Mood::Good if is_strained => latency,
            Mood::Good => self.configured,
            // May not lower it.
            Mood::Other if is_strained => latency.max(self.interval),
            Mood::Other => self.interval,
        };
        let longest = INTERVAL_MAX.max(self.configured);
        self.interval = ((self.interval + target) / 2).clamp(self.configured, longest);
        // Half-way for ever would never arrive.
        if self.interval - self.configured < self.configured / 16 {
            self.interval = self.configured;
        }
        let told = (2 * self.told <= self.interval) || (2 * self.interval <= self.told);
        told.then(|| {
            self.told = self.interval;
            Change { interval: self.interval, configured: self.configured, latency }
        })
    }
}

impl Slowing {
    fn learn(&mut self, took: Duration) {
        self.good = self.good.saturating_add(1);
        self.latency = if self.good == 1 { took } else { moved(self.latency, took, 8) };
        self.usual = if self.good <= GOOD_MIN {
            self.latency
        } else {
            moved(self.usual, self.latency, if self.latency < self.usual { 32 } else { 256 })
        };
    }
}

/// `from`, moved by one `part`th of its way to `to`.
fn moved(from: Duration, to: Duration, part: u32) -> Duration {
    if from < to { from + (to - from) / part } else { from - (from - to) / part }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const HALF: Duration = ms(500);

    /// Answers that took so long, all good; the changes that were told.
    fn answers(slowing: &mut Slowing, took: Duration, times: u32) -> Vec<Duration> {
        (0..times).filter_map(|_| slowing.on_answer(took, Mood::Good)).map(|change| change.interval).collect()
    }

    #[test]
    fn a_shop_that_is_as_slow_as_ever_is_asked_as_often_as_configured() {
        for took in [ms(5), ms(300), ms(2_000), ms(20_000)] {
            let mut slowing = Slowing::new(HALF);
            assert!(answers(&mut slowing, took, 1_000).is_empty());
            assert_eq!(slowing.interval(), HALF, "{took:?}");
        }
    }

    #[test]
    fn a_shop_that_becomes_slow_has_one_request_in_flight_and_then_its_rate_again() {
        let mut slowing = Slowing::new(HALF);
        answers(&mut slowing, ms(400), 20);
        let told = answers(&mut slowing, ms(4_000), 60);
        assert!(told.len() <= 3 && told.is_sorted(), "one event for each doubling: {told:?}");
        let strained = slowing.interval();
        assert!(ms(3_000) < strained && strained <= ms(4_000), "{strained:?}");
        let told = answers(&mut slowing, ms(400), 60);
        assert!(!told.is_empty() && told.len() <= 3, "{told:?}");
        assert_eq!(slowing.interval(), HALF);
    }

    #[test]
    fn searches_that_are_quick_and_pages_that_are_slow_are_no_strain() {
        let mut slowing = Slowing::new(HALF);
        for _ in 0..500 {
            slowing.on_answer(ms(5), Mood::Other); // As quick as it is, a 404 is no measure.
            answers(&mut slowing, ms(200), 1);
            answers(&mut slowing, ms(2_500), 1);
            assert_eq!(slowing.interval(), HALF);
        }
    }

    #[test]
    fn one_slow_answer_among_many_changes_nothing() {
        let mut slowing = Slowing::new(HALF);
        answers(&mut slowing, ms(400), 20);
        assert!(answers(&mut slowing, ms(3_000), 1).is_empty());
        assert_eq!(slowing.interval(), HALF);
    }

    #[test]
    fn a_fast_shop_that_takes_a_whole_second_still_keeps_its_rate() {
        let mut slowing = Slowing::new(HALF);
        answers(&mut slowing, ms(10), 20);
        answers(&mut slowing, ms(1_000), 100);
        assert_eq!(slowing.interval(), HALF);
    }

    #[test]
    fn each_refusal_stretches_by_half_up_to_a_minute() {
        let mut slowing = Slowing::new(ms(1_000));
        for expected in [1_500, 2_250, 3_375] {
            slowing.on_answer(ms(50), Mood::Refused);
            assert_eq!(slowing.interval(), ms(expected));
        }
        for _ in 0..100 {
            slowing.on_answer(ms(50), Mood::Refused);
        }
        assert_eq!(slowing.interval(), INTERVAL_MAX);
        slowing.on_answer(ms(50), Mood::Other);
        assert_eq!(slowing.interval(), INTERVAL_MAX, "only a good answer lowers it");
        slowing.on_answer(ms(50), Mood::Good);
        assert_eq!(slowing.interval(), ms(30_500), "half-way");
    }

    #[test]
    fn a_refusal_slows_any_rate_to_something_that_a_server_notices() {
        let mut slowing = Slowing::new(ms(1));
        let change = slowing.on_answer(ms(5), Mood::Refused).unwrap();
        assert_eq!(change.interval, (ms(1) + ms(1_000)) / 2);
    }

    #[test]
    fn a_change_of_less_than_a_factor_of_two_is_not_told() {
        let mut slowing = Slowing::new(ms(1_000));
        assert_eq!(slowing.on_answer(ms(50), Mood::Refused), None, "1.5 s");
        let change = slowing.on_answer(ms(50), Mood::Refused).unwrap();
        assert_eq!((change.interval, change.configured), (ms(2_250), ms(1_000)));
        assert_eq!(slowing.on_answer(ms(50), Mood::Good), None, "1.6 s");
        let change = slowing.on_answer(ms(50), Mood::Good);
        assert_eq!(change, None, "1.3 s");
        assert_eq!(slowing.on_answer(ms(50), Mood::Good), None, "1.2 s");
        let told: Vec<_> = (0..10).filter_map(|_| slowing.on_answer(ms(50), Mood::Good)).collect();
        assert_eq!(told.len(), 1, "and back: {told:?}");
    }

    #[test]
    fn a_rate_slower_than_the_cap_is_never_made_faster() {
        let hour = Duration::from_secs(3_600);
        let mut slowing = Slowing::new(hour);
        slowing.on_answer(ms(50), Mood::Refused);
        assert_eq!(slowing.interval(), hour);
    }

    #[test]
    fn a_new_rate_holds_at_once_and_what_slows_the_shop_still_does() {
        let mut slowing = Slowing::new(HALF);
        slowing.configure(ms(100));
        assert_eq!(slowing.interval(), ms(100), "nothing slows it");
        slowing.on_answer(ms(50), Mood::Refused);
        let slowed = slowing.interval();
        slowing.configure(ms(200));
        assert_eq!(slowing.interval(), slowed);
        slowing.configure(ms(10_000));
        assert_eq!(slowing.interval(), ms(10_000));
        slowing.forget();
        assert_eq!(slowing.interval(), ms(10_000));
    }
}
