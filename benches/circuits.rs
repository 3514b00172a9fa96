//! Many circuits of the real tor, in a private network on this machine: what the daemon makes of them.
//!
//! Two figures. *Products a second* with 1, 8 and 32 circuits, against a bare loop of the same requests over the same
//! tor with the same number of credentials: one shop answers searches at once and pages of 60 KB after 300 ms. The bare
//! loop is this program once more: the same recipe makes its requests, the same client sends them, and it throws the
//! answers away. Daemon and loop take turns, and the CPU time of both and of tor's client is read around each turn. The
//! daemon retires no circuit meanwhile, so that both sides have the same credentials throughout. And *a batch of eight*
//! on three shops that take 2 s for each answer, with 24 circuits, against the sum of its visits, which is what it took
//! when they were made one after the other.
//!
//! All tors have the plain scheduler: with their own, made for the internet, it is the limit on loopback.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::path::Path;
use std::process::{ExitCode, Stdio};
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
use glaneur_kit::{
    Because, Catalogue, Config, Daemon, Receiver, Result, Shop, ShopKind, Shops, TorNetwork, Trouble, figures,
};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinSet;

/// Circuits, products and turns of each measurement. One circuit makes some three products a second: 2 000 of them would
/// take eleven minutes on each side.
const MEASURED: [(u32, usize, usize); 3] = [(1, 60, 1), (8, 2_000, 2), (32, 2_000, 2)];
const PRODUCTS_MAX: usize = 2_000;
const SEED: u64 = 17;
const PAGE_BYTES: usize = 60_000;
const PAGE_AFTER: Duration = Duration::from_millis(300);
/// At 8 circuits.
const RATIO_MIN: f64 = 0.9;

const BATCH: usize = 8;
const BATCH_CIRCUITS: u32 = 24;
const ANSWER_AFTER: Duration = Duration::from_secs(2);
const TIMES_FASTER_MIN: f64 = 8.0;

/// The argument that makes this program the bare loop.
const BARE: &str = "--bare-loop";
/// No expectation about speed: it only ends a run that would wait for ever.
const TURN_MAX: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|argument| argument == BARE) {
        Some(at) => bare(&arguments[at + 1..]),
        None => figures(run()),
    }
}

fn bare(arguments: &[String]) -> ExitCode {
    let looped = tokio::runtime::Runtime::new().because("start threads");
    match looped.and_then(|runtime| runtime.block_on(bare_loop(arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("{trouble}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<bool> {
    glaneur_kit::ensure_tor()?;
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tor");
    std::fs::create_dir_all(&cache).because("make a place for the Tor network")?;
    let network = TorNetwork::start(Some(&cache)).await?;
    network.hurry().await?;
    let fast_enough = throughput(&network).await?;
    let wide_enough = batch_of_eight(&network).await?;
    Ok(fast_enough && wide_enough)
}

/// What one turn took.
#[derive(Clone, Copy, Default)]
struct Took {
    products: usize,
    time: Duration,
    /// Of the daemon, or of the loop.
    cpu: Duration,
    /// Of tor's client.
    tor_cpu: Duration,
}

impl Took {
    fn per_second(self) -> f64 {
        self.products as f64 / self.time.as_secs_f64()
    }

    fn ms_each(self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e3 / self.products as f64
    }

    fn and(self, other: Self) -> Self {
        Self {
            products: self.products + other.products,
            time: self.time + other.time,
            cpu: self.cpu + other.cpu,
            tor_cpu: self.tor_cpu + other.tor_cpu,
        }
    }
}

async fn throughput(network: &TorNetwork) -> Result<bool> {
    let catalogue = Arc::new(Catalogue::synthetic(PRODUCTS_MAX, SEED));
    let shop = Shop::start(ShopKind::Cocooncenter, Arc::clone(&catalogue), &network.aliases())?;
    shop.behave(When::Pages, Conduct::Filler(PAGE_BYTES).after(PAGE_AFTER));
    println!("one shop, pages of {PAGE_BYTES} bytes after {PAGE_AFTER:?}, through the real tor");
    println!(
        "{:>8} {:>9}  {:<10} {:>11} {:>15} {:>19}   turns",
        "circuits", "products", "", "products/s", "CPU ms/product", "tor's CPU ms/product"
    );
    let mut met = true;
    for (circuits, products, turns) in MEASURED {
        let side = Side::start(network, &shop, circuits).await?;
        let eans = catalogue.eans();
        let (mut own, mut bare) = (Vec::new(), Vec::new());
        for (turn, eans) in eans[..products].chunks(products.div_ceil(turns)).enumerate() {
            let first = turn * products.div_ceil(turns);
            if turn % 2 == 0 {
                own.push(side.through_the_daemon(eans).await?);
                bare.push(side.through_the_bare_loop(first, eans.len()).await?);
            } else {
                bare.push(side.through_the_bare_loop(first, eans.len()).await?);
                own.push(side.through_the_daemon(eans).await?);
            }
        }
        let ratio = print(circuits, products, &own, &bare);
        met &= circuits != 8 || RATIO_MIN <= ratio;
    }
    Ok(met)
}

fn print(circuits: u32, products: usize, own: &[Took], bare: &[Took]) -> f64 {
    let total = |turns: &[Took]| turns.iter().fold(Took::default(), |sum, turn| sum.and(*turn));
    for (name, turns) in [("glaneur", own), ("bare loop", bare)] {
        let sum = total(turns);
        let (rate, cpu, tor_cpu) = (sum.per_second(), sum.ms_each(sum.cpu), sum.ms_each(sum.tor_cpu));
        let turns: Vec<String> = turns.iter().map(|turn| format!("{:.1}", turn.per_second())).collect();
        let turns = turns.join(" ");
        println!(
            "{circuits:>8} {products:>9}  {name:<10} {rate:>11.1} {cpu:>15.2} {tor_cpu:>19.2}   {turns}"
        );
    }
    let ratio = total(own).per_second() / total(bare).per_second();
    let by_tor = total(own).cpu.as_secs_f64() / total(own).tor_cpu.as_secs_f64();
    let wanted = match (circuits, RATIO_MIN <= ratio) {
        (8, true) => format!("   at least {RATIO_MIN}: met"),
        (8, false) => format!("   at least {RATIO_MIN}: MISSED"),
        _ => String::new(),
    };
    println!("         glaneur / bare loop {ratio:.3}, CPU of glaneur / of tor's client {by_tor:.2}{wanted}");
    ratio
}

/// A daemon with so many circuits, and what it needs.
struct Side<'a> {
    network: &'a TorNetwork,
    daemon: Daemon,
    receiver: Receiver,
}

impl<'a> Side<'a> {
    async fn start(network: &'a TorNetwork, shop: &Shop, circuits: u32) -> Result<Self> {
        let receiver = Receiver::start()?;
        let config = hurried(Config::new().shop(shop), shop.kind().name(), circuits);
        let config = config.product_url(receiver.url("/p")).socks(network.socks()).circuits(circuits);
        let daemon = Daemon::start(env!("CARGO_BIN_EXE_glaneur"), same_credentials(config)).await?;
        daemon.wait_for_event("tor_found", |_| true).await?;
        Ok(Self { network, daemon, receiver })
    }

    fn tor_cpu(&self) -> Result<Duration> {
        proc::cpu_time(self.network.client_pid().ok_or_else(|| Trouble::new("tor's client is gone"))?)
    }

    async fn through_the_daemon(&self, eans: &[String]) -> Result<Took> {
        let before = self.receiver.records().len();
        let (tor_cpu, cpu) = (self.tor_cpu()?, self.daemon.cpu_time()?);
        let time = work_off(&self.daemon, &self.receiver, eans).await?;
        let took = Took {
            products: eans.len(),
            time,
            cpu: self.daemon.cpu_time()? - cpu,
            tor_cpu: self.tor_cpu()? - tor_cpu,
        };
        let bodies = self.receiver.records().with(|seen| seen[before..].to_vec());
        if bodies.iter().all(|seen| seen.json()["status"] == "found") {
            Ok(took)
        } else {
            Err(Trouble::new("not every product was found"))
        }
    }

    /// A process of its own, as the daemon is, so that its CPU time is its own.
    async fn through_the_bare_loop(&self, first: usize, products: usize) -> Result<Took> {
        let tor_cpu = self.tor_cpu()?;
        let program = std::env::current_exe().because("find this program")?;
        let output = Command::new(program)
            .arg(BARE)
            .arg(self.daemon.config_path())
            .args([first.to_string(), products.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(TURN_MAX, output).await.because("wait for the bare loop")?;
        let text = output.because("run the bare loop")?.stdout;
        let figures: Value = serde_json::from_slice(&text).because("read the bare loop's figures")?;
        let seconds = |name: &str| Duration::from_secs_f64(figures[name].as_f64().unwrap_or_default());
        let tor_cpu = self.tor_cpu()? - tor_cpu;
        Ok(Took { products, time: seconds("time"), cpu: seconds("cpu"), tor_cpu })
    }
}

/// Nothing of a shop's pace holds it up.
fn hurried(config: Config, shop: &str, concurrency: u32) -> Config {
    config
        .site_key(shop, "rate", "1000/s")
        .site_key(shop, "adaptive", false)
        .site_key(shop, "pause", "0s")
        .site_key(shop, "concurrency", concurrency)
}

/// No circuit is retired during a turn.
fn same_credentials(config: Config) -> Config {
    config.set("tor", "uses_max", 1_000_000).set("tor", "age_max", "590s")
}

/// From the submit to the last product webhook.
async fn work_off(daemon: &Daemon, receiver: &Receiver, eans: &[String]) -> Result<Duration> {
    let entries: Vec<Value> = eans.iter().map(|ean| json!({"primary": ean})).collect();
    let before = receiver.records().len();
    let begun = Instant::now();
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
    Ok(begun.elapsed())
}

/// All visits of some products, by as many workers as the daemon has scrapers, each with credentials of its own.
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
    for worker in 0..config.tor.circuits {
        let worker = u32::try_from(worker).because("number the workers")?;
        let mut circuit = Circuit::new(worker, 0, 1, settings.clone());
        let (visits, next, limits) = (Arc::clone(&visits), Arc::clone(&next), limits.clone());
        workers.spawn(async move {
            while let Some(visit) = visits.get(next.fetch_add(1, Ordering::Relaxed)) {
                for request in visit {
                    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
                    let page = circuit.fetch(request, Via::Tor, &limits, &[], deadline).await;
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

/// The two requests of every visit.
fn visits(config: &glaneur::config::Config, first: usize, products: usize) -> Result<Vec<[Request; 2]>> {
    let catalogue = Catalogue::synthetic(PRODUCTS_MAX, SEED);
    let mut visits = Vec::new();
    for ean in catalogue.eans().iter().skip(first).take(products) {
        let gtin = Gtin::parse(ean).because("read a barcode")?;
        let product = catalogue.product(ean).ok_or_else(|| Trouble::new("the catalogue lost a product"))?;
        for recipe in &config.enabled_sites() {
            let kind = ShopKind::ALL.into_iter().find(|kind| kind.name() == recipe.name);
            let kind = kind.ok_or_else(|| Trouble::new("an unknown shop"))?;
            let page = recipe.base.join(&kind.page_path(product)).because("make a URL")?;
            visits.push([recipe.search_request(&gtin), recipe.page_request(&page)]);
        }
    }
    Ok(visits)
}

async fn batch_of_eight(network: &TorNetwork) -> Result<bool> {
    let catalogue = Catalogue::synthetic(BATCH, SEED);
    let eans = catalogue.eans().to_vec();
    let shops = Shops::start(catalogue, &network.aliases())?;
    shops.behave(&When::Always, &Conduct::Normal.after(ANSWER_AFTER));
    let receiver = Receiver::start()?;
    let mut config = Config::new().shops(&shops).product_url(receiver.url("/p")).socks(network.socks());
    for shop in &shops.all {
        config = hurried(config, shop.kind().name(), BATCH as u32);
    }
    let config = config.circuits(BATCH_CIRCUITS);
    let daemon = Daemon::start(env!("CARGO_BIN_EXE_glaneur"), config).await?;
    daemon.wait_for_event("tor_found", |_| true).await?;
    let wall = work_off(&daemon, &receiver, &eans).await?;
    let visits = daemon.events("visit_ended");
    let found = visits.iter().filter(|visit| visit["outcome"] == "found").count();
    if found != BATCH * shops.all.len() {
        return Err(Trouble::new(format!("{found} visits found their product: {visits:?}")));
    }
    let sum = Duration::from_millis(visits.iter().filter_map(|visit| visit["duration_ms"].as_u64()).sum());
    let times = sum.as_secs_f64() / wall.as_secs_f64();
    println!(
        "batch of {BATCH} on 3 shops, {ANSWER_AFTER:?} an answer, {BATCH_CIRCUITS} circuits: {wall:.2?} for {found} visits \
         that took {sum:.1?} together"
    );
    let met = TIMES_FASTER_MIN <= times;
    let word = if met { "met" } else { "MISSED" };
    println!(
        "         {times:.1} times faster than one after the other   at least {TIMES_FASTER_MIN}: {word}"
    );
    Ok(met)
}
