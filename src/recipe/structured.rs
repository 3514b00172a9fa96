//! What a page says for machines: JSON-LD blocks, and the one product they are about.

use serde_json::{Map, Value};

use super::syntax::{JsonPath, Step};
use crate::model::Gtin;
use crate::model::gtin::pad_number;

/// Values that one path may give.
const VALUES_MAX: usize = 500;

/// Properties under which a page names other products.
pub(super) const RELATED: [&str; 9] = [
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
pub(super) fn parse_block(text: &str) -> Option<Value> {
    let text = text.trim();
    let text = text.strip_prefix("<!--").or_else(|| text.strip_prefix("//<![CDATA[")).unwrap_or(text);
    let text = text.strip_suffix("-->").or_else(|| text.strip_suffix("//]]>")).unwrap_or(text);
    let text = text.trim().trim_end_matches(';');
    serde_json::from_str(text).ok().or_else(|| {
        let mended = text.replace(|c: char| c.is_ascii_control(), " ");
        serde_json::from_str(&mended).ok()
    })
}

/// Everything below `path`. Lists are transparent: `offers.price` also finds the prices of a list of offers.
pub(super) fn at<'v>(value: &'v Value, path: &JsonPath) -> Vec<&'v Value> {
    let mut found = vec![value];
    for step in &path.0 {
        let mut next = Vec::new();
        for value in found {
            down(value, step, &mut next);
        }
        found = next;
        if found.is_empty() {
            break;
        }
    }
    found
}

fn down<'v>(value: &'v Value, step: &Step, found: &mut Vec<&'v Value>) {
    if found.len() >= VALUES_MAX {
        return;
    }
    match (value, step) {
        (Value::Object(object), Step::Name(name)) => found.extend(object.get(name)),
        (Value::Object(object), Step::Any(prefix)) => {
            let room = VALUES_MAX - found.len();
            found.extend(
                object.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(_, value)| value).take(room),
            );
        }
        (Value::Array(items), Step::Any(prefix)) if prefix.is_empty() => {
            found.extend(items.iter().take(VALUES_MAX - found.len()));
        }
        (Value::Array(items), Step::Name(name)) if name.bytes().all(|b| b.is_ascii_digit()) => {
            found.extend(name.parse::<usize>().ok().and_then(|index| items.get(index)));
        }
        // The depth of what serde_json parses is limited, and so is this.
        (Value::Array(items), _) => items.iter().for_each(|item| down(item, step, found)),
        (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_), _) => {}
    }
}

/// The texts in `value`: itself, those of a list, the name of an object.
pub(super) fn texts(value: &Value, found: &mut Vec<String>) {
    if found.len() >= VALUES_MAX {
        return;
    }
    match value {
        Value::Null => {}
        Value::Bool(flag) => found.push(flag.to_string()),
        Value::Number(number) => {
            let text = number.to_string();
            found.push(text.strip_suffix(".0").map_or(text.clone(), str::to_owned));
        }
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(object) => {
            if let Some(value) =
                ["@value", "name", "url", "contentUrl"].iter().find_map(|key| object.get(*key))
            {
                texts(value, found);
            }
        }
    }
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
pub(super) fn product(blocks: &[Value]) -> Option<&Value> {
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
pub(super) fn of_type<'v>(blocks: &'v [Value], kind: &str) -> Vec<&'v Value> {
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
pub(super) const GTINS: [&str; 6] = ["gtin", "gtin8", "gtin12", "gtin13", "gtin14", "ean"];

/// The barcodes of a product: its own, its variants', its offers'.
pub(super) fn gtins(product: &Value, found: &mut Vec<Gtin>) {
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
pub(super) fn gtin_in(text: &str) -> Option<Gtin> {
    Gtin::parse(text).ok().or_else(|| {
        let runs = || text.split(|c: char| !c.is_ascii_digit()).filter_map(|run| Gtin::parse(run).ok());
        runs().find(|gtin| gtin.as_str().len() > 8).or_else(|| runs().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str, path: &str) -> Vec<String> {
        let value: Value = serde_json::from_str(json).unwrap();
        let mut found = Vec::new();
        for value in at(&value, &JsonPath::parse(path).unwrap()) {
            texts(value, &mut found);
        }
        found
    }

    #[test]
    fn paths_go_down_through_lists_and_unknown_names() {
        assert_eq!(found(r#"{"offers": [{"price": 1.5}, {"price": "2"}]}"#, "offers.price"), ["1.5", "2"]);
        assert_eq!(found(r#"{"offers": [{"price": 1.5}, {"price": "2"}]}"#, "offers.1.price"), ["2"]);
        let shop = r#"{"length": 2, "variant_9": {"href": "/b"}, "variant_1": {"href": "/a"}, "other": {"href": "/c"}}"#;
        assert_eq!(found(shop, "variant_*.href"), ["/b", "/a"]);
        assert_eq!(found(shop, "*.href"), ["/b", "/a", "/c"]);
        assert_eq!(found(r#"{"results": [{"link": "a"}, {"link": null}, 3]}"#, "results.*.link"), ["a"]);
        assert!(found("[[[1]]]", "a.b").is_empty());
        assert_eq!(found(r#"{"brand": {"@type": "Brand", "name": "X"}, "n": 2.0}"#, "brand"), ["X"]);
    }

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
