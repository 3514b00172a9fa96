//! The structure of the three shops as it was observed in October 2025: how each is searched, and how its pages look.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{Catalogue, catalogue::Product};
use crate::form;

/// Which shop's structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ShopKind {
    /// Searched by a form, answers HTML inside JSON.
    Cocooncenter,
    /// Searched by GET, answers a JSON object with a key per variant.
    Pharmagdd,
    /// Searched by a JSON service that often returns another product first.
    Drakkars,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A search.
    Search,
    /// The page of a product.
    Page,
    /// `/robots.txt`.
    Robots,
    /// Anything else.
    Other,
}

/// A request as far as a shop's structure is concerned.
pub(super) struct Ask<'a> {
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) body: &'a str,
}

/// An answer before any misbehaviour.
pub(super) struct Document {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) text: String,
}

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

impl ShopKind {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Cocooncenter, Self::Pharmagdd, Self::Drakkars];

    /// Its name in the daemon's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cocooncenter => "cocooncenter",
            Self::Pharmagdd => "pharmagdd",
            Self::Drakkars => "drakkars",
        }
    }

    /// The path of its search.
    pub fn search_path(self) -> &'static str {
        match self {
            Self::Cocooncenter => "/index/search/searchVue",
            Self::Pharmagdd => "/fr/search/autocomplete",
            Self::Drakkars => "/5/search",
        }
    }

    /// The path of a product's page; ends with its barcode (and `.html`, where the shop does).
    pub fn page_path(self, product: &Product) -> String {
        match self {
            Self::Cocooncenter | Self::Drakkars => format!("/{}.html", product.slug()),
            Self::Pharmagdd => format!("/fr/{}", product.slug()),
        }
    }

    pub(super) fn purpose(self, path: &str) -> Purpose {
        if path == self.search_path() {
            Purpose::Search
        } else if path == "/robots.txt" {
            Purpose::Robots
        } else if page_ean(path).is_some() {
            Purpose::Page
        } else {
            Purpose::Other
        }
    }

    /// The barcode a request asks for: of the search, or of the page.
    pub(super) fn ean(self, ask: &Ask<'_>) -> Option<String> {
        match (self.purpose(ask.path), self) {
            (Purpose::Search, Self::Cocooncenter) => form::value(ask.body, "recherche"),
            (Purpose::Search, Self::Pharmagdd) => form::value(ask.query, "s"),
            (Purpose::Search, Self::Drakkars) => form::value(ask.query, "query"),
            (Purpose::Page | Purpose::Robots | Purpose::Other, _) => page_ean(ask.path).map(str::to_owned),
        }
    }

    /// The answer of a search that found `products`. `host` is how the client called this shop.
    pub(super) fn search_answer(self, products: &[&Product], host: &str) -> Document {
        let value = match self {
            Self::Cocooncenter => cocooncenter_search(products),
            Self::Pharmagdd => pharmagdd_search(products),
            Self::Drakkars => drakkars_search(products, host),
        };
        Document { status: 200, content_type: JSON, text: value.to_string() }
    }

    /// The page of a product.
    pub(super) fn page(self, product: &Product) -> Document {
        let (head, body) = match self {
            Self::Cocooncenter => cocooncenter_page(product),
            Self::Pharmagdd => pharmagdd_page(product),
            Self::Drakkars => drakkars_page(product),
        };
        html(200, &product.name, &head, &body)
    }
}

/// A page of the shop that is no product: the home page, or "not found".
pub(super) fn other_page(status: u16, title: &str) -> Document {
    html(status, title, "", "<nav><a href=\"/c/soins.html\">Soins</a></nav><p>Bienvenue.</p>")
}

/// What the catalogue has for the barcode in a page's path.
pub(super) fn product_at<'a>(catalogue: &'a Catalogue, path: &str) -> Option<&'a Product> {
    catalogue.product(page_ean(path)?)
}

fn page_ean(path: &str) -> Option<&str> {
    let stem = path.strip_suffix(".html").unwrap_or(path);
    let ean = stem.rsplit('-').next()?;
    (ean.len() >= 8 && ean.bytes().all(|byte| byte.is_ascii_digit())).then_some(ean)
}

fn html(status: u16, title: &str, head: &str, body: &str) -> Document {
    let title = escaped(title);
    let text = format!(
        "<!DOCTYPE html>\n<html lang=\"fr\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n{head}</head>\n\
         <body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
    );
    Document { status, content_type: HTML, text }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A JSON-LD block; `<` is written so that no text in it can end the block.
fn json_ld(value: &Value) -> String {
    format!("<script type=\"application/ld+json\">{}</script>\n", value.to_string().replace('<', "\\u003c"))
}

/// `14,90 €`, as French shops write it, with a no-break space.
fn price_text(product: &Product, kind: ShopKind) -> String {
    format!("{}\u{a0}€", product.price_at(kind).replace('.', ","))
}

fn cocooncenter_search(products: &[&Product]) -> Value {
    let mut vue = String::from("<div class=\"resultats\"><a href=\"/c/visage.html\">Visage</a>");
    for product in products {
        let (path, name) = (ShopKind::Cocooncenter.page_path(product), escaped(&product.name));
        // Writing to a `String` cannot fail; so in all of this file.
        let _ = write!(vue, "<div class=\"produit\"><a href=\"{path}\">{name}</a></div>");
    }
    vue.push_str("</div>");
    json!({"nb_total": products.len(), "vue": vue})
}

fn cocooncenter_page(product: &Product) -> (String, String) {
    let kind = ShopKind::Cocooncenter;
    let head = json_ld(&json!({
        "@context": "https://schema.org", "@type": "Product", "name": product.name,
        "brand": {"@type": "Brand", "name": product.brand},
        "offers": {"@type": "Offer", "price": product.price_at(kind), "priceCurrency": "EUR"},
    }));
    let mut body = format!(
        "<div>Code : <span itemprop=\"gtin13\">{ean}</span></div>\n\
         <div itemprop=\"description\"><p>{description}</p><p>Contenance : {size}.</p></div>\n\
         <div class=\"longcompo\"><p>{composition}</p></div>\n\
         <div id=\"type_info_prio_6_1\"><p>{advice}</p></div>\n<div id=\"bvseo-reviewsSection\">\n",
        ean = product.ean,
        description = escaped(&product.description),
        size = product.size,
        composition = escaped(&product.composition),
        advice = escaped(&product.advice),
    );
    if let Some(rating) = product.rating() {
        let count = product.reviews.len();
        let _ = writeln!(
            body,
            "<span class=\"bvseo-ratingValue\">{rating}</span> sur <span class=\"bvseo-reviewCount\">{count}</span> avis"
        );
    }
    for review in &product.reviews {
        let _ = writeln!(
            body,
            "<div class=\"bvseo-review\"><span itemprop=\"ratingValue\">{}</span><span itemprop=\"name\">{}</span>\
             <span itemprop=\"name\">{}</span><span itemprop=\"description\">{}</span></div>",
            review.stars,
            escaped(&review.author),
            escaped(&review.title),
            escaped(&review.text),
        );
    }
    body.push_str("</div>\n");
    (head, body)
}

fn pharmagdd_search(products: &[&Product]) -> Value {
    let mut answer = serde_json::Map::new();
    answer.insert("length".to_owned(), products.len().into());
    for (number, product) in products.iter().enumerate() {
        let path = ShopKind::Pharmagdd.page_path(product);
        answer.insert(format!("variant_{}", 4_100 + number), json!({"href": path, "label": product.name}));
    }
    Value::Object(answer)
}

fn pharmagdd_page(product: &Product) -> (String, String) {
    let mut data = json!({
        "@context": "https://schema.org", "@type": "Product",
        "name": product.name, "description": product.description,
    });
    if let Some(rating) = product.rating() {
        let count = product.reviews.len();
        data["aggregateRating"] =
            json!({"@type": "AggregateRating", "ratingValue": rating, "reviewCount": count});
    }
    let mut body = format!(
        "<a class=\"brand\" href=\"/fr/marque\">{brand}</a>\n<span data-js-product-price>{price}</span>\n\
         <dl><dt>Référence</dt><dd data-js-product-reference>{ean}</dd>\
         <dt>Code</dt><dd data-js-custom-code>GDD{code}</dd></dl>\n\
         <section id=\"Composition\"><div class=\"text\">{composition}</div></section>\n\
         <section id=\"usages\"><div class=\"text\">{advice}</div></section>\n",
        brand = escaped(&product.brand),
        price = price_text(product, ShopKind::Pharmagdd),
        ean = product.ean,
        code = product.price_cents,
        composition = escaped(&product.composition),
        advice = escaped(&product.advice),
    );
    for review in &product.reviews {
        let stars = "<i data-icon=\"star\"></i>".repeat(review.stars.into());
        let _ = writeln!(
            body,
            "<div class=\"flip-card\">{stars}<p>{}</p><span class=\"date\">{}</span><span>par {}</span></div>",
            escaped(&review.text),
            review.date,
            escaped(&review.author),
        );
    }
    (json_ld(&data), body)
}

fn drakkars_search(products: &[&Product], host: &str) -> Value {
    let link = |product| format!("http://{host}{}?dfd_layer=1", ShopKind::Drakkars.page_path(product));
    let results: Vec<Value> =
        products.iter().map(|product| json!({"link": link(product), "title": product.name})).collect();
    json!({"page": 1, "total": results.len(), "results": results})
}

fn drakkars_page(product: &Product) -> (String, String) {
    let review = product.reviews.first().map(|review| {
        json!({
            "@type": "Review", "author": {"@type": "Person", "name": review.author},
            "reviewRating": {"@type": "Rating", "ratingValue": review.stars}, "reviewBody": review.text,
        })
    });
    let data = json!({
        "@context": "https://schema.org", "@type": "Product", "name": product.name,
        "sku": product.ean, "review": review,
    });
    let liked = product.reviews.iter().filter(|review| review.stars >= 4).count() * 100;
    let percent = liked.checked_div(product.reviews.len()).unwrap_or_default();
    let body = format!(
        "<span id=\"product_reference\">{ean}</span>\n\
         <div class=\"pdt-detail-price\"><strong>{price}</strong></div>\n\
         <article class=\"desc-longue\"><p>{description}</p></article>\n\
         <div id=\"upcomposition\">{composition}</div>\n\
         <span class=\"fa-4x text-bold has-color-theme\">{percent}%</span> recommandent ce produit\n\
         <h2>Avis du pharmacien</h2>\n<p>{advice}</p>\n",
        ean = product.ean,
        price = price_text(product, ShopKind::Drakkars),
        description = escaped(&product.description),
        composition = escaped(&product.composition),
        advice = escaped(&product.advice),
    );
    (json_ld(&data), body)
}
