//! Tor's control port: what tor tells of its circuits, and what it is told to do with them.

pub mod client;
pub mod protocol;
