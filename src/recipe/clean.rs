//! Cleanings.
