//! What one question to a shop needs: its way out, its turns at the shop, and the time it has left, which no wait shortens.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::deadlines::Watched;
use super::pace::Pace;
use crate::model::page::Via;
use crate::supervisor::policy::Roll;

/// One question, and the requests that it takes.
#[derive(Debug)]
pub struct Errand<'a> {
    /// For the log.
    pub site: Box<str>,
    pub via: Via,
    pace: Pace,
    deadline: Instant,
    /// A slot was taken for the request that leaves next.
    is_paid: bool,
    /// Told of every deadline.
    watched: Option<&'a Watched>,
    /// How long the last answer took to come whole.
    latency: Option<Duration>,
}

impl<'a> Errand<'a> {
    /// For a visit that the queue has started: it took the slot of the first request.
    pub fn of_visit(site: &str, via: Via, pace: Pace, deadline: Instant, watched: &'a Watched) -> Self {
        watched.is_due(deadline);
        let site = site.into();
        Self { site, via, pace, deadline, is_paid: true, watched: Some(watched), latency: None }
    }

    /// At a server that may be asked at any time.
    pub fn unpaced(via: Via, deadline: Instant) -> Self {
        let pace = Pace::new(Duration::ZERO, Instant::now());
        Self { site: "shop".into(), via, pace, deadline, is_paid: false, watched: None, latency: None }
    }

    /// By this pace, with no slot taken.
    #[cfg(test)]
    pub fn in_turn(via: Via, pace: Pace, deadline: Instant) -> Self {
        Self { pace, ..Self::unpaced(via, deadline) }
    }

    /// Another question that goes first, by the same way, with its own time; it takes over the slot of this one.
    pub fn before(&mut self, deadline: Instant) -> Self {
        if let Some(watched) = self.watched {
            watched.is_due(deadline);
        }
        let (is_paid, watched) = (std::mem::take(&mut self.is_paid), self.watched);
        let (site, pace) = (self.site.clone(), self.pace.clone());
        Self { site, via: self.via, pace, deadline, is_paid, watched, latency: None }
    }

    /// The question that went first, from `began` on, is over; it took nothing of this one's time.
    pub fn resume(&mut self, began: Instant) {
        self.deadline += began.elapsed();
        if let Some(watched) = self.watched {
            watched.is_due(self.deadline);
        }
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    pub fn latency(&self) -> Option<Duration> {
        self.latency
    }

    pub(super) fn answered(&mut self, took: Duration) {
        self.latency = Some(took);
    }

    /// Waits for a slot of the shop's pace, before anything is dialled.
    pub(super) async fn turn(&mut self) {
        if !std::mem::take(&mut self.is_paid) {
            let pace = self.pace.clone();
            let slot = pace.take(Instant::now());
            self.wait(pace.turn(slot)).await;
        }
    }

    /// Waits until the request may leave; the next thing to be done is to send it.
    pub(super) async fn leave(&mut self) {
        let pace = self.pace.clone();
        self.wait(pace.leave()).await;
    }

    /// Waits as long as a reader would look at a page.
    pub async fn pause(&mut self, pause: Duration, roll: Roll) {
        self.wait(tokio::time::sleep(around(pause, roll))).await;
    }

    /// Somebody else's work goes first; a slot that was taken is not kept for so long.
    pub async fn give_way<T>(&mut self, wait: impl Future<Output = T>) -> T {
        self.is_paid = false;
        self.wait(wait).await
    }

    /// No time runs meanwhile.
    pub(super) async fn wait<T>(&mut self, wait: impl Future<Output = T>) -> T {
        let began = Instant::now();
        if let Some(watched) = self.watched {
            watched.waits();
        }
        let waited = wait.await;
        self.deadline += began.elapsed();
        if let Some(watched) = self.watched {
            watched.is_due(self.deadline);
        }
        waited
    }
}

/// By chance from half of `pause` to half as much again, so that no rhythm shows; `pause` on average.
fn around(pause: Duration, roll: Roll) -> Duration {
    pause / 2 + pause.mul_f64(f64::from(roll.0) / f64::from(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_pause_is_by_chance_from_half_to_half_as_much_again() {
        assert_eq!(around(SECOND, Roll(0)), SECOND / 2);
        assert_eq!(around(SECOND, Roll(u16::MAX)), SECOND + SECOND / 2);
        assert_eq!(around(Duration::ZERO, Roll(u16::MAX)), Duration::ZERO);
        let sum: Duration = (0..=u16::MAX).map(|roll| around(SECOND, Roll(roll))).sum();
        let mean = sum / (u32::from(u16::MAX) + 1);
        assert!(mean.abs_diff(SECOND) < Duration::from_millis(1), "{mean:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_wait_shortens_the_time_that_is_left() {
        let mut errand = Errand::unpaced(Via::Direct, Instant::now() + SECOND);
        errand.pace.configure(60 * SECOND, false, Instant::now());
        for _ in 0..3 {
            errand.turn().await;
            errand.leave().await;
        }
        errand.pause(SECOND, Roll(u16::MAX)).await;
        errand.give_way(tokio::time::sleep(60 * SECOND)).await;
        assert_eq!(errand.deadline().duration_since(Instant::now()), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_is_paid_for_once_and_goes_to_whoever_is_first() {
        let start = Instant::now();
        let mut errand = Errand::unpaced(Via::Direct, start + SECOND);
        errand.pace.configure(60 * SECOND, false, start);
        errand.pace.take(start);
        errand.is_paid = true;
        let mut first = errand.before(start + SECOND);
        first.turn().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        errand.turn().await;
        assert_eq!(start.elapsed(), 60 * SECOND);
    }
}
