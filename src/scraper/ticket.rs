//! The way back from a visit to the coordinator that asked for it: one answer, whoever has it.
//!
//! A ticket has a spare. While it only lies there it is nobody's; once it joins, two scrapers hold a ticket of the same
//! visit and [`super::race`] says whose end is the visit's. Each of the two is answered for: a ticket that is dropped says
//! so by itself, by a panic too, so no visit is lost in silence and none ends twice.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::circuit::By;
use super::race::{Race, Ruling, Side};
use super::visit::VisitFacts;
use crate::batch::machine::VisitEnd;

/// What a coordinator hears of a visit.
#[derive(Debug)]
pub struct Answer {
    pub end: VisitEnd,
    /// When it first dialled, if it did.
    pub dialled_at: Option<Instant>,
}

type Tell = Box<dyn FnOnce(Answer) + Send>;

/// The way back to the coordinator. Answers exactly once, also when it is dropped.
pub struct Ticket {
    desk: Arc<Desk>,
    side: Side,
    /// It has to say how its side ended: not while it is a spare, and not twice.
    owes: bool,
    dialled: bool,
}

/// Where the tickets of one visit are handed in.
struct Desk {
    coordinator: Weak<()>,
    state: Mutex<State>,
    /// Told to the one that is overtaken. It keeps a message for somebody who listens later.
    overtaken: Notify,
}

struct State {
    race: Race,
    tell: Option<Tell>,
    dialled_at: Option<Instant>,
    /// What the log says of the visit, from its start on.
    started: Option<Started>,
    slow: Option<Slow>,
    twin_circuit: Option<String>,
    /// What each side went through, where a control port tells it.
    first_by: Option<By>,
    twin_by: Option<By>,
}

struct Started {
    at: Instant,
    facts: VisitFacts,
    circuit: String,
}

/// Why a visit was started once more.
#[derive(Clone, Copy, Debug)]
pub struct Slow {
    /// What the first had spent by then.
    pub spent: Duration,
    pub median: Duration,
}

/// A visit's end on its way to the coordinator; there when this is dropped.
#[must_use]
pub struct Reply {
    answer: Option<(Tell, Answer)>,
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some((tell, answer)) = self.answer.take() {
            tell(answer);
        }
    }
}

impl Ticket {
    /// `coordinator` is alive as long as somebody wants the answer.
    pub fn new(coordinator: &Arc<()>, tell: impl FnOnce(Answer) + Send + 'static) -> Self {
        let state = State {
            race: Race::default(),
            tell: Some(Box::new(tell)),
            dialled_at: None,
            started: None,
            slow: None,
            twin_circuit: None,
            first_by: None,
            twin_by: None,
        };
        let coordinator = Arc::downgrade(coordinator);
        let desk = Desk { coordinator, state: Mutex::new(state), overtaken: Notify::new() };
        Self { desk: Arc::new(desk), side: Side::First, owes: true, dialled: false }
    }

    /// A ticket for a twin; nothing is to be said of it before it joins.
    pub fn spare(&self) -> Self {
        Self { desk: Arc::clone(&self.desk), side: Side::Twin, owes: false, dialled: false }
    }

    /// Makes a spare a ticket; `false`: the visit is over, or nobody wants to know of it.
    pub fn join(&mut self, slow: Slow) -> bool {
        let mut state = self.desk.state();
        self.owes = self.is_wanted() && state.started.is_some() && state.race.join();
        if self.owes {
            state.slow = Some(slow);
        }
        self.owes
    }

    /// Whether the coordinator that asked is still there.
    pub fn is_wanted(&self) -> bool {
        self.desk.coordinator.strong_count() > 0
    }

    /// Nothing is in the way of the first dial. The moment from which the visit's time counts, which a twin shares with the
    /// first; `None`: it was overtaken.
    pub(super) fn begin(&self, facts: VisitFacts, circuit: String) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.desk.state();
        if state.race.is_decided() {
            return None;
        }
        match (self.side, &state.started, state.slow) {
            (Side::Twin, Some(first), Some(slow)) => {
                facts.tell_hedged(&circuit, &first.circuit, &slow);
                state.twin_circuit = Some(circuit);
                Some(now.checked_sub(slow.spent).unwrap_or(now))
            }
            (Side::First | Side::Twin, _, _) => {
                facts.tell_started(&circuit);
                state.started = Some(Started { at: now, facts, circuit });
                Some(now)
            }
        }
    }

    /// The first dial: from now on a lost visit is charged.
    pub fn dialled(&mut self, now: Instant) {
        self.dialled = true;
        self.desk.state().dialled_at.get_or_insert(now);
    }

    /// What this side went through, to be told if the visit's end is its own.
    pub(super) fn went_by(&self, by: Option<&By>) {
        let mut state = self.desk.state();
        match self.side {
            Side::First => state.first_by = by.cloned(),
            Side::Twin => state.twin_by = by.cloned(),
        }
    }

    /// Returns when the other one has the answer, if that comes to be while this one is at work.
    pub fn overtaken(&self) -> impl Future<Output = ()> + use<> {
        let desk = Arc::clone(&self.desk);
        async move { desk.overtaken.notified().await }
    }

    /// This side is over. What comes back is the visit's end, if that decides it.
    pub fn over(mut self, end: VisitEnd) -> Option<Reply> {
        self.hand_in(end)
    }

    pub fn answer(self, end: VisitEnd) {
        drop(self.over(end));
    }

    /// Gives the visit back to its asker without an answer, which is only right where the asker itself drops it.
    pub fn defuse(mut self) {
        self.owes = false;
        self.desk.state().tell = None;
    }

    fn hand_in(&mut self, end: VisitEnd) -> Option<Reply> {
        if !std::mem::take(&mut self.owes) {
            return None;
        }
        let mut state = self.desk.state();
        let (end, by) = match state.race.over(self.side, end) {
            Ruling::Decided { end, by } => (end, by),
            Ruling::Overtakes { end, by } => {
                self.desk.overtaken.notify_one();
                (end, by)
            }
            Ruling::Open | Ruling::Late => return None,
        };
        state.tell_ended(&end, by);
        let answer = Answer { end, dialled_at: state.dialled_at };
        Some(Reply { answer: state.tell.take().map(|tell| (tell, answer)) })
    }
}

impl State {
    /// A lost visit did not end: it is visited again, or has a panic to tell of it.
    fn tell_ended(&mut self, end: &VisitEnd, by: Side) {
        let Some(started) = self.started.take() else { return };
        if matches!(end, VisitEnd::Lost { .. }) {
            return;
        }
        let hedged = self.twin_circuit.take();
        let won_by = hedged.as_ref().map(|_| by.name());
        let circuit = hedged.filter(|_| by == Side::Twin).unwrap_or(started.circuit);
        let went_by = match by {
            Side::First => &self.first_by,
            Side::Twin => &self.twin_by,
        };
        started.facts.tell_ended(&circuit, went_by.as_ref(), end, started.at.elapsed(), won_by);
    }
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Dropped otherwise than by a panic, it went down with the pool, which is not the visit's doing.
        let dialled = self.dialled && std::thread::panicking();
        drop(self.hand_in(VisitEnd::Lost { dialled }));
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("side", &self.side).finish_non_exhaustive()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::{Twin, Visit};
    use super::*;
    use crate::batch::machine::Again;
    use crate::ledger::store::Claim;
    use crate::model::{BatchId, BatchNo, Gtin, ProductKey, Reason};

    const SLOW: Slow = Slow { spent: Duration::from_secs(3), median: Duration::from_secs(1) };

    /// A visit, and what its coordinator heard.
    struct Asked {
        coordinator: Arc<()>,
        heard: Arc<Mutex<Vec<VisitEnd>>>,
    }

    impl Asked {
        fn visit() -> (Self, Visit) {
            let (coordinator, heard) = (Arc::new(()), Arc::<Mutex<Vec<VisitEnd>>>::default());
            let hears = Arc::clone(&heard);
            let ticket = Ticket::new(&coordinator, move |answer| hears.lock().unwrap().push(answer.end));
            let visit = Visit {
                key: ProductKey { batch: BatchNo(1), index: 1 },
                batch_id: BatchId::mint(),
                ean: "0748322148474".into(),
                gtin: Gtin::parse("0748322148474").unwrap(),
                site: "a".into(),
                attempt: 1,
                claim: Claim { epoch: 1, incarnation: 1 },
                suspect: false,
                announced: Arc::default(),
                ticket,
            };
            (Self { coordinator, heard }, visit)
        }

        /// A visit that has dialled.
        fn begun() -> (Self, Visit, Twin) {
            let (asked, mut visit) = Self::visit();
            let twin = visit.twin();
            dial(&mut visit);
            (asked, visit, twin)
        }

        /// A visit and its twin, which have both dialled.
        fn both() -> (Self, Visit, Visit) {
            let (asked, visit, twin) = Self::begun();
            let mut twin = twin.start(SLOW).unwrap();
            dial(&mut twin);
            (asked, visit, twin)
        }

        fn heard(&self) -> Vec<VisitEnd> {
            self.heard.lock().unwrap().clone()
        }
    }

    fn dial(visit: &mut Visit) {
        visit.ticket.begin(VisitFacts::of(visit), "w0.g1".into()).unwrap();
        visit.ticket.dialled(Instant::now());
    }

    fn panic_with(visit: Visit) {
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let _in_hand = visit;
            std::panic::resume_unwind(Box::new("a scraper"));
        }));
        assert!(panicked.is_err());
    }

    fn failed(kind: &str) -> VisitEnd {
        VisitEnd::Failed { reason: Reason::new(kind, ""), again: Again::Soon }
    }

    #[test]
    fn a_visit_that_nobody_hedged_is_answered_as_ever() {
        let (asked, visit, twin) = Asked::begun();
        drop(twin);
        assert_eq!(asked.heard(), [], "a spare is nobody's");
        visit.ticket.answer(VisitEnd::NotFound);
        assert_eq!(asked.heard(), [VisitEnd::NotFound]);
        let (asked, visit, _twin) = Asked::begun();
        drop(visit);
        assert_eq!(asked.heard(), [VisitEnd::Lost { dialled: false }], "its pool was restarted");
        let (asked, visit, _twin) = Asked::begun();
        panic_with(visit);
        assert_eq!(asked.heard(), [VisitEnd::Lost { dialled: true }], "its scraper panicked");
    }

    #[tokio::test]
    async fn the_first_answer_is_heard_once_and_the_other_is_told_at_once_that_it_is_overtaken() {
        for twin_wins in [false, true] {
            let (asked, first, twin) = Asked::both();
            let (winner, loser) = if twin_wins { (twin, first) } else { (first, twin) };
            let overtaken = loser.ticket.overtaken();
            winner.ticket.answer(VisitEnd::NotFound);
            assert_eq!(asked.heard(), [VisitEnd::NotFound]);
            // Only to fail instead of hanging.
            tokio::time::timeout(Duration::from_secs(30), overtaken).await.unwrap();
            loser.ticket.answer(VisitEnd::Found(Default::default()));
            assert_eq!(asked.heard(), [VisitEnd::NotFound]);
        }
    }

    #[test]
    fn a_visit_that_is_over_is_neither_hedged_nor_begun_by_its_twin() {
        let (asked, visit, twin) = Asked::begun();
        visit.ticket.answer(VisitEnd::NotFound);
        assert!(twin.start(SLOW).is_none());
        assert_eq!(asked.heard(), [VisitEnd::NotFound]);
        let (asked, visit, twin) = Asked::begun();
        let twin = twin.start(SLOW).unwrap();
        visit.ticket.answer(VisitEnd::NotFound);
        assert_eq!(twin.ticket.begin(VisitFacts::of(&twin), "w1.g1".into()), None, "it dials nobody");
        drop(twin);
        assert_eq!(asked.heard(), [VisitEnd::NotFound]);
    }

    #[test]
    fn a_visit_is_not_hedged_before_it_has_begun_nor_for_a_coordinator_that_is_gone() {
        let (_asked, visit) = Asked::visit();
        assert!(visit.twin().start(SLOW).is_none());
        let (asked, _visit, twin) = Asked::begun();
        drop(asked.coordinator);
        assert!(twin.start(SLOW).is_none());
    }

    #[test]
    fn a_panic_of_one_leaves_the_end_to_the_other() {
        let (asked, first, twin) = Asked::both();
        panic_with(first);
        assert_eq!(asked.heard(), [], "the twin is at work");
        twin.ticket.answer(VisitEnd::NotFound);
        assert_eq!(asked.heard(), [VisitEnd::NotFound]);
        let (asked, first, twin) = Asked::both();
        panic_with(twin);
        first.ticket.answer(failed("first"));
        assert_eq!(asked.heard(), [failed("first")], "its panic is charged to nobody");
        let (asked, first, twin) = Asked::both();
        panic_with(first);
        panic_with(twin);
        assert_eq!(asked.heard(), [VisitEnd::Lost { dialled: true }], "one of them is");
    }

    #[test]
    fn both_failed_is_one_failure_and_both_lost_with_their_pool_is_charged_to_nobody() {
        let (asked, first, twin) = Asked::both();
        twin.ticket.answer(failed("twin"));
        assert_eq!(asked.heard(), []);
        first.ticket.answer(failed("first"));
        assert_eq!(asked.heard(), [failed("first")]);
        let (asked, first, twin) = Asked::both();
        drop((first, twin));
        assert_eq!(asked.heard(), [VisitEnd::Lost { dialled: false }]);
    }

    #[test]
    fn an_end_is_heard_even_if_whoever_brings_it_panics_on_the_way() {
        let (asked, visit, _twin) = Asked::begun();
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let _reply = visit.ticket.over(VisitEnd::NotFound);
            std::panic::resume_unwind(Box::new("a scraper"));
        }));
        assert!(panicked.is_err());
        assert_eq!(asked.heard(), [VisitEnd::NotFound]);
    }

    #[test]
    fn the_time_of_a_twin_is_that_of_its_visit() {
        let (_asked, first, twin) = Asked::begun();
        let twin = twin.start(SLOW).unwrap();
        let begun = twin.ticket.begin(VisitFacts::of(&twin), "w1.g1".into()).unwrap();
        let ago = begun.elapsed();
        assert!(SLOW.spent <= ago && ago < SLOW.spent + Duration::from_secs(60), "{ago:?}");
        drop(first);
    }
}
