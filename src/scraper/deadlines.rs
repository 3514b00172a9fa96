//! Visits in flight, and the moment by which each is to be over: whether one hangs is read here, not asked of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::model::SiteName;

/// All visits in flight of this process; as many as there are circuits at most. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Deadlines(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    entered: u64,
    due: BTreeMap<u64, Due>,
}

/// When a visit is to be over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub site: SiteName,
    pub at: Instant,
}

/// One visit in flight; over when this is dropped, also by a panic.
#[derive(Debug)]
pub struct Watched {
    entry: u64,
    of: Deadlines,
}

impl Deadlines {
    /// A visit begins; its deadline is set anew by its first dial.
    pub fn enter(&self, site: SiteName, at: Instant) -> Watched {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.entered += 1;
        let entry = table.entered;
        table.due.insert(entry, Due { site, at });
        drop(table);
        Watched { entry, of: self.clone() }
    }

    /// How many are in flight.
    pub fn in_flight(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).due.len()
    }

    /// The one that is to be over first.
    pub fn first(&self) -> Option<Due> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.due.values().min_by_key(|due| due.at).cloned()
    }
}

impl Watched {
    /// The deadline is this one now.
    pub fn is_due(&self, at: Instant) {
        let mut table = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(due) = table.due.get_mut(&self.entry) {
            due.at = at;
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.of.0.lock().unwrap_or_else(PoisonError::into_inner).due.remove(&self.entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_first_to_be_over_is_known_until_it_is() {
        let (all, now) = (Deadlines::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let early = all.enter("a".into(), at(1));
        let late = all.enter("b".into(), at(2));
        assert_eq!((all.in_flight(), all.first().unwrap().site), (2, "a".into()));
        early.is_due(at(3));
        assert_eq!(all.first(), Some(Due { site: "b".into(), at: at(2) }));
        drop(late);
        assert_eq!(all.first().unwrap().at, at(3));
        drop(early);
        assert_eq!((all.in_flight(), all.first()), (0, None));
    }
}
