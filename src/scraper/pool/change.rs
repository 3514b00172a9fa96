//! The pool under a configuration that changes: what starts from now on has the new gear, and what is in flight ends with
//! the one it has (rule 13).

use std::collections::BTreeMap;
use std::sync::Arc;

use ractor::{ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use super::{Msg, State, Worker, watch_tor};
use crate::batch::machine::VisitEnd;
use crate::model::SiteName;
use crate::scraper::actor::Gear;
use crate::scraper::queue::ShopLimits;
use crate::scraper::{CATALOGUE, Visit};

/// How each shop may be visited, and the catalogue asked.
pub(super) fn limits(gear: &Gear) -> BTreeMap<SiteName, ShopLimits> {
    let shops = gear.shops.iter().map(|(name, shop)| {
        let (interval, concurrency, via) = (shop.interval, shop.concurrency, shop.recipe.waits_for());
        let (adaptive, on_block) = (shop.recipe.adaptive, shop.recipe.on_block);
        (name.clone(), ShopLimits { interval, adaptive, concurrency, via, on_block })
    });
    shops.chain(gear.catalogue.iter().map(|catalogue| (CATALOGUE.into(), catalogue.limits))).collect()
}

impl State {
    /// Takes the gear of now, if it is not the one in hand. Called before each message is looked at, so that a visit of a
    /// shop that was just added is never asked of a pool that does not know it.
    pub(super) async fn follow(&mut self, me: &ActorRef<Msg>) -> Result<(), ActorProcessingErr> {
        if !self.gears.has_changed().unwrap_or(false) || self.drain.borrow().is_some() {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.gear, Arc::clone(&self.gears.borrow_and_update()));
        let gone = self.queue.change(self.gear.scrapers as u32, &limits(&self.gear), Instant::now());
        for (_, visit) in gone {
            removed(*visit);
        }
        self.forget_times();
        if before.probe_timeout != self.gear.probe_timeout {
            self.tor_watcher = watch_tor(&self.gear);
        }
        self.let_go();
        let missing = self.gear.scrapers.saturating_sub(self.workers.len());
        self.workers.extend((0..missing).map(|_| Worker::default()));
        self.start_missing(me).await
    }

    /// Ends the scrapers beyond `tor.circuits` that are free; one at work ends after its visit.
    pub(super) fn let_go(&mut self) {
        for worker in self.workers.iter_mut().skip(self.gear.scrapers).filter(|worker| worker.visit.is_none())
        {
            // The slot forgets it first: its end is no failure.
            if let Some(actor) = std::mem::take(worker).actor {
                actor.stop(None);
            }
        }
        while self.workers.len() > self.gear.scrapers
            && self.workers.last().is_some_and(|last| last.visit.is_none())
        {
            self.workers.pop();
        }
    }
}

/// Answers a visit of a shop that is no longer in the configuration; without a catalogue the product goes on.
pub(super) fn removed(visit: Visit) {
    let end = if &*visit.site == CATALOGUE { VisitEnd::NoCatalogue } else { VisitEnd::removed() };
    visit.ticket.answer(end);
}
