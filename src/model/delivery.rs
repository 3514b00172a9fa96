//! A delivery: one webhook on its way, a row of the outbox.

use url::Url;

use super::batch::{BatchId, BatchNo};

/// Where a delivery goes. Named endpoints take their URL from the configuration at each attempt, so that a mended typo
/// mends what waits (design 4, rule 8); a per-batch URL is stored itself, with its query, and is its own lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// `webhooks.product_url`.
    Product,
    /// `webhooks.summary_url`.
    Summary,
    /// `webhook_url` or `callback_url` of a batch.
    Url(Box<str>),
}

impl Endpoint {
    /// What the ledger stores.
    pub fn as_key(&self) -> String {
        match self {
            Self::Product => "product".into(),
            Self::Summary => "summary".into(),
            Self::Url(url) => format!("url:{url}"),
        }
    }

    pub fn from_key(key: &str) -> Self {
        match key {
            "product" => Self::Product,
            "summary" => Self::Summary,
            other => Self::Url(other.strip_prefix("url:").unwrap_or(other).into()),
        }
    }

    /// What the log calls it: never the query of a URL, which may be a secret.
    pub fn for_log(&self) -> &str {
        match self {
            Self::Product => "product",
            Self::Summary => "summary",
            Self::Url(url) => url.split(['?', '#']).next().unwrap_or_default(),
        }
    }
}

/// SHA-256 of the URL that an endpoint had at an attempt. It tells whether the endpoint has another one now, and keeps the
/// URL itself, which may hold a secret, out of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UrlHash(pub [u8; 32]);

impl UrlHash {
    pub fn of(url: &Url) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, url.as_str().as_bytes());
        let mut hash = [0; 32];
        hash.copy_from_slice(digest.as_ref());
        Self(hash)
    }
}

/// The number of an endpoint's lane in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneNo(pub i64);

/// The row of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryNo(pub i64);

/// What a delivery tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The end of the product at this index (from 1).
    Product(u32),
    /// The end of the batch, in one of its at most two copies: 1 for `summary_url`, 2 for `callback_url`.
    Summary(u8),
}

impl Subject {
    /// The `webhook-id` (Standard Webhooks): a function of batch and index, so it is the same over retries, restarts
    /// and restored backups.
    pub fn webhook_id(self, batch_id: &BatchId) -> String {
        let batch: String = batch_id.as_str().chars().filter(|c| *c != '-').collect();
        match self {
            Self::Product(index) => format!("msg_{batch}_{index}"),
            Self::Summary(copy) => format!("msg_{batch}_summary{copy}"),
        }
    }
}

/// The states of an outbox row. Discriminants are what the ledger stores: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DeliveryState {
    /// Due now or later.
    Waiting = 0,
    /// The receiver has it.
    Taken = 1,
    /// Given up; kept, and can be sent again.
    Dead = 2,
    /// Its endpoint answered 410; waits for another URL.
    Stopped = 3,
    /// Its endpoint is gone from the configuration, or its host is no longer allowed.
    Withheld = 4,
    /// There is no endpoint by configuration (`product_url = "none"`).
    Unaddressed = 5,
}

impl DeliveryState {
    pub const ALL: [Self; 6] =
        [Self::Waiting, Self::Taken, Self::Dead, Self::Stopped, Self::Withheld, Self::Unaddressed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Taken => "taken",
            Self::Dead => "dead",
            Self::Stopped => "stopped",
            Self::Withheld => "withheld",
            Self::Unaddressed => "unaddressed",
        }
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == code)
    }

    /// Whether the summary still waits for a delivery in this state.
    pub fn is_open(self) -> bool {
        match self {
            Self::Waiting | Self::Stopped | Self::Withheld => true,
            Self::Taken | Self::Dead | Self::Unaddressed => false,
        }
    }
}

/// A delivery that is due, with all that an attempt needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueDelivery {
    pub no: DeliveryNo,
    pub batch: BatchNo,
    pub batch_id: BatchId,
    pub subject: Subject,
    pub endpoint: Endpoint,
    /// Attempts recorded so far; the next one is this plus one.
    pub attempts: u32,
    /// Milliseconds of patience used (design 4, rule 9).
    pub patience_used_ms: u64,
    /// Wall time of the last own attempt, in milliseconds since 1970; none before the first.
    pub last_attempt_at_ms: Option<i64>,
    /// Whether the answer of an earlier attempt was not seen, so that the receiver may have acted.
    pub answer_unseen: bool,
    /// Whether this delivery is in a state other than waiting (withheld), to be looked at again.
    pub state: DeliveryState,
    /// Panics of its lane while this delivery was in hand (design 4, rule 2).
    pub panics: u32,
    pub body: Vec<u8>,
}

/// What one attempt led to: transaction 3 of design 3.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRecord {
    pub no: DeliveryNo,
    /// The number of this attempt; the record is refused if another attempt was recorded meanwhile, except that
    /// "taken" always wins.
    pub attempt: u32,
    pub at_ms: i64,
    pub result: AttemptResult,
    /// HTTP status, if an answer came.
    pub http_status: Option<u16>,
    /// The reason in words, and of a refusal the first 2 KB of its body.
    pub detail: String,
    pub answer_unseen: bool,
    pub patience_used_ms: u64,
}

/// Where an attempt leaves its delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    Taken,
    /// Again after this long; `due_at` is the time of the attempt plus this.
    Again {
        after_ms: u64,
    },
    Dead,
    /// 410: the whole endpoint stops, until it has another URL than this.
    StopEndpoint {
        url: Option<UrlHash>,
    },
    /// Not sent: endpoint gone or host not allowed. No attempt is counted.
    Withheld,
}
