//! The durable ledger: the daemon's only memory across restarts.
//!
//! Promise: every method of [`LedgerHandle`] that changes something returns `Ok` after the commit is on disk, never
//! before. Whatever the daemon has told anyone (a 202, a webhook) follows from rows committed earlier.
//!
//! * L1 A product ends once: one outcome, one product delivery.
//! * L2 A batch ends in the transaction that ends its last product.
//! * L3 What is claimed and not ended at start-up is put back.
//! * L4 A delivery's id and body never change.
//! * L5 Counters change in the transactions of the rows they count.
//!
//! One writer, group commit, no locks: commands queue in the actor, one transaction takes all that wait, each in a
//! savepoint of its own. The cost: a command waits for its group, about one fsync. Deliberately absent: a cache.
//! Readers have their own read-only connections.

pub mod actor;
pub mod audit;
pub mod reader;
pub mod sqlite;
pub mod store;

pub use actor::{LedgerError, LedgerHandle};
pub use reader::LedgerReader;
