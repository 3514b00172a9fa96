//! The watchdog is fed by progress: not by a timer that runs while everything else stands still.
//!
//! The root answers a question that it works off like any message; the writer answers a write, by a commit or by a
//! failure that it has classified, such as a full disk; and no visit in flight is past its deadline. If one of them does
//! not hold the manager hears nothing more, kills the process and starts it again, and the next one goes on from the
//! ledger. In a drain the root has no time for questions, and what counts is that the drain ends when it is to.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use ractor::ActorRef;
use ractor::rpc::CallResult;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::ledger::LedgerHandle;
use crate::scraper::deadlines::{Deadlines, Due};
use crate::supervisor;
use crate::systemd::{Note, Notifier};
use crate::telemetry::Event;
use crate::webhook;

/// What the daemon shows of itself at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Since when the root owes an answer.
    pub root: Option<Instant>,
    /// Since when the writer owes an answer.
    pub writer: Option<Instant>,
    /// The visit that is to be over first.
    pub visit: Option<Due>,
    /// When the drain is to be over, if there is one.
    pub drain: Option<Instant>,
}

/// How much of being late is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For root and writer.
    pub answer: Duration,
    /// For a drain past its time.
    pub drain: Duration,
}

impl Patience {
    /// Half of what the manager grants: a slow moment is no hang, and a hang is seen before the manager acts.
    pub fn within(interval: Duration) -> Self {
        Self { answer: interval / 2, drain: DRAIN_GRACE }
    }
}

/// Past the end of the drain: the sender may still end, and then the parts, drained, are stopped one by one.
pub const DRAIN_GRACE: Duration = webhook::DRAIN_GRACE.saturating_add(supervisor::STOPPED_WITHIN);

/// The part that does not move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stuck {
    Root { silent: Duration },
    Writer { silent: Duration },
    Visit { site: Box<str>, late: Duration },
    Drain { late: Duration },
}

impl Stuck {
    pub fn part(&self) -> &'static str {
        match self {
            Self::Root { .. } => "root",
            Self::Writer { .. } => "ledger",
            Self::Visit { .. } => "visit",
            Self::Drain { .. } => "drain",
        }
    }
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root { silent } => write!(f, "no answer for {} ms", silent.as_millis()),
            Self::Writer { silent } => write!(f, "a write without an answer for {} ms", silent.as_millis()),
            Self::Visit { site, late } => {
                write!(f, "a visit of {site} is {} ms past its deadline", late.as_millis())
            }
            Self::Drain { late } => write!(f, "it is {} ms past its time", late.as_millis()),
        }
    }
}

/// Whether the daemon may be called alive. Pure.
pub fn fed(now: Instant, signs: &Signs, patience: Patience) -> Result<(), Stuck> {
    let past = |at: Instant| now.saturating_duration_since(at);
    if let Some(until) = signs.drain {
        let late = past(until);
        return if late <= patience.drain { Ok(()) } else { Err(Stuck::Drain { late }) };
    }
    if let Some(silent) = signs.root.map(past).filter(|silent| patience.answer < *silent) {
        return Err(Stuck::Root { silent });
    }
    if let Some(silent) = signs.writer.map(past).filter(|silent| patience.answer < *silent) {
        return Err(Stuck::Writer { silent });
    }
    match &signs.visit {
        Some(due) if due.grace < past(due.at) => {
            Err(Stuck::Visit { site: due.site.clone(), late: past(due.at) })
        }
        Some(_) | None => Ok(()),
    }
}

/// How long the manager waits for a sign of life, if it waits for one of this process.
pub fn interval() -> Option<Duration> {
    let get = |name| std::env::var(name).ok();
    interval_for(std::process::id(), get("WATCHDOG_PID").as_deref(), get("WATCHDOG_USEC").as_deref())
}

fn interval_for(own: u32, pid: Option<&str>, usec: Option<&str>) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let usec = usec?.parse().ok().filter(|usec| *usec > 0)?;
    Some(Duration::from_micros(usec))
}

/// Who is watched.
#[derive(Clone, Debug)]
pub struct Parts {
    pub root: ActorRef<supervisor::Msg>,
    pub ledger: LedgerHandle,
    pub visits: Deadlines,
    /// When the drain is to be over, once there is one.
    pub drain: watch::Receiver<Option<Instant>>,
}

impl Parts {
    fn ask_root(&self, now: Instant) -> Question {
        let root = self.root.clone();
        Question::ask(now, move || {
            let root = root.clone();
            async move {
                let answer = root.call(|reply| supervisor::Msg::Ask { reply }, None).await;
                matches!(answer, Ok(CallResult::Success(_)))
            }
        })
    }

    fn ask_writer(&self, now: Instant) -> Question {
        let ledger = self.ledger.clone();
        Question::ask(now, move || {
            let ledger = ledger.clone();
            async move { ledger.answers().await }
        })
    }
}

/// Feeds the watchdog for ever, as long as everything moves. Begins with READY: before it the manager's watchdog sleeps,
/// and a long start is what [`crate::systemd::opening`] is for.
pub async fn keep_feeding(notifier: Notifier, interval: Duration, parts: Parts) {
    // A third, so that one late beat costs nothing.
    let mut beats = tokio::time::interval(interval / 3);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let patience = Patience::within(interval);
    let mut stuck_part = None;
    let now = Instant::now();
    let (mut root, mut writer) = (parts.ask_root(now), parts.ask_writer(now));
    loop {
        beats.tick().await;
        let now = Instant::now();
        let signs = Signs {
            root: root.owed_since(),
            writer: writer.owed_since(),
            visit: parts.visits.first(),
            drain: *parts.drain.borrow(),
        };
        match fed(now, &signs, patience) {
            Ok(()) => {
                notifier.tell(&[Note::Alive]);
                if let Some(part) = stuck_part.take() {
                    Event::WatchdogResumed { part }.emit();
                }
            }
            Err(stuck) => {
                let part = stuck.part();
                if stuck_part.replace(part) != Some(part) {
                    Event::WatchdogWithheld { part, detail: &stuck.to_string() }.emit();
                }
            }
        }
        if root.owed_since().is_none() {
            root = parts.ask_root(now);
        }
        if writer.owed_since().is_none() {
            writer = parts.ask_writer(now);
        }
    }
}

/// Somebody who is gone is asked again after this: whoever comes in his place may answer.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Asked once at a time: a part that hangs is not buried under questions.
struct Question {
    asked: Instant,
    answer: JoinHandle<()>,
}

impl Question {
    /// `ask` says whether there was an answer: none, if nobody is there.
    fn ask<F>(asked: Instant, mut ask: impl FnMut() -> F + Send + 'static) -> Self
    where
        F: Future<Output = bool> + Send,
    {
        let answer = tokio::spawn(async move {
            while !ask().await {
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
            }
        });
        Self { asked, answer }
    }

    fn owed_since(&self) -> Option<Instant> {
        (!self.answer.is_finished()).then_some(self.asked)
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.answer.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Patience = Patience { answer: SECOND, drain: SECOND };

    /// Signs of a second ago, and now a moment later than that.
    fn late() -> (Instant, Instant) {
        let then = Instant::now();
        (then, then + SECOND + Duration::from_millis(1))
    }

    #[test]
    fn each_part_that_is_late_withholds_the_food_and_one_that_is_not_does_not() {
        let (then, now) = late();
        let due = || Due { site: "shop".into(), at: then, grace: SECOND };
        let stuck = [
            (Signs { root: Some(then), ..Signs::default() }, "root"),
            (Signs { writer: Some(then), ..Signs::default() }, "ledger"),
            (Signs { visit: Some(due()), ..Signs::default() }, "visit"),
            (Signs { drain: Some(then), ..Signs::default() }, "drain"),
        ];
        for (signs, part) in stuck {
            assert_eq!(fed(now, &signs, PATIENCE).unwrap_err().part(), part);
            assert_eq!(fed(then + SECOND, &signs, PATIENCE), Ok(()), "{part}");
        }
        assert_eq!(fed(now, &Signs::default(), PATIENCE), Ok(()));
    }

    #[test]
    fn the_grace_of_a_drain_is_what_the_parts_may_take_and_no_more_than_the_docs_say() {
        assert_eq!(DRAIN_GRACE, 10 * SECOND);
    }

    #[test]
    fn in_a_drain_only_its_end_counts() {
        let (then, now) = late();
        let due = Due { site: "shop".into(), at: then, grace: SECOND };
        let signs =
            Signs { root: Some(then), writer: Some(then), visit: Some(due), drain: Some(now + SECOND) };
        assert_eq!(fed(now, &signs, PATIENCE), Ok(()));
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_ours_to_feed() {
        let second = Some(SECOND);
        assert_eq!(interval_for(7, Some("7"), Some("1000000")), second);
        assert_eq!(interval_for(7, None, Some("1000000")), second);
        assert_eq!(interval_for(7, Some("8"), Some("1000000")), None);
        assert_eq!(interval_for(7, Some("7"), Some("0")), None);
        assert_eq!(interval_for(7, Some("7"), None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_to_somebody_who_is_gone_stays_open_until_the_next_one_answers() {
        let now = Instant::now();
        let (come, came) = watch::channel(false);
        let question = Question::ask(now, move || std::future::ready(*came.borrow()));
        tokio::time::sleep(SECOND).await;
        assert_eq!(question.owed_since(), Some(now));
        come.send_replace(true);
        tokio::time::sleep(SECOND).await;
        assert_eq!(question.owed_since(), None);
    }
}
