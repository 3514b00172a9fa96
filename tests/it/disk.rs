//! A disk that is full, slow to be emptied, damaged, shared or not to be written.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use glaneur::exit::Exit;
use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{Catalogue, Config, Daemon, Gate};
use serde_json::{Value, json};

use crate::support::{BINARY, LONG, Stage, accepted};

/// A file system of its own, gone when dropped.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn mount(bytes: u64) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test mounts a small file system, and only root may: run it as root, or skip it by its name"
        );
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(dir.path());
        run(mount);
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn ledger(&self) -> PathBuf {
        self.path().join("ledger.sqlite")
    }

    pub fn url(&self) -> String {
        format!("sqlite:{}", self.ledger().display())
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Leaves about this much room.
    pub fn fill_up_to(&self, room: u64) {
        let mut file = File::options().append(true).create(true).open(self.filler()).unwrap();
        // A daemon that writes meanwhile may take the last page.
        let _ = file.write_all(&vec![0; self.free().saturating_sub(room) as usize]);
    }

    pub fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    fn forbid_writing(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "remount,ro"]).arg(self.path());
        run(mount);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon of a test that failed may still have the ledger open.
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).output();
        assert!(unmounted.is_ok_and(|output| output.status.success()) || std::thread::panicking());
    }
}

fn run(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `n` batches of 20 distinct products each, all of which the shops of [`Stage::of`] have.
fn bodies(n: usize) -> Vec<Value> {
    let eans = Catalogue::synthetic(20 * n, 7).eans();
    eans.chunks(20).enumerate().map(|(at, eans)| json!({"eans": eans, "metadata": {"at": at}})).collect()
}

/// For a while, during which the daemon does next to nothing and says little.
#[expect(clippy::print_stdout, reason = "shown when the test fails")]
async fn keeps_refusing(daemon: &Daemon, body: &Value, word: &str) {
    /// Long enough to see a loop; a daemon that tries once a second uses next to nothing of it.
    const WATCHED_FOR: Duration = Duration::from_secs(5);
    let (cpu, lines, begun) = (daemon.cpu_time().unwrap(), daemon.log().len(), Instant::now());
    while begun.elapsed() < WATCHED_FOR {
        refused(daemon, body, word).await;
        tokio::time::sleep(WATCHED_FOR / 10).await;
    }
    let (cpu, lines) = (daemon.cpu_time().unwrap() - cpu, daemon.log().len() - lines);
    println!("{cpu:?} of CPU and {lines} lines of log in {WATCHED_FOR:?}");
    assert!(cpu < WATCHED_FOR / 5, "{cpu:?} of CPU while nothing can be written");
    assert!(lines < 400, "{lines} lines of log while nothing can be written");
}

/// Submits and wants a 503 that a person understands and a program can wait for.
async fn refused(daemon: &Daemon, body: &Value, word: &str) {
    let answer = daemon.post_raw(body.to_string()).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "30");
    let told: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(told["success"], false);
    assert!(told["error"].as_str().unwrap().contains(word), "{told}");
}

#[tokio::test]
async fn a_full_disk_refuses_accepts_loses_nothing_and_goes_on_when_there_is_room() {
    /// More than any of these batches and the log of SQLite need.
    const DISK: u64 = 24 << 20;
    const BODIES: usize = 20;
    let disk = SmallDisk::mount(DISK);
    let stage = Stage::of(20 * BODIES).set("ledger", "url", disk.url());
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    let mut daemon = stage.start().await;
    let bodies = bodies(BODIES);
    let mut taken = vec![(0, accepted(daemon.submit(&bodies[0]).await.unwrap()))];
    stage.shops.all[0].wait_until(|hits| hits.len() >= 2, LONG).await.unwrap();

    disk.fill_up_to(0);
    let full = loop {
        // What SQLite has reserved already may still take some.
        let at = taken.len();
        match daemon.submit(&bodies[at]).await.unwrap() {
            (202, answer) => taken.push((at, answer)),
            (status, answer) => break (status, answer, at),
        }
        disk.fill_up_to(0);
    };
    assert_eq!(full.0, 503, "{}", full.1);
    refused(&daemon, &bodies[full.2], "disque").await;
    let (status, ready) = daemon.get("/readyz").await.unwrap();
    assert_eq!((status, &ready["reasons"]), (503, &json!(["ledger_full"])));
    gate.open();
    println!("{} batches, then full", taken.len());
    keeps_refusing(&daemon, &bodies[full.2], "disque").await;
    let (status, again) = daemon.submit(&bodies[0]).await.unwrap();
    assert_eq!((status, &again["batch_id"]), (202, &taken[0].1["batch_id"]), "a repeat needs no room");
    assert!(daemon.is_running());

    disk.make_room();
    daemon.wait_for_event("ledger_room", |_| true).await.unwrap();
    taken.push((full.2, accepted(daemon.submit(&bodies[full.2]).await.unwrap())));
    let products = 20 * taken.len();
    let batches = taken.len();
    let all_came = |seen: &[glaneur_kit::receiver::Seen]| {
        let once = glaneur_kit::receiver::taken_once(seen);
        once.iter().filter(|seen| glaneur_kit::receiver::is_summary(&seen.json())).count() == batches
    };
    let seen = stage.receiver.wait_until(all_came, LONG).await.unwrap();
    let once = glaneur_kit::receiver::taken_once(&seen);
    let found = once
        .iter()
        .map(|seen| seen.json())
        .filter(|body| body["status"] == "found" && body["index"].is_u64());
    assert_eq!(found.count(), products, "every product was found and told");
    for (name, wanted) in [("ledger_full", 1), ("ledger_room", 1), ("batch_accepted", batches)] {
        assert_eq!(daemon.events(name).len(), wanted, "{name}");
    }
    for (at, first) in &taken {
        let again = accepted(daemon.submit(&bodies[*at]).await.unwrap());
        assert_eq!(again["batch_id"], first["batch_id"], "a repeat gets the first answer");
    }
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
}

#[tokio::test]
async fn below_free_bytes_min_accepts_stop_first_and_all_else_goes_on() {
    let disk = SmallDisk::mount(24 << 20);
    let stage = Stage::of(40).set("ledger", "url", disk.url()).set("ledger", "free_bytes_min", 12 << 20);
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    let daemon = stage.start().await;
    let bodies = bodies(2);
    accepted(daemon.submit(&bodies[0]).await.unwrap());
    stage.shops.all[0].wait_until(|hits| hits.len() >= 2, LONG).await.unwrap();
    disk.fill_up_to(8 << 20);
    daemon.wait_for_event("ledger_low", |_| true).await.unwrap();
    refused(&daemon, &bodies[1], "disque").await;
    gate.open();
    let (products, summary) = stage.finished(20).await;
    assert!(products.iter().all(|product| product["status"] == "found"), "{summary}");
    refused(&daemon, &bodies[1], "disque").await;
    assert!(daemon.events("ledger_full").is_empty());
    disk.make_room();
    daemon.wait_for_event("ledger_room", |_| true).await.unwrap();
    accepted(daemon.submit(&bodies[1]).await.unwrap());
    assert_eq!((daemon.events("ledger_low").len(), daemon.events("ledger_room").len()), (1, 1));
}

/// Why it did not start, in its own words.
#[track_caller]
fn refusal(started: glaneur_kit::Result<()>, exit: Exit) -> String {
    let told = started.expect_err("it must not start").to_string();
    assert!(told.contains(&format!("ended with code {} ", exit.code())), "{told}");
    let told = told.lines().find_map(|line| line.strip_prefix("glaneur: ").map(str::to_owned));
    told.expect("one sentence on standard error")
}

/// A daemon that ran once, and ended.
async fn stopped() -> Daemon {
    let stage = Stage::real_batch();
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&crate::support::batch(crate::support::REAL)).await.unwrap());
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    daemon
}

#[tokio::test]
async fn an_orderly_end_leaves_one_complete_file() {
    let daemon = stopped().await;
    let copy = daemon.dir().join("copy.sqlite");
    fs::copy(daemon.ledger_path(), &copy).unwrap();
    let copy = rusqlite::Connection::open(copy).unwrap();
    let products: i64 = copy.query_row("SELECT count(*) FROM product", [], |row| row.get(0)).unwrap();
    assert_eq!(products, 8, "a person who copies the file has everything");
}

#[tokio::test]
async fn a_damaged_ledger_refuses_to_start_with_its_code_and_says_what_to_do() {
    let mut daemon = stopped().await;
    let path = daemon.ledger_path();
    let sound = fs::read(&path).unwrap();
    // The header; everything behind the first page; the second half, gone.
    for (at, length, cut) in [(0, 100, None), (4096, sound.len() - 4096, None), (0, 0, Some(sound.len() / 2))]
    {
        fs::write(&path, &sound).unwrap();
        let mut file = File::options().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&vec![0x5a; length]).unwrap();
        cut.map(|length| file.set_len(length as u64)).transpose().unwrap();
        drop(file);
        println!("{length} bytes from {at}, cut to {cut:?}");
        let told = refusal(daemon.restart().await, Exit::LedgerDamaged);
        assert!(told.contains(&*path.to_string_lossy()) && told.contains("restore a backup"), "{told}");
    }
    fs::write(&path, &sound).unwrap();
    daemon.restart().await.unwrap();
}

#[tokio::test]
async fn a_second_process_on_the_same_ledger_is_refused() {
    let stage = Stage::real_batch();
    let daemon = stage.start().await;
    let url = format!("sqlite:{}", daemon.ledger_path().display());
    let second = Daemon::start(BINARY, stage.config.clone().set("ledger", "url", url)).await;
    let told = refusal(second.map(drop), Exit::LedgerLocked);
    assert!(told.contains("in use by another process"), "{told}");
    accepted(daemon.submit(&crate::support::batch(crate::support::REAL)).await.unwrap());
}

#[tokio::test]
async fn a_newer_ledger_is_refused_naming_both_versions() {
    let mut daemon = stopped().await;
    let connection = rusqlite::Connection::open(daemon.ledger_path()).unwrap();
    let known: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    connection.pragma_update(None, "user_version", 4711).unwrap();
    connection.close().unwrap();
    let told = refusal(daemon.restart().await, Exit::LedgerNewer);
    assert!(told.contains("4711") && told.contains(&format!("no newer than {known}")), "{told}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let disk = SmallDisk::mount(1 << 20);
    disk.forbid_writing();
    let config = Config::new().product_url("none").set("ledger", "url", disk.url());
    let told = refusal(Daemon::start(BINARY, config).await.map(drop), Exit::File);
    assert!(told.contains(&*disk.path().to_string_lossy()), "{told}");
    assert!(told.to_lowercase().contains("read-only file system"), "{told}");
    assert!(told.contains("Mount it for writing") && told.contains("ledger.url"), "{told}");
}

/// Files that nobody may write, not even who has them open, as on a file system that fell back to reading.
struct Frozen(Vec<PathBuf>);

impl Frozen {
    fn freeze(files: Vec<PathBuf>) -> Self {
        run(chattr("+i", &files));
        Self(files)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        run(chattr("-i", &self.0));
    }
}

fn chattr(flag: &str, files: &[PathBuf]) -> Command {
    let mut chattr = Command::new("chattr");
    chattr.arg(flag).args(files);
    chattr
}

#[tokio::test]
async fn a_ledger_that_became_read_only_refuses_submits_and_all_goes_on_when_it_is_writable() {
    // Not in /tmp, which may be a tmpfs: that one lets who has a file open go on writing it.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let ledger = dir.path().join("ledger.sqlite");
    let stage = Stage::of(40).set("ledger", "url", format!("sqlite:{}", ledger.display()));
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    let mut daemon = stage.start().await;
    let bodies = bodies(2);
    accepted(daemon.submit(&bodies[0]).await.unwrap());
    stage.shops.all[0].wait_until(|hits| hits.len() >= 2, LONG).await.unwrap();

    let frozen = Frozen::freeze(vec![ledger.clone(), dir.path().join("ledger.sqlite-wal")]);
    refused(&daemon, &bodies[1], "lecture seule").await;
    let (status, ready) = daemon.get("/readyz").await.unwrap();
    assert_eq!((status, &ready["reasons"]), (503, &json!(["ledger_read_only"])));
    // What is in flight ends, its outcomes wait, and nobody else is visited.
    gate.open();
    keeps_refusing(&daemon, &bodies[1], "lecture seule").await;
    assert!(stage.receiver.records().is_empty(), "no outcome is told that is not stored");
    assert!(daemon.is_running());

    drop(frozen);
    let (products, _) = stage.finished(20).await;
    assert!(products.iter().all(|product| product["status"] == "found"));
    accepted(daemon.submit(&bodies[1]).await.unwrap());
    stage.receiver.wait_for_taken(2 * 20 + 2, LONG).await.unwrap();
    for (name, wanted) in [("ledger_read_only", 1), ("ledger_room", 1), ("ledger_lost", 0)] {
        assert_eq!(daemon.events(name).len(), wanted, "{name}");
    }
    assert!(daemon.events("visit_started").iter().all(|visit| visit["attempt"] == 1), "nobody was charged");
}

#[tokio::test]
async fn a_ledger_that_may_not_be_written_refuses_to_start_and_charges_nobody() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let ledger = dir.path().join("ledger.sqlite");
    let stage = Stage::of(40).set("ledger", "url", format!("sqlite:{}", ledger.display()));
    let mut daemon = stage.start().await;
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);

    let frozen = Frozen::freeze(vec![ledger.clone()]);
    let told = refusal(daemon.restart().await, Exit::File);
    assert!(told.contains(&*ledger.to_string_lossy()) && told.contains("ls -l, lsattr"), "{told}");

    drop(frozen);
    daemon.restart().await.unwrap();
    assert!(daemon.events("deaths_charged").is_empty(), "the end was nobody's fault");
    accepted(daemon.submit(&bodies(1)[0]).await.unwrap());
    stage.finished(20).await;
}

#[tokio::test]
async fn a_disk_without_room_for_a_new_ledger_is_named() {
    let disk = SmallDisk::mount(1 << 20);
    disk.fill_up_to(0);
    let config = Config::new().product_url("none").set("ledger", "url", disk.url());
    let told = refusal(Daemon::start(BINARY, config).await.map(drop), Exit::File);
    assert!(told.contains("no room on the disk"), "{told}");
}
