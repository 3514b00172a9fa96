//! Patterns that cannot be made to backtrack.

use regex::Regex;

/// A pattern of the linear-time engine; compiled once, compared by its text.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

/// What a compiled pattern may take: one `\w{1000}{1000}` would otherwise eat the machine at start.
const PATTERN_BYTES_MAX: usize = 1 << 20;

impl Pattern {
    pub fn parse(text: &str) -> Result<Self, String> {
        let built = regex::RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build();
        built.map(Self).map_err(|error| {
            // The last line says what; those before draw an arrow that no single line can hold.
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("pattern \"{text}\" does not compile: {reason}")
        })
    }

    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// Group 1 if there is one, else the whole match.
    pub fn find<'t>(&self, text: &'t str) -> Option<&'t str> {
        let captures = self.0.captures(text)?;
        captures.get(1).or_else(|| captures.get(0)).map(|found| found.as_str())
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}
