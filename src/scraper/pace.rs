//! How often a shop may be asked: one slot every `interval`, shared by all circuits.
//!
//! A request that leaves goes through here twice. Before anything is dialled it takes a slot and waits for its moment; and
//! once its connection stands it waits until the request before it has left an interval ago, because some circuits take
//! seconds to dial and others none, and what a shop counts is what arrives. So in any time `t` no more than
//! `t / interval + 1` requests leave, whatever the circuits (`GRAIN_MIN` says how much of a delay may be made up for).
//!
//! A slot is a number, and its moment follows from the interval of now: whoever waits for one when the interval changes
//! waits by the new interval from then on. A shop that asks to be left alone ([`Pace::hold`]) moves all slots that have
//! not come; one that slows down stretches the interval ([`Pace::answered`]). Nothing of this outlives the pool
//! of the scrapers: after its restart, or the process's, the first request leaves at once.

pub mod slowing;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use slowing::{Change, Mood, Slowing};

/// A request that left late lets the next one leave as much earlier, but no more than a quarter of the interval, or this
/// if that is more: timers come a little late, and that alone should not cost a fast shop half of its rate.
const GRAIN_MIN: Duration = Duration::from_millis(10);
/// A second answer of those in flight says the same a moment later; only what holds longer than this is news.
const SAME_HOLD_WITHIN: Duration = Duration::from_secs(1);

/// Hands out the moments at which requests to one shop may leave. Cheap to clone; clones share the slots.
#[derive(Clone, Debug)]
pub struct Pace(watch::Sender<Slots>);

/// Slot `n` comes `n - number` intervals after `at`, which is in the future only while the shop is held.
#[derive(Clone, Copy, Debug)]
struct Slots {
    slowing: Slowing,
    /// Whether answers may stretch the interval.
    adaptive: bool,
    at: Instant,
    number: u64,
    /// The first that nobody has taken.
    next: u64,
    /// When the last request left, or was to leave.
    left: Option<Instant>,
    /// Nothing leaves before it.
    held: Option<Instant>,
}

impl Slots {
    fn interval(&self) -> Duration {
        self.slowing.interval()
    }

    fn at(&self, slot: u64) -> Instant {
        let intervals = u32::try_from(slot.saturating_sub(self.number)).unwrap_or(u32::MAX);
        self.at + self.interval().saturating_mul(intervals)
    }

    /// Slots missed while nobody asked are not made up for.
    fn take(&mut self, now: Instant) -> u64 {
        let slot = self.next;
        if self.at(slot) < now {
            (self.at, self.number) = (now, slot);
        }
        self.next += 1;
        slot
    }

    /// The last slot whose moment has come, of those that were taken.
    fn passed(&self, now: Instant) -> Option<u64> {
        let last = self.next.checked_sub(1)?;
        let gone = now.checked_duration_since(self.at)?;
        let gone = gone.as_nanos().checked_div(self.interval().as_nanos());
        let gone = gone.and_then(|gone| u64::try_from(gone).ok()).unwrap_or(u64::MAX);
        Some(self.number.saturating_add(gone).min(last)).filter(|passed| self.number <= *passed)
    }

    /// Counts from the last slot whose moment has come, while `change` is made.
    fn change<T>(&mut self, now: Instant, change: impl FnOnce(&mut Slowing) -> T) -> T {
        if let Some(passed) = self.passed(now) {
            (self.at, self.number) = (self.at(passed), passed);
        }
        change(&mut self.slowing)
    }

    /// The first slot that has not come, comes then.
    fn hold(&mut self, until: Instant, now: Instant) {
        let first = self.passed(now).map_or(self.number, |passed| passed + 1);
        if self.at(first) < until {
            (self.at, self.number) = (until, first);
        }
        self.held = self.held.max(Some(until));
    }

    /// When the next request may leave.
    fn leaves_at(&self, now: Instant) -> Instant {
        let after_last = self.left.map_or(now, |left| left + self.interval());
        self.held.map_or(after_last, |held| held.max(after_last))
    }

    fn leave(&mut self, now: Instant) {
        let grain = (self.interval() / 4).max(GRAIN_MIN);
        let was_to = self.leaves_at(now);
        self.left = Some(now.checked_sub(grain).map_or(was_to, |earliest| was_to.max(earliest)).min(now));
    }
}

impl Pace {
    pub fn new(interval: Duration, now: Instant) -> Self {
        let slowing = Slowing::new(interval);
        let slots = Slots { slowing, adaptive: false, at: now, number: 0, next: 0, left: None, held: None };
        Self(watch::Sender::new(slots))
    }

    /// When the next request could leave.
    pub fn next_at(&self) -> Instant {
        let slots = self.0.borrow();
        slots.at(slots.next)
    }

    /// Takes the next slot: see [`Self::turn`] for its moment, which may be now.
    pub fn take(&self, now: Instant) -> u64 {
        let mut slot = 0;
        self.0.send_if_modified(|slots| {
            slot = slots.take(now);
            false // Nobody who waits has to look again.
        });
        slot
    }

    /// From now on, also for those who wait. `adaptive`: answers may stretch it.
    pub fn configure(&self, interval: Duration, adaptive: bool, now: Instant) {
        self.0.send_if_modified(|slots| {
            let before = slots.interval();
            slots.change(now, |slowing| {
                slowing.configure(interval);
                if !adaptive {
                    slowing.forget();
                }
            });
            slots.adaptive = adaptive;
            before != slots.interval()
        });
    }

    /// Returns at the moment of a slot that was taken.
    pub async fn turn(&self, slot: u64) {
        let mut slots = self.0.subscribe();
        loop {
            let at = slots.borrow_and_update().at(slot);
            tokio::select! {
                () = tokio::time::sleep_until(at) => return,
                // It cannot fail: `self` holds the sender.
                _ = slots.changed() => {}
            }
        }
    }

    /// Returns when a request may leave, which is counted as having left.
    pub async fn leave(&self) {
        let mut slots = self.0.subscribe();
        loop {
            slots.mark_unchanged();
            let now = Instant::now();
            let mut at = now;
            self.0.send_if_modified(|slots| {
                at = slots.leaves_at(now);
                if at <= now {
                    slots.leave(now);
                }
                false // Whoever waits as well finds out when its time comes.
            });
            if at <= now {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                _ = slots.changed() => {}
            }
        }
    }

    /// Nothing leaves before `until`; who waits goes on waiting, an interval apart from each other afterwards. Whether
    /// that is news.
    pub fn hold(&self, until: Instant, now: Instant) -> bool {
        let mut is_news = false;
        self.0.send_if_modified(|slots| {
            let held = slots.held.filter(|held| now < *held);
            is_news = held.is_none_or(|held| held + SAME_HOLD_WITHIN < until);
            slots.hold(until, now);
            true
        });
        is_news
    }

    /// An answer of the shop; whether it changed the interval so much that it is to be told.
    pub fn answered(&self, took: Duration, mood: Mood, now: Instant) -> Option<Change> {
        let mut told = None;
        self.0.send_if_modified(|slots| {
            if !slots.adaptive {
                return false;
            }
            let before = slots.interval();
            told = slots.change(now, |slowing| slowing.on_answer(took, mood));
            before != slots.interval()
        });
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn slots_are_an_interval_apart_and_missed_ones_are_not_made_up_for() {
        let start = Instant::now();
        let pace = Pace::new(SECOND, start);
        let moment = |slot| pace.0.borrow().at(slot);
        assert_eq!(moment(pace.take(start)), start);
        assert_eq!(moment(pace.clone().take(start)), start + SECOND);
        assert_eq!(moment(pace.take(start + 9 * SECOND)), start + 9 * SECOND);
        assert_eq!(pace.next_at(), start + 10 * SECOND);
    }

    #[test]
    fn a_changed_interval_counts_from_the_last_slot_that_has_come() {
        let start = Instant::now();
        let pace = Pace::new(HOUR, start);
        let [_, second, third] = [pace.take(start), pace.take(start), pace.take(start)];
        let moment = |slot| pace.0.borrow().at(slot) - start;
        assert_eq!([moment(second), moment(third)], [HOUR, 2 * HOUR]);
        pace.configure(SECOND, false, start + SECOND / 2);
        assert_eq!([moment(second), moment(third)], [SECOND, 2 * SECOND], "faster");
        assert_eq!(pace.next_at(), start + 3 * SECOND);
        pace.configure(HOUR, false, start + SECOND + SECOND / 2);
        assert_eq!([moment(second), moment(third)], [SECOND, SECOND + HOUR], "slower, but for what has come");
        pace.configure(Duration::ZERO, false, start + 2 * SECOND);
        pace.configure(SECOND, false, start + 3 * SECOND);
        assert_eq!(pace.next_at(), start + 2 * SECOND, "without an interval every slot has come");
    }

    #[test]
    fn a_pace_that_nobody_used_yet_is_open_at_any_interval() {
        let start = Instant::now();
        let pace = Pace::new(HOUR, start);
        pace.configure(SECOND, false, start + HOUR);
        assert_eq!(pace.next_at(), start);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_by_a_slow_pace_goes_on_by_the_faster_one() {
        let start = Instant::now();
        let pace = Pace::new(HOUR, start);
        pace.take(start);
        let slot = pace.take(start);
        let faster = pace.clone();
        tokio::spawn(async move {
            tokio::time::sleep(SECOND).await;
            faster.configure(2 * SECOND, false, Instant::now());
        });
        pace.turn(slot).await;
        assert_eq!(start.elapsed(), 2 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_leave_an_interval_apart_however_long_they_took_to_dial() {
        let pace = Pace::new(SECOND / 2, Instant::now());
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..40_u64 {
            let pace = pace.clone();
            tasks.spawn(async move {
                pace.turn(pace.take(Instant::now())).await;
                // The first take longest: without a second look they would leave together.
                tokio::time::sleep(Duration::from_millis(9_500_u64.saturating_sub(500 * n))).await;
                pace.leave().await;
                start.elapsed()
            });
        }
        let mut left = tasks.join_all().await;
        left.sort();
        for (at, first) in left.iter().enumerate() {
            let within = left[at..].iter().filter(|other| **other <= *first + 10 * SECOND).count();
            assert!(within <= 21, "{within} in 10 s: {left:?}");
        }
        assert!(*left.last().unwrap() < 30 * SECOND, "{left:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_left_a_little_late_costs_the_rate_nothing() {
        let pace = Pace::new(SECOND, Instant::now());
        let start = Instant::now();
        pace.leave().await;
        tokio::time::sleep(SECOND + SECOND / 5).await;
        pace.leave().await;
        pace.leave().await;
        assert_eq!(start.elapsed(), 2 * SECOND);
        tokio::time::sleep(9 * SECOND).await;
        pace.leave().await;
        pace.leave().await;
        assert_eq!(start.elapsed(), 11 * SECOND + 3 * SECOND / 4, "and what was missed is not made up for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shop_that_asks_to_be_left_alone_holds_all_who_wait_and_they_go_on_one_by_one() {
        let start = Instant::now();
        let pace = Pace::new(SECOND, start);
        let slots = [pace.take(start), pace.take(start), pace.take(start)];
        assert!(pace.hold(start + 30 * SECOND, start));
        assert!(!pace.hold(start + 30 * SECOND + SECOND / 2, start), "said once");
        assert!(!pace.hold(start + 10 * SECOND, start), "and never shortened");
        pace.leave().await;
        assert_eq!(start.elapsed(), 30 * SECOND + SECOND / 2, "also those whose connection stands");
        pace.turn(slots[1]).await;
        assert_eq!(start.elapsed(), 30 * SECOND + SECOND / 2);
        pace.turn(slots[2]).await;
        assert_eq!(start.elapsed(), 31 * SECOND + SECOND / 2);
        assert_eq!(pace.next_at(), start + 32 * SECOND + SECOND / 2);
        assert!(pace.hold(start + 60 * SECOND, Instant::now()), "a new one");
    }

    #[test]
    fn a_hold_counts_from_now_also_where_nobody_waits() {
        let start = Instant::now();
        for interval in [Duration::ZERO, SECOND, HOUR] {
            let pace = Pace::new(interval, start);
            pace.hold(start + 5 * SECOND, start);
            assert_eq!(pace.next_at(), start + 5 * SECOND, "{interval:?}, unused");
            let pace = Pace::new(interval, start);
            pace.take(start);
            let free = pace.next_at();
            pace.hold(start + 5 * SECOND, start);
            assert_eq!(pace.next_at(), free.max(start + 5 * SECOND), "{interval:?}, used");
        }
    }

    #[test]
    fn only_where_it_may_do_answers_stretch_the_interval() {
        let start = Instant::now();
        let pace = Pace::new(SECOND, start);
        pace.take(start);
        pace.answered(SECOND, Mood::Refused, start);
        assert_eq!(pace.next_at(), start + SECOND);
        pace.configure(SECOND, true, start);
        pace.answered(SECOND, Mood::Refused, start);
        assert_eq!(pace.next_at(), start + SECOND + SECOND / 2);
        pace.configure(SECOND, false, start);
        assert_eq!(pace.next_at(), start + SECOND, "switched off");
    }
}
