//! Resident memory, idle and with a million products queued, and the time from a start to readiness with them queued.
//!
//! `cargo bench --bench memory`. It prints each figure with its limit, and fails if one is above it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use glaneur_kit::{Config, Daemon, Result, figures};
use serde_json::{Value, json};

const BATCHES: usize = 100;
const PRODUCTS: usize = 10_000;

const MB: f64 = 1e6;
const IDLE_MB_MAX: f64 = 20.0;
const ABOVE_IDLE_MB_MAX: f64 = 40.0;
const READY_S_MAX: f64 = 1.0;

/// Memory counts as settled when it moved less than this within [`STILL_FOR`].
const STILL_BYTES: u64 = 256 << 10;
const STILL_FOR: Duration = Duration::from_secs(2);
/// Only ends a run that would wait for ever.
const LONG: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    figures(run())
}

/// Whether every figure is within its limit.
async fn run() -> Result<bool> {
    // Port 9 answers nobody: Tor is away, and all that is accepted stays queued.
    let config = ["cocooncenter", "pharmagdd", "drakkars"].into_iter().fold(
        Config::new()
            .product_url("http://127.0.0.1:9/p")
            .summary_url("http://127.0.0.1:9/s")
            .socks(([127, 0, 0, 1], 9).into())
            .set("log", "format", "json")
            .set("ledger", "free_bytes_min", 0),
        |config, shop| config.site_key(shop, "enabled", true),
    );
    let mut daemon = Daemon::start(env!("CARGO_BIN_EXE_glaneur"), config).await?;
    ready(&daemon).await?;
    let idle = settled(&daemon).await?;
    let mut report = Report::default();
    report.add("idle, MB", idle, Some(IDLE_MB_MAX));

    let begun = Instant::now();
    for batch in 0..BATCHES {
        let (status, answer) = daemon.submit(&body(batch)).await?;
        assert_eq!((status, &answer["counts"]["queued"]), (202, &json!(PRODUCTS)), "{answer}");
    }
    let accepting = begun.elapsed().as_secs_f64();
    let queued = settled(&daemon).await?;
    report.add("million queued, just accepted, above idle, MB", queued - idle, Some(ABOVE_IDLE_MB_MAX));
    report.add("accepting the million, s", accepting, None);

    daemon.kill_9().await?;
    let begun = Instant::now();
    daemon.restart().await?;
    ready(&daemon).await?;
    report.add(
        "start to readyz 200 with the million queued, s",
        begun.elapsed().as_secs_f64(),
        Some(READY_S_MAX),
    );
    let restarted = settled(&daemon).await?;
    report.add("million queued, started anew, above idle, MB", restarted - idle, Some(ABOVE_IDLE_MB_MAX));
    let cpu = daemon.cpu_time()?;
    report.add("CPU of that start, until memory was still, s", cpu.as_secs_f64(), None);
    Ok(report.within)
}

struct Report {
    within: bool,
}

impl Default for Report {
    fn default() -> Self {
        Self { within: true }
    }
}

impl Report {
    #[expect(clippy::print_stdout, reason = "a benchmark tells its figures")]
    fn add(&mut self, what: &str, value: f64, max: Option<f64>) {
        let verdict = match max {
            Some(max) if max <= value => {
                self.within = false;
                format!("ABOVE the limit of {max}")
            }
            Some(max) => format!("limit {max}"),
            None => String::new(),
        };
        println!("{what:50} {value:8.2}  {verdict}");
    }
}

async fn ready(daemon: &Daemon) -> Result<()> {
    let begun = Instant::now();
    loop {
        let (status, answer) = daemon.get("/readyz").await?;
        if status == 200 {
            return Ok(());
        }
        assert!(begun.elapsed() < LONG, "not ready: {answer}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Resident memory in MB, once it has been still for a while.
async fn settled(daemon: &Daemon) -> Result<f64> {
    let begun = Instant::now();
    let (mut since, mut level) = (Instant::now(), daemon.rss_bytes()?);
    while since.elapsed() < STILL_FOR {
        assert!(begun.elapsed() < LONG, "memory never stood still");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = daemon.rss_bytes()?;
        if now.abs_diff(level) > STILL_BYTES {
            (since, level) = (Instant::now(), now);
        }
    }
    Ok(daemon.rss_bytes()? as f64 / MB)
}

/// No two batches have a product in common.
fn body(batch: usize) -> Value {
    let entry = |n| json!({"primary": ean(batch * PRODUCTS + n), "replacement": null});
    json!({"eans": (0..PRODUCTS).map(entry).collect::<Vec<_>>()})
}

/// The `n`th invented barcode.
fn ean(n: usize) -> String {
    let body = format!("37{n:010}");
    let weigh = |(at, digit): (usize, u8)| u32::from(digit - b'0') * if at % 2 == 0 { 1 } else { 3 };
    let sum: u32 = body.bytes().enumerate().map(weigh).sum();
    format!("{body}{}", (10 - sum % 10) % 10)
}
