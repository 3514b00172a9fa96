//! The way in over real sockets, before a ledger that is a list in memory and misbehaves on request.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Args, Authority, Drain, Ingress, Limits, Settings, Token};
use crate::ledger::store::{
    AcceptAnswer, Addressing, BatchView, Claim, Claimed, DeliveryView, Ended, LaneView, OpenBatch, ProductState,
    ProductView, Read, Recorded, Store, StoreError, Tally,
};
use crate::ledger::{self, LedgerReader};
use crate::model::batch::{Accepted, NewBatch, Outcome, Repeat};
use crate::model::delivery::{AttemptRecord, DeliveryNo, DueDelivery, LaneNo};
use crate::model::{BatchId, BatchNo, Language, ProductKey};

pub(super) fn settings() -> Settings {
    Settings {
        language: Language::French,
        hosts: vec![Authority::parse("glaneur.example").unwrap()],
        allow_from: Vec::new(),
        token: None,
        sites: vec!["alpha".into(), "beta".into()],
        ignore_prefixes: vec!["3400".into()],
        webhook_hosts: ["n8n:5678", "hooks.example"].map(|host| Authority::parse(host).unwrap()).into(),
        limits: Limits {
            products_max: 100,
            body_bytes_max: 100_000,
            metadata_bytes_max: 1000,
            header_bytes_max: 8192,
            header_timeout: Duration::from_secs(20),
            body_timeout: Duration::from_secs(20),
            request_timeout: Duration::from_secs(20),
            connections_max: 64,
        },
    }
}

/// Shorter than any patience of a test, longer than anything on a loaded machine.
const SHORT: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Writing,
    Full,
    Refusing,
    /// A commit takes until somebody asks whether it is there.
    UntilAsked,
    /// A commit takes until the mode changes.
    Stuck,
    /// The counters do not add up.
    Miscounted,
}

#[derive(Debug, Default)]
struct Book {
    mode: Mode,
    /// Commits that have begun, also those that wait.
    begun: u32,
    asked: u32,
    batches: Vec<(Accepted, NewBatch)>,
}

#[derive(Clone, Debug, Default)]
struct Fake(Arc<(Mutex<Book>, Condvar)>);

impl Fake {
    fn with<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let result = change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
        result
    }

    fn set(&self, mode: Mode) {
        self.with(|book| book.mode = mode);
    }

    fn stored(&self) -> usize {
        self.with(|book| book.batches.len())
    }
}

fn not_here<T>() -> Result<T, StoreError> {
    Err(StoreError::Other("the fake ledger has none of that".into()))
}

impl Store for Fake {
    fn begin(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn savepoint(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn release(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn rollback_to_savepoint(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn commit(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn rollback(&mut self) {}
    fn readdress(&mut self, _: Addressing) {}

    fn accept(&mut self, batch: &NewBatch, _: i64) -> Result<AcceptAnswer, StoreError> {
        let mut book = self.0.0.lock().unwrap();
        book.begun += 1;
        loop {
            match book.mode {
                Mode::Full => return Err(StoreError::Full { group_lost: false }),
                Mode::Refusing => return not_here(),
                Mode::UntilAsked if book.asked == 0 => book = self.0.1.wait(book).unwrap(),
                Mode::Stuck => book = self.0.1.wait(book).unwrap(),
                Mode::Writing | Mode::UntilAsked | Mode::Miscounted => break,
            }
        }
        for (first, stored) in &book.batches {
            let repeat = match (&batch.key, &stored.key) {
                (Some(key), Some(first_key)) if key == first_key => {
                    if batch.body_hash != stored.body_hash {
                        return Ok(AcceptAnswer::KeyReused);
                    }
                    Repeat::Key
                }
                (None, None) if batch.body_hash == stored.body_hash && !batch.force => Repeat::Body,
                _ => continue,
            };
            return Ok(AcceptAnswer::Accepted(Accepted { repeat: Some(repeat), ..first.clone() }));
        }
        let accepted = Accepted {
            batch: BatchNo(book.batches.len() as i64 + 1),
            batch_id: batch.batch_id.clone(),
            total: batch.products.len() as u32,
            counts: batch.counts(),
            refused: batch.refused(),
            repeat: None,
        };
        book.batches.push((accepted.clone(), batch.clone()));
        Ok(AcceptAnswer::Accepted(accepted))
    }

    fn touch(&mut self) -> Result<(), StoreError> {
        match self.with(|book| book.mode) {
            Mode::Full => Err(StoreError::Full { group_lost: false }),
            _ => Ok(()),
        }
    }

    fn claim(&mut self, _: BatchNo, _: Claim, _: u32) -> Result<Vec<Claimed>, StoreError> {
        not_here()
    }
    fn start(&mut self, _: ProductKey, _: Claim) -> Result<bool, StoreError> {
        not_here()
    }
    fn rest(&mut self, _: ProductKey, _: Claim) -> Result<(), StoreError> {
        not_here()
    }
    fn put_back(&mut self, _: ProductKey, _: Claim) -> Result<(), StoreError> {
        not_here()
    }
    fn release_older(&mut self, _: BatchNo, _: Claim) -> Result<u32, StoreError> {
        not_here()
    }
    fn end(&mut self, _: ProductKey, _: Claim, _: &Outcome, _: i64) -> Result<Ended, StoreError> {
        not_here()
    }
    fn end_set_aside(&mut self, _: BatchNo, _: &Outcome, _: u32, _: i64) -> Result<u32, StoreError> {
        not_here()
    }
    fn record_attempt(&mut self, _: &AttemptRecord) -> Result<Recorded, StoreError> {
        not_here()
    }
    fn record_lane_panic(&mut self, _: DeliveryNo) -> Result<u32, StoreError> {
        not_here()
    }
    fn readmit_withheld(&mut self, _: LaneNo, _: i64) -> Result<u32, StoreError> {
        not_here()
    }
    fn shift_due(&mut self, _: i64) -> Result<(), StoreError> {
        not_here()
    }
    fn release_summaries(&mut self, _: i64, _: Duration) -> Result<u32, StoreError> {
        not_here()
    }
    fn mark_stopping(&mut self) -> Result<(), StoreError> {
        not_here()
    }
}

/// A note that makes a page of products larger than what two sockets buffer.
const LONG_NOTE_BYTES: usize = 20_000;

impl Read for Fake {
    fn batch(&mut self, name: &str) -> Result<Option<BatchView>, StoreError> {
        let view = |(accepted, batch): &(Accepted, NewBatch)| BatchView {
            no: accepted.batch,
            batch_id: accepted.batch_id.clone(),
            accepted_at_ms: 0,
            ended_at_ms: None,
            total: accepted.total,
            queued: accepted.counts.queued,
            claimed: 0,
            ended: [0, 0, 0, 0, accepted.counts.ignored, accepted.counts.skipped, 0, 0],
            deliveries: [0; 6],
            sites: batch.sites.clone(),
            ignored_3400: batch.ignored_3400.clone(),
            callback_url: batch.callback_url.clone(),
            webhook_url: batch.webhook_url.clone(),
            metadata: batch.metadata.as_ref().map(|metadata| metadata.get().to_owned()),
            summary_released: false,
        };
        let named = |accepted: &Accepted| {
            accepted.batch_id.as_str() == name || accepted.batch.0.to_string() == name
        };
        Ok(self.with(|book| book.batches.iter().find(|(accepted, _)| named(accepted)).map(view)))
    }

    fn accepted(&mut self, batch_id: &BatchId) -> Result<Option<Accepted>, StoreError> {
        Ok(self.with(|book| {
            book.asked += 1;
            let found = book.batches.iter().find(|(accepted, _)| accepted.batch_id == *batch_id);
            found.map(|(accepted, _)| accepted.clone())
        }))
    }

    fn products(&mut self, batch: BatchNo, after: u32, limit: u32) -> Result<Vec<ProductView>, StoreError> {
        Ok(self.with(|book| {
            let (accepted, stored) = &book.batches[batch.0 as usize - 1];
            let view = |(index, product): (u32, &crate::model::batch::NewProduct)| ProductView {
                batch_id: accepted.batch_id.clone(),
                index,
                ean: product.ean.clone(),
                replacement: None,
                duplicate_of: None,
                note: Some("x".repeat(LONG_NOTE_BYTES)),
                state: ProductState::Queued,
                reason: None,
                deaths: 0,
                ended_at_ms: None,
                delivery: None,
                body: None,
            };
            (1..).zip(&stored.products).skip(after as usize).take(limit as usize).map(view).collect()
        }))
    }

    fn summaries(&mut self, _: BatchNo) -> Result<Vec<DeliveryView>, StoreError> {
        Ok(Vec::new())
    }

    fn tally(&mut self) -> Result<Tally, StoreError> {
        let accepted = i64::from(self.with(|book| book.mode) == Mode::Miscounted);
        Ok(Tally { accepted, ..Tally::default() })
    }

    fn recount(&mut self) -> Result<Tally, StoreError> {
        self.tally()
    }
    fn open_batches(&mut self, _: BatchNo, _: u32) -> Result<Vec<OpenBatch>, StoreError> {
        not_here()
    }
    fn products_by_gtin(&mut self, _: &str, _: u32) -> Result<Vec<ProductView>, StoreError> {
        not_here()
    }
    fn lanes(&mut self) -> Result<Vec<LaneView>, StoreError> {
        not_here()
    }
    fn due(&mut self, _: LaneNo, _: i64, _: &[DeliveryNo], _: u32) -> Result<Vec<DueDelivery>, StoreError> {
        not_here()
    }
}

struct Root;

impl Actor for Root {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        _: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

struct Server {
    fake: Fake,
    ingress: Ingress,
    listener: Arc<TcpListener>,
    actor: ActorCell,
    root: ActorCell,
    settings: watch::Sender<Arc<Settings>>,
    status: watch::Sender<Value>,
    batches: watch::Receiver<u64>,
    at: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        // A commit that waits for ever would keep the runtime's blocking thread, and with it the test.
        self.fake.set(Mode::Writing);
    }
}

impl Server {
    async fn start(settings: Settings) -> Self {
        Self::with_ledger(settings, 100, Duration::from_secs(20)).await
    }

    async fn with_ledger(settings: Settings, queue_max: usize, reply_within: Duration) -> Self {
        let fake = Fake::default();
        let (root, _) = Actor::spawn(None, Root, ()).await.unwrap();
        let root = root.get_cell();
        let reader = LedgerReader::new(vec![Box::new(fake.clone()), Box::new(fake.clone())]);
        let limits = ledger::actor::Limits { queue_max, group_max: 100, reply_within };
        let (handle, ledger) = ledger::actor::handle(reader, limits);
        LEDGERS.lock().await;
        ledger.start(Box::new(fake.clone()), root.clone()).await.unwrap();
        let (settings, settings_rx) = watch::channel(Arc::new(settings));
        let (status, status_rx) = watch::channel(Value::Null);
        let (batches_tx, batches) = watch::channel(0);
        let args = Args { ledger: handle, settings: settings_rx, status: status_rx, batches: batches_tx };
        let ingress = Ingress::new(args);
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let at = listener.local_addr().unwrap();
        let actor = ingress.start(Arc::clone(&listener), root.clone()).await.unwrap();
        Self { fake, ingress, listener, actor, root, settings, status, batches, at }
    }
}
