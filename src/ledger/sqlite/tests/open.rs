//! What a start does: rules 2 and 15, damage, newer schemas.

use super::*;
use crate::ledger::sqlite::{LastRun, mark_escalated};

/// A batch of three, all claimed, of which the first is being visited.
fn one_of_three_started(lab: &mut Lab) -> BatchNo {
    let batch = lab.accept(&batch(vec![visit(1), visit(2), visit(3), duplicate(1, 1)])).batch;
    lab.claim(batch, 3);
    start(lab, batch, 1);
    batch
}

fn start(lab: &mut Lab, batch: BatchNo, index: u32) {
    let claim = lab.claim_of(1);
    assert!(lab.write(|store| store.start(ProductKey { batch, index }, claim)));
}

fn deaths(lab: &Lab, batch: BatchNo) -> Vec<u32> {
    lab.products(batch).iter().map(|product| product.deaths).collect()
}

#[test]
fn a_death_charges_only_products_that_were_being_visited() {
    let mut lab = Lab::new();
    assert_eq!(lab.report().last_run, LastRun::None);
    let batch = one_of_three_started(&mut lab);
    let report = lab.die_and_open();
    assert_eq!((report.last_run, report.charged, report.crashed, report.released), (LastRun::Died, 1, 0, 3));
    assert_eq!(report.epoch, 2);
    assert_eq!(deaths(&lab, batch), [1, 0, 0, 0]);
    assert_eq!(lab.view(batch).queued, 4);
    assert_laws(&lab);
    let claimed = lab.claim(batch, 9);
    assert_eq!(claimed.iter().map(|c| (c.index, c.deaths)).collect::<Vec<_>>(), [(1, 1), (2, 0), (3, 0)]);
}

#[test]
fn a_product_at_rest_is_not_charged() {
    let mut lab = Lab::new();
    let batch = one_of_three_started(&mut lab);
    let claim = lab.claim_of(1);
    lab.write(|store| store.rest(ProductKey { batch, index: 1 }, claim));
    assert_eq!(lab.die_and_open().charged, 0);
}

#[test]
fn a_stop_an_escalation_or_another_boot_charge_nothing() {
    let mut lab = Lab::new();
    let batch = one_of_three_started(&mut lab);

    lab.write(|store| store.mark_stopping());
    let report = lab.die_and_open();
    assert_eq!((report.last_run, report.charged, report.released), (LastRun::Stopped, 0, 3));

    lab.claim(batch, 3);
    start(&mut lab, batch, 1);
    mark_escalated(&lab.path).unwrap();
    let report = lab.die_and_open();
    assert_eq!((report.last_run, report.charged), (LastRun::Escalated, 0));

    lab.claim(batch, 3);
    start(&mut lab, batch, 1);
    lab.options.boot_id = "boot-2".into();
    let report = lab.die_and_open();
    assert_eq!((report.last_run, report.charged), (LastRun::OtherBoot, 0));

    assert_eq!(deaths(&lab, batch), [0; 4]);
    // Each of the marks holds for one death.
    lab.claim(batch, 3);
    start(&mut lab, batch, 1);
    assert_eq!(lab.die_and_open().last_run, LastRun::Died);
    assert_eq!(deaths(&lab, batch), [1, 0, 0, 0]);
}

#[test]
fn a_product_ends_as_crashed_at_claims_max_with_its_duplicates_and_webhooks() {
    let mut lab = Lab::new();
    let batch = lab.accept(&batch(vec![visit(1), visit(2), duplicate(1, 1)])).batch;
    for death in 1..=4 {
        lab.claim(batch, 1);
        start(&mut lab, batch, 1);
        let report = lab.die_and_open();
        assert_eq!((report.charged, report.crashed), (1, u32::from(death == 4)));
    }
    let views = lab.products(batch);
    for index in [0, 2] {
        assert_eq!(views[index].reason.as_ref().unwrap().kind, "crashed");
        let delivery = views[index].delivery.as_ref().unwrap();
        assert_eq!(delivery.state, DeliveryState::Waiting);
    }
    assert_eq!(views[0].deaths, 4);
    let claimed: Vec<_> = lab.claim(batch, 9).iter().map(|claimed| claimed.index).collect();
    assert_eq!(claimed, [2]);
    assert_laws(&lab);
}

#[test]
fn a_suspect_is_charged_further_only_if_it_ran_alone() {
    let mut lab = Lab::new();
    let batch = lab.accept(&batch(vec![visit(1), visit(2)])).batch;
    let die = |lab: &mut Lab, started: &[u32]| {
        lab.claim(batch, 2);
        started.iter().for_each(|&index| start(lab, batch, index));
        lab.die_and_open();
        deaths(lab, batch)
    };
    assert_eq!(die(&mut lab, &[1, 2]), [1, 1]);
    assert_eq!(die(&mut lab, &[1, 2]), [2, 2]);
    assert_eq!(die(&mut lab, &[1, 2]), [2, 2]);
    assert_eq!(die(&mut lab, &[1]), [3, 2]);
}

#[test]
fn an_escalation_mark_is_gone_only_after_its_start() {
    let mut lab = Lab::new();
    let mark = lab.path.with_extension("db.escalated");
    mark_escalated(&lab.path).unwrap();
    assert!(mark.exists());
    // A start that fails (here: locked) leaves it.
    assert!(open_ledger(&lab.path, options()).is_err());
    assert!(mark.exists());
    lab.reopen();
    assert_eq!(lab.report().last_run, LastRun::Escalated);
    assert!(!mark.exists());
}

#[test]
fn a_second_process_is_refused() {
    let lab = Lab::new();
    let refused = open_ledger(&lab.path, options()).unwrap_err();
    assert!(matches!(refused, OpenError::Locked { .. }), "{refused}");
    assert!(refused.to_string().contains("ledger.db.lock"), "{refused}");
}

#[test]
fn a_newer_schema_is_refused_naming_both_versions_and_nothing_is_changed() {
    let mut lab = Lab::new();
    lab.opened = None;
    Connection::open(&lab.path).unwrap().execute_batch("PRAGMA user_version = 7").unwrap();
    let refused = open_when_free(&lab.path, options()).unwrap_err();
    assert!(matches!(refused, OpenError::Newer { found: 7, known: 2, .. }), "{refused}");
    assert!(refused.to_string().contains("schema 7") && refused.to_string().contains("newer than 2"));
    assert!(matches!(open_read_only(&lab.path), Err(OpenError::Newer { .. })));
    assert_eq!(lab.number("SELECT epoch FROM run"), 1);
}

#[test]
fn a_ledger_of_schema_1_is_brought_up_to_date_and_its_stopped_endpoints_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(include_str!("../../schema.sql")).unwrap();
    old.execute_batch(
        "PRAGMA application_id = 0x676c616e; PRAGMA user_version = 1;
         INSERT INTO endpoint (no, key, stopped) VALUES (1, 'product', 1);
         INSERT INTO delivery (no, endpoint, state, due_at) VALUES (67108868, 1, 3, 0);",
    )
    .unwrap();
    drop(old);
    let opened = open_when_free(&path, options()).unwrap();
    let version = "SELECT user_version FROM pragma_user_version";
    let version: i64 = opened.store.connection().query_row(version, [], |row| row.get(0)).unwrap();
    assert_eq!(version, 2);
    let held = open_read_only(&path).unwrap().held_lanes().unwrap().remove(0);
    assert!(held.stopped && held.stopped_url.is_none());
    assert!(held.is_to_be_readmitted(UrlHash([1; 32])), "nobody knows which URL it was");
}

#[test]
fn a_database_of_somebody_else_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (a)").unwrap();
    assert!(matches!(open_ledger(&path, options()), Err(OpenError::Foreign { .. })));
    let tables: i64 = Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .unwrap();
    assert_eq!(tables, 1);
}

#[test]
fn a_corrupted_file_is_refused_with_what_to_do() {
    type Damage = fn(&mut Vec<u8>);
    let damage: [(&str, Damage); 4] = [
        ("its header", |bytes| bytes[..16].fill(b'x')),
        ("its schema", |bytes| bytes[100..4096].fill(0xff)),
        ("half of it", |bytes| bytes.truncate(bytes.len() / 2)),
        ("all of it", |bytes| bytes.fill(0x55)),
    ];
    for (what, damage) in damage {
        let mut lab = Lab::new();
        let accepted = lab.accept(&batch((0..200).map(visit).collect()));
        lab.end_all(accepted.batch);
        lab.opened = None;
        let mut bytes = std::fs::read(&lab.path).unwrap();
        damage(&mut bytes);
        std::fs::write(&lab.path, bytes).unwrap();
        let refused = open_when_free(&lab.path, options()).unwrap_err();
        assert!(matches!(refused, OpenError::Corrupt { .. }), "{what}: {refused:?}");
        assert!(refused.to_string().contains("restore a backup"), "{refused}");
    }
}

#[test]
fn damage_found_later_is_told_as_damage() {
    let mut lab = Lab::new();
    let accepted = lab.accept(&batch((0..500).map(visit).collect()));
    lab.end_all(accepted.batch);
    let page: i64 = lab.number("SELECT rootpage FROM sqlite_schema WHERE name = 'body'");
    lab.opened = None;
    let mut bytes = std::fs::read(&lab.path).unwrap();
    let start = (page as usize - 1) * 4096;
    bytes[start..start + 4096].fill(0xff);
    std::fs::write(&lab.path, bytes).unwrap();
    lab.opened = Some(open_when_free(&lab.path, options()).unwrap());
    let accepted = lab.accept(&batch(vec![visit(1)]));
    lab.claim(accepted.batch, 1);
    let claim = lab.claim_of(1);
    let key = ProductKey { batch: accepted.batch, index: 1 };
    let refused = lab.try_write(|store| store.end(key, claim, &found(), NOW));
    assert!(matches!(refused, Err(StoreError::Corrupt(_))), "{refused:?}");
}

#[test]
fn what_cannot_be_opened_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let refused = open_ledger(&dir.path().join("no/such/ledger.db"), options()).unwrap_err();
    assert!(matches!(refused, OpenError::Io { .. }), "{refused:?}");
    let folder = dir.path().join("folder.db");
    std::fs::create_dir(&folder).unwrap();
    let refused = open_ledger(&folder, options()).unwrap_err();
    assert!(matches!(refused, OpenError::Io { .. }), "{refused:?}");
    let missing = open_read_only(&dir.path().join("missing.db")).unwrap_err();
    assert!(matches!(missing, OpenError::Io { .. }), "{missing:?}");
}

#[test]
fn the_file_is_in_wal_mode_vacuums_in_steps_and_is_its_owners() {
    use std::os::unix::fs::PermissionsExt;
    let mut lab = Lab::new();
    let pragma = |lab: &mut Lab, name: &str| -> String {
        let query = format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}");
        lab.store().connection().query_row(&query, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(pragma(&mut lab, "journal_mode"), "wal");
    assert_eq!(pragma(&mut lab, "synchronous"), "2");
    assert_eq!(pragma(&mut lab, "auto_vacuum"), "2");
    let mode = std::fs::metadata(&lab.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn after_an_orderly_end_everything_is_in_the_one_file() {
    let mut lab = Lab::new();
    let accepted = lab.accept(&batch(vec![visit(1)]));
    lab.opened = None;
    let copy = lab.path.with_file_name("backup.db");
    std::fs::copy(&lab.path, &copy).unwrap();
    let view = open_read_only(&copy).unwrap().batch(accepted.batch_id.as_str()).unwrap();
    assert_eq!(view.unwrap().queued, 1);
}

#[test]
fn a_second_look_reads_while_the_daemon_writes() {
    let mut lab = Lab::new();
    let mut reader = lab.reader();
    let accepted = lab.accept(&batch(vec![visit(1)]));
    lab.store().begin().unwrap();
    lab.store().claim(accepted.batch, Claim { epoch: 1, incarnation: 1 }, 1).unwrap();
    assert_eq!(reader.tally().unwrap().queued, 1);
    lab.store().commit().unwrap();
    assert_eq!(reader.tally().unwrap().claimed, 1);
    // And after it is gone.
    lab.opened = None;
    drop(reader);
    assert_eq!(lab.reader().tally().unwrap().claimed, 1);
}

#[test]
fn between_begin_and_end_a_reader_sees_one_snapshot() {
    let mut lab = Lab::new();
    let mut reader = lab.reader();
    reader.begin_snapshot().unwrap();
    assert_eq!(reader.tally().unwrap().accepted, 0);
    lab.accept(&batch(vec![visit(1)]));
    assert_eq!(reader.tally().unwrap(), reader.recount().unwrap());
    assert_eq!(reader.tally().unwrap().accepted, 0);
    reader.end_snapshot();
    assert_eq!(reader.tally().unwrap().accepted, 1);
}
