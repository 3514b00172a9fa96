//! The state of one endpoint's lane: who may be sent when, and how long who failed waits. Pure; time is passed in.
//!
//! ```text
//!            park_after failures in a row
//!            over two deliveries, or of the only one
//!    ┌──────┐ ───────────────────────────────────────▶ ┌────────┐
//!    │ Open │                                          │ Parked │  one probe at a time, each with another delivery
//!    └──────┘ ◀─────────────────────────────────────── └────────┘
//!       ▲  │    an answer: taken, or refused for good      │
//!       │  └──────────────────▶ ┌─────────┐ ◀──────────────┘
//!       └────────────────────── │ Stopped │   410
//!        resumed by a person    └─────────┘
//! ```

pub mod actor;

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::delivery::DeliveryNo;

/// When a lane parks and how long its deliveries wait.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub park_after: u32,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    pub parked_probe_max: Duration,
}

/// Probes of one parking whose delivery is not taken again; after so many the first has waited its turn.
const TRIED_MAX: usize = 256;

/// One lane. `now` is always the uptime.
#[derive(Debug, Default)]
pub struct Lane {
    state: State,
    streak: Streak,
    last_answer: Option<Duration>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Open,
    Parked(Parked),
    /// `recorded`: the ledger knows, so whoever wakes the lane again was sent by a person.
    Stopped {
        recorded: bool,
    },
}

#[derive(Debug)]
struct Parked {
    next_probe: Duration,
    /// Probes that failed.
    probes: u32,
    /// Whose probe is out.
    probing: Option<DeliveryNo>,
    /// Probed already; others come first.
    tried: VecDeque<DeliveryNo>,
    /// Only this delivery ever failed: the first other one that comes says whether the endpoint is away.
    alone: Option<DeliveryNo>,
}

/// Failures in a row.
#[derive(Debug, Default)]
struct Streak {
    failures: u32,
    first: Option<DeliveryNo>,
    several: bool,
}

/// What to ask the ledger for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub limit: usize,
    pub leave_out: Vec<DeliveryNo>,
}

/// A failed attempt of one delivery.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    pub no: DeliveryNo,
    pub webhook_id: &'a str,
    /// Attempts before this one.
    pub attempts: u32,
    /// Uptime of the attempt before this one; none if there was none in this process.
    pub last_attempt: Option<Duration>,
    /// No other delivery of the lane waits.
    pub only: bool,
    pub retry_after: Option<Duration>,
}

/// What a failure leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setback {
    /// The delivery is due again after this.
    pub after: Duration,
    /// The lane parked now, after so many failures.
    pub parked: Option<u32>,
}

impl Lane {
    /// What may be asked for, if anything may be sent now.
    pub fn ask(&self, now: Duration, in_flight: usize, window: usize) -> Option<Ask> {
        match &self.state {
            State::Open => {
                let limit = window.saturating_sub(in_flight);
                (limit > 0).then(|| Ask { limit, leave_out: Vec::new() })
            }
            State::Parked(_) if in_flight > 0 => None,
            State::Parked(parked) if parked.next_probe <= now => {
                Some(Ask { limit: 1, leave_out: parked.tried.iter().copied().collect() })
            }
            State::Parked(parked) => parked.alone.map(|no| Ask { limit: 1, leave_out: vec![no] }),
            State::Stopped { .. } => None,
        }
    }

    /// Nothing is due but what was left out: begins the turn again. `true`: ask once more.
    pub fn nobody_else(&mut self, now: Duration) -> bool {
        match &mut self.state {
            State::Parked(parked) if parked.next_probe <= now && !parked.tried.is_empty() => {
                parked.tried.clear();
                true
            }
            State::Parked(_) | State::Open | State::Stopped { .. } => false,
        }
    }

    /// Takes a slot for `no`, if it may be sent now: the state may have changed since the ledger was asked.
    pub fn start(&mut self, no: DeliveryNo, now: Duration, in_flight: usize, window: usize) -> bool {
        match &mut self.state {
            State::Open => in_flight < window,
            State::Parked(parked) => {
                let due = parked.next_probe <= now || parked.alone.is_some_and(|alone| alone != no);
                if in_flight > 0 || !due {
                    return false;
                }
                parked.probing = Some(no);
                parked.tried.push_back(no);
                if parked.tried.len() > TRIED_MAX {
                    parked.tried.pop_front();
                }
                true
            }
            State::Stopped { .. } => false,
        }
    }

    /// The endpoint answered about a delivery, with yes or with never. `true`: the lane was parked and resumes.
    pub fn answered(&mut self, now: Duration) -> bool {
        self.streak = Streak::default();
        self.last_answer = Some(now);
        match self.state {
            State::Parked(_) => {
                self.state = State::Open;
                true
            }
            State::Open | State::Stopped { .. } => false,
        }
    }

    /// An attempt failed in a way that may pass.
    pub fn failed(&mut self, failure: &Failure<'_>, now: Duration, pace: &Pace) -> Setback {
        let streak = &mut self.streak;
        streak.failures = streak.failures.saturating_add(1);
        streak.several |= *streak.first.get_or_insert(failure.no) != failure.no;
        let asked = failure.retry_after.unwrap_or_default();
        match &mut self.state {
            State::Open if pace.park_after <= streak.failures && (streak.several || failure.only) => {
                let alone = (!streak.several).then_some(failure.no);
                let after = probe_interval(0, failure, pace).max(asked);
                let next_probe = now + after;
                let tried = VecDeque::from([failure.no]);
                self.state = State::Parked(Parked { next_probe, probes: 0, probing: None, tried, alone });
                Setback { after, parked: Some(self.streak.failures) }
            }
            State::Parked(parked) => {
                if parked.probing.take_if(|no| *no == failure.no).is_some() {
                    parked.probes = parked.probes.saturating_add(1);
                    parked.next_probe = now + probe_interval(parked.probes, failure, pace).max(asked);
                }
                if streak.several {
                    parked.alone = None;
                }
                // Due with the next probe: it is the endpoint's fault, not this delivery's.
                Setback { after: parked.next_probe.saturating_sub(now).max(asked), parked: None }
            }
            State::Open | State::Stopped { .. } => {
                Setback { after: self.own_backoff(failure, pace).max(asked), parked: None }
            }
        }
    }

    /// The endpoint answered 410.
    pub fn stop(&mut self) {
        self.state = State::Stopped { recorded: false };
    }

    /// The ledger knows that the endpoint is stopped.
    pub fn stop_recorded(&mut self) {
        if let State::Stopped { recorded } = &mut self.state {
            *recorded = true;
        }
    }

    /// The ledger says that the lane has something to send: it was resumed.
    pub fn woken(&mut self) {
        if let State::Stopped { recorded: true } = self.state {
            self.state = State::Open;
            self.streak = Streak::default();
        }
    }

    /// When to look again although nothing happens.
    pub fn next_look(&self) -> Option<Duration> {
        match &self.state {
            State::Parked(parked) => Some(parked.next_probe),
            State::Open | State::Stopped { .. } => None,
        }
    }

    /// Grows with the delivery's own attempts if the endpoint answered others meanwhile; else with the lane's failures
    /// in a row, so that an old delivery is not slow to notice that its endpoint is back.
    fn own_backoff(&self, failure: &Failure<'_>, pace: &Pace) -> Duration {
        let before = failure.last_attempt.unwrap_or_default();
        let others_are_taken = self.last_answer.is_some_and(|answer| before <= answer);
        let in_a_row = self.streak.failures.saturating_sub(1);
        let exponent = if others_are_taken { failure.attempts } else { failure.attempts.min(in_a_row) };
        backoff(pace.backoff_min, pace.backoff_max, exponent, failure)
    }
}

fn probe_interval(probes: u32, failure: &Failure<'_>, pace: &Pace) -> Duration {
    backoff(pace.backoff_min, pace.parked_probe_max, probes, failure)
}

/// Doubles from `min` to `max`, less up to a quarter that the delivery's id decides: those that failed together do not
/// come back together, and a test can tell when they do.
fn backoff(min: Duration, max: Duration, exponent: u32, failure: &Failure<'_>) -> Duration {
    let full = min.saturating_mul(2_u32.saturating_pow(exponent)).min(max);
    full - full.mul_f64(f64::from(jitter(failure.webhook_id, failure.attempts)) / f64::from(u16::MAX) / 4.0)
}

/// FNV-1a, folded.
fn jitter(webhook_id: &str, attempts: u32) -> u16 {
    let bytes = webhook_id.bytes().chain(attempts.to_le_bytes());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace =
        Pace { park_after: 5, backoff_min: secs(10), backoff_max: secs(3_600), parked_probe_max: secs(300) };

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn failure(no: i64) -> Failure<'static> {
        Failure {
            no: DeliveryNo(no),
            webhook_id: "msg_1",
            attempts: 0,
            last_attempt: None,
            only: false,
            retry_after: None,
        }
    }

    fn fail(lane: &mut Lane, no: i64, now: u64) -> Setback {
        lane.failed(&failure(no), secs(now), &PACE)
    }

    fn parked_at_zero() -> Lane {
        let mut lane = Lane::default();
        let parked: Vec<_> = (1..=5).map(|no| fail(&mut lane, no, 0).parked).collect();
        assert_eq!(parked, [None, None, None, None, Some(5)]);
        lane
    }

    #[test]
    fn an_open_lane_fills_its_window() {
        let mut lane = Lane::default();
        assert_eq!(lane.ask(secs(0), 1, 4), Some(Ask { limit: 3, leave_out: vec![] }));
        assert_eq!(lane.ask(secs(0), 4, 4), None);
        assert!(lane.start(DeliveryNo(1), secs(0), 3, 4) && !lane.start(DeliveryNo(2), secs(0), 4, 4));
    }

    #[test]
    fn five_failures_of_one_of_many_do_not_park() {
        let mut lane = Lane::default();
        assert!((0..20).all(|_| fail(&mut lane, 7, 0).parked.is_none()));
        assert_eq!(
            fail(&mut lane, 8, 0).parked,
            Some(21),
            "the second delivery shows that it is the endpoint"
        );
    }

    #[test]
    fn five_failures_of_the_only_one_park() {
        let mut lane = Lane::default();
        let only = Failure { only: true, ..failure(7) };
        let parked: Vec<_> = (0..5).map(|n| lane.failed(&only, secs(n), &PACE).parked).collect();
        assert_eq!(parked, [None, None, None, None, Some(5)]);
    }

    #[test]
    fn a_success_between_them_starts_the_count_again() {
        let mut lane = Lane::default();
        for no in 1..100 {
            assert_eq!(fail(&mut lane, no, 0).parked, None);
            if no % 4 == 0 {
                assert!(!lane.answered(secs(0)));
            }
        }
    }

    #[test]
    fn a_parked_lane_probes_one_at_a_time_and_each_time_another() {
        let mut lane = parked_at_zero();
        assert_eq!(lane.ask(secs(1), 0, 4), None, "not before its time");
        let ask = lane.ask(secs(10), 0, 4).unwrap();
        assert_eq!(ask, Ask { limit: 1, leave_out: vec![DeliveryNo(5)] });
        assert!(lane.start(DeliveryNo(1), secs(10), 0, 4));
        assert_eq!(lane.ask(secs(10), 1, 4), None);
        assert!(!lane.start(DeliveryNo(2), secs(10), 1, 4));
        fail(&mut lane, 1, 10);
        let ask = lane.ask(secs(60), 0, 4).unwrap();
        assert_eq!(ask.leave_out, [DeliveryNo(5), DeliveryNo(1)]);
    }

    #[test]
    fn when_all_had_their_turn_the_first_comes_again() {
        let mut lane = parked_at_zero();
        assert!(lane.nobody_else(secs(10)));
        assert_eq!(lane.ask(secs(10), 0, 4), Some(Ask { limit: 1, leave_out: vec![] }));
        assert!(!lane.nobody_else(secs(10)), "an empty outbox is asked once");
    }

    #[test]
    fn probes_become_rarer_up_to_their_maximum() {
        let mut lane = parked_at_zero();
        let mut now = secs(0);
        for probe in 1..20_u32 {
            let next = lane.next_look().unwrap();
            let full = (secs(10) * 2_u32.pow(probe - 1).min(1_000)).min(secs(300));
            assert!(full * 3 / 4 <= next - now && next - now <= full, "probe {probe}: {:?}", next - now);
            now = next;
            assert!(lane.start(DeliveryNo(1), now, 0, 4));
            let setback = lane.failed(&failure(1), now, &PACE);
            assert_eq!(Some(now + setback.after), lane.next_look(), "due with the next probe");
        }
    }

    #[test]
    fn what_was_in_flight_when_the_lane_parked_is_no_probe() {
        let mut lane = parked_at_zero();
        let next = lane.next_look();
        fail(&mut lane, 6, 1);
        assert_eq!(lane.next_look(), next);
    }

    #[test]
    fn an_answer_resumes_a_parked_lane_at_once() {
        let mut lane = parked_at_zero();
        assert!(lane.answered(secs(11)));
        assert_eq!(lane.ask(secs(11), 0, 4).unwrap().limit, 4);
        assert_eq!(lane.next_look(), None);
    }

    #[test]
    fn a_newcomer_need_not_wait_for_the_one_that_parked_alone() {
        let mut lane = Lane::default();
        let only = Failure { only: true, ..failure(7) };
        for _ in 0..5 {
            lane.failed(&only, secs(0), &PACE);
        }
        assert_eq!(lane.ask(secs(1), 0, 4), Some(Ask { limit: 1, leave_out: vec![DeliveryNo(7)] }));
        assert!(!lane.start(DeliveryNo(7), secs(1), 0, 4));
        assert!(lane.start(DeliveryNo(8), secs(1), 0, 4));
        fail(&mut lane, 8, 1);
        assert_eq!(lane.ask(secs(2), 0, 4), None, "two deliveries failed: it is the endpoint");
    }

    #[test]
    fn a_bad_one_among_good_ones_backs_off_alone() {
        let mut lane = Lane::default();
        let mut now = secs(0);
        let mut waits = Vec::new();
        for attempts in 0..12 {
            lane.answered(now);
            let bad = Failure { attempts, last_attempt: Some(now), ..failure(7) };
            let setback = lane.failed(&bad, now + secs(1), &PACE);
            assert_eq!(setback.parked, None);
            assert_eq!(lane.ask(now, 0, 4).unwrap().limit, 4, "blocks nobody");
            waits.push(setback.after);
            now += secs(2);
        }
        assert!(
            waits.windows(2).all(|pair| pair[0] <= pair[1] || pair[1] * 4 >= secs(3_600) * 3),
            "{waits:?}"
        );
        assert!(waits[0] <= secs(10) && secs(2_700) <= waits[11], "{waits:?}");
    }

    #[test]
    fn an_old_delivery_of_a_dead_endpoint_does_not_wait_by_its_age() {
        let mut lane = Lane::default();
        let old = Failure { attempts: 300, ..failure(7) };
        assert!(lane.failed(&old, secs(5), &PACE).after <= secs(10));
    }

    #[test]
    fn the_wait_is_the_same_for_the_same_id_and_attempt() {
        let wait = |webhook_id, attempts| {
            backoff(secs(10), secs(99), 0, &Failure { webhook_id, attempts, ..failure(1) })
        };
        assert_eq!(wait("msg_1", 3), wait("msg_1", 3));
        let waits: std::collections::BTreeSet<_> =
            (0..50).map(|n| wait(Box::leak(format!("msg_{n}").into()), 0)).collect();
        assert!(waits.len() > 45, "{waits:?}");
    }

    #[test]
    fn a_receiver_that_asks_for_time_gets_it() {
        let mut lane = Lane::default();
        let asks = Failure { retry_after: Some(secs(500)), ..failure(1) };
        assert_eq!(lane.failed(&asks, secs(0), &PACE).after, secs(500));
        let mut lane = parked_at_zero();
        assert!(lane.start(DeliveryNo(1), secs(10), 0, 4));
        lane.failed(&asks, secs(10), &PACE);
        assert_eq!(lane.next_look(), Some(secs(510)));
    }

    #[test]
    fn a_stopped_lane_sends_nothing_until_the_ledger_knew_and_a_person_resumed_it() {
        let mut lane = Lane::default();
        lane.stop();
        lane.woken();
        assert_eq!(lane.ask(secs(0), 0, 4), None, "woken by a look from before the record");
        assert!(!lane.answered(secs(0)));
        lane.stop_recorded();
        assert_eq!(lane.ask(secs(0), 0, 4), None);
        lane.woken();
        assert!(lane.ask(secs(0), 0, 4).is_some());
    }

    #[test]
    fn a_long_parking_keeps_few_names() {
        let mut lane = parked_at_zero();
        let mut now = secs(0);
        for no in 0..2_000 {
            now = lane.next_look().unwrap_or(now);
            assert!(lane.start(DeliveryNo(no), now, 0, 4));
            lane.failed(&failure(no), now, &PACE);
        }
        assert_eq!(lane.ask(now + secs(300), 0, 4).unwrap().leave_out.len(), TRIED_MAX);
    }
}
