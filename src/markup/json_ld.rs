//! What a page says for machines: JSON-LD blocks, and the one product they are about.

use serde_json::{Map, Value};

use super::json_path::{VALUES_MAX, texts};
use crate::model::Gtin;
use crate::model::gtin::pad_number;

/// Properties under which a page names other products.
pub(crate) const RELATED: [&str; 9] = [
    "isRelatedTo",
    "isSimilarTo",
    "isAccessoryOrSparePartFor",
    "isConsumableFor",
    "itemListElement",
    "isVariantOf",
    "hasVariant",
    "itemReviewed",
    "hasPart",
];

/// Reads one JSON-LD block; two mends that shops need: comment marks around it, and raw line breaks in texts.
pub(crate) fn parse_block(text: &str) -> Option<Value> {
    let text = text.trim();
    let text = text.strip_prefix("<!--").or_else(|| text.strip_prefix("//<![CDATA[")).unwrap_or(text);
    let text = text.strip_suffix("-->").or_else(|| text.strip_suffix("//]]>")).unwrap_or(text);
    let text = text.trim().trim_end_matches(';');
    serde_json::from_str(text).ok().or_else(|| {
        let mended = text.replace(|c: char| c.is_ascii_control(), " ");
        serde_json::from_str(&mended).ok()
    })
}

fn is_type(object: &Map<String, Value>, wanted: impl Fn(&str) -> bool) -> bool {
    let short = |name: &str| wanted(name.rsplit(['/', '#', ':']).next().unwrap_or(name));
    match object.get("@type") {
        Some(Value::String(name)) => short(name),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(short),
        _ => false,
    }
}

fn is_product(name: &str) -> bool {
    matches!(
        name,
        "Product" | "ProductGroup" | "ProductModel" | "IndividualProduct" | "Drug" | "DietarySupplement"
    )
}

/// The product that the page is about: not one that it recommends.
pub(crate) fn product(blocks: &[Value]) -> Option<&Value> {
    let mut products = Vec::new();
    for block in blocks {
        collect(block, false, &mut products);
    }
    let own = |full: bool| {
        products
            .iter()
            .find(|(value, is_related)| !is_related && (!full || is_offered(value)))
            .map(|(value, _)| *value)
    };
    let only = || match products.as_slice() {
        [(value, _)] => Some(*value),
        _ => None,
    };
    own(true).or_else(|| own(false)).or_else(only)
}

fn is_offered(product: &Value) -> bool {
    product.get("offers").is_some() || GTINS.iter().any(|key| product.get(key).is_some())
}

fn collect<'v>(value: &'v Value, is_related: bool, products: &mut Vec<(&'v Value, bool)>) {
    if products.len() >= VALUES_MAX {
        return;
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, is_related, products)),
        Value::Object(object) => {
            if is_type(object, is_product) {
                products.push((value, is_related));
            }
            for (key, inner) in object {
                collect(inner, is_related || RELATED.contains(&key.as_str()), products);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// All objects of a type, in the order of the page.
pub(crate) fn of_type<'v>(blocks: &'v [Value], kind: &str) -> Vec<&'v Value> {
    fn walk<'v>(value: &'v Value, kind: &str, found: &mut Vec<&'v Value>) {
        if found.len() >= VALUES_MAX {
            return;
        }
        match value {
            Value::Array(items) => items.iter().for_each(|item| walk(item, kind, found)),
            Value::Object(object) => {
                if is_type(object, |name| name.eq_ignore_ascii_case(kind)) {
                    found.push(value);
                }
                object.values().for_each(|inner| walk(inner, kind, found));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut found = Vec::new();
    blocks.iter().for_each(|block| walk(block, kind, &mut found));
    found
}

/// The names that shops write barcodes under; `ean` is no word of schema.org but common.
pub(crate) const GTINS: [&str; 6] = ["gtin", "gtin8", "gtin12", "gtin13", "gtin14", "ean"];

/// The barcodes of a product: its own, its variants', its offers'.
pub(crate) fn gtins(product: &Value, found: &mut Vec<Gtin>) {
    let Value::Object(object) = product else {
        if let Value::Array(items) = product {
            items.iter().for_each(|item| gtins(item, found));
        }
        return;
    };
    for key in GTINS {
        match object.get(key) {
            // A number has lost its zeros.
            Some(Value::Number(number)) => {
                let whole = number
                    .as_u64()
                    .or_else(|| number.as_f64().filter(|f| *f > 0.0 && f.fract() == 0.0).map(|f| f as u64));
                found.extend(whole.and_then(|whole| Gtin::parse(&pad_number(whole)).ok()));
            }
            Some(value) => {
                let mut written = Vec::new();
                texts(value, &mut written);
                found.extend(written.iter().filter_map(|text| gtin_in(text)));
            }
            None => {}
        }
    }
    for key in ["hasVariant", "offers", "itemOffered"] {
        if let Some(inner) = object.get(key).filter(|_| found.len() < VALUES_MAX) {
            gtins(inner, found);
        }
    }
}

/// The barcode in a text such as "EAN : 3701129820322". One number of 8 digits in ten looks like a GTIN-8, so longer
/// ones are preferred.
pub(crate) fn gtin_in(text: &str) -> Option<Gtin> {
    Gtin::parse(text).ok().or_else(|| {
        let runs = || text.split(|c: char| !c.is_ascii_digit()).filter_map(|run| Gtin::parse(run).ok());
        runs().find(|gtin| gtin.as_str().len() > 8).or_else(|| runs().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_not_one_that_is_recommended() {
        let block = |json: &str| vec![serde_json::from_str::<Value>(json).unwrap()];
        let name =
            |blocks: &[Value]| product(blocks).map(|product| product["name"].as_str().unwrap().to_owned());
        let graph = block(
            r#"{"@graph": [{"@type": "WebPage", "isRelatedTo": {"@type": "Product", "name": "no", "offers": {}}},
            {"@type": "ItemPage", "mainEntity": {"@type": ["Thing", "http://schema.org/Product"], "name": "yes", "offers": {}}}]}"#,
        );
        assert_eq!(name(&graph).as_deref(), Some("yes"));
        let list = r#"{"@type": "ItemList", "itemListElement": [{"@type": "Product", "name": "a"}, {"@type": "Product", "name": "b"}]}"#;
        assert_eq!(name(&block(list)), None);
        let bare = block(
            r#"[[{"@type": "Product", "name": "a"}, {"@type": "Product", "name": "b", "gtin13": "3701129820322"}]]"#,
        );
        assert_eq!(name(&bare).as_deref(), Some("b"));
    }

    #[test]
    fn barcodes_are_found_in_every_notation() {
        let gtins_of = |json: &str| {
            let mut found = Vec::new();
            gtins(&serde_json::from_str(json).unwrap(), &mut found);
            found.iter().map(Gtin::to_gtin14).collect::<Vec<_>>()
        };
        assert_eq!(gtins_of(r#"{"gtin13": 748322148474}"#), ["00748322148474"]);
        assert_eq!(gtins_of(r#"{"gtin": 748322148474.0}"#), ["00748322148474"]);
        assert_eq!(gtins_of(r#"{"ean": "EAN: 0748322148474"}"#), ["00748322148474"]);
        assert_eq!(
            gtins_of(r#"{"gtin13": ["x", "3701129820322"], "offers": [{"gtin14": "00748322148474"}]}"#).len(),
            2
        );
        assert!(gtins_of(r#"{"gtin13": "3701129820323", "gtin": -1, "ean": null}"#).is_empty());
    }

    #[test]
    fn a_barcode_is_preferred_to_a_number_that_looks_like_one() {
        let found = |text| gtin_in(text).map(|gtin| gtin.to_string());
        assert_eq!(found("Réf. 12345670 EAN 3701129820322").as_deref(), Some("3701129820322"));
        assert_eq!(found("12345670").as_deref(), Some("12345670"));
        assert_eq!(found("n° 37011298203221"), None);
    }

    #[test]
    fn blocks_are_mended_a_little() {
        assert!(parse_block("<!--\n{\"a\": \"b\nc\"}\n-->").is_some());
        assert!(parse_block("//<![CDATA[\n{\"a\": 1};\n//]]>").is_some());
        assert!(parse_block("{a: 1}").is_none());
        assert!(parse_block(&"[".repeat(1_000_000)).is_none());
    }
}
