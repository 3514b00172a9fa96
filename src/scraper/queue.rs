//! Which visit goes next: fair between batches, paced and bounded per shop, a suspect alone. Pure.
//!
//! Each shop has its own line of batches, taken in turn, so 8 products do not wait behind 100 000, and a slow shop holds
//! up no other. A product suspected of killing the process (design 4, rule 2) runs with nobody else in flight; while it
//! waits for Tor or a pace the others go on, and between two suspects the others get a turn.

mod change;
mod twin;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::pace::Pace;
use super::suspension::{Change, Suspension, Verdict, Went};
use crate::model::page::Via;
use crate::model::{BatchNo, ProductKey, SiteName};
use crate::recipe::OnBlock;
use crate::supervisor::policy::Roll;

/// What the queue needs to know of a visit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub site: SiteName,
    pub key: ProductKey,
    pub suspect: bool,
}

/// How one shop may be visited.
#[derive(Clone, Copy, Debug)]
pub struct ShopLimits {
    /// Between two requests.
    pub interval: Duration,
    /// Whether the interval is stretched while the shop is slow.
    pub adaptive: bool,
    /// Visits at once, over all circuits.
    pub concurrency: u32,
    pub via: Via,
    /// What becomes of its visits while it refuses most exits.
    pub on_block: OnBlock,
}

/// What to do now.
#[derive(Debug)]
pub enum Next<V> {
    Start(Label, V),
    /// Nothing may start before this moment, or before something else happens.
    Wait(Option<Instant>),
}

/// What may go out at this moment.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    pub tor: bool,
    pub direct: bool,
}

/// Visits that wait for a scraper.
#[derive(Debug)]
pub struct Queue<V> {
    shops: BTreeMap<SiteName, Shop<V>>,
    /// Shops in the order in which they are looked at; the one that started last goes to the end.
    turn: VecDeque<SiteName>,
    suspects: VecDeque<(Label, V)>,
    alone: Option<ProductKey>,
    in_flight: u32,
    /// Ordinary visits that may still start before the next suspect gets the floor.
    ordinary_credit: u32,
    scrapers: u32,
}

#[derive(Debug)]
struct Shop<V> {
    limits: ShopLimits,
    pace: Pace,
    /// Gone from the configuration: nothing more starts.
    closed: bool,
    suspension: Suspension,
    in_flight: u32,
    /// Batches that wait for this shop, the next one first.
    line: VecDeque<BatchNo>,
    waiting: HashMap<BatchNo, VecDeque<(Label, V)>>,
}

impl<V> Queue<V> {
    pub fn new(scrapers: u32) -> Self {
        Self {
            shops: BTreeMap::new(),
            turn: VecDeque::new(),
            suspects: VecDeque::new(),
            alone: None,
            in_flight: 0,
            ordinary_credit: 0,
            scrapers,
        }
    }

    /// Makes a shop known; its pace is shared with the requests inside visits.
    pub fn open_shop(&mut self, site: SiteName, limits: ShopLimits, now: Instant) {
        let pace = Pace::new(limits.interval, now);
        pace.configure(limits.interval, limits.adaptive, now);
        self.turn.push_back(site.clone());
        let (line, waiting, suspension) = (VecDeque::new(), HashMap::new(), Suspension::default());
        let shop = Shop { limits, pace, closed: false, suspension, in_flight: 0, line, waiting };
        self.shops.insert(site, shop);
    }

    pub fn pace(&self, site: &str) -> Option<Pace> {
        self.shops.get(site).map(|shop| shop.pace.clone())
    }

    /// Adds a visit at the end of its batch's line; comes back if the shop is not known.
    pub fn push(&mut self, label: Label, visit: V) -> Result<(), V> {
        let open = self.shops.get_mut(&label.site).filter(|shop| !shop.closed);
        let Some(shop) = open else { return Err(visit) };
        if label.suspect {
            self.suspects.push_back((label, visit));
            return Ok(());
        }
        let batch = label.key.batch;
        let waiting = shop.waiting.entry(batch).or_default();
        if waiting.is_empty() {
            shop.line.push_back(batch);
        }
        waiting.push_back((label, visit));
        Ok(())
    }

    /// Takes the visit that goes now, and its first slot of the shop's pace.
    pub fn next(&mut self, now: Instant, open: Open) -> Next<V> {
        if let Some(alone) = self.alone {
            return match self.ready_suspect(now, open, |key| key == alone) {
                Some(at) => self.start_suspect(at, now),
                None => Next::Wait(self.wake(open, |label| label.suspect && label.key == alone)),
            };
        }
        let suspect = self.ready_suspect(now, open, |_| true);
        if (self.ordinary_credit > 0 || suspect.is_none())
            && let Some(site) = self.ready_shop(now, open)
        {
            self.ordinary_credit = self.ordinary_credit.saturating_sub(1);
            return self.start_ordinary(&site, now);
        }
        match suspect {
            Some(at) if self.in_flight == 0 => self.start_suspect(at, now),
            // Those in flight end first; nothing new starts meanwhile.
            Some(_) => Next::Wait(None),
            None => Next::Wait(self.wake(open, |_| true)),
        }
    }

    /// A visit that had started is over, however it ended.
    pub fn ended(&mut self, label: &Label) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(shop) = self.shops.get_mut(&label.site) {
            shop.in_flight = shop.in_flight.saturating_sub(1);
        }
        if label.suspect && self.in_flight == 0 {
            self.alone = None;
            self.ordinary_credit = self.scrapers;
        }
    }

    /// A visit ended and left its scraper whole. After [`Self::ended`]. What that changed for its shop.
    pub fn went(&mut self, label: &Label, went: &Went, now: Instant, roll: Roll) -> Option<Change> {
        self.shops.get_mut(&label.site)?.suspension.on_end(went, now, roll)
    }

    /// A visit took its scraper with it. After [`Self::ended`]. None: the shop is not known.
    pub fn crashed(&mut self, label: &Label, now: Instant, roll: Roll) -> Option<Verdict> {
        Some(self.shops.get_mut(&label.site)?.suspension.on_crash(now, roll))
    }

    /// Lets one visit of each shop be tried whose suspension is over.
    pub fn resume(&mut self, now: Instant) {
        self.shops.values_mut().for_each(|shop| shop.suspension.resume(now));
    }

    /// What waits for a shop that refuses most exits and is not to be waited for.
    pub fn turned_away(&mut self) -> Vec<V> {
        let turns_away = |shop: &Shop<V>| shop.suspension.refuses() && shop.limits.on_block == OnBlock::End;
        let refusing = self.shops.iter().filter(|(_, shop)| turns_away(shop));
        let refusing: Vec<SiteName> = refusing.map(|(site, _)| site.clone()).collect();
        refusing.iter().flat_map(|site| self.take_waiting(site)).map(|(_, visit)| visit).collect()
    }

    pub fn waiting(&self) -> usize {
        let ordinary =
            self.shops.values().flat_map(|shop| shop.waiting.values()).map(VecDeque::len).sum::<usize>();
        ordinary + self.suspects.len()
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Forgets all that waits, e.g. for a drain; whoever asked hears of it by the dropped visit.
    pub fn clear(&mut self) {
        self.suspects.clear();
        for shop in self.shops.values_mut() {
            shop.line.clear();
            shop.waiting.clear();
        }
    }

    fn ready_suspect(&self, now: Instant, open: Open, fits: impl Fn(ProductKey) -> bool) -> Option<usize> {
        let ready = |label: &Label| self.shops.get(&label.site).is_some_and(|shop| shop.may_start(now, open));
        self.suspects.iter().position(|(label, _)| fits(label.key) && ready(label))
    }

    fn ready_shop(&self, now: Instant, open: Open) -> Option<SiteName> {
        let ready = |shop: &Shop<V>| !shop.line.is_empty() && shop.may_start(now, open);
        self.turn.iter().find(|site| self.shops.get(*site).is_some_and(ready)).cloned()
    }

    fn start_suspect(&mut self, at: usize, now: Instant) -> Next<V> {
        let Some((label, visit)) = self.suspects.remove(at) else { return Next::Wait(None) };
        self.alone = Some(label.key);
        self.count_start(&label.site, now);
        Next::Start(label, visit)
    }

    fn start_ordinary(&mut self, site: &SiteName, now: Instant) -> Next<V> {
        let Some(shop) = self.shops.get_mut(site) else { return Next::Wait(None) };
        let Some((label, visit)) = shop.take_next() else { return Next::Wait(None) };
        self.turn.retain(|other| other != site);
        self.turn.push_back(site.clone());
        self.count_start(site, now);
        Next::Start(label, visit)
    }

    fn count_start(&mut self, site: &SiteName, now: Instant) {
        self.in_flight += 1;
        if let Some(shop) = self.shops.get_mut(site) {
            shop.in_flight += 1;
            shop.pace.take(now);
        }
    }

    /// When the first visit that fits and waits only for its shop's pace may start.
    fn wake(&self, open: Open, fits: impl Fn(&Label) -> bool) -> Option<Instant> {
        let first_of =
            |shop: &Shop<V>| shop.waiting.values().any(|line| line.iter().any(|(label, _)| fits(label)));
        let suspect_of =
            |site: &SiteName| self.suspects.iter().any(|(label, _)| label.site == *site && fits(label));
        let waits = |(site, shop): &(&SiteName, &Shop<V>)| first_of(shop) || suspect_of(site);
        let shops = self.shops.iter().filter(waits).filter(|(_, shop)| shop.has_room(open));
        shops.map(|(_, shop)| shop.pace.next_at()).min()
    }
}

impl<V> Shop<V> {
    fn has_room(&self, open: Open) -> bool {
        let way_open = match self.limits.via {
            Via::Tor => open.tor,
            Via::Direct => open.direct,
        };
        way_open && self.in_flight < self.suspension.allows(self.limits.concurrency)
    }

    fn may_start(&self, now: Instant, open: Open) -> bool {
        self.has_room(open) && self.pace.next_at() <= now
    }

    /// The first visit of the batch whose turn it is; the batch goes to the end of the line.
    fn take_next(&mut self) -> Option<(Label, V)> {
        let batch = self.line.pop_front()?;
        let waiting = self.waiting.get_mut(&batch)?;
        let next = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&batch);
        } else {
            self.line.push_back(batch);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::way::Way;

    const ALL: Open = Open { tor: true, direct: true };
    const NO_TOR: Open = Open { tor: false, direct: true };

    fn queue(shops: &[(&str, ShopLimits)], now: Instant) -> Queue<&'static str> {
        let mut queue = Queue::new(4);
        for (site, limits) in shops {
            queue.open_shop((*site).into(), *limits, now);
        }
        queue
    }

    fn free() -> ShopLimits {
        ShopLimits {
            interval: Duration::ZERO,
            adaptive: false,
            concurrency: 100,
            via: Via::Tor,
            on_block: OnBlock::End,
        }
    }

    fn label(site: &str, batch: i64, index: u32) -> Label {
        Label { site: site.into(), key: ProductKey { batch: BatchNo(batch), index }, suspect: false }
    }

    fn suspect(site: &str, batch: i64, index: u32) -> Label {
        Label { suspect: true, ..label(site, batch, index) }
    }

    #[track_caller]
    fn started(next: Next<&'static str>) -> (Label, &'static str) {
        match next {
            Next::Start(label, visit) => (label, visit),
            Next::Wait(until) => panic!("nothing started; wait until {until:?}"),
        }
    }

    #[track_caller]
    fn waits(next: Next<&'static str>) -> Option<Instant> {
        match next {
            Next::Start(label, _) => panic!("{label:?} started"),
            Next::Wait(until) => until,
        }
    }

    #[test]
    fn batches_take_turns_at_a_shop() {
        let now = Instant::now();
        let mut queue = queue(&[("a", free())], now);
        for index in 1..=3 {
            queue.push(label("a", 1, index), "large").unwrap();
        }
        queue.push(label("a", 2, 1), "small").unwrap();
        let order: Vec<_> = (0..4).map(|_| started(queue.next(now, ALL)).1).collect();
        assert_eq!(order, ["large", "small", "large", "large"]);
    }

    #[test]
    fn a_shop_at_its_pace_holds_up_no_other() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut queue = queue(&[("a", ShopLimits { interval: second, ..free() }), ("b", free())], now);
        for index in 1..=2 {
            queue.push(label("a", 1, index), "a").unwrap();
            queue.push(label("b", 1, index), "b").unwrap();
        }
        let order: Vec<_> = (0..3).map(|_| started(queue.next(now, ALL)).1).collect();
        assert_eq!(order, ["a", "b", "b"]);
        assert_eq!(waits(queue.next(now, ALL)), Some(now + second));
        assert_eq!(started(queue.next(now + second, ALL)).1, "a");
    }

    #[test]
    fn a_shop_is_visited_at_most_its_concurrency_times_at_once() {
        let now = Instant::now();
        let mut queue = queue(&[("a", ShopLimits { concurrency: 1, ..free() })], now);
        queue.push(label("a", 1, 1), "first").unwrap();
        queue.push(label("a", 1, 2), "second").unwrap();
        let (first, _) = started(queue.next(now, ALL));
        assert_eq!(waits(queue.next(now, ALL)), None);
        queue.ended(&first);
        assert_eq!(started(queue.next(now, ALL)).1, "second");
    }

    #[test]
    fn without_tor_only_direct_shops_are_visited() {
        let now = Instant::now();
        let mut queue = queue(&[("a", free()), ("b", ShopLimits { via: Via::Direct, ..free() })], now);
        queue.push(label("a", 1, 1), "tor").unwrap();
        queue.push(label("b", 1, 1), "direct").unwrap();
        assert_eq!(started(queue.next(now, NO_TOR)).1, "direct");
        assert_eq!(waits(queue.next(now, NO_TOR)), None);
        assert_eq!(started(queue.next(now, ALL)).1, "tor");
    }

    /// Every visit of this shop takes its scraper with it, until the shop is suspended. How many did.
    fn crash_until_suspended(queue: &mut Queue<&'static str>, now: Instant) -> (usize, Duration) {
        for crashes in 1..100 {
            let (label, _) = started(queue.next(now, ALL));
            queue.ended(&label);
            if let Some(Verdict::Suspend(suspended)) = queue.crashed(&label, now, Roll(0)) {
                return (crashes, suspended.pause);
            }
        }
        panic!("it is never suspended");
    }

    #[test]
    fn a_shop_that_makes_scrapers_crash_waits_and_the_others_go_on() {
        let now = Instant::now();
        let mut queue = queue(&[("a", free()), ("b", free())], now);
        for index in 1..=20 {
            queue.push(label("a", 1, index), "a").unwrap();
        }
        let (crashes, pause) = crash_until_suspended(&mut queue, now);
        assert_eq!(crashes, 11);
        queue.push(label("b", 1, 1), "b").unwrap();
        queue.push(suspect("a", 1, 21), "suspect").unwrap();
        let (other, visit) = started(queue.next(now, ALL));
        assert_eq!(visit, "b");
        queue.ended(&other);
        assert_eq!(waits(queue.next(now, ALL)), None, "not even a suspect");
        assert_eq!(queue.waiting(), 10, "nobody is forgotten");

        assert!(queue.turned_away().is_empty(), "nobody is turned away for crashes");
        queue.resume(now + pause);
        let (trial, _) = started(queue.next(now + pause, ALL));
        assert_eq!(waits(queue.next(now + pause, ALL)), None, "one is tried");
        queue.ended(&trial); // Put back: Tor was away, say. It proves nothing.
        let (trial, _) = started(queue.next(now + pause, ALL));
        assert_eq!(waits(queue.next(now + pause, ALL)), None, "still one");
        queue.ended(&trial);
        queue.went(&trial, &Went::Astray, now, Roll(0));
        assert_eq!(started(queue.next(now + pause, ALL)).1, "a");
        assert_eq!(started(queue.next(now + pause, ALL)).1, "a", "the others follow side by side");
    }

    /// Every visit of this shop is refused, until the shop is suspended.
    fn refuse_until_suspended(queue: &mut Queue<&'static str>, now: Instant) -> Duration {
        for number in 1..100 {
            let (label, _) = started(queue.next(now, ALL));
            queue.ended(&label);
            let way = Way::Circuit(number.to_string().into());
            let went = Went::Refused { way, rule: "status 403".into() };
            if let Some(Change::Suspended(suspended)) = queue.went(&label, &went, now, Roll(0)) {
                return suspended.pause;
            }
        }
        panic!("it is never suspended");
    }

    #[test]
    fn visits_of_a_shop_that_refuses_most_exits_are_turned_away_until_one_is_tried() {
        let now = Instant::now();
        let mut queue = queue(&[("a", free()), ("b", free())], now);
        for index in 1..=30 {
            queue.push(label("a", 1, index), "a").unwrap();
        }
        assert!(queue.turned_away().is_empty());
        let pause = refuse_until_suspended(&mut queue, now);
        queue.push(label("b", 1, 1), "b").unwrap();
        queue.push(suspect("a", 1, 31), "suspect").unwrap();
        let mut away = queue.turned_away();
        away.sort_unstable();
        assert_eq!(away, ["a", "a", "a", "a", "a", "a", "suspect"]);
        assert_eq!(started(queue.next(now, ALL)).1, "b", "the others go on");

        queue.resume(now + pause);
        queue.push(label("a", 1, 32), "tried").unwrap();
        queue.push(label("a", 1, 33), "waits for it").unwrap();
        assert!(queue.turned_away().is_empty());
        assert_eq!(started(queue.next(now + pause, ALL)).1, "tried");
        assert_eq!(waits(queue.next(now + pause, ALL)), None, "one is tried");
    }

    #[test]
    fn a_shop_that_is_to_be_waited_for_turns_nobody_away() {
        let now = Instant::now();
        let mut queue = queue(&[("a", ShopLimits { on_block: OnBlock::Wait, ..free() })], now);
        for index in 1..=30 {
            queue.push(label("a", 1, index), "a").unwrap();
        }
        let pause = refuse_until_suspended(&mut queue, now);
        assert!(queue.turned_away().is_empty());
        assert_eq!((waits(queue.next(now, ALL)), queue.waiting()), (None, 6));
        queue.resume(now + pause);
        let (tried, _) = started(queue.next(now + pause, ALL));
        queue.ended(&tried);
        queue.went(&tried, &Went::LetIn, now + pause, Roll(0));
        for _ in 0..5 {
            assert_eq!(started(queue.next(now + pause, ALL)).1, "a");
        }
    }

    #[test]
    fn a_suspect_runs_with_nobody_else_in_flight() {
        let now = Instant::now();
        let mut queue = queue(&[("a", free()), ("b", free())], now);
        queue.push(label("a", 1, 1), "before").unwrap();
        let (before, _) = started(queue.next(now, ALL));
        queue.push(suspect("a", 1, 2), "suspect").unwrap();
        queue.push(suspect("b", 1, 2), "suspect's other shop").unwrap();
        queue.push(label("a", 1, 3), "after").unwrap();
        assert_eq!(waits(queue.next(now, ALL)), None, "those in flight end first");
        queue.ended(&before);
        let (one, _) = started(queue.next(now, ALL));
        let (two, visit) = started(queue.next(now, ALL));
        assert_eq!((one.key, visit), (two.key, "suspect's other shop"));
        assert_eq!(waits(queue.next(now, ALL)), None, "nobody joins a suspect");
        queue.ended(&one);
        assert_eq!(waits(queue.next(now, ALL)), None);
        queue.ended(&two);
        assert_eq!(started(queue.next(now, ALL)).1, "after");
    }

    #[test]
    fn while_a_suspect_waits_for_its_pace_others_go_on() {
        let now = Instant::now();
        let slow = ShopLimits { interval: Duration::from_secs(60), ..free() };
        let mut queue = queue(&[("a", slow), ("b", free())], now);
        queue.push(label("a", 1, 1), "takes the slot").unwrap();
        let (first, _) = started(queue.next(now, ALL));
        queue.ended(&first);
        queue.push(suspect("a", 1, 2), "suspect").unwrap();
        queue.push(label("b", 1, 3), "other").unwrap();
        assert_eq!(started(queue.next(now, ALL)).1, "other");
    }

    #[test]
    fn two_suspects_do_not_starve_the_others() {
        let now = Instant::now();
        let mut queue = queue(&[("a", free())], now);
        queue.push(suspect("a", 1, 1), "suspect 1").unwrap();
        queue.push(suspect("a", 1, 2), "suspect 2").unwrap();
        queue.push(label("a", 1, 3), "other").unwrap();
        let (first, visit) = started(queue.next(now, ALL));
        assert_eq!(visit, "suspect 1");
        queue.ended(&first);
        let (other, visit) = started(queue.next(now, ALL));
        assert_eq!(visit, "other");
        assert_eq!(waits(queue.next(now, ALL)), None, "suspect 2 waits for the other");
        queue.ended(&other);
        assert_eq!(started(queue.next(now, ALL)).1, "suspect 2");
    }
}
