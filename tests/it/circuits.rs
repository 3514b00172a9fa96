//! What is told of the circuits: `GET /api/circuits`, and `glaneur circuits` beside a running daemon.

use std::path::{Path, PathBuf};

use glaneur_kit::shop::{Conduct, Purpose, When};
use glaneur_kit::{Catalogue, Daemon, Gate, ShopKind};
use serde_json::Value;
use tokio::process::Command;

use crate::support::{BINARY, LONG, REAL, Stage, accepted, batch, until_told};
use crate::tor::{network, stage_behind};

const TOKEN: &str = "correct horse battery staple";

async fn circuits(config: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(BINARY)
        .args(["circuits", "--config"])
        .arg(config)
        .args(arguments)
        .env_remove("GLANEUR_CONFIG")
        .output()
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn each_circuit_is_told_with_its_use_its_bytes_its_shop_of_now_and_its_blocks() {
    let network = network().await;
    let stage = stage_behind(&network, Catalogue::of(REAL));
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    let first_search = When::is(|hit| hit.purpose == Purpose::Search && hit.order == 0);
    stage.shops.of(ShopKind::Pharmagdd).behave(first_search, Conduct::Status(403));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    let asks_page = |hits: &[glaneur_kit::shop::Hit]| hits.iter().any(|hit| hit.purpose == Purpose::Page);
    for shop in &stage.shops.all {
        shop.wait_until(asks_page, LONG).await.unwrap();
    }

    let (status, told) = daemon.get("/api/circuits").await.unwrap();
    assert_eq!((status, &told["tor"], &told["configured"]), (200, &"there".into(), &6.into()), "{told}");
    let rows = told["circuits"].as_array().unwrap();
    assert_eq!(rows.len(), 6, "{told}");
    let visited: Vec<_> = rows.iter().filter(|row| row["visiting"].is_string()).collect();
    for kind in ShopKind::ALL {
        assert!(visited.iter().any(|row| row["visiting"] == kind.name()), "{kind:?} is visited: {told}");
    }
    let waits_for_page = |row: &&&Value| row["uses"].as_u64() > Some(1);
    for row in visited.iter().filter(waits_for_page) {
        assert!(row["age_s"].is_u64() && row["sent_bytes"].as_u64() > Some(0), "{row}");
        assert!(row["received_bytes"].as_u64() > Some(0) && row["latency_ms"].is_u64(), "{row}");
    }
    let blocked: Vec<_> = rows.iter().filter(|row| row["blocks"]["pharmagdd"] == 1).collect();
    assert_eq!(blocked.len(), 1, "one block at one worker: {told}");
    assert!(blocked[0]["generation"].as_u64() > Some(1), "which has another circuit now: {told}");

    gate.open();
    stage.finished(REAL.len()).await;
    let (_, told) = daemon.get("/api/circuits").await.unwrap();
    let rows = told["circuits"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["visiting"].is_null()), "nothing is visited any more: {told}");
    assert!(rows.iter().all(|row| row["name"].as_str().is_some_and(|name| name.starts_with('w'))), "{told}");
}

/// A configuration beside the daemon's own, which listens at a port that it lets the system choose.
fn configuration(daemon: &Daemon, name: &str, listen: &str, token: Option<&str>) -> PathBuf {
    let token_file = daemon.dir().join(format!("{name}-token"));
    std::fs::write(&token_file, token.unwrap_or_default()).unwrap();
    let line = token.map(|_| format!("token_file = {token_file:?}\n")).unwrap_or_default();
    let guard = if token.is_none() { "allow_from = [\"192.0.2.0/24\"]\n" } else { "" };
    let text = format!("[server]\nlisten = \"{listen}\"\n{line}{guard}[webhooks]\nproduct_url = \"none\"\n");
    let path = daemon.dir().join(format!("{name}.toml"));
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn the_command_asks_a_daemon_on_every_address_with_its_token_and_says_why_it_got_no_answer() {
    let token_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token_file.path(), TOKEN).unwrap();
    let stage = Stage::of(1).set("server", "listen", "0.0.0.0:0").set(
        "server",
        "token_file",
        token_file.path().to_str().unwrap(),
    );
    let mut daemon = stage.start().await;
    let listens = format!("0.0.0.0:{}", daemon.api().address.port());

    let right = configuration(&daemon, "right", &listens, Some(TOKEN));
    // It listens before its scrapers are there.
    until_told("all scrapers are there", async || circuits(&right, &["--json"]).await.1.contains("w5.g1"))
        .await;
    let (code, table, said) = circuits(&right, &[]).await;
    assert_eq!(code, 0, "{said}");
    assert!(table.contains("6 circuits, 6 configured") && table.contains("w5.g1"), "{table}");
    assert!(table.lines().skip(1).all(|line| line.chars().count() <= 100), "{table}");
    let (code, json, said) = circuits(&right, &["--json"]).await;
    assert_eq!(code, 0, "{said}");
    let told: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(told["circuits"].as_array().unwrap().len(), 6, "{told}");
    let (code, _, said) = circuits(&daemon.config_path(), &["--at", &listens]).await;
    assert_eq!(code, 0, "its own configuration has the port of no socket: {said}");

    let shop = format!("127.0.0.1:{}", stage.shops.all[0].port());
    for (name, listen, token, word) in [
        ("wrong", &listens, Some("wrong"), "refuses the token"),
        ("without", &listens, None, "wants a token"),
        ("another", &shop, Some(TOKEN), "is not glaneur"),
    ] {
        let (code, told, said) = circuits(&configuration(&daemon, name, listen, token), &[]).await;
        assert_eq!((code, told.as_str()), (1, ""), "{name}: {said}");
        assert!(said.contains(word), "{name}: {said}");
        assert!(!said.contains(TOKEN), "{said}");
    }
    let unreadable = configuration(&daemon, "unreadable", &listens, Some(TOKEN));
    std::fs::remove_file(daemon.dir().join("unreadable-token")).unwrap();
    let (code, _, said) = circuits(&unreadable, &[]).await;
    assert_eq!(code, 74, "{said}");
    assert!(said.contains("`server.token_file`"), "{said}");

    daemon.kill_9().await.unwrap();
    let (code, _, said) = circuits(&right, &[]).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("no daemon answers at 127.0.0.1:"), "{said}");
    assert!(said.contains("glaneur serve"), "{said}");
}
