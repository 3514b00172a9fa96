//! What becomes of each entry of `eans`, before anything is stored: to be looked up, the same as an earlier one, or over
//! at once (design 2.1).
//!
//! Nothing here refuses a batch. A barcode that is none ends its own product as `skipped`, with a reason for the person
//! who filled the spreadsheet; the others go on.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use super::batch::{Fate, NewProduct, Reason, Status};
use super::body::Language;
use super::gtin::{self, Gtin, GtinError};

/// One entry of `eans`, already of the right JSON types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub primary: Barcode,
    pub replacement: Barcode,
}

/// A barcode as JSON carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Barcode {
    Text(String),
    /// An integral number: its leading zeros were lost on the way.
    Integral(u64),
    /// A number that can be no barcode (negative, with a fraction, of 20 digits), as it was written.
    Other(String),
    /// `null`, which is what n8n makes of an empty cell.
    Null,
    /// The key was not there, which is what n8n makes of an undefined value.
    Absent,
}

/// How the intake is configured.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    pub language: Language,
    /// `batches.ignore_prefixes`.
    pub ignore_prefixes: &'a [String],
}

/// At most this much of what was sent in place of a barcode is kept: four times the longest barcode still shows what it
/// was, and a page pasted into the cell does not fill the ledger and every webhook.
pub const EAN_CHARS_MAX: usize = 64;

/// Entries that share one visit end in one transaction, each with a whole body: at 30 KB for a common product sheet that
/// is 15 MB at most. A column filled down over 100 000 rows by mistake is 200 visits instead of one.
pub const DUPLICATES_MAX: u32 = 500;

/// The visit that later entries of the same barcodes are duplicates of.
struct First {
    index: u32,
    duplicates: u32,
}

/// Decides over every entry, in order; the result has as many products as there are entries.
pub fn take(entries: Vec<Entry>, options: Options<'_>) -> Vec<NewProduct> {
    let mut first_of = HashMap::with_capacity(entries.len());
    (1..).zip(entries).map(|(index, entry)| take_one(index, entry, options, &mut first_of)).collect()
}

/// A barcode as it is listed where nothing is looked up (`ignored3400`): stripped, padded if it was a number.
pub fn listed(barcode: Barcode) -> String {
    as_sent(&barcode)
}

fn take_one(
    index: u32,
    entry: Entry,
    options: Options<'_>,
    first_of: &mut HashMap<(Gtin, Option<Gtin>), First>,
) -> NewProduct {
    let ean = as_sent(&entry.primary);
    let over = |status, kind: &str, detail| {
        let fate = Fate::Over { status, reason: Reason::new(kind, detail) };
        NewProduct { ean: ean.clone(), fate, note: None }
    };
    let gtin = match read(&entry.primary) {
        Ok(gtin) => gtin,
        Err(error) => {
            let absent = entry.primary == Barcode::Absent;
            let detail =
                if absent { no_primary(options.language) } else { sentence(error, options.language) };
            return over(Status::Skipped, error.kind(), detail);
        }
    };
    if let Some(prefix) = options.ignore_prefixes.iter().find(|prefix| gtin.has_prefix(prefix)) {
        return over(Status::Ignored, "ignored_prefix", ignored(prefix, options.language));
    }
    let (replacement, note) = read_replacement(&entry.replacement, &gtin, options.language);
    let fate = match first_of.entry((gtin.clone(), replacement.clone())) {
        Slot::Occupied(mut first) if first.get().duplicates < DUPLICATES_MAX => {
            first.get_mut().duplicates += 1;
            Fate::Duplicate { of: first.get().index, gtin, replacement }
        }
        slot => {
            slot.insert_entry(First { index, duplicates: 0 });
            Fate::Visit { gtin, replacement }
        }
    };
    NewProduct { ean, fate, note }
}

fn read(barcode: &Barcode) -> Result<Gtin, GtinError> {
    match barcode {
        Barcode::Text(text) | Barcode::Other(text) => Gtin::parse(text),
        Barcode::Integral(number) => Gtin::parse(&gtin::pad_number(*number)),
        Barcode::Null | Barcode::Absent => Err(GtinError::Empty),
    }
}

/// A replacement that is of no use counts as none. An empty cell is the ordinary way to say "none" and needs no note.
fn read_replacement(barcode: &Barcode, primary: &Gtin, language: Language) -> (Option<Gtin>, Option<String>) {
    match read(barcode) {
        Ok(gtin) if gtin == *primary => (None, Some(same_as_primary(language))),
        Ok(gtin) => (Some(gtin), None),
        Err(GtinError::Empty) => (None, None),
        Err(error) => (None, Some(bad_replacement(&as_sent(barcode), error, language))),
    }
}

/// The text that the webhook calls `ean`.
fn as_sent(barcode: &Barcode) -> String {
    match barcode {
        Barcode::Text(text) | Barcode::Other(text) => shorten(gtin::strip(text)),
        Barcode::Integral(number) => gtin::pad_number(*number),
        Barcode::Null | Barcode::Absent => String::new(),
    }
}

fn shorten(text: &str) -> String {
    // A control character is no part of a barcode, and a NUL is more than some databases and terminals bear.
    let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut short: String = text.chars().take(EAN_CHARS_MAX).map(clean).collect();
    if text.chars().nth(EAN_CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

/// Why a text is no barcode, for the person who typed it.
pub fn sentence(error: GtinError, language: Language) -> String {
    if language == Language::English {
        return error.to_string();
    }
    match error {
        GtinError::Empty => "code-barres vide".into(),
        GtinError::Rounded => "arrondi par le tableur : mettez la colonne au format texte".into(),
        GtinError::NotDigits => "contient autre chose que des chiffres".into(),
        GtinError::Length(n) => {
            let s = if n > 1 { "s" } else { "" };
            format!("longueur incorrecte : {n} chiffre{s} au lieu de 8, 12, 13 ou 14")
        }
        GtinError::CheckDigit { found, expected } => {
            format!("clé de contrôle incorrecte : {found} au lieu de {expected}")
        }
    }
}

fn no_primary(language: Language) -> String {
    match language {
        Language::French => "code-barres vide : la clé « primary » manque".into(),
        Language::English => "empty: the key \"primary\" is missing".into(),
    }
}

fn ignored(prefix: &str, language: Language) -> String {
    match language {
        Language::French => format!("commence par {prefix} (batches.ignore_prefixes)"),
        Language::English => format!("begins with {prefix} (batches.ignore_prefixes)"),
    }
}

fn same_as_primary(language: Language) -> String {
    match language {
        Language::French => "remplacement identique au code-barres : non utilisé".into(),
        Language::English => "the replacement is the same barcode: not used".into(),
    }
}

fn bad_replacement(ean: &str, error: GtinError, language: Language) -> String {
    let why = sentence(error, language);
    match language {
        Language::French => format!("remplacement « {ean} » non utilisé : {why}"),
        Language::English => format!("replacement \"{ean}\" not used: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EAN: &str = "0748322148474";
    const OTHER: &str = "3665606002802";

    fn text(text: &str) -> Barcode {
        Barcode::Text(text.into())
    }

    fn entry(primary: Barcode, replacement: Barcode) -> Entry {
        Entry { primary, replacement }
    }

    fn take_in(language: Language, entries: Vec<Entry>) -> Vec<NewProduct> {
        let ignore_prefixes = ["3400".to_owned()];
        take(entries, Options { language, ignore_prefixes: &ignore_prefixes })
    }

    fn one(primary: Barcode, replacement: Barcode) -> NewProduct {
        take_in(Language::French, vec![entry(primary, replacement)]).remove(0)
    }

    fn skipped(product: &NewProduct) -> (&str, &str, &str) {
        match &product.fate {
            Fate::Over { status: Status::Skipped, reason } => (&product.ean, &reason.kind, &reason.detail),
            other => panic!("not skipped: {other:?}"),
        }
    }

    #[test]
    fn spaces_and_the_apostrophe_of_the_spreadsheet_are_dropped() {
        for sent in [" 0748322148474\u{a0}", "'0748322148474", "\u{202f}' 0748322148474"] {
            let product = one(text(sent), Barcode::Null);
            assert_eq!(product.ean, EAN, "{sent:?}");
            assert!(matches!(product.fate, Fate::Visit { .. }));
        }
    }

    #[test]
    fn numbers_are_padded_and_text_is_not() {
        assert_eq!(one(Barcode::Integral(748_322_148_474), Barcode::Null).ean, EAN);
        assert_eq!(one(Barcode::Integral(1_234_565), Barcode::Null).ean, "01234565");
        let upc = one(text("748322148474"), Barcode::Null);
        assert_eq!(upc.ean, "748322148474");
        assert!(matches!(upc.fate, Fate::Visit { gtin, .. } if gtin.to_gtin14() == "00748322148474"));
    }

    #[test]
    fn what_is_no_barcode_is_skipped_with_its_reason() {
        let claims = [
            (text("  "), ("", "empty", "code-barres vide")),
            (Barcode::Null, ("", "empty", "code-barres vide")),
            (Barcode::Absent, ("", "empty", "code-barres vide : la clé « primary » manque")),
            (text("abc"), ("abc", "not_digits", "contient autre chose que des chiffres")),
            (text("123"), ("123", "length", "longueur incorrecte : 3 chiffres au lieu de 8, 12, 13 ou 14")),
            (
                text("0748322148475"),
                ("0748322148475", "check_digit", "clé de contrôle incorrecte : 5 au lieu de 4"),
            ),
            (
                text("7.48E+11"),
                ("7.48E+11", "rounded", "arrondi par le tableur : mettez la colonne au format texte"),
            ),
            (Barcode::Other("-5".into()), ("-5", "not_digits", "contient autre chose que des chiffres")),
        ];
        for (barcode, claim) in claims {
            assert_eq!(skipped(&one(barcode, text(OTHER))), claim);
        }
    }

    #[test]
    fn sentences_are_english_by_setting() {
        let products = take_in(Language::English, vec![entry(text("123"), Barcode::Null)]);
        assert_eq!(skipped(&products[0]).2, "wrong length: 3 digits, expected 8, 12, 13 or 14");
    }

    #[test]
    fn a_useless_replacement_counts_as_none_and_says_why() {
        let claims = [
            (text("123"), "remplacement « 123 » non utilisé : longueur incorrecte : 3 chiffres"),
            (text("748322148474"), "remplacement identique au code-barres : non utilisé"),
            (Barcode::Integral(748_322_148_474), "remplacement identique au code-barres"),
        ];
        for (replacement, claim) in claims {
            let product = one(text(EAN), replacement);
            assert!(matches!(product.fate, Fate::Visit { replacement: None, .. }));
            assert!(product.note.as_deref().is_some_and(|note| note.starts_with(claim)), "{product:?}");
        }
    }

    #[test]
    fn an_empty_replacement_is_none_without_a_note() {
        for replacement in [Barcode::Null, Barcode::Absent, text(""), text(" \u{a0}")] {
            let product = one(text(EAN), replacement);
            assert!(matches!(product.fate, Fate::Visit { replacement: None, .. }));
            assert_eq!(product.note, None);
        }
    }

    #[test]
    fn medicines_are_ignored_in_any_notation_but_only_if_they_are_barcodes() {
        let medicine = format!("340093000000{}", gtin::check_digit("340093000000"));
        let as_gtin14 = format!("0{medicine}");
        for ean in [&medicine, &as_gtin14] {
            let Fate::Over { status, reason } = one(text(ean), Barcode::Null).fate else { panic!("{ean}") };
            assert_eq!((status, reason.kind.as_str()), (Status::Ignored, "ignored_prefix"));
        }
        assert_eq!(skipped(&one(text("3400"), Barcode::Null)).1, "length");
    }

    #[test]
    fn the_same_primary_and_replacement_are_one_visit_in_any_notation() {
        let products = take_in(
            Language::French,
            vec![
                entry(text(EAN), text(OTHER)),
                entry(text("748322148474"), Barcode::Integral(3_665_606_002_802)),
                entry(text(EAN), Barcode::Null),
                entry(Barcode::Integral(748_322_148_474), text("123")),
                entry(text("00748322148474"), text("03665606002802")),
            ],
        );
        let of: Vec<Option<u32>> = products
            .iter()
            .map(|product| match product.fate {
                Fate::Duplicate { of, .. } => Some(of),
                Fate::Visit { .. } | Fate::Over { .. } => None,
            })
            .collect();
        assert_eq!(of, [None, Some(1), None, Some(3), Some(1)]);
        assert_eq!(products[1].ean, "748322148474", "a duplicate keeps its own text");
        assert!(products[3].note.is_some(), "a duplicate keeps its own note");
    }

    #[test]
    fn a_visit_has_a_limit_of_duplicates_and_the_next_ones_are_those_of_another() {
        let column = vec![entry(text(EAN), Barcode::Null); 2 * DUPLICATES_MAX as usize + 3];
        let mut duplicates_of = std::collections::BTreeMap::new();
        for (index, product) in (1..).zip(take_in(Language::French, column)) {
            match product.fate {
                Fate::Visit { .. } => assert_eq!(duplicates_of.insert(index, 0), None),
                Fate::Duplicate { of, .. } => *duplicates_of.get_mut(&of).expect("of a visit before it") += 1,
                Fate::Over { .. } => panic!("{product:?}"),
            }
        }
        let next = DUPLICATES_MAX + 2;
        let full = DUPLICATES_MAX;
        assert_eq!(
            duplicates_of.into_iter().collect::<Vec<_>>(),
            [(1, full), (next, full), (2 * next - 1, 0)]
        );
    }

    #[test]
    fn skipped_entries_are_no_duplicates_of_each_other() {
        let products = take_in(Language::French, vec![entry(text("1"), Barcode::Null); 2]);
        assert!(products.iter().all(|product| skipped(product).1 == "length"));
    }

    #[test]
    fn what_is_far_too_long_is_cut_for_the_ledger() {
        let product = one(text(&"9".repeat(10_000)), Barcode::Null);
        assert_eq!(product.ean.chars().count(), EAN_CHARS_MAX + 1);
        assert!(skipped(&product).2.contains("10000"));
        assert_eq!(skipped(&one(text("1\u{0}2"), Barcode::Null)).0, "1\u{fffd}2");
    }
}
