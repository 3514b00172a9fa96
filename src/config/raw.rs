//! TOML text → a tree that knows where each thing was written, and the merge of two such trees.
//!
//! The user's file is laid over the compiled-in one, so a value may come from either; every node carries its
//! [`At`], and a problem is always reported where the person who reads it can mend it.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// A place in one of the merged texts: which, and the byte offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub text: usize,
    pub offset: usize,
}

/// A value and where it begins.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub at: At,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    /// Floats and integers beyond 64 bits: no key takes either.
    Number,
    Bool(bool),
    Date,
    List(Vec<Node>),
    Table(Table),
}

/// Entries in the order of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table(pub Vec<Entry>);

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: String,
    pub key_at: At,
    pub node: Node,
}

impl Value {
    /// What a person calls this type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integer(_) => "integer",
            Self::Number => "number",
            Self::Bool(_) => "boolean",
            Self::Date => "date",
            Self::List(_) => "list",
            Self::Table(_) => "table",
        }
    }
}

impl Table {
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.key == key)
    }
}

/// A syntax error: its place in the text and the parser's words.
pub(crate) type SyntaxError = (usize, String);

/// Parses `text`; what could be read in spite of syntax errors is there as well.
pub(crate) fn parse(text: &str, index: usize) -> (Node, Vec<SyntaxError>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let errors = errors
        .iter()
        .map(|error| (error.span().map_or(0, |span| span.start), one_line(error.message())))
        .collect();
    let Range { start, .. } = table.span();
    let at = At { text: index, offset: start };
    (Node { at, value: Value::Table(convert_table(table.get_ref(), index)) }, errors)
}

fn convert_table(table: &DeTable<'_>, index: usize) -> Table {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            key_at: At { text: index, offset: key.span().start },
            node: Node {
                at: At { text: index, offset: value.span().start },
                value: convert(value.get_ref(), index),
            },
        })
        .collect();
    // The parser's map is sorted by name; people wrote the shops in an order that they expect to see again.
    entries.sort_by_key(|entry| entry.key_at);
    Table(entries)
}

fn convert(value: &DeValue<'_>, index: usize) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(integer) => Value::Integer(integer),
            Err(_) => Value::Number,
        },
        DeValue::Float(_) => Value::Number,
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(_) => Value::Date,
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|item| Node {
                    at: At { text: index, offset: item.span().start },
                    value: convert(item.get_ref(), index),
                })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(convert_table(table, index)),
    }
}

/// Lays `over` on `base`. Tables at a path that `is_merged` accepts merge key by key; all else is replaced whole.
///
/// Keys keep the order of `base`, new ones follow; but the shops that `over` names come first and in its order.
pub(crate) fn merge(
    base: Node,
    over: Node,
    path: &mut Vec<String>,
    is_merged: fn(&[String]) -> bool,
) -> Node {
    let (below, above) = match (base.value, over.value) {
        (Value::Table(below), Value::Table(above)) if is_merged(path) => (below.0, above.0),
        (_, value) => return Node { at: over.at, value },
    };
    let (mut first, mut rest) = if *path == ["sites"] { (Vec::new(), below) } else { (below, Vec::new()) };
    for entry in above {
        let in_first = first.iter().position(|known: &Entry| known.key == entry.key);
        let known = match in_first {
            Some(index) => Some(std::mem::replace(&mut first[index], entry.clone())),
            None => rest.iter().position(|known| known.key == entry.key).map(|index| rest.remove(index)),
        };
        let node = match known {
            Some(known) => {
                path.push(entry.key.clone());
                let node = merge(known.node, entry.node, path, is_merged);
                path.pop();
                node
            }
            None => entry.node,
        };
        let merged = Entry { key: entry.key, key_at: entry.key_at, node };
        match in_first {
            Some(index) => first[index] = merged,
            None => first.push(merged),
        }
    }
    first.append(&mut rest);
    Node { at: over.at, value: Value::Table(Table(first)) }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(node: &Node) -> Vec<&str> {
        let Value::Table(table) = &node.value else { panic!("a table") };
        table.0.iter().map(|entry| entry.key.as_str()).collect()
    }

    #[test]
    fn order_is_that_of_the_text() {
        let (node, errors) = parse("z = 1\na = 2\n[m]\n[b]\n", 0);
        assert_eq!((keys(&node), errors.len()), (vec!["z", "a", "m", "b"], 0));
    }

    #[test]
    fn the_upper_text_wins_and_only_its_shops_come_first() {
        let merged = |section: &str| {
            let (base, _) = parse(&format!("[{section}]\na = 1\nb = 2\n"), 0);
            let (over, _) = parse(&format!("[{section}]\nc = 3\nb = 4\n"), 1);
            let merged = merge(base, over, &mut Vec::new(), |path| path.len() <= 1);
            let Value::Table(table) = merged.value else { panic!("a table") };
            table.get(section).unwrap().node.clone()
        };
        assert_eq!(keys(&merged("sites")), ["c", "b", "a"]);
        let section = merged("server");
        assert_eq!(keys(&section), ["a", "b", "c"]);
        let Value::Table(section) = &section.value else { panic!("a table") };
        assert!(matches!(section.get("b").unwrap().node.value, Value::Integer(4)));
    }
}
