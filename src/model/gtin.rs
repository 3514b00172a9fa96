//! GTIN: the number under a barcode (GS1 General Specifications, section 3.3 and 7.9).
//!
//! A GTIN is text: `0748322148474` and `748322148474` are the same product but not the same text, and what was sent
//! must come back as it was sent. So a [`Gtin`] keeps the digits as written and compares as 14 digits.

use std::fmt;
use std::hash::{Hash, Hasher};

/// A valid GTIN-8, -12, -13 or -14, as it was written.
///
/// Equality, order and hash are those of the GTIN-14, so UPC-A `748322148474` equals EAN-13 `0748322148474`.
#[derive(Clone)]
pub struct Gtin(Box<str>);

/// Why a text is no GTIN. The reason of a `skipped` product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GtinError {
    /// Nothing but spaces.
    #[error("empty")]
    Empty,
    /// Scientific notation: the spreadsheet kept three digits of thirteen.
    #[error("rounded by the spreadsheet: format the column as text")]
    Rounded,
    /// A character that is not 0 to 9.
    #[error("not digits")]
    NotDigits,
    /// A length other than 8, 12, 13 or 14.
    #[error("wrong length: {0} digits, expected 8, 12, 13 or 14")]
    Length(usize),
    /// The last digit does not follow from the others (GS1: modulo 10, weights 3 and 1 from the right).
    #[error("wrong check digit: {found}, expected {expected}")]
    CheckDigit {
        /// What the barcode ends with.
        found: u8,
        /// What its other digits ask for.
        expected: u8,
    },
}

impl GtinError {
    /// A stable word for `reason.kind`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Rounded => "rounded",
            Self::NotDigits => "not_digits",
            Self::Length(_) => "length",
            Self::CheckDigit { .. } => "check_digit",
        }
    }
}

impl Gtin {
    /// Reads a barcode as text. Nothing is padded: what is too short is wrong.
    pub fn parse(text: &str) -> Result<Self, GtinError> {
        let text = strip(text);
        if text.is_empty() {
            return Err(GtinError::Empty);
        }
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(if is_scientific(text) { GtinError::Rounded } else { GtinError::NotDigits });
        }
        if !matches!(text.len(), 8 | 12 | 13 | 14) {
            return Err(GtinError::Length(text.len()));
        }
        let (body, last) = text.split_at(text.len() - 1);
        let (expected, found) = (check_digit(body), last.as_bytes()[0] - b'0');
        if expected != found {
            return Err(GtinError::CheckDigit { found, expected });
        }
        Ok(Self(text.into()))
    }

    /// A barcode of no product, where any will do.
    pub fn any() -> Self {
        Self("00000000".into())
    }

    /// The digits as they were written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 14 digits that two notations of one product share.
    pub fn to_gtin14(&self) -> String {
        format!("{:0>14}", self.0)
    }

    /// The form shops print and search for: 13 digits (8 for a GTIN-8, 14 for a GTIN-14 that needs them).
    pub fn padded(&self) -> String {
        match self.0.len() {
            8 => self.0.to_string(),
            14 if self.0.starts_with('0') => self.0[1..].to_owned(),
            14 => self.0.to_string(),
            _ => format!("{:0>13}", self.0),
        }
    }

    /// Whether the GTIN-13 begins with `prefix`, e.g. `3400` for French medicines.
    pub fn has_prefix(&self, prefix: &str) -> bool {
        self.to_gtin14()[1..].starts_with(prefix)
    }

    fn significant(&self) -> &str {
        self.0.trim_start_matches('0')
    }
}

/// A barcode that came as a JSON number lost its leading zeros: 13 digits, or 8 if it has 8 or fewer.
pub fn pad_number(integral: u64) -> String {
    let digits = integral.to_string();
    if digits.len() <= 8 { format!("{digits:0>8}") } else { format!("{digits:0>13}") }
}

/// Drops what spreadsheets put around a barcode: spaces (also no-break and zero-width) and the leading apostrophe.
pub fn strip(text: &str) -> &str {
    let space = |c: char| c.is_whitespace() || matches!(c, '\u{a0}' | '\u{202f}' | '\u{200b}' | '\u{feff}');
    let text = text.trim_matches(space);
    text.strip_prefix(['\'', '\u{2019}']).unwrap_or(text).trim_matches(space)
}

/// The check digit of `body`, which is all digits.
pub fn check_digit(body: &str) -> u8 {
    let weighted = body.bytes().rev().zip([3u32, 1].into_iter().cycle());
    let sum: u32 = weighted.map(|(digit, weight)| u32::from(digit - b'0') * weight).sum();
    ((10 - sum % 10) % 10) as u8
}

fn is_scientific(text: &str) -> bool {
    let Some((mantissa, exponent)) = text.split_once(['e', 'E']) else { return false };
    let number =
        |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b',' | b'+'));
    number(mantissa) && number(exponent)
}

impl PartialEq for Gtin {
    fn eq(&self, other: &Self) -> bool {
        self.significant() == other.significant()
    }
}

impl Eq for Gtin {}

impl Hash for Gtin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.significant().hash(state);
    }
}

impl fmt::Debug for Gtin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gtin({})", self.0)
    }
}

impl fmt::Display for Gtin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_batch_is_valid() {
        for ean in [
            "0748322148474",
            "0748322148481",
            "0748322148498",
            "0748322148863",
            "3665606002802",
            "3701129820322",
            "3701129811955",
            "3701129811962",
        ] {
            assert_eq!(Gtin::parse(ean).map(|g| g.to_string()), Ok(ean.to_owned()));
        }
    }

    #[test]
    fn notations_of_one_product_are_equal_and_keep_their_text() {
        let [ean, upc, gtin14] =
            ["0748322148474", "748322148474", "00748322148474"].map(|t| Gtin::parse(t).unwrap());
        assert_eq!(ean, upc);
        assert_eq!(ean, gtin14);
        assert_eq!(upc.as_str(), "748322148474");
        assert_eq!([&ean, &upc, &gtin14].map(Gtin::padded), ["0748322148474"; 3]);
        assert_eq!(upc.to_gtin14(), "00748322148474");
    }

    #[test]
    fn what_a_spreadsheet_puts_around_is_dropped() {
        for text in [" 0748322148474", "0748322148474\u{a0}", "'0748322148474", "\u{202f}'0748322148474 "] {
            assert_eq!(Gtin::parse(text).unwrap().as_str(), "0748322148474", "{text:?}");
        }
    }

    #[test]
    fn each_mistake_has_its_name() {
        assert_eq!(Gtin::parse(" ' "), Err(GtinError::Empty));
        assert_eq!(Gtin::parse("7.48E+11"), Err(GtinError::Rounded));
        assert_eq!(Gtin::parse("7,48e11"), Err(GtinError::Rounded));
        assert_eq!(Gtin::parse("07483221E8474x"), Err(GtinError::NotDigits));
        assert_eq!(Gtin::parse("074832214847４"), Err(GtinError::NotDigits));
        assert_eq!(Gtin::parse("123"), Err(GtinError::Length(3)));
        assert_eq!(Gtin::parse("0748322148475"), Err(GtinError::CheckDigit { found: 5, expected: 4 }));
    }

    #[test]
    fn numbers_get_their_zeros_back() {
        assert_eq!(pad_number(748_322_148_474), "0748322148474");
        assert_eq!(pad_number(1_234_565), "01234565");
        assert_eq!(pad_number(0), "00000000");
    }

    #[test]
    fn medicines_are_known_by_their_prefix_in_any_notation() {
        let digit = check_digit("340093000000");
        assert!(Gtin::parse(&format!("340093000000{digit}")).unwrap().has_prefix("3400"));
        assert!(Gtin::parse(&format!("0340093000000{digit}")).unwrap().has_prefix("3400"));
        assert!(!Gtin::parse("0748322148474").unwrap().has_prefix("3400"));
    }
}
