//! What the ledger promises, against real files.

mod accept;
mod deliver;
mod disk;
mod end;
mod open;
mod walk;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

use super::{
    OpenError, OpenOptions, OpenReport, Opened, SqliteReader, SqliteStore, open as open_ledger,
    open_read_only,
};
use crate::ledger::store::{
    AcceptAnswer, Addressing, BatchView, Claim, Claimed, Ended, ProductView, Read, Readmitted, Recorded,
    Store, StoreError,
};
use crate::model::batch::{Accepted, Fate, NewBatch, NewProduct, Outcome, Reason, Status};
use crate::model::body::Language;
use crate::model::delivery::{AttemptRecord, AttemptResult, DeliveryNo, DeliveryState, DueDelivery, UrlHash};
use crate::model::gtin::check_digit;
use crate::model::{BatchId, BatchNo, Gtin, ProductKey};

const NOW: i64 = 1_760_700_000_000;

fn options() -> OpenOptions {
    OpenOptions {
        addressing: Addressing {
            product: true,
            summary_url: Some("http://n8n.test/summary".into()),
            language: Language::English,
            dedupe_window: Duration::from_secs(60),
        },
        claims_max: 4,
        free_bytes_min: 0,
        readers: 1,
        boot_id: "boot-1".into(),
    }
}

/// What is said of a ledger whose process has ended: a neighbour test that starts a process holds a copy of our lock for
/// a moment.
fn open_when_free(path: &Path, options: OpenOptions) -> Result<Opened, OpenError> {
    for _ in 0..200 {
        match open_ledger(path, options.clone()) {
            Err(OpenError::Locked { .. }) => std::thread::park_timeout(Duration::from_millis(10)),
            opened => return opened,
        }
    }
    panic!("still locked");
}

/// A ledger in a folder of its own, and the store that holds it.
struct Lab {
    path: PathBuf,
    options: OpenOptions,
    opened: Option<Opened>,
    deaths: u32,
    dir: PathBuf,
    /// None: the folder is somebody else's.
    _dir: Option<tempfile::TempDir>,
}

impl Lab {
    fn new() -> Self {
        Self::with(options())
    }

    fn with(options: OpenOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut lab = Self::at(dir.path(), options);
        lab._dir = Some(dir);
        lab
    }

    fn at(dir: &Path, options: OpenOptions) -> Self {
        let path = dir.join("ledger.db");
        let opened = open_ledger(&path, options.clone()).unwrap();
        Self { path, options, opened: Some(opened), deaths: 0, dir: dir.into(), _dir: None }
    }

    fn store(&mut self) -> &mut SqliteStore {
        &mut self.opened.as_mut().unwrap().store
    }

    fn report(&self) -> OpenReport {
        self.opened.as_ref().unwrap().report
    }

    fn claim_of(&self, incarnation: i64) -> Claim {
        Claim { epoch: self.report().epoch, incarnation }
    }

    /// Runs one command as the actor does: transaction, savepoint, commit, chores.
    fn try_write<T>(
        &mut self,
        f: impl FnOnce(&mut SqliteStore) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let store = self.store();
        store.begin()?;
        let result = store.savepoint().and_then(|()| f(store)).and_then(|value| {
            store.release()?;
            store.commit()?;
            store.tend()?;
            Ok(value)
        });
        if result.is_err() {
            store.rollback();
        }
        result
    }

    fn write<T>(&mut self, f: impl FnOnce(&mut SqliteStore) -> Result<T, StoreError>) -> T {
        self.try_write(f).unwrap()
    }

    fn reader(&self) -> SqliteReader {
        open_read_only(&self.path).unwrap()
    }

    /// A look at the tables themselves.
    fn sql(&self) -> Connection {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        Connection::open_with_flags(&self.path, flags).unwrap()
    }

    fn number(&self, sql: &str) -> i64 {
        self.sql().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// The process is killed, whatever it was doing, and another one starts: on a copy of the files as they are now,
    /// since closing them would tidy up.
    fn die_and_open(&mut self) -> OpenReport {
        self.deaths += 1;
        self.assert_compiled_once();
        let folder = self.dir.join(self.deaths.to_string());
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("ledger.db");
        for suffix in ["", "-wal", ".escalated"] {
            let [from, to] = [&self.path, &path].map(|path| format!("{}{suffix}", path.display()));
            if Path::new(&from).exists() {
                std::fs::copy(from, to).unwrap();
            }
        }
        self.path = path;
        self.reopen();
        self.report()
    }

    /// A kept statement that is compiled at every use costs more than it does.
    fn assert_compiled_once(&mut self) {
        for (sql, times) in self.store().recompiled() {
            assert!(times <= 2, "compiled again {times} times: {sql}");
        }
    }

    /// The process ends in order, and another one starts.
    fn reopen(&mut self) {
        self.opened = None;
        self.opened = Some(open_when_free(&self.path, self.options.clone()).unwrap());
    }

    fn accept(&mut self, batch: &NewBatch) -> Accepted {
        match self.write(|store| store.accept(batch, NOW)) {
            AcceptAnswer::Accepted(accepted) => accepted,
            AcceptAnswer::KeyReused => panic!("key reused"),
        }
    }

    fn claim(&mut self, batch: BatchNo, limit: u32) -> Vec<Claimed> {
        let claim = self.claim_of(1);
        self.write(|store| store.claim(batch, claim, limit))
    }

    fn end(&mut self, batch: BatchNo, index: u32, outcome: &Outcome) -> Ended {
        let claim = self.claim_of(1);
        self.write(|store| store.end(ProductKey { batch, index }, claim, outcome, NOW + 1_000))
    }

    /// Claims everything and ends it as found.
    fn end_all(&mut self, batch: BatchNo) {
        for claimed in self.claim(batch, 1_000) {
            self.end(batch, claimed.index, &found());
        }
    }

    fn view(&self, batch: BatchNo) -> BatchView {
        self.reader().batch(&batch.0.to_string()).unwrap().unwrap()
    }

    fn products(&self, batch: BatchNo) -> Vec<ProductView> {
        self.reader().products(batch, 0, 1_000).unwrap()
    }

    /// Everything due, over all lanes.
    fn due(&self) -> Vec<DueDelivery> {
        let mut reader = self.reader();
        let lanes = reader.lanes().unwrap();
        lanes.iter().flat_map(|lane| reader.due(lane.no, i64::MAX, &[], 1_000).unwrap()).collect()
    }

    fn record(&mut self, due: &DueDelivery, result: AttemptResult) -> Recorded {
        let attempt = attempt(due.no, due.attempts + 1, result);
        self.write(|store| store.record_attempt(&attempt))
    }
}

fn attempt(no: DeliveryNo, number: u32, result: AttemptResult) -> AttemptRecord {
    AttemptRecord {
        no,
        attempt: number,
        at_ms: NOW + 2_000,
        result,
        http_status: Some(200),
        detail: "said so".into(),
        answer_unseen: false,
        patience_used_ms: 7,
    }
}

fn gtin(n: u64) -> Gtin {
    let body = format!("{:012}", 370_112_900_000 + n);
    Gtin::parse(&format!("{body}{}", check_digit(&body))).unwrap()
}

fn visit(n: u64) -> NewProduct {
    NewProduct {
        ean: gtin(n).to_string(),
        fate: Fate::Visit { gtin: gtin(n), replacement: None },
        note: None,
    }
}

fn duplicate(n: u64, of: u32) -> NewProduct {
    NewProduct { fate: Fate::Duplicate { of, gtin: gtin(n), replacement: None }, ..visit(n) }
}

fn over(status: Status) -> NewProduct {
    let reason = Reason::new("length", "wrong length");
    NewProduct { ean: "123".into(), fate: Fate::Over { status, reason }, note: None }
}

fn batch(products: Vec<NewProduct>) -> NewBatch {
    let batch_id = BatchId::mint();
    let mut body_hash = [0; 32];
    body_hash[..32].copy_from_slice(&batch_id.as_str().as_bytes()[4..36]);
    NewBatch {
        batch_id,
        requester: "token:n8n".into(),
        key: None,
        body_hash,
        force: false,
        sites: vec!["drakkars".into(), "pharmagdd".into()],
        webhook_url: None,
        callback_url: None,
        metadata: None,
        products,
        ignored_3400: Vec::new(),
    }
}

fn found() -> Outcome {
    let mut outcome = Outcome::without_visit(Status::Found, None);
    outcome.data.insert("drakkars".into(), serde_json::json!({"prix": "14.90€"}));
    outcome.duration_ms = 12;
    outcome
}

fn failed() -> Outcome {
    Outcome::without_visit(Status::Failed, Some(Reason::new("blocked", "403")))
}

fn json(body: &[u8]) -> serde_json::Value {
    serde_json::from_slice(body).unwrap()
}

fn is_summary(due: &DueDelivery) -> bool {
    matches!(due.subject, crate::model::delivery::Subject::Summary(_))
}

/// Every law that holds after every commit, counted row by row.
fn assert_laws(lab: &Lab) {
    let mut reader = lab.reader();
    let tally = reader.tally().unwrap();
    assert_eq!(tally, reader.recount().unwrap(), "rule 14: counters and recount");
    assert!(tally.holds(), "rule 14: {tally:?}");
    let none = |law: &str, sql: &str| assert_eq!(lab.number(sql), 0, "{law}");
    none(
        "L1: an ended product has one delivery and one body, an open one has none",
        "SELECT count(*) FROM product AS p
         WHERE (state = 2) <> EXISTS (SELECT 1 FROM delivery AS d WHERE d.no = (p.batch << 26) | (p.idx << 2))
            OR (state = 2) <> EXISTS (SELECT 1 FROM body AS b WHERE b.no = (p.batch << 26) | (p.idx << 2))
            OR (state = 2) <> (status IS NOT NULL) OR (state = 1) <> (claim_epoch IS NOT NULL)
            OR (started = 1 AND state <> 1)",
    );
    none(
        "L1: every delivery tells of an ended product or a released summary",
        "SELECT count(*) FROM delivery AS d
         WHERE NOT EXISTS (SELECT 1 FROM product AS p
                           WHERE p.batch = d.no >> 26 AND p.idx = (d.no >> 2) & 16777215 AND state = 2)
           AND NOT EXISTS (SELECT 1 FROM progress WHERE batch = d.no >> 26 AND summary = 1 AND d.no & 3 <> 0)",
    );
    none(
        "L2: a batch has ended exactly when no product of it is open",
        "SELECT count(*) FROM progress AS b
         WHERE (ended_at IS NULL) <> EXISTS (SELECT 1 FROM product AS p WHERE p.batch = b.batch AND state <> 2)",
    );
    none(
        "L5: the counters of each batch are those of its rows",
        "SELECT count(*) FROM progress AS b
         WHERE queued <> (SELECT count(*) FROM product AS p WHERE p.batch = b.batch AND state = 0)
            OR claimed <> (SELECT count(*) FROM product AS p WHERE p.batch = b.batch AND state = 1)
            OR found <> (SELECT count(*) FROM product AS p WHERE p.batch = b.batch AND status = 1)
            OR failed <> (SELECT count(*) FROM product AS p WHERE p.batch = b.batch AND status = 7)
            OR skipped <> (SELECT count(*) FROM product AS p WHERE p.batch = b.batch AND status = 6)
            OR waiting <> (SELECT count(*) FROM delivery WHERE no >> 26 = b.batch AND no & 3 = 0 AND state = 0)
            OR taken <> (SELECT count(*) FROM delivery WHERE no >> 26 = b.batch AND no & 3 = 0 AND state = 1)
            OR dead <> (SELECT count(*) FROM delivery WHERE no >> 26 = b.batch AND no & 3 = 0 AND state = 2)
            OR stopped <> (SELECT count(*) FROM delivery WHERE no >> 26 = b.batch AND no & 3 = 0 AND state = 3)
            OR withheld <> (SELECT count(*) FROM delivery WHERE no >> 26 = b.batch AND no & 3 = 0 AND state = 4)",
    );
    none(
        "the cursor never passes a product that may be claimed",
        "SELECT count(*) FROM product AS p JOIN progress AS b ON b.batch = p.batch
         WHERE state = 0 AND dup_of IS NULL AND idx < cursor",
    );
    none(
        "a duplicate is open as long as its first, and ends as it does",
        "SELECT count(*) FROM product AS p JOIN product AS first ON first.batch = p.batch AND first.idx = p.dup_of
         WHERE p.state = 1 OR (p.state = 2) <> (first.state = 2) OR p.status IS NOT first.status",
    );
    none(
        "rule 10: what is ended and has no open delivery has released its summary; what is open has not",
        "SELECT count(*) FROM progress
         WHERE (ended_at IS NOT NULL AND waiting + stopped + withheld = 0 AND summary = 0)
            OR (ended_at IS NULL AND summary <> 0)",
    );
    none(
        "a stopped lane has nothing waiting",
        "SELECT count(*) FROM delivery JOIN endpoint ON
         endpoint.no = delivery.endpoint WHERE delivery.state = 0 AND endpoint.stopped = 1",
    );
}
