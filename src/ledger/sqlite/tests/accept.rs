//! Transaction 1 and rule 6.

use super::*;

#[test]
fn an_accepted_batch_is_whole_after_a_death() {
    let mut lab = Lab::new();
    let mut batch =
        batch(vec![visit(1), over(Status::Skipped), duplicate(1, 1), over(Status::Ignored), visit(2)]);
    batch.metadata = Some(serde_json::from_str(r#"{"z": 1.10, "a": 2}"#).unwrap());
    batch.ignored_3400 = vec!["3400930000000".into()];
    batch.products[0].note = Some("replacement dropped".into());
    let accepted = lab.accept(&batch);
    assert_eq!((accepted.total, accepted.counts.queued, accepted.counts.skipped), (5, 3, 1));
    assert_eq!(accepted.refused.len(), 1);
    lab.die_and_open();
    let view = lab.view(accepted.batch);
    assert_eq!((view.total, view.queued, view.claimed), (5, 3, 0));
    assert_eq!(view.metadata.as_deref(), Some(r#"{"z": 1.10, "a": 2}"#));
    assert_eq!(view.ignored_3400, ["3400930000000"]);
    assert_eq!(view.sites, batch.sites);
    assert_eq!(lab.reader().accepted(&batch.batch_id).unwrap(), Some(accepted.clone()));
    let open = lab.reader().open_batches(BatchNo(0), 10).unwrap();
    assert_eq!(open.iter().map(|open| open.no).collect::<Vec<_>>(), [accepted.batch]);
    assert!(lab.reader().open_batches(accepted.batch, 10).unwrap().is_empty());
    assert_laws(&lab);
}

#[test]
fn an_accept_that_is_not_committed_leaves_nothing() {
    let mut lab = Lab::new();
    let batch = batch(vec![visit(1), over(Status::Skipped)]);
    lab.store().begin().unwrap();
    lab.store().accept(&batch, NOW).unwrap();
    lab.die_and_open();
    for table in ["batch", "progress", "product", "delivery", "body", "endpoint"] {
        assert_eq!(lab.number(&format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
    assert_laws(&lab);
}

#[test]
fn an_accept_rolled_back_to_its_savepoint_leaves_its_neighbours_whole() {
    let mut lab = Lab::new();
    let [one, two, three] = [1, 2, 3].map(|n| batch(vec![visit(n)]));
    let store = lab.store();
    store.begin().unwrap();
    for (batch, keep) in [(&one, true), (&two, false), (&three, true)] {
        store.savepoint().unwrap();
        store.accept(batch, NOW).unwrap();
        if keep { store.release().unwrap() } else { store.rollback_to_savepoint().unwrap() }
    }
    store.commit().unwrap();
    let mut reader = lab.reader();
    for (batch, kept) in [(&one, true), (&two, false), (&three, true)] {
        assert_eq!(reader.accepted(&batch.batch_id).unwrap().is_some(), kept);
    }
    assert_laws(&lab);
}

#[test]
fn what_is_over_at_once_ends_inside_with_its_webhook() {
    let mut lab = Lab::new();
    let accepted = lab.accept(&batch(vec![over(Status::Skipped), visit(1)]));
    let due = lab.due();
    assert_eq!(due.len(), 1);
    let body = json(&due[0].body);
    assert_eq!(body["ean"], "123");
    assert_eq!(body["status"], "skipped");
    assert_eq!(body["reason"]["kind"], "length");
    assert_eq!((body["index"].as_u64(), body["total"].as_u64()), (Some(1), Some(2)));
    assert_eq!(lab.view(accepted.batch).ended_at_ms, None);
    assert_laws(&lab);
}

#[test]
fn a_batch_of_nothing_but_over_ends_inside_and_its_summary_waits_for_its_webhooks() {
    let mut lab = Lab::new();
    let accepted = lab.accept(&batch(vec![over(Status::Skipped), over(Status::Ignored)]));
    let view = lab.view(accepted.batch);
    assert!(view.ended_at_ms.is_some());
    assert!(!view.summary_released);
    let due = lab.due();
    assert!(!due.iter().any(is_summary));
    for product in &due {
        lab.record(product, AttemptResult::Taken);
    }
    assert!(lab.view(accepted.batch).summary_released);
    assert_eq!(lab.due().iter().filter(|due| is_summary(due)).count(), 1);
    assert_laws(&lab);
}

#[test]
fn a_batch_without_products_ends_inside_with_its_summary() {
    let mut lab = Lab::new();
    let mut batch = batch(Vec::new());
    batch.ignored_3400 = vec!["3400930000000".into()];
    let accepted = lab.accept(&batch);
    assert!(lab.view(accepted.batch).ended_at_ms.is_some());
    let due = lab.due();
    assert_eq!(due.len(), 1);
    assert_eq!(json(&due[0].body)["ignored_3400"], serde_json::json!(["3400930000000"]));
    assert_laws(&lab);
}

#[test]
fn unaddressed_outcomes_close_the_batch_at_once() {
    let mut options = options();
    options.addressing.product = false;
    options.addressing.summary_url = None;
    let mut lab = Lab::with(options);
    let accepted = lab.accept(&batch(vec![over(Status::Skipped)]));
    let view = lab.view(accepted.batch);
    assert!(view.summary_released);
    assert_eq!(view.deliveries[DeliveryState::Unaddressed as usize], 1);
    assert!(lab.reader().summaries(accepted.batch).unwrap().is_empty());
    assert_eq!(lab.number("SELECT summary FROM progress"), 2, "counted as unaddressed");
    assert!(lab.due().is_empty());
    assert_laws(&lab);
}

#[test]
fn a_key_gets_the_first_answer_also_after_a_death() {
    let mut lab = Lab::new();
    let mut first = batch(vec![visit(1), over(Status::Skipped)]);
    first.key = Some("key-1".into());
    let accepted = lab.accept(&first);
    lab.end_all(accepted.batch);
    lab.die_and_open();
    let again = NewBatch { batch_id: BatchId::mint(), ..first.clone() };
    // As long as its batch: the window is not asked.
    let answer = lab.write(|store| store.accept(&again, NOW + 86_400_000));
    let expected = Accepted { repeat: Some(crate::model::batch::Repeat::Key), ..accepted };
    assert_eq!(answer, AcceptAnswer::Accepted(expected));
    assert_eq!(lab.number("SELECT count(*) FROM batch"), 1);
}

#[test]
fn a_key_with_another_body_is_refused_and_keys_are_per_requester() {
    let mut lab = Lab::new();
    let mut first = batch(vec![visit(1)]);
    first.key = Some("key-1".into());
    lab.accept(&first);
    let other_body = NewBatch { key: first.key.clone(), ..batch(vec![visit(2)]) };
    assert_eq!(lab.write(|store| store.accept(&other_body, NOW)), AcceptAnswer::KeyReused);
    let other_requester = NewBatch { requester: "address:192.0.2.1".into(), ..other_body };
    assert!(lab.accept(&other_requester).repeat.is_none());
    assert_eq!(lab.number("SELECT count(*) FROM batch"), 2);
}

fn repeat_of(lab: &mut Lab, first: &NewBatch, now_ms: i64, change: impl FnOnce(&mut NewBatch)) -> bool {
    let mut again = NewBatch { batch_id: BatchId::mint(), ..first.clone() };
    change(&mut again);
    match lab.try_write(|store| store.accept(&again, now_ms)).unwrap() {
        AcceptAnswer::Accepted(accepted) => match accepted.repeat {
            None => false,
            Some(crate::model::batch::Repeat::Body) => accepted.batch_id == first.batch_id,
            Some(crate::model::batch::Repeat::Key) => panic!("by key"),
        },
        AcceptAnswer::KeyReused => panic!("key reused"),
    }
}

#[test]
fn the_same_body_is_a_repeat_while_its_batch_is_open_and_for_the_window_after() {
    let mut lab = Lab::new();
    let first = batch(vec![visit(1)]);
    let accepted = lab.accept(&first);
    assert!(repeat_of(&mut lab, &first, NOW + 86_400_000, |_| ()), "still open a day later");
    lab.end_all(accepted.batch); // At NOW + 1 s.
    assert!(repeat_of(&mut lab, &first, NOW + 60_999, |_| ()), "within the window after its end");
    assert!(!repeat_of(&mut lab, &first, NOW + 61_000, |_| ()), "the window is over");
}

#[test]
fn force_a_key_another_requester_or_a_cancelled_batch_make_it_no_repeat() {
    let mut lab = Lab::new();
    let first = batch(vec![visit(1)]);
    lab.accept(&first);
    assert!(!repeat_of(&mut lab, &first, NOW, |again| again.requester = "address:192.0.2.1".into()));
    assert!(!repeat_of(&mut lab, &first, NOW, |again| again.key = Some("own".into())));
    assert!(!repeat_of(&mut lab, &first, NOW, |again| again.force = true));
    lab.write(|store| store.run("UPDATE progress SET cancelled = 1", []));
    assert!(!repeat_of(&mut lab, &first, NOW, |_| ()));
}

#[test]
fn the_same_submit_written_twice_is_one_batch() {
    let mut lab = Lab::new();
    let mut first = batch(vec![visit(1)]);
    first.force = true;
    let accepted = lab.accept(&first);
    assert_eq!(lab.accept(&first), accepted);
    assert_eq!(lab.number("SELECT count(*) FROM batch"), 1);
}

#[test]
fn a_duplicate_of_nothing_is_refused_whole() {
    let mut lab = Lab::new();
    for products in [
        vec![visit(1), duplicate(1, 2)],
        vec![over(Status::Skipped), duplicate(1, 1)],
        vec![visit(1), duplicate(1, 0)],
        vec![visit(1), duplicate(1, 1), duplicate(1, 2)],
    ] {
        let refused = lab.try_write(|store| store.accept(&batch(products), NOW));
        assert!(matches!(refused, Err(StoreError::Other(_))), "{refused:?}");
    }
    assert_eq!(lab.number("SELECT count(*) FROM batch"), 0);
    assert_laws(&lab);
}

#[test]
fn below_the_free_space_to_keep_accepts_are_refused_and_outcomes_go_on() {
    let mut lab = Lab::new();
    let first = batch(vec![visit(1)]);
    let accepted = lab.accept(&first);
    lab.options.free_bytes_min = u64::MAX;
    lab.die_and_open();
    assert!(lab.store().low());
    let refused = lab.try_write(|store| store.accept(&batch(vec![visit(2)]), NOW));
    assert!(matches!(refused, Err(StoreError::Full { group_lost: false })), "{refused:?}");
    assert!(repeat_of(&mut lab, &first, NOW, |_| ()), "a repeat needs no room");
    lab.end_all(accepted.batch);
    assert!(lab.view(accepted.batch).ended_at_ms.is_some());
    assert_laws(&lab);
}

#[test]
fn a_product_is_found_by_its_gtin_in_any_notation_newest_first() {
    let mut lab = Lab::new();
    let upc = Gtin::parse("748322148474").unwrap();
    let mut products = vec![visit(1), visit(2), visit(3)];
    products[1] = NewProduct {
        ean: " '0748322148474".into(),
        fate: Fate::Visit { gtin: upc.clone(), replacement: None },
        note: None,
    };
    products[2].fate = Fate::Visit { gtin: gtin(3), replacement: Some(upc.clone()) };
    let accepted = lab.accept(&batch(products));
    lab.end_all(accepted.batch);
    let found = lab.reader().products_by_gtin(&upc.to_gtin14(), 10).unwrap();
    assert_eq!(found.iter().map(|product| product.index).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(found[1].ean, " '0748322148474");
    assert!(found[1].body.as_deref().unwrap().contains("\"status\":\"found\""));
    assert_eq!(lab.reader().products_by_gtin(&upc.to_gtin14(), 1).unwrap().len(), 1);
}
