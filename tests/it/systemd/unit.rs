//! What `systemd-analyze` says of the units; it needs no running systemd.

use std::fs;
use std::process::Command;

use glaneur::exit::Exit;

use super::service::{UNITS, units};

/// The worst exposure that the unit may have, and with the drop-in, times ten.
const EXPOSURE_MAX: u32 = 12;
const EXPOSURE_LOCAL_MAX: u32 = 9;

fn analyze(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(arguments).output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// A root directory with the units, and a program where they expect it.
fn installed() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let there = |path: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    for unit in UNITS {
        fs::copy(units().join(unit), there(&format!("etc/systemd/system/{unit}"))).unwrap();
    }
    for program in ["usr/local/bin/glaneur", "bin/sh", "bin/kill", "usr/bin/nsenter"] {
        fs::copy("/bin/true", there(program)).unwrap();
    }
    root
}

#[test]
fn systemd_knows_every_line_of_the_units() {
    let root = installed();
    let verify = || {
        let root = format!("--root={}", root.path().display());
        analyze(&["verify", &root, "--man=no", "--recursive-errors=no", UNITS[0], UNITS[1]])
    };
    let (good, said) = verify();
    assert!(good && said.is_empty(), "{said}");
    // It says nothing of an unknown key unless it is asked as above.
    let unit = root.path().join("etc/systemd/system/glaneur.service");
    let text = fs::read_to_string(&unit).unwrap().replace("WatchdogSec=", "WatchDogSec=");
    fs::write(&unit, text).unwrap();
    assert!(verify().1.contains("WatchDogSec"));
}

/// Two lines of the unit, the README and the docs say which codes a restart mends; the program decides.
#[test]
fn the_unit_and_the_docs_know_which_exits_a_restart_does_not_mend() {
    let unit = fs::read_to_string(units().join("glaneur.service")).unwrap();
    let readme = include_str!("../../../README.md");
    let docs = include_str!("../../../docs/systemd.md");
    let lasting: Vec<String> = Exit::ALL
        .into_iter()
        // Of the rest 0 and 79 are good ends, and 1 is none of the daemon's.
        .filter(|exit| !exit.may_mend() && !matches!(exit, Exit::Ok | Exit::No | Exit::Cut))
        .map(|exit| exit.code().to_string())
        .collect();
    assert!(unit.contains(&format!("\nRestartPreventExitStatus={}\n", lasting.join(" "))));
    assert!(unit.contains(&format!("case \"$EXIT_STATUS\" in {})", lasting.join("|"))));
    assert!(docs.contains(&format!("| exit {}: a restart mends nothing |", lasting.join(", "))));
    for exit in Exit::ALL.into_iter().filter(|exit| !matches!(exit, Exit::Ok | Exit::No | Exit::Cut)) {
        let row = readme.lines().find(|line| line.starts_with(&format!("| {} |", exit.code()))).unwrap();
        let said = if exit.may_mend() { "| yes |" } else { "| no |" };
        assert!(row.ends_with(said), "{row}");
    }
}

#[test]
fn the_unit_exposes_no_more_than_its_work_needs() {
    let unit = fs::read_to_string(units().join("glaneur.service")).unwrap();
    let local = fs::read_to_string(units().join("local-only.conf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("glaneur.service");
    for (text, max) in [(unit.clone(), EXPOSURE_MAX), (format!("{unit}\n{local}"), EXPOSURE_LOCAL_MAX)] {
        fs::write(&path, text).unwrap();
        let threshold = format!("--threshold={max}");
        let (good, said) = analyze(&["security", "--offline=true", &threshold, path.to_str().unwrap()]);
        assert!(good, "{said}");
    }
}
