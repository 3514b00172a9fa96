//! The small languages of a recipe: sources, cleanings, paths. Each `parse` says in words what is wrong.

use std::fmt;

use scraper::Selector;

use crate::markup::{JsonPath, Pattern, normal};

/// Where links of a search answer are.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkSource {
    Css { css: Selector, attr: String },
    Json(JsonPath),
}

impl LinkSource {
    pub fn parse(text: &str) -> Result<Self, String> {
        match split_kind(text) {
            Some(("css", rest)) => {
                let (css, attr) = split_attr(rest);
                Ok(Self::Css { css: selector(css)?, attr: attr.unwrap_or("href").to_owned() })
            }
            Some(("json", rest)) => Ok(Self::Json(JsonPath::parse(rest)?)),
            _ => Err(format!("\"{text}\" begins with neither css: nor json:")),
        }
    }
}

/// Where a value of a page is.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    text: String,
    pub(crate) kind: SourceKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SourceKind {
    /// No selector: the item itself.
    Css {
        css: Option<Selector>,
        attr: Option<String>,
    },
    /// No type: the page's product, or the item itself. No path: the object.
    JsonLd {
        kind: Option<String>,
        path: Option<JsonPath>,
    },
    Microdata(Vec<String>),
    Meta(String),
    After {
        css: Selector,
        text: String,
        then: Selector,
    },
    Pattern(Pattern),
    Count(Selector),
}

const SOURCES: &str = "css:, jsonld:, microdata:, meta:, after:, pattern:, count:";

impl Source {
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((kind, rest)) = split_kind(text) else {
            return Err(format!("\"{text}\" is not a source; they begin with {SOURCES}"));
        };
        let kind = match kind {
            "css" => {
                let (css, attr) = split_attr(rest);
                let css = if css.is_empty() && attr.is_some() { None } else { Some(selector(css)?) };
                SourceKind::Css { css, attr: attr.map(str::to_owned) }
            }
            "jsonld" => json_ld(rest)?,
            "microdata" if names(rest) => SourceKind::Microdata(rest.split('.').map(str::to_owned).collect()),
            "meta" if !rest.is_empty() => SourceKind::Meta(rest.to_lowercase()),
            "after" => after(rest)?,
            "pattern" => SourceKind::Pattern(Pattern::parse(rest)?),
            "count" => SourceKind::Count(selector(rest)?),
            "microdata" | "meta" => return Err(format!("\"{text}\": {kind}: wants a name")),
            _ => return Err(format!("\"{text}\": unknown source `{kind}:`; known: {SOURCES}")),
        };
        Ok(Self { text: text.to_owned(), kind })
    }

    /// Whether a list can be made of it: it gives elements or objects.
    pub fn gives_items(&self) -> bool {
        match &self.kind {
            SourceKind::Css { css, attr } => css.is_some() && attr.is_none(),
            SourceKind::JsonLd { .. } => true,
            SourceKind::Microdata(_)
            | SourceKind::Meta(_)
            | SourceKind::After { .. }
            | SourceKind::Pattern(_)
            | SourceKind::Count(_) => false,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn names(text: &str) -> bool {
    text.split('.').all(|name| !name.trim().is_empty())
}

fn json_ld(rest: &str) -> Result<SourceKind, String> {
    let (kind, path) = match rest.strip_prefix('@') {
        // `@id` and `@type` are keys; types are capitalised.
        Some(typed) if typed.starts_with(|c: char| c.is_ascii_uppercase()) => match typed.split_once('/') {
            Some((kind, path)) => (Some(kind.to_owned()), path),
            None => (Some(typed.to_owned()), ""),
        },
        _ => (None, rest),
    };
    match (&kind, path) {
        (None, "") => Err("jsonld: wants a path such as offers.price".to_owned()),
        (_, "") => Ok(SourceKind::JsonLd { kind, path: None }),
        (_, path) => Ok(SourceKind::JsonLd { path: Some(JsonPath::parse(path)?), kind }),
    }
}

fn after(rest: &str) -> Result<SourceKind, String> {
    let wrong = || format!("\"after:{rest}\" is not after:CSS=TEXT");
    let (head, then) = rest.rsplit_once(" -> ").unwrap_or((rest, "p"));
    // The first `=` outside of an attribute selector.
    let mut brackets = 0_i32;
    let split = head.char_indices().find(|(_, c)| {
        match c {
            '[' => brackets += 1,
            ']' => brackets -= 1,
            _ => {}
        }
        *c == '=' && brackets == 0
    });
    let (at, _) = split.ok_or_else(wrong)?;
    let text = normal(&head[at + 1..]);
    if text.is_empty() {
        return Err(wrong());
    }
    Ok(SourceKind::After { css: selector(&head[..at])?, text, then: selector(then)? })
}

/// What is made of a source's values.
#[derive(Clone, Debug, PartialEq)]
pub enum Cleaning {
    Text,
    First,
    Nth(usize),
    Join(String),
    Prefix(String),
    Suffix(String),
    Pattern(Pattern),
    Price { sign: String },
    Number,
    Rating { max: String },
}

const CLEANINGS: &str = "text, first, nth:N, join:, prefix:, suffix:, pattern:, price, number, rating";

impl Cleaning {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, argument) = match text.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        Ok(match (name, argument) {
            ("text", None) => Self::Text,
            ("first", None) => Self::First,
            ("nth", Some(n)) => match n.parse() {
                Ok(n @ 1..=1000) => Self::Nth(n),
                _ => return Err(format!("\"{text}\": nth: wants a number from 1")),
            },
            ("join", Some(separator)) => Self::Join(separator.to_owned()),
            ("prefix", Some(prefix)) if !prefix.is_empty() => Self::Prefix(prefix.to_owned()),
            ("suffix", Some(suffix)) if !suffix.is_empty() => Self::Suffix(suffix.to_owned()),
            ("pattern", Some(pattern)) => Self::Pattern(Pattern::parse(pattern)?),
            ("price", sign) => Self::Price { sign: sign.unwrap_or("€").to_owned() },
            ("number", None) => Self::Number,
            ("rating", max) => match max.unwrap_or("5") {
                max if max.parse::<u32>().is_ok_and(|max| max > 0) => Self::Rating { max: max.to_owned() },
                _ => return Err(format!("\"{text}\": rating: wants the highest rating, e.g. 5")),
            },
            ("nth" | "join" | "prefix" | "suffix" | "pattern", _) => {
                return Err(format!("\"{text}\": wants something after `{name}:`"));
            }
            ("text" | "first" | "number", Some(_)) => {
                return Err(format!("\"{text}\": `{name}` takes nothing after it"));
            }
            _ => return Err(format!("\"{text}\" is not a cleaning; known: {CLEANINGS}")),
        })
    }
}

fn split_kind(text: &str) -> Option<(&str, &str)> {
    let (kind, rest) = text.split_once(':')?;
    Some((kind.trim(), rest.trim()))
}

/// Cuts `@attr` off; a selector itself has no bare `@`.
fn split_attr(text: &str) -> (&str, Option<&str>) {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b':' | b'.'))
    };
    match text.rsplit_once('@') {
        Some((css, attr)) if is_name(attr) => (css.trim(), Some(attr)),
        _ => (text, None),
    }
}

fn selector(text: &str) -> Result<Selector, String> {
    if text.is_empty() {
        return Err("empty selector".to_owned());
    }
    Selector::parse(text).map_err(|error| format!("selector \"{text}\" does not parse: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_by_their_first_word() {
        let kind = |text| Source::parse(text).unwrap().kind;
        assert!(
            matches!(kind("css:span[itemprop=gtin13]@content"), SourceKind::Css { css: Some(_), attr: Some(a) } if a == "content")
        );
        assert!(matches!(kind("css:@data-ean"), SourceKind::Css { css: None, attr: Some(_) }));
        assert!(matches!(kind("css:a[href*=\"@x\"]"), SourceKind::Css { css: Some(_), attr: None }));
        assert!(matches!(kind("jsonld:offers.price"), SourceKind::JsonLd { kind: None, path: Some(_) }));
        assert!(matches!(kind("jsonld:@Review"), SourceKind::JsonLd { kind: Some(_), path: None }));
        assert!(matches!(
            kind("jsonld:@Review/author.name"),
            SourceKind::JsonLd { kind: Some(_), path: Some(_) }
        ));
        assert!(matches!(kind("jsonld:@id"), SourceKind::JsonLd { kind: None, path: Some(_) }));
        assert!(matches!(kind("meta:og:title"), SourceKind::Meta(name) if name == "og:title"));
        assert!(
            matches!(kind("after:h2[class=x]=Avis  du Pharmacien"), SourceKind::After { text, .. } if text == "avis du pharmacien")
        );
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        for (text, part) in [
            ("h1", "not a source"),
            ("xpath://h1", "unknown source `xpath:`"),
            ("css:h1[", "does not parse"),
            ("css:", "empty selector"),
            ("jsonld:", "wants a path"),
            ("jsonld:a..b", "empty step"),
            ("meta:", "wants a name"),
            ("after:h2", "is not after:CSS=TEXT"),
            ("pattern:(", "does not compile"),
            ("pattern:(?=x)", "does not compile"),
            ("pattern:\\w{1000}{1000}", "does not compile"),
        ] {
            let message = Source::parse(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
        for (text, part) in [
            ("texte", "not a cleaning"),
            ("nth:0", "from 1"),
            ("prefix:", "wants something"),
            ("number:3", "takes nothing"),
            ("rating:x", "highest rating"),
        ] {
            let message = Cleaning::parse(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
        assert!(JsonPath::parse("a*b.c").is_err());
        assert!(LinkSource::parse("a[href]").is_err());
    }

    #[test]
    fn a_recipe_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<crate::recipe::Recipe>();
    }
}
