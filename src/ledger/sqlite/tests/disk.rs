//! A disk that is full: a real one, of one or two megabytes.

use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::time::Instant;

use super::*;

/// A small file system of its own. Needs root; without it the tests say that they did not run.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(dir.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            println!("NOT RUN: a small file system could not be mounted (it needs root)");
        }
        mounted.then_some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Leaves about this much room.
    fn fill_up_to(&self, room: u64) {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let mut file = File::options().append(true).create(true).open(self.filler()).unwrap();
        let _ = file.write_all(&vec![0; free.saturating_sub(room) as usize]);
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a neighbour test that starts a process holds copies of our files for a moment.
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).output();
        assert!(unmounted.is_ok_and(|output| output.status.success()) || std::thread::panicking());
    }
}

fn is_full<T: std::fmt::Debug>(result: &Result<T, StoreError>) -> bool {
    match result {
        Ok(_) => false,
        Err(StoreError::Full { .. }) => true,
        Err(error) => panic!("a full disk was told as {error:?}"),
    }
}

/// A wide batch: its rows alone are some hundred pages.
fn wide(n: u64) -> NewBatch {
    batch(
        (0..800)
            .map(|index| NewProduct { note: Some("x".repeat(300)), ..visit(n * 1_000 + index) })
            .collect(),
    )
}

#[test]
fn a_full_disk_refuses_loses_nothing_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(2 << 20) else { return };
    let mut lab = Lab::at(disk.path(), options());
    let first = lab.accept(&batch((0..50).map(visit).collect()));
    lab.claim(first.batch, 50);
    disk.fill_up_to(0);
    let mut kept = vec![first.batch];
    let mut refused = 0;
    for n in 0..200 {
        let new = batch(vec![visit(n), visit(n + 1_000), visit(n + 2_000)]);
        let result = lab.try_write(|store| store.accept(&new, NOW));
        if is_full(&result) {
            refused += 1;
        } else if let AcceptAnswer::Accepted(accepted) = result.unwrap() {
            kept.push(accepted.batch);
        }
    }
    assert!(refused > 0, "the disk was not full");
    let claim = lab.claim_of(1);
    let outcome =
        lab.try_write(|store| store.end(ProductKey { batch: first.batch, index: 1 }, claim, &found(), NOW));
    println!("{} kept, {refused} refused, the outcome: {outcome:?}", kept.len());
    is_full(&outcome);
    assert!(is_full(&lab.try_write(|store| store.accept(&wide(1), NOW))));
    let stored: Vec<_> = lab.reader().open_batches(BatchNo(0), 1_000).unwrap();
    assert_eq!(stored.iter().map(|open| open.no).collect::<Vec<_>>(), kept);
    assert_laws(&lab);

    disk.make_room();
    for index in 1..=50 {
        lab.end(first.batch, index, &found());
    }
    assert!(lab.view(first.batch).ended_at_ms.is_some());
    kept.push(lab.accept(&batch(vec![visit(7)])).batch);
    assert_laws(&lab);
    // And the log can be moved into the ledger again.
    lab.write(|store| store.touch());
    lab.opened = None;
    assert_eq!(lab.number("SELECT count(*) FROM batch"), kept.len() as i64);
    lab.reopen();
    assert_laws(&lab);
}

/// Room runs out at every step: in the log, in a page pushed out of the cache, at COMMIT, in the shared memory of the
/// log's index, in the ledger's own file while the log is moved into it.
#[test]
fn wherever_room_runs_out_the_group_is_refused_whole_and_the_laws_hold() {
    let mut places = (0, 0);
    for room in (0..40).map(|step| step * 80_000) {
        let Some(disk) = SmallDisk::mount(4 << 20) else { return };
        let mut lab = Lab::at(disk.path(), options());
        lab.store().connection().execute_batch("PRAGMA cache_size = 10").unwrap();
        let small = lab.accept(&batch((0..20).map(visit).collect()));
        lab.claim(small.batch, 20);
        disk.fill_up_to(room);
        for n in 1..8 {
            let before = lab.reader().tally().unwrap();
            let result = lab.try_write(|store| store.accept(&wide(n), NOW));
            let after = lab.reader().tally().unwrap();
            if is_full(&result) {
                places.0 += 1;
                assert_eq!(before, after, "refused, and yet there");
            } else {
                places.1 += 1;
                assert_eq!(before.accepted + 800, after.accepted, "accepted, and yet not there");
            }
            let result = lab.try_write(|store| store.touch());
            is_full(&result);
        }
        assert_laws(&lab);
        disk.make_room();
        lab.end(small.batch, 1, &found());
        for n in 20..22 {
            lab.end_all(lab.view(small.batch).no);
            lab.accept(&batch(vec![visit(n)]));
        }
        assert_laws(&lab);
        lab.opened = None;
    }
    println!("{} refused, {} accepted", places.0, places.1);
    assert!(places.0 > 20 && places.1 > 20, "{places:?}");
}

#[test]
fn the_shared_memory_of_the_logs_index_may_find_no_room_either() {
    let Some(disk) = SmallDisk::mount(24 << 20) else { return };
    let mut lab = Lab::at(disk.path(), options());
    // The log outgrows the first 32 KB of its index at 4 062 pages, and must not be moved meanwhile.
    lab.store().connection().execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
    let pages = || std::fs::metadata(disk.path().join("ledger.db-wal")).unwrap().len() / (4096 + 24);
    for n in 0.. {
        if pages() > 3_700 {
            break;
        }
        lab.accept(&wide(n));
    }
    while pages() < 4_050 {
        lab.write(|store| store.touch());
    }
    // Room for some pages of the log, and not for the next 32 KB of its index.
    disk.fill_up_to(16 * 4096);
    let full = (0..20).map(|_| lab.try_write(|store| store.touch())).find(is_full);
    assert!(full.is_some(), "there was room for all");
    let index = std::fs::metadata(disk.path().join("ledger.db-shm")).unwrap().len();
    println!("{full:?} at {} pages, index of {index} bytes", pages());
    assert!(pages() < 4_066, "it was the log that found no room");
    disk.make_room();
    lab.write(|store| store.touch());
    lab.accept(&wide(9_999));
    assert_laws(&lab);
}

#[test]
fn a_log_that_readers_held_back_is_cut_when_they_are_gone() {
    let mut lab = Lab::new();
    let mut reader = lab.reader();
    reader.begin_snapshot().unwrap();
    reader.tally().unwrap();
    let wal = lab.path.with_file_name("ledger.db-wal");
    let size = || std::fs::metadata(&wal).unwrap().len();
    for n in 0..60 {
        lab.accept(&wide(n));
    }
    let held = size();
    assert!(held > 20 << 20, "{held}");
    reader.end_snapshot();
    // The thread that moves the pages takes its time.
    let until = Instant::now() + Duration::from_secs(20);
    while size() > 16 << 20 {
        assert!(Instant::now() < until, "{}", size());
        lab.write(|store| store.touch());
    }
    assert_laws(&lab);
}
