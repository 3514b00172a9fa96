//! The pool starts slow visits once more: a twin gets a scraper that is free when all have started that may, and takes
//! nothing that a first try waits for. Whether a visit is slow, and what the budget leaves, is [`crate::scraper::hedge`]'s.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{InHand, State, Worker};
use crate::model::page::Via;
use crate::scraper::actor::{self, Gear};
use crate::scraper::queue::{Label, Open};
use crate::scraper::stopwatch::Stopwatch;
use crate::scraper::{Slow, Visit};

/// A visit that waits for its pace is looked at again so often: nobody says when it goes on.
const WAITING_LOOK: Duration = Duration::from_millis(100);

/// What is slow now, and when something may be next.
#[derive(Default)]
struct Found {
    /// The worker, and by how much its visit is over what is slow.
    slowest: Option<(usize, Duration)>,
    next: Option<Instant>,
}

impl Found {
    fn look_at(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

/// Whether visits like this one may be started twice. Without Tor there is no other circuit; a suspect has the floor alone;
/// the catalogue is no shop.
fn may_have_twin(gear: &Gear, label: &Label) -> bool {
    let shop = gear.shops.get(&label.site);
    let by_shop = shop.is_some_and(|shop| shop.recipe.hedge && shop.recipe.waits_for() == Via::Tor);
    by_shop && !label.suspect
}

impl State {
    /// A visit that starts, as its scraper will have it in hand.
    pub(super) fn in_hand(&mut self, label: Label, visit: &Visit) -> InHand {
        let percent = self.gear.hedge_percent;
        let twin = may_have_twin(&self.gear, &label).then(|| {
            self.hedging.entry(label.site.clone()).or_default().started(percent);
            visit.twin()
        });
        InHand { label, stopwatch: Stopwatch::default(), gear: Arc::clone(&self.gear), twin }
    }

    /// A visit is over.
    pub(super) fn note_time(&mut self, in_hand: &InHand) {
        let shop = self.hedging.get_mut(&in_hand.label.site);
        if let (Some(shop), Some(took)) = (shop, in_hand.stopwatch.took()) {
            shop.took(took);
        }
    }

    /// Only shops in use are remembered.
    pub(super) fn forget_times(&mut self) {
        self.hedging.retain(|site, _| self.gear.shops.contains_key(site));
    }

    /// Starts slow visits once more, the slowest first, while a scraper is free that no shop is about to want; when to look
    /// again.
    pub(super) fn hedge(&mut self, open: Open) -> Option<Instant> {
        loop {
            let free = self.workers.iter().take(self.gear.scrapers).filter(|worker| worker.is_free()).count();
            if free <= self.queue.about_to_start(open) {
                return None; // Looked at again when a visit is over.
            }
            let now = Instant::now();
            let found = self.slowest(now, open);
            match found.slowest {
                Some((worker, _)) => self.start_twin_of(worker, now),
                None => return found.next,
            }
        }
    }

    fn slowest(&self, now: Instant, open: Open) -> Found {
        let mut found = Found::default();
        for (worker, in_hand) in
            self.workers.iter().enumerate().filter_map(|(n, w)| Some((n, w.visit.as_ref()?)))
        {
            let InHand { label, stopwatch, twin, .. } = in_hand;
            let shop = self.hedging.get(&label.site);
            let slow_after = shop.and_then(|shop| shop.slow_after(self.gear.hedge_percent));
            // By the configuration of now: a reload may have switched it off.
            let may = twin.is_some() && may_have_twin(&self.gear, label);
            let Some(slow_after) = slow_after.filter(|_| may) else { continue };
            let Some(paced) = self.queue.twin_at(&label.site, open) else { continue };
            let spent = stopwatch.spent(now);
            if spent < slow_after {
                let left = slow_after - spent;
                found.look_at(now + if stopwatch.runs() { left } else { left.max(WAITING_LOOK) });
            } else if now < paced {
                found.look_at(paced);
            } else {
                let over = spent - slow_after;
                if found.slowest.is_none_or(|(_, most)| most < over) {
                    found.slowest = Some((worker, over));
                }
            }
        }
        found
    }

    /// Once for each visit, whatever comes of it.
    fn start_twin_of(&mut self, worker: usize, now: Instant) {
        let Some(first) = self.workers.get_mut(worker).and_then(|worker| worker.visit.as_mut()) else {
            return;
        };
        let Some(twin) = first.twin.take() else { return };
        let (label, gear) = (first.label.clone(), Arc::clone(&first.gear));
        let hedging = self.hedging.entry(label.site.clone()).or_default();
        let median = hedging.median().unwrap_or_default();
        // Its end may be on its way here.
        let Some(visit) = twin.start(Slow { spent: first.stopwatch.spent(now), median }) else { return };
        let Some(free) = self.workers.iter().take(self.gear.scrapers).position(Worker::is_free) else {
            return;
        };
        hedging.spend();
        self.queue.start_twin(&label.site, now);
        let in_hand = InHand { label, stopwatch: Stopwatch::default(), gear, twin: None };
        self.send(free, in_hand, Box::new(visit));
    }

    /// Puts a visit that the queue counts into the hands of a scraper that is free.
    pub(super) fn send(&mut self, free: usize, in_hand: InHand, visit: Box<Visit>) {
        let worker = &mut self.workers[free];
        let (gear, pace) = (Arc::clone(&in_hand.gear), self.queue.pace(&in_hand.label.site));
        let order = actor::Msg::Visit { visit, gear, pace, stopwatch: in_hand.stopwatch.clone() };
        let sent = worker.actor.as_ref().is_some_and(|actor| actor.cast(order).is_ok());
        if sent {
            worker.visit = Some(in_hand);
        } else {
            worker.dying = true; // The news of it is on its way, and the dropped ticket has answered.
            self.queue.ended(&in_hand.label);
        }
    }
}
