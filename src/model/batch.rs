//! A batch, its products, and the closed list of ways a product can end.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Gtin;

/// The number of a batch in its ledger: the `thread_id` of the answer, and the key of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchNo(pub i64);

/// The public name of a batch: a UUID version 7, which sorts by time (RFC 9562).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct BatchId(Box<str>);

impl BatchId {
    /// A new name, later than every one before it.
    pub fn mint() -> Self {
        Self(uuid::Uuid::now_v7().to_string().into())
    }

    pub fn from_text(text: &str) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One entry of `eans`; `index` counts from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProductKey {
    pub batch: BatchNo,
    pub index: u32,
}

/// The short name of a shop in `config.toml`, `data` and the log, e.g. `cocooncenter`.
pub type SiteName = Box<str>;

/// The closed list of ways a product can end. Discriminants are what the ledger stores: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Status {
    /// A shop has it, and its page shows the GTIN asked for.
    Found = 1,
    /// Every shop answered, and none has it.
    NotFound = 2,
    /// A shop answered with another product.
    EanMismatch = 3,
    /// The owner's catalogue does not sell it.
    NotInCatalogue = 4,
    /// A barcode that is not looked up (`batches.ignore_prefixes`).
    Ignored = 5,
    /// What was sent is no barcode.
    Skipped = 6,
    /// A shop, the catalogue, or the daemon could not do its part.
    Failed = 7,
    /// A person stopped the batch.
    Cancelled = 8,
}

impl Status {
    pub const ALL: [Self; 8] = [
        Self::Found,
        Self::NotFound,
        Self::EanMismatch,
        Self::NotInCatalogue,
        Self::Ignored,
        Self::Skipped,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The word of the contract (design 2.2).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::NotFound => "not_found",
            Self::EanMismatch => "ean_mismatch",
            Self::NotInCatalogue => "not_in_catalogue",
            Self::Ignored => "ignored",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|status| *status as u8 == code)
    }
}

/// Why, in a stable word and in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    pub kind: String,
    pub detail: String,
}

impl Reason {
    pub fn new(kind: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind: kind.into(), detail: detail.into() }
    }
}

/// How a product ended, with what its webhook tells about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub status: Status,
    pub reason: Option<Reason>,
    /// The barcode that gave the result: the primary or the replacement.
    pub used_ean: Option<String>,
    pub used_replacement: bool,
    /// By shop; filled only if `status` is `Found`.
    pub data: serde_json::Map<String, serde_json::Value>,
    /// By shop: what went wrong there.
    pub errors: Vec<(SiteName, Reason)>,
    /// From the first dial to the end, in milliseconds.
    pub duration_ms: u64,
}

impl Outcome {
    /// An end without a visit.
    pub fn without_visit(status: Status, reason: Option<Reason>) -> Self {
        let data = serde_json::Map::new();
        Self {
            status,
            reason,
            used_ean: None,
            used_replacement: false,
            data,
            errors: Vec::new(),
            duration_ms: 0,
        }
    }

    /// Ended because the daemon died too often while its page was in hand (design 4, rule 2).
    pub fn crashed(detail: &str) -> Self {
        Self::without_visit(Status::Failed, Some(Reason::new("crashed", detail)))
    }
}

/// What the intake made of one entry of `eans`.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// To be looked up.
    Visit { gtin: Gtin, replacement: Option<Gtin> },
    /// The same product as an earlier entry: never claimed, ends with it.
    Duplicate { of: u32, gtin: Gtin, replacement: Option<Gtin> },
    /// Over at once: `skipped` or `ignored`.
    Over { status: Status, reason: Reason },
}

/// One entry of `eans` as it goes into the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct NewProduct {
    /// As it was sent; padded if it came as a number.
    pub ean: String,
    pub fate: Fate,
    /// What the sender should know although nothing is wrong enough to stop, e.g. a bad replacement.
    pub note: Option<String>,
}

/// Entries of `eans` by what the intake made of them; they add up to the total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntakeCounts {
    pub queued: u32,
    pub skipped: u32,
    pub ignored: u32,
}

/// One skipped entry, told in the 202.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub index: u32,
    pub ean: String,
    pub reason: String,
}

/// A batch on its way into the ledger, complete but for its number.
#[derive(Clone, Debug)]
pub struct NewBatch {
    pub batch_id: BatchId,
    /// Who asked: a token's name or an address; repeats are looked for among the same requester's batches.
    pub requester: String,
    /// The `Idempotency-Key`.
    pub key: Option<String>,
    /// SHA-256 of the request body.
    pub body_hash: [u8; 32],
    /// Do not look for a repeat without a key.
    pub force: bool,
    /// Shops of this batch, fixed now (design 4, rule 13).
    pub sites: Vec<SiteName>,
    pub webhook_url: Option<String>,
    pub callback_url: Option<String>,
    /// A JSON object, echoed as it was sent.
    pub metadata: Option<Box<serde_json::value::RawValue>>,
    pub products: Vec<NewProduct>,
    pub ignored_3400: Vec<String>,
}

/// At most this many skipped entries are told in the 202; the rest are in the webhooks.
pub const REFUSED_MAX: usize = 100;

impl NewBatch {
    pub fn counts(&self) -> IntakeCounts {
        let mut counts = IntakeCounts::default();
        for product in &self.products {
            match product.fate {
                Fate::Visit { .. } | Fate::Duplicate { .. } => counts.queued += 1,
                Fate::Over { status: Status::Ignored, .. } => counts.ignored += 1,
                Fate::Over { .. } => counts.skipped += 1,
            }
        }
        counts
    }

    pub fn refused(&self) -> Vec<Refused> {
        let skipped = (1..).zip(&self.products).filter_map(|(index, product)| match &product.fate {
            Fate::Over { status: Status::Skipped, reason } => {
                Some(Refused { index, ean: product.ean.clone(), reason: reason.detail.clone() })
            }
            Fate::Over { .. } | Fate::Visit { .. } | Fate::Duplicate { .. } => None,
        });
        skipped.take(REFUSED_MAX).collect()
    }
}

/// What the 202 says; also what a repeat of the request gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub batch: BatchNo,
    pub batch_id: BatchId,
    pub total: u32,
    pub counts: IntakeCounts,
    pub refused: Vec<Refused>,
    /// This request came before; nothing new was stored.
    pub repeat: Option<Repeat>,
}

/// How a repeat was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// By its `Idempotency-Key`.
    Key,
    /// By its body: the answer says `"duplicate": true`.
    Body,
}
