//! What the daemon adds to the requests themselves: 2 000 products on three shops, beside a bare loop of the same
//! requests.
//!
//! The shops are on this machine, answer searches at once and pages of 60 KB after 300 ms, and are visited directly; 64
//! visits are under way at once on both sides. The daemon is the real binary, with its log at the default level, its
//! ledger on disk and its webhooks taken; its time runs from the submit to the last product webhook. The bare loop is
//! this program once more: the same recipes make its requests, the same client sends them, and it reads the answers and
//! throws them away. Daemon and loop take turns, so that the machine and its other users are in both.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use glaneur::model::Gtin;
use glaneur::model::page::{Request, Via};
use glaneur::scraper::circuit::{Circuit, Settings};
use glaneur::scraper::fetch::FetchLimits;
use glaneur::scraper::tls::Tls;
use glaneur::scraper::tor::TorGate;
use glaneur_kit::daemon::proc;
use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{Because, Catalogue, Config, Daemon, Receiver, Result, Shop, ShopKind, Shops, Trouble};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinSet;

const PRODUCTS: usize = 2_000;
const SEED: u64 = 11;
const SCRAPERS: u32 = 64;
const PAGE_BYTES: usize = 60_000;
const PAGE_AFTER: Duration = Duration::from_millis(300);
/// Each side's products are visited in this many turns.
const TURNS: usize = 2;
/// The argument that makes this program the bare loop.
const BARE: &str = "--bare-loop";
/// No expectation about speed: it only ends a run that would wait for ever.
const TURN_MAX: Duration = Duration::from_secs(180);

fn main() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().because("start threads")?;
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|argument| argument == BARE) {
        Some(at) => runtime.block_on(bare_loop(&arguments[at + 1..])),
        None => runtime.block_on(run()),
    }
}

/// What one turn took.
#[derive(Clone, Copy, Default)]
struct Took {
    products: usize,
    time: Duration,
    cpu: Duration,
}

impl Took {
    fn per_second(self) -> f64 {
        self.products as f64 / self.time.as_secs_f64()
    }

    fn cpu_ms(self) -> f64 {
        self.cpu.as_secs_f64() * 1e3 / self.products as f64
    }

    fn and(self, other: Self) -> Self {
        Self {
            products: self.products + other.products,
            time: self.time + other.time,
            cpu: self.cpu + other.cpu,
        }
    }
}

async fn run() -> Result<()> {
    let shops = Shops::start_here(catalogue())?;
    shops.behave(&When::Pages, &Conduct::Filler(PAGE_BYTES).after(PAGE_AFTER));
    let receiver = Receiver::start()?;
    let config = config(&shops.all, &receiver);
    let daemon = Daemon::start(env!("CARGO_BIN_EXE_glaneur"), config).await?;
    let eans = catalogue().eans();
    let (mut own, mut bare) = (Vec::new(), Vec::new());
    for (turn, eans) in eans.chunks(PRODUCTS.div_ceil(TURNS)).enumerate() {
        let first = turn * PRODUCTS.div_ceil(TURNS);
        if turn % 2 == 0 {
            own.push(through_the_daemon(&daemon, &receiver, eans).await?);
            bare.push(through_the_bare_loop(&daemon, first, eans.len()).await?);
        } else {
            bare.push(through_the_bare_loop(&daemon, first, eans.len()).await?);
            own.push(through_the_daemon(&daemon, &receiver, eans).await?);
        }
    }
    print(&own, &bare);
    if std::env::var_os("GLANEUR_BENCH_LOG").is_some() {
        println!("{}", daemon.stderr_tail());
    }
    Ok(())
}

fn print(own: &[Took], bare: &[Took]) {
    let total = |turns: &[Took]| turns.iter().fold(Took::default(), |sum, turn| sum.and(*turn));
    println!(
        "{PRODUCTS} products on 3 shops, pages of {PAGE_BYTES} bytes after {PAGE_AFTER:?}, {SCRAPERS} visits at once"
    );
    println!("{:<24} {:>12} {:>18}   turns", "", "products/s", "CPU ms/product");
    for (name, turns) in [("glaneur", own), ("bare loop", bare)] {
        let (rate, cpu_ms) = (total(turns).per_second(), total(turns).cpu_ms());
        let turns: Vec<String> = turns.iter().map(|turn| format!("{:.1}", turn.per_second())).collect();
        println!("{name:<24} {rate:>12.1} {cpu_ms:>18.2}   {}", turns.join(" "));
    }
    let ceiling = f64::from(SCRAPERS) / PAGE_AFTER.as_secs_f64() / 3.0;
    println!("{:<24} {ceiling:>12.1}   if nothing but the shops' pause took time", "ceiling");
    let ratio = total(own).per_second() / total(bare).per_second();
    println!(
        "glaneur / bare loop {ratio:>17.3}   at least 0.8: {}",
        if 0.8 <= ratio { "met" } else { "MISSED" }
    );
}

fn catalogue() -> Catalogue {
    Catalogue::synthetic(PRODUCTS, SEED)
}

fn config(shops: &[Shop], receiver: &Receiver) -> Config {
    let mut config = Config::new().product_url(receiver.url("/p")).circuits(SCRAPERS);
    for shop in shops {
        let name = shop.kind().name();
        config = config
            .site(name, shop.direct_base())
            .site_key(name, "via", "direct")
            .site_key(name, "rate", "1000/s")
            .site_key(name, "adaptive", false)
            .site_key(name, "pause", "0s")
            .site_key(name, "concurrency", SCRAPERS);
    }
    // The third shop's search is another host's in the world, and its own here.
    config.set("sites.drakkars.search", "url", "/5/search?hashid=demo&query={ean}")
}

async fn through_the_daemon(daemon: &Daemon, receiver: &Receiver, eans: &[String]) -> Result<Took> {
    let entries: Vec<Value> = eans.iter().map(|ean| json!({"primary": ean})).collect();
    let before = receiver.records().len();
    let (cpu, begun) = (daemon.cpu_time()?, Instant::now());
    let (status, answer) = daemon.submit(&json!({"eans": entries})).await?;
    if status != 202 {
        return Err(Trouble::new(format!("the batch got {status}: {answer}")));
    }
    while receiver.records().len() < before + eans.len() {
        if TURN_MAX < begun.elapsed() {
            return Err(Trouble::new(format!("not all products came within {TURN_MAX:?}")));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = Took { products: eans.len(), time: begun.elapsed(), cpu: daemon.cpu_time()? - cpu };
    let bodies = receiver.records().with(|seen| seen[before..].to_vec());
    let whole =
        bodies.iter().filter(|seen| seen.json()["data"].as_object().is_some_and(|data| data.len() == 3));
    if whole.count() == eans.len() {
        Ok(took)
    } else {
        Err(Trouble::new("not every product was found in all three shops"))
    }
}

/// A process of its own, as the daemon is, so that its CPU time is its own.
async fn through_the_bare_loop(daemon: &Daemon, first: usize, products: usize) -> Result<Took> {
    let program = std::env::current_exe().because("find this program")?;
    let output = Command::new(program)
        .arg(BARE)
        .arg(daemon.config_path())
        .args([first.to_string(), products.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(TURN_MAX, output).await.because("wait for the bare loop")?;
    let text = output.because("run the bare loop")?.stdout;
    let figures: Value = serde_json::from_slice(&text).because("read the bare loop's figures")?;
    let seconds = |name: &str| Duration::from_secs_f64(figures[name].as_f64().unwrap_or_default());
    Ok(Took { products, time: seconds("time"), cpu: seconds("cpu") })
}

/// All visits of some products, by as many workers as the daemon has scrapers, each with a client of its own.
async fn bare_loop(arguments: &[String]) -> Result<()> {
    let [file, first, products] = arguments else { return Err(Trouble::new("a file and two numbers")) };
    let (first, products): (usize, usize) =
        (first.parse().because("read a number")?, products.parse().because("read a number")?);
    let text = std::fs::read_to_string(file).because(format_args!("read {file}"))?;
    let config = glaneur::config::parse(file, &text)
        .map_err(|problems| Trouble::new(problems.iter().map(ToString::to_string).collect::<String>()))?;
    let tls = Tls::new(None).because("set TLS up")?;
    let settings = Settings::new(TorGate::new(config.tor.socks), tls);
    let fetch = &config.fetch;
    let limits = FetchLimits {
        connect: fetch.connect_timeout,
        first_byte: fetch.first_byte_timeout,
        silence: fetch.silence_timeout,
        body_bytes_max: fetch.body_bytes_max,
        decoded_bytes_max: fetch.decoded_bytes_max,
        redirects_max: fetch.redirects_max,
        user_agent: fetch.user_agent.clone(),
    };
    let visits = Arc::new(visits(&config, first, products)?);
    let next = Arc::new(AtomicUsize::new(0));
    let (cpu, begun) = (proc::cpu_time(std::process::id())?, Instant::now());
    let mut workers = JoinSet::new();
    for worker in 0..SCRAPERS {
        let mut circuit = Circuit::new(worker, 0, 1, settings.clone());
        let (visits, next, limits) = (Arc::clone(&visits), Arc::clone(&next), limits.clone());
        workers.spawn(async move {
            while let Some(visit) = visits.get(next.fetch_add(1, Ordering::Relaxed)) {
                for request in visit {
                    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
                    let page = circuit.fetch(request, Via::Direct, &limits, &[], deadline).await;
                    let page = page.because("fetch a page")?;
                    if page.status != 200 {
                        return Err(Trouble::new(format!("{} answered {}", request.url, page.status)));
                    }
                }
            }
            Ok(())
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.because("wait for a worker")??;
    }
    let (time, cpu) = (begun.elapsed(), proc::cpu_time(std::process::id())? - cpu);
    println!("{}", json!({"time": time.as_secs_f64(), "cpu": cpu.as_secs_f64()}));
    Ok(())
}

/// The two requests of every visit: each product at one shop after the other, as the daemon's queue has them.
fn visits(config: &glaneur::config::Config, first: usize, products: usize) -> Result<Vec<[Request; 2]>> {
    let catalogue = catalogue();
    let recipes = config.enabled_sites();
    let mut visits = Vec::new();
    for ean in catalogue.eans().iter().skip(first).take(products) {
        let gtin = Gtin::parse(ean).because("read a barcode")?;
        let product = catalogue.product(ean).ok_or_else(|| Trouble::new("the catalogue lost a product"))?;
        for recipe in &recipes {
            let kind = ShopKind::ALL.into_iter().find(|kind| kind.name() == recipe.name);
            let kind = kind.ok_or_else(|| Trouble::new("an unknown shop"))?;
            let page = recipe.base.join(&kind.page_path(product)).because("make a URL")?;
            visits.push([recipe.search_request(&gtin), recipe.page_request(&page)]);
        }
    }
    Ok(visits)
}
