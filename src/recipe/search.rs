//! Answer of a search → candidates: the pages that may be the product, in the shop's order.

use std::collections::HashSet;

use serde_json::Value;
use url::Url;

use super::{Answer, LinkSource, Recipe, RecipeError};
use crate::markup::document::{Clock, Document, decode, is_whole};
use crate::markup::json_path::{self, JsonPath};
use crate::markup::{Limits, Unreadable};
use crate::model::page::{End, Page};

/// Links of one answer that are looked at.
const LINKS_MAX: usize = 2_000;

/// Pieces of HTML in one JSON answer.
const PIECES_MAX: usize = 50;

/// Reads a search answer: addresses within the shop, each once, at most `candidates_max`. Blocking, at most about
/// `limits.time_max`. No result is `Ok` and empty; whether the status was good is the caller's to know.
pub fn candidates(recipe: &Recipe, page: &Page, limits: &Limits) -> Result<Vec<Url>, RecipeError> {
    let clock = Clock::start(limits);
    let text = decode(&page.bytes, page.content_type.as_deref());
    let links = match &recipe.search.answer {
        Answer::Html => {
            if page.end == End::Closed && !is_whole(&text) {
                return Err(Unreadable::Truncated("no </html>").into());
            }
            html_links(recipe, &text, &clock)?
        }
        Answer::Json => {
            let answer = json(&text, page.end)?;
            recipe.search.links.iter().flat_map(|source| json_links(source, &answer)).collect()
        }
        Answer::HtmlInJson(path) => {
            let answer = json(&text, page.end)?;
            let mut links = Vec::new();
            for html in pieces(&answer, path)? {
                links.extend(html_links(recipe, html, &clock)?);
            }
            links.extend(recipe.search.links.iter().flat_map(|source| json_links(source, &answer)));
            links
        }
    };
    // An answer of another host (a search service) speaks of the shop's pages.
    let base = if recipe.is_page(&page.url) { &page.url } else { &recipe.base };
    Ok(clean(recipe, base, links))
}

fn json(text: &str, end: End) -> Result<Value, RecipeError> {
    serde_json::from_str(text).map_err(|error| match end {
        End::Closed => Unreadable::Truncated("JSON does not parse").into(),
        End::Framed if text.trim().is_empty() => RecipeError::Answer("empty, expected JSON".to_owned()),
        End::Framed => RecipeError::Answer(format!("not JSON: {error}")),
    })
}

/// The HTML texts at `path`; null is none, an absent key is another answer than the recipe describes.
fn pieces<'v>(answer: &'v Value, path: &JsonPath) -> Result<Vec<&'v str>, RecipeError> {
    let values = json_path::at(answer, path);
    let texts: Vec<&str> = values.iter().filter_map(|value| value.as_str()).take(PIECES_MAX).collect();
    if texts.is_empty() && !values.iter().any(|value| matches!(value, Value::Null | Value::Bool(false))) {
        return Err(RecipeError::Answer("no text where `html_at` says that HTML is".to_owned()));
    }
    Ok(texts)
}

fn html_links(recipe: &Recipe, html: &str, clock: &Clock) -> Result<Vec<String>, RecipeError> {
    let document = Document::parse(html, clock)?;
    let all = document.elements(document.root())?;
    let mut links = Vec::new();
    for source in &recipe.search.links {
        if let LinkSource::Css { css, attr } = source {
            let elements = document.select(&all, css, None, LINKS_MAX)?;
            links.extend(elements.iter().filter_map(|element| element.attr(attr)).map(str::to_owned));
        }
    }
    Ok(links)
}

fn json_links(source: &LinkSource, answer: &Value) -> Vec<String> {
    let mut links = Vec::new();
    if let LinkSource::Json(path) = source {
        for value in json_path::at(answer, path) {
            json_path::texts(value, &mut links);
        }
    }
    links
}

fn clean(recipe: &Recipe, base: &Url, links: Vec<String>) -> Vec<Url> {
    let (search, mut seen, mut found) = (&recipe.search, HashSet::new(), Vec::new());
    for link in links.iter().map(|link| link.trim()).filter(|link| !link.is_empty() && !link.starts_with('#'))
    {
        let Ok(mut url) = base.join(link) else { continue };
        // Shops with https print old http links; an exit would read and write them.
        if recipe.base.scheme() == "https" && url.scheme() == "http" && url.set_scheme("https").is_err() {
            continue;
        }
        url.set_fragment(None);
        if search.strip_query {
            url.set_query(None);
        }
        let is_included =
            search.include.is_empty() || search.include.iter().any(|it| it.is_match(url.path()));
        let is_excluded = search.exclude.iter().any(|it| it.is_match(url.path()));
        if is_included && !is_excluded && recipe.is_page(&url) && seen.insert(url.clone()) {
            found.push(url);
            if found.len() >= recipe.candidates_max {
                break;
            }
        }
    }
    found
}
