//! Which exits a shop refused, and until when that is believed. Pure but for its lock; time is passed in.
//!
//! Promise: an exit that a shop blocked is not used for that shop again before the memory of it expires, wherever the
//! exit is known; it stays good for every other shop.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::relay::ExitRelay;
use crate::model::SiteName;

/// All blocks of this process. Cheap to clone. No larger than the exits of the network times the shops.
#[derive(Clone, Debug, Default)]
pub struct BlockMemory(Arc<Mutex<BTreeMap<SiteName, Exits>>>);

/// By fingerprint: until when it is left alone.
type Exits = BTreeMap<Box<str>, Instant>;

impl BlockMemory {
    /// `site` refused what came from `exit`; it is left alone there for so long.
    pub fn note(&self, site: &SiteName, exit: &ExitRelay, now: Instant, keep_for: Duration) {
        let mut sites = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let exits = sites.entry(site.clone()).or_default();
        exits.retain(|_, until| now < *until);
        exits.insert(exit.fingerprint.clone(), now + keep_for);
    }

    /// Whether `site` is to be visited from elsewhere.
    pub fn is_blocked(&self, site: &str, exit: &ExitRelay, now: Instant) -> bool {
        let sites = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until = sites.get(site).and_then(|exits| exits.get(&exit.fingerprint));
        until.is_some_and(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn exit(name: &str) -> ExitRelay {
        ExitRelay { fingerprint: name.into(), nickname: name.into(), address: None, country: None }
    }

    #[test]
    fn an_exit_is_blocked_for_the_shop_that_blocked_it_until_that_expires() {
        let (memory, now) = (BlockMemory::default(), Instant::now());
        memory.note(&"a".into(), &exit("x"), now, HOUR);
        assert!(memory.is_blocked("a", &exit("x"), now + HOUR - Duration::from_millis(1)));
        assert!(!memory.is_blocked("a", &exit("x"), now + HOUR));
        assert!(!memory.is_blocked("b", &exit("x"), now), "another shop");
        assert!(!memory.is_blocked("a", &exit("y"), now), "another exit");
    }

    #[test]
    fn what_expired_is_forgotten() {
        let (memory, now) = (BlockMemory::default(), Instant::now());
        for number in 0..100 {
            memory.note(&"a".into(), &exit(&number.to_string()), now + number * HOUR, HOUR);
        }
        assert_eq!(memory.0.lock().unwrap().get("a").unwrap().len(), 1);
    }
}
