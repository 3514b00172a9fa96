//! The two sides of a comparison: a batch through the daemon, and the same requests sent by the same client in a bare loop,
//! which throws the answers away. The loop is the benchmark's own program once more, so that its CPU time is its own.

use std::path::Path;
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
use glaneur_kit::{Because, Catalogue, Daemon, Receiver, Result, ShopKind, Trouble};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinSet;

/// The argument that makes a benchmark the bare loop.
const BARE: &str = "--bare-loop";
/// No expectation about speed: it only ends a run that would wait for ever.
const TURN_MAX: Duration = Duration::from_secs(180);

/// What one turn took.
#[derive(Clone, Copy, Default)]
pub struct Took {
    pub products: usize,
    pub time: Duration,
    /// Of the daemon, or of the loop.
    pub cpu: Duration,
    /// Of tor's client, where there is one.
    pub tor_cpu: Duration,
}

impl Took {
    pub fn total(turns: &[Self]) -> Self {
        turns.iter().fold(Self::default(), |sum, turn| Self {
            products: sum.products + turn.products,
            time: sum.time + turn.time,
            cpu: sum.cpu + turn.cpu,
            tor_cpu: sum.tor_cpu + turn.tor_cpu,
        })
    }

    pub fn per_second(self) -> f64 {
        self.products as f64 / self.time.as_secs_f64()
    }

    /// A part of this for each product, in milliseconds.
    pub fn ms_each(self, part: Duration) -> f64 {
        part.as_secs_f64() * 1e3 / self.products as f64
    }
}

/// One batch, from the submit to the last product webhook; each product is in all of these shops.
pub async fn through_the_daemon(
    daemon: &Daemon,
    receiver: &Receiver,
    eans: &[String],
    shops: usize,
) -> Result<Took> {
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
    let took = Took {
        products: eans.len(),
        time: begun.elapsed(),
        cpu: daemon.cpu_time()? - cpu,
        ..Took::default()
    };
    let bodies = receiver.records().with(|seen| seen[before..].to_vec());
    let whole = |body: &Value| body["data"].as_object().is_some_and(|data| data.len() == shops);
    if bodies.iter().all(|seen| whole(&seen.json())) {
        Ok(took)
    } else {
        Err(Trouble::new("not every product was found in all shops"))
    }
}

/// So many products from `first` on, in a loop with the configuration in this file.
pub async fn through_the_loop(config: &Path, first: usize, products: usize) -> Result<Took> {
    let program = std::env::current_exe().because("find this program")?;
    let output = Command::new(program)
        .arg(BARE)
        .arg(config)
        .args([first.to_string(), products.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(TURN_MAX, output).await.because("wait for the bare loop")?;
    let text = output.because("run the bare loop")?.stdout;
    let figures: Value = serde_json::from_slice(&text).because("read the bare loop's figures")?;
    let seconds = |name: &str| Duration::from_secs_f64(figures[name].as_f64().unwrap_or_default());
    Ok(Took { products, time: seconds("time"), cpu: seconds("cpu"), ..Took::default() })
}

/// What this program is to do as the bare loop; `None`: it is the benchmark.
pub fn arguments() -> Option<Vec<String>> {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == BARE)?;
    Some(arguments[at + 1..].to_vec())
}

/// All visits of some products, by as many workers as the daemon has scrapers, each with a client of its own.
pub async fn run(arguments: &[String], catalogue: &Catalogue) -> Result<()> {
    let [file, first, products] = arguments else { return Err(Trouble::new("a file and two numbers")) };
    let (first, products): (usize, usize) =
        (first.parse().because("read a number")?, products.parse().because("read a number")?);
    let text = std::fs::read_to_string(file).because(format_args!("read {file}"))?;
    let config = glaneur::config::parse(file, &text)
        .map_err(|problems| Trouble::new(problems.iter().map(ToString::to_string).collect::<String>()))?;
    let tls = Tls::new(None).because("set TLS up")?;
    let settings = Settings::new(TorGate::new(config.tor.socks), tls);
    let limits = FetchLimits::from(&config.fetch);
    let visits = Arc::new(visits(&config, catalogue, first, products)?);
    let next = Arc::new(AtomicUsize::new(0));
    let (cpu, begun) = (proc::cpu_time(std::process::id())?, Instant::now());
    let mut workers = JoinSet::new();
    for worker in 0..config.tor.circuits {
        let worker = u32::try_from(worker).because("number the workers")?;
        let mut circuit = Circuit::new(worker, 0, 1, settings.clone());
        let (visits, next, limits) = (Arc::clone(&visits), Arc::clone(&next), limits.clone());
        workers.spawn(async move {
            while let Some((via, visit)) = visits.get(next.fetch_add(1, Ordering::Relaxed)) {
                for request in visit {
                    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
                    let page = circuit.fetch(request, *via, &limits, &[], deadline).await;
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
fn visits(
    config: &glaneur::config::Config,
    catalogue: &Catalogue,
    first: usize,
    products: usize,
) -> Result<Vec<(Via, [Request; 2])>> {
    let recipes = config.enabled_sites();
    let mut visits = Vec::new();
    for ean in catalogue.eans().iter().skip(first).take(products) {
        let gtin = Gtin::parse(ean).because("read a barcode")?;
        let product = catalogue.product(ean).ok_or_else(|| Trouble::new("the catalogue lost a product"))?;
        for recipe in &recipes {
            let kind = ShopKind::ALL.into_iter().find(|kind| kind.name() == recipe.name);
            let kind = kind.ok_or_else(|| Trouble::new("an unknown shop"))?;
            let page = recipe.base.join(&kind.page_path(product)).because("make a URL")?;
            visits.push((recipe.via, [recipe.search_request(&gtin), recipe.page_request(&page)]));
        }
    }
    Ok(visits)
}
