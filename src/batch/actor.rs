//! A batch's coordinator: mailbox in, effects out; the decisions are in [`super::machine`].
//!
//! It holds a window of claimed products, never the batch. Whatever it holds can be rebuilt: its claims are in the
//! ledger with its incarnation, and the next incarnation releases them before it claims its own. Writes go out one at a
//! time in tasks of their own and come back as messages, so that the mailbox never waits for a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Settings;
use super::machine::{Effect, Input, Plan, Product, SlotId, Step, VisitEnd};
use crate::failpoint::{self, Point};
use crate::ledger::store::{Claim, Claimed, Ended, OpenBatch, SUSPECTED_AT, StoreError};
use crate::ledger::{LedgerError, LedgerHandle};
use crate::model::batch::Outcome;
use crate::model::{Gtin, ProductKey, SiteName};
use crate::scraper::{Announced, Answer, CATALOGUE, ScrapersHandle, Ticket, Visit};
use crate::telemetry::Event;
use crate::wall;

/// How often the coordinator looks for what nobody told it.
const TICK: Duration = Duration::from_secs(1);
/// A claimed product that nobody has in hand for this long is a mistake of this program (rule 1): it is looked for as
/// often, and told when it is found a second time.
const STRAYS_EVERY: Duration = Duration::from_secs(10);
/// How soon a visit is asked for again when the pool is between two incarnations.
const POOL_AWAY_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How soon a write is tried again that the ledger could not take.
const WRITE_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Outcomes in one command: a bound for the transaction, far above what a window ends within one fsync.
const ENDS_MAX: usize = 64;

/// What a coordinator needs.
#[derive(Clone, Debug)]
pub(super) struct Arguments {
    pub batch: OpenBatch,
    pub claim: Claim,
    pub settings: watch::Receiver<Arc<Settings>>,
    pub ledger: LedgerHandle,
    pub scrapers: ScrapersHandle,
}

#[derive(Debug)]
pub(super) enum Msg {
    /// Tell: begin. The first message, sent by the supervisor.
    Start,
    /// Tell: what the claim gave. From a task of the coordinator's own.
    Claimed(Result<Vec<Claimed>, LedgerError>),
    /// Tell: a visit ended. From a ticket, exactly once for each ask.
    VisitEnded { index: u32, slot: SlotId, answer: Answer },
    /// Tell: the pause before the next attempt is over. From a timer.
    Due { index: u32, slot: SlotId },
    /// Tell: what became of the outcomes that were written. From a task of the coordinator's own.
    Committed { writing: Writing, result: Result<Vec<Ended>, LedgerError> },
    /// Tell: whether the batch is over although nobody said so. From a task of the coordinator's own.
    LookedUp { is_over: bool },
    /// Tell: claims that nobody has in hand, and those of them that were put back. From a task of the coordinator's own.
    LookedForStrays { strays: BTreeSet<u32>, released: Vec<u32> },
    /// Tell: look for what nobody told. From a timer.
    Tick,
    /// Ask: claim nothing more; answered when all outcomes in hand are on disk and all claims are put back.
    Drain { reply: RpcReplyPort<()> },
}

/// Outcomes on their way to the disk.
#[derive(Clone, Debug)]
pub(super) struct Writing {
    outcomes: Arc<Vec<(u32, Outcome)>>,
    /// An earlier try may have been the one.
    unsure: bool,
}

pub(super) struct Coordinator;

pub(super) struct State {
    arguments: Arguments,
    /// By the settings of now, like the window.
    plan: Plan,
    window: usize,
    products: BTreeMap<u32, Live>,
    /// Outcomes that wait for the next write.
    ends: Vec<(u32, Outcome)>,
    /// What older incarnations hold is known to be put back.
    released: bool,
    /// Also while strays are looked for.
    claiming: bool,
    /// What the write under way is about.
    committing: Option<Arc<Vec<(u32, Outcome)>>>,
    /// The last claim gave less than it could: nothing is queued, until something is put back.
    exhausted: bool,
    looking_up: bool,
    /// Claimed, and in nobody's hands at the last look.
    strays: BTreeSet<u32>,
    strays_due: Instant,
    draining: Option<RpcReplyPort<()>>,
    /// Tickets hold the other end weakly: dropped with this incarnation.
    alive: Arc<()>,
}

/// A product in the window.
struct Live {
    product: Product,
    ean: Box<str>,
    suspect: bool,
    announced: Arc<Announced>,
    first_dial: Option<Instant>,
}

impl Actor for Coordinator {
    type Msg = Msg;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        me: ActorRef<Msg>,
        mut arguments: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        me.send_after(TICK, || Msg::Tick);
        let now = Arc::clone(&arguments.settings.borrow_and_update());
        Ok(State {
            plan: now.plan(&arguments.batch.sites),
            window: now.window,
            arguments,
            products: BTreeMap::new(),
            ends: Vec::new(),
            released: false,
            claiming: false,
            committing: None,
            exhausted: false,
            looking_up: false,
            strays: BTreeSet::new(),
            strays_due: Instant::now() + STRAYS_EVERY,
            draining: None,
            alive: Arc::new(()),
        })
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.follow();
        match msg {
            Msg::Start => {
                failpoint::hit(Point::CoordinatorStart);
                let Arguments { batch, claim, .. } = &state.arguments;
                let (batch_id, incarnation) = (batch.batch_id.as_str(), claim.incarnation);
                Event::BatchTaken { batch_id, incarnation }.emit();
            }
            Msg::Claimed(result) => {
                failpoint::hit(Point::CoordinatorClaimed);
                state.claimed(result, &me);
            }
            Msg::VisitEnded { index, slot, answer } => {
                failpoint::hit(Point::CoordinatorVisitEnded);
                state.visit_ended(index, slot, answer, &me);
            }
            Msg::Due { index, slot } => state.input(index, Input::Due(slot), &me),
            Msg::Committed { writing, result } => {
                failpoint::hit(Point::CoordinatorCommitted);
                if state.committed(writing, result, &me) {
                    me.stop(None);
                    return Ok(());
                }
            }
            Msg::LookedUp { is_over } => {
                state.looking_up = false;
                if is_over {
                    // Its last outcome was written by a command that was not heard of in time, here or before us.
                    state.tell_batch_ended();
                    me.stop(None);
                    return Ok(());
                }
                state.exhausted = false;
            }
            Msg::LookedForStrays { strays, released } => state.looked_for_strays(strays, &released),
            Msg::Tick => {
                failpoint::hit(Point::CoordinatorTick);
                me.send_after(TICK, || Msg::Tick);
                // Whose next visit did not follow the last one within a tick.
                state.products.keys().for_each(|index| state.rest(*index));
                state.look_for_strays(&me);
                state.look_up_if_idle(&me);
            }
            Msg::Drain { reply } => state.drain(reply),
        }
        state.claim_more(&me);
        state.write_ends(&me);
        state.finish_drain(&me);
        Ok(())
    }
}

impl State {
    fn key(&self, index: u32) -> ProductKey {
        ProductKey { batch: self.arguments.batch.no, index }
    }

    /// What starts from now on goes by the configuration of now (rule 13).
    fn follow(&mut self) {
        let Arguments { batch, settings, .. } = &mut self.arguments;
        if settings.has_changed().unwrap_or(false) {
            let now = settings.borrow_and_update();
            (self.plan, self.window) = (now.plan(&batch.sites), now.window);
        }
    }

    /// Fills the window once a quarter of it is free, so that claims come in groups. The first one puts back what older
    /// incarnations hold.
    fn claim_more(&mut self, me: &ActorRef<Msg>) {
        let room = self.window.saturating_sub(self.products.len());
        if self.claiming || self.exhausted || self.draining.is_some() || room < self.window.div_ceil(4) {
            return;
        }
        let Arguments { batch, claim, ledger, .. } = &self.arguments;
        let (batch, claim, ledger, me) = (batch.no, *claim, ledger.clone(), me.clone());
        let release = !self.released;
        self.claiming = true;
        tokio::spawn(async move {
            let result = ledger
                .write(move |store| {
                    if release {
                        store.release_older(batch, claim)?;
                    }
                    store.claim(batch, claim, room as u32)
                })
                .await;
            // An incarnation that is gone claims nothing: the next one releases this claim.
            let _ = me.cast(Msg::Claimed(result));
        });
    }

    fn claimed(&mut self, result: Result<Vec<Claimed>, LedgerError>, me: &ActorRef<Msg>) {
        self.claiming = false;
        match result {
            Ok(claimed) => {
                self.released = true;
                self.exhausted = claimed.is_empty();
                for product in claimed {
                    self.take_up(product, me);
                }
            }
            Err(_) => self.claim_later(me),
        }
    }

    /// Tries again, with the release if that was not done yet. What a claim whose result was not seen took after all is in
    /// nobody's hands, and is found as a stray.
    fn claim_later(&mut self, me: &ActorRef<Msg>) {
        self.exhausted = true;
        let (looking_up, me) = (&mut self.looking_up, me.clone());
        *looking_up = true;
        me.send_after(WRITE_AGAIN_AFTER, || Msg::LookedUp { is_over: false });
    }

    fn take_up(&mut self, claimed: Claimed, me: &ActorRef<Msg>) {
        let Claimed { index, ean, replacement, deaths } = claimed;
        if self.products.contains_key(&index) {
            return;
        }
        let Ok(gtin) = Gtin::parse(&ean) else {
            // It was valid when it was accepted: a damaged row must not stop its batch.
            self.ends.push((index, Outcome::crashed("the ledger holds a barcode that is none")));
            return;
        };
        let suspect = deaths >= SUSPECTED_AT;
        if suspect {
            let batch_id = self.arguments.batch.batch_id.as_str();
            Event::ProductSuspected { batch_id, index: index.into(), deaths: deaths.into() }.emit();
        }
        let replacement = replacement.and_then(|text| Gtin::parse(&text).ok());
        let (product, effects) = Product::claimed(gtin, replacement, &self.plan);
        let (ean, announced) = (ean.into(), Arc::default());
        self.products.insert(index, Live { product, ean, suspect, announced, first_dial: None });
        self.perform(index, effects, me);
    }

    fn visit_ended(&mut self, index: u32, slot: SlotId, answer: Answer, me: &ActorRef<Msg>) {
        if let (Some(live), Some(at)) = (self.products.get_mut(&index), answer.dialled_at) {
            live.first_dial = Some(live.first_dial.map_or(at, |first| first.min(at)));
        }
        if self.draining.is_some() && matches!(answer.end, VisitEnd::PutBack | VisitEnd::Lost { .. }) {
            self.put_back(index);
            return;
        }
        let waits = matches!(answer.end, VisitEnd::PutBack | VisitEnd::Lost { .. });
        self.input(index, Input::Ended(slot, answer.end), me);
        // Asked for again at once, what was put back may wait for hours; other visits mostly follow each other.
        if self.products.get(&index).is_some_and(|live| waits || !live.product.is_asked()) {
            self.rest(index);
        }
        let still = |live: &Live| !live.product.is_over() && !live.product.is_asked();
        if self.draining.is_some() && self.products.get(&index).is_some_and(still) {
            self.put_back(index); // Its next attempt is the next process's.
        }
    }

    fn input(&mut self, index: u32, input: Input, me: &ActorRef<Msg>) {
        let Some(live) = self.products.get_mut(&index) else { return };
        let effects = live.product.apply(input, &self.plan);
        self.perform(index, effects, me);
    }

    fn perform(&mut self, index: u32, effects: Vec<Effect>, me: &ActorRef<Msg>) {
        for effect in effects {
            match effect {
                Effect::Ask { slot, attempt } => self.ask(index, slot, attempt, me),
                Effect::Pause { slot, after } => {
                    me.send_after(after, move || Msg::Due { index, slot });
                }
                Effect::End(mut outcome) => {
                    let first_dial = self.products.get(&index).and_then(|live| live.first_dial);
                    outcome.duration_ms = first_dial.map_or(0, |at| at.elapsed().as_millis() as u64);
                    self.ends.push((index, *outcome));
                }
                Effect::Forget => {
                    self.products.remove(&index);
                }
            }
        }
    }

    fn ask(&mut self, index: u32, slot: SlotId, attempt: u32, me: &ActorRef<Msg>) {
        let key = self.key(index);
        let Some(live) = self.products.get(&index) else { return };
        let Arguments { claim, batch, scrapers, .. } = &self.arguments;
        let site: SiteName = match slot.step {
            Step::Catalogue => CATALOGUE.into(),
            Step::Primary | Step::Replacement => self.plan.shops[slot.shop].0.clone(),
        };
        let coordinator = me.clone();
        let ticket = Ticket::new(&self.alive, move |answer| {
            // A coordinator that is gone has a successor, which releases the claim and asks for itself.
            let _ = coordinator.cast(Msg::VisitEnded { index, slot, answer });
        });
        let visit = Visit {
            key,
            batch_id: batch.batch_id.clone(),
            ean: live.ean.clone(),
            gtin: live.product.asked().clone(),
            site,
            attempt,
            claim: *claim,
            suspect: live.suspect,
            announced: Arc::clone(&live.announced),
            ticket,
        };
        if let Err(visit) = scrapers.ask(visit) {
            visit.ticket.defuse();
            let again = Msg::VisitEnded {
                index,
                slot,
                answer: Answer { end: VisitEnd::Lost { dialled: false }, dialled_at: None },
            };
            me.send_after(POOL_AWAY_AGAIN_AFTER, || again);
        }
    }

    /// A product that waits is not being visited: a death of the process then is not its fault.
    fn rest(&self, index: u32) {
        let Some(live) = self.products.get(&index).filter(|live| live.announced.is_to_rest()) else { return };
        let (key, claim, ledger) = (self.key(index), self.arguments.claim, self.arguments.ledger.clone());
        let announced = Arc::clone(&live.announced);
        tokio::spawn(async move { announced.rest(&ledger, key, claim).await });
    }

    fn write_ends(&mut self, me: &ActorRef<Msg>) {
        if self.committing.is_some() || self.ends.is_empty() {
            return;
        }
        let rest = self.ends.split_off(self.ends.len().min(ENDS_MAX));
        let outcomes = Arc::new(std::mem::replace(&mut self.ends, rest));
        self.committing = Some(Arc::clone(&outcomes));
        self.spawn_write(Writing { outcomes, unsure: false }, Duration::ZERO, me);
    }

    fn spawn_write(&self, writing: Writing, after: Duration, me: &ActorRef<Msg>) {
        let Arguments { batch, claim, ledger, .. } = &self.arguments;
        let (batch, claim, ledger, me) = (batch.no, *claim, ledger.clone(), me.clone());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let outcomes = Arc::clone(&writing.outcomes);
            let result = ledger
                .write(move |store| {
                    let now = wall::now_ms();
                    let end = |(index, outcome): &(u32, Outcome)| -> Result<Ended, StoreError> {
                        store.end(ProductKey { batch, index: *index }, claim, outcome, now)
                    };
                    outcomes.iter().map(end).collect::<Result<Vec<_>, _>>()
                })
                .await;
            let _ = me.cast(Msg::Committed { writing, result }); // The next incarnation asks the ledger.
        });
    }

    /// `true`: the batch is over.
    fn committed(
        &mut self,
        writing: Writing,
        result: Result<Vec<Ended>, LedgerError>,
        me: &ActorRef<Msg>,
    ) -> bool {
        let ended = match result {
            Ok(ended) => ended,
            Err(error) => {
                let unsure = writing.unsure || error == LedgerError::Unknown;
                self.spawn_write(Writing { unsure, ..writing }, WRITE_AGAIN_AFTER, me);
                return false;
            }
        };
        self.committing = None;
        let mut batch_over = false;
        for ((index, outcome), ended) in writing.outcomes.iter().zip(ended) {
            // Whether the batch is over is not known then: it is looked up when nothing is left to do.
            let ours = writing.unsure && ended == Ended::Already;
            let ended = if ours { Ended::Now { batch_over: false } } else { ended };
            self.tell_ended(*index, outcome, ended);
            self.products.remove(index);
            batch_over |= ended == Ended::Now { batch_over: true };
        }
        if batch_over {
            self.tell_batch_ended();
        }
        batch_over && self.draining.is_none()
    }

    fn tell_batch_ended(&self) {
        Event::BatchEnded { batch_id: self.arguments.batch.batch_id.as_str() }.emit();
    }

    fn tell_ended(&self, index: u32, outcome: &Outcome, ended: Ended) {
        let batch_id = self.arguments.batch.batch_id.as_str();
        let reason = match ended {
            Ended::Now { .. } => {
                let live = self.products.get(&index);
                Event::ProductEnded {
                    batch_id,
                    index: index.into(),
                    ean: live.map_or("", |live| &live.ean),
                    outcome: outcome.status.as_str(),
                    kind: outcome.reason.as_ref().map(|reason| reason.kind.as_str()),
                    duration_ms: outcome.duration_ms,
                }
                .emit();
                return;
            }
            Ended::Already => "already ended",
            Ended::ClaimLost => "claim lost",
        };
        Event::OutcomeDropped { batch_id, index: index.into(), reason }.emit();
    }

    /// Rule 1: a claimed product that is in nobody's hands is put back, and somebody should look. It has to be seen so twice:
    /// what is being put back, or written as ended, may still look like it.
    fn look_for_strays(&mut self, me: &ActorRef<Msg>) {
        let now = Instant::now();
        if self.claiming || self.draining.is_some() || now < self.strays_due {
            return;
        }
        self.strays_due = now + STRAYS_EVERY;
        // Nothing is claimed meanwhile: it would look like a stray until it is heard of.
        self.claiming = true;
        let mut held: BTreeSet<u32> = self.products.keys().copied().collect();
        let written = self.committing.iter().flat_map(|written| written.iter());
        held.extend(self.ends.iter().chain(written).map(|(index, _)| *index));
        let before = std::mem::take(&mut self.strays);
        let Arguments { batch, claim, ledger, .. } = &self.arguments;
        let (batch, claim, ledger, me) = (batch.no, *claim, ledger.clone(), me.clone());
        tokio::spawn(async move {
            // A read or a write that failed is repeated at the next look.
            let claimed = ledger.reader().read(move |read| read.claimed(batch, claim)).await;
            let mut strays: BTreeSet<u32> = claimed.unwrap_or_default().into_iter().collect();
            strays.retain(|index| !held.contains(index));
            let seen_twice: Vec<u32> = strays.intersection(&before).copied().collect();
            let mut released = Vec::new();
            if !seen_twice.is_empty() {
                let release =
                    ledger.write(move |store| store.release_claims(batch, claim, &seen_twice)).await;
                released = release.unwrap_or_default();
            }
            strays.retain(|index| !released.contains(index));
            let _ = me.cast(Msg::LookedForStrays { strays, released }); // The next incarnation releases them all.
        });
    }

    fn looked_for_strays(&mut self, strays: BTreeSet<u32>, released: &[u32]) {
        self.claiming = false;
        self.strays = strays;
        for &index in released {
            let batch_id = self.arguments.batch.batch_id.as_str();
            Event::ClaimStranded { batch_id, index: index.into() }.emit();
            self.exhausted = false;
        }
    }

    fn put_back(&mut self, index: u32) {
        if self.products.remove(&index).is_none() {
            return;
        }
        let (key, claim, ledger) = (self.key(index), self.arguments.claim, self.arguments.ledger.clone());
        self.exhausted = false;
        tokio::spawn(async move {
            // If it is not written, the claim dies with this incarnation, or with this process.
            let _ = ledger.write(move |store| store.put_back(key, claim)).await;
        });
    }

    /// Nothing in the window and nothing to claim: either the batch is over, or a claim went astray.
    fn look_up_if_idle(&mut self, me: &ActorRef<Msg>) {
        let idle =
            self.products.is_empty() && self.ends.is_empty() && !self.claiming && self.committing.is_none();
        if !idle || !self.exhausted || self.looking_up || self.draining.is_some() {
            return;
        }
        self.looking_up = true;
        let Arguments { batch, ledger, claim, .. } = &self.arguments;
        let (batch_id, no, claim, ledger, me) =
            (batch.batch_id.clone(), batch.no, *claim, ledger.clone(), me.clone());
        tokio::spawn(async move {
            let view = ledger.reader().read(move |read| read.batch(batch_id.as_str())).await;
            let is_over = matches!(view, Ok(Some(ref batch)) if batch.ended_at_ms.is_some());
            if !is_over {
                // What our own lost claims hold goes back to the queue.
                let _ = ledger
                    .write(move |store| {
                        store.release_older(no, Claim { incarnation: claim.incarnation + 1, ..claim })
                    })
                    .await;
            }
            let _ = me.cast(Msg::LookedUp { is_over });
        });
    }

    /// Products that no visit holds go back now; the others when their visit ends.
    fn drain(&mut self, reply: RpcReplyPort<()>) {
        self.draining = Some(reply);
        let still = |live: &Live| !live.product.is_asked();
        let ending: Vec<u32> = self.ends.iter().map(|(index, _)| *index).collect();
        let back: Vec<u32> =
            self.products.iter().filter(|(_, live)| still(live)).map(|(index, _)| *index).collect();
        for index in back.into_iter().filter(|index| !ending.contains(index)) {
            if !self.products[&index].product.is_over() {
                self.put_back(index);
            }
        }
    }

    fn finish_drain(&mut self, me: &ActorRef<Msg>) {
        let done =
            self.products.is_empty() && self.ends.is_empty() && self.committing.is_none() && !self.claiming;
        if done && let Some(reply) = self.draining.take() {
            let _ = reply.send(()); // The root may have stopped waiting.
            me.stop(None);
        }
    }
}
