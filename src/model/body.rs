//! The bodies of the webhooks (design 2.2). Built once, inside the transaction that they tell of, and stored.

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::batch::{BatchId, Outcome, Reason, Status};

/// The language of the sentences that users of the workflow read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    #[default]
    French,
    English,
}

/// What the webhook of a product needs to know of its batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchFacts<'a> {
    pub batch_id: &'a BatchId,
    pub total: u32,
    /// A JSON object as text.
    pub metadata: Option<&'a RawValue>,
}

/// What the webhook of a product needs to know of its entry.
#[derive(Clone, Copy, Debug)]
pub struct EntryFacts<'a> {
    pub index: u32,
    pub ean: &'a str,
    pub duplicate_of: Option<u32>,
    pub note: Option<&'a str>,
}

#[derive(Serialize)]
struct ProductBody<'a> {
    ean: &'a str,
    data: &'a Map<String, Value>,
    status: &'static str,
    reason: Option<&'a Reason>,
    used_ean: Option<&'a str>,
    used_replacement: bool,
    duplicate_of: Option<u32>,
    batch_id: &'a BatchId,
    index: u32,
    total: u32,
    errors: Map<String, Value>,
    duration_ms: u64,
    metadata: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
}

/// The body of one product's webhook.
pub fn product(batch: BatchFacts<'_>, entry: EntryFacts<'_>, outcome: &Outcome) -> Vec<u8> {
    let errors =
        outcome.errors.iter().map(|(site, reason)| (site.to_string(), reason_value(reason))).collect();
    debug_assert!(outcome.status == Status::Found || outcome.data.is_empty(), "data only when found");
    let body = ProductBody {
        ean: entry.ean,
        data: &outcome.data,
        status: outcome.status.as_str(),
        reason: outcome.reason.as_ref(),
        used_ean: outcome.used_ean.as_deref(),
        used_replacement: outcome.used_replacement,
        duplicate_of: entry.duplicate_of,
        batch_id: batch.batch_id,
        index: entry.index,
        total: batch.total,
        errors,
        duration_ms: outcome.duration_ms,
        metadata: batch.metadata.unwrap_or(empty_object()),
        note: entry.note,
    };
    serialise(&body)
}

fn reason_value(reason: &Reason) -> Value {
    serde_json::json!({"kind": reason.kind, "detail": reason.detail})
}

fn empty_object<'a>() -> &'a RawValue {
    serde_json::from_str("{}").unwrap_or(RawValue::NULL)
}

/// One product that could not be done, in the summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailedProduct {
    pub ean: String,
    pub kind: String,
    pub detail: String,
}

/// Product deliveries of the batch at the moment its summary is frozen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeliveryCounts {
    pub taken: u32,
    pub dead: u32,
    pub open: u32,
    /// Kept without being sent: there was no endpoint by configuration.
    pub unaddressed: u32,
}

/// What the summary is made from.
#[derive(Clone, Debug)]
pub struct SummaryFacts<'a> {
    pub batch: BatchFacts<'a>,
    /// By status, in the order of [`Status::ALL`].
    pub counts: [u32; 8],
    /// Barcodes of `ignored3400`, then those of `eans` that ended as `ignored`.
    pub ignored_3400: Vec<String>,
    pub not_found_backend: Vec<String>,
    pub failed: Vec<FailedProduct>,
    pub deliveries: DeliveryCounts,
    pub duration_ms: u64,
}

#[derive(Serialize)]
struct SummaryBody<'a> {
    message: String,
    ignored_3400_count: usize,
    not_found_backend_count: usize,
    ignored_3400: &'a [String],
    not_found_backend: &'a [String],
    batch_id: &'a BatchId,
    total_products: u32,
    counts: Map<String, Value>,
    failed: &'a [FailedProduct],
    deliveries: DeliveryCounts,
    duration_ms: u64,
    metadata: &'a RawValue,
}

/// The body of the batch's summary. The first five keys are what old workflows read.
pub fn summary(facts: &SummaryFacts<'_>, language: Language) -> Vec<u8> {
    let counts =
        Status::ALL.iter().zip(facts.counts).map(|(s, n)| (s.as_str().to_owned(), n.into())).collect();
    serialise(&SummaryBody {
        message: message(facts, language),
        ignored_3400_count: facts.ignored_3400.len(),
        not_found_backend_count: facts.not_found_backend.len(),
        ignored_3400: &facts.ignored_3400,
        not_found_backend: &facts.not_found_backend,
        batch_id: facts.batch.batch_id,
        total_products: facts.batch.total,
        counts,
        failed: &facts.failed,
        deliveries: facts.deliveries,
        duration_ms: facts.duration_ms,
        metadata: facts.batch.metadata.unwrap_or(empty_object()),
    })
}

/// At most this many failed barcodes are named in the message; the rest are in `failed`.
const NAMED_MAX: usize = 20;

/// A short report that a person can mail on.
fn message(facts: &SummaryFacts<'_>, language: Language) -> String {
    let french = language == Language::French;
    let total = facts.batch.total;
    let mut lines = vec![if french {
        format!("Lot terminé : {total} produit{} en {}.", plural(total), duration(facts.duration_ms))
    } else {
        format!("Batch finished: {total} product{} in {}.", plural(total), duration(facts.duration_ms))
    }];
    for (status, count) in Status::ALL.into_iter().zip(facts.counts) {
        if count > 0 {
            let label = if french { french_label(status, count) } else { english_label(status) };
            lines.push(if french { format!("- {label} : {count}") } else { format!("- {label}: {count}") });
        }
    }
    if !facts.failed.is_empty() {
        let named: Vec<&str> = facts.failed.iter().take(NAMED_MAX).map(|f| f.ean.as_str()).collect();
        let more = facts.failed.len().saturating_sub(NAMED_MAX);
        let tail = match (more, french) {
            (0, _) => String::new(),
            (n, true) => format!(" et {n} autre{}", plural(n as u32)),
            (n, false) => format!(" and {n} more"),
        };
        let head = if french { "À reprendre :" } else { "To be done again:" };
        lines.push(format!("{head} {}{tail}.", named.join(", ")));
    }
    if facts.deliveries.open > 0 || facts.deliveries.dead > 0 {
        let DeliveryCounts { dead, open, .. } = facts.deliveries;
        lines.push(if french {
            format!("Webhooks de produits : {open} encore en attente, {dead} abandonné{}.", plural(dead))
        } else {
            format!("Product webhooks: {open} still waiting, {dead} given up.")
        });
    }
    lines.join("\n")
}

fn french_label(status: Status, count: u32) -> String {
    let s = plural(count);
    match status {
        Status::Found => format!("trouvé{s}"),
        Status::NotFound => format!("introuvable{s}"),
        Status::EanMismatch => "autre produit affiché par le site".into(),
        Status::NotInCatalogue => "absents de votre catalogue".into(),
        Status::Ignored => format!("ignoré{s} (médicaments)"),
        Status::Skipped => format!("code-barres refusé{s}"),
        Status::Failed => "en échec".into(),
        Status::Cancelled => format!("annulé{s}"),
    }
}

fn english_label(status: Status) -> String {
    match status {
        Status::Found => "found".into(),
        Status::NotFound => "not found".into(),
        Status::EanMismatch => "the shop showed another product".into(),
        Status::NotInCatalogue => "not in your catalogue".into(),
        Status::Ignored => "ignored (medicines)".into(),
        Status::Skipped => "barcode refused".into(),
        Status::Failed => "failed".into(),
        Status::Cancelled => "cancelled".into(),
    }
}

fn plural(count: u32) -> &'static str {
    if count > 1 { "s" } else { "" }
}

fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

fn serialise(body: &impl Serialize) -> Vec<u8> {
    // Maps with text keys and numbers: there is nothing in it that could fail to serialise.
    serde_json::to_vec(body).unwrap_or_default()
}
