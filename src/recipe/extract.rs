//! Page → fields and barcodes, and whether the page is the product asked for.
//!
//! A field with no value is left out; a page is never refused for what it lacks. Every text is cut at
//! [`VALUE_BYTES_MAX`] and all of them together at [`EXTRACTED_BYTES_MAX`]: they go into one webhook.

use std::borrow::Cow;
use std::collections::HashSet;

use scraper::{ElementRef, Selector};
use serde_json::{Map, Value};

use super::clean::{self, WrittenFor};
use super::syntax::SourceKind;
use super::{Field, Recipe, Rule, Source};
use crate::markup::document::{Breaks, Clock, Document, attribute, decode, is_whole};
use crate::markup::json_ld::{self, GTINS};
use crate::markup::json_path::{self, JsonPath};
use crate::markup::microdata::{self, Microdata, element_text};
use crate::markup::{Limits, Unreadable, VALUE_BYTES_MAX, normal};
use crate::model::Gtin;
use crate::model::page::{End, Page};

/// All fields of one page.
pub const EXTRACTED_BYTES_MAX: usize = 512 << 10;

/// Matches of one source, and items of one list.
const MATCHES_MAX: usize = 200;

/// JSON-LD blocks of one page.
const BLOCKS_MAX: usize = 50;

/// A longer text is no heading.
const HEADING_BYTES_MAX: usize = 400;

/// The field that holds the page's own barcode.
pub const EAN_FIELD: &str = "ean_verif";

/// What a page says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extracted {
    /// In the order of the recipe.
    pub fields: Map<String, Value>,
    /// The barcode in [`EAN_FIELD`], if it is one.
    pub own_gtin: Option<Gtin>,
    /// Those of the structured data about the page's product.
    pub gtins: Vec<Gtin>,
    /// Several, of which the page does not tell which is its product's: none of them verifies anything.
    pub unclear_gtins: Vec<Gtin>,
}

/// What a page is to a barcode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// It names the barcode.
    Verified,
    /// It names none, and at this shop that counts.
    Unverified,
    /// It names another.
    Other(Gtin),
    /// It names none.
    NoGtin,
}

/// Compares what was asked with what the page says: the recipe's own field decides, else any structured barcode.
pub fn check(asked: &Gtin, extracted: &Extracted, unverified: bool) -> Match {
    match (&extracted.own_gtin, extracted.gtins.first()) {
        (Some(own), _) if own == asked => Match::Verified,
        (Some(own), _) => Match::Other(own.clone()),
        (None, Some(_)) if extracted.gtins.contains(asked) => Match::Verified,
        (None, Some(first)) => Match::Other(first.clone()),
        (None, None) if !extracted.unclear_gtins.is_empty() && !extracted.unclear_gtins.contains(asked) => {
            Match::Other(extracted.unclear_gtins[0].clone())
        }
        (None, None) if unverified => Match::Unverified,
        (None, None) => Match::NoGtin,
    }
}

/// Reads a product page. Blocking, at most about `limits.time_max`.
pub fn extract(recipe: &Recipe, page: &Page, limits: &Limits) -> Result<Extracted, Unreadable> {
    let clock = Clock::start(limits);
    let text = decode(&page.bytes, page.content_type.as_deref());
    if page.end == End::Closed && !is_whole(&text) {
        return Err(Unreadable::Truncated("no </html>"));
    }
    let document = Document::parse(&text, &clock)?;
    let elements = document.elements(document.root())?;
    let blocks = json_ld_blocks(&document, &elements)?;
    let product = json_ld::product(&blocks);
    let Microdata { properties, gtins } = microdata::of_page(&document, &elements)?;
    let barcodes = Barcodes::among(product, gtins);
    let reader = Reader {
        document: &document,
        text: &text,
        elements: &elements,
        properties: &properties,
        barcodes: &barcodes.elements,
        product,
        blocks: &blocks,
    };
    let mut room = EXTRACTED_BYTES_MAX;
    let fields = reader.fields(&recipe.fields, Scope::Page, &mut room)?;
    let own_gtin = fields.get(EAN_FIELD).and_then(Value::as_str).and_then(json_ld::gtin_in);
    let Barcodes { own, unclear, .. } = barcodes;
    Ok(Extracted { fields, own_gtin, gtins: own, unclear_gtins: unclear })
}

fn json_ld_blocks(document: &Document<'_>, elements: &[ElementRef<'_>]) -> Result<Vec<Value>, Unreadable> {
    let is_json_ld = |element: ElementRef<'_>| {
        element.value().name() == "script"
            && attribute(element, "type")
                .is_some_and(|kind| kind.trim().to_ascii_lowercase().starts_with("application/ld+json"))
    };
    let mut blocks = Vec::new();
    for script in document.find(elements, BLOCKS_MAX, is_json_ld)? {
        let text: String = script.text().collect();
        blocks.extend(json_ld::parse_block(&text));
        document.clock.check()?;
    }
    Ok(blocks)
}

/// What a source looks at.
#[derive(Clone, Copy)]
enum Scope<'d> {
    Page,
    Element(ElementRef<'d>),
    Object(&'d Value),
}

struct Reader<'d> {
    document: &'d Document<'d>,
    text: &'d str,
    /// Those of the whole page.
    elements: &'d [ElementRef<'d>],
    /// Its microdata.
    properties: &'d [ElementRef<'d>],
    /// Its barcodes in microdata.
    barcodes: &'d [ElementRef<'d>],
    product: Option<&'d Value>,
    blocks: &'d [Value],
}

impl<'d> Reader<'d> {
    fn fields(
        &self,
        fields: &[Field],
        scope: Scope<'d>,
        room: &mut usize,
    ) -> Result<Map<String, Value>, Unreadable> {
        let mut object = Map::new();
        for field in fields {
            let value = match &field.rule {
                Rule::Value { from, clean } => self.value(from, clean, scope)?.map(Value::from),
                Rule::List { list, each } => self.list(list, each, scope, room)?.map(Value::from),
            };
            let Some(value) = value else { continue };
            if let Value::String(text) = &value {
                match room.checked_sub(text.len()) {
                    Some(left) => *room = left,
                    None => continue,
                }
            }
            object.insert(field.name.clone(), value);
        }
        Ok(object)
    }

    fn value(
        &self,
        from: &[Source],
        cleanings: &[super::Cleaning],
        scope: Scope<'d>,
    ) -> Result<Option<String>, Unreadable> {
        for source in from {
            let mut raw = self.raw(&source.kind, scope)?;
            for value in &mut raw {
                value.truncate(value.floor_char_boundary(VALUE_BYTES_MAX));
            }
            let written_for = match source.kind {
                SourceKind::JsonLd { .. } | SourceKind::Microdata(_) | SourceKind::Meta(_) => {
                    WrittenFor::Machines
                }
                _ => WrittenFor::People,
            };
            let value = clean::apply(cleanings, raw, written_for);
            self.document.clock.check()?;
            if let Some(mut value) = value {
                value.truncate(value.floor_char_boundary(VALUE_BYTES_MAX));
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// The items of the first source that has any; those that say nothing are left out.
    fn list(
        &self,
        list: &[Source],
        each: &[Field],
        scope: Scope<'d>,
        room: &mut usize,
    ) -> Result<Option<Vec<Value>>, Unreadable> {
        for source in list {
            let mut objects = Vec::new();
            for item in self.items(&source.kind, scope)? {
                let object = self.fields(each, item, room)?;
                if !object.is_empty() {
                    objects.push(Value::Object(object));
                }
            }
            if !objects.is_empty() {
                return Ok(Some(objects));
            }
        }
        Ok(None)
    }

    fn items(&self, source: &SourceKind, scope: Scope<'d>) -> Result<Vec<Scope<'d>>, Unreadable> {
        match source {
            SourceKind::Css { css: Some(css), .. } => {
                Ok(self.select(css, scope)?.into_iter().map(Scope::Element).collect())
            }
            SourceKind::JsonLd { kind, path } => {
                let mut items = Vec::new();
                for value in self.objects(kind.as_deref(), path.as_ref(), scope) {
                    match value {
                        Value::Array(list) => items.extend(list.iter().map(Scope::Object)),
                        value => items.push(Scope::Object(value)),
                    }
                }
                items.truncate(MATCHES_MAX);
                Ok(items)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// The elements that a scope holds.
    fn within(&self, scope: Scope<'d>) -> Result<Cow<'d, [ElementRef<'d>]>, Unreadable> {
        match scope {
            Scope::Page => Ok(Cow::Borrowed(self.elements)),
            Scope::Element(element) => Ok(Cow::Owned(self.document.elements(*element)?)),
            Scope::Object(_) => Ok(Cow::Borrowed(&[])),
        }
    }

    fn select(&self, css: &Selector, scope: Scope<'d>) -> Result<Vec<ElementRef<'d>>, Unreadable> {
        let element = match scope {
            Scope::Element(element) => Some(element),
            Scope::Page | Scope::Object(_) => None,
        };
        self.document.select(&self.within(scope)?, css, element, MATCHES_MAX)
    }

    fn objects(&self, kind: Option<&str>, path: Option<&JsonPath>, scope: Scope<'d>) -> Vec<&'d Value> {
        let roots = match (scope, kind) {
            (Scope::Page, Some(kind)) => json_ld::of_type(self.blocks, kind),
            (Scope::Page, None) => self.product.into_iter().collect(),
            (Scope::Object(object), _) => vec![object],
            (Scope::Element(_), _) => Vec::new(),
        };
        match path {
            Some(path) => roots.into_iter().flat_map(|root| json_path::at(root, path)).collect(),
            None => roots,
        }
    }

    /// The values of a source before any cleaning.
    fn raw(&self, source: &SourceKind, scope: Scope<'d>) -> Result<Vec<String>, Unreadable> {
        if let SourceKind::JsonLd { kind, path } = source {
            let mut found = Vec::new();
            for value in self.objects(kind.as_deref(), path.as_ref(), scope) {
                json_path::texts(value, &mut found);
            }
            return Ok(found);
        }
        if matches!(scope, Scope::Object(_)) {
            return Ok(Vec::new());
        }
        match source {
            SourceKind::Css { css, attr } => {
                let elements = match (css, scope) {
                    (Some(css), _) => self.select(css, scope)?,
                    (None, Scope::Element(element)) => vec![element],
                    (None, _) => Vec::new(),
                };
                self.each(elements, |element| match attr {
                    Some(attr) => Ok(element.attr(attr).map(str::to_owned)),
                    None => element_text(self.document, element).map(Some),
                })
            }
            SourceKind::Microdata(names) => {
                let elements = self.microdata(names, scope)?;
                self.each(elements, |element| microdata::value(self.document, element).map(Some))
            }
            SourceKind::Meta(name) => {
                let is_named = |element: ElementRef<'d>| {
                    let names = || ["property", "name", "itemprop"].map(|attr| attribute(element, attr));
                    element.value().name() == "meta"
                        && names()
                            .into_iter()
                            .flatten()
                            .any(|written| written.trim().eq_ignore_ascii_case(name))
                };
                let elements = self.document.find(&self.within(scope)?, MATCHES_MAX, is_named)?;
                self.each(elements, |element| Ok(element.attr("content").map(str::to_owned)))
            }
            SourceKind::After { css, text, then } => {
                let element = self.after(scope, css, text, then)?;
                self.each(element.into_iter().collect(), |element| {
                    element_text(self.document, element).map(Some)
                })
            }
            SourceKind::Pattern(pattern) => {
                let item;
                let text = match scope {
                    Scope::Element(element) => {
                        let text = self.document.text(element, Breaks::All, VALUE_BYTES_MAX)?;
                        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                        item = lines.collect::<Vec<_>>().join("\n");
                        item.as_str()
                    }
                    _ => self.text,
                };
                Ok(pattern.find(text).map(str::to_owned).into_iter().collect())
            }
            SourceKind::Count(css) => match self.select(css, scope)?.len() {
                0 => Ok(Vec::new()),
                count => Ok(vec![count.to_string()]),
            },
            SourceKind::JsonLd { .. } => Ok(Vec::new()),
        }
    }

    /// The texts of `elements`, all together at most [`EXTRACTED_BYTES_MAX`]: nested matches repeat each other.
    fn each(
        &self,
        elements: Vec<ElementRef<'d>>,
        read: impl Fn(ElementRef<'d>) -> Result<Option<String>, Unreadable>,
    ) -> Result<Vec<String>, Unreadable> {
        let mut found = Vec::with_capacity(elements.len());
        let mut bytes = 0;
        for element in elements {
            if let Some(text) = read(element)? {
                bytes += text.len();
                found.push(text);
            }
            if bytes > EXTRACTED_BYTES_MAX {
                break;
            }
        }
        Ok(found)
    }

    /// The elements with `itemprop`, one name below the other; in the page's product if it has one.
    fn microdata(&self, names: &[String], scope: Scope<'d>) -> Result<Vec<ElementRef<'d>>, Unreadable> {
        let mut properties = match scope {
            Scope::Page if names.first().is_some_and(|name| GTINS.contains(&name.as_str())) => {
                Cow::Borrowed(self.barcodes)
            }
            Scope::Page => Cow::Borrowed(self.properties),
            _ => Cow::Owned(microdata::of_item(self.document, &self.within(scope)?)?),
        };
        for (depth, name) in names.iter().enumerate() {
            let is_named = |element| microdata::is_named(element, |written| written == name);
            if depth == 0 {
                properties = Cow::Owned(self.document.find(&properties, MATCHES_MAX, is_named)?);
                continue;
            }
            let mut below = Vec::new();
            for property in properties.iter() {
                let inside = self.document.elements(**property)?;
                below.extend(self.document.find(&inside, MATCHES_MAX, is_named)?);
                if below.len() >= MATCHES_MAX {
                    break;
                }
            }
            properties = Cow::Owned(below);
        }
        Ok(properties.into_owned())
    }

    /// The first `then` after the innermost element that matches `css` and says `wanted`.
    fn after(
        &self,
        scope: Scope<'d>,
        css: &Selector,
        wanted: &str,
        then: &Selector,
    ) -> Result<Option<ElementRef<'d>>, Unreadable> {
        let mut heading: Option<ElementRef<'d>> = None;
        let mut target: Option<ElementRef<'d>> = None;
        for element in self.within(scope)?.iter().copied() {
            self.document.clock.step()?;
            let is_inside = |outer: ElementRef<'d>| element.ancestors().any(|above| above.id() == outer.id());
            // Once there is a target outside of the heading's own element, no other heading counts.
            let may_head = heading.is_none_or(is_inside);
            if may_head && css.matches(&element) {
                let text = self.document.text(element, Breaks::Blocks, HEADING_BYTES_MAX)?;
                if text.len() < HEADING_BYTES_MAX && normal(&text).contains(wanted) {
                    heading = Some(element);
                    target = None;
                    continue;
                }
            }
            if heading.is_some() && target.is_none() && then.matches(&element) {
                target = Some(element);
            }
            if target.is_some() && !may_head {
                break;
            }
        }
        Ok(target)
    }
}

/// The barcodes that are the page's own.
struct Barcodes<'d> {
    own: Vec<Gtin>,
    unclear: Vec<Gtin>,
    /// The elements of microdata that say one of `own`.
    elements: Vec<ElementRef<'d>>,
}

impl<'d> Barcodes<'d> {
    /// What JSON-LD says counts alone: it is about one product. Microdata counts if it names one barcode.
    fn among(product: Option<&Value>, written: Vec<(ElementRef<'d>, Gtin)>) -> Self {
        let mut own = Vec::new();
        if let Some(product) = product {
            json_ld::gtins(product, &mut own);
        }
        let mut unclear = Vec::new();
        if own.is_empty() {
            let mut named: Vec<Gtin> = written.iter().map(|(_, gtin)| gtin.clone()).collect();
            forget_repeats(&mut named);
            (own, unclear) = if named.len() == 1 { (named, own) } else { (own, named) };
        }
        forget_repeats(&mut own);
        let elements =
            written.into_iter().filter(|(_, gtin)| own.contains(gtin)).map(|(element, _)| element).collect();
        Self { own, unclear, elements }
    }
}

fn forget_repeats(gtins: &mut Vec<Gtin>) {
    let mut seen = HashSet::new();
    gtins.retain(|gtin| seen.insert(gtin.clone()));
}
