//! The queue under a configuration that changes: shops come, go and are paced anew; nothing that waits is forgotten.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::{Label, Queue, ShopLimits};
use crate::model::SiteName;

impl<V> Queue<V> {
    /// Makes exactly these shops known, with these limits, for this many scrapers. What waited for a shop that is gone
    /// comes back; what is in flight there is counted until it ends.
    pub fn change(
        &mut self,
        scrapers: u32,
        shops: &BTreeMap<SiteName, ShopLimits>,
        now: Instant,
    ) -> Vec<(Label, V)> {
        self.scrapers = scrapers;
        let gone: Vec<SiteName> =
            self.shops.keys().filter(|site| !shops.contains_key(*site)).cloned().collect();
        let came_back = gone.iter().flat_map(|site| self.close_shop(site)).collect();
        // One that comes back goes on with its pace and its suspension; without them there is nothing to remember.
        self.shops.retain(|_, shop| {
            let is_bound = now < shop.pace.next_at() || !shop.suspension.is_open();
            !shop.closed || shop.in_flight > 0 || is_bound
        });
        for (site, limits) in shops {
            match self.shops.get_mut(site) {
                Some(shop) => {
                    shop.limits = *limits;
                    shop.pace.configure(limits.interval, limits.adaptive, now);
                    if std::mem::take(&mut shop.closed) {
                        self.turn.push_back(site.clone());
                    }
                }
                None => self.open_shop(site.clone(), *limits, now),
            }
        }
        came_back
    }

    fn close_shop(&mut self, site: &SiteName) -> Vec<(Label, V)> {
        if let Some(shop) = self.shops.get_mut(site) {
            shop.closed = true;
        }
        self.turn.retain(|other| other != site);
        self.take_waiting(site)
    }

    /// All that waits for this shop.
    pub(super) fn take_waiting(&mut self, site: &SiteName) -> Vec<(Label, V)> {
        let Some(shop) = self.shops.get_mut(site) else { return Vec::new() };
        shop.line.clear();
        let mut waited: Vec<(Label, V)> = shop.waiting.drain().flat_map(|(_, line)| line).collect();
        let suspects = std::mem::take(&mut self.suspects);
        let (of_it, others): (Vec<_>, Vec<_>) =
            suspects.into_iter().partition(|(label, _)| label.site == *site);
        self.suspects = others.into();
        waited.extend(of_it);
        waited
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Next, Open};
    use super::*;
    use crate::model::page::Via;
    use crate::model::way::Way;
    use crate::model::{BatchNo, ProductKey};
    use crate::recipe::OnBlock;
    use crate::scraper::suspension::Went;
    use crate::supervisor::policy::Roll;

    const ALL: Open = Open { tor: true, direct: true };
    const SECOND: Duration = Duration::from_secs(1);

    fn shops(shops: &[(&str, Duration)]) -> BTreeMap<SiteName, ShopLimits> {
        let limits = |interval| ShopLimits {
            interval,
            adaptive: false,
            concurrency: 1,
            via: Via::Tor,
            on_block: OnBlock::End,
        };
        shops.iter().map(|(site, interval)| (SiteName::from(*site), limits(*interval))).collect()
    }

    fn queue(known: &[(&str, Duration)], now: Instant) -> Queue<u32> {
        let mut queue = Queue::new(4);
        assert!(queue.change(4, &shops(known), now).is_empty());
        queue
    }

    fn label(site: &str, index: u32, suspect: bool) -> Label {
        Label { site: site.into(), key: ProductKey { batch: BatchNo(1), index }, suspect }
    }

    #[track_caller]
    fn started(queue: &mut Queue<u32>, now: Instant) -> Label {
        match queue.next(now, ALL) {
            Next::Start(label, _) => label,
            Next::Wait(until) => panic!("nothing started; wait until {until:?}"),
        }
    }

    #[test]
    fn what_waits_for_a_shop_that_is_gone_comes_back_and_the_rest_stays() {
        let now = Instant::now();
        let mut queue = queue(&[("a", Duration::ZERO), ("b", Duration::ZERO)], now);
        for (label, visit) in [
            (label("a", 1, false), 1),
            (label("a", 2, true), 2),
            (label("b", 1, false), 3),
            (label("b", 2, true), 4),
        ] {
            queue.push(label, visit).unwrap();
        }
        let came_back = queue.change(4, &shops(&[("b", Duration::ZERO)]), now);
        let mut came_back: Vec<u32> = came_back.into_iter().map(|(_, visit)| visit).collect();
        came_back.sort_unstable();
        assert_eq!(came_back, [1, 2]);
        assert_eq!(queue.waiting(), 2);
        assert_eq!(queue.push(label("a", 3, false), 5), Err(5), "and nobody may wait for it any more");
    }

    #[test]
    fn a_shop_that_was_gone_keeps_its_pace_and_what_is_in_flight_there() {
        let now = Instant::now();
        let mut queue = queue(&[("a", SECOND)], now);
        queue.push(label("a", 1, false), 1).unwrap();
        let first = started(&mut queue, now);
        queue.change(4, &shops(&[]), now);
        queue.change(4, &shops(&[("a", SECOND)]), now);
        queue.push(label("a", 2, false), 2).unwrap();
        assert!(matches!(queue.next(now + SECOND, ALL), Next::Wait(None)), "one at once");
        queue.ended(&first);
        assert!(
            matches!(queue.next(now, ALL), Next::Wait(Some(until)) if until == now + SECOND),
            "one a second"
        );
        started(&mut queue, now + SECOND);
    }

    #[test]
    fn a_shop_that_is_gone_is_forgotten_once_its_pace_has_run_out() {
        let now = Instant::now();
        let mut queue = queue(&[("a", SECOND)], now);
        queue.push(label("a", 1, false), 1).unwrap();
        let first = started(&mut queue, now);
        queue.ended(&first);
        queue.change(4, &shops(&[]), now);
        assert!(queue.shops.contains_key("a"));
        queue.change(4, &shops(&[]), now + SECOND);
        assert!(!queue.shops.contains_key("a"));
    }

    #[test]
    fn a_suspension_outlives_a_reload_which_may_say_that_its_visits_are_to_wait() {
        let now = Instant::now();
        let mut queue = queue(&[("a", Duration::ZERO)], now);
        for index in 1.. {
            queue.push(label("a", index, false), index).unwrap();
            let refused = started(&mut queue, now);
            queue.ended(&refused);
            let way = Way::Circuit(index.to_string().into());
            let went = Went::Refused { way, rule: "status 403".into() };
            if queue.went(&refused, &went, now, Roll(0)).is_some() {
                break;
            }
        }
        queue.change(4, &shops(&[]), now);
        queue.change(4, &shops(&[("a", Duration::ZERO)]), now);
        queue.push(label("a", 101, false), 101).unwrap();
        assert_eq!(queue.turned_away(), [101], "it was gone and is back, and refuses as before");
        let mut waits = shops(&[("a", Duration::ZERO)]);
        waits.get_mut("a").unwrap().on_block = OnBlock::Wait;
        queue.change(4, &waits, now);
        queue.push(label("a", 102, false), 102).unwrap();
        assert!(queue.turned_away().is_empty());
        assert!(matches!(queue.next(now, ALL), Next::Wait(None)), "it waits");
    }

    #[test]
    fn a_visit_that_waits_goes_by_the_new_limits() {
        let now = Instant::now();
        let hour = Duration::from_secs(3600);
        let mut queue = queue(&[("a", hour)], now);
        for index in 1..=2 {
            queue.push(label("a", index, false), index).unwrap();
        }
        let first = started(&mut queue, now);
        queue.ended(&first);
        assert!(matches!(queue.next(now, ALL), Next::Wait(Some(until)) if until == now + hour));
        assert!(queue.change(1, &shops(&[("a", SECOND)]), now).is_empty(), "it goes on waiting");
        assert!(matches!(queue.next(now, ALL), Next::Wait(Some(until)) if until == now + SECOND));
        started(&mut queue, now + SECOND);
    }
}
