//! A long start: the manager's time-out is put off as long as the work moves, and not any longer.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::{Note, Notifier};

/// How often it is looked whether the work moved.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// By how much each step puts the time-out off: a commit of a large transaction may be silent for a few seconds.
const EXTEND_BY: Duration = Duration::from_secs(15);

/// Runs `work` on a thread of its own; `steps` counts up while it moves.
pub async fn visibly<T: Send + 'static>(
    notifier: &Notifier,
    what: &str,
    steps: impl Fn() -> u64,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    notifier.tell(&[Note::Status(what)]);
    let mut work = tokio::task::spawn_blocking(work);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.tick().await;
    let mut seen = steps();
    loop {
        tokio::select! {
            done = &mut work => {
                return done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            }
            _ = looks.tick() => {
                let now = steps();
                if std::mem::replace(&mut seen, now) != now {
                    notifier.tell(&[Note::Extend(EXTEND_BY)]);
                }
            }
        }
    }
}
