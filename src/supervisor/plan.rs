//! What a supervisor does when a child ends: child specifications as data, and the plan over them. Pure.
//!
//! ```text
//!            Start            Started              fails, or ends and is wanted
//!   Held ──────────▶ Starting ───────▶ Running ─────────────────────────────────▶ Down
//!    ▲                  ▲  └───────────────────── StartFailed ──────────────────▶  │
//!    │                  └───────────────────────── Due ────────────────────────────┤
//!    └── a child before it, whose strategy is rest-for-one, went down ─────────────┘
//! ```
//!
//! A start that fails counts like a run that failed. One child starts at a time, in order. Past its intensity a child
//! escalates, and the plan is given up: it asks for nothing more.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::Instant;

use super::policy::{Decision, History, Intensity, Roll};

/// Whether a child that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Always.
    Permanent,
    /// If it failed.
    Transient,
    /// Never.
    Temporary,
}

/// Who is restarted with a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// It alone.
    OneForOne,
    /// Those that start after it too: what they hold is worth nothing without this incarnation of it.
    RestForOne,
}

/// A child; its place in the list is its place in the start order.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub name: &'static str,
    pub restart: Restart,
    pub strategy: Strategy,
    pub intensity: Intensity,
    /// From the request to stop to the kill.
    pub stop_within: Duration,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Normal,
    Failed,
}

/// The one timer by which a child that is down is started again; an older one of the same child says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    pub child: usize,
    nth: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Start all, in order.
    Start,
    Started(usize),
    StartFailed(usize),
    Ended(usize, End),
    Due(Timer),
    /// Restart nobody from now on; those that drain may end. Who may never fail still escalates.
    Drain,
    /// Stop all, in reverse order.
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop it, and wait until it is gone.
    Stop(usize),
    /// Answered with [`Input::Started`] or [`Input::StartFailed`] before anything else.
    Start(usize),
    StartLater(Timer, Duration),
    /// This child failed past its limit.
    Escalate(usize),
}

/// The children of one supervisor.
#[derive(Debug)]
pub struct Plan {
    children: Vec<Child>,
    phase: Phase,
    timers: u64,
}

#[derive(Debug)]
struct Child {
    spec: Spec,
    state: State,
    history: History,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits for its turn to start.
    Held,
    Starting,
    Running,
    /// Waits for the timer of this number.
    Down(u64),
    /// Not started again.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Working,
    Draining,
    /// Stopped, or escalated.
    Done,
}

impl Plan {
    pub fn new(specs: impl IntoIterator<Item = Spec>) -> Self {
        let child = |spec| Child { spec, state: State::Held, history: History::default() };
        Self { children: specs.into_iter().map(child).collect(), phase: Phase::Working, timers: 0 }
    }

    pub fn spec(&self, child: usize) -> &Spec {
        &self.children[child].spec
    }

    /// Failures of a child that still count.
    pub fn failures(&self, child: usize) -> u64 {
        self.children[child].history.failures()
    }

    /// What follows from `input`, to be done in this order.
    pub fn apply(&mut self, input: Input, now: Instant, roll: Roll) -> Vec<Action> {
        match (self.phase, input) {
            (Phase::Working, Input::Start) => self.start_next(),
            (Phase::Working, Input::Started(child)) => {
                self.children[child].state = State::Running;
                self.start_next()
            }
            (Phase::Working, Input::Due(timer)) => {
                if self.children[timer.child].state != State::Down(timer.nth) {
                    return Vec::new();
                }
                self.children[timer.child].state = State::Starting;
                vec![Action::Start(timer.child)]
            }
            (Phase::Working | Phase::Draining, Input::StartFailed(child)) => {
                self.ended(child, End::Failed, State::Starting, now, roll)
            }
            (Phase::Working | Phase::Draining, Input::Ended(child, end)) => {
                self.ended(child, end, State::Running, now, roll)
            }
            (Phase::Working, Input::Drain) => {
                self.phase = Phase::Draining;
                Vec::new()
            }
            (Phase::Working | Phase::Draining, Input::Stop) => {
                self.phase = Phase::Done;
                self.stop_running(0..=self.children.len().saturating_sub(1))
            }
            (Phase::Draining, Input::Start | Input::Started(_) | Input::Due(_) | Input::Drain)
            | (Phase::Done, _) => Vec::new(),
        }
    }

    fn ended(&mut self, child: usize, end: End, from: State, now: Instant, roll: Roll) -> Vec<Action> {
        let Child { spec, state, .. } = &mut self.children[child];
        if *state != from {
            return Vec::new();
        }
        let wanted = match spec.restart {
            Restart::Permanent => true,
            Restart::Transient => end == End::Failed,
            Restart::Temporary => false,
        };
        if wanted {
            return self.failed(child, now, roll);
        }
        *state = State::Over;
        self.start_next()
    }

    fn failed(&mut self, child: usize, now: Instant, roll: Roll) -> Vec<Action> {
        let Child { spec, state, history } = &mut self.children[child];
        let (strategy, intensity) = (spec.strategy, spec.intensity);
        if self.phase == Phase::Draining && intensity != Intensity::NEVER {
            *state = State::Over; // What it had in hand waits in the ledger for the next process.
            return Vec::new();
        }
        let Decision::Restart { after } = history.on_failure(intensity, now, roll) else {
            self.phase = Phase::Done;
            return vec![Action::Escalate(child)];
        };
        self.timers += 1;
        let timer = Timer { child, nth: self.timers };
        *state = State::Down(timer.nth);
        let mut actions = match strategy {
            Strategy::OneForOne => Vec::new(),
            Strategy::RestForOne => self.stop_running(child + 1..=self.children.len().saturating_sub(1)),
        };
        actions.push(Action::StartLater(timer, after));
        actions.extend(self.start_next());
        actions
    }

    /// Stops those that run, last first; who is started again waits for its turn.
    fn stop_running(&mut self, range: RangeInclusive<usize>) -> Vec<Action> {
        let mut actions = Vec::new();
        for at in range.rev() {
            let Child { spec, state, .. } = &mut self.children[at];
            if *state == State::Running {
                actions.push(Action::Stop(at));
            }
            *state = match state {
                State::Over => State::Over,
                State::Running if spec.restart == Restart::Temporary => State::Over,
                State::Held | State::Starting | State::Running | State::Down(_) => State::Held,
            };
        }
        actions
    }

    /// The first child that is held and not kept back by one before it.
    fn start_next(&mut self) -> Vec<Action> {
        for (at, child) in self.children.iter_mut().enumerate() {
            match child.state {
                State::Held => {
                    child.state = State::Starting;
                    return vec![Action::Start(at)];
                }
                State::Starting => break,
                State::Down(_) if child.spec.strategy == Strategy::RestForOne => break,
                State::Down(_) | State::Running | State::Over => {}
            }
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::Backoff;
    use super::*;

    const ROLL: Roll = Roll(0);
    const SECOND: Duration = Duration::from_secs(1);

    fn intensity(at_most: usize) -> Intensity {
        Intensity { at_most, within: 60 * SECOND, backoff: Backoff { min: SECOND, max: 8 * SECOND } }
    }

    fn spec(restart: Restart, strategy: Strategy, at_most: usize) -> Spec {
        Spec { name: "child", restart, strategy, intensity: intensity(at_most), stop_within: SECOND }
    }

    /// Three children that are permanent; the one in the middle has this strategy.
    fn three(strategy: Strategy) -> Plan {
        let child = |strategy| spec(Restart::Permanent, strategy, 3);
        Plan::new([child(Strategy::OneForOne), child(strategy), child(Strategy::OneForOne)])
    }

    /// Does what the plan asks for, and every start succeeds unless it is of `fails`. The actions, without timers' numbers.
    fn play(plan: &mut Plan, input: Input, fails: &[usize], told: &mut Vec<String>) -> Vec<Timer> {
        let mut timers = Vec::new();
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for action in plan.apply(input, Instant::now(), ROLL) {
                told.push(match action {
                    Action::Stop(child) => format!("stop {child}"),
                    Action::Start(child) => format!("start {child}"),
                    Action::StartLater(timer, after) => format!("start {} after {after:?}", timer.child),
                    Action::Escalate(child) => format!("escalate {child}"),
                });
                match action {
                    Action::Start(child) if fails.contains(&child) => inputs.push(Input::StartFailed(child)),
                    Action::Start(child) => inputs.push(Input::Started(child)),
                    Action::StartLater(timer, _) => timers.push(timer),
                    Action::Stop(_) | Action::Escalate(_) => {}
                }
            }
        }
        timers
    }

    fn started(mut plan: Plan) -> Plan {
        play(&mut plan, Input::Start, &[], &mut Vec::new());
        plan
    }

    #[test]
    fn children_start_in_order_and_stop_in_reverse() {
        let (mut plan, mut told) = (three(Strategy::OneForOne), Vec::new());
        play(&mut plan, Input::Start, &[], &mut told);
        play(&mut plan, Input::Stop, &[], &mut told);
        assert_eq!(told, ["start 0", "start 1", "start 2", "stop 2", "stop 1", "stop 0"]);
    }

    #[test]
    fn one_for_one_restarts_the_child_that_failed_alone() {
        let (mut plan, mut told) = (started(three(Strategy::OneForOne)), Vec::new());
        let timers = play(&mut plan, Input::Ended(1, End::Failed), &[], &mut told);
        play(&mut plan, Input::Due(timers[0]), &[], &mut told);
        assert_eq!(told, ["start 1 after 0ns", "start 1"]);
    }

    #[test]
    fn rest_for_one_stops_those_after_it_in_reverse_and_starts_them_after_it() {
        let (mut plan, mut told) = (started(three(Strategy::RestForOne)), Vec::new());
        let timers = play(&mut plan, Input::Ended(1, End::Failed), &[], &mut told);
        assert_eq!(told, ["stop 2", "start 1 after 0ns"], "0 is not asked");
        told.clear();
        let again = play(&mut plan, Input::Due(timers[0]), &[1], &mut told);
        assert_eq!(told, ["start 1", "start 1 after 1s"], "2 waits until 1 has started");
        told.clear();
        play(&mut plan, Input::Due(again[0]), &[], &mut told);
        assert_eq!(told, ["start 1", "start 2"]);
    }

    #[test]
    fn a_child_whose_first_start_fails_keeps_back_those_after_it_only_if_they_depend_on_it() {
        for (strategy, expected) in [
            (Strategy::OneForOne, &["start 0", "start 1", "start 1 after 0ns", "start 2"][..]),
            (Strategy::RestForOne, &["start 0", "start 1", "start 1 after 0ns"]),
        ] {
            let (mut plan, mut told) = (three(strategy), Vec::new());
            play(&mut plan, Input::Start, &[1], &mut told);
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn who_is_restarted_after_which_end() {
        for (restart, end, again) in [
            (Restart::Permanent, End::Normal, true),
            (Restart::Permanent, End::Failed, true),
            (Restart::Transient, End::Normal, false),
            (Restart::Transient, End::Failed, true),
            (Restart::Temporary, End::Normal, false),
            (Restart::Temporary, End::Failed, false),
        ] {
            let mut plan = started(Plan::new([spec(restart, Strategy::OneForOne, 3)]));
            let timers = play(&mut plan, Input::Ended(0, end), &[], &mut Vec::new());
            assert_eq!(!timers.is_empty(), again, "{restart:?} after {end:?}");
        }
    }

    #[test]
    fn failed_starts_and_failed_runs_count_together() {
        for starts in 0..=4 {
            let mut plan = started(Plan::new([spec(Restart::Permanent, Strategy::OneForOne, 3)]));
            let mut told = Vec::new();
            let mut timers = play(&mut plan, Input::Ended(0, End::Failed), &[], &mut told);
            for n in 0..3 {
                let fails = if n < starts { &[0][..] } else { &[] };
                let next = play(&mut plan, Input::Due(timers.remove(0)), fails, &mut told);
                timers.extend(next);
                if timers.is_empty() {
                    timers = play(&mut plan, Input::Ended(0, End::Failed), &[], &mut told);
                }
            }
            let escalated = told.iter().filter(|action| *action == "escalate 0").count();
            assert_eq!(escalated, 1, "{starts} of them starts: {told:?}");
            assert_eq!(told.iter().filter(|action| action.starts_with("start 0 after")).count(), 3);
        }
    }

    #[test]
    fn an_old_timer_starts_nobody() {
        let mut plan = started(three(Strategy::OneForOne));
        let old = play(&mut plan, Input::Ended(1, End::Failed), &[], &mut Vec::new())[0];
        play(&mut plan, Input::Due(old), &[], &mut Vec::new());
        let new = play(&mut plan, Input::Ended(1, End::Failed), &[], &mut Vec::new())[0];
        assert_eq!(plan.apply(Input::Due(old), Instant::now(), ROLL), []);
        assert_eq!(plan.apply(Input::Due(new), Instant::now(), ROLL), [Action::Start(1)]);
    }

    #[test]
    fn in_a_drain_nobody_is_restarted_and_who_may_never_fail_still_escalates() {
        let never = Spec { intensity: Intensity::NEVER, ..spec(Restart::Permanent, Strategy::RestForOne, 0) };
        let other = spec(Restart::Permanent, Strategy::OneForOne, 3);
        let mut plan = started(Plan::new([never, other]));
        assert_eq!(plan.apply(Input::Drain, Instant::now(), ROLL), []);
        assert_eq!(plan.apply(Input::Ended(1, End::Failed), Instant::now(), ROLL), []);
        assert_eq!(plan.apply(Input::Ended(0, End::Failed), Instant::now(), ROLL), [Action::Escalate(0)]);
    }

    /// What the world outside may say next: any child that runs may end, any timer may come, also an old one.
    fn inputs(plan: &Plan, timers: &[Timer]) -> Vec<Input> {
        let starting = plan.children.iter().position(|child| child.state == State::Starting);
        if let Some(child) = starting {
            return vec![Input::Started(child), Input::StartFailed(child)];
        }
        let running = |at: &usize| plan.children[*at].state == State::Running;
        let ends = |at| [Input::Ended(at, End::Normal), Input::Ended(at, End::Failed)];
        let ended = (0..plan.children.len()).filter(running).flat_map(ends);
        ended.chain(timers.iter().copied().map(Input::Due)).collect()
    }

    /// A plan that grows with each step; cloned for each branch.
    #[derive(Clone)]
    struct Branch {
        past: Vec<Input>,
        running: [bool; 3],
        ever: [bool; 3],
        failures: [usize; 3],
        timers: Vec<Timer>,
    }

    fn replay(specs: [Spec; 3], past: &[Input], now: Instant) -> Plan {
        let mut plan = Plan::new(specs);
        for input in past {
            plan.apply(*input, now, ROLL);
        }
        plan
    }

    const AT_MOST: usize = 1;

    /// Follows one input, checks what must always hold, and goes on with everything that may come after it.
    fn explore(
        specs: [Spec; 3],
        branch: &Branch,
        input: Input,
        depth: usize,
        now: Instant,
        seen: &mut usize,
    ) {
        *seen += 1;
        let mut plan = replay(specs, &branch.past, now);
        let mut next = branch.clone();
        let mut may_fail = None;
        match input {
            Input::Started(child) => next.running[child] = true,
            Input::StartFailed(child) | Input::Ended(child, _) => {
                next.running[child] = false;
                let failed = input != Input::Ended(child, End::Normal);
                let wanted = match specs[child].restart {
                    Restart::Permanent => true,
                    Restart::Transient => failed,
                    Restart::Temporary => false,
                };
                next.failures[child] += usize::from(wanted);
                may_fail = wanted.then_some(child);
            }
            Input::Due(_) | Input::Start | Input::Drain | Input::Stop => {}
        }
        let actions = plan.apply(input, now, ROLL);
        let at = || format!("{specs:?} after {:?} and {input:?}: {actions:?}", branch.past);
        let mut stopped_last = specs.len();
        for action in &actions {
            match *action {
                Action::Stop(child) => {
                    assert!(
                        next.running[child] && child < stopped_last,
                        "only who runs, in reverse: {}",
                        at()
                    );
                    let cause = may_fail.expect("somebody failed");
                    assert!(cause < child && specs[cause].strategy == Strategy::RestForOne, "{}", at());
                    next.running[child] = false;
                    stopped_last = child;
                }
                Action::Start(child) => {
                    assert!(!next.running[child], "one at a time: {}", at());
                    let once = specs[child].restart == Restart::Temporary && next.ever[child];
                    assert!(!once, "a temporary child starts once: {}", at());
                    let keeps = |before: &usize| {
                        matches!(plan.children[*before].state, State::Down(_))
                            && specs[*before].strategy == Strategy::RestForOne
                    };
                    assert!(!(0..child).any(|before| keeps(&before)), "before what it depends on: {}", at());
                    next.ever[child] = true;
                }
                Action::StartLater(timer, _) => {
                    assert_eq!(Some(timer.child), may_fail, "{}", at());
                    assert!(next.failures[timer.child] <= AT_MOST, "past its limit: {}", at());
                    next.timers.push(timer);
                }
                Action::Escalate(child) => {
                    assert_eq!(Some(child), may_fail, "{}", at());
                    assert_eq!(next.failures[child], AT_MOST + 1, "exactly past its limit: {}", at());
                    assert_eq!(actions.len(), 1, "{}", at());
                    return;
                }
            }
        }
        if let Some(child) = may_fail {
            assert!(next.failures[child] <= AT_MOST, "it should have escalated: {}", at());
        }
        // Nobody is forgotten: with no start and no timer on its way, everyone runs or is over.
        let busy = |child: &Child| matches!(child.state, State::Starting | State::Down(_));
        if !plan.children.iter().any(busy) {
            assert!(plan.children.iter().all(|child| child.state != State::Held), "{}", at());
        }
        for (child, runs) in plan.children.iter().zip(next.running) {
            assert_eq!(child.state == State::Running, runs, "it knows who runs: {}", at());
        }
        next.past.push(input);
        if depth > 0 {
            for input in inputs(&plan, &next.timers) {
                explore(specs, &next, input, depth - 1, now, seen);
            }
        }
    }

    #[test]
    fn every_course_of_every_kind_of_three_children_keeps_the_rules() {
        /// Three starts and then four more events: a failure, its restart, and another one beside it.
        const DEPTH: usize = 7;
        let kinds: Vec<Spec> = [Restart::Permanent, Restart::Transient, Restart::Temporary]
            .into_iter()
            .flat_map(|restart| {
                [Strategy::OneForOne, Strategy::RestForOne].map(|strategy| spec(restart, strategy, AT_MOST))
            })
            .collect();
        let mut seen = 0;
        let now = Instant::now();
        for a in &kinds {
            for b in &kinds {
                for c in &kinds {
                    let none = Branch {
                        past: Vec::new(),
                        running: [false; 3],
                        ever: [false; 3],
                        failures: [0; 3],
                        timers: Vec::new(),
                    };
                    explore([*a, *b, *c], &none, Input::Start, DEPTH, now, &mut seen);
                }
            }
        }
        assert!(100_000 < seen, "{seen} courses");
    }
}
