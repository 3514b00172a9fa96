//! The circuits as `GET /api/circuits` shows them. Pure: the time is passed in.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::model::SiteName;
use crate::scraper::relay::ExitRelay;
use crate::scraper::roster::Row;

#[derive(Serialize)]
struct Circuits<'a> {
    /// Tor's state and how circuits are bound, in the words of `details` of `/readyz`.
    #[serde(flatten)]
    status: Option<&'a Map<String, Value>>,
    /// `tor.circuits`; there are fewer while their scrapers start.
    configured: usize,
    circuits: Vec<Circuit<'a>>,
}

#[derive(Serialize)]
struct Circuit<'a> {
    name: String,
    worker: u32,
    generation: u64,
    exit: Option<Exit<'a>>,
    /// Since its first use of Tor; null before.
    age_s: Option<u64>,
    /// Fetches through Tor.
    uses: u32,
    latency_ms: Option<u64>,
    sent_bytes: u64,
    received_bytes: u64,
    visiting: Option<&'a SiteName>,
    /// Of all generations of this worker.
    blocks: &'a BTreeMap<SiteName, u64>,
}

#[derive(Serialize)]
struct Exit<'a> {
    fingerprint: &'a str,
    nickname: &'a str,
    address: Option<IpAddr>,
    country: Option<&'a str>,
}

/// The body of the answer.
pub fn circuits(status: &Value, configured: usize, rows: &[Row], now: Instant) -> Vec<u8> {
    let circuits = rows.iter().map(|row| circuit(row, now)).collect();
    super::wire::to_json(&Circuits { status: status.as_object(), configured, circuits })
}

fn circuit(row: &Row, now: Instant) -> Circuit<'_> {
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Circuit {
        name: row.circuit.to_string(),
        worker: row.circuit.worker,
        generation: row.circuit.generation,
        exit: row.exit.as_deref().map(exit),
        age_s: row.first_used.map(|first| now.saturating_duration_since(first).as_secs()),
        uses: row.uses,
        latency_ms: row.latency.map(ms),
        sent_bytes: row.flow.sent(),
        received_bytes: row.flow.received(),
        visiting: row.visiting.as_ref(),
        blocks: &row.blocks,
    }
}

fn exit(exit: &ExitRelay) -> Exit<'_> {
    Exit {
        fingerprint: &exit.fingerprint,
        nickname: &exit.nickname,
        address: exit.address,
        country: exit.country.as_deref(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::scraper::circuit::CircuitId;
    use crate::scraper::roster::Flow;

    fn row(worker: u32) -> Row {
        Row {
            circuit: CircuitId { worker, generation: 17 },
            first_used: None,
            uses: 0,
            exit: None,
            flow: Arc::<Flow>::default(),
            latency: None,
            visiting: None,
            blocks: BTreeMap::new(),
        }
    }

    fn shown(rows: &[Row], now: Instant) -> Value {
        let status = json!({"tor": "away", "reason": "gone"});
        serde_json::from_slice(&circuits(&status, 8, rows, now)).unwrap()
    }

    #[test]
    fn a_circuit_tells_all_that_is_known_of_it() {
        let began = Instant::now();
        let flow = Arc::<Flow>::default();
        flow.count_sent(300);
        flow.count_received(60_000);
        let used = Row {
            first_used: Some(began),
            uses: 5,
            exit: Some(Arc::new(ExitRelay {
                fingerprint: "AB".repeat(20).into(),
                nickname: "quiet".into(),
                address: Some([192, 0, 2, 1].into()),
                country: Some("se".into()),
            })),
            flow,
            latency: Some(Duration::from_micros(312_700)),
            visiting: Some("alpha".into()),
            blocks: BTreeMap::from([("beta".into(), 2)]),
            ..row(3)
        };
        let body = shown(&[used], began + Duration::from_millis(61_900));
        assert_eq!(
            body["circuits"][0],
            json!({
                "name": "w3.g17", "worker": 3, "generation": 17,
                "exit": {"fingerprint": "AB".repeat(20), "nickname": "quiet", "address": "192.0.2.1", "country": "se"},
                "age_s": 61, "uses": 5, "latency_ms": 312, "sent_bytes": 300, "received_bytes": 60_000,
                "visiting": "alpha", "blocks": {"beta": 2},
            })
        );
        assert_eq!(
            (&body["tor"], &body["reason"], &body["configured"]),
            (&json!("away"), &json!("gone"), &json!(8))
        );
    }

    #[test]
    fn what_is_not_known_is_null_and_not_left_out() {
        let body = shown(&[row(0)], Instant::now());
        for key in ["exit", "age_s", "latency_ms", "visiting"] {
            assert_eq!(body["circuits"][0].get(key), Some(&Value::Null), "{key}");
        }
        assert_eq!(shown(&[], Instant::now())["circuits"], json!([]));
    }
}
