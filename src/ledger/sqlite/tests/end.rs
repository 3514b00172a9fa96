//! Transactions 2 and 4, and the end of a batch.

use super::*;

#[test]
fn products_are_claimed_in_order_once_and_duplicates_never() {
    let mut lab = Lab::new();
    let products = vec![visit(1), duplicate(1, 1), visit(2), over(Status::Skipped), visit(3)];
    let batch = lab.accept(&batch(products)).batch;
    let indices = |claimed: Vec<Claimed>| claimed.iter().map(|claimed| claimed.index).collect::<Vec<_>>();
    assert_eq!(indices(lab.claim(batch, 2)), [1, 3]);
    assert_eq!(indices(lab.claim(batch, 2)), [5]);
    assert_eq!(indices(lab.claim(batch, 2)), [0u32; 0]);
    let claim = lab.claim_of(1);
    lab.write(|store| store.put_back(ProductKey { batch, index: 3 }, claim));
    assert_laws(&lab);
    assert_eq!(indices(lab.claim(batch, 2)), [3]);
    assert_laws(&lab);
}

#[test]
fn a_product_ends_once_and_the_first_outcome_stands() {
    let mut lab = Lab::new();
    let batch = lab.accept(&batch(vec![visit(1), visit(2)])).batch;
    lab.claim(batch, 2);
    assert_eq!(lab.end(batch, 1, &found()), Ended::Now { batch_over: false });
    assert_eq!(lab.end(batch, 1, &failed()), Ended::Already);
    assert_eq!(lab.end(batch, 2, &failed()), Ended::Now { batch_over: true });
    assert_eq!(lab.end(batch, 2, &failed()), Ended::Already);
    let due = lab.due();
    assert_eq!(due.len(), 2);
    assert_eq!(json(&due[0].body)["data"]["drakkars"]["prix"], "14.90€");
    assert_eq!(json(&due[1].body)["reason"]["kind"], "blocked");
    assert_laws(&lab);
}

#[test]
fn a_late_claim_changes_nothing() {
    let mut lab = Lab::new();
    let batch = lab.accept(&batch(vec![visit(1)])).batch;
    let key = ProductKey { batch, index: 1 };
    lab.claim(batch, 1);
    let (old, new) = (lab.claim_of(1), lab.claim_of(2));
    assert_eq!(lab.write(|store| store.release_older(batch, new)), 1);
    // Nobody holds it.
    assert_eq!(lab.end(batch, 1, &found()), Ended::ClaimLost);
    assert_eq!(lab.write(|store| store.claim(batch, new, 9)).len(), 1);
    // Another one holds it.
    assert_eq!(lab.end(batch, 1, &found()), Ended::ClaimLost);
    assert!(!lab.write(|store| store.start(key, old)));
    assert!(lab.write(|store| store.start(key, new)));
    lab.write(|store| store.rest(key, old));
    assert_eq!(lab.number("SELECT started FROM product"), 1);
    lab.write(|store| store.put_back(key, old));
    assert_eq!(lab.view(batch).claimed, 1);
    assert_eq!(lab.write(|store| store.release_older(batch, new)), 0, "its own are not older");
    lab.write(|store| store.rest(key, new));
    assert_eq!(lab.number("SELECT started FROM product"), 0);
    assert_eq!(lab.write(|store| store.end(key, new, &found(), NOW)), Ended::Now { batch_over: true });
    assert!(!lab.write(|store| store.start(key, new)));
    assert_laws(&lab);
}

#[test]
fn a_claim_of_an_older_epoch_is_late_after_a_restart() {
    let mut lab = Lab::new();
    let batch = lab.accept(&batch(vec![visit(1)])).batch;
    lab.claim(batch, 1);
    let old = lab.claim_of(1);
    lab.die_and_open();
    lab.claim(batch, 1);
    let late = lab.write(|store| store.end(ProductKey { batch, index: 1 }, old, &found(), NOW));
    assert_eq!(late, Ended::ClaimLost);
    assert_eq!(lab.end(batch, 1, &found()), Ended::Now { batch_over: true });
}

#[test]
fn duplicates_end_in_the_same_transaction_with_their_own_webhook() {
    let mut lab = Lab::new();
    let mut products = vec![visit(1), visit(2), duplicate(1, 1), duplicate(1, 1)];
    products[2].ean = "'as it was sent".into();
    products[3].note = Some("a note of its own".into());
    let batch = lab.accept(&batch(products)).batch;
    lab.claim(batch, 9);
    assert_eq!(lab.end(batch, 2, &found()), Ended::Now { batch_over: false });
    assert_eq!(lab.end(batch, 1, &failed()), Ended::Now { batch_over: true });
    let due = lab.due();
    let mut bodies: Vec<_> = due.iter().map(|due| json(&due.body)).collect();
    bodies.sort_by_key(|body| body["index"].as_u64());
    assert_eq!(bodies.len(), 4);
    assert_eq!(bodies[0]["duplicate_of"], serde_json::Value::Null);
    for body in &bodies[2..] {
        assert_eq!((&body["status"], body["duplicate_of"].as_u64()), (&"failed".into(), Some(1)));
    }
    assert_eq!(bodies[2]["ean"], "'as it was sent");
    assert_eq!(bodies[3]["note"], "a note of its own");
    let views = lab.products(batch);
    assert_eq!(views[2].duplicate_of, Some(1));
    assert_eq!(views[2].delivery.as_ref().unwrap().webhook_id, due[0].subject_id(3));
    assert_laws(&lab);
}

impl DueDelivery {
    fn subject_id(&self, index: u32) -> String {
        crate::model::delivery::Subject::Product(index).webhook_id(&self.batch_id)
    }
}

#[test]
fn a_batch_set_aside_ends_in_pieces_whoever_holds_its_products() {
    let mut lab = Lab::new();
    let mut products: Vec<_> = (0..10).map(visit).collect();
    products.push(duplicate(9, 10));
    let batch = lab.accept(&batch(products)).batch;
    lab.claim(batch, 4);
    lab.end(batch, 2, &found());
    let crashed = Outcome::crashed("its coordinator kept failing");
    let mut ended = 0;
    for _ in 0..20 {
        let now = lab.write(|store| store.end_set_aside(batch, &crashed, 3, NOW));
        assert!(now.len() <= 3);
        ended += now.len();
        assert_laws(&lab);
    }
    assert_eq!(ended, 9, "without the duplicate");
    let view = lab.view(batch);
    assert!(view.ended_at_ms.is_some());
    assert_eq!(view.ended[Status::Found as usize - 1], 1);
    assert_eq!(view.ended[Status::Failed as usize - 1], 10);
    assert_eq!(lab.end(batch, 1, &found()), Ended::Already);
}

#[test]
fn webhooks_of_a_batch_with_its_own_url_have_their_own_lane() {
    let mut lab = Lab::new();
    let mut with_url = batch(vec![visit(1)]);
    with_url.webhook_url = Some("http://n8n.test/hook?signature=x".into());
    let accepted = [lab.accept(&with_url), lab.accept(&batch(vec![visit(2)]))];
    for accepted in &accepted {
        lab.end_all(accepted.batch);
    }
    let lanes = lab.reader().lanes().unwrap();
    let keys: Vec<_> = lanes.iter().map(|lane| lane.endpoint.as_key()).collect();
    assert_eq!(keys, ["url:http://n8n.test/hook?signature=x", "product"]);
    assert_eq!(lanes[0].next_due_at_ms, NOW + 1_000);
}

/// What 500 ends cost in a batch of this size, in hundreds of steps of SQLite's machine.
fn steps_of_ends(products: u64) -> u64 {
    let mut lab = Lab::new();
    let batch = lab.accept(&batch((0..products).map(visit).collect())).batch;
    let claim = lab.claim_of(1);
    lab.write(|store| store.claim(batch, claim, 500));
    let steps = lab.write(|store| {
        let steps = store.count_steps();
        for index in 1..=500 {
            store.end(ProductKey { batch, index }, claim, &found(), NOW)?;
        }
        Ok(steps)
    });
    steps.load(std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn ending_a_product_costs_the_same_in_a_batch_of_any_size() {
    let [small, large] = [600, 20_000].map(steps_of_ends);
    assert!(small > 0, "steps were counted");
    // Going through the batch at each end costs more than 20 times as much.
    assert!(large < small * 2, "{small} and {large} hundred steps");
}
