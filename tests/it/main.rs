//! The daemon as its users meet it: the real binary, a child process on a free port, against stand-ins at the edge of
//! the network or the real tor. The names are the specification.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

mod accept;
mod blocks;
mod config;
mod deliver;
mod disk;
mod docs;
mod explain;
mod faults;
mod hedge;
mod manager;
mod polite;
mod reload;
mod restart;
mod rubbish;
mod scrape;
mod shutdown;
mod systemd;
mod tor;
mod tor_control;
