//! Transaction 3, lanes, and rule 10.

use super::*;
use crate::model::delivery::Endpoint;

/// A batch of `count` products, all ended as found.
fn ended(lab: &mut Lab, count: u64) -> BatchNo {
    let batch = lab.accept(&batch((0..count).map(visit).collect())).batch;
    lab.end_all(batch);
    batch
}

fn again(after_ms: u64) -> AttemptResult {
    AttemptResult::Again { after_ms }
}

const OLD: UrlHash = UrlHash([1; 32]);
const NEW: UrlHash = UrlHash([2; 32]);

/// Readmits what the only lane with held deliveries holds.
fn readmit(lab: &mut Lab, url: UrlHash, limit: u32) -> Readmitted {
    let lanes = lab.reader().held_lanes().unwrap();
    assert_eq!(lanes.len(), 1);
    lab.write(|store| store.readmit(lanes[0].no, url, NOW + 9_000, limit))
}

#[test]
fn an_attempt_is_recorded_once_and_moves_its_due_time() {
    let mut lab = Lab::new();
    ended(&mut lab, 1);
    let due = lab.due().remove(0);
    assert_eq!(lab.record(&due, again(5_000)), Recorded::Applied);
    assert_eq!(lab.record(&due, again(9_000)), Recorded::Late);
    assert_eq!(lab.record(&due, AttemptResult::Dead), Recorded::Late);
    let mut reader = lab.reader();
    let lane = reader.lanes().unwrap().remove(0);
    assert_eq!(lane.next_due_at_ms, NOW + 2_000 + 5_000);
    assert!(reader.due(lane.no, NOW + 6_999, &[], 9).unwrap().is_empty());
    let due = reader.due(lane.no, NOW + 7_000, &[], 9).unwrap().remove(0);
    assert_eq!((due.attempts, due.patience_used_ms, due.last_attempt_at_ms), (1, 7, Some(NOW + 2_000)));
    assert!(
        reader.due(lane.no, NOW + 7_000, &[due.no], 9).unwrap().is_empty(),
        "what is in hand is left out"
    );
    assert_laws(&lab);
}

#[test]
fn taken_always_wins() {
    let mut lab = Lab::new();
    ended(&mut lab, 1);
    let due = lab.due().remove(0);
    lab.record(&due, AttemptResult::Dead);
    assert_eq!(lab.record(&due, AttemptResult::Taken), Recorded::Applied);
    assert_eq!(lab.record(&due, AttemptResult::Taken), Recorded::Late);
    assert_eq!(lab.reader().tally().unwrap().deliveries, [0, 1, 0, 0, 0, 0]);
    assert_laws(&lab);
}

#[test]
fn due_deliveries_come_oldest_first_and_no_more_than_asked() {
    let mut lab = Lab::new();
    ended(&mut lab, 5);
    let due = lab.due();
    for (due, after) in due.iter().zip([50, 40, 30, 20, 10]) {
        lab.record(due, again(after));
    }
    let mut reader = lab.reader();
    let lane = reader.lanes().unwrap().remove(0).no;
    let nos = |due: Vec<DueDelivery>| due.iter().map(|due| due.no).collect::<Vec<_>>();
    assert_eq!(nos(reader.due(lane, i64::MAX, &[], 2).unwrap()), [due[4].no, due[3].no]);
    assert_eq!(nos(reader.due(lane, i64::MAX, &[due[4].no, due[3].no], 2).unwrap()), [due[2].no, due[1].no]);
}

#[test]
fn a_gone_endpoint_stops_its_whole_lane_and_what_comes_after() {
    let mut lab = Lab::new();
    let batch = ended(&mut lab, 3);
    let due = lab.due();
    lab.record(&due[0], AttemptResult::StopEndpoint { url: Some(OLD) });
    assert!(lab.reader().lanes().unwrap().is_empty());
    assert_eq!(lab.view(batch).deliveries[DeliveryState::Stopped as usize], 3);
    // A late answer of one that was under way.
    assert_eq!(lab.record(&due[1], again(0)), Recorded::Applied);
    let later = ended(&mut lab, 1);
    assert_eq!(lab.view(later).deliveries[DeliveryState::Stopped as usize], 1);
    assert!(!lab.view(batch).summary_released, "stopped is open");
    assert_laws(&lab);
}

#[test]
fn a_stopped_endpoint_with_another_url_sends_again_in_steps_and_with_the_same_url_stays_stopped() {
    let mut lab = Lab::new();
    let batch = ended(&mut lab, 5);
    let due = lab.due();
    lab.record(&due[0], AttemptResult::StopEndpoint { url: Some(OLD) });
    let held = lab.reader().held_lanes().unwrap().remove(0);
    assert!(!held.is_to_be_readmitted(OLD) && held.is_to_be_readmitted(NEW), "{held:?}");
    assert_eq!(readmit(&mut lab, OLD, 9), Readmitted { resumed: false, moved: 0 });
    assert!(lab.due().is_empty());
    assert_eq!(readmit(&mut lab, NEW, 3), Readmitted { resumed: true, moved: 3 });
    assert_laws(&lab);
    // The rest goes on also if the process ends in between.
    lab.die_and_open();
    let held = lab.reader().held_lanes().unwrap().remove(0);
    assert!(held.is_to_be_readmitted(NEW), "{held:?}");
    assert_eq!(readmit(&mut lab, NEW, 3), Readmitted { resumed: false, moved: 2 });
    assert!(lab.reader().held_lanes().unwrap().is_empty());
    assert_eq!(lab.due().len(), 5);
    assert_eq!(lab.view(batch).deliveries[DeliveryState::Waiting as usize], 5);
    assert_laws(&lab);
}

#[test]
fn what_is_withheld_keeps_its_attempts_and_is_readmitted() {
    let mut lab = Lab::new();
    let batch = ended(&mut lab, 2);
    let due = lab.due();
    lab.record(&due[0], again(0));
    let due = lab.due();
    for due in &due {
        assert_eq!(lab.record(due, AttemptResult::Withheld), Recorded::Applied);
    }
    assert!(lab.due().is_empty());
    assert!(lab.reader().lanes().unwrap().is_empty());
    let lanes = lab.reader().held_lanes().unwrap();
    assert_eq!(lanes.len(), 1);
    assert_eq!(lab.view(batch).deliveries[DeliveryState::Withheld as usize], 2);
    assert!(lanes[0].is_to_be_readmitted(OLD));
    assert_eq!(readmit(&mut lab, OLD, 9), Readmitted { resumed: false, moved: 2 });
    let mut attempts: Vec<_> = lab.due().iter().map(|due| due.attempts).collect();
    attempts.sort();
    assert_eq!(attempts, [0, 1]);
    assert_eq!(lab.reader().lanes().unwrap()[0].next_due_at_ms, NOW + 9_000);
    assert_laws(&lab);
}

#[test]
fn lane_panics_are_counted_on_the_delivery_in_hand() {
    let mut lab = Lab::new();
    ended(&mut lab, 1);
    let due = lab.due().remove(0);
    assert_eq!(lab.write(|store| store.record_lane_panic(due.no)), 1);
    assert_eq!(lab.write(|store| store.record_lane_panic(due.no)), 2);
    assert_eq!(lab.due()[0].panics, 2);
}

#[test]
fn a_jump_of_the_clock_moves_what_waits() {
    let mut lab = Lab::new();
    ended(&mut lab, 1);
    let before = lab.reader().lanes().unwrap()[0].next_due_at_ms;
    lab.write(|store| store.shift_due(-3_600_000));
    assert_eq!(lab.reader().lanes().unwrap()[0].next_due_at_ms, before - 3_600_000);
}

#[test]
fn the_summary_is_released_by_the_last_product_delivery_and_frozen() {
    let mut lab = Lab::new();
    let products = vec![visit(1), visit(2), over(Status::Ignored)];
    let mut new = batch(products);
    new.ignored_3400 = vec!["3400930000000".into()];
    new.metadata = Some(serde_json::from_str(r#"{"run":7}"#).unwrap());
    let batch = lab.accept(&new).batch;
    lab.claim(batch, 9);
    lab.end(batch, 1, &found());
    lab.end(batch, 2, &failed());
    let due = lab.due();
    assert_eq!(due.len(), 3);
    lab.record(&due[0], AttemptResult::Taken);
    lab.record(&due[1], AttemptResult::Dead);
    assert!(!lab.view(batch).summary_released);
    lab.record(&due[2], AttemptResult::Taken);
    assert!(lab.view(batch).summary_released);
    let summary = lab.due().remove(0);
    assert_eq!(summary.endpoint, Endpoint::Summary);
    let body = json(&summary.body);
    assert_eq!(body["ignored_3400"], serde_json::json!(["3400930000000", "123"]));
    assert_eq!(body["counts"]["found"], 1);
    assert_eq!(
        body["failed"],
        serde_json::json!([{"ean": gtin(2).as_str(), "kind": "blocked", "detail": "403"}])
    );
    assert_eq!(body["deliveries"]["taken"], 2);
    assert_eq!(body["deliveries"]["dead"], 1);
    assert_eq!(body["duration_ms"], 1_000);
    assert_eq!(body["metadata"]["run"], 7);
    // A late "taken" changes the counts, never the summary.
    lab.record(&due[1], AttemptResult::Taken);
    lab.write(|store| store.release_summaries(NOW + 86_400_000, &|_| true));
    let after = lab.due();
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].body, summary.body);
    assert_laws(&lab);
}

#[test]
fn the_summary_is_released_by_the_end_if_no_delivery_is_open() {
    let mut options = options();
    options.addressing.product = false;
    let mut lab = Lab::with(options);
    let batch = ended(&mut lab, 2);
    assert!(lab.view(batch).summary_released);
    let due = lab.due();
    assert_eq!(due.len(), 1);
    assert_eq!(json(&due[0].body)["deliveries"]["unaddressed"], 2);
    assert_laws(&lab);
}

#[test]
fn the_summary_is_released_by_waiting_also_past_a_stopped_lane_and_once() {
    let mut lab = Lab::new();
    let batch = ended(&mut lab, 2); // At NOW + 1 s.
    let due = lab.due();
    lab.record(&due[0], AttemptResult::StopEndpoint { url: Some(OLD) });
    let mut release = |waited: bool| {
        let told = move |ended_at_ms| {
            assert_eq!(ended_at_ms, NOW + 1_000);
            waited
        };
        lab.write(|store| store.release_summaries(NOW + 901_000, &told))
    };
    assert_eq!([release(false), release(true), release(true)], [0, 1, 0]);
    let summary = lab.due();
    assert_eq!(summary.len(), 1);
    assert_eq!(json(&summary[0].body)["deliveries"]["open"], 2);
    // What closes later does not release it again.
    lab.record(&due[0], AttemptResult::Taken);
    lab.record(&due[1], AttemptResult::Taken);
    assert_eq!(lab.reader().summaries(batch).unwrap().len(), 1);
    assert_laws(&lab);
}

#[test]
fn each_distinct_url_gets_one_summary_with_its_own_id_and_the_same_body() {
    let mut lab = Lab::new();
    let mut other = batch(Vec::new());
    other.callback_url = Some("http://n8n.test/webhook-waiting/7?signature=x".into());
    let mut same = batch(Vec::new());
    same.callback_url = Some("http://N8N.test:80/summary".into());
    let [other, same] = [other, same].map(|batch| lab.accept(&batch).batch);
    let summaries = lab.reader().summaries(other).unwrap();
    let keys: Vec<_> = summaries.iter().map(|summary| summary.endpoint.as_key()).collect();
    assert_eq!(keys, ["summary", "url:http://n8n.test/webhook-waiting/7?signature=x"]);
    assert_ne!(summaries[0].webhook_id, summaries[1].webhook_id);
    let bodies: Vec<_> = lab.due().into_iter().filter(|due| due.batch == other).map(|due| due.body).collect();
    assert_eq!(bodies.len(), 2);
    assert_eq!(bodies[0], bodies[1]);
    assert_eq!(lab.reader().summaries(same).unwrap().len(), 1);
    // No configured URL: the callback alone.
    let mut addressing = lab.options.addressing.clone();
    addressing.summary_url = None;
    lab.store().readdress(addressing);
    let mut alone = batch(Vec::new());
    alone.callback_url = Some("http://n8n.test/summary".into());
    let alone = lab.accept(&alone).batch;
    assert_eq!(lab.reader().summaries(alone).unwrap().len(), 1);
}
