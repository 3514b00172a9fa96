//! Whether a shop refuses most exits, or only some. Pure; time is passed in.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::way::Way;

/// When refusals are more than bad luck with exits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub in_a_row: usize,
    /// By so many different ways.
    pub ways: usize,
    pub within: Duration,
}

/// A shop that lets every second exit in refuses so many in a row once in 16 million times, and one that lets every
/// fourth in once in a thousand. At most ten products are given up for it, by five tries each.
///
/// One or two exits may be known for what others do through them; three are the shop's own doing. Where exits are not
/// known each generation of a circuit counts as one, and each refusal ends one.
///
/// An hour, because a shop may be visited as rarely as a hundred times in it.
pub(super) const REFUSALS: Limits = Limits { in_a_row: 24, ways: 3, within: Duration::from_secs(3_600) };

/// Refusals since a visit was last let in, the newest last; no more than it takes.
#[derive(Debug, Default)]
pub(super) struct Refusals(VecDeque<(Instant, Way)>);

impl Refusals {
    /// How many there are, if these are too many.
    pub fn note(&mut self, way: &Way, now: Instant) -> Option<u64> {
        self.0.push_back((now, way.clone()));
        while REFUSALS.in_a_row < self.0.len()
            || self.0.front().is_some_and(|(at, _)| REFUSALS.within < now.saturating_duration_since(*at))
        {
            self.0.pop_front();
        }
        let ways: BTreeSet<&Way> = self.0.iter().map(|(_, way)| way).collect();
        // There is no other way than the direct one.
        let enough = REFUSALS.ways <= ways.len() || ways.contains(&Way::Direct);
        (self.0.len() == REFUSALS.in_a_row && enough).then_some(REFUSALS.in_a_row as u64)
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(number: usize) -> Way {
        Way::Exit(number.to_string().into())
    }

    /// Which of a hundred refusals is the one too many.
    fn too_many(way: impl Fn(usize) -> Way, apart: Duration) -> Option<usize> {
        let (mut refusals, begin) = (Refusals::default(), Instant::now());
        (1..=100).find(|number| refusals.note(&way(*number), begin + apart * *number as u32).is_some())
    }

    #[test]
    fn refusals_in_a_row_by_several_ways_are_too_many() {
        assert_eq!(too_many(|number| exit(number % 3), Duration::ZERO), Some(24));
        assert_eq!(too_many(exit, Duration::ZERO), Some(24));
        assert_eq!(too_many(|number| Way::Circuit(number.to_string().into()), Duration::ZERO), Some(24));
    }

    #[test]
    fn one_or_two_exits_that_are_refused_say_nothing_of_the_others() {
        assert_eq!(too_many(|number| exit(number % 2), Duration::ZERO), None);
        let third_last = |number| exit(if number < 30 { number % 2 } else { 2 });
        assert_eq!(too_many(third_last, Duration::ZERO), Some(30));
    }

    #[test]
    fn without_tor_there_is_one_way() {
        assert_eq!(too_many(|_| Way::Direct, Duration::ZERO), Some(24));
    }

    #[test]
    fn refusals_now_and_then_are_not_too_many() {
        assert_eq!(too_many(exit, REFUSALS.within / 23), Some(24), "the boundary still counts");
        assert_eq!(too_many(exit, REFUSALS.within / 22), None);
    }

    #[test]
    fn one_that_is_let_in_makes_them_count_anew() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        for number in 0..200 {
            assert_eq!(refusals.note(&exit(number), now), None);
            if number % 23 == 22 {
                refusals.clear();
            }
        }
    }
}
