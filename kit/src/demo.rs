//! The main job, end to end, as a user would run it; everything around the daemon stands on loopback.

use std::{
    collections::BTreeSet,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use glaneur_kit::{
    Because, Catalogue, Config, Daemon, Receiver, Result, Shop, Shops, TorNetwork, Trouble, ensure_tor,
    shop::catalogue::{REAL_BATCH, real_batch_body},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// The whole batch takes seconds; after this the demonstration has failed.
const BATCH_MAX: Duration = Duration::from_secs(180);

/// Circuits, and so products looked up side by side.
const CIRCUITS: u32 = 6;

/// Shows the main job; `Ok` only if every webhook came, no product failed, and the daemon ended well.
pub(crate) async fn run(bin: &Path) -> Result<()> {
    ensure_tor()?;
    let binary = bin.canonicalize().because(format_args!("find {}", bin.display()))?;

    let begun = Instant::now();
    eprintln!("Starting a private Tor network: an authority, three exits, a client ...");
    let network = TorNetwork::start(Some(&network_cache()?)).await?;
    eprintln!("  ready after {:.1} s, SOCKS port {}", begun.elapsed().as_secs_f64(), network.socks());

    let shops = Shops::start(Catalogue::real_batch(), &network.aliases())?;
    let receiver = Receiver::start()?;
    let mut daemon = Daemon::start(&binary, config(&network, &shops, &receiver).to_string()).await?;
    eprintln!("  {} serve --config {}", binary.display(), daemon.config_path().display());
    eprintln!("  listening on http://{}", daemon.api().address);

    let begun = Instant::now();
    let (status, answer) = daemon.submit(&real_batch_body()).await?;
    if status != 202 {
        return Err(Trouble::new(format!("the daemon answered {status} to the batch: {answer}")));
    }
    eprintln!("  202 after {} ms: batch {}", begun.elapsed().as_millis(), text(&answer["batch_id"]));
    deliver(&daemon, &receiver).await?;
    eprintln!("  all webhooks came within {:.1} s", begun.elapsed().as_secs_f64());

    println!("{}", table(&network, &shops, &daemon, &receiver));
    for summary in receiver.summaries() {
        println!("{}", told(&summary));
    }

    daemon.term()?;
    let code = daemon.wait_exit().await?;
    if code != 0 {
        return Err(Trouble::new(format!("the daemon ended with code {code}:\n{}", daemon.stderr_tail())));
    }
    // Nothing is broken here, so nothing may have failed.
    match receiver.products().into_iter().find(|product| product["status"] == "failed") {
        None => Ok(()),
        Some(failed) => Err(Trouble::new(format!("a product failed: {failed}"))),
    }
}

/// Where networks are kept between runs: beside this program.
fn network_cache() -> Result<PathBuf> {
    let program = std::env::current_exe().because("find this program")?;
    Ok(program.with_file_name("tor-networks"))
}

/// What a user would write.
fn config(network: &TorNetwork, shops: &Shops, receiver: &Receiver) -> Config {
    let config = Config::new()
        .product_url(receiver.url("/webhook/product"))
        .summary_url(receiver.url("/webhook/summary"))
        .socks(network.socks())
        .set("tor", "control", network.control().to_string())
        .circuits(CIRCUITS)
        .shops(shops);
    // Real shops are asked far more gently; these are ours.
    shops.all.iter().fold(config, |config, shop| {
        let name = shop.kind().name();
        config.site_key(name, "rate", "10/s").site_key(name, "pause", "0s").site_key(name, "concurrency", 4)
    })
}

/// Waits for all webhooks and shows how they come.
async fn deliver(daemon: &Daemon, receiver: &Receiver) -> Result<()> {
    let ended = daemon.log().wait_until(|log| log.iter().any(|line| line.json.is_null()), 2 * BATCH_MAX);
    tokio::select! {
        delivered = follow(receiver) => delivered.map_err(|trouble| {
            Trouble::new(format!("{trouble}\nthe daemon's log:\n{}", daemon.stderr_tail()))
        }),
        _ = ended => {
            Err(Trouble::new(format!("the daemon ended before it had delivered everything:\n{}", daemon.stderr_tail())))
        }
    }
}

async fn follow(receiver: &Receiver) -> Result<()> {
    let expected = REAL_BATCH.len();
    let deadline = Instant::now() + BATCH_MAX;
    let bar = std::io::stderr().is_terminal().then(|| progress_bar(expected));
    let mut shown = 0;
    while shown < expected {
        let left = deadline.saturating_duration_since(Instant::now());
        let more = receiver.wait_until(|_| receiver.products().len() > shown, left).await;
        more.map_err(|_| {
            Trouble::new(format!("only {shown} of {expected} product webhooks came within {BATCH_MAX:?}"))
        })?;
        for product in receiver.products().iter().skip(shown) {
            shown += 1;
            let line = format!("{} {}", text(&product["ean"]), text(&product["status"]));
            match &bar {
                Some(bar) => {
                    bar.set_message(line);
                    bar.inc(1);
                }
                None => eprintln!("  {shown} of {expected}: {line}"),
            }
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let summary = receiver.wait_until(|_| !receiver.summaries().is_empty(), left).await;
    summary.map_err(|_| Trouble::new(format!("no summary came within {BATCH_MAX:?}")))?;
    match receiver.products().len() {
        count if count == expected => Ok(()),
        count => Err(Trouble::new(format!("{count} product webhooks came, not {expected}"))),
    }
}

fn progress_bar(length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("  {bar:40} {pos} of {len} products delivered  {msg}");
    // The template is fixed; if it were wrong, the plain bar would do.
    ProgressBar::new(length as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The product webhooks as they arrived, with the way each shop was visited.
fn table(network: &TorNetwork, shops: &Shops, daemon: &Daemon, receiver: &Receiver) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["ean", "status", "shop", "price", "circuit", "exit"]);
    let visits = daemon.events("visit_ended");
    for product in receiver.products() {
        let names = || shops.all.iter().map(|shop| shop.kind().name());
        let prices = names().map(|name| match &product["data"][name] {
            Value::Null => product["errors"][name]["kind"].as_str().unwrap_or("-").to_owned(),
            data => text(&data["prix"]),
        });
        let mut ean = text(&product["ean"]);
        if product["used_replacement"] == true {
            ean += &format!("\nas {}", text(&product["used_ean"]));
        }
        table.add_row([
            ean,
            text(&product["status"]),
            names().collect::<Vec<_>>().join("\n"),
            prices.collect::<Vec<_>>().join("\n"),
            names().map(|name| circuits(&visits, &product, name)).collect::<Vec<_>>().join("\n"),
            shops.all.iter().map(|shop| exits(network, shop, &product)).collect::<Vec<_>>().join("\n"),
        ]);
    }
    table
}

/// The barcodes one product was asked for by: its own, and the replacement that was used.
fn eans(product: &Value) -> Vec<String> {
    let used = product["used_ean"].as_str().map(str::to_owned);
    [text(&product["ean"])].into_iter().chain(used).collect()
}

/// The circuits of a product's visits to one shop, from the daemon's log.
fn circuits(visits: &[Value], product: &Value, site: &str) -> String {
    let eans = eans(product);
    let of_product = |visit: &&Value| visit["site"] == site && eans.contains(&text(&visit["ean"]));
    let mut circuits = Vec::new();
    for circuit in visits.iter().filter(of_product).map(|visit| text(&visit["circuit"])) {
        if !circuits.contains(&circuit) {
            circuits.push(circuit);
        }
    }
    if circuits.is_empty() { "-".to_owned() } else { circuits.join(", ") }
}

/// The exits through which a shop was asked for a product, by the addresses it saw itself called on.
fn exits(network: &TorNetwork, shop: &Shop, product: &Value) -> String {
    let eans = eans(product);
    let hits = shop.hits();
    let of_product = hits.iter().filter(|hit| eans.iter().any(|ean| hit.is_about(ean)));
    let exits: BTreeSet<&str> = of_product
        .map(|hit| network.exit_of(hit.local).map_or("unknown", |exit| exit.name.as_str()))
        .collect();
    if exits.is_empty() { "-".to_owned() } else { Vec::from_iter(exits).join(", ") }
}

/// The summary, as a person reads it.
fn told(summary: &Value) -> String {
    let counts = summary["counts"].as_object().map(|counts| {
        counts.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect::<Vec<_>>().join(", ")
    });
    let deliveries = &summary["deliveries"];
    format!(
        "Summary: {}\n  {}; webhooks taken {}, dead {}, open {}",
        text(&summary["message"]).replace('\n', "\n  "),
        counts.unwrap_or_default(),
        deliveries["taken"],
        deliveries["dead"],
        deliveries["open"],
    )
}

/// A value without quotes around it.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
