//! File descriptors: how many there are, what they are kept for, and how their lack is told from the fault of others.
//!
//! A lack is this machine's and passes: whoever meets it waits a little and tries again, and charges nobody.

use std::error::Error;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::time::Instant;

use crate::scraper::circuit::KEPT_MAX;
use crate::telemetry::Event;

/// How long who lacks one waits: each visit and each webhook that waits tries once in this time, so nothing spins.
const WAIT: Duration = Duration::from_secs(1);
/// A lack that lasts, or comes and goes, is told this often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The ledger's files (three for each connection), the runtime, the log, signals, and look-ups of names.
const FOR_THE_DAEMON: u64 = 64;
/// One scraper's kept connections, and the one it is dialling.
const FOR_A_SCRAPER: u64 = KEPT_MAX as u64 + 1;
/// Endpoints that are sent to at once: those of the configuration, and some of batches.
const ENDPOINTS: u64 = 32;

/// What needs descriptors besides the connections that come in.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// `tor.circuits`.
    pub scrapers: usize,
    /// `webhooks.concurrency`.
    pub webhooks_at_once: usize,
}

/// Raises the limit as far as anybody may. The usual soft limit of 1024 dates from select(2).
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If it may not be, there are fewer for connections.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// How many connections may come in, if `wanted` are, so that the daemon can do its work beside them.
pub fn for_connections(wanted: usize, needs: Needs) -> usize {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return wanted };
    let allowed = allowed(wanted, limit, needs);
    if allowed < wanted {
        let (wanted, allowed) = (wanted as u64, allowed as u64);
        Event::ConnectionsCapped { wanted, allowed, limit }.emit();
    }
    allowed
}

fn allowed(wanted: usize, limit: u64, needs: Needs) -> usize {
    let Needs { scrapers, webhooks_at_once } = needs;
    let others =
        FOR_THE_DAEMON + FOR_A_SCRAPER * scrapers as u64 + ENDPOINTS.saturating_mul(webhooks_at_once as u64);
    // Those are worst cases: of a very small limit a quarter is for those who ask.
    let rest = limit.saturating_sub(others).max(limit / 4).max(1);
    wanted.min(usize::try_from(rest).unwrap_or(usize::MAX))
}

/// Whether `error`, or what is behind it, is a lack of descriptors: of this process, or of the whole machine.
pub fn is_lack(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if let Some(code) = io.and_then(io::Error::raw_os_error) {
            return is_code_of_lack(code);
        }
        // An io::Error answers `source` with the source of what it holds, and so hides what it holds.
        cause = match io.and_then(io::Error::get_ref) {
            Some(held) => Some(held as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    // A look-up of a name that cannot open its files says that there is no such name.
    rustix::fs::open("/dev/null", rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .is_err_and(|errno| is_code_of_lack(errno.raw_os_error()))
}

fn is_code_of_lack(code: i32) -> bool {
    code == rustix::io::Errno::MFILE.raw_os_error() || code == rustix::io::Errno::NFILE.raw_os_error()
}

/// Tells the lack, and waits a while for its end.
pub async fn wait() {
    static TOLD: Mutex<Option<Instant>> = Mutex::new(None);
    if is_time(&mut TOLD.lock().unwrap_or_else(PoisonError::into_inner), Instant::now()) {
        Event::DescriptorsUsedUp {}.emit();
    }
    tokio::time::sleep(WAIT).await;
}

/// Whether what lasts, or comes and goes, is to be told again; `told`: when it was told last.
pub fn is_time(told: &mut Option<Instant>, now: Instant) -> bool {
    let tell = told.is_none_or(|told| TELL_EVERY <= now.saturating_duration_since(told));
    if tell {
        *told = Some(now);
    }
    tell
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: Needs = Needs { scrapers: 8, webhooks_at_once: 4 };

    #[test]
    fn connections_leave_enough_for_the_work() {
        for (wanted, limit, expected) in [
            (1024, 524_288, 1024),
            (1024, 1352, 1024),
            (1024, 1351, 1023),
            (65_536, 20_000, 19_672),
            (1024, 128, 32),
            (10, 128, 10),
            (1024, 0, 1),
        ] {
            assert_eq!(allowed(wanted, limit, NEEDS), expected, "{wanted} of {limit}");
        }
    }

    #[test]
    fn a_lack_is_found_behind_other_errors_and_nothing_else_is_one() {
        for (code, lack) in [(24, true), (23, true), (111, false), (2, false)] {
            let error = io::Error::other(io::Error::other(io::Error::from_raw_os_error(code)));
            assert_eq!(is_lack(&error), lack, "{error}");
        }
        assert!(!is_lack(&io::Error::other("no such name")), "there are descriptors left");
    }

    #[test]
    fn what_lasts_is_told_once_a_minute() {
        let (mut told, now) = (None, Instant::now());
        let at = [0, 1, 59, 60, 61].map(|s| is_time(&mut told, now + Duration::from_secs(s)));
        assert_eq!(at, [true, false, false, true, false]);
    }
}
