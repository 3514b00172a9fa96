//! How often a shop may be asked: one slot every `interval`, shared by all circuits.
//!
//! A slot is a number, and its moment follows from the interval of now: whoever waits for one when the interval changes
//! waits by the new interval from then on.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Hands out the moments at which requests to one shop may leave. Cheap to clone; clones share the slots.
#[derive(Clone, Debug)]
pub struct Pace(watch::Sender<Slots>);

/// Slot `n` comes `n - number` intervals after `at`, which is not in the future.
#[derive(Clone, Copy, Debug)]
struct Slots {
    interval: Duration,
    at: Instant,
    number: u64,
    /// The first that nobody has taken.
    next: u64,
}

impl Slots {
    fn at(&self, slot: u64) -> Instant {
        let intervals = u32::try_from(slot.saturating_sub(self.number)).unwrap_or(u32::MAX);
        self.at + self.interval.saturating_mul(intervals)
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

    /// Counts from the last slot whose moment has come.
    fn change(&mut self, interval: Duration, now: Instant) {
        if let Some(last) = self.next.checked_sub(1) {
            let gone =
                now.saturating_duration_since(self.at).as_nanos().checked_div(self.interval.as_nanos());
            let gone = gone.and_then(|gone| u64::try_from(gone).ok()).unwrap_or(u64::MAX);
            let passed = self.number.saturating_add(gone).min(last);
            (self.at, self.number) = (self.at(passed), passed);
        }
        self.interval = interval;
    }
}

impl Pace {
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self(watch::Sender::new(Slots { interval, at: now, number: 0, next: 0 }))
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

    /// From now on, also for those who wait.
    pub fn set_interval(&self, interval: Duration, now: Instant) {
        self.0.send_if_modified(|slots| {
            let changed = slots.interval != interval;
            if changed {
                slots.change(interval, now);
            }
            changed
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
        pace.set_interval(SECOND, start + SECOND / 2);
        assert_eq!([moment(second), moment(third)], [SECOND, 2 * SECOND], "faster");
        assert_eq!(pace.next_at(), start + 3 * SECOND);
        pace.set_interval(HOUR, start + SECOND + SECOND / 2);
        assert_eq!([moment(second), moment(third)], [SECOND, SECOND + HOUR], "slower, but for what has come");
        pace.set_interval(Duration::ZERO, start + 2 * SECOND);
        pace.set_interval(SECOND, start + 3 * SECOND);
        assert_eq!(pace.next_at(), start + 2 * SECOND, "without an interval every slot has come");
    }

    #[test]
    fn a_pace_that_nobody_used_yet_is_open_at_any_interval() {
        let start = Instant::now();
        let pace = Pace::new(HOUR, start);
        pace.set_interval(SECOND, start + HOUR);
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
            faster.set_interval(2 * SECOND, Instant::now());
        });
        pace.turn(slot).await;
        assert_eq!(start.elapsed(), 2 * SECOND);
    }
}
