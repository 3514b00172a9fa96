//! What the configuration says of batches at work, and what follows from it for one of them.

use std::time::Duration;

use super::machine::Plan;
use crate::model::SiteName;

/// A new one applies to what starts after it: products claimed, visits asked for, attempts repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The shops in use, by their names.
    pub shops: Vec<SiteName>,
    pub catalogue: bool,
    pub attempts_max: u32,
    pub catalogue_attempts_max: u32,
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// Products of one batch in work at once.
    pub window: usize,
}

impl Settings {
    /// For a batch with these shops: they were fixed when it was accepted, and only whether one is still in use changes
    /// (rule 13). So two plans of one batch have the same shops at the same places.
    pub fn plan(&self, sites: &[SiteName]) -> Plan {
        Plan {
            shops: sites.iter().map(|site| (site.clone(), self.shops.contains(site))).collect(),
            catalogue: self.catalogue,
            attempts_max: self.attempts_max,
            catalogue_attempts_max: self.catalogue_attempts_max,
            retry_min: self.retry_min,
            retry_max: self.retry_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_keeps_its_shops_and_learns_which_are_in_use() {
        let sites = ["b", "a"].map(SiteName::from);
        let plan = |shops: &[&str]| {
            let settings = Settings {
                shops: shops.iter().map(|site| SiteName::from(*site)).collect(),
                catalogue: false,
                attempts_max: 1,
                catalogue_attempts_max: 1,
                retry_min: Duration::ZERO,
                retry_max: Duration::ZERO,
                window: 1,
            };
            settings.plan(&sites).shops.into_iter().map(|(_, in_use)| in_use).collect::<Vec<_>>()
        };
        assert_eq!(plan(&["a", "c"]), [false, true]);
        assert_eq!(plan(&["c", "a", "b"]), [true, true]);
    }
}
