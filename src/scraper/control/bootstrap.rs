//! Which steps of tor's way to the network are told: that it began, that it is stuck, that it is over. Pure.

use super::protocol::Bootstrap;

/// What was told last of one tor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Begun,
    Stuck,
    Done,
}

/// What `now` changes, if it is to be told: one event for a change, not one for each percent or each relay that refuses.
pub fn next(told: Option<Phase>, now: &Bootstrap) -> Option<Phase> {
    let phase = match (now.is_done(), &now.trouble) {
        (true, _) => Phase::Done,
        (false, Some(_)) => Phase::Stuck,
        // It may go on for a percent between two refusals.
        (false, None) if told == Some(Phase::Stuck) => Phase::Stuck,
        (false, None) => Phase::Begun,
    };
    (told != Some(phase)).then_some(phase)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(progress: u8, trouble: Option<&str>) -> Bootstrap {
        Bootstrap { progress, summary: String::new(), trouble: trouble.map(str::to_owned) }
    }

    #[test]
    fn each_change_is_told_once() {
        let way = [
            (at(0, None), Some(Phase::Begun)),
            (at(5, None), None),
            (at(10, Some("refused")), Some(Phase::Stuck)),
            (at(10, Some("refused again")), None),
            (at(14, None), None),
            (at(100, None), Some(Phase::Done)),
            (at(100, None), None),
            (at(0, None), Some(Phase::Begun)),
        ];
        let mut told = None;
        for (now, expected) in way {
            let next = next(told, &now);
            assert_eq!(next, expected, "{now:?}");
            told = next.or(told);
        }
    }
}
