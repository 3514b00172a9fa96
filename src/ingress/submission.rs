//! The body of `POST /api/scrape`: bytes of a stranger to [`Submission`], or a [`Problem`]. Pure.
//!
//! The text is walked without building a tree: an entry is taken as raw JSON and told by its first byte, so that a number
//! is read as it was written (no binary fraction in between), and so that nesting costs no stack.
//!
//! Unknown keys are passed over in silence: old workflows send keys of their own along, and refusing them would break a
//! workflow that worked. A key that is there twice is refused, since the two halves of the world read it differently.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;
use url::Url;

use super::Settings;
use super::host::Authority;
use super::wire::{Expected, Problem, Syntax, UrlFault};
use crate::model::batch::{BatchId, NewBatch, SiteName};
use crate::model::intake::{self, Barcode, Entry};

/// What was posted, of the right types and within the limits.
#[derive(Debug)]
pub struct Submission {
    pub eans: Vec<Entry>,
    pub ignored_3400: Vec<String>,
    pub callback_url: Option<String>,
    pub webhook_url: Option<String>,
    pub metadata: Option<Box<RawValue>>,
    /// Those asked for, or all in use; in the order of the configuration.
    pub sites: Vec<SiteName>,
    pub force: bool,
}

/// What the head of the request and the server add to a batch.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub batch_id: BatchId,
    pub requester: String,
    pub key: Option<String>,
    pub body_hash: [u8; 32],
}

/// Metadata are echoed inside the body of a webhook; many JSON readers stop at 128 levels, some at 64.
pub const METADATA_DEPTH_MAX: u32 = 48;

/// The webhook of every entry repeats the metadata, and one transaction may write them all (entries that are no
/// barcodes end at once). 16 KiB for 4096 products pass; what needs more is two batches.
pub const METADATA_COPIES_BYTES_MAX: usize = 64 << 20;

impl Submission {
    pub fn parse(body: &[u8], settings: &Settings) -> Result<Self, Problem> {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let text = str::from_utf8(body).map_err(|_| Problem::BodyNotUtf8)?;
        let top = Object::read(text, &TOP).map_err(|error| syntax(&error))?.once(str::to_owned)?;
        let [eans, ignored, callback_url, webhook_url, metadata, sites, force] = top.values;
        let products_max = settings.limits.products_max;
        let submission = Self {
            eans: read_each(eans, "eans", products_max, entry)?,
            ignored_3400: read_each(ignored, "ignored3400", products_max, |index, raw| {
                barcode(raw, Expected::Barcode, || format!("ignored3400[{index}]")).map(intake::listed)
            })?,
            callback_url: batch_url(callback_url, "callback_url", settings)?,
            webhook_url: batch_url(webhook_url, "webhook_url", settings)?,
            metadata: read_metadata(metadata, settings.limits.metadata_bytes_max)?,
            sites: choose_sites(sites, &settings.sites)?,
            force: truth(force, "force")?,
        };
        if submission.eans.is_empty() && submission.ignored_3400.is_empty() {
            return Err(Problem::NothingInIt);
        }
        let metadata_bytes = submission.metadata.as_ref().map_or(0, |metadata| metadata.get().len());
        if metadata_bytes.saturating_mul(submission.eans.len()) > METADATA_COPIES_BYTES_MAX {
            let bytes_max = METADATA_COPIES_BYTES_MAX;
            return Err(Problem::MetadataTooOften {
                products: submission.eans.len(),
                metadata_bytes,
                bytes_max,
            });
        }
        Ok(submission)
    }

    /// Decides over each entry; the result is what goes into the ledger.
    pub fn into_batch(self, envelope: Envelope, settings: &Settings) -> NewBatch {
        let options =
            intake::Options { language: settings.language, ignore_prefixes: &settings.ignore_prefixes };
        let Envelope { batch_id, requester, key, body_hash } = envelope;
        NewBatch {
            batch_id,
            requester,
            key,
            body_hash,
            force: self.force,
            sites: self.sites,
            webhook_url: self.webhook_url,
            callback_url: self.callback_url,
            metadata: self.metadata,
            products: intake::take(self.eans, options),
            ignored_3400: self.ignored_3400,
        }
    }
}

const TOP: [&str; 7] = ["eans", "ignored3400", "callback_url", "webhook_url", "metadata", "sites", "force"];
const ENTRY: [&str; 2] = ["primary", "replacement"];

fn syntax(error: &serde_json::Error) -> Problem {
    let fault = match error.classify() {
        // The text is JSON, but its root is no object.
        Category::Data => return Problem::BodyNotAnObject,
        Category::Eof => Syntax::EndsEarly,
        Category::Io => Syntax::Other,
        Category::Syntax => match error.to_string() {
            said if said.starts_with("trailing characters") => Syntax::Trailing,
            said if said.starts_with("invalid number") => Syntax::Number,
            _ => Syntax::Other,
        },
    };
    Problem::BodySyntax { line: error.line(), column: error.column(), fault }
}

/// The values of the known keys of a JSON object, still as text. `null` counts as not there.
struct Object<'a, const N: usize> {
    values: [Option<&'a RawValue>; N],
    /// The first known key that came twice.
    twice: Option<&'static str>,
}

impl<'a, const N: usize> Object<'a, N> {
    fn read(text: &'a str, keys: &'static [&'static str; N]) -> Result<Self, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let object = deserializer.deserialize_map(ObjectVisitor { keys })?;
        deserializer.end()?;
        Ok(object)
    }

    fn once(self, path: impl Fn(&str) -> String) -> Result<Self, Problem> {
        match self.twice {
            Some(key) => Err(Problem::KeyTwice { field: path(key) }),
            None => Ok(self),
        }
    }
}

struct ObjectVisitor<const N: usize> {
    keys: &'static [&'static str; N],
}

impl<'de, const N: usize> Visitor<'de> for ObjectVisitor<N> {
    type Value = Object<'de, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut object = Object { values: [None; N], twice: None };
        while let Some(key) = map.next_key::<String>()? {
            let Some(slot) = self.keys.iter().position(|known| *known == key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value: &RawValue = map.next_value()?;
            if object.values[slot].replace(value).is_some() {
                object.twice.get_or_insert(self.keys[slot]);
            }
        }
        Ok(object)
    }
}

/// Reads every element of a list with its index, from 0; a missing list is an empty one.
fn read_each<'a, T>(
    list: Option<&'a RawValue>,
    field: &'static str,
    products_max: usize,
    read: impl Fn(usize, &'a RawValue) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    match list.map(|raw| (raw, Kind::of(raw))) {
        None | Some((_, Kind::Null)) => Ok(Vec::new()),
        Some((raw, Kind::List)) => {
            let elements = elements(raw, products_max).ok_or(Problem::TooMany { field, products_max })?;
            elements.into_iter().enumerate().map(|(index, raw)| read(index, raw)).collect()
        }
        Some(_) => Err(Problem::WrongType { field: field.into(), expected: Expected::List }),
    }
}

/// `None` if there are more than `max`: they are counted off, never kept.
fn elements(list: &RawValue, max: usize) -> Option<Vec<&RawValue>> {
    let over = Cell::new(false);
    let elements = Elements { max, over: &over };
    let elements = serde_json::Deserializer::from_str(list.get()).deserialize_seq(elements).ok()?;
    (!over.get()).then_some(elements)
}

struct Elements<'c> {
    max: usize,
    over: &'c Cell<bool>,
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            if elements.len() == self.max {
                self.over.set(true);
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                break;
            }
            elements.push(element);
        }
        Ok(elements)
    }
}

/// What a JSON value is, by its first byte; the parser has seen to the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Null,
    Truth,
    Number,
    Text,
    List,
    Object,
}

impl Kind {
    fn of(raw: &RawValue) -> Self {
        match raw.get().as_bytes().first() {
            Some(b'"') => Self::Text,
            Some(b'[') => Self::List,
            Some(b'{') => Self::Object,
            Some(b't' | b'f') => Self::Truth,
            Some(b'n') | None => Self::Null,
            Some(_) => Self::Number,
        }
    }
}

fn entry(index: usize, raw: &RawValue) -> Result<Entry, Problem> {
    let at = || format!("eans[{index}]");
    if Kind::of(raw) != Kind::Object {
        return Ok(Entry { primary: barcode(raw, Expected::Entry, at)?, replacement: Barcode::Absent });
    }
    let unreadable = |_| Problem::WrongType { field: at(), expected: Expected::Entry };
    let object = Object::read(raw.get(), &ENTRY).map_err(unreadable)?;
    let [primary, replacement] = object.once(|key| format!("eans[{index}].{key}"))?.values;
    let read = |raw: Option<&RawValue>, key: &str| match raw {
        Some(raw) => barcode(raw, Expected::Barcode, || format!("eans[{index}].{key}")),
        None => Ok(Barcode::Absent),
    };
    Ok(Entry { primary: read(primary, "primary")?, replacement: read(replacement, "replacement")? })
}

fn barcode(raw: &RawValue, expected: Expected, at: impl Fn() -> String) -> Result<Barcode, Problem> {
    let wrong = || Problem::WrongType { field: at(), expected };
    match Kind::of(raw) {
        Kind::Null => Ok(Barcode::Null),
        Kind::Number => Ok(number(raw.get())),
        // Fails on half of a surrogate pair, which is no text.
        Kind::Text => serde_json::from_str(raw.get()).map(Barcode::Text).map_err(|_| wrong()),
        Kind::Truth | Kind::List | Kind::Object => Err(wrong()),
    }
}

fn number(written: &str) -> Barcode {
    match integral(written) {
        Some(integral) => Barcode::Integral(integral),
        None => Barcode::Other(written.into()),
    }
}

/// Digits that a `u64` surely holds; the longest barcode has 14.
const DIGITS_MAX: usize = 19;

/// The value of a JSON number that is integral, however it is written: `748322148474`, `748322148474.0`,
/// `7.48322148474E11`. Exact, since nothing is made a binary fraction on the way.
fn integral(written: &str) -> Option<u64> {
    let (mantissa, exponent) = written.split_once(['e', 'E']).unwrap_or((written, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{}{fraction}", whole.strip_prefix('-').unwrap_or(whole));
    let significant = digits.trim_end_matches('0');
    let zeros = digits.len() - significant.len();
    let significant = significant.trim_start_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    if whole.starts_with('-') {
        return None;
    }
    let exponent: i64 = exponent.parse().ok()?;
    let shift = exponent.checked_add(i64::try_from(zeros).ok()? - i64::try_from(fraction.len()).ok()?)?;
    let shift = usize::try_from(shift).ok()?;
    if significant.len().checked_add(shift)? > DIGITS_MAX {
        return None;
    }
    format!("{significant}{}", "0".repeat(shift)).parse().ok()
}

/// A URL of the batch's own; an empty one counts as none, which is what n8n makes of an unset parameter.
fn batch_url(
    raw: Option<&RawValue>,
    field: &'static str,
    settings: &Settings,
) -> Result<Option<String>, Problem> {
    let Some(text) = text(raw, field)? else { return Ok(None) };
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let refused = |fault| Problem::UrlRefused { field, fault };
    let mut url = Url::parse(text).map_err(|_| refused(UrlFault::Malformed))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused(UrlFault::Scheme));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused(UrlFault::Credentials));
    }
    let authority = Authority::of(&url).ok_or_else(|| refused(UrlFault::Malformed))?;
    if !settings.webhook_hosts.iter().any(|rule| rule.allows(&url)) {
        return Err(refused(UrlFault::Host { host: authority.to_string() }));
    }
    url.set_fragment(None);
    Ok(Some(url.into()))
}

fn text(raw: Option<&RawValue>, field: &str) -> Result<Option<String>, Problem> {
    let wrong = || Problem::WrongType { field: field.into(), expected: Expected::Text };
    match raw.map(|raw| (raw, Kind::of(raw))) {
        None | Some((_, Kind::Null)) => Ok(None),
        Some((raw, Kind::Text)) => serde_json::from_str(raw.get()).map(Some).map_err(|_| wrong()),
        Some(_) => Err(wrong()),
    }
}

fn truth(raw: Option<&RawValue>, field: &str) -> Result<bool, Problem> {
    match raw.map(|raw| (Kind::of(raw), raw.get())) {
        None | Some((Kind::Null, _)) => Ok(false),
        Some((Kind::Truth, written)) => Ok(written == "true"),
        Some(_) => Err(Problem::WrongType { field: field.into(), expected: Expected::Truth }),
    }
}

/// Names in `sites`, repeats included: far more than there are shops.
const SITES_LISTED_MAX: usize = 1000;

fn choose_sites(raw: Option<&RawValue>, known: &[SiteName]) -> Result<Vec<SiteName>, Problem> {
    let Some(raw) = raw.filter(|raw| Kind::of(raw) != Kind::Null) else { return Ok(known.to_vec()) };
    let site = |index: usize, raw: &RawValue| {
        let field = format!("sites[{index}]");
        match text(Some(raw), &field)? {
            Some(name) if known.iter().any(|site| **site == *name) => Ok(name),
            Some(name) => Err(Problem::SiteUnknown { field, name, known: known.to_vec() }),
            None => Err(Problem::WrongType { field, expected: Expected::Text }),
        }
    };
    let asked = read_each(Some(raw), "sites", SITES_LISTED_MAX, site)?;
    if asked.is_empty() {
        return Err(Problem::SitesEmpty { known: known.to_vec() });
    }
    Ok(known.iter().filter(|site| asked.iter().any(|name| **name == ***site)).cloned().collect())
}

fn read_metadata(raw: Option<&RawValue>, bytes_max: usize) -> Result<Option<Box<RawValue>>, Problem> {
    let Some(raw) = raw.filter(|raw| Kind::of(raw) != Kind::Null) else { return Ok(None) };
    if Kind::of(raw) != Kind::Object {
        return Err(Problem::WrongType { field: "metadata".into(), expected: Expected::Object });
    }
    if raw.get().len() > bytes_max {
        return Err(Problem::MetadataTooLarge { bytes_max });
    }
    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    Readable { depth_left: METADATA_DEPTH_MAX }
        .deserialize(&mut deserializer)
        .map_err(|_| Problem::MetadataUnreadable)?;
    Ok(Some(raw.to_owned()))
}

/// Walks a value and keeps nothing: what every JSON reader can read passes. Raw JSON alone may hold half a surrogate
/// pair, 1e999, or a thousand levels, and the receiver of the webhook would refuse all of it, for ever.
#[derive(Clone, Copy)]
struct Readable {
    depth_left: u32,
}

impl Readable {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        let depth_left = self.depth_left.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Self { depth_left })
    }
}

impl<'de> DeserializeSeed<'de> for Readable {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Readable {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while seq.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while map.next_key_seed(inner)?.is_some() {
            map.next_value_seed(inner)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{generous, settings};
    use super::*;
    use crate::model::batch::{Fate, Status};
    use crate::model::{Gtin, Language};

    fn parse(body: &str) -> Result<Submission, Problem> {
        Submission::parse(body.as_bytes(), &settings())
    }

    fn batch(body: &str) -> NewBatch {
        let envelope = Envelope {
            batch_id: BatchId::mint(),
            requester: "addr:127.0.0.1".into(),
            key: None,
            body_hash: [0; 32],
        };
        parse(body).unwrap().into_batch(envelope, &settings())
    }

    fn field_of(body: &str) -> String {
        let problem = parse(body).unwrap_err();
        assert_eq!(problem.status().as_u16(), 400, "{body}");
        problem.field().unwrap_or_default().to_owned()
    }

    fn fault_of(body: &str) -> Syntax {
        match parse(body) {
            Err(Problem::BodySyntax { fault, .. }) => fault,
            other => panic!("{body}: {other:?}"),
        }
    }

    const VALID: &str = r#"{"eans": [{"primary": "0748322148474", "replacement": null}, "3665606002802", 748322148481,
        {"primary": 748322148498.0, "replacement": " 0748322148863"}], "ignored3400": ["3400930000000", 3400930000000],
        "callback_url": "http://n8n:5678/webhook-waiting/7?signature=a%2Fb", "webhook_url": "https://hooks.example/p",
        "metadata": {"sheet": "Feuille 1", "row": [1, 2.50, null, "é\u00e9"]}, "sites": ["beta", "alpha"]}"#;

    #[test]
    fn a_full_body_is_read() {
        let submission = parse(VALID).unwrap();
        assert_eq!(submission.eans.len(), 4);
        assert_eq!(submission.eans[2].primary, Barcode::Integral(748_322_148_481));
        assert_eq!(submission.ignored_3400, ["3400930000000"; 2]);
        let callback = "http://n8n:5678/webhook-waiting/7?signature=a%2Fb";
        assert_eq!(submission.callback_url.as_deref(), Some(callback), "the query is kept as it is");
        assert_eq!(submission.webhook_url.as_deref(), Some("https://hooks.example/p"));
        let metadata = submission.metadata.unwrap();
        assert_eq!(
            metadata.get(),
            r#"{"sheet": "Feuille 1", "row": [1, 2.50, null, "é\u00e9"]}"#,
            "byte for byte"
        );
        assert_eq!(submission.sites, ["alpha".into(), "beta".into()], "in the order of the configuration");
        assert!(!submission.force);
    }

    #[test]
    fn what_is_left_out_or_null_has_its_default() {
        for body in [
            r#"{"eans": ["1"]}"#,
            r#"{"eans": ["1"], "ignored3400": null, "callback_url": null, "webhook_url": "", "metadata": null,
                "sites": null, "force": null}"#,
        ] {
            let submission = parse(body).unwrap();
            assert_eq!((submission.callback_url, submission.webhook_url), (None, None));
            assert!(submission.metadata.is_none() && !submission.force && submission.ignored_3400.is_empty());
            assert_eq!(submission.sites, ["alpha".into(), "beta".into()]);
        }
    }

    #[test]
    fn a_number_is_read_exactly_however_it_is_written() {
        let as_int = Barcode::Integral;
        for (written, barcode) in [
            ("748322148474", as_int(748_322_148_474)),
            ("748322148474.0", as_int(748_322_148_474)),
            ("748322148474.000000000000", as_int(748_322_148_474)),
            ("7.48322148474E11", as_int(748_322_148_474)),
            ("7.48322148474e+11", as_int(748_322_148_474)),
            ("7483221484740e-1", as_int(748_322_148_474)),
            ("0.748322148474E12", as_int(748_322_148_474)),
            ("7.48E11", as_int(748_000_000_000)),
            ("0", as_int(0)),
            ("-0.0", as_int(0)),
            ("0e99999999999999999999", as_int(0)),
            ("748322148474.5", Barcode::Other("748322148474.5".into())),
            ("7.483221484741E11", Barcode::Other("7.483221484741E11".into())),
            ("-748322148474", Barcode::Other("-748322148474".into())),
            ("1e400", Barcode::Other("1e400".into())),
            ("1e-400", Barcode::Other("1e-400".into())),
            ("1e99999999999999999999", Barcode::Other("1e99999999999999999999".into())),
            ("123456789012345678901234567890", Barcode::Other("123456789012345678901234567890".into())),
        ] {
            let submission = parse(&format!(r#"{{"eans": [{written}]}}"#)).unwrap();
            assert_eq!(submission.eans[0].primary, barcode, "{written}");
        }
    }

    #[test]
    fn the_number_748322148474_is_the_product_0748322148474() {
        for written in ["748322148474", "748322148474.0", "7.48322148474E11", "\"'0748322148474\u{a0}\""] {
            let batch = batch(&format!(r#"{{"eans": [{{"primary": {written}}}]}}"#));
            assert_eq!(batch.products[0].ean, "0748322148474");
            assert_eq!(
                batch.products[0].fate,
                Fate::Visit { gtin: Gtin::parse("0748322148474").unwrap(), replacement: None }
            );
        }
    }

    #[test]
    fn a_batch_of_nothing_but_rubbish_is_accepted_and_adds_up() {
        let batch = batch(r#"{"eans": ["123", null, {}, "7.48E+11", 1e400, "3400930000007"]}"#);
        let counts = batch.counts();
        assert_eq!(batch.products.len(), 6);
        assert_eq!((counts.queued, counts.queued + counts.skipped + counts.ignored), (0, 6));
        let kinds: Vec<&str> = batch
            .products
            .iter()
            .map(|product| match &product.fate {
                Fate::Over { status: Status::Skipped | Status::Ignored, reason } => reason.kind.as_str(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(kinds[..5], ["length", "empty", "empty", "rounded", "rounded"]);
        assert_eq!(batch.refused()[0].index, 1, "an index counts from 1");
    }

    #[test]
    fn only_ignored3400_is_enough_and_nothing_at_all_is_not() {
        assert_eq!(parse(r#"{"ignored3400": ["3400930000000"]}"#).unwrap().eans, []);
        for body in [r"{}", r#"{"eans": []}"#, r#"{"eans": null, "ignored3400": []}"#] {
            assert_eq!(parse(body).unwrap_err(), Problem::NothingInIt);
        }
    }

    #[test]
    fn a_wrong_type_is_named_by_its_path_counted_from_0() {
        for (body, field) in [
            (r#"{"eans": "0748322148474"}"#, "eans"),
            (r#"{"eans": {"primary": "1"}}"#, "eans"),
            (r#"{"eans": ["1", true]}"#, "eans[1]"),
            (r#"{"eans": [["1"]]}"#, "eans[0]"),
            (r#"{"eans": ["1", "2", "3", {"primary": {}}]}"#, "eans[3].primary"),
            (r#"{"eans": [{"primary": "1", "replacement": [1]}]}"#, "eans[0].replacement"),
            (r#"{"eans": [{"primary": "1", "primary": "2"}]}"#, "eans[0].primary"),
            (r#"{"eans": ["\ud800"]}"#, "eans[0]"),
            (r#"{"eans": ["1"], "ignored3400": {}}"#, "ignored3400"),
            (r#"{"ignored3400": ["1", {"primary": "2"}]}"#, "ignored3400[1]"),
            (r#"{"eans": ["1"], "metadata": []}"#, "metadata"),
            (r#"{"eans": ["1"], "metadata": "x"}"#, "metadata"),
            (r#"{"eans": ["1"], "sites": "alpha"}"#, "sites"),
            (r#"{"eans": ["1"], "sites": []}"#, "sites"),
            (r#"{"eans": ["1"], "sites": ["alpha", 1]}"#, "sites[1]"),
            (r#"{"eans": ["1"], "callback_url": 5}"#, "callback_url"),
            (r#"{"eans": ["1"], "force": "true"}"#, "force"),
            (r#"{"eans": ["1"], "eans": ["2"]}"#, "eans"),
        ] {
            assert_eq!(field_of(body), field, "{body}");
        }
    }

    #[test]
    fn an_unknown_site_is_refused_with_the_known_ones() {
        let problem = parse(r#"{"eans": ["1"], "sites": ["alpha", "gamma"]}"#).unwrap_err();
        assert_eq!(problem.field(), Some("sites[1]"));
        let sentence = problem.sentence(Language::French);
        assert_eq!(sentence, "Le site « gamma » n'est pas en service ; disponibles : alpha, beta.");
    }

    #[test]
    fn a_url_must_be_http_without_credentials_to_an_allowed_host() {
        let fault = |url: &str| match parse(&format!(r#"{{"eans": ["1"], "callback_url": "{url}"}}"#)) {
            Err(Problem::UrlRefused { field: "callback_url", fault }) => fault,
            other => panic!("{url}: {other:?}"),
        };
        assert_eq!(fault("pas une url"), UrlFault::Malformed);
        assert_eq!(fault("http://"), UrlFault::Malformed);
        assert_eq!(fault("file:///etc/passwd"), UrlFault::Scheme);
        assert_eq!(fault("javascript:alert(1)"), UrlFault::Scheme);
        assert_eq!(fault("http://user:pass@n8n:5678/"), UrlFault::Credentials);
        assert_eq!(fault("http://user@n8n:5678/"), UrlFault::Credentials);
        assert_eq!(fault("http://evil.example/"), UrlFault::Host { host: "evil.example:80".into() });
        assert_eq!(fault("http://n8n:5679/"), UrlFault::Host { host: "n8n:5679".into() }, "another port");
        assert!(matches!(fault("http://n8n:5678.evil.example/"), UrlFault::Malformed));
        assert!(matches!(fault("http://169.254.169.254/latest"), UrlFault::Host { .. }));
    }

    #[test]
    fn a_host_with_a_dot_at_its_end_is_accepted_as_it_will_be_sent_to() {
        let callback =
            parse(r#"{"eans": ["1"], "callback_url": "http://n8n.:5678/w"}"#).unwrap().callback_url;
        let url = Url::parse(&callback.unwrap()).unwrap();
        assert_eq!(crate::webhook::target::check_host(&url, &settings().webhook_hosts), Ok(()));
    }

    #[test]
    fn metadata_that_a_receiver_could_not_read_are_refused() {
        let with = |metadata: &str| parse(&format!(r#"{{"eans": ["1"], "metadata": {metadata}}}"#));
        let nested = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
        assert!(with(&nested(METADATA_DEPTH_MAX as usize)).is_ok());
        for bad in [
            &nested(METADATA_DEPTH_MAX as usize + 1),
            r#"{"a": 1e999}"#,
            r#"{"a": "\ud800"}"#,
            r#"{"\ud800": 1}"#,
        ] {
            assert_eq!(with(bad).unwrap_err(), Problem::MetadataUnreadable, "{bad}");
        }
        let large = format!(r#"{{"a": "{}"}}"#, "x".repeat(2000));
        assert_eq!(with(&large).unwrap_err(), Problem::MetadataTooLarge { bytes_max: 1000 });
    }

    #[test]
    fn metadata_that_would_be_repeated_too_often_are_too_large() {
        let settings = generous(20_000);
        let batch = |products: usize, metadata_bytes: usize| {
            let filling = "x".repeat(metadata_bytes - r#"{"a":""}"#.len());
            let eans = "1,".repeat(products - 1);
            let body = format!(r#"{{"eans": [{eans}1], "metadata": {{"a":"{filling}"}}}}"#);
            Submission::parse(body.as_bytes(), &settings)
        };
        assert!(batch(4096, 16 << 10).is_ok(), "64 MiB in all");
        let problem = batch(4097, 16 << 10).unwrap_err();
        assert_eq!((problem.status().as_u16(), problem.field()), (413, Some("metadata")));
        assert!(batch(20_000, 100).is_ok());
    }

    #[test]
    fn unknown_keys_are_passed_over() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let body =
            format!(r#"{{"executionId": "7", "autre": {deep}, "eans": [{{"primary": "1", "nom": {{}}}}]}}"#);
        assert_eq!(parse(&body).unwrap().eans.len(), 1);
    }

    #[test]
    fn what_is_not_json_is_told_apart() {
        assert_eq!(fault_of(""), Syntax::EndsEarly);
        assert_eq!(fault_of(r#"{"eans": ["1""#), Syntax::EndsEarly);
        assert_eq!(fault_of(r#"{"eans": ["1"]} x"#), Syntax::Trailing);
        assert_eq!(fault_of(r#"{"eans": ["1"]}{"eans": ["2"]}"#), Syntax::Trailing);
        assert_eq!(fault_of(r#"{"eans": [0748322148474]}"#), Syntax::Number);
        assert_eq!(fault_of("{\n\"eans\": [\n0748322148474\n]}"), Syntax::Number);
        assert_eq!(fault_of("eans=1"), Syntax::Other);
        assert_eq!(fault_of("{'eans': []}"), Syntax::Other);
        assert_eq!(fault_of(&format!(r#"{{"eans": {}"#, "[".repeat(1_000_000))), Syntax::EndsEarly);
        for body in ["[]", "\"x\"", "5", "null", r#"[{"eans": ["1"]}]"#] {
            assert_eq!(parse(body).unwrap_err(), Problem::BodyNotAnObject, "{body}");
        }
        let not_utf8 = Submission::parse(b"{\"eans\": [\"\xff\"]}", &settings());
        assert_eq!(not_utf8.unwrap_err(), Problem::BodyNotUtf8);
        assert!(
            Submission::parse(b"\xef\xbb\xbf{\"eans\": [1]}", &settings()).is_ok(),
            "with a byte order mark"
        );
    }

    #[test]
    fn more_products_than_allowed_are_refused_as_too_large() {
        let body = |n: usize| format!(r#"{{"eans": [{}1]}}"#, "1,".repeat(n - 1));
        let max = settings().limits.products_max;
        assert!(parse(&body(max)).is_ok());
        let problem = parse(&body(max + 1)).unwrap_err();
        assert_eq!((problem.status().as_u16(), problem.field()), (413, Some("eans")));
    }

    /// xorshift64*: the same sequence everywhere.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
        }

        fn mutate(&mut self, body: &mut Vec<u8>) {
            const PIECES: [&[u8]; 16] = [
                b"{",
                b"}",
                b"[",
                b"]",
                b",",
                b":",
                b"\"",
                b"\\",
                b"null",
                b"true",
                b"1e999",
                b"-",
                b"\\ud800",
                b"\xff",
                b"\"primary\":",
                b"[[[[[[[[[[[[[[[[[[[[",
            ];
            let at = self.roll(body.len() + 1);
            let to = (at + self.roll(40)).min(body.len());
            match self.roll(6) {
                0 if at < body.len() => body[at] ^= 1 << self.roll(8),
                1 => drop(body.drain(at..to)),
                2 => drop(body.splice(at..at, PIECES[self.roll(PIECES.len())].iter().copied())),
                3 => drop(body.splice(at..to, PIECES[self.roll(PIECES.len())].iter().copied())),
                4 => {
                    let copy = body[at..to].to_vec();
                    let there = self.roll(body.len() + 1);
                    drop(body.splice(there..there, copy));
                }
                _ => body.truncate(at.max(body.len() / 2)),
            }
        }
    }

    #[test]
    fn ten_thousand_mutations_of_a_valid_body_give_a_batch_or_a_4xx() {
        let (mut dice, settings) = (Dice(20_251_017), settings());
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..10_000 {
            let mut body = VALID.as_bytes().to_vec();
            for _ in 0..=dice.roll(4) {
                dice.mutate(&mut body);
            }
            match Submission::parse(&body, &settings) {
                Ok(submission) => {
                    taken += 1;
                    let entries = submission.eans.len();
                    let envelope = Envelope {
                        batch_id: BatchId::from_text("b"),
                        requester: String::new(),
                        key: None,
                        body_hash: [0; 32],
                    };
                    let counts = submission.into_batch(envelope, &settings).counts();
                    assert_eq!((counts.queued + counts.skipped + counts.ignored) as usize, entries);
                }
                Err(problem) => {
                    refused += 1;
                    assert!(problem.status().is_client_error(), "{problem:?}");
                    assert!(!problem.sentence(Language::French).is_empty());
                }
            }
        }
        assert!(
            taken > 500 && refused > 500,
            "the mutations reach both ends: {taken} taken, {refused} refused"
        );
    }
}
