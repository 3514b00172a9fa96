//! The units in `systemd/` under the real systemd, as PID 1 of namespaces of their own, installed as a user does it.
//!
//! Where such a systemd cannot be had the run says so, and `manager.rs` alone plays the manager: GLANEUR_LAB=required makes
//! that a failure. What needs no running systemd is checked in any case.

mod package;
mod restarts;
mod sandbox;
mod service;
mod supervised;
mod talk;
mod unit;
