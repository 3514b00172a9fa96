//! placeholder, filled below
pub mod address;
