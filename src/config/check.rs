//! Tree → [`Config`]: each section's keys with their types and ranges, and the rules that join two keys.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::raw::{At, Node, SyntaxError, Value, merge, parse as parse_raw};
use super::reader::{Refusal, Report, Section, USER, http_url, non_empty, text};
use super::{
    Batches, Binding, Catalogue, Config, DEFAULT, Fetch, HostRule, Language, Ledger, Log, LogFormat,
    LogLevel, Problem, ProductUrl, Server, Shutdown, Tor, Webhooks, site,
};
use crate::markup::{JsonPath, Limits};
use crate::model::page::Via;
use crate::recipe::EAN;
use ipnet::IpNet;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// Any wait for a peer: long enough for a slow circuit, short enough to notice.
const TIMEOUT: RangeInclusive<Duration> = MS..=HOUR;
const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Tor's own MaxCircuitDirtiness: past it the credentials silently mean another circuit.
const CIRCUIT_AGE_MAX: Duration = Duration::from_secs(590);

pub(super) const VIA: [(&str, Via); 2] = [("tor", Via::Tor), ("direct", Via::Direct)];

/// The name under which problems of the compiled-in text are reported (there are none: a test sees to it).
const DEFAULT_NAME: &str = "config.toml (compiled in)";

pub(super) fn parse(file_name: &str, text: &str) -> Result<Config, Vec<Problem>> {
    read(file_name, text, &mut Report::default())
}

pub(super) fn read(file_name: &str, text: &str, report: &mut Report) -> Result<Config, Vec<Problem>> {
    let texts = [(DEFAULT_NAME, DEFAULT), (file_name, text)];
    let (base, base_errors) = parse_raw(DEFAULT, 0);
    let (over, over_errors) = parse_raw(text, USER);
    let errors: Vec<(usize, SyntaxError)> = base_errors
        .into_iter()
        .map(|error| (0, error))
        .chain(over_errors.into_iter().map(|error| (USER, error)))
        .collect();
    report.is_partial = !errors.is_empty();
    let tree = merge(base, over, &mut Vec::new(), is_merged);
    let config = config(report, &tree);

    let mut found = Vec::new();
    for (text, (offset, message)) in errors {
        found.push((At { text, offset }, message));
    }
    // A line that does not parse says nothing reliable about its value.
    let broken: Vec<(usize, usize)> =
        found.iter().map(|(at, _)| (at.text, position(texts[at.text].1, *at).0)).collect();
    for (at, message) in report.problems.borrow_mut().drain(..) {
        if !broken.contains(&(at.text, position(texts[at.text].1, at).0)) {
            found.push((at, message));
        }
    }
    found.sort();
    found.dedup();
    match config {
        Some(config) if found.is_empty() => Ok(config),
        _ => Err(found.into_iter().map(|(at, message)| problem(&texts, at, message)).collect()),
    }
}

/// Tables of the shipped file that the user's overlay key by key; all others are one value.
fn is_merged(path: &[String]) -> bool {
    match path {
        [] | [_] => true,
        [section, part] => {
            section == "sites" || section == "every_site" && matches!(part.as_str(), "fields" | "blocks")
        }
        [sites, _, part] => sites == "sites" && matches!(part.as_str(), "fields" | "search" | "blocks"),
        _ => false,
    }
}

fn problem(texts: &[(&str, &str)], at: At, message: String) -> Problem {
    let (file, text) = texts[at.text];
    let (line, column) = position(text, at);
    Problem { file: file.to_owned(), line, column, message }
}

pub(super) fn problem_at(file_name: &str, text: &str, key: &str, message: String) -> Problem {
    let (mut node, _) = parse_raw(text, USER);
    for part in key.split('.') {
        let Value::Table(table) = &node.value else { break };
        // Where it was not written, the table that lacks it.
        let Some(entry) = table.get(part) else { break };
        node = entry.node.clone();
    }
    problem(&[(DEFAULT_NAME, DEFAULT), (file_name, text)], node.at, message)
}

fn position(text: &str, at: At) -> (usize, usize) {
    let before = text.get(..at.offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn config(report: &Report, tree: &Node) -> Option<Config> {
    let Value::Table(table) = &tree.value else { return None };
    let root = Section::new(report, "", tree.at, table);
    // Every section is in the defaults, so one that cannot be read has been reported as no table.
    let server = root.section("server").map(server);
    let ledger = root.section("ledger").map(ledger);
    let tor = root.section("tor").map(tor);
    let circuits = tor.as_ref().map_or(1, |tor| tor.circuits);
    let batches = root.section("batches").map(|section| batches(section, circuits));
    let webhooks = root.section("webhooks").map(webhooks);
    let fetch = root.section("fetch").map(fetch);
    let extract = root.section("extract").map(extract);
    let catalogue = root.section("catalogue").map(catalogue);
    let log = root.section("log").map(log);
    let shutdown = root.section("shutdown").map(shutdown);
    let every_site = root.entry("every_site").map(|entry| &entry.node);
    let sites = match root.entry("sites").map(|entry| &entry.node.value) {
        Some(Value::Table(sites)) => site::sites(report, every_site, sites)
            .into_iter()
            .map(|site| (site.name.clone(), Arc::new(site)))
            .collect(),
        Some(other) => {
            root.problem("sites", format!("`sites`: expected a table, found {}", other.type_name()));
            BTreeMap::new()
        }
        None => BTreeMap::new(),
    };
    root.finish();
    Some(Config {
        server: server?,
        ledger: ledger?,
        batches: batches?,
        webhooks: webhooks?,
        tor: tor?,
        fetch: fetch?,
        extract: extract?,
        catalogue: catalogue?,
        log: log?,
        shutdown: shutdown?,
        sites,
    })
}

fn server(section: Section<'_>) -> Server {
    let listen = section.address("listen");
    let server = Server {
        listen,
        hosts: section.list("hosts", "host names", |node| match HostRule::parse(non_empty(node)?)? {
            HostRule { port: None, host } => Ok(host),
            HostRule { .. } => Err("is a name without a port".into()),
        }),
        allow_from: section
            .list("allow_from", "addresses or networks such as \"10.0.0.0/8\"", |node| network(text(node)?)),
        token_file: section.opt_path("token_file"),
        language: section.choice("language", &[("fr", Language::Fr), ("en", Language::En)]),
        products_max: count(&section, "products_max", 1..=1_000_000),
        body_bytes_max: bytes(&section, "body_bytes_max", KIB..=GIB),
        metadata_bytes_max: bytes(&section, "metadata_bytes_max", 2..=MIB),
        header_bytes_max: bytes(&section, "header_bytes_max", 8 * KIB..=MIB),
        header_timeout: section.duration("header_timeout", TIMEOUT),
        body_timeout: section.duration("body_timeout", TIMEOUT),
        request_timeout: section.duration("request_timeout", TIMEOUT),
        connections_max: count(&section, "connections_max", 1..=65_536),
        dedupe_window: section.duration("dedupe_window", Duration::ZERO..=DAY),
    };
    if !listen.ip().is_loopback() && server.token_file.is_none() && server.allow_from.is_empty() {
        section.problem(
            "listen",
            format!(
                "`server.listen`: {listen} can be reached from other machines; \
                 set `server.token_file` or `server.allow_from` as well"
            ),
        );
    }
    section.finish();
    server
}

fn network(text: &str) -> Result<IpNet, Refusal> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let network = text.parse::<IpNet>().map(|network| network.trunc());
    address.or(network).map_err(|_| {
        Refusal::Value(format!("\"{text}\" is neither an address nor a network such as \"10.0.0.0/8\""))
    })
}

fn ledger(section: Section<'_>) -> Ledger {
    let url = section.text("url", "\"sqlite:PATH\"");
    let path = if url.is_empty() { Ok(PathBuf::new()) } else { sqlite_path(&url) };
    let path = path.unwrap_or_else(|message| {
        section.problem("url", format!("`ledger.url`: {message}"));
        PathBuf::new()
    });
    let ledger = Ledger {
        url,
        path,
        free_bytes_min: section.size("free_bytes_min", 0..=1024 * GIB),
        claims_max: small(&section, "claims_max", 3..=1_000_000),
        queue_max: count(&section, "queue_max", 1..=1_000_000),
        group_max: count(&section, "group_max", 1..=65_536),
    };
    section.finish();
    ledger
}

fn sqlite_path(url: &str) -> Result<PathBuf, String> {
    let Some(path) = url.strip_prefix("sqlite:") else {
        let scheme = url.split(':').next().unwrap_or_default();
        return Err(match scheme {
            "postgres" | "postgresql" => {
                "PostgreSQL is not supported by this version; expected \"sqlite:PATH\"".to_owned()
            }
            _ => format!("\"{url}\" is not \"sqlite:PATH\""),
        });
    };
    let path = path.strip_prefix("//").unwrap_or(path);
    match path {
        "" => Err("no path after \"sqlite:\"".to_owned()),
        // SQLite's own names for a database that dies with the process.
        path if path.starts_with(":memory:") || path.contains("mode=memory") => {
            Err("a ledger in memory would forget everything; expected \"sqlite:PATH\"".to_owned())
        }
        path => Ok(PathBuf::from(path)),
    }
}

fn batches(section: Section<'_>, circuits: usize) -> Batches {
    let window = match count(&section, "window", 0..=100_000) {
        0 => 2 * circuits,
        window => window,
    };
    let ignore_prefixes = section.list("ignore_prefixes", "prefixes of digits", |node| {
        let prefix = text(node)?;
        if prefix.is_empty() || prefix.len() > 13 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("\"{prefix}\" is not 1 to 13 digits").into());
        }
        Ok(prefix.to_owned())
    });
    section.finish();
    Batches { window, ignore_prefixes }
}

fn webhooks(section: Section<'_>) -> Webhooks {
    const PRODUCT_URL: &str = "the URL that product webhooks go to, or \"none\"";
    let product_url = section.opt("product_url", PRODUCT_URL, |node| match text(node)? {
        "none" => Ok(ProductUrl::None),
        url => Ok(ProductUrl::Url(http_url(url)?)),
    });
    if product_url.is_none() && section.at("product_url") == section.at {
        section.missing("product_url", PRODUCT_URL);
    }
    let webhooks = Webhooks {
        product_url: product_url.unwrap_or(ProductUrl::None),
        summary_url: section.opt_url("summary_url"),
        secret_file: section.opt_path("secret_file"),
        hosts: section
            .list("hosts", "hosts such as \"n8n.example:5678\"", |node| Ok(HostRule::parse(text(node)?)?)),
        timeout: section.duration("timeout", TIMEOUT),
        concurrency: count(&section, "concurrency", 1..=256),
        park_after: small(&section, "park_after", 1..=1_000),
        patience: section.duration("patience", SECOND..=365 * DAY),
        summary_wait: section.duration("summary_wait", Duration::ZERO..=30 * DAY),
        backoff_min: section.duration("backoff_min", MS..=HOUR),
        backoff_max: section.duration("backoff_max", MS..=DAY),
        parked_probe_max: section.duration("parked_probe_max", MS..=DAY),
    };
    ordered(&section, ("backoff_min", webhooks.backoff_min), ("backoff_max", webhooks.backoff_max));
    section.finish();
    webhooks
}

fn tor(section: Section<'_>) -> Tor {
    let tor = Tor {
        socks: section.address("socks"),
        control: section.opt_address("control"),
        control_password_file: section.opt_path("control_password_file"),
        binding: section
            .choice("binding", &[("credentials", Binding::Credentials), ("strict", Binding::Strict)]),
        circuits: count(&section, "circuits", 1..=512),
        uses_max: small(&section, "uses_max", 1..=1_000_000),
        age_max: section.duration("age_max", SECOND..=CIRCUIT_AGE_MAX),
        block_memory: section.duration("block_memory", SECOND..=7 * DAY),
        probe_timeout: section.duration("probe_timeout", TIMEOUT),
        hedge_percent: small(&section, "hedge_percent", 0..=100),
    };
    if tor.binding == Binding::Strict && tor.control.is_none() {
        section.problem(
            "binding",
            "`tor.binding`: \"strict\" needs the control port: set `tor.control`".to_owned(),
        );
    }
    section.finish();
    tor
}

fn fetch(section: Section<'_>) -> Fetch {
    let fetch = Fetch {
        connect_timeout: section.duration("connect_timeout", TIMEOUT),
        first_byte_timeout: section.duration("first_byte_timeout", TIMEOUT),
        silence_timeout: section.duration("silence_timeout", TIMEOUT),
        visit_deadline: section.duration("visit_deadline", TIMEOUT),
        body_bytes_max: bytes(&section, "body_bytes_max", KIB..=64 * MIB),
        decoded_bytes_max: bytes(&section, "decoded_bytes_max", KIB..=64 * MIB),
        redirects_max: small(&section, "redirects_max", 0..=20),
        user_agent: section
            .opt("user_agent", "the text of a header", |node| header_value(non_empty(node)?))
            .unwrap_or_default(),
        attempts_max: small(&section, "attempts_max", 1..=100),
        retry_min: section.duration("retry_min", MS..=HOUR),
        retry_max: section.duration("retry_max", MS..=DAY),
    };
    ordered(&section, ("retry_min", fetch.retry_min), ("retry_max", fetch.retry_max));
    section.finish();
    fetch
}

pub(super) fn header_value(text: &str) -> Result<String, Refusal> {
    http::HeaderValue::from_str(text)
        .map_err(|_| Refusal::Value(format!("\"{text}\" cannot be the value of a header")))?;
    Ok(text.to_owned())
}

fn extract(section: Section<'_>) -> Limits {
    let limits = Limits {
        time_max: section.duration("time_max", 10 * MS..=Duration::from_secs(60)),
        depth_max: count(&section, "depth_max", 16..=100_000),
        nodes_max: count(&section, "nodes_max", 100..=10_000_000),
    };
    section.finish();
    limits
}

fn catalogue(section: Section<'_>) -> Option<Catalogue> {
    let url = section.opt("url", "a URL with {ean}", |node| {
        let url = non_empty(node)?;
        if !url.contains(EAN) {
            return Err(format!("\"{url}\" has no {EAN}, where the barcode goes").into());
        }
        http_url(&url.replace(EAN, "0000000000000"))?;
        Ok(url.to_owned())
    });
    let path = |key| {
        section.opt(key, "a path such as \"items.0.name\"", |node| Ok(JsonPath::parse(non_empty(node)?)?))
    };
    let rest = Catalogue {
        url: String::new(),
        token_file: section.opt_path("token_file"),
        via: section.choice("via", &VIA),
        timeout: section.duration("timeout", TIMEOUT),
        rate: section.rate("rate"),
        concurrency: count(&section, "concurrency", 1..=256),
        attempts_max: small(&section, "attempts_max", 1..=1_000),
        total: path("total").unwrap_or_else(JsonPath::whole),
        name: path("name"),
    };
    section.finish();
    Some(Catalogue { url: url?, ..rest })
}

fn log(section: Section<'_>) -> Log {
    let log = Log {
        format: section.choice(
            "format",
            &[
                ("auto", LogFormat::Auto),
                ("text", LogFormat::Text),
                ("json", LogFormat::Json),
                ("journal", LogFormat::Journal),
            ],
        ),
        level: section.choice(
            "level",
            &[
                ("error", LogLevel::Error),
                ("warn", LogLevel::Warn),
                ("info", LogLevel::Info),
                ("debug", LogLevel::Debug),
                ("trace", LogLevel::Trace),
            ],
        ),
    };
    section.finish();
    log
}

fn shutdown(section: Section<'_>) -> Shutdown {
    let shutdown = Shutdown { drain: section.duration("drain", Duration::ZERO..=HOUR) };
    section.finish();
    shutdown
}

fn ordered(section: &Section<'_>, low: (&str, Duration), high: (&str, Duration)) {
    if low.1 > high.1 {
        let names = [section.name(low.0), section.name(high.0)];
        section.problem(low.0, format!("`{}` is longer than `{}`", names[0], names[1]));
    }
}

fn count(section: &Section<'_>, key: &'static str, range: RangeInclusive<u64>) -> usize {
    usize::try_from(section.integer(key, range)).unwrap_or(usize::MAX)
}

pub(super) fn small(section: &Section<'_>, key: &'static str, range: RangeInclusive<u64>) -> u32 {
    u32::try_from(section.integer(key, range)).unwrap_or(u32::MAX)
}

pub(super) fn bytes(section: &Section<'_>, key: &'static str, range: RangeInclusive<u64>) -> usize {
    usize::try_from(section.size(key, range)).unwrap_or(usize::MAX)
}
