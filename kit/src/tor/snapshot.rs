//! Data directories of a network that has started once: keys and a consensus are slow to make, and last for a day.
//!
//! A snapshot is taken while nothing runs, and is never run itself, only copied from: it cannot be in use by another
//! process. The addresses in it can, and those are claimed ([`super::subnet`]). It appears by one rename, so it is whole
//! or not there.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::{Because, Result};

/// How long a consensus must still be valid: longer than any test run.
const VALID_FOR_MIN: Duration = Duration::from_secs(2 * 3_600);

/// Snapshots in one cache: as many networks as run side by side.
const SNAPSHOTS_MAX: usize = 8;

/// What belongs to one run and not to the next.
const LEFT_OUT: [&str; 6] = ["log", "lock", "stdout", "torrc", "cookie", "resolv.conf"];

/// The directories of `cache` that belong to a subnet, by name.
pub(super) fn subnets(cache: &Path) -> Vec<PathBuf> {
    // A cache that is not there has none.
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    let mut dirs: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    dirs.sort();
    dirs
}

/// Where a subnet's snapshot is.
fn place(subnet: &Path) -> PathBuf {
    subnet.join("snapshot")
}

/// Whether there is a snapshot whose consensus is valid for long enough.
pub(super) fn is_valid(subnet: &Path) -> bool {
    let consensus = place(subnet).join("auth0/cached-microdesc-consensus");
    let text = fs::read_to_string(consensus).unwrap_or_default();
    let until = text.lines().find_map(|line| utc(line.strip_prefix("valid-until ")?));
    until.is_some_and(|until| SystemTime::now() + VALID_FOR_MIN < until)
}

/// Copies a snapshot to the directory of a run.
pub(super) fn take(subnet: &Path, run: &Path) -> Result<()> {
    copy(&place(subnet), run).because("copy the snapshot of a Tor network")
}

/// Deletes a snapshot that is of no use.
pub(super) fn forget(subnet: &Path) {
    // What cannot be deleted is judged again next time.
    let _ = fs::remove_dir_all(place(subnet));
}

/// Keeps the data directories of a run that is about to start, unless there are enough.
pub(super) fn keep(subnet: &Path, run: &Path, nodes: &[String]) -> Result<()> {
    let cache = subnet.parent().unwrap_or(subnet);
    if subnets(cache).iter().filter(|subnet| is_valid(subnet)).count() >= SNAPSHOTS_MAX {
        return Ok(());
    }
    let deed = "keep a snapshot of the Tor network";
    let unfinished = subnet.join("snapshot.new");
    let _ = fs::remove_dir_all(&unfinished);
    for node in nodes {
        copy(&run.join(node), &unfinished.join(node)).because(deed)?;
    }
    forget(subnet);
    fs::rename(unfinished, place(subnet)).because(deed)
}

/// Makes a directory as tor wants it: for its owner only.
pub(super) fn private_dir(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    private_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if LEFT_OUT.iter().any(|left_out| name == *left_out) {
            continue;
        }
        let (path, target) = (entry.path(), to.join(&name));
        match entry.file_type()? {
            kind if kind.is_dir() => copy(&path, &target)?,
            kind if kind.is_file() => drop(fs::copy(&path, &target)?),
            _ => {}
        }
    }
    Ok(())
}

/// `2026-11-24 07:00:00`, in UTC.
fn utc(text: &str) -> Option<SystemTime> {
    let numbers: Vec<u64> =
        text.trim().split(['-', ' ', ':']).map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let &[year, month, day, hour, minute, second] = &numbers[..] else { return None };
    // Years begin in March here, so that the leap day is the last; 719 468 days lie before 1970.
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1)?;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let seconds = days.checked_sub(719_468)? * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read() {
        let seconds = |text| utc(text).unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(seconds("1970-01-01 00:00:00"), 0);
        assert_eq!(seconds("2000-02-29 12:30:01"), 951_827_401);
        assert_eq!(seconds("2026-11-24 06:00:00"), 1_795_500_000);
        assert_eq!(utc("tomorrow"), None);
    }
}
