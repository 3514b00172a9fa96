//! What an operator sees of a wrong configuration.

use std::process::Command;

use glaneur::exit::Exit;

use crate::support::BINARY;

fn run(text: &str, command: &str) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    let output = Command::new(BINARY)
        .arg("--config")
        .arg(&path)
        .arg(command)
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    (output.status.code().unwrap(), said)
}

const WRONG: &str =
    "[server]\nlissen = \"127.0.0.1:0\"\n\n[tor]\ncircuits = \"eight\"\n\n[webhooks]\nproduct_url = 7\n";

#[test]
fn every_mistake_is_reported_at_once_with_its_place_and_serve_refuses_the_same() {
    for command in ["check", "serve"] {
        let (code, said) = run(WRONG, command);
        assert_eq!(code, i32::from(Exit::Config.code()), "{said}");
        for part in ["config.toml:2:1", "listen", "config.toml:5:", "config.toml:8:"] {
            assert!(said.contains(part), "{command}: no {part:?} in:\n{said}");
        }
    }
}

#[test]
fn a_copy_of_the_shipped_configuration_refuses_and_names_the_key() {
    let (code, said) = run(glaneur::config::DEFAULT, "serve");
    assert_eq!(code, i32::from(Exit::Config.code()), "{said}");
    assert!(said.contains("webhooks.product_url"), "{said}");
}

#[test]
fn a_right_configuration_is_said_to_be_right() {
    let (code, said) = run("[webhooks]\nproduct_url = \"none\"\n", "check");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("no mistake"), "{said}");
}

#[test]
fn a_listener_beyond_loopback_needs_a_token_or_allow_from() {
    let (code, said) = run("[webhooks]\nproduct_url = \"none\"\n[server]\nlisten = \"0.0.0.0:0\"\n", "serve");
    assert_eq!(code, i32::from(Exit::Config.code()), "{said}");
    assert!(said.contains("token_file") && said.contains("allow_from"), "{said}");
}
