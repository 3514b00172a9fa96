//! From `kill -9` in full flight to work again, with 100 000 products queued.
//!
//! `cargo bench --bench restart`. Shops and receiver are on this machine and answer at once, so what is measured is the
//! daemon: the end of the old process, the start of the new one, the ledger's recovery, and the way to a first visit.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use glaneur_kit::{Catalogue, Config, Daemon, Receiver, Result, Shops, Trouble, figures};
use serde_json::{Value, json};

const BATCHES: usize = 10;
const PRODUCTS: usize = 10_000;
const TURNS: usize = 5;
const SCRAPERS: u32 = 16;
/// Requests at the shops before each kill: then every scraper is at work, and what the last kill cut is over.
const IN_FLIGHT_AFTER: usize = 300;

const FIRST_VISIT_S_MAX: f64 = 1.0;
/// Only ends a run that would wait for ever.
const LONG: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    figures(run())
}

/// Seconds from the kill to each step.
#[derive(Clone, Copy, Debug)]
struct Turn {
    gone: f64,
    listens: f64,
    ready: f64,
    accepted: f64,
    visited: f64,
}

/// Whether the median is within its limit.
async fn run() -> Result<bool> {
    // The shops have none of the barcodes below: a visit is one request.
    let shops = Shops::start_here(Catalogue::real_batch())?;
    let receiver = Receiver::start()?;
    let mut daemon = Daemon::start(env!("CARGO_BIN_EXE_glaneur"), config(&shops, &receiver)).await?;
    for batch in 0..BATCHES {
        let (status, answer) = daemon.submit(&body(batch * PRODUCTS, PRODUCTS)).await?;
        assert_eq!((status, &answer["counts"]["queued"]), (202, &json!(PRODUCTS)), "{answer}");
    }
    let mut turns = Vec::new();
    for turn in 0..TURNS {
        turns.push(restart(&mut daemon, &shops, turn).await?);
    }
    let open = open_products(&daemon)?;
    Ok(print(&turns, open))
}

fn config(shops: &Shops, receiver: &Receiver) -> Config {
    let config = Config::new()
        .product_url(receiver.url("/p"))
        .summary_url(receiver.url("/s"))
        .circuits(SCRAPERS)
        .set("log", "format", "json")
        .set("ledger", "free_bytes_min", 0);
    let config = shops.all.iter().fold(config, |config, shop| {
        let name = shop.kind().name();
        config
            .site(name, shop.direct_base())
            .site_key(name, "via", "direct")
            .site_key(name, "rate", "1000/s")
            .site_key(name, "adaptive", false)
            .site_key(name, "pause", "0s")
            .site_key(name, "concurrency", SCRAPERS)
    });
    // The third shop's search is another host's in the world, and its own here.
    config.set("sites.drakkars.search", "url", "/5/search?hashid=demo&query={ean}")
}

async fn restart(daemon: &mut Daemon, shops: &Shops, turn: usize) -> Result<Turn> {
    let hits = || shops.all.iter().map(|shop| shop.records().len()).sum::<usize>();
    let before = hits();
    until(|| before + IN_FLIGHT_AFTER <= hits(), "the visits to be in full flight").await?;
    let killed = Instant::now();
    daemon.kill_9().await?;
    let gone = Instant::now();
    let seen = shops.all.iter().map(|shop| shop.records().len()).collect::<Vec<_>>();
    daemon.restart().await?;
    let listens = Instant::now();
    let api = daemon.api();
    let accepted = tokio::spawn(async move {
        // Never sent before, so that it is no repeat.
        let (status, answer) = api.submit(&body(BATCHES * PRODUCTS + turn, 1)).await?;
        assert_eq!(status, 202, "{answer}");
        Ok::<_, Trouble>(Instant::now())
    });
    while daemon.get("/readyz").await?.0 != 200 {
        assert!(killed.elapsed() < LONG, "never ready");
    }
    let ready = Instant::now();
    // A request that the old process had sent may have come after its end: those of the new one come after it listens,
    // or shortly before.
    let first = || {
        let of = |(shop, seen): (&glaneur_kit::Shop, &usize)| {
            shop.records().with(|hits| hits[*seen..].iter().map(|hit| hit.at).find(|at| gone < *at))
        };
        shops.all.iter().zip(&seen).filter_map(of).min()
    };
    until(|| first().is_some(), "a first visit").await?;
    let visited = first().ok_or_else(|| Trouble::new("the first visit is gone"))?;
    let accepted = accepted.await.map_err(|error| Trouble::new(error.to_string()))??;
    let after = |moment: Instant| moment.duration_since(killed).as_secs_f64();
    Ok(Turn {
        gone: after(gone),
        listens: after(listens),
        ready: after(ready),
        accepted: after(accepted),
        visited: after(visited),
    })
}

async fn until(holds: impl Fn() -> bool, what: &str) -> Result<()> {
    let begun = Instant::now();
    while !holds() {
        if LONG < begun.elapsed() {
            return Err(Trouble::new(format!("waited {LONG:?} for {what}")));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Products without an outcome, to show that the queue was as long as is said.
fn open_products(daemon: &Daemon) -> Result<i64> {
    let ledger = rusqlite::Connection::open(daemon.ledger_path());
    let count = ledger.and_then(|ledger| {
        ledger.query_row("SELECT count(*) FROM product WHERE state < 2", [], |row| row.get(0))
    });
    count.map_err(|error| Trouble::new(error.to_string()))
}

#[expect(clippy::print_stdout, reason = "a benchmark tells its figures")]
fn print(turns: &[Turn], open: i64) -> bool {
    println!("{} products accepted, {open} of them still open after {TURNS} kills", BATCHES * PRODUCTS);
    let row = |what: &str, of: fn(&Turn) -> f64| {
        let mut all: Vec<f64> = turns.iter().map(of).collect();
        let told: Vec<String> = all.iter().map(|seconds| format!("{seconds:.3}")).collect();
        all.sort_by(f64::total_cmp);
        let median = all[all.len() / 2];
        println!("from the kill to {what:32} median {median:.3} s   turns {}", told.join(" "));
        median
    };
    row("the old process gone", |turn| turn.gone);
    row("the line that says where it listens", |turn| turn.listens);
    row("readyz 200", |turn| turn.ready);
    row("the first 202", |turn| turn.accepted);
    let median = row("the first request at a shop", |turn| turn.visited);
    let met = median < FIRST_VISIT_S_MAX;
    println!("limit {FIRST_VISIT_S_MAX} s: {}", if met { "met" } else { "MISSED" });
    met
}

/// `count` products from the `first` invented one on; the shops have none of them.
fn body(first: usize, count: usize) -> Value {
    let entry = |n| json!({"primary": ean(n), "replacement": null});
    json!({"eans": (first..first + count).map(entry).collect::<Vec<_>>()})
}

/// The `n`th invented barcode.
fn ean(n: usize) -> String {
    let body = format!("37{n:010}");
    let weigh = |(at, digit): (usize, u8)| u32::from(digit - b'0') * if at % 2 == 0 { 1 } else { 3 };
    let sum: u32 = body.bytes().enumerate().map(weigh).sum();
    format!("{body}{}", (10 - sum % 10) % 10)
}
