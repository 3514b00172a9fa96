//! Which end a visit comes to when two scrapers may be at it. Pure.
//!
//! ```text
//!            the twin starts               one ends without an answer
//! ┌───────┐ ────────────────▶ ┌──────┐ ──────────────────────────────▶ ┌──────┐
//! │ Alone │                   │ Both │                                 │ Left │
//! └───┬───┘                   └──┬───┘                                 └──┬───┘
//!     │ it ends                  │ one ends with an answer                │ the other ends
//!     └──────────────────────────┴──────────▶ Decided ◀───────────────────┘
//! ```
//!
//! * R1 A visit has one end, however many are at it, and whatever becomes of them.
//! * R2 The first answer of the shop is the end, whoever has it; who is still at work is overtaken.
//! * R3 Without an answer the end is what became of the first: a twin that fails makes nothing worse and charges nothing.
//!   Only a pause that the shop asked the twin for is kept as well.

use std::time::Duration;

use crate::batch::machine::{Again, VisitEnd};

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The visit itself.
    First,
    /// Its second start.
    Twin,
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Twin => "twin",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::First => Self::Twin,
            Self::Twin => Self::First,
        }
    }
}

/// How far a visit has come.
#[derive(Debug, Default, PartialEq)]
pub enum Race {
    #[default]
    Alone,
    Both,
    /// One is over and brought no answer; the other is at work.
    Left {
        over: Side,
        end: VisitEnd,
    },
    Decided,
}

/// What the end of one of the two leads to.
#[derive(Debug, PartialEq)]
#[must_use]
pub enum Ruling {
    /// The visit came to this end, by that side.
    Decided { end: VisitEnd, by: Side },
    /// As [`Ruling::Decided`], and the other one is to stop at once.
    Overtakes { end: VisitEnd, by: Side },
    /// The other one may still have an answer.
    Open,
    /// The visit is over already, or that side never was at it.
    Late,
}

impl Race {
    /// The twin starts; `false`: there is nothing left to start, or it has started already.
    pub fn join(&mut self) -> bool {
        let joins = *self == Self::Alone;
        if joins {
            *self = Self::Both;
        }
        joins
    }

    pub fn is_decided(&self) -> bool {
        *self == Self::Decided
    }

    /// `side` is over.
    pub fn over(&mut self, side: Side, end: VisitEnd) -> Ruling {
        match (std::mem::replace(self, Self::Decided), side) {
            (Self::Alone, Side::First) => Ruling::Decided { end, by: side },
            (Self::Both, _) if end.is_answer() => Ruling::Overtakes { end, by: side },
            (Self::Both, _) => {
                *self = Self::Left { over: side, end };
                Ruling::Open
            }
            (Self::Left { over, end: before }, _) if over == side.other() => {
                if end.is_answer() {
                    return Ruling::Decided { end, by: side };
                }
                let (first, twin) = if side == Side::First { (end, before) } else { (before, end) };
                Ruling::Decided { end: without_answer(first, &twin), by: Side::First }
            }
            // Never at it, or over before.
            (state @ (Self::Alone | Self::Left { .. } | Self::Decided), _) => {
                *self = state;
                Ruling::Late
            }
        }
    }
}

/// R3: the end of the first, not before the shop wants to see either of them again.
fn without_answer(mut first: VisitEnd, twin: &VisitEnd) -> VisitEnd {
    if let VisitEnd::Failed { again, .. } | VisitEnd::Refused { again, .. } = &mut first
        && let VisitEnd::Failed { again: Again::After(at_least), .. }
        | VisitEnd::Refused { again: Again::After(at_least), .. } = twin
    {
        *again = not_before(*again, *at_least);
    }
    first
}

fn not_before(again: Again, at_least: Duration) -> Again {
    match again {
        Again::Soon => Again::After(at_least),
        Again::After(after) => Again::After(after.max(at_least)),
        Again::Never => Again::Never,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::Side::{First, Twin};
    use super::*;
    use crate::model::Reason;
    use crate::model::way::Way;

    fn failed(kind: &str, again: Again) -> VisitEnd {
        VisitEnd::Failed { reason: Reason::new(kind, ""), again }
    }

    fn refused(rule: &str, again: Again) -> VisitEnd {
        VisitEnd::Refused { rule: rule.into(), way: Way::Direct, again }
    }

    /// One of each kind, told apart by whose it is.
    fn ends(side: Side) -> Vec<VisitEnd> {
        let name = side.name();
        let object = Map::from_iter([("by".to_owned(), name.into())]);
        let seconds = if side == First { 10 } else { 20 };
        vec![
            VisitEnd::Found(object),
            VisitEnd::NotFound,
            VisitEnd::Mismatch { detail: name.into() },
            VisitEnd::Sold,
            VisitEnd::NotSold,
            VisitEnd::NoCatalogue,
            failed(name, Again::Soon),
            failed(name, Again::After(Duration::from_secs(seconds))),
            failed(name, Again::Never),
            refused(name, Again::Soon),
            VisitEnd::PutBack,
            VisitEnd::Lost { dialled: true },
            VisitEnd::Lost { dialled: false },
            VisitEnd::Void,
        ]
    }

    #[derive(Clone, Debug)]
    enum Input {
        Join,
        Over(Side, VisitEnd),
    }

    /// Every course of up to four inputs, in any order, repeated and too late ones among them.
    fn every_course(check: &mut impl FnMut(&[Input])) {
        let inputs: Vec<Input> = std::iter::once(Input::Join)
            .chain(
                [First, Twin]
                    .into_iter()
                    .flat_map(|side| ends(side).into_iter().map(move |end| Input::Over(side, end))),
            )
            .collect();
        fn go(inputs: &[Input], course: &mut Vec<Input>, check: &mut impl FnMut(&[Input])) {
            check(course);
            if course.len() < 4 {
                for input in inputs {
                    course.push(input.clone());
                    go(inputs, course, check);
                    course.pop();
                }
            }
        }
        go(&inputs, &mut Vec::new(), check);
    }

    /// What a course must come to, said without states: who is at work, and what each of them first ended with.
    fn expected(course: &[Input]) -> Option<(VisitEnd, Side)> {
        let (mut twin_joined, mut ended): (bool, Vec<(Side, &VisitEnd)>) = (false, Vec::new());
        for input in course {
            match input {
                Input::Join => twin_joined |= ended.is_empty(),
                Input::Over(Twin, _) if !twin_joined => {}
                Input::Over(side, _) if ended.iter().any(|(other, _)| other == side) => {}
                Input::Over(side, end) => ended.push((*side, end)),
            }
            if let Some((side, answer)) = ended.iter().find(|(_, end)| end.is_answer()) {
                return Some(((*answer).clone(), *side));
            }
            let of = |side| ended.iter().find(|(other, _)| *other == side).map(|(_, end)| (*end).clone());
            match (of(First), of(Twin), twin_joined) {
                (Some(first), None, false) => return Some((first, First)),
                (Some(first), Some(twin), true) => return Some((without_answer(first, &twin), First)),
                _ => {}
            }
        }
        None
    }

    #[test]
    fn in_every_course_a_visit_has_one_end_and_it_is_the_right_one() {
        let mut decided_courses = 0_usize;
        every_course(&mut |course| {
            let mut race = Race::default();
            let mut decided = Vec::new();
            let mut at_work = vec![First];
            for input in course {
                match input {
                    Input::Join => {
                        if race.join() {
                            at_work.push(Twin);
                        }
                    }
                    Input::Over(side, end) => {
                        let was_at_work = at_work.contains(side);
                        let ruling = race.over(*side, end.clone());
                        at_work.retain(|other| other != side);
                        match ruling {
                            Ruling::Decided { end, by } => {
                                assert!(at_work.is_empty(), "{course:?}: somebody would work for nothing");
                                decided.push((end, by));
                            }
                            Ruling::Overtakes { end, by } => {
                                assert_eq!(
                                    (by, at_work.as_slice()),
                                    (*side, &[side.other()][..]),
                                    "{course:?}"
                                );
                                at_work.clear();
                                decided.push((end, by));
                            }
                            Ruling::Open => {
                                assert_eq!(at_work, [side.other()], "{course:?}: nobody would end it")
                            }
                            Ruling::Late => assert!(!was_at_work, "{course:?}: an end is lost"),
                        }
                    }
                }
                assert_eq!(race.is_decided(), !decided.is_empty(), "{course:?}");
            }
            assert!(decided.len() <= 1, "{course:?}: two ends");
            assert_eq!(decided.pop(), expected(course), "{course:?}");
            decided_courses += usize::from(race.is_decided());
        });
        assert!(100_000 < decided_courses, "{decided_courses}: the courses lead somewhere");
    }

    #[test]
    fn what_both_failed_at_is_one_failure_the_firsts() {
        let after = |seconds| Again::After(Duration::from_secs(seconds));
        for (first, twin, both) in [
            (Again::Soon, Again::Soon, Again::Soon),
            (Again::Soon, Again::Never, Again::Soon),
            (Again::Soon, after(5), after(5)),
            (after(9), after(5), after(9)),
            (after(5), after(9), after(9)),
            (Again::Never, after(9), Again::Never),
        ] {
            for order in [[First, Twin], [Twin, First]] {
                let mut race = Race::default();
                assert!(race.join());
                let end = |side| if side == First { failed("first", first) } else { refused("twin", twin) };
                assert_eq!(race.over(order[0], end(order[0])), Ruling::Open);
                let decided = Ruling::Decided { end: failed("first", both), by: First };
                assert_eq!(race.over(order[1], end(order[1])), decided);
            }
            let end = without_answer(refused("first", first), &failed("twin", twin));
            assert_eq!(end, refused("first", both));
        }
    }

    #[test]
    fn a_twin_that_fails_or_crashes_changes_nothing_for_a_first_that_was_put_back() {
        for twin in [failed("twin", Again::Never), VisitEnd::Lost { dialled: true }] {
            let mut race = Race::default();
            assert!(race.join());
            assert_eq!(race.over(Twin, twin), Ruling::Open);
            let decided = Ruling::Decided { end: VisitEnd::PutBack, by: First };
            assert_eq!(race.over(First, VisitEnd::PutBack), decided);
        }
    }
}
