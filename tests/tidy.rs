//! Checks on the source itself.
#![allow(clippy::unwrap_used, reason = "a file that cannot be read fails the check")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "{dir} has no source");
    found
}

fn all() -> Vec<(PathBuf, String)> {
    ["src", "tests", "kit/src", "benches"].into_iter().flat_map(sources).collect()
}

/// The code of a file without its tests.
fn shipped(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {")
        .flat_map(|code| code.split("\n#[cfg(test)]\nimpl "))
        .next()
        .unwrap_or(text)
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
        || path.ends_with("tests.rs")
        || path.ends_with("fake.rs")
}

#[test]
fn the_pure_modules_know_neither_tokio_nor_ractor() {
    let pure = ["src/model", "src/recipe", "src/config"].into_iter().flat_map(sources);
    let alone = [
        "src/batch/machine.rs",
        "src/webhook/verdict.rs",
        "src/webhook/lane.rs",
        "src/webhook/sign.rs",
        "src/scraper/pace/slowing.rs",
        "src/scraper/robots/rules.rs",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let alone = alone.map(|path| (root.join(path), fs::read_to_string(root.join(path)).unwrap()));
    for (path, text) in pure.chain(alone) {
        for word in ["tokio::", "ractor::"] {
            assert!(!shipped(&text).contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn lines_fit_a_screen() {
    const COLUMNS_MAX: usize = 140;
    for (path, text) in all().into_iter().filter(|(path, _)| !is_test(path)) {
        for (number, line) in (1..).zip(text.lines()) {
            // Tables of documentation, and texts that a format must keep whole.
            let whole = line.contains("http")
                || line.trim_start().starts_with(['"', '<', 'r'])
                || line.starts_with("//! |");
            assert!(whole || line.chars().count() <= COLUMNS_MAX, "{}:{number} is too long", path.display());
        }
    }
}

#[test]
fn files_say_one_thing() {
    const LINES_MAX: usize = 800;
    for (path, text) in sources("src").into_iter().filter(|(path, _)| !is_test(path)) {
        let lines = shipped(&text).lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines without its tests", path.display());
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for (path, text) in all().into_iter().filter(|(path, _)| !is_test(path)) {
        assert!(text.starts_with("//!"), "{} has no module docs", path.display());
    }
}

#[test]
fn a_state_machine_decides_about_every_state() {
    let machine = include_str!("../src/batch/machine.rs");
    assert!(
        !shipped(machine).contains("_ => Vec::new()"),
        "late messages are listed, so that a new state does not compile"
    );
}

/// What the service manager put into the environment is left there, since nobody inherits it.
#[test]
fn the_daemon_starts_no_process() {
    for (path, text) in sources("src").into_iter().filter(|(path, _)| !is_test(path)) {
        assert!(!shipped(&text).contains("process::Command"), "{} starts one", path.display());
    }
}

#[test]
fn nothing_is_left_to_be_done() {
    let marks = ["TO", "FIX", "XX"].map(|mark| {
        format!(
            "{mark}{}",
            if mark == "TO" {
                "DO"
            } else if mark == "FIX" {
                "ME"
            } else {
                "X:"
            }
        )
    });
    for (path, text) in all() {
        for mark in &marks {
            assert!(!text.contains(mark.as_str()), "{} says {mark}", path.display());
        }
    }
}
