//! A shop described, not programmed: how to search it, what its pages say, and whether a page is the product asked for.
//!
//! Pure functions from bytes to owned data; neither tokio nor ractor below here. A visit runs
//! [`Recipe::search_request`] → [`search::candidates`] → [`Recipe::page_request`] → [`extract::extract`] →
//! [`extract::check`] → [`Recipe::site_object`], and looks at [`Blocks::of_page`] after each answer. The two that
//! parse are meant for a blocking thread: they look at the clock and end with [`Unreadable::TooSlow`].
//!
//! # What a recipe writer writes
//!
//! Links of a search (`links`, one or a list, all are followed in order):
//!
//! | written            | means                                                                        |
//! |--------------------|------------------------------------------------------------------------------|
//! | `css:SELECTOR`     | the `href` of what matches; `css:SELECTOR@attr` another attribute              |
//! | `json:PATH`        | text in a JSON answer; `.` goes down, `*` is any key or index, `variant_*` any key that begins so |
//!
//! Sources of a field (`from`, one or a list, the first that gives a value is used):
//!
//! | written               | means                                                                     |
//! |-----------------------|---------------------------------------------------------------------------|
//! | `css:SELECTOR`        | text of what matches; `css:SELECTOR@attr` an attribute; `css:@attr` of the item itself |
//! | `jsonld:PATH`         | in the page's schema.org product; `jsonld:@Type/PATH` in the first object of another type; in an item, below it |
//! | `microdata:NAME`      | the value of `itemprop=NAME`; `offers.price` goes down                       |
//! | `meta:NAME`           | `<meta>` by `property`, `name` or `itemprop`                                 |
//! | `after:CSS=TEXT`      | the first `p` after an element that matches and contains TEXT; `after:CSS=TEXT -> CSS` another element |
//! | `pattern:REGEX`       | on the page's source, in an item on its text; group 1 if there is one         |
//! | `count:SELECTOR`      | how many match, e.g. stars; nothing if none                                   |
//!
//! Cleanings (`clean`, in order; `["text"]` if not given). A source may give several values; what is left at the end
//! is the first of them:
//!
//! | written                    | means                                                                |
//! |----------------------------|----------------------------------------------------------------------|
//! | `text`                     | tags and entities out, white space to single spaces                   |
//! | `first`, `nth:N`           | one of several values, counted from 1                                 |
//! | `join:SEPARATOR`           | several values in one                                                 |
//! | `prefix:TEXT`, `suffix:TEXT` | the value without it, if it has it                                   |
//! | `pattern:REGEX`            | group 1 (or the whole match); no match, no value                      |
//! | `price`, `price:SIGN`      | "14,90 €" → "14.90€"; SIGN where the text names no currency (default €) |
//! | `number`                   | "1 234,5 avis" → "1234.5"                                            |
//! | `rating`, `rating:MAX`     | "4,5 sur 5" → "4.5/5"                                                |
//!
//! A list of objects: `avis_clients = { list = "css:.review", each = { auteur = "css:.name" } }`.
//! Deliberately absent: any way to run code, and any pattern engine that can be made to backtrack.

use std::time::Duration;

use serde_json::{Map, Value};
use url::Url;

use crate::config::{HostRule, Rate};
use crate::markup::{JsonPath, Pattern, Unreadable};
use crate::model::Gtin;
use crate::model::page::{Method, Request, Via};

pub mod block;
pub mod extract;
pub mod search;
pub mod syntax;

mod clean;
#[cfg(test)]
mod tests;

pub use block::{Block, Blocks, Expected, Marker, OnBlock};
pub use syntax::{Cleaning, LinkSource, Source};

/// Where the barcode goes in a URL, a form or a JSON body.
pub const EAN: &str = "{ean}";

/// Why bytes gave no fields or candidates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    #[error(transparent)]
    Page(#[from] Unreadable),
    /// A search answer that is not what the recipe says.
    #[error("search answer is not as described: {0}")]
    Answer(String),
}

impl RecipeError {
    /// The word in the webhook's `errors.{shop}.kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Page(why) => why.kind(),
            Self::Answer(_) => "answer",
        }
    }
}

/// One shop.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The key in `sites` and in `data`.
    pub name: String,
    /// What people call it: `site` in `data`.
    pub title: String,
    pub enabled: bool,
    /// Its place in the configuration.
    pub position: usize,
    pub base: Url,
    /// Hosts besides the base's that links and redirects may go to.
    pub hosts: Vec<HostRule>,
    pub via: Via,
    /// Whether a page without a GTIN counts.
    pub unverified: bool,
    pub rate: Rate,
    /// Whether the rate gives way while the shop is slow or says 429 or 503.
    pub adaptive: bool,
    /// Between two requests of one visit, by chance from half to half as much again.
    pub pause: Duration,
    /// Whether what its robots.txt forbids is left alone.
    pub robots: bool,
    pub concurrency: usize,
    /// Whether a slow visit may be started once more.
    pub hedge: bool,
    pub candidates_max: usize,
    /// Sent with every request.
    pub headers: Vec<(String, String)>,
    pub blocks: Blocks,
    pub on_block: OnBlock,
    pub search: Search,
    pub fields: Vec<Field>,
}

/// How a shop is searched.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    pub via: Via,
    pub method: Method,
    /// Relative to the base, or absolute; with [`EAN`].
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Option<Body>,
    pub answer: Answer,
    pub links: Vec<LinkSource>,
    /// On the link's path; one must match, if there are any.
    pub include: Vec<Pattern>,
    /// On the link's path; none may match.
    pub exclude: Vec<Pattern>,
    pub strip_query: bool,
}

/// What a POST sends; values with [`EAN`].
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Form(Vec<(String, String)>),
    Json(String),
}

/// What comes back from a search.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Html,
    Json,
    /// HTML as a text inside JSON.
    HtmlInJson(JsonPath),
}

/// One key of the shop's object in `data`.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: String,
    pub rule: Rule,
}

/// Where a field's value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// One text.
    Value { from: Vec<Source>, clean: Vec<Cleaning> },
    /// A list of objects: the items of the first source that has any.
    List { list: Vec<Source>, each: Vec<Field> },
}

/// What is said about a page in the shop's object besides its fields.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The barcode that found it, padded.
    pub ean: &'a str,
    pub url: &'a Url,
    /// The primary, if `ean` is its replacement.
    pub original_ean: Option<&'a str>,
    /// False only for a page without a GTIN at a shop where that counts.
    pub verified: bool,
}

impl Recipe {
    /// The request that searches for `gtin`.
    pub fn search_request(&self, gtin: &Gtin) -> Request {
        let ean = gtin.padded();
        let url = self.search_url(&ean).unwrap_or_else(|_| self.base.clone());
        debug_assert!(url.as_str().len() > 8, "checked when the recipe was read");
        let mut headers = self.headers.clone();
        headers
            .retain(|(name, _)| !self.search.headers.iter().any(|(own, _)| own.eq_ignore_ascii_case(name)));
        headers.extend(self.search.headers.iter().cloned());
        let body = self.search.body.as_ref().map(|body| match body {
            Body::Form(pairs) => {
                let mut form = url::form_urlencoded::Serializer::new(String::new());
                form.extend_pairs(pairs.iter().map(|(name, value)| (name, value.replace(EAN, &ean))));
                ("application/x-www-form-urlencoded".to_owned(), form.finish().into_bytes())
            }
            Body::Json(text) => ("application/json".to_owned(), text.replace(EAN, &ean).into_bytes()),
        });
        Request { method: self.search.method, url, headers, body }
    }

    /// The request for a candidate's page.
    pub fn page_request(&self, url: &Url) -> Request {
        Request { headers: self.headers.clone(), ..Request::get(url.clone()) }
    }

    pub(crate) fn search_url(&self, ean: &str) -> Result<Url, url::ParseError> {
        // Digits need no percent encoding; whoever widens this to other texts has to add it.
        debug_assert!(ean.bytes().all(|b| b.is_ascii_digit()));
        self.base.join(&self.search.url.replace(EAN, ean))
    }

    /// Whether `url` is a page of this shop. Where the shop is https, so is every page: an exit reads and writes http.
    pub fn is_page(&self, url: &Url) -> bool {
        let scheme = url.scheme() == "https" || url.scheme() == "http" && self.base.scheme() == "http";
        scheme && (url.host() == self.base.host() || self.hosts.iter().any(|rule| rule.allows(url)))
    }

    /// Whether a request of this shop may go, or be redirected, to `url`: its pages, and the host that is searched.
    pub fn allows(&self, url: &Url) -> bool {
        self.is_page(url)
            || self.search_url("0000000000000").is_ok_and(|search| {
                (search.host(), search.scheme()) == (url.host(), url.scheme())
                    && search.port_or_known_default() == url.port_or_known_default()
            })
    }

    /// What its search brings.
    pub fn expected_of_search(&self) -> Expected {
        match self.search.answer {
            Answer::Html => Expected::Page,
            Answer::Json | Answer::HtmlInJson(_) => Expected::Data,
        }
    }

    /// What a visit of this shop waits for: Tor, if its search or its pages go through it.
    pub fn waits_for(&self) -> Via {
        match (self.search.via, self.via) {
            (Via::Direct, Via::Direct) => Via::Direct,
            (Via::Tor, _) | (_, Via::Tor) => Via::Tor,
        }
    }

    /// The shop's object in `data`: who, which, where, then the fields in the order of the recipe.
    pub fn site_object(&self, found: Found<'_>, extracted: &extract::Extracted) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("site".into(), self.title.clone().into());
        object.insert("ean".into(), found.ean.into());
        object.insert("url".into(), found.url.as_str().into());
        if let Some(original) = found.original_ean {
            object.insert("used_replacement".into(), true.into());
            object.insert("original_ean".into(), original.into());
        }
        if !found.verified {
            object.insert("verified".into(), false.into());
        }
        for (name, value) in &extracted.fields {
            object.entry(name.clone()).or_insert_with(|| value.clone());
        }
        // Old workflows read it; a recipe without this field was checked by the structured data.
        if !object.contains_key(extract::EAN_FIELD)
            && let Some(gtin) =
                extracted.gtins.iter().find(|gtin| Gtin::parse(found.ean).is_ok_and(|ean| ean == **gtin))
        {
            object.insert(extract::EAN_FIELD.into(), gtin.padded().into());
        }
        object
    }
}
