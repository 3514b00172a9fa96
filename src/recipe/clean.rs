//! What is made of raw values: text, prices, ratings. Each cleaning maps all values of a source and drops what has none.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use super::syntax::Cleaning;

/// Who wrote a value. For machines a point is a decimal mark ("224.904"); for people it may group thousands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WrittenFor {
    People,
    Machines,
}

/// Applies `cleanings` in order; the first value that is left, trimmed.
pub(super) fn apply(
    cleanings: &[Cleaning],
    mut values: Vec<String>,
    written_for: WrittenFor,
) -> Option<String> {
    for cleaning in cleanings {
        values = step(cleaning, values, written_for);
        values.retain(|value| !value.trim().is_empty());
    }
    values.into_iter().map(|value| value.trim().to_owned()).find(|value| !value.is_empty())
}

fn step(cleaning: &Cleaning, values: Vec<String>, written_for: WrittenFor) -> Vec<String> {
    let each =
        |clean: &dyn Fn(&str) -> Option<String>| values.iter().filter_map(|value| clean(value)).collect();
    match cleaning {
        Cleaning::Text => each(&|value| Some(text(value))),
        Cleaning::First => values.into_iter().take(1).collect(),
        Cleaning::Nth(n) => values.into_iter().skip(n - 1).take(1).collect(),
        Cleaning::Join(separator) => vec![values.join(separator)], // Of none: an empty text, dropped like any other.,
        Cleaning::Prefix(prefix) => each(&|value| {
            let value = value.trim_start();
            Some(value.strip_prefix(prefix.as_str()).unwrap_or(value).to_owned())
        }),
        Cleaning::Suffix(suffix) => each(&|value| {
            let value = value.trim_end();
            Some(value.strip_suffix(suffix.as_str()).unwrap_or(value).to_owned())
        }),
        Cleaning::Pattern(pattern) => each(&|value| pattern.find(value).map(str::to_owned)),
        Cleaning::Price { sign } => each(&|value| price(&plain(value, written_for), sign)),
        Cleaning::Number => each(&|value| number(&plain(value, written_for))),
        Cleaning::Rating { max } => each(&|value| rating(value, max)),
    }
}

static TAG: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"<[a-zA-Z/!][^<>]*>").expect("a pattern"));
static ENTITY: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]{2,8});").expect("a pattern"));

/// One line of plain text: shops put HTML into their JSON-LD.
fn text(value: &str) -> String {
    let bare = TAG.replace_all(value, " ");
    let decoded = ENTITY.replace_all(&bare, |found: &regex::Captures<'_>| {
        entity(&found[1]).unwrap_or_else(|| found[0].to_owned())
    });
    // Zero-width and no-break spaces are spaces to a reader.
    let space = |c: char| c.is_whitespace() || matches!(c, '\u{200b}' | '\u{feff}' | '\0');
    decoded.split(space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn entity(name: &str) -> Option<String> {
    if let Some(number) = name.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok()?,
            None => number.parse().ok()?,
        };
        return char::from_u32(code).map(String::from);
    }
    const NAMED: [(&str, &str); 24] = [
        ("amp", "&"),
        ("lt", "<"),
        ("gt", ">"),
        ("quot", "\""),
        ("apos", "'"),
        ("nbsp", " "),
        ("eacute", "é"),
        ("egrave", "è"),
        ("ecirc", "ê"),
        ("agrave", "à"),
        ("acirc", "â"),
        ("ccedil", "ç"),
        ("icirc", "î"),
        ("iuml", "ï"),
        ("ocirc", "ô"),
        ("ucirc", "û"),
        ("ugrave", "ù"),
        ("oelig", "œ"),
        ("euro", "€"),
        ("rsquo", "’"),
        ("laquo", "«"),
        ("raquo", "»"),
        ("deg", "°"),
        ("reg", "®"),
    ];
    NAMED.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
}

/// An amount, thousands grouped or not, with or without decimals.
const AMOUNT: &str = r"(?:\d{1,3}(?:[ .,'\x{a0}\x{202f}\x{2009}]\d{3})+(?:[.,]\d{1,2})?\b|\d+(?:[.,]\d+)?)";
static AMOUNTS: LazyLock<Regex> = LazyLock::new(|| Regex::new(AMOUNT).expect("a pattern"));
static SPLIT_AMOUNT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(\d{1,6}) ?(€|EUR)(\d{2})(?:\D|$)").expect("a pattern"));

const SIGNS: [(&str, &str); 9] = [
    ("€", "€"),
    ("EUR", "€"),
    ("$", "$"),
    ("USD", "$"),
    ("£", "£"),
    ("GBP", "£"),
    ("CHF", "CHF"),
    ("kr", "kr"),
    ("zł", "zł"),
];

/// "à partir de 1 234,5 €" → "1234.50€". The amount beside a currency is the price; else the first amount is.
fn price(value: &str, default_sign: &str) -> Option<String> {
    if let Some(found) = SPLIT_AMOUNT.captures(value) {
        return Some(format!("{}.{}€", significant(&found[1]), &found[3]));
    }
    let mut first = None;
    for found in AMOUNTS.find_iter(value) {
        let (before, after) = (value[..found.start()].trim_end(), value[found.end()..].trim_start());
        if after.starts_with('%') {
            continue;
        }
        let Some(amount) = cents(found.as_str()) else { continue };
        let beside = SIGNS.iter().find(|(sign, _)| after.starts_with(sign) || before.ends_with(sign));
        if let Some((_, sign)) = beside {
            return Some(format!("{amount}{sign}"));
        }
        first = first.or(Some(amount));
    }
    first.map(|amount| format!("{amount}{default_sign}"))
}

/// Keeps a machine's three decimals from being read as thousands, by a fourth.
fn plain(value: &str, written_for: WrittenFor) -> Cow<'_, str> {
    let is_decimal = |value: &str| {
        value.split_once('.').is_some_and(|(whole, decimals)| {
            decimals.len() == 3
                && [whole, decimals].iter().all(|part| part.bytes().all(|b| b.is_ascii_digit()))
        })
    };
    match written_for {
        WrittenFor::Machines if is_decimal(value.trim()) => Cow::Owned(format!("{}0", value.trim())),
        WrittenFor::Machines | WrittenFor::People => Cow::Borrowed(value),
    }
}

/// The two parts of an amount: digits before and after the decimal mark.
fn parts(amount: &str) -> Option<(String, String)> {
    let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
    let last = amount.rfind(['.', ',']);
    // Three digits after the last mark are thousands: "1.234" is no price of three decimals.
    let (whole, decimals) = match last {
        Some(at) if amount.len() - at - 1 != 3 || amount.starts_with('0') => {
            (&amount[..at], &amount[at + 1..])
        }
        _ => (amount, ""),
    };
    let whole = digits(whole);
    (whole.len() <= 12 && decimals.len() <= 12).then(|| (significant(&whole).to_owned(), decimals.to_owned()))
}

fn cents(amount: &str) -> Option<String> {
    let (whole, decimals) = parts(amount)?;
    match decimals.len() {
        0..=2 => Some(format!("{whole}.{decimals:0<2}")),
        _ => format!("{whole}.{decimals}").parse::<f64>().ok().map(|amount| format!("{amount:.2}")),
    }
}

fn significant(digits: &str) -> &str {
    match digits.trim_start_matches('0') {
        "" => "0",
        rest => rest,
    }
}

/// "1 234,50 avis" → "1234.5".
fn number(value: &str) -> Option<String> {
    let (whole, decimals) = parts(AMOUNTS.find(value)?.as_str())?;
    Some(match decimals.trim_end_matches('0') {
        "" => whole,
        decimals => format!("{whole}.{decimals}"),
    })
}

static RATING: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)(\d{1,4}(?:[.,]\d+)?)(?:\s*(?:/|sur|out of|von|de)\s*(\d{1,4})(?:[.,]0+)?\b)?")
        .expect("a pattern")
});

/// "4,5 sur 5" → "4.5/5"; a rating above its scale is none.
fn rating(value: &str, max: &str) -> Option<String> {
    let found = RATING.captures(value)?;
    let max = found.get(2).map_or(max, |scale| scale.as_str());
    let points: f64 = found[1].replace(',', ".").parse().ok()?;
    if points > max.parse().ok()? {
        return None;
    }
    let points = format!("{points:.2}");
    Some(format!("{}/{max}", points.trim_end_matches('0').trim_end_matches('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(cleanings: &[&str], values: &[&str]) -> Option<String> {
        let cleanings: Vec<_> = cleanings.iter().map(|text| Cleaning::parse(text).unwrap()).collect();
        apply(&cleanings, values.iter().map(|value| (*value).to_owned()).collect(), WrittenFor::People)
    }

    #[test]
    fn prices_are_read_as_shops_write_them() {
        for (written, read) in [
            ("14,90 €", "14.90€"),
            ("14.9", "14.90€"),
            ("14", "14.00€"),
            ("1 234,56 €", "1234.56€"),
            ("1\u{202f}234,56\u{a0}€", "1234.56€"),
            ("1.234,56 EUR", "1234.56€"),
            ("$1,234.56", "1234.56$"),
            ("12€90", "12.90€"),
            ("12 €90 TTC", "12.90€"),
            ("à partir de 9,99 €", "9.99€"),
            ("-20% 19,90 € 15,92 €", "19.90€"),
            ("Lot de 2 : 15,92 €", "15.92€"),
            ("CHF 12.50", "12.50CHF"),
            ("1.234", "1234.00€"),
            ("0,999", "1.00€"),
            ("14.9000", "14.90€"),
            ("007,5 €", "7.50€"),
        ] {
            assert_eq!(clean(&["price"], &[written]).as_deref(), Some(read), "{written}");
        }
        let price = [Cleaning::parse("price").unwrap()];
        let machine = |value: &str| apply(&price, vec![value.to_owned()], WrittenFor::Machines);
        assert_eq!(machine("224.904").as_deref(), Some("224.90€"));
        assert_eq!(machine("1234.5").as_deref(), Some("1234.50€"));
        assert_eq!(clean(&["price"], &["sur devis"]), None);
        assert_eq!(clean(&["price"], &["99999999999999999999999"]), None);
        assert_eq!(clean(&["price:$"], &["3"]).as_deref(), Some("3.00$"));
    }

    #[test]
    fn ratings_keep_their_scale_and_never_exceed_it() {
        for (written, read) in [
            ("4,5 sur 5", Some("4.5/5")),
            ("4.5", Some("4.5/5")),
            ("5.0", Some("5/5")),
            ("9/10", Some("9/10")),
            ("4.714285714", Some("4.71/5")),
            ("Note : 4,50/5 (12 avis)", Some("4.5/5")),
            ("90", None),
            ("aucune", None),
        ] {
            assert_eq!(clean(&["rating"], &[written]).as_deref(), read, "{written}");
        }
        assert_eq!(clean(&["rating:10"], &["8"]).as_deref(), Some("8/10"));
    }

    #[test]
    fn numbers_lose_their_words() {
        assert_eq!(clean(&["number"], &["(1 234 avis)"]).as_deref(), Some("1234"));
        assert_eq!(clean(&["number"], &["4,50"]).as_deref(), Some("4.5"));
        assert_eq!(clean(&["number"], &["avis"]), None);
    }

    #[test]
    fn texts_lose_their_markup_and_their_white_space() {
        let written = "<p>L&#039;eau\u{a0} &amp; l&eacute;lixir</p>\n<br/> 5 < 6 > 3 &inconnu;";
        assert_eq!(clean(&["text"], &[written]).as_deref(), Some("L'eau & lélixir 5 < 6 > 3 &inconnu;"));
        assert_eq!(clean(&["text"], &[" \n ", "b"]).as_deref(), Some("b"));
    }

    #[test]
    fn several_values_become_one() {
        assert_eq!(clean(&["text", "join:, "], &["a ", "", " b"]).as_deref(), Some("a, b"));
        assert_eq!(clean(&["nth:2"], &["a", "b"]).as_deref(), Some("b"));
        assert_eq!(clean(&["nth:3"], &["a", "b"]), None);
        assert_eq!(clean(&["first"], &["a", "b"]).as_deref(), Some("a"));
        assert_eq!(clean(&["join:-"], &[]), None);
        assert_eq!(clean(&["prefix:Réf. :", "suffix:."], &[" Réf. : 12."]).as_deref(), Some("12"));
        assert_eq!(clean(&["pattern:par (.+)"], &["x", "par Marie"]).as_deref(), Some("Marie"));
    }
}
