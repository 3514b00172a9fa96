//! The configuration: one TOML text → one [`Config`] that is valid in every part, or every problem at once.
//!
//! `config.toml` at the root of the repository is compiled in as [`DEFAULT`] and is the only source of defaults. The
//! user's text is laid over it key by key, so `[sites.cocooncenter]` with `enabled = true` switches the shipped recipe
//! on and `[sites.mine]` is a recipe of one's own. A field of a recipe, or any other inline table, is replaced whole.
//!
//! Pure: nothing is opened, bound or resolved here; paths to secrets stay paths.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use crate::markup::{JsonPath, Limits};
use crate::model::page::Via;
use crate::recipe::Recipe;

mod check;
mod diff;
mod raw;
mod reader;
mod site;
#[cfg(test)]
mod tests;
mod units;

pub use diff::{Changes, take};
pub use units::{Rate, format_duration, format_size};

/// The defaults, every key documented.
pub const DEFAULT: &str = include_str!("../config.toml");

/// Reads `text`, found in `file_name`, over the defaults. Problems come in the order of the file.
pub fn parse(file_name: &str, text: &str) -> Result<Config, Vec<Problem>> {
    check::parse(file_name, text)
}

/// A mistake that only somebody outside can see, e.g. a file that cannot be read, at `key` (`section.key`) of `text`.
pub fn problem_at(file_name: &str, text: &str, key: &str, message: String) -> Problem {
    check::problem_at(file_name, text, key, message)
}

/// One mistake, where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

/// Everything the daemon was told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub server: Server,
    pub ledger: Ledger,
    pub batches: Batches,
    pub webhooks: Webhooks,
    pub tor: Tor,
    pub fetch: Fetch,
    pub extract: Limits,
    /// None: no catalogue is asked.
    pub catalogue: Option<Catalogue>,
    pub log: Log,
    pub shutdown: Shutdown,
    /// Every shop that is described, in use or not.
    pub sites: BTreeMap<String, Arc<Recipe>>,
}

impl Config {
    /// The shops in use, in the order of the file.
    pub fn enabled_sites(&self) -> Vec<Arc<Recipe>> {
        let mut sites: Vec<_> = self.sites.values().filter(|site| site.enabled).cloned().collect();
        sites.sort_by_key(|site| site.position);
        sites
    }
}

/// `[server]`: the API's listener and its limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub listen: SocketAddr,
    /// Names accepted in the Host header, lower case; IP literals always are.
    pub hosts: Vec<String>,
    pub allow_from: Vec<IpNet>,
    pub token_file: Option<PathBuf>,
    pub language: Language,
    pub products_max: usize,
    pub body_bytes_max: usize,
    pub metadata_bytes_max: usize,
    pub header_bytes_max: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub request_timeout: Duration,
    pub connections_max: usize,
    pub dedupe_window: Duration,
}

/// The language of `error`, for the people who read n8n's screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    #[default]
    Fr,
    En,
}

/// `[ledger]`: the one memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Ledger {
    /// As written, e.g. `sqlite:glaneur.db`.
    pub url: String,
    /// What `url` names; relative to the working directory.
    pub path: PathBuf,
    pub free_bytes_min: u64,
    pub claims_max: u32,
    pub queue_max: usize,
    pub group_max: usize,
}

/// `[batches]`: how batches are worked off.
#[derive(Clone, Debug, PartialEq)]
pub struct Batches {
    /// Products claimed at once per batch; resolved, never 0.
    pub window: usize,
    /// Digits; see [`crate::model::Gtin::has_prefix`].
    pub ignore_prefixes: Vec<String>,
}

/// `[webhooks]`: where outcomes are sent, and how stubbornly.
#[derive(Clone, Debug, PartialEq)]
pub struct Webhooks {
    pub product_url: ProductUrl,
    pub summary_url: Option<Url>,
    pub secret_file: Option<PathBuf>,
    /// Where a batch's own `callback_url` and `webhook_url` may point.
    pub hosts: Vec<HostRule>,
    pub timeout: Duration,
    /// Deliveries at once, per endpoint.
    pub concurrency: usize,
    pub park_after: u32,
    pub patience: Duration,
    pub summary_wait: Duration,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    pub parked_probe_max: Duration,
}

/// Where product webhooks go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProductUrl {
    /// Said so on purpose: outcomes are kept and counted as unaddressed.
    None,
    Url(Url),
}

impl ProductUrl {
    pub fn url(&self) -> Option<&Url> {
        match self {
            Self::None => None,
            Self::Url(url) => Some(url),
        }
    }
}

/// A host, or a host with one port, that URLs from outside may point to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRule {
    /// As [`Url::host_str`] writes it: lower case, punycode, IPv6 in brackets; no dot at the end.
    pub host: String,
    /// None: any port.
    pub port: Option<u16>,
}

impl HostRule {
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is not a host such as \"n8n.example\" or \"n8n.example:5678\"");
        if text.contains(['/', '@', '?', '#', '\\']) || text.trim().is_empty() {
            return Err(wrong());
        }
        // A scheme without a default port keeps every port that was written.
        let url = Url::parse(&format!("any://{text}")).map_err(|_| wrong())?;
        let host = url.host_str().ok_or_else(wrong)?;
        let host = url::Host::parse(without_dot(host)).map_err(|_| wrong())?.to_string();
        Ok(Self { host, port: url.port() })
    }

    /// The one place where a URL of a shop, a candidate or a batch is held against the rule: what is accepted today
    /// must not be withheld for ever tomorrow.
    pub fn allows(&self, url: &Url) -> bool {
        url.host_str().is_some_and(|host| without_dot(host).eq_ignore_ascii_case(&self.host))
            && self.port.is_none_or(|port| url.port_or_known_default() == Some(port))
    }
}

/// A name with a dot at the end is the same name, said to be complete.
fn without_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// `[tor]`: the way out.
#[derive(Clone, Debug, PartialEq)]
pub struct Tor {
    pub socks: SocketAddr,
    pub control: Option<SocketAddr>,
    pub binding: Binding,
    /// Where tor asks for a password in place of its cookie.
    pub control_password_file: Option<PathBuf>,
    /// How many circuits, and so scrapers, there are.
    pub circuits: usize,
    /// Fetches through Tor after which a circuit is retired, between two visits. A visit makes several.
    pub uses_max: u32,
    /// Below tor's MaxCircuitDirtiness, at which tor itself would change the circuit.
    pub age_max: Duration,
    /// How long an exit that a shop blocked is kept away from that shop.
    pub block_memory: Duration,
    pub probe_timeout: Duration,
    /// Of a shop's visits so many in a hundred may be started once more.
    pub hedge_percent: u32,
}

/// What makes a scraper one circuit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// Its own user and password; tor may move them to another circuit unasked.
    #[default]
    Credentials,
    /// The daemon itself, through the control port.
    Strict,
}

impl Binding {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Strict => "strict",
        }
    }
}

/// `[fetch]`: the limits of a visit.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetch {
    pub connect_timeout: Duration,
    pub first_byte_timeout: Duration,
    pub silence_timeout: Duration,
    pub visit_deadline: Duration,
    /// As sent.
    pub body_bytes_max: usize,
    /// After gzip, br or zstd.
    pub decoded_bytes_max: usize,
    pub redirects_max: u32,
    pub user_agent: String,
    pub attempts_max: u32,
    pub retry_min: Duration,
    pub retry_max: Duration,
}

/// `[catalogue]`: the owner's own list of products, asked first.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalogue {
    /// Contains `{ean}`.
    url: String,
    pub token_file: Option<PathBuf>,
    pub via: Via,
    pub timeout: Duration,
    pub rate: Rate,
    pub concurrency: usize,
    pub attempts_max: u32,
    /// Where the answer says how many products it found.
    pub total: JsonPath,
    /// Where it says the product's name.
    pub name: Option<JsonPath>,
}

impl Catalogue {
    /// The address that asks for `gtin`.
    pub fn url(&self, gtin: &crate::model::Gtin) -> Url {
        // Digits in place of a placeholder that was tried when the configuration was read.
        Url::parse(&self.url.replace(crate::recipe::EAN, &gtin.padded()))
            .expect("checked with another barcode")
    }
}

/// `[log]`: the operator's interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub format: LogFormat,
    pub level: LogLevel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, the journal's own fields under systemd, JSON lines otherwise.
    Auto,
    Text,
    Json,
    Journal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// `[shutdown]`: what a signal starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Shutdown {
    /// The time for all of it: visits, outcomes, webhooks in flight.
    pub drain: Duration,
}
