//! The queue and visits that are started a second time: a twin takes a slot and a seat at its shop like any visit, and
//! only what nobody wants who waits.

use tokio::time::Instant;

use super::{Open, Queue};
use crate::model::SiteName;

impl<V> Queue<V> {
    /// The moment at which the pace of `site` lets a twin start; `None`: not as things are. To be asked when
    /// [`Queue::next`] has nothing to start.
    pub fn twin_at(&self, site: &str, open: Open) -> Option<Instant> {
        // A suspect waits until nobody is in flight.
        let nobody_suspected = self.alone.is_none() && self.suspects.is_empty();
        let shop = self.shops.get(site).filter(|shop| !shop.closed && shop.line.is_empty())?;
        (nobody_suspected && shop.has_room(open)).then(|| shop.pace.next_at())
    }

    /// Takes a twin's first slot; it is over by [`Queue::ended`], like its first.
    pub fn start_twin(&mut self, site: &SiteName, now: Instant) {
        self.count_start(site, now);
    }

    /// Shops with a visit that waits for nothing but its pace: each of them wants a scraper next.
    pub fn about_to_start(&self, open: Open) -> usize {
        self.shops.values().filter(|shop| !shop.line.is_empty() && shop.has_room(open)).count()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Label, Next, ShopLimits};
    use super::*;
    use crate::model::page::Via;
    use crate::model::{BatchNo, ProductKey};
    use crate::recipe::OnBlock;
    use crate::supervisor::policy::Roll;

    const ALL: Open = Open { tor: true, direct: true };
    const SECOND: Duration = Duration::from_secs(1);

    fn label(site: &str, index: u32) -> Label {
        Label { site: site.into(), key: ProductKey { batch: BatchNo(1), index }, suspect: false }
    }

    /// Two shops, `a` with a visit in flight.
    fn queue(interval: Duration, concurrency: u32, now: Instant) -> Queue<()> {
        let mut queue = Queue::new(4);
        for site in ["a", "b"] {
            queue.open_shop(
                site.into(),
                ShopLimits { interval, concurrency, via: Via::Tor, adaptive: false, on_block: OnBlock::End },
                now,
            );
        }
        queue.push(label("a", 1), ()).unwrap();
        start(&mut queue, now);
        queue
    }

    fn start(queue: &mut Queue<()>, now: Instant) -> Label {
        match queue.next(now, ALL) {
            Next::Start(label, ()) => label,
            Next::Wait(until) => panic!("nothing started; wait until {until:?}"),
        }
    }

    #[test]
    fn a_twin_takes_a_slot_of_the_pace_and_a_seat_like_any_visit() {
        let now = Instant::now();
        let mut queue = queue(SECOND, 2, now);
        assert_eq!(queue.twin_at("a", ALL), Some(now + SECOND), "not before its pace");
        queue.start_twin(&"a".into(), now + SECOND);
        assert_eq!((queue.in_flight(), queue.twin_at("a", ALL)), (2, None), "its concurrency is used up");
        queue.push(label("a", 2), ()).unwrap();
        assert!(matches!(queue.next(now + 9 * SECOND, ALL), Next::Wait(None)), "for others as well");
        queue.ended(&label("a", 1));
        assert_eq!(start(&mut queue, now + 2 * SECOND).key.index, 2);
        queue.ended(&label("a", 1));
        assert_eq!(queue.twin_at("a", ALL), Some(now + 3 * SECOND));
    }

    #[test]
    fn a_twin_takes_nothing_that_somebody_waits_for() {
        let now = Instant::now();
        let mut queue = queue(SECOND, 4, now);
        queue.push(label("a", 2), ()).unwrap();
        assert_eq!(queue.twin_at("a", ALL), None, "somebody waits for the next slot");
        assert_eq!(queue.about_to_start(ALL), 1);
        queue.push(label("b", 3), ()).unwrap();
        start(&mut queue, now);
        queue.push(label("b", 4), ()).unwrap();
        assert_eq!(queue.about_to_start(ALL), 2, "each of them wants a scraper next");
    }

    #[test]
    fn a_twin_does_not_keep_a_suspect_waiting_that_has_the_floor_when_nobody_is_in_flight() {
        let now = Instant::now();
        let mut queue = queue(Duration::ZERO, 4, now);
        assert_eq!(queue.twin_at("a", ALL), Some(now));
        queue.push(Label { suspect: true, ..label("b", 5) }, ()).unwrap();
        assert_eq!(queue.twin_at("a", ALL), None);
    }

    #[test]
    fn nobody_joins_a_suspect() {
        let now = Instant::now();
        let mut queue = queue(Duration::ZERO, 4, now);
        queue.ended(&label("a", 1));
        queue.push(Label { suspect: true, ..label("a", 2) }, ()).unwrap();
        assert!(start(&mut queue, now).suspect);
        assert_eq!(queue.twin_at("a", ALL), None);
    }

    #[test]
    fn there_is_no_twin_without_tor_nor_at_a_shop_that_is_suspended_or_gone() {
        let now = Instant::now();
        let mut queue = queue(Duration::ZERO, 4, now);
        assert_eq!(queue.twin_at("a", ALL), Some(now));
        assert_eq!(queue.twin_at("a", Open { tor: false, direct: true }), None);
        for _ in 0..20 {
            queue.crashed(&label("b", 9), now, Roll(0));
        }
        assert_eq!((queue.twin_at("b", ALL), queue.twin_at("a", ALL)), (None, Some(now)));
        queue.change(4, &[].into(), now);
        assert_eq!(queue.twin_at("a", ALL), None);
    }
}
