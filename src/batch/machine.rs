//! The life of one claimed product, from its claim to its outcome. Pure.
//!
//! ```text
//!              sold, or no catalogue           no shop has it, and there is a replacement
//!  Catalogue ────────────────────▶ Primary ──────────────────────────────▶ Replacement
//!      │                              │                                          │
//!      │ not sold · attempts spent    │ a shop has it · no replacement           │ all shops done
//!      └──────────────────────────────┴───────────────▶ Over ◀───────────────────┘
//! ```
//!
//! In a round every shop has a slot, and the slots go side by side. A slot is asked for, answered, and asked for again
//! while its attempts last; what is put back is asked for again and charged nothing.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::model::Gtin;
use crate::model::batch::{Outcome, Reason, SiteName, Status};
use crate::model::way::Way;

/// Which question a slot asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Catalogue,
    Primary,
    Replacement,
}

/// One asked visit. `ask` makes a late answer to an earlier request recognisable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId {
    pub step: Step,
    /// Position among the batch's shops; 0 for the catalogue.
    pub shop: usize,
    pub ask: u32,
}

/// How a visit ended.
#[derive(Clone, Debug, PartialEq)]
pub enum VisitEnd {
    /// The shop has it; its object for `data`.
    Found(Map<String, Value>),
    /// The shop answered, and does not have it.
    NotFound,
    /// The shop answered with another product, or with a page without GTIN.
    Mismatch { detail: String },
    /// The catalogue sells it.
    Sold,
    /// The catalogue does not sell it.
    NotSold,
    /// There is no catalogue any more: the product goes on as if none had been asked.
    NoCatalogue,
    /// The attempt is charged.
    Failed { reason: Reason, again: Again },
    /// The shop refused what came by this way, by this rule. The attempt is charged, but see [`Product::refused`].
    Refused { rule: String, way: Way, again: Again },
    /// Nothing is charged: Tor was away, the daemon drains.
    PutBack,
    /// The visit was lost with its scraper or its queue. `dialled`: its own scraper failed after the first dial, which is
    /// charged.
    Lost { dialled: bool },
    /// The claim was lost: somebody else has, or had, the product.
    Void,
}

impl VisitEnd {
    /// Whether the shop, or the catalogue, answered the question: nobody else has to ask it.
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Found(_) | Self::NotFound | Self::Mismatch { .. } | Self::Sold | Self::NotSold => true,
            Self::Failed { .. } | Self::Refused { .. } => false,
            Self::NoCatalogue | Self::PutBack | Self::Lost { .. } | Self::Void => false,
        }
    }

    /// The shop is not in use any more (rule 13): no attempt makes sense.
    pub fn removed() -> Self {
        Self::Failed { reason: removed(), again: Again::Never }
    }

    /// The shop refuses most exits (design 3.3): nothing goes there before a trial was let in.
    pub fn turned_away() -> Self {
        let detail = "the shop refuses most exits, and is left alone until it lets one in";
        Self::Failed { reason: Reason::new(BLOCKED, detail), again: Again::Never }
    }
}

/// The kind of the error where a shop said no.
pub const BLOCKED: &str = "blocked";

fn removed() -> Reason {
    Reason::new("removed", "the shop is no longer in the configuration, or switched off")
}

/// Whether another attempt makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// After the schedule's pause; the scraper has already changed its circuit if that helps.
    Soon,
    /// Not before this long, because the shop said so.
    After(Duration),
    Never,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The visit of this slot is over.
    Ended(SlotId, VisitEnd),
    /// The pause before this slot's next attempt is over.
    Due(SlotId),
}

#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum Effect {
    /// Ask the scrapers for a visit with this barcode.
    Ask { slot: SlotId, attempt: u32 },
    /// Come back with `Due` after this long.
    Pause { slot: SlotId, after: Duration },
    /// Record the outcome. Nothing follows it.
    End(Box<Outcome>),
    /// The product is no longer ours.
    Forget,
}

/// What a batch's products have in common.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The batch's shops, fixed when it was accepted; `false` where the configuration has the shop no more
    /// (rule 13).
    pub shops: Vec<(SiteName, bool)>,
    pub catalogue: bool,
    pub attempts_max: u32,
    pub catalogue_attempts_max: u32,
    pub retry_min: Duration,
    pub retry_max: Duration,
}

/// How soon a visit that was lost before it dialled is asked for again: its queue is being restarted.
const LOST_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A claimed product on its way.
#[derive(Clone, Debug)]
pub struct Product {
    primary: Gtin,
    replacement: Option<Gtin>,
    step: Step,
    slots: Vec<Slot>,
    /// By shop, over both rounds.
    errors: Vec<(SiteName, Reason)>,
    mismatch: Option<String>,
    asks: u32,
    over: bool,
}

#[derive(Clone, Debug)]
struct Slot {
    /// Charged attempts, and the one under way.
    attempt: u32,
    state: SlotState,
    /// The last try was refused through a circuit whose exit nobody knows.
    refused: bool,
    /// The attempt under way has had its try that is not charged.
    repeated: bool,
}

impl Slot {
    const NEW: Self = Self { attempt: 1, state: SlotState::Done(None), refused: false, repeated: false };
}

#[derive(Clone, Debug, PartialEq)]
enum SlotState {
    Asked(u32),
    Paused(u32),
    Done(Option<Map<String, Value>>),
}

impl Product {
    /// A product that was just claimed, and what to do first.
    pub fn claimed(primary: Gtin, replacement: Option<Gtin>, plan: &Plan) -> (Self, Vec<Effect>) {
        let (step, slots) = (Step::Primary, Vec::new());
        let mut product = Self {
            primary,
            replacement,
            step,
            slots,
            errors: Vec::new(),
            mismatch: None,
            asks: 0,
            over: false,
        };
        let effects =
            if plan.catalogue { product.ask_catalogue() } else { product.begin_round(Step::Primary, plan) };
        (product, effects)
    }

    /// The barcode that this step asks for.
    pub fn asked(&self) -> &Gtin {
        match (self.step, &self.replacement) {
            (Step::Replacement, Some(replacement)) => replacement,
            (Step::Catalogue | Step::Primary | Step::Replacement, _) => &self.primary,
        }
    }

    /// Whether the outcome is decided, though perhaps not yet on disk.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether a scraper, or the queue, holds a visit of it.
    pub fn is_asked(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.state, SlotState::Asked(_)))
    }

    /// The next state, in place, and what the shell must do, in that order. Nothing for what is late.
    pub fn apply(&mut self, input: Input, plan: &Plan) -> Vec<Effect> {
        let id = match &input {
            Input::Ended(id, _) | Input::Due(id) => *id,
        };
        if self.over || id.step != self.step {
            return Vec::new(); // Late: an earlier round's, or after the end.
        }
        let Some(slot) = self.slots.get(id.shop) else { return Vec::new() };
        match (slot.state.clone(), input) {
            (SlotState::Paused(ask), Input::Due(_)) if ask == id.ask => vec![self.ask(id.shop)],
            (SlotState::Asked(ask), Input::Ended(_, end)) if ask == id.ask => {
                self.visit_ended(id.shop, end, plan)
            }
            // Late: a timer or an answer of an earlier request.
            (
                SlotState::Asked(_) | SlotState::Paused(_) | SlotState::Done(_),
                Input::Due(_) | Input::Ended(..),
            ) => Vec::new(),
        }
    }

    fn visit_ended(&mut self, shop: usize, end: VisitEnd, plan: &Plan) -> Vec<Effect> {
        match end {
            VisitEnd::Found(object) => self.shop_done(shop, Some(object), plan),
            VisitEnd::NotFound => self.shop_done(shop, None, plan),
            VisitEnd::Mismatch { detail } => {
                self.note_error(shop, Reason::new("ean_mismatch", detail.clone()), plan);
                self.mismatch.get_or_insert(detail);
                self.shop_done(shop, None, plan)
            }
            VisitEnd::Sold | VisitEnd::NoCatalogue => self.begin_round(Step::Primary, plan),
            VisitEnd::NotSold => {
                let reason = Reason::new("not_in_catalogue", "the catalogue does not sell this barcode");
                self.end(Outcome::without_visit(Status::NotInCatalogue, Some(reason)))
            }
            VisitEnd::Failed { reason, again } => self.failed(shop, reason, again, plan),
            VisitEnd::Refused { rule, way, again } => self.refused(shop, rule, &way, again, plan),
            VisitEnd::PutBack => vec![self.ask(shop)],
            VisitEnd::Lost { dialled: false } => vec![self.pause(shop, LOST_AGAIN_AFTER)],
            VisitEnd::Lost { dialled: true } => {
                let reason = Reason::new("crashed", "the scraper failed during the visit");
                self.failed(shop, reason, Again::Soon, plan)
            }
            VisitEnd::Void => {
                self.over = true;
                vec![Effect::Forget]
            }
        }
    }

    /// Refused twice in a row through circuits whose exits nobody knows, it may have been the same exit twice: it is tried
    /// once more, uncharged (design 3.3). Once for each attempt, so at most twice as often as there are attempts.
    fn refused(&mut self, shop: usize, rule: String, way: &Way, again: Again, plan: &Plan) -> Vec<Effect> {
        let slot = &mut self.slots[shop];
        let before = std::mem::replace(&mut slot.refused, matches!(way, Way::Circuit(_)));
        if let Some(pause) = pause_for(again, slot.attempt, plan)
            && before
            && slot.refused
            && !std::mem::replace(&mut slot.repeated, true)
        {
            return vec![self.pause(shop, pause)];
        }
        self.attempt_failed(shop, Reason::new(BLOCKED, rule), again, plan)
    }

    fn failed(&mut self, shop: usize, reason: Reason, again: Again, plan: &Plan) -> Vec<Effect> {
        self.slots[shop].refused = false;
        self.attempt_failed(shop, reason, again, plan)
    }

    fn attempt_failed(&mut self, shop: usize, reason: Reason, again: Again, plan: &Plan) -> Vec<Effect> {
        let attempts_max =
            if self.step == Step::Catalogue { plan.catalogue_attempts_max } else { plan.attempts_max };
        let slot = &mut self.slots[shop];
        let pause = pause_for(again, slot.attempt, plan).filter(|_| slot.attempt < attempts_max);
        if let Some(pause) = pause {
            slot.attempt += 1;
            slot.repeated = false;
            return vec![self.pause(shop, pause)];
        }
        if self.step == Step::Catalogue {
            // An error of the catalogue is never a "no".
            return self.end(Outcome::without_visit(Status::Failed, Some(in_catalogue(&reason))));
        }
        self.note_error(shop, reason, plan);
        self.shop_done(shop, None, plan)
    }

    fn shop_done(&mut self, shop: usize, found: Option<Map<String, Value>>, plan: &Plan) -> Vec<Effect> {
        self.slots[shop].state = SlotState::Done(found);
        if self.slots.iter().all(|slot| matches!(slot.state, SlotState::Done(_))) {
            self.round_over(plan)
        } else {
            Vec::new()
        }
    }

    /// Rule 3: found if any shop has it; else, after the replacement, failed before mismatch before not found.
    fn round_over(&mut self, plan: &Plan) -> Vec<Effect> {
        let found = self.slots.iter().any(|slot| matches!(slot.state, SlotState::Done(Some(_))));
        if !found && self.step == Step::Primary && self.replacement.is_some() {
            return self.begin_round(Step::Replacement, plan);
        }
        let failed = self.errors.iter().find(|(_, reason)| reason.kind != "ean_mismatch");
        let (status, reason) = match (found, failed, &self.mismatch) {
            (true, _, _) => (Status::Found, None),
            (false, Some((site, reason)), _) => {
                (Status::Failed, Some(Reason::new(reason.kind.clone(), format!("{site}: {}", reason.detail))))
            }
            (false, None, Some(detail)) => {
                (Status::EanMismatch, Some(Reason::new("ean_mismatch", detail.clone())))
            }
            (false, None, None) => (Status::NotFound, None),
        };
        let replaced = self.step == Step::Replacement;
        let data = if found { self.take_data(plan, replaced) } else { Map::new() };
        let outcome = Outcome {
            status,
            reason,
            used_ean: Some(self.asked().to_string()),
            used_replacement: replaced && found,
            data,
            errors: std::mem::take(&mut self.errors),
            duration_ms: 0,
        };
        self.end(outcome)
    }

    fn take_data(&mut self, plan: &Plan, replaced: bool) -> Map<String, Value> {
        let mut data = Map::new();
        for (slot, (site, _)) in self.slots.iter_mut().zip(&plan.shops) {
            if let SlotState::Done(Some(object)) = &mut slot.state {
                let mut object = std::mem::take(object);
                if replaced {
                    object.insert("used_replacement".into(), true.into());
                    object.insert("original_ean".into(), self.primary.to_string().into());
                }
                data.insert(site.to_string(), object.into());
            }
        }
        data
    }

    fn begin_round(&mut self, step: Step, plan: &Plan) -> Vec<Effect> {
        self.step = step;
        self.slots = vec![Slot::NEW; plan.shops.len()];
        let mut effects = Vec::with_capacity(plan.shops.len());
        for (shop, (_, in_use)) in plan.shops.iter().enumerate() {
            if *in_use {
                effects.push(self.ask(shop));
            } else {
                self.note_error(shop, removed(), plan);
            }
        }
        if effects.is_empty() { self.round_over(plan) } else { effects }
    }

    fn ask_catalogue(&mut self) -> Vec<Effect> {
        self.step = Step::Catalogue;
        self.slots = vec![Slot::NEW];
        vec![self.ask(0)]
    }

    fn ask(&mut self, shop: usize) -> Effect {
        self.asks += 1;
        let slot = &mut self.slots[shop];
        slot.state = SlotState::Asked(self.asks);
        Effect::Ask { slot: SlotId { step: self.step, shop, ask: self.asks }, attempt: slot.attempt }
    }

    fn pause(&mut self, shop: usize, after: Duration) -> Effect {
        self.asks += 1;
        self.slots[shop].state = SlotState::Paused(self.asks);
        Effect::Pause { slot: SlotId { step: self.step, shop, ask: self.asks }, after }
    }

    fn note_error(&mut self, shop: usize, reason: Reason, plan: &Plan) {
        let site = &plan.shops[shop].0;
        match self.errors.iter_mut().find(|(known, _)| known == site) {
            // An error outweighs a mismatch of the other round (rule 3).
            Some((_, known)) if known.kind == "ean_mismatch" => *known = reason,
            Some(_) => {}
            None => self.errors.push((site.clone(), reason)),
        }
    }

    fn end(&mut self, outcome: Outcome) -> Vec<Effect> {
        self.over = true;
        vec![Effect::End(Box::new(outcome))]
    }
}

/// The pause before the attempt after this one, if that makes sense.
fn pause_for(again: Again, attempt: u32, plan: &Plan) -> Option<Duration> {
    match again {
        Again::Never => None,
        Again::Soon => Some(pause_before(attempt, plan)),
        Again::After(at_least) => Some(pause_before(attempt, plan).max(at_least)),
    }
}

/// Doubles from `retry_min` to `retry_max`.
fn pause_before(attempt: u32, plan: &Plan) -> Duration {
    plan.retry_min.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(plan.retry_max)
}

fn in_catalogue(reason: &Reason) -> Reason {
    Reason::new("catalogue", format!("{}: {}", reason.kind, reason.detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn plan(shops: &[&str]) -> Plan {
        Plan {
            shops: shops.iter().map(|site| ((*site).into(), true)).collect(),
            catalogue: false,
            attempts_max: 2,
            catalogue_attempts_max: 2,
            retry_min: SECOND,
            retry_max: 60 * SECOND,
        }
    }

    fn primary() -> Gtin {
        Gtin::parse("0748322148474").unwrap()
    }

    fn replacement() -> Gtin {
        Gtin::parse("3665606002802").unwrap()
    }

    fn slots(effects: &[Effect]) -> Vec<SlotId> {
        effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Ask { slot, .. } | Effect::Pause { slot, .. } => Some(*slot),
                Effect::End(_) | Effect::Forget => None,
            })
            .collect()
    }

    fn found() -> VisitEnd {
        VisitEnd::Found(Map::from_iter([("prix".to_owned(), "14.90€".into())]))
    }

    fn mismatch() -> VisitEnd {
        VisitEnd::Mismatch { detail: "page is for 3665606002406".into() }
    }

    fn failed(again: Again) -> VisitEnd {
        VisitEnd::Failed { reason: Reason::new("timeout", "no answer within 20 s"), again }
    }

    #[track_caller]
    fn outcome(effects: Vec<Effect>) -> Outcome {
        match effects.as_slice() {
            [Effect::End(outcome)] => (**outcome).clone(),
            other => panic!("no end: {other:?}"),
        }
    }

    /// Ends every shop of the first round with `ends`, in order.
    #[track_caller]
    fn after(ends: &[VisitEnd], replacement: Option<Gtin>) -> (Product, Vec<Effect>, Plan) {
        let plan = plan(&["a", "b", "c"][..ends.len()]);
        let (mut product, effects) = Product::claimed(primary(), replacement, &plan);
        let mut last = Vec::new();
        for (slot, end) in slots(&effects).into_iter().zip(ends) {
            last = product.apply(Input::Ended(slot, end.clone()), &plan);
        }
        (product, last, plan)
    }

    #[test]
    fn each_status_of_rule_3_has_its_visits() {
        let never = || failed(Again::Never);
        for (ends, status) in [
            (vec![found(), never(), mismatch()], Status::Found),
            (vec![VisitEnd::NotFound, never(), mismatch()], Status::Failed),
            (vec![VisitEnd::NotFound, mismatch(), VisitEnd::NotFound], Status::EanMismatch),
            (vec![VisitEnd::NotFound, VisitEnd::NotFound], Status::NotFound),
        ] {
            let (_, effects, _) = after(&ends, None);
            assert_eq!(outcome(effects).status, status, "{ends:?}");
        }
    }

    #[test]
    fn data_is_filled_only_when_found_and_errors_tell_the_rest() {
        let (_, effects, _) = after(&[found(), failed(Again::Never), mismatch()], None);
        let outcome = outcome(effects);
        assert_eq!(outcome.data.keys().collect::<Vec<_>>(), ["a"]);
        let kinds: Vec<_> =
            outcome.errors.iter().map(|(site, reason)| (&**site, reason.kind.as_str())).collect();
        assert_eq!(kinds, [("b", "timeout"), ("c", "ean_mismatch")]);
    }

    #[test]
    fn the_replacement_is_tried_after_every_result_but_found() {
        for end in [VisitEnd::NotFound, mismatch(), failed(Again::Never)] {
            let (mut product, effects, plan) = after(&[end], Some(replacement()));
            assert_eq!(product.asked(), &replacement());
            let slot = slots(&effects)[0];
            let outcome = outcome(product.apply(Input::Ended(slot, found()), &plan));
            assert_eq!((outcome.status, outcome.used_replacement), (Status::Found, true));
            assert_eq!(outcome.used_ean.as_deref(), Some("3665606002802"));
            assert_eq!(outcome.data["a"]["original_ean"], "0748322148474");
        }
        let (_, effects, _) = after(&[found()], Some(replacement()));
        assert!(!outcome(effects).used_replacement);
    }

    #[test]
    fn a_product_goes_on_when_the_catalogue_was_taken_out_of_the_configuration() {
        let asked = Plan { catalogue: true, ..plan(&["a"]) };
        let (mut product, effects) = Product::claimed(primary(), None, &asked);
        let question = slots(&effects)[0];
        let effects = product.apply(Input::Ended(question, VisitEnd::NoCatalogue), &plan(&["a"]));
        let outcome = outcome(product.apply(Input::Ended(slots(&effects)[0], found()), &plan(&["a"])));
        assert_eq!(outcome.status, Status::Found);
    }

    #[test]
    fn the_precedence_covers_both_rounds() {
        let (mut product, effects, plan) = after(&[failed(Again::Never)], Some(replacement()));
        let slot = slots(&effects)[0];
        let outcome = outcome(product.apply(Input::Ended(slot, VisitEnd::NotFound), &plan));
        assert_eq!(outcome.status, Status::Failed);
    }

    #[test]
    fn a_failed_attempt_pauses_and_the_last_one_is_an_error() {
        let plan = plan(&["a"]);
        let (mut product, effects) = Product::claimed(primary(), None, &plan);
        let effects = product.apply(Input::Ended(slots(&effects)[0], failed(Again::Soon)), &plan);
        assert!(matches!(effects[0], Effect::Pause { after: SECOND, .. }), "{effects:?}");
        let effects = product.apply(Input::Due(slots(&effects)[0]), &plan);
        assert!(matches!(effects[0], Effect::Ask { attempt: 2, .. }), "{effects:?}");
        let effects = product.apply(Input::Ended(slots(&effects)[0], failed(Again::Soon)), &plan);
        assert_eq!(outcome(effects).status, Status::Failed);
    }

    #[test]
    fn what_is_put_back_is_asked_for_again_and_charged_nothing() {
        let plan = plan(&["a"]);
        let (mut product, mut effects) = Product::claimed(primary(), None, &plan);
        for _ in 0..50 {
            effects = product.apply(Input::Ended(slots(&effects)[0], VisitEnd::PutBack), &plan);
            assert!(matches!(effects[0], Effect::Ask { attempt: 1, .. }));
        }
    }

    #[test]
    fn a_lost_visit_is_charged_only_if_it_had_dialled() {
        let plan = plan(&["a"]);
        for (dialled, attempt) in [(false, 1), (true, 2)] {
            let (mut product, effects) = Product::claimed(primary(), None, &plan);
            let effects = product.apply(Input::Ended(slots(&effects)[0], VisitEnd::Lost { dialled }), &plan);
            let effects = product.apply(Input::Due(slots(&effects)[0]), &plan);
            assert!(matches!(effects[0], Effect::Ask { attempt: n, .. } if n == attempt), "{effects:?}");
        }
    }

    /// How often a visit is tried that always ends so, and the attempts that are charged.
    fn tries(end: impl Fn(usize) -> VisitEnd, attempts_max: u32) -> Vec<u32> {
        let plan = Plan { attempts_max, ..plan(&["a"]) };
        let (mut product, mut effects) = Product::claimed(primary(), None, &plan);
        let mut tries = Vec::new();
        while let [Effect::Ask { slot, attempt }] = effects[..] {
            tries.push(attempt);
            effects = product.apply(Input::Ended(slot, end(tries.len())), &plan);
            if let [Effect::Pause { slot, .. }] = effects[..] {
                effects = product.apply(Input::Due(slot), &plan);
            }
        }
        assert_eq!(outcome(effects).status, Status::Failed);
        tries
    }

    fn refused(way: Way) -> VisitEnd {
        VisitEnd::Refused { rule: "status 403".into(), way, again: Again::Soon }
    }

    #[test]
    fn a_second_refusal_by_an_exit_that_nobody_knows_is_not_charged_once_for_each_attempt() {
        let unknown = |number: usize| refused(Way::Circuit(number.to_string().into()));
        assert_eq!(tries(unknown, 3), [1, 2, 2, 3, 3]);
        assert_eq!(tries(unknown, 1), [1]);
        let known = |number: usize| refused(Way::Exit(number.to_string().into()));
        assert_eq!(tries(known, 3), [1, 2, 3], "they were different exits");
        assert_eq!(tries(|_| refused(Way::Direct), 3), [1, 2, 3], "and here it is always the same");
    }

    #[test]
    fn only_refusals_in_a_row_may_be_by_the_same_exit() {
        let between = |number: usize| match number {
            2 => failed(Again::Soon),
            _ => refused(Way::Circuit(number.to_string().into())),
        };
        assert_eq!(tries(between, 3), [1, 2, 3]);
        let known_first = |number: usize| match number {
            1 => refused(Way::Exit("x".into())),
            _ => refused(Way::Circuit(number.to_string().into())),
        };
        assert_eq!(tries(known_first, 3), [1, 2, 3, 3]);
    }

    #[test]
    fn a_refusal_ends_as_blocked_by_its_rule_and_the_replacement_begins_anew() {
        let plan = Plan { attempts_max: 1, ..plan(&["a"]) };
        let (mut product, effects) = Product::claimed(primary(), Some(replacement()), &plan);
        let unknown = || refused(Way::Circuit("w1.g1".into()));
        let effects = product.apply(Input::Ended(slots(&effects)[0], unknown()), &plan);
        assert_eq!(product.asked(), &replacement());
        let outcome = outcome(product.apply(Input::Ended(slots(&effects)[0], unknown()), &plan));
        let reason = outcome.reason.unwrap();
        assert_eq!((reason.kind.as_str(), reason.detail.as_str()), ("blocked", "a: status 403"));
    }

    #[test]
    fn late_answers_change_nothing() {
        let plan = plan(&["a"]);
        let (mut product, first) = Product::claimed(primary(), Some(replacement()), &plan);
        let first = slots(&first)[0];
        let second = product.apply(Input::Ended(first, VisitEnd::PutBack), &plan);
        assert_eq!(product.apply(Input::Ended(first, found()), &plan), []);
        let third = product.apply(Input::Ended(slots(&second)[0], VisitEnd::NotFound), &plan);
        assert_eq!(product.apply(Input::Ended(slots(&second)[0], found()), &plan), [], "an earlier round's");
        outcome(product.apply(Input::Ended(slots(&third)[0], found()), &plan));
        assert_eq!(product.apply(Input::Ended(slots(&third)[0], found()), &plan), [], "after the end");
    }

    #[test]
    fn a_removed_shop_is_an_error_and_none_left_is_failed() {
        let mut plan = plan(&["a", "b"]);
        plan.shops[0].1 = false;
        let (mut product, effects) = Product::claimed(primary(), None, &plan);
        let outcome_ = outcome(product.apply(Input::Ended(slots(&effects)[0], found()), &plan));
        assert_eq!((outcome_.status, outcome_.errors[0].1.kind.as_str()), (Status::Found, "removed"));
        plan.shops[1].1 = false;
        let (_, effects) = Product::claimed(primary(), None, &plan);
        assert_eq!(outcome(effects).status, Status::Failed);
    }

    #[test]
    fn the_catalogues_no_ends_it_and_its_error_is_never_a_no() {
        let plan = Plan { catalogue: true, ..plan(&["a"]) };
        let (mut product, effects) = Product::claimed(primary(), Some(replacement()), &plan);
        let ended =
            outcome(product.clone().apply(Input::Ended(slots(&effects)[0], VisitEnd::NotSold), &plan));
        assert_eq!(ended.status, Status::NotInCatalogue);
        let effects = product.apply(Input::Ended(slots(&effects)[0], failed(Again::Soon)), &plan);
        let effects = product.apply(Input::Due(slots(&effects)[0]), &plan);
        let ended = outcome(product.apply(Input::Ended(slots(&effects)[0], failed(Again::Soon)), &plan));
        assert_eq!((ended.status, ended.reason.unwrap().kind.as_str()), (Status::Failed, "catalogue"));
    }
}
