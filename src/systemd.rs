//! What the daemon and its service manager tell each other: sockets handed over, and notes on the way to ready and back.
//!
//! Without a manager nothing of it happens: no variable is set, and every note goes nowhere.
//!
//! Of the variables only those of the sockets are taken out of the environment, before there are threads; nobody inherits
//! the others, for the daemon starts no process (`tests/tidy.rs`). Deliberately absent: `FDSTORE`, since what must outlive a restart is
//! in the ledger, and `MAINPID`, since the daemon never forks.

pub mod doing;
pub mod notify;
pub mod opening;
pub mod sockets;
pub mod teller;

pub use notify::{Note, Notifier};
