//! How a visit reached its shop, as far as is known: what a shop that refuses it may have refused it for.

/// Two visits by the same way look alike to a shop; two by different circuits may.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// From this machine.
    Direct,
    /// Through the exit with this fingerprint.
    Exit(Box<str>),
    /// Through a generation of a circuit whose exit nobody told; two may have the same.
    Circuit(Box<str>),
}
