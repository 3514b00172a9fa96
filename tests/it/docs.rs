//! The README tells the truth.

use std::process::Command;

use glaneur::exit::Exit;
use glaneur::model::Status;

use crate::support::BINARY;

const README: &str = include_str!("../../README.md");

#[test]
fn readme_lists_every_exit_code() {
    for exit in Exit::ALL {
        let row = format!("\n| {} |", exit.code());
        assert!(README.contains(&row), "no row for {exit:?} ({})", exit.code());
    }
}

#[test]
fn readme_lists_every_status() {
    for status in Status::ALL {
        assert!(README.contains(&format!("\n| `{}` |", status.as_str())), "no row for {status:?}");
    }
}

#[test]
fn the_configuration_in_the_readme_is_right() {
    let blocks: Vec<&str> =
        README.split("```toml\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    assert_eq!(blocks.len(), 2);
    for block in blocks {
        let parsed = glaneur::config::parse("README.md", block);
        assert!(parsed.is_ok(), "{:?}\n{block}", parsed.err());
    }
}

#[test]
fn help_shows_examples_and_the_version_is_said() {
    let say = |argument: &str| {
        let output = Command::new(BINARY).arg(argument).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(say("--help").contains("Examples:"));
    assert_eq!(say("--version").trim(), concat!("glaneur ", env!("CARGO_PKG_VERSION")));
}
