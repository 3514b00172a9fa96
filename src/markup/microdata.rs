//! The microdata of a page, and which of it is about the page's own product.
//!
//! Shops mark the cards of their carousels ("similar products") as products too. What a card says must not be taken for
//! what the page says: that is how the page of another product, which a fuzzy search gave, would come to be "verified".

use scraper::ElementRef;

use super::document::{Breaks, Document, attribute};
use super::json_ld::{GTINS, RELATED, gtin_in};
use super::{Unreadable, VALUE_BYTES_MAX};
use crate::model::Gtin;

/// Barcodes of one page; a long list of results has fewer.
const GTINS_MAX: usize = 200;

/// What a page says in microdata about its own product.
pub(crate) struct Microdata<'d> {
    /// Elements with `itemprop`.
    pub properties: Vec<ElementRef<'d>>,
    /// Those that hold a barcode. Where the page does not tell which product is its own, they are those of all but the
    /// products inside others and the related ones.
    pub gtins: Vec<(ElementRef<'d>, Gtin)>,
}

/// Reads a whole page, whose elements these are.
pub(crate) fn of_page<'d>(
    document: &'d Document<'d>,
    elements: &[ElementRef<'d>],
) -> Result<Microdata<'d>, Unreadable> {
    let products = document.find(elements, usize::MAX, is_product)?;
    let (mut own, mut outermost) = (Vec::new(), Vec::new());
    for product in &products {
        let place = Place::of(document, *product)?;
        if !place.is_related && !is_related(*product) {
            own.push(*product);
            outermost.extend(place.product.is_none().then_some(*product));
        }
    }
    let main = with_heading(document, elements, &own)?;
    let shown = main.or(outermost.first().copied()).or(products.first().copied());
    let mut microdata = Microdata { properties: Vec::new(), gtins: Vec::new() };
    for element in document.find(elements, usize::MAX, |element| attribute(element, "itemprop").is_some())? {
        let Place { product, is_related } = Place::of(document, element)?;
        if product == shown {
            microdata.properties.push(element);
        }
        let may_count = match (main, product) {
            (Some(_), product) => product == main,
            (None, Some(product)) => outermost.contains(&product),
            (None, None) => true,
        };
        if may_count && !is_related && is_gtin(element) && microdata.gtins.len() < GTINS_MAX {
            let gtin = gtin_in(&value(document, element)?);
            microdata.gtins.extend(gtin.map(|gtin| (element, gtin)));
        }
    }
    Ok(microdata)
}

/// The elements with `itemprop` of one item of a page, in its product if it has one.
pub(crate) fn of_item<'d>(
    document: &'d Document<'d>,
    elements: &[ElementRef<'d>],
) -> Result<Vec<ElementRef<'d>>, Unreadable> {
    let is_property = |element| attribute(element, "itemprop").is_some();
    match document.find(elements, 1, is_product)?.first() {
        Some(product) => document.find(&document.elements(**product)?, usize::MAX, is_property),
        None => document.find(elements, usize::MAX, is_property),
    }
}

/// The value of a microdata property.
pub(crate) fn value(document: &Document<'_>, element: ElementRef<'_>) -> Result<String, Unreadable> {
    let attr = match element.value().name() {
        "data" | "meter" => Some("value"),
        "time" => Some("datetime"),
        "img" | "audio" | "video" | "source" | "embed" | "iframe" => Some("src"),
        "link" => Some("href"),
        // The standard takes the address of a link; shops mean its text, but for the properties that are one.
        "a" if matches!(element.attr("itemprop"), Some("url" | "sameAs" | "image" | "item")) => Some("href"),
        _ => None,
    };
    let value = element.attr("content").or_else(|| element.attr(attr?));
    match value {
        Some(value) => Ok(value.to_owned()),
        None => element_text(document, element),
    }
}

/// What an element says to a reader, or holds for a form.
pub(crate) fn element_text(document: &Document<'_>, element: ElementRef<'_>) -> Result<String, Unreadable> {
    match element.value().name() {
        "meta" => Ok(element.attr("content").unwrap_or_default().to_owned()),
        "input" => Ok(element.attr("value").unwrap_or_default().to_owned()),
        _ => document.text(element, Breaks::Blocks, VALUE_BYTES_MAX),
    }
}

/// Whether `itemprop` has this name among its names.
pub(crate) fn is_named(element: ElementRef<'_>, wanted: impl Fn(&str) -> bool) -> bool {
    attribute(element, "itemprop").unwrap_or_default().split_ascii_whitespace().any(wanted)
}

pub(crate) fn is_gtin(element: ElementRef<'_>) -> bool {
    is_named(element, |name| GTINS.contains(&name))
}

fn is_product(element: ElementRef<'_>) -> bool {
    attribute(element, "itemtype").is_some_and(|kind| kind.contains("schema.org/Product"))
}

fn is_related(element: ElementRef<'_>) -> bool {
    is_named(element, |name| RELATED.contains(&name))
}

/// Where an element stands.
struct Place<'d> {
    /// The innermost product around it.
    product: Option<ElementRef<'d>>,
    /// Between that and the element, something is named as another product.
    is_related: bool,
}

impl<'d> Place<'d> {
    fn of(document: &Document<'_>, element: ElementRef<'d>) -> Result<Self, Unreadable> {
        let mut place = Self { product: None, is_related: false };
        for above in element.ancestors().filter_map(ElementRef::wrap) {
            document.clock.step()?;
            if is_product(above) {
                place.product = Some(above);
                break;
            }
            place.is_related |= is_related(above);
        }
        Ok(place)
    }
}

/// The only one of `products` that has a heading of the page inside.
fn with_heading<'d>(
    document: &Document<'_>,
    elements: &[ElementRef<'d>],
    products: &[ElementRef<'d>],
) -> Result<Option<ElementRef<'d>>, Unreadable> {
    let mut main = None;
    for heading in document.find(elements, usize::MAX, |element| element.value().name() == "h1")? {
        let inside = Place::of(document, heading)?.product.filter(|product| products.contains(product));
        if inside.is_some() && main.is_some() && inside != main {
            return Ok(None);
        }
        main = main.or(inside);
    }
    Ok(main)
}
