//! Forms and query strings: `a=1&b=%C3%A9`.

/// The pairs of a form or a query, decoded. What is broken is kept as it is.
pub(crate) fn pairs(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

/// The first value of `name`.
pub(crate) fn value(text: &str, name: &str) -> Option<String> {
    pairs(text).into_iter().find(|(other, _)| other == name).map(|(_, value)| value)
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let escaped = (byte == b'%').then(|| rest.get(..2)).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(value) => {
                bytes.push(value);
                rest = &rest[2..];
            }
            None => bytes.push(if byte == b'+' { b' ' } else { byte }),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn pairs_are_decoded_and_rubbish_is_kept() {
        let text = "searchCriteria%5Bvalue%5D=074&b=a+b%C3%A9&c&d=%zz%";
        let expected = [("searchCriteria[value]", "074"), ("b", "a bé"), ("c", ""), ("d", "%zz%")];
        assert_eq!(super::pairs(text), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
