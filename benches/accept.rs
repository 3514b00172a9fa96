//! How fast batches are taken in, and how soon the 202 comes, beside what the disk and HTTP alone would allow.
//!
//! Everything is measured in turns within one run, on one file system, and only the ratios mean something: the machine,
//! its disk and its other users are in both halves of each. The daemon is the real binary; its one shop is behind a Tor
//! that is not there, so what is accepted is also taken up by coordinators, and then waits.
//!
//! * Load: 64 kept connections, each sending the next batch of 8 products when it has the answer to the last.
//! * (a) SQLite alone: a loop that writes the same rows into the same schema with the same settings, in groups of 32 and
//!   of 64. With one group being written while the next gathers, 64 connections make 32 a group on average.
//! * (b) What glaneur replaces: a threaded Flask server that starts a thread, answers 202 and stores nothing.
//! * At a tenth of that load: the 202 beside an fsync of a small append and a hyper server that only answers.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use glaneur_kit::shop::catalogue::with_check_digit;
use glaneur_kit::{Because, Config, Daemon, Result, Trouble};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rusqlite::{Connection, params};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

const CONNECTIONS: usize = 64;
const PRODUCTS: i64 = 8;
/// Full load: turns of each contestant, and how long one takes.
const ROUNDS: usize = 4;
const ROUND: Duration = Duration::from_secs(2);
/// A tenth of it.
const QUIET_ROUNDS: usize = 8;
const QUIET_ROUND: Duration = Duration::from_millis(1500);
const FSYNCS: usize = 150;
const START_MAX: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().because("start threads")?;
    runtime.block_on(run())
}

async fn run() -> Result<()> {
    let daemon = Daemon::start(env!("CARGO_BIN_EXE_glaneur"), config()?).await?;
    let disk = Disk::in_dir(daemon.dir())?;
    let flask = match Flask::start().await {
        Ok(flask) => Some(flask),
        Err(why) => {
            println!("no Flask here, left out: {why}");
            None
        }
    };
    let bodies = Arc::new(Bodies::default());
    let full = full_load(daemon.api().address, &disk, flask.as_ref(), &bodies).await?;
    full.print(daemon.cpu_time()?);
    drop(flask);
    let rate = (median(&full.daemon) / 10.0).max(1.0);
    quiet_load(daemon.api().address, &disk, &bodies, rate).await
}

fn config() -> Result<Config> {
    let nobody = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).because("find a free port")?;
    let socks = nobody.local_addr().because("read its number")?;
    Ok(Config::new().product_url("none").socks(socks).site("drakkars", "http://drakkars.test"))
}

/// Batches of 8 products, each different from all before: a repeat would be answered without a write.
#[derive(Default)]
struct Bodies(AtomicI64);

impl Bodies {
    fn next(&self) -> Bytes {
        let first = self.0.fetch_add(PRODUCTS, Ordering::Relaxed);
        let entries: Vec<String> = (first..first + PRODUCTS)
            .map(|n| format!(r#"{{"primary":"{}","replacement":null}}"#, ean(n)))
            .collect();
        format!(r#"{{"eans":[{}],"ignored3400":[]}}"#, entries.join(",")).into()
    }
}

fn ean(n: i64) -> String {
    with_check_digit(&format!("37{n:010}"))
}

/// Accepts per second of each, one figure per turn.
#[derive(Default)]
struct FullLoad {
    daemon: Vec<f64>,
    sqlite_32: Vec<f64>,
    sqlite_64: Vec<f64>,
    flask: Vec<f64>,
    accepted: usize,
}

async fn full_load(
    daemon: SocketAddr,
    disk: &Disk,
    flask: Option<&Flask>,
    bodies: &Arc<Bodies>,
) -> Result<FullLoad> {
    let mut full = FullLoad::default();
    for _ in 0..ROUNDS {
        let answered = flat_out(daemon, bodies).await?;
        full.accepted += answered.len();
        full.daemon.push(per_second(answered.len(), ROUND));
        full.sqlite_32.push(disk.insert_groups_of(32).await?);
        full.sqlite_64.push(disk.insert_groups_of(64).await?);
        if let Some(flask) = flask {
            full.flask.push(per_second(flat_out(flask.address, bodies).await?.len(), ROUND));
        }
    }
    Ok(full)
}

impl FullLoad {
    fn print(&self, cpu: Duration) {
        let daemon = median(&self.daemon);
        println!(
            "durable accepts per second, batches of {PRODUCTS} products, {CONNECTIONS} kept connections"
        );
        println!("({ROUNDS} turns of {ROUND:?} each; the median, and every turn)");
        row("glaneur", daemon, &self.daemon);
        row("(a) SQLite alone, groups of 32", median(&self.sqlite_32), &self.sqlite_32);
        row("(a) SQLite alone, groups of 64", median(&self.sqlite_64), &self.sqlite_64);
        if !self.flask.is_empty() {
            row("(b) Flask, a thread each, no store", median(&self.flask), &self.flask);
        }
        println!();
        let paired = |other: &[f64]| {
            median(&self.daemon.iter().zip(other).map(|(own, other)| own / other).collect::<Vec<_>>())
        };
        verdict("glaneur / (a) in groups of 32", paired(&self.sqlite_32), Wanted::AtLeast(0.5));
        verdict("glaneur / (a) in groups of 64", paired(&self.sqlite_64), Wanted::AtLeast(0.5));
        if !self.flask.is_empty() {
            verdict("glaneur / (b)", paired(&self.flask), Wanted::AtLeast(5.0));
        }
        let each_us = cpu.as_secs_f64() * 1e6 / self.accepted.max(1) as f64;
        println!("{:<42} {each_us:>9.0} µs, coordinators included\n", "CPU per accepted batch");
    }
}

/// Times of the 202, in milliseconds, at a tenth of the full load.
async fn quiet_load(daemon: SocketAddr, disk: &Disk, bodies: &Arc<Bodies>, rate: f64) -> Result<()> {
    let hyper = BareHyper::start()?;
    let (mut accepts, mut answers, mut fsyncs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..QUIET_ROUNDS {
        accepts.extend(paced(daemon, bodies, rate).await?);
        fsyncs.extend(disk.append_and_sync().await?);
        answers.extend(paced(hyper.address, bodies, rate).await?);
    }
    println!("time of the 202 at {rate:.0} batches/s ({QUIET_ROUNDS} turns of {QUIET_ROUND:?} each), ms");
    println!("{:<42} {:>9} {:>9} {:>9} {:>7}", "", "p50", "p99", "max", "n");
    for (name, times) in [("glaneur", &accepts), ("fsync alone", &fsyncs), ("hyper alone", &answers)] {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|q| quantile(times, q));
        println!("{name:<42} {p50:>9.2} {p99:>9.2} {max:>9.2} {:>7}", times.len());
    }
    let ratio = quantile(&accepts, 0.99) / (quantile(&fsyncs, 0.99) + quantile(&answers, 0.99));
    verdict("p99 of the 202 / (p99 fsync + p99 hyper)", ratio, Wanted::AtMost(3.0));
    Ok(())
}

/// One kept connection.
async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.because("connect")?;
    stream.set_nodelay(true).because("set TCP_NODELAY")?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.because("speak HTTP")?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends one batch; how long the 202 took. A server that closed the connection after its last answer (Flask's does so
/// always) gets a new one, in the time that is measured.
async fn submit(sender: &mut SendRequest<Full<Bytes>>, address: SocketAddr, body: Bytes) -> Result<Duration> {
    let request = Request::post("/api/scrape")
        .header("host", address.to_string())
        .header("content-type", "application/json")
        .body(Full::new(body))
        .because("make a request")?;
    let sent = Instant::now();
    if sender.ready().await.is_err() {
        *sender = connect(address).await?;
    }
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        Ok::<_, hyper::Error>((status, answer.into_body().collect().await?.to_bytes()))
    };
    let (status, said) = exchange.await.because("submit a batch")?;
    if status == StatusCode::ACCEPTED {
        Ok(sent.elapsed())
    } else {
        Err(Trouble::new(format!("a batch got {status}: {}", String::from_utf8_lossy(&said))))
    }
}

/// All connections as fast as answers come, for one turn.
async fn flat_out(address: SocketAddr, bodies: &Arc<Bodies>) -> Result<Vec<Duration>> {
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        senders.push(connect(address).await?);
    }
    let until = Instant::now() + ROUND;
    let mut workers = JoinSet::new();
    for mut sender in senders {
        let bodies = Arc::clone(bodies);
        workers.spawn(async move {
            let mut times = Vec::new();
            loop {
                let time = submit(&mut sender, address, bodies.next()).await?;
                if until <= Instant::now() {
                    return Ok(times); // The last answer came too late to count.
                }
                times.push(time);
            }
        });
    }
    joined(workers).await
}

/// One batch every `1 / rate`, whatever became of the last, for one turn; milliseconds.
async fn paced(address: SocketAddr, bodies: &Arc<Bodies>, rate: f64) -> Result<Vec<f64>> {
    let (jobs, queue) = tokio::sync::mpsc::channel::<Bytes>(CONNECTIONS);
    let queue = Arc::new(Mutex::new(queue));
    let mut workers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (mut sender, queue) = (connect(address).await?, Arc::clone(&queue));
        workers.spawn(async move {
            let mut times = Vec::new();
            loop {
                let job = queue.lock().await.recv().await;
                let Some(body) = job else { return Ok(times) };
                times.push(submit(&mut sender, address, body).await?);
            }
        });
    }
    let until = Instant::now() + QUIET_ROUND;
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    while Instant::now() < until {
        ticks.tick().await;
        jobs.send(bodies.next()).await.because("hand a batch over")?;
    }
    drop(jobs);
    Ok(joined(workers).await?.iter().map(|time| time.as_secs_f64() * 1e3).collect())
}

async fn joined(mut workers: JoinSet<Result<Vec<Duration>>>) -> Result<Vec<Duration>> {
    let mut all = Vec::new();
    while let Some(times) = workers.join_next().await {
        all.extend(times.because("wait for a connection")??);
    }
    Ok(all)
}

/// The daemon's file system, without the daemon.
struct Disk {
    ledger: Arc<std::sync::Mutex<BareLedger>>,
    append: PathBuf,
}

struct BareLedger {
    connection: Connection,
    batches: i64,
}

impl Disk {
    fn in_dir(dir: &Path) -> Result<Self> {
        let connection = Connection::open(dir.join("bare.sqlite")).because("open a database")?;
        // As the daemon's writer is set up, with SQLite's own automatic checkpoint.
        let set_up = "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             PRAGMA temp_store = MEMORY; PRAGMA cache_size = -2048; PRAGMA wal_autocheckpoint = 1000;
             PRAGMA journal_size_limit = 16777216;";
        connection.execute_batch(set_up).because("set the database up")?;
        connection.execute_batch(include_str!("../src/ledger/schema.sql")).because("make the tables")?;
        let ledger = Arc::new(std::sync::Mutex::new(BareLedger { connection, batches: 0 }));
        Ok(Self { ledger, append: dir.join("append") })
    }

    /// Batches per second over one turn.
    async fn insert_groups_of(&self, group: i64) -> Result<f64> {
        let ledger = Arc::clone(&self.ledger);
        let work = move || -> rusqlite::Result<f64> {
            let mut ledger = ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (begun, first) = (Instant::now(), ledger.batches);
            while begun.elapsed() < ROUND {
                ledger.insert(group)?;
            }
            Ok(per_second((ledger.batches - first) as usize, begun.elapsed()))
        };
        tokio::task::spawn_blocking(work).await.because("wait for SQLite")?.because("write with SQLite alone")
    }

    /// Appends the bytes of a few rows and waits for the disk, again and again; milliseconds.
    async fn append_and_sync(&self) -> Result<Vec<f64>> {
        let path = self.append.clone();
        let work = move || -> std::io::Result<Vec<f64>> {
            let mut file = File::options().append(true).create(true).open(path)?;
            let mut times = Vec::new();
            for _ in 0..FSYNCS {
                let begun = Instant::now();
                file.write_all(&[b'x'; 1024])?;
                file.sync_all()?;
                times.push(begun.elapsed().as_secs_f64() * 1e3);
            }
            Ok(times)
        };
        tokio::task::spawn_blocking(work).await.because("wait for the disk")?.because("append to a file")
    }
}

impl BareLedger {
    /// The rows of `group` accepted batches, in one transaction.
    fn insert(&mut self, group: i64) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for _ in 0..group {
            self.batches += 1;
            let n = self.batches;
            let mut hash = [0; 32];
            // Spread over the index, as digests are.
            let spread = n.wrapping_mul(0x1e37_79b9_7f4a_7c15).to_be_bytes();
            hash.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&spread));
            transaction
                .prepare_cached(
                    "INSERT INTO batch (batch_id, accepted_at, requester, body_hash, sites, ignored_3400, total,
                         intake_queued, intake_skipped, intake_ignored, refused)
                     VALUES (?1, ?2, '127.0.0.1', ?3, '[\"drakkars\"]', '[]', ?4, ?4, 0, 0, '[]')",
                )?
                .execute(params![format!("019a1b2c-3d4e-7000-8000-{n:012x}"), 1_760_000_000_000 + n, hash, PRODUCTS])?;
            let no = transaction.last_insert_rowid();
            transaction
                .prepare_cached("INSERT INTO progress (batch, cursor, queued) VALUES (?1, 1, ?2)")?
                .execute(params![no, PRODUCTS])?;
            let mut product = transaction
                .prepare_cached("INSERT INTO product (batch, idx, ean, state) VALUES (?1, ?2, ?3, 0)")?;
            for index in 1..=PRODUCTS {
                product.execute(params![no, index, ean(n * PRODUCTS + index)])?;
            }
            transaction
                .prepare_cached("UPDATE tally SET accepted = accepted + ?1, queued = queued + ?1")?
                .execute([PRODUCTS])?;
        }
        transaction.commit()
    }
}

/// A server that reads the body and answers 202, on threads of its own as the daemon has them.
struct BareHyper {
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl BareHyper {
    fn start() -> Result<Self> {
        let runtime = tokio::runtime::Runtime::new().because("start threads")?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).because("listen")?;
        listener.set_nonblocking(true).because("listen")?;
        let address = listener.local_addr().because("read the port")?;
        runtime.spawn(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true); // Only speed depends on it.
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer)),
                );
            }
        });
        Ok(Self { address, runtime: Some(runtime) })
    }
}

impl Drop for BareHyper {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    // What matters is that the body was read.
    let _ = request.into_body().collect().await;
    let mut answer = Response::new(Full::new(Bytes::from_static(br#"{"success":true}"#)));
    *answer.status_mut() = StatusCode::ACCEPTED;
    Ok(answer)
}

/// What the daemon replaces: it starts a thread, answers, and stores nothing.
struct Flask {
    address: SocketAddr,
    _child: Child,
}

const APP: &str = r#"
import logging, threading
from flask import Flask, jsonify, request
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)
app = Flask(__name__)

def scrape(eans):
    pass

@app.post("/api/scrape")
def submit():
    eans = request.get_json()["eans"]
    threading.Thread(target=scrape, args=(eans,), daemon=True).start()
    return jsonify(success=True, status="processing", total_products=len(eans)), 202

server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"#;

impl Flask {
    async fn start() -> Result<Self> {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("flask");
        let python = home.join("bin").join("python");
        if !home.join("ready").exists() {
            run_quietly(Command::new("python3").args(["-m", "venv"]).arg(&home)).await?;
            run_quietly(Command::new(&python).args(["-m", "pip", "install", "--quiet", "flask==3.1.2"]))
                .await?;
            File::create(home.join("ready")).because("note that Flask is there")?;
        }
        let mut child = Command::new(&python)
            .args(["-c", APP])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .because("start Flask")?;
        let stdout = child.stdout.take().ok_or_else(|| Trouble::new("Flask has no output"))?;
        let mut lines = BufReader::new(stdout).lines();
        let first = tokio::time::timeout(START_MAX, lines.next_line()).await.because("wait for Flask")?;
        let port: u16 =
            first.because("read Flask's port")?.unwrap_or_default().parse().because("read Flask's port")?;
        Ok(Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), _child: child })
    }
}

async fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().await.because(format_args!("run {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Trouble::new(said.lines().last().unwrap_or("it failed without a word").to_owned()))
}

enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

fn verdict(name: &str, ratio: f64, wanted: Wanted) {
    let (sign, bound, met) = match wanted {
        Wanted::AtLeast(bound) => ("at least", bound, bound <= ratio),
        Wanted::AtMost(bound) => ("at most", bound, ratio <= bound),
    };
    println!("{name:<42} {ratio:>9.2}   {sign} {bound}: {}", if met { "met" } else { "MISSED" });
}

fn row(name: &str, middle: f64, turns: &[f64]) {
    let turns: Vec<String> = turns.iter().map(|turn| format!("{turn:.0}")).collect();
    println!("{name:<42} {middle:>9.0}   {}", turns.join(" "));
}

fn per_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// Of an even number of values, the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |at: usize| sorted.get(at).copied().unwrap_or_default();
    f64::midpoint(middle(sorted.len().saturating_sub(1) / 2), middle(sorted.len() / 2))
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (q * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}
