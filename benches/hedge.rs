//! What hedging is worth: the time of a product at the 99th percentile, with one circuit in 32 ten times slower than the
//! rest, with and without it.
//!
//! Two daemons, the real binary at its defaults but for what is said here, take turns at 2 000 products each on the same
//! three shops, behind stand-ins for tor: pages of 60 KB come after 300 ms, and to what one circuit of each daemon sends
//! after 3 s. Circuits are not retired, so the slow one stays. Eight products are in work at a time, which leaves a
//! quarter of the scrapers free: where all of them are busy hedging waits, since it takes nothing from a first try. The
//! time of a product is its webhook's `duration_ms`, from its first dial to its end.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use glaneur_kit::receiver::is_product;
use glaneur_kit::shop::{Conduct, Hit, Purpose, When};
use glaneur_kit::{Catalogue, Config, Daemon, Proxy, Receiver, Result, Shops, Trouble, figures};
use serde_json::{Value, json};

/// For each of the two.
const PRODUCTS: usize = 2_000;
const TURNS: usize = 4;
const SEED: u64 = 13;
const CIRCUITS: u8 = 32;
/// The worker whose circuit is slow: the one that gets a visit first when several are free.
const SLOW_USER: &str = "glaneur-w0";
const WINDOW: usize = 8;
const PAGE_BYTES: usize = 60_000;
const PAGE_AFTER: Duration = Duration::from_millis(300);
const TIMES_SLOWER: u32 = 10;
/// No expectation about speed: it only ends a run that would wait for ever.
const TURN_MAX: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    figures(run())
}

/// One daemon behind its own tor, and the times of its products.
struct Side {
    name: &'static str,
    daemon: Daemon,
    proxy: Proxy,
    receiver: Receiver,
    times_ms: Vec<u64>,
}

/// Exits that a slow circuit has, as the shops see them.
type SlowExits = Arc<Mutex<BTreeSet<IpAddr>>>;

/// One for each circuit and for the probes of Tor, in a range of the side's own.
fn exits(side: u8) -> Vec<IpAddr> {
    (1..=CIRCUITS + 8).map(|last| Ipv4Addr::new(127, 0, side, last).into()).collect()
}

async fn run() -> Result<bool> {
    let both: Vec<IpAddr> = [exits(1), exits(2)].concat();
    let shops = Shops::start(Catalogue::synthetic(PRODUCTS, SEED), &both)?;
    let slow = SlowExits::default();
    shops.behave(&When::Pages, &Conduct::Filler(PAGE_BYTES).after(PAGE_AFTER));
    let is_slow = {
        let slow = Arc::clone(&slow);
        move |hit: &Hit| {
            hit.purpose == Purpose::Page && slow.lock().is_ok_and(|slow| slow.contains(&hit.local))
        }
    };
    shops.behave(&When::is(is_slow), &Conduct::Filler(PAGE_BYTES).after(PAGE_AFTER * TIMES_SLOWER));
    let mut plain = Side::start("without", &shops, &exits(1), 0, &slow).await?;
    let mut hedged = Side::start("with", &shops, &exits(2), 5, &slow).await?;
    let eans = Catalogue::synthetic(PRODUCTS, SEED).eans();
    for (turn, eans) in eans.chunks(PRODUCTS.div_ceil(TURNS)).enumerate() {
        let order = if turn % 2 == 0 { [&mut plain, &mut hedged] } else { [&mut hedged, &mut plain] };
        for side in order {
            side.turn(eans).await?;
        }
    }
    Ok(print(&mut plain, &mut hedged))
}

impl Side {
    async fn start(
        name: &'static str,
        shops: &Shops,
        exits: &[IpAddr],
        hedge_percent: u32,
        slow: &SlowExits,
    ) -> Result<Self> {
        let (proxy, receiver) = (Proxy::start_with_exits(exits)?, Receiver::start()?);
        let mut config = Config::new()
            .product_url(receiver.url("/p"))
            .socks(proxy.address())
            .circuits(CIRCUITS.into())
            .set("tor", "hedge_percent", hedge_percent)
            .set("tor", "uses_max", 1_000_000)
            .set("tor", "age_max", "590s")
            .set("batches", "window", WINDOW)
            .set("log", "format", "json")
            .shops(shops);
        for shop in &shops.all {
            let name = shop.kind().name();
            config = config
                .site_key(name, "rate", "1000/s")
                .site_key(name, "adaptive", false)
                .site_key(name, "pause", "0s")
                .site_key(name, "concurrency", CIRCUITS);
        }
        let daemon = Daemon::start(env!("CARGO_BIN_EXE_glaneur"), config).await?;
        let mut side = Self { name, daemon, proxy, receiver, times_ms: Vec::new() };
        // Its slow circuit has its exit from its first dial on; what it takes to learn of it does not count.
        let eans = Catalogue::synthetic(PRODUCTS, SEED).eans();
        side.turn(&eans[..WINDOW]).await?;
        side.times_ms.clear();
        let exit = side
            .proxy
            .dials()
            .with(|dials| dials.iter().find(|dial| dial.user == SLOW_USER).map(|dial| dial.exit));
        let exit = exit.ok_or_else(|| Trouble::new(format!("{SLOW_USER} has not dialled")))?;
        slow.lock().map_err(|_| Trouble::new("a shop panicked"))?.insert(exit);
        Ok(side)
    }

    async fn turn(&mut self, eans: &[String]) -> Result<()> {
        let entries: Vec<Value> = eans.iter().map(|ean| json!({"primary": ean})).collect();
        let before = self.receiver.records().len();
        // The metadata tells it from the same products in an earlier turn.
        let (status, answer) =
            self.daemon.submit(&json!({"eans": entries, "metadata": {"turn": before}})).await?;
        if status != 202 {
            return Err(Trouble::new(format!("the batch got {status}: {answer}")));
        }
        let all = |seen: &[glaneur_kit::receiver::Seen]| before + eans.len() <= seen.len();
        let seen = self.receiver.records().wait_until(all, TURN_MAX).await?;
        for body in seen[before..].iter().map(|seen| seen.json()).filter(is_product) {
            if body["data"].as_object().is_none_or(|data| data.len() != 3) {
                return Err(Trouble::new(format!("not found in all three shops: {body}")));
            }
            self.times_ms.push(body["duration_ms"].as_u64().unwrap_or_default());
        }
        Ok(())
    }

    /// The time that so many in a hundred products did not take longer than.
    fn percentile(&mut self, percent: usize) -> u64 {
        self.times_ms.sort_unstable();
        let rank = (self.times_ms.len() * percent).div_ceil(100);
        self.times_ms.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// Whether hedging was worth anything, and the slow circuit there all the time.
fn print(plain: &mut Side, hedged: &mut Side) -> bool {
    println!(
        "{PRODUCTS} products each on 3 shops, pages of {PAGE_BYTES} bytes after {PAGE_AFTER:?}, one of {CIRCUITS} circuits \
         {TIMES_SLOWER} times slower, {WINDOW} products at a time"
    );
    println!(
        "{:<10} {:>9} {:>9} {:>9} {:>9} {:>16}",
        "hedging", "p50 ms", "p90 ms", "p99 ms", "worst ms", "twins per visit"
    );
    for side in [&mut *plain, &mut *hedged] {
        let percentiles = [50, 90, 99, 100].map(|percent| side.percentile(percent));
        let events = |name| side.daemon.events(name).len() as f64;
        let twins = events("visit_hedged") / events("visit_ended").max(1.0);
        let [p50, p90, p99, worst] = percentiles;
        println!("{:<10} {p50:>9} {p90:>9} {p99:>9} {worst:>9} {:>14.1} %", side.name, twins * 100.0);
    }
    let ratio = plain.percentile(99) as f64 / hedged.percentile(99).max(1) as f64;
    println!("p99 without / with {ratio:>17.2}");
    let retired = [&*plain, &*hedged].map(|side| side.daemon.events("circuit_retired").len());
    println!(
        "circuits retired {:>19}   none, or the slow one was not slow all the time",
        retired.iter().sum::<usize>()
    );
    1.0 < ratio && retired == [0, 0]
}
