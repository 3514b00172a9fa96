//! `glaneur circuits`: what each circuit of the running daemon is and did, as a table of 100 columns.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde::Deserialize;

use super::{api, complain, find, secrets, wait_for};
use crate::exit::Exit;

const PATH: &str = "/api/circuits";
/// What fits beside another window, and into a mail.
const COLUMNS_MAX: u16 = 100;

pub fn run(config: Option<&Path>, at: Option<SocketAddr>, json: bool) -> Exit {
    let found = match find::config(config) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let token = match secrets::bearer(&found.config) {
        Ok(token) => token,
        Err(what) => {
            found.complain(what);
            return Exit::File;
        }
    };
    let listens = at.unwrap_or(found.config.server.listen);
    let body = match wait_for(api::get(listens, token.as_deref(), PATH)) {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => {
            found.complain(error);
            return Exit::No;
        }
        Err(exit) => return exit,
    };
    let mut out = std::io::stdout().lock();
    // Nobody reads a closed pipe.
    if json {
        let _ = out.write_all(&body).and_then(|()| out.write_all(b"\n"));
        return Exit::Ok;
    }
    match serde_json::from_slice::<Answer>(&body) {
        Ok(answer) => {
            let _ = out.write_all(shown(&answer).as_bytes());
            Exit::Ok
        }
        Err(error) => {
            complain(format_args!("the answer of {} is not understood: {error}", api::reachable(listens)));
            Exit::No
        }
    }
}

/// What is read of the answer; the README documents all of it.
#[derive(Deserialize)]
struct Answer {
    tor: Option<String>,
    reason: Option<String>,
    /// Not told by a daemon older than this command.
    binding: Option<String>,
    configured: usize,
    circuits: Vec<Circuit>,
}

#[derive(Deserialize)]
struct Circuit {
    name: String,
    exit: Option<Relay>,
    age_s: Option<u64>,
    uses: u32,
    latency_ms: Option<u64>,
    sent_bytes: u64,
    received_bytes: u64,
    visiting: Option<String>,
    blocks: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Relay {
    nickname: String,
    country: Option<String>,
}

fn shown(answer: &Answer) -> String {
    let tor = answer.tor.as_deref().unwrap_or("unknown");
    let reason = answer.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let (there, configured) = (answer.circuits.len(), answer.configured);
    let binding = answer.binding.as_ref().map(|grade| format!(", binding: {grade}")).unwrap_or_default();
    let mut text = format!("{there} circuits, {configured} configured{binding}; Tor: {tor}{reason}\n");
    if there > 0 {
        text += &format!("{}\n", table(&answer.circuits));
    }
    text
}

fn table(circuits: &[Circuit]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(COLUMNS_MAX);
    table.set_header(["circuit", "exit", "age", "uses", "latency", "sent", "received", "visiting", "blocks"]);
    for circuit in circuits {
        let blocks: Vec<_> = circuit.blocks.iter().map(|(shop, times)| format!("{shop} {times}")).collect();
        let unknown = || "-".to_owned();
        table.add_row([
            circuit.name.clone(),
            circuit.exit.as_ref().map_or_else(unknown, exit),
            circuit.age_s.map_or_else(unknown, age),
            circuit.uses.to_string(),
            circuit.latency_ms.map_or_else(unknown, |ms| format!("{ms} ms")),
            size(circuit.sent_bytes),
            size(circuit.received_bytes),
            circuit.visiting.clone().unwrap_or_else(unknown),
            blocks.join(", "),
        ]);
    }
    for column in 2..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn exit(relay: &Relay) -> String {
    match &relay.country {
        Some(country) => format!("{} ({country})", relay.nickname),
        None => relay.nickname.clone(),
    }
}

fn age(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} m {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} m"),
    }
}

/// In three digits: the exact number is in `--json`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let (mut value, mut units) = (bytes as f64 / 1e3, UNITS.iter());
    let mut unit = units.next();
    while 999.5 <= value
        && let Some(next) = units.next()
    {
        (value, unit) = (value / 1e3, Some(next));
    }
    let decimals = usize::from(value < 9.95);
    format!("{value:.decimals$} {}", unit.unwrap_or(&UNITS[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!([age(7), age(61), age(3661)], ["7 s", "1 m 01 s", "1 h 01 m"]);
        let sizes = [0, 999, 1_000, 9_949, 9_951, 59_999, 999_499, 999_501, 1_250_000_000].map(size);
        assert_eq!(
            sizes,
            ["0 B", "999 B", "1.0 kB", "9.9 kB", "10 kB", "60 kB", "999 kB", "1.0 MB", "1.2 GB"]
        );
    }

    fn widest() -> Circuit {
        Circuit {
            name: "w511.g1000000".into(),
            exit: Some(Relay { nickname: "N".repeat(19), country: Some("se".into()) }),
            age_s: Some(599),
            uses: u32::MAX,
            latency_ms: Some(60_000),
            sent_bytes: 999_000,
            received_bytes: 999_000,
            visiting: Some("s".repeat(40)),
            blocks: (0..5).map(|n| (format!("{n}{}", "b".repeat(39)), u64::MAX)).collect(),
        }
    }

    #[test]
    fn the_widest_table_fits_100_columns_and_leaves_nothing_out() {
        let text = table(&[widest()]).to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        let letters = |letter: char| text.matches(letter).count();
        assert_eq!((letters('N'), letters('b') - "blocks".matches('b').count()), (19, 5 * 39), "{text}");
    }

    #[test]
    fn what_is_not_known_is_a_dash_and_why_tor_is_away_is_said_first() {
        let body = r#"{"tor": "away", "reason": "connection refused", "binding": "strict", "configured": 2, "circuits": [{"name": "w0.g1",
            "worker": 0, "generation": 1, "exit": null, "age_s": null, "uses": 0, "latency_ms": null,
            "sent_bytes": 0, "received_bytes": 0, "visiting": null, "blocks": {}}]}"#;
        let text = shown(&serde_json::from_str(body).unwrap());
        assert!(
            text.starts_with("1 circuits, 2 configured, binding: strict; Tor: away (connection refused)\n"),
            "{text}"
        );
        let row: Vec<_> =
            text.lines().find(|line| line.contains("w0.g1")).unwrap().split('┆').map(str::trim).collect();
        assert_eq!(row[1..4], ["-", "-", "0"], "{text}");
    }
}
