//! The wall clock jumps while webhooks wait for their next attempt, summaries wait for their webhooks, and a batch runs.

use std::time::{Duration, Instant};

use glaneur_kit::receiver::{Answer, Seen, is_summary};
use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{Catalogue, Daemon, Gate, Receiver, WallClock};
use serde_json::{Value, json};

use crate::support::{BINARY, LONG, Stage, accepted};

const HOUR_S: i64 = 3_600;
/// Between two attempts of a delivery, of which up to a quarter is taken off.
const INTERVAL: Duration = Duration::from_secs(2);
const INTERVAL_MIN: Duration = Duration::from_millis(1_500);
/// Products of one batch.
const N: usize = 6;

#[tokio::test]
async fn a_clock_that_jumps_an_hour_both_ways_makes_nothing_early_and_nothing_stuck() {
    let clock = WallClock::start().unwrap();
    let stage = Stage::of(2 * N)
        .set("webhooks", "backoff_min", "2s")
        .set("webhooks", "backoff_max", "2s")
        .set("webhooks", "parked_probe_max", "2s");
    stage.receiver.behave_at("/p", Answer::Status(500, String::new()));
    let daemon = Daemon::builder(BINARY).config(stage.config.clone());
    let daemon = clock.worn_by(daemon).start().await.unwrap();
    let eans = Catalogue::synthetic(2 * N, 7).eans();
    accepted(daemon.submit(&json!({"eans": eans[..N]})).await.unwrap());
    daemon.wait_for_event("batch_ended", |_| true).await.unwrap();
    daemon.wait_for_event("lane_parked", |_| true).await.unwrap();
    let (parked, attempts) = (Instant::now(), stage.receiver.records().len());
    // The second batch is in the middle of its visits all the while.
    let gate = Gate::closed();
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&gate));
    accepted(daemon.submit(&json!({"eans": eans[N..]})).await.unwrap());

    let jumps = [HOUR_S, -HOUR_S, -HOUR_S, HOUR_S];
    let mut ahead_s = 0;
    for (n, by_s) in jumps.into_iter().enumerate() {
        ahead_s += by_s;
        clock.jump_to(ahead_s).unwrap();
        told(&daemon, n + 1, by_s).await;
        still_tried(&stage.receiver).await;
        assert!(
            daemon.events("summary_released").is_empty(),
            "{by_s} s: its wait of 15 minutes has only begun"
        );
    }
    let (waited, attempts) = (parked.elapsed(), stage.receiver.records().len() - attempts);
    // A parked lane has one attempt at a time, one for each interval; each jump ahead may use up one interval.
    let attempts_max = waited.div_duration_f64(INTERVAL_MIN) as usize + jumps.len() + 1;
    println!("{attempts} attempts in {waited:?}, at most {attempts_max} wanted");
    assert!(attempts <= attempts_max, "{attempts} attempts in {waited:?}");

    stage.receiver.behave(Answer::Started);
    gate.open();
    let both =
        |seen: &[Seen]| seen.iter().filter(|seen| seen.taken() && is_summary(&seen.json())).count() == 2;
    let seen = stage.receiver.wait_until(both, LONG).await.unwrap();
    let taken: Vec<&Seen> = seen.iter().filter(|seen| seen.taken()).collect();
    assert_eq!(taken.len(), 2 * N + 2, "each of them once");
    assert_eq!(glaneur_kit::receiver::taken_once(&seen).len(), taken.len(), "and no id twice");
    let found = taken.iter().filter(|seen| seen.json()["status"] == "found");
    assert_eq!(found.count(), 2 * N);
    for quiet in ["delivery_dead", "claim_stranded", "conservation_broken", "actor_restarted"] {
        assert!(daemon.events(quiet).is_empty(), "{quiet}");
    }
}

/// The `nth` jump is in the log, with its size.
async fn told(daemon: &Daemon, nth: usize, by_s: i64) {
    let find = |log: &[glaneur_kit::daemon::LogLine]| {
        let jumps = log.iter().filter(|line| line.event() == Some("clock_jumped"));
        jumps.map(|line| line.json["by_ms"].clone()).nth(nth - 1)
    };
    let by_ms: Value = daemon.log().wait_for(find, LONG).await.unwrap();
    assert!((by_ms.as_i64().unwrap() - 1_000 * by_s).abs() < 1_000, "{by_ms} for {by_s} s");
}

/// Two more attempts come in their time: whoever waited an hour would not come at all.
async fn still_tried(receiver: &Receiver) {
    let (begun, before) = (Instant::now(), receiver.records().len());
    receiver.wait_until(|seen| before + 2 <= seen.len(), LONG).await.unwrap();
    // Generous to a machine that does other work as well.
    assert!(begun.elapsed() < 2 * INTERVAL + Duration::from_secs(15), "{:?}", begun.elapsed());
}
