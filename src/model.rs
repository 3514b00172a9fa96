//! The vocabulary that two or more components share. Pure: no tokio, no ractor below here.

pub mod batch;
pub mod body;
pub mod delivery;
pub mod gtin;
pub mod intake;
pub mod page;
pub mod way;

pub use batch::{BatchId, BatchNo, Outcome, ProductKey, Reason, SiteName, Status};
pub use body::Language;
pub use gtin::{Gtin, GtinError};
