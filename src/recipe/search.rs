//! Answer of a search → candidates.
