//! Scrapers: one circuit, one visit at a time.

pub mod pace;
pub mod queue;
