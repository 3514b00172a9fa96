//! The vocabulary that two or more components share. Pure: no tokio, no ractor below here.

pub mod gtin;
pub mod page;

pub use gtin::{Gtin, GtinError};
