//! A wall clock that jumps, for one process: Debian's libfaketime, preloaded. The machine's clock is left alone, and so
//! is the monotonic one.

use std::{ffi::OsString, fs, path::PathBuf};

use tempfile::TempDir;

use crate::{Because, Result, Trouble, apt, daemon::Setup};

/// The wall clock of the processes that were started with it.
#[derive(Debug)]
pub struct WallClock {
    dir: TempDir,
    library: PathBuf,
}

impl WallClock {
    /// A clock that is right. Installs libfaketime where it is missing, which needs root.
    pub fn start() -> Result<Self> {
        apt::ensure("libfaketime", || library().is_some())?;
        let library = library().ok_or_else(|| Trouble::new("libfaketime was there a moment ago"))?;
        let dir = tempfile::Builder::new().prefix("glaneur-clock-").tempdir().because("make a directory")?;
        let clock = Self { dir, library };
        clock.jump_to(0)?;
        Ok(clock)
    }

    /// Gives a daemon this clock.
    pub fn worn_by(&self, setup: Setup) -> Setup {
        let off = |name: &str| (name.to_owned(), OsString::from("1"));
        [
            ("LD_PRELOAD".to_owned(), self.library.clone().into_os_string()),
            ("FAKETIME_TIMESTAMP_FILE".to_owned(), self.file().into_os_string()),
            // A jump is seen by the next look at the clock, not within ten seconds.
            off("FAKETIME_NO_CACHE"),
            off("FAKETIME_DONT_FAKE_MONOTONIC"),
            // The times of files are the machine's.
            off("NO_FAKE_STAT"),
        ]
        .into_iter()
        .fold(setup, |setup, (name, value)| setup.env(name, value))
    }

    /// From now on the clock is this far ahead of the right time, or behind it.
    pub fn jump_to(&self, ahead_s: i64) -> Result<()> {
        let new = self.dir.path().join("new");
        // Written aside: whoever looks sees one time or the other.
        fs::write(&new, format!("{ahead_s:+}\n")).because("write the time")?;
        fs::rename(&new, self.file()).because("set the time")
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("offset")
    }
}

/// The variant for programs with threads; the folder has the name of the machine's architecture.
fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?;
    let path = |folder: PathBuf| folder.join("faketime/libfaketimeMT.so.1");
    folders.filter_map(|folder| Some(path(folder.ok()?.path()))).find(|path| path.exists())
}
