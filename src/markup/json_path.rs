//! Ways down a JSON value, and the texts at their ends.

use serde_json::Value;

/// Values that one path may give.
pub(crate) const VALUES_MAX: usize = 500;

/// A way down a JSON value: `items.0.name`, `variant_*.href`, `results.*.link`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// A key, or an index if it is a number and the value a list.
    Name(String),
    /// Any key or index whose name begins so; empty is any.
    Any(String),
}

impl JsonPath {
    /// No step: the value itself.
    pub fn whole() -> Self {
        Self(Vec::new())
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        for part in text.split('.') {
            steps.push(match part.split_once('*') {
                None if part.is_empty() => return Err(format!("\"{text}\" has an empty step")),
                None => Step::Name(part.to_owned()),
                Some((prefix, "")) => Step::Any(prefix.to_owned()),
                Some(_) => return Err(format!("\"{text}\": `*` can only end a step, as in variant_*")),
            });
        }
        Ok(Self(steps))
    }

    /// The texts there: itself, those of a list, the name of an object; numbers as they are written.
    pub fn texts(&self, value: &Value) -> Vec<String> {
        let mut found = Vec::new();
        for value in at(value, self) {
            texts(value, &mut found);
        }
        found
    }
}

/// Everything below `path`. Lists are transparent: `offers.price` also finds the prices of a list of offers.
pub(crate) fn at<'v>(value: &'v Value, path: &JsonPath) -> Vec<&'v Value> {
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
pub(crate) fn texts(value: &Value, found: &mut Vec<String>) {
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
}
