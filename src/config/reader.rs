//! Reads typed values out of a [`Node`] tree and collects every problem instead of stopping at the first.
//!
//! A [`Section`] is one table. Each read names the key, so that after the last one [`Section::finish`] knows which
//! keys exist and can refuse the others with the closest of them. A read that fails reports and returns a stand-in:
//! the configuration is thrown away once there is a problem, so nobody ever sees it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::raw::{At, Entry, Node, Table, Value};
use super::units::{self, Rate};

/// Which of the two texts is the user's.
pub(crate) const USER: usize = 1;

/// What all sections write to.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub problems: RefCell<Vec<(At, String)>>,
    /// Every key that was asked for, as `section.key`; the names of shops read `*`.
    pub known: RefCell<BTreeSet<String>>,
    /// Set when the text has syntax errors: a key may be missing only because its line could not be read.
    pub is_partial: bool,
}

impl Report {
    pub fn problem(&self, at: At, message: impl Into<String>) {
        self.problems.borrow_mut().push((at, message.into()));
    }
}

/// Why a value was refused.
pub(crate) enum Refusal {
    /// Its type is wrong; the message says what was expected.
    Type,
    /// Its type is right.
    Value(String),
}

impl<E: Display> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Value(error.to_string())
    }
}

type Read<T> = Result<T, Refusal>;

/// One table being read.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    pub report: &'a Report,
    pub at: At,
    path: String,
    entries: &'a [Entry],
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    pub fn new(report: &'a Report, path: impl Into<String>, at: At, table: &'a Table) -> Self {
        Self { report, at, path: path.into(), entries: &table.0, asked: RefCell::default() }
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self) {
        let asked = self.asked.borrow();
        for entry in self.entries.iter().filter(|entry| !asked.contains(&entry.key.as_str())) {
            let (key, path) = (&entry.key, &self.path);
            let place = if path.is_empty() { String::new() } else { format!(" in [{path}]") };
            let hint = match closest(key, asked.iter().copied()) {
                Some(close) => format!("; did you mean `{close}`?"),
                None => format!("; known: {}", asked.join(", ")),
            };
            self.report.problem(entry.key_at, format!("unknown key `{key}`{place}{hint}"));
        }
    }

    /// Everything in it, for tables whose keys are the writer's own.
    pub fn entries(&self) -> &'a [Entry] {
        self.entries
    }

    /// `section.key`, as the messages call it.
    pub fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub fn entry(&self, key: &'static str) -> Option<&'a Entry> {
        self.asked.borrow_mut().push(key);
        let mut name = self.name(key);
        if let Some(rest) = name.strip_prefix("sites.") {
            name = rest
                .split_once('.')
                .map_or_else(|| "sites.*".to_owned(), |(_, rest)| format!("sites.*.{rest}"));
        }
        self.report.known.borrow_mut().insert(name);
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Where `key` was written, or the table if it was not.
    pub fn at(&self, key: &str) -> At {
        self.entries.iter().find(|entry| entry.key == key).map_or(self.at, |entry| entry.node.at)
    }

    pub fn problem(&self, key: &str, message: impl Into<String>) {
        self.report.problem(self.at(key), message);
    }

    /// Reports a key that has to be there, in the user's text even where only the defaults have the table.
    pub fn missing(&self, key: &str, expected: &str) {
        if !self.report.is_partial {
            let at = if self.at.text == USER { self.at } else { At { text: USER, offset: 0 } };
            self.report.problem(at, format!("missing key `{}`: expected {expected}", self.name(key)));
        }
    }

    /// The core of every read.
    pub fn opt<T>(
        &self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&'a Node) -> Read<T>,
    ) -> Option<T> {
        let entry = self.entry(key)?;
        match read(&entry.node) {
            Ok(value) => Some(value),
            Err(refusal) => {
                self.refuse(&self.name(key), &entry.node, expected, refusal);
                None
            }
        }
    }

    pub fn refuse(&self, name: &str, node: &Node, expected: &str, refusal: Refusal) {
        self.report.problem(
            node.at,
            match refusal {
                Refusal::Type => format!("`{name}`: expected {expected}, found {}", node.value.type_name()),
                Refusal::Value(message) => format!("`{name}`: {message}"),
            },
        );
    }

    fn must<T>(
        &self,
        key: &'static str,
        expected: &str,
        stand_in: T,
        read: impl FnOnce(&'a Node) -> Read<T>,
    ) -> T {
        if !self.entries.iter().any(|entry| entry.key == key) {
            self.missing(key, expected);
        }
        self.opt(key, expected, read).unwrap_or(stand_in)
    }

    pub fn text(&self, key: &'static str, expected: &str) -> String {
        self.must(key, expected, String::new(), |node| non_empty(node).map(str::to_owned))
    }

    pub fn opt_text(&self, key: &'static str, expected: &str) -> Option<String> {
        self.opt(key, expected, |node| non_empty(node).map(str::to_owned))
    }

    pub fn opt_path(&self, key: &'static str) -> Option<PathBuf> {
        self.opt(key, "a path to a file", |node| non_empty(node).map(PathBuf::from))
    }

    pub fn flag(&self, key: &'static str) -> bool {
        self.must(key, "true or false", false, flag)
    }

    pub fn flag_or(&self, key: &'static str, default: bool) -> bool {
        self.opt(key, "true or false", flag).unwrap_or(default)
    }

    pub fn integer(&self, key: &'static str, range: RangeInclusive<u64>) -> u64 {
        let stand_in = *range.start();
        self.must(key, "an integer", stand_in, |node| {
            let Value::Integer(value) = node.value else { return Err(Refusal::Type) };
            u64::try_from(value).ok().filter(|value| range.contains(value)).ok_or_else(|| {
                Refusal::Value(format!("{value} is out of range: {} to {}", range.start(), range.end()))
            })
        })
    }

    pub fn size(&self, key: &'static str, range: RangeInclusive<u64>) -> u64 {
        let stand_in = *range.start();
        self.must(key, "a size such as \"8MiB\"", stand_in, |node| {
            let bytes = match &node.value {
                Value::Integer(bytes) => u64::try_from(*bytes)?,
                Value::Text(text) => units::parse_size(text)?,
                _ => return Err(Refusal::Type),
            };
            if !range.contains(&bytes) {
                let [low, high] = [range.start(), range.end()].map(|bytes| units::format_size(*bytes));
                return Err(format!("{} is out of range: {low} to {high}", units::format_size(bytes)).into());
            }
            Ok(bytes)
        })
    }

    pub fn duration(&self, key: &'static str, range: RangeInclusive<Duration>) -> Duration {
        let stand_in = *range.start();
        self.must(key, "a duration such as \"20s\"", stand_in, |node| {
            let Value::Text(text) = &node.value else { return Err(Refusal::Type) };
            let duration = units::parse_duration(text)?;
            if !range.contains(&duration) {
                let [low, high] = [range.start(), range.end()].map(|limit| units::format_duration(*limit));
                return Err(format!("\"{text}\" is out of range: {low} to {high}").into());
            }
            Ok(duration)
        })
    }

    pub fn rate(&self, key: &'static str) -> Rate {
        self.must(key, "a rate such as \"2/s\"", Rate { count: 1, per: Duration::from_secs(1) }, |node| {
            let Value::Text(text) = &node.value else { return Err(Refusal::Type) };
            Ok(units::parse_rate(text)?)
        })
    }

    /// One of a closed list of words.
    pub fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> T {
        self.must(key, &expected_choice(choices), choices[0].1, |node| choose(node, choices))
    }

    pub fn opt_choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        self.opt(key, &expected_choice(choices), |node| choose(node, choices))
    }

    pub fn address(&self, key: &'static str) -> SocketAddr {
        let stand_in = SocketAddr::from(([127, 0, 0, 1], 0));
        self.must(key, ADDRESS, stand_in, address)
    }

    pub fn opt_address(&self, key: &'static str) -> Option<SocketAddr> {
        self.opt(key, ADDRESS, address)
    }

    pub fn opt_url(&self, key: &'static str) -> Option<Url> {
        self.opt(key, "a URL such as \"https://host/path\"", |node| Ok(http_url(text(node)?)?))
    }

    /// A list; each item that is refused is reported by itself.
    pub fn list<T>(&self, key: &'static str, expected: &str, read: impl Fn(&'a Node) -> Read<T>) -> Vec<T> {
        if !self.entries.iter().any(|entry| entry.key == key) {
            self.missing(key, &format!("a list of {expected}"));
        }
        self.opt_list(key, expected, read)
    }

    pub fn opt_list<T>(
        &self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&'a Node) -> Read<T>,
    ) -> Vec<T> {
        let items = self.opt(key, &format!("a list of {expected}"), |node| match &node.value {
            Value::List(items) => Ok(items.as_slice()),
            _ => Err(Refusal::Type),
        });
        self.each(key, expected, items.unwrap_or_default(), read)
    }

    /// One text or a list of them.
    pub fn one_or_more<T>(
        &self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&'a Node) -> Read<T>,
    ) -> Vec<T> {
        let Some(entry) = self.entry(key) else { return Vec::new() };
        let items = match &entry.node.value {
            Value::List(items) => items.as_slice(),
            _ => std::slice::from_ref(&entry.node),
        };
        self.each(key, expected, items, read)
    }

    fn each<T>(
        &self,
        key: &str,
        expected: &str,
        items: &'a [Node],
        read: impl Fn(&'a Node) -> Read<T>,
    ) -> Vec<T> {
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            match read(item) {
                Ok(value) => values.push(value),
                Err(refusal) => self.refuse(&self.name(key), item, expected, refusal),
            }
        }
        values
    }

    /// A table inside this one.
    pub fn section(&self, key: &'static str) -> Option<Section<'a>> {
        let name = self.name(key);
        let node = self.opt(key, "a table", Ok)?;
        match &node.value {
            Value::Table(table) => Some(Section::new(self.report, name, node.at, table)),
            _ => {
                self.refuse(&name, node, "a table", Refusal::Type);
                None
            }
        }
    }

    /// A table of texts whose keys are the writer's own, e.g. headers.
    pub fn pairs(&self, key: &'static str) -> Option<Vec<(&'a Entry, String)>> {
        let table = self.opt(key, "a table of texts", |node| match &node.value {
            Value::Table(table) => Ok(table),
            _ => Err(Refusal::Type),
        })?;
        let mut pairs = Vec::with_capacity(table.0.len());
        for entry in &table.0 {
            match text(&entry.node) {
                Ok(value) => pairs.push((entry, value.to_owned())),
                Err(refusal) => {
                    self.refuse(&format!("{}.{}", self.name(key), entry.key), &entry.node, "text", refusal);
                }
            }
        }
        Some(pairs)
    }
}

const ADDRESS: &str = "an address and port such as \"127.0.0.1:8080\"";

pub(crate) fn text(node: &Node) -> Read<&str> {
    match &node.value {
        Value::Text(text) => Ok(text),
        _ => Err(Refusal::Type),
    }
}

pub(crate) fn non_empty(node: &Node) -> Read<&str> {
    let text = text(node)?;
    if text.trim().is_empty() { Err(Refusal::Value("is empty".into())) } else { Ok(text) }
}

fn flag(node: &Node) -> Read<bool> {
    match node.value {
        Value::Bool(flag) => Ok(flag),
        _ => Err(Refusal::Type),
    }
}

fn address(node: &Node) -> Read<SocketAddr> {
    let text = text(node)?;
    text.parse().map_err(|_| Refusal::Value(format!("\"{text}\" is not {ADDRESS}")))
}

pub(crate) fn http_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("\"{text}\" is not a URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("\"{text}\" is not an http:// or https:// URL"));
    }
    Ok(url)
}

fn expected_choice<T>(choices: &[(&str, T)]) -> String {
    let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

fn choose<T: Copy>(node: &Node, choices: &[(&str, T)]) -> Read<T> {
    let word = text(node)?;
    if let Some((_, value)) = choices.iter().find(|(known, _)| *known == word) {
        return Ok(*value);
    }
    let hint = match closest(word, choices.iter().map(|(word, _)| *word)) {
        Some(close) => format!("; did you mean \"{close}\"?"),
        None => String::new(),
    };
    Err(format!("\"{word}\" is not {}{hint}", expected_choice(choices)).into())
}

/// The known word nearest to `word`, if any is near.
pub(crate) fn closest<'w>(word: &str, known: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let lower = word.to_lowercase();
    known
        .map(|known| (strsim::jaro_winkler(&lower, known), known))
        .filter(|(score, known)| *score > 0.75 || known.contains(&lower) && lower.len() > 2)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}
