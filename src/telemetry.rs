//! The log: what happened, in words and in fields.

pub mod event;

pub use event::Event;
