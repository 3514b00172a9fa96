//! Moves pages from the write-ahead log into the database, beside the writer.
//!
//! SQLite's own automatic checkpoint runs inside a COMMIT: one group in a hundred, and whoever waits for it, would wait
//! for two more fsyncs and a thousand pages. Here a thread with its own connection does that work while groups go on
//! being committed. What they write meanwhile is a small rest, which the writer moves itself, after its answers are
//! out: only when nothing is left does the log start again at its beginning instead of growing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use rusqlite::hooks::Wal;
use rusqlite::{Connection, OpenFlags};

use super::super::store::StoreError;

/// Pages in the log at which they are moved; SQLite's own default. At 4 KiB each a start after a crash reads 4 MB more.
const PAGES_MAX: u32 = 1000;

/// The thread, and what the writer knows of it.
#[derive(Debug)]
pub(super) struct Checkpointer {
    /// Pages in the log after the last commit.
    pages: Arc<AtomicU32>,
    /// None once it is to end.
    work: Option<Sender<()>>,
    done: Receiver<Result<(), StoreError>>,
    thread: Option<JoinHandle<()>>,
    running: bool,
}

/// What the writer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// Wake the thread.
    Start,
    /// Move the rest.
    Finish,
}

/// `finished`: the thread has just ended its work.
fn next(pages: u32, running: bool, finished: bool) -> Step {
    match (running, finished) {
        _ if pages < PAGES_MAX => Step::Nothing,
        (_, true) => Step::Finish,
        (true, false) => Step::Nothing,
        (false, false) => Step::Start,
    }
}

impl Checkpointer {
    /// Takes the automatic checkpoint of `writer`, whose file `path` is, over.
    pub fn start(path: &Path, writer: &mut Connection) -> Result<Self, StoreError> {
        let pages = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&pages);
        writer.wal_hook(Some(move |_: &mut Wal, pages: i32| {
            counter.store(pages.unsigned_abs(), Ordering::Relaxed);
            Ok(())
        }))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let own = Connection::open_with_flags(path, flags)?;
        own.execute_batch("PRAGMA synchronous = FULL; PRAGMA cache_size = -64;")?;
        let (work, wakes) = channel::<()>();
        let (report, done) = channel();
        let run = move || while wakes.recv().is_ok() && report.send(checkpoint(&own, "PASSIVE")).is_ok() {};
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(run);
        let thread = Some(thread.map_err(|error| StoreError::Other(error.to_string()))?);
        Ok(Self { pages, work: Some(work), done, thread, running: false })
    }

    /// After a commit: wakes the thread, or says that the rest is the writer's. Fails as the thread failed.
    pub fn after_commit(&mut self) -> Result<Step, StoreError> {
        let mut finished = false;
        if self.running {
            match self.done.try_recv() {
                Ok(result) => {
                    (self.running, finished) = (false, true);
                    result?;
                }
                Err(TryRecvError::Empty) => {}
                // A thread that is gone leaves all of it to the writer.
                Err(TryRecvError::Disconnected) => finished = true,
            }
        }
        let step = next(self.pages.load(Ordering::Relaxed), self.running, finished);
        if step == Step::Start {
            // Fails if the thread is gone, which the next look finds.
            let _ = self.work.as_ref().map(|work| work.send(()));
            self.running = true;
        }
        Ok(step)
    }

    /// Ends the thread, and waits for what it is at.
    pub fn stop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic in it was logged by the hook.
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Moves what can be moved. Want of room, and readers or others in the way, are for another time.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> Result<(), StoreError> {
    let moved = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
    match moved.map_err(StoreError::from) {
        Ok(()) | Err(StoreError::Full { .. } | StoreError::Other(_)) => Ok(()),
        Err(error @ (StoreError::Unwritten(_) | StoreError::Medium(_) | StoreError::Corrupt(_))) => {
            Err(error)
        }
    }
}

/// Bytes that an unprivileged process may still write beside `path`.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_works_on_a_full_log_and_the_writer_moves_the_rest() {
        assert_eq!(next(PAGES_MAX - 1, false, false), Step::Nothing);
        assert_eq!(next(PAGES_MAX, false, false), Step::Start);
        assert_eq!(next(5 * PAGES_MAX, true, false), Step::Nothing);
        assert_eq!(next(PAGES_MAX, false, true), Step::Finish);
        assert_eq!(next(10, false, true), Step::Nothing, "the log began again by itself");
    }
}
