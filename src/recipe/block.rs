//! Which answers of a shop mean "go away". Pure.
//!
//! | rule        | looks at                                   | why it is not on for every shop                            |
//! |-------------|--------------------------------------------|------------------------------------------------------------|
//! | `status`    | the status                                 | 403 and 429 say it by themselves                           |
//! | `markers`   | the text of any answer                     | a product may be called what a challenge says              |
//! | `redirect`  | where a redirect leads, before it is followed | only what no shop has by another name                   |
//! | `small`     | the size of a page, or of a search answer in HTML | how small is too small is the shop's own affair: off |
//!
//! A search that answers JSON may be as small as `[]` and have nothing to say; an error page may be small as well. So
//! `small` is held only against what has the status of a page, and is one.

use std::fmt;

use url::Url;

use crate::markup::{Pattern, document};
use crate::model::page::Page;

/// What a recipe says of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Blocks {
    pub status: Vec<u16>,
    /// Texts of a page that is a challenge and not a product.
    pub markers: Vec<Marker>,
    /// On the address that a redirect leads to, without its query, which is nobody's to log.
    pub redirect: Vec<Pattern>,
    /// A page of fewer bytes is none; 0: any page is one.
    pub small_bytes: usize,
}

/// A text to look for, whatever its case.
#[derive(Clone, Debug, PartialEq)]
pub struct Marker {
    pub text: String,
    pattern: Pattern,
}

impl Marker {
    pub fn new(text: &str) -> Result<Self, String> {
        let pattern = Pattern::parse(&format!("(?i){}", regex::escape(text)))?;
        Ok(Self { text: text.to_owned(), pattern })
    }
}

/// What becomes of the visits of a shop that refuses most exits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBlock {
    /// They end as `blocked` at once.
    #[default]
    End,
    /// They wait, and are charged nothing for it.
    Wait,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A page for people.
    Page,
    /// An answer for the shop's own script, which may be of any size.
    Data,
}

/// The rule by which a shop said no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    Status(u16),
    Marker(String),
    /// Without the query, and without the host where that is the one that was asked.
    Redirect {
        to: String,
    },
    Small {
        bytes: usize,
    },
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Marker(text) => write!(f, "marker \"{text}\""),
            Self::Redirect { to } => write!(f, "redirect to {to}"),
            Self::Small { bytes } => write!(f, "page of {bytes} bytes, smaller than blocks.small"),
        }
    }
}

impl Blocks {
    /// Whether `page` is the shop's way to say no.
    pub fn of_page(&self, page: &Page, expected: Expected) -> Option<Block> {
        if self.status.contains(&page.status) {
            return Some(Block::Status(page.status));
        }
        if !self.markers.is_empty() {
            let text = document::decode(&page.bytes, page.content_type.as_deref());
            if let Some(marker) = self.markers.iter().find(|marker| marker.pattern.is_match(&text)) {
                return Some(Block::Marker(marker.text.clone()));
            }
        }
        let bytes = page.bytes.len();
        let is_page = expected == Expected::Page && (200..300).contains(&page.status);
        (is_page && bytes < self.small_bytes).then_some(Block::Small { bytes })
    }

    /// Whether a redirect from one address to another is the shop's way to say no.
    pub fn of_redirect(&self, from: &Url, to: &Url) -> Option<Block> {
        let mut to = to.clone();
        to.set_query(None);
        to.set_fragment(None);
        if !self.redirect.iter().any(|pattern| pattern.is_match(to.as_str())) {
            return None;
        }
        let host = to.host_str().filter(|host| from.host_str() != Some(*host)).unwrap_or_default();
        Some(Block::Redirect { to: format!("{host}{}", to.path()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::model::page::End;

    fn blocks(text: &str) -> Blocks {
        let text = format!("webhooks.product_url = \"none\"\n[sites.pharmagdd.blocks]\n{text}\n");
        config::parse("c.toml", &text).unwrap().sites["pharmagdd"].blocks.clone()
    }

    fn page(status: u16, body: &str) -> Page {
        Page {
            url: Url::parse("https://www.shop.fr/p.html").unwrap(),
            status,
            content_type: Some("text/html; charset=utf-8".into()),
            bytes: body.into(),
            end: End::Framed,
        }
    }

    #[track_caller]
    fn rule(blocks: &Blocks, page: &Page) -> Option<String> {
        blocks.of_page(page, Expected::Page).map(|block| block.to_string())
    }

    fn redirect(blocks: &Blocks, to: &str) -> Option<String> {
        let from = Url::parse("https://www.shop.fr/p.html").unwrap();
        blocks.of_redirect(&from, &from.join(to).unwrap()).map(|block| block.to_string())
    }

    #[test]
    fn a_block_is_known_by_its_status_and_by_its_words_whatever_their_case() {
        let blocks = blocks("markers = [\"Êtes-vous un robot ?\"]");
        assert_eq!(rule(&blocks, &page(403, "")).as_deref(), Some("status 403"));
        let robot = page(200, "<p>êtes-vous un ROBOT ?</p>");
        assert_eq!(rule(&blocks, &robot).as_deref(), Some("marker \"Êtes-vous un robot ?\""));
        assert_eq!(rule(&blocks, &page(200, "fine")), None);
        assert_eq!(rule(&blocks, &page(404, "gone")), None);
    }

    #[test]
    fn a_redirect_to_a_challenge_is_known_at_any_host_and_told_without_its_query() {
        let blocks = blocks("redirect = ['/challenge$']");
        assert_eq!(redirect(&blocks, "/challenge?back=%2Fp").as_deref(), Some("redirect to /challenge"));
        let elsewhere = redirect(&blocks, "https://guard.example/a/challenge?token=1#x");
        assert_eq!(elsewhere.as_deref(), Some("redirect to guard.example/a/challenge"));
        assert_eq!(redirect(&blocks, "/p2.html?from=/challenge"), None, "the query is not looked at");
        assert_eq!(redirect(&blocks, "/challenge-whey.html"), None);
    }

    #[test]
    fn by_default_only_what_no_page_of_a_product_is_called_is_a_challenge() {
        let blocks = blocks("");
        for to in ["/captcha", "/errors/validateCaptcha", "https://geo.captcha-delivery.com/x"] {
            assert!(redirect(&blocks, to).is_some(), "{to}");
        }
        for to in ["/p2.html", "/c/challenge/", "/login", "https://www.shop.de/", "/protein-challenge.html"] {
            assert_eq!(redirect(&blocks, to), None, "{to}");
        }
    }

    #[test]
    fn a_small_page_is_a_block_only_where_a_page_is_expected_and_only_if_the_recipe_says_so() {
        let said = blocks("small = \"1KiB\"");
        let (small, enough) = (page(200, &"x".repeat(1023)), page(200, &"x".repeat(1024)));
        let told = "page of 1023 bytes, smaller than blocks.small";
        assert_eq!(rule(&said, &small).as_deref(), Some(told));
        assert_eq!(rule(&said, &enough), None);
        assert_eq!(said.of_page(&page(200, "[]"), Expected::Data), None, "a search that found nothing");
        assert_eq!(rule(&said, &page(404, "gone")), None, "an error page says so itself");
        assert_eq!(rule(&blocks(""), &page(200, "")), None, "off by default");
    }
}
