//! Scrapers: visits to shops, each through one circuit.

pub mod circuit;
mod decode;
pub mod fetch;
pub mod probe;
#[cfg(test)]
mod stand_in;
pub mod tls;
