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

#[path = "side/bare.rs"]
mod bare;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bare::Took;
use glaneur_kit::daemon::proc;
use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{
    Because, Catalogue, Config, Daemon, Receiver, Result, Shop, ShopKind, Shops, TorNetwork, Trouble, figures,
};

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

fn main() -> ExitCode {
    match bare::arguments() {
        Some(arguments) => bare_loop(&arguments),
        None => figures(run()),
    }
}

fn bare_loop(arguments: &[String]) -> ExitCode {
    let looped = tokio::runtime::Runtime::new().because("start threads");
    match looped.and_then(|runtime| runtime.block_on(bare::run(arguments, &catalogue(PRODUCTS_MAX)))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("{trouble}");
            ExitCode::FAILURE
        }
    }
}

fn catalogue(products: usize) -> Catalogue {
    Catalogue::synthetic(products, SEED)
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

async fn throughput(network: &TorNetwork) -> Result<bool> {
    let catalogue = Arc::new(catalogue(PRODUCTS_MAX));
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
    let total = Took::total;
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
        let tor_cpu = self.tor_cpu()?;
        let took = bare::through_the_daemon(&self.daemon, &self.receiver, eans, 1).await?;
        Ok(Took { tor_cpu: self.tor_cpu()? - tor_cpu, ..took })
    }

    async fn through_the_bare_loop(&self, first: usize, products: usize) -> Result<Took> {
        let tor_cpu = self.tor_cpu()?;
        let took = bare::through_the_loop(&self.daemon.config_path(), first, products).await?;
        Ok(Took { tor_cpu: self.tor_cpu()? - tor_cpu, ..took })
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

async fn batch_of_eight(network: &TorNetwork) -> Result<bool> {
    let catalogue = catalogue(BATCH);
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
    let wall = bare::through_the_daemon(&daemon, &receiver, &eans, shops.all.len()).await?.time;
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
