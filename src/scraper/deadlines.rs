//! Visits in flight, and the moment by which each is to be over: whether one hangs is read here, not asked of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::stopwatch::Stopwatch;
use crate::model::SiteName;

/// All visits in flight of this process; as many as there are circuits at most. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Deadlines(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    entered: u64,
    /// `None`: it waits for its turn at the shop, and no deadline runs.
    due: BTreeMap<u64, (SiteName, Option<Instant>, Duration)>,
}

/// When a visit is to be over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub site: SiteName,
    pub at: Instant,
    /// How much later it may still be.
    pub grace: Duration,
}

/// One visit in flight; over when this is dropped, also by a panic.
#[derive(Debug)]
pub struct Watched {
    entry: u64,
    of: Deadlines,
    /// Runs when a deadline does.
    stopwatch: Stopwatch,
}

impl Deadlines {
    /// A visit begins; its deadline is set anew by its first dial.
    pub fn enter(&self, site: SiteName, at: Instant, grace: Duration) -> Watched {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.entered += 1;
        let entry = table.entered;
        table.due.insert(entry, (site, Some(at), grace));
        drop(table);
        Watched { entry, of: self.clone(), stopwatch: Stopwatch::default() }
    }

    /// How many are in flight.
    pub fn in_flight(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).due.len()
    }

    /// The one that is to be over first.
    pub fn first(&self) -> Option<Due> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = table.due.values().filter_map(|(site, at, grace)| at.map(|at| (site, at, *grace)));
        let first = running.min_by_key(|(_, at, grace)| *at + *grace);
        first.map(|(site, at, grace)| Due { site: site.clone(), at, grace })
    }
}

impl Watched {
    /// Its time is shown by this stopwatch, from its first dial on.
    pub fn timed_by(mut self, stopwatch: Stopwatch) -> Self {
        self.stopwatch = stopwatch;
        self
    }

    /// The deadline is this one now.
    pub fn is_due(&self, at: Instant) {
        self.stopwatch.run(Instant::now());
        self.set(Some(at));
    }

    /// The shop answered.
    pub fn is_answered(&self) {
        self.stopwatch.answered(Instant::now());
    }

    /// It waits for its turn; how long may change meanwhile. [`Self::is_due`] ends the wait.
    pub fn waits(&self) {
        self.stopwatch.pause(Instant::now());
        self.set(None);
    }

    fn set(&self, at: Option<Instant>) {
        let mut table = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, due, _)) = table.due.get_mut(&self.entry) {
            *due = at;
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stopwatch.pause(Instant::now());
        self.of.0.lock().unwrap_or_else(PoisonError::into_inner).due.remove(&self.entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_to_be_over_is_known_until_it_is() {
        const NONE: Duration = Duration::ZERO;
        let (all, now) = (Deadlines::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let early = all.enter("a".into(), at(1), NONE);
        let late = all.enter("b".into(), at(2), NONE);
        assert_eq!((all.in_flight(), all.first().unwrap().site), (2, "a".into()));
        early.is_due(at(3));
        assert_eq!(all.first(), Some(Due { site: "b".into(), at: at(2), grace: NONE }));
        late.waits();
        assert_eq!(all.first().unwrap().site, "a".into(), "no deadline runs while one waits");
        assert_eq!(all.in_flight(), 2);
        drop(late);
        assert_eq!(all.first().unwrap().at, at(3));
        drop(early);
        assert_eq!((all.in_flight(), all.first()), (0, None));
    }
}
