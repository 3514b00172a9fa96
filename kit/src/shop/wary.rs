//! A shop that counts what comes from each exit. Pure, so that a simulation can use the same one.

use std::collections::HashMap;
use std::net::IpAddr;

/// How wary it is.
#[derive(Clone, Copy, Debug)]
pub struct Wariness {
    /// Requests of one exit that it answers in a row.
    pub free: usize,
    /// It refuses that exit until so many more requests have come, from anywhere; then it counts anew.
    pub grudge: usize,
}

/// What it remembers.
#[derive(Debug)]
pub struct Wary {
    wariness: Wariness,
    came: usize,
    exits: HashMap<IpAddr, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    answered: usize,
    /// How many had come when it had enough of this one.
    since: Option<usize>,
}

impl Wary {
    /// One that has seen nobody.
    pub fn new(wariness: Wariness) -> Self {
        Self { wariness, came: 0, exits: HashMap::new() }
    }

    /// A request comes from this exit; whether it is refused.
    pub fn refuses(&mut self, exit: IpAddr) -> bool {
        self.came += 1;
        let Wariness { free, grudge } = self.wariness;
        let seen = self.exits.entry(exit).or_default();
        if seen.since.is_some_and(|since| grudge < self.came - since) {
            *seen = Seen::default();
        }
        if seen.since.is_some() {
            return true;
        }
        seen.answered += 1;
        if free <= seen.answered {
            seen.since = Some(self.came);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_refused_after_its_free_requests_until_the_grudge_is_over() {
        let [a, b]: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap()];
        let mut shop = Wary::new(Wariness { free: 2, grudge: 3 });
        let refused: Vec<_> = [a, a, a, b, a, a, a, a].map(|exit| shop.refuses(exit)).into();
        assert_eq!(refused, [false, false, true, false, true, false, false, true]);
    }
}
