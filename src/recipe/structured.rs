//! JSON-LD.
