//! What a page says, before anyone asks for a product: bytes → text → tree → what is marked up for machines.
//!
//! Pure: neither tokio nor ractor below here, and no network. The page comes from a stranger, so everything here is
//! under [`Limits`], and meant for a blocking thread.

use std::time::Duration;

pub mod document;
pub(crate) mod json_ld;
pub mod json_path;
pub(crate) mod microdata;
pub mod pattern;

pub use json_path::JsonPath;
pub use pattern::Pattern;

/// A description of 64 KiB is a page that went wrong.
pub const VALUE_BYTES_MAX: usize = 64 << 10;

/// What one extraction may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For one page, parsing included. Nested tags are quadratic in any HTML parser that follows the standard.
    pub time_max: Duration,
    pub depth_max: usize,
    pub nodes_max: usize,
}

/// Why nothing can be read off a page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("parsing took longer than {0:?}")]
    TooSlow(Duration),
    #[error("elements nested deeper than {0}")]
    TooDeep(usize),
    #[error("more than {0} nodes")]
    TooLarge(usize),
    /// The connection was closed and what came does not look whole.
    #[error("answer was cut off: {0}")]
    Truncated(&'static str),
}

impl Unreadable {
    /// The word in the webhook's `errors.{shop}.kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TooSlow(_) => "too_slow",
            Self::TooDeep(_) => "too_deep",
            Self::TooLarge(_) => "too_large",
            Self::Truncated(_) => "truncated",
        }
    }
}

/// How texts are compared: lower case, single spaces.
pub(crate) fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}
