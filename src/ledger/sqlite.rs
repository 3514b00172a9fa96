//! The embedded store: one SQLite file in WAL mode, one writing connection, a few that read.
//!
//! What is on disk:
//!
//! ```text
//! glaneur.db            the tables of schema.sql
//! glaneur.db-wal, -shm  SQLite's own, there while the daemon runs
//! glaneur.db.lock       held by the one process that may write (design 4, rule 15)
//! glaneur.db.escalated  the last process ended itself: its death is nobody's fault (rule 2)
//! ```
//!
//! `synchronous=FULL`: a commit has been through fsync when it returns. Every method of the store leaves the counters
//! of the batch (`progress`) and of the ledger (`tally`) as true as the rows it wrote, because both go through
//! `SqliteStore::count`, and at the accept `count_first`.

mod accept;
mod checkpoint;
mod counters;
mod error;
mod number;
mod open;
mod outbox;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use open::{
    LastRun, OpenError, OpenOptions, OpenReport, Opened, Progress, mark_escalated, open, open_read_only,
    open_visibly,
};
pub use reader::SqliteReader;
pub use writer::SqliteStore;
