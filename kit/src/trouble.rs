//! Failures as sentences: what the kit could not do, for the person who reads the test or the demonstration.

use std::fmt;

/// Why something did not work, as one sentence.
#[derive(Clone)]
pub struct Trouble(String);

/// The result of what the kit does.
pub type Result<T, E = Trouble> = std::result::Result<T, E>;

impl Trouble {
    /// Says what went wrong.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// `unwrap` in a test prints the `Debug` form: it must stay readable.
impl fmt::Debug for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Trouble {}

/// Adds to an error what was being done.
pub trait Because<T> {
    /// Turns an error into "could not DEED: error".
    fn because(self, deed: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Because<T> for Result<T, E> {
    fn because(self, deed: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Trouble(format!("could not {deed}: {error}")))
    }
}
