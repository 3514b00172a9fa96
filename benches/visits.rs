//! What the daemon adds to the requests themselves: 2 000 products on three shops, beside a bare loop of the same
//! requests.
//!
//! The shops are on this machine, answer searches at once and pages of 60 KB after 300 ms, and are visited directly; 64
//! visits are under way at once on both sides. The daemon is the real binary, with its log at the default level, its
//! ledger on disk and its webhooks taken; its time runs from the submit to the last product webhook. The bare loop is
//! this program once more: the same recipes make its requests, the same client sends them, and it reads the answers and
//! throws them away. Daemon and loop take turns, so that the machine and its other users are in both.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "side/bare.rs"]
mod bare;

use std::time::Duration;

use bare::Took;
use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{Because, Catalogue, Config, Daemon, Receiver, Result, Shop, Shops};

const PRODUCTS: usize = 2_000;
const SEED: u64 = 11;
const SCRAPERS: u32 = 64;
const PAGE_BYTES: usize = 60_000;
const PAGE_AFTER: Duration = Duration::from_millis(300);
/// Each side's products are visited in this many turns.
const TURNS: usize = 2;
fn main() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().because("start threads")?;
    match bare::arguments() {
        Some(arguments) => runtime.block_on(bare::run(&arguments, &catalogue())),
        None => runtime.block_on(run()),
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
            own.push(bare::through_the_daemon(&daemon, &receiver, eans, shops.all.len()).await?);
            bare.push(bare::through_the_loop(&daemon.config_path(), first, eans.len()).await?);
        } else {
            bare.push(bare::through_the_loop(&daemon.config_path(), first, eans.len()).await?);
            own.push(bare::through_the_daemon(&daemon, &receiver, eans, shops.all.len()).await?);
        }
    }
    print(&own, &bare);
    if std::env::var_os("GLANEUR_BENCH_LOG").is_some() {
        println!("{}", daemon.stderr_tail());
    }
    Ok(())
}

fn print(own: &[Took], bare: &[Took]) {
    let total = Took::total;
    println!(
        "{PRODUCTS} products on 3 shops, pages of {PAGE_BYTES} bytes after {PAGE_AFTER:?}, {SCRAPERS} visits at once"
    );
    println!("{:<24} {:>12} {:>18}   turns", "", "products/s", "CPU ms/product");
    for (name, turns) in [("glaneur", own), ("bare loop", bare)] {
        let (rate, cpu_ms) = (total(turns).per_second(), total(turns).ms_each(total(turns).cpu));
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
