//! A coordinator and a real ledger, without scrapers: every visit is asked for again and again.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use ractor::{Actor, ActorRef};
use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt};

use super::Settings;
use super::actor::{Arguments, Coordinator, Msg};
use super::machine::{SlotId, Step, VisitEnd};
use crate::ledger::actor::{Limits, handle};
use crate::ledger::sqlite::{self, OpenOptions};
use crate::ledger::store::{AcceptAnswer, Addressing, BatchView, Claim, OpenBatch};
use crate::ledger::{LedgerError, LedgerHandle};
use crate::model::batch::{Fate, NewBatch, NewProduct};
use crate::model::{BatchId, Gtin, Language};
use crate::scraper::{Answer, pool};
use crate::supervisor::bystander::bystander;

/// Far longer than anything here takes; a test that waits so long has failed.
const LIMIT: Duration = Duration::from_secs(60);
/// Commands that the writer's queue holds.
const QUEUE_MAX: usize = 8;

/// The names of the events that this thread told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn times(&self, name: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|told| *told == name).count()
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Told {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        event.record(&mut self.clone());
    }
}

impl Visit for Told {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "event" {
            self.0.lock().unwrap().push(value.into());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

struct World {
    ledger: LedgerHandle,
    batch: OpenBatch,
    _ledger: crate::ledger::actor::Ledger,
    _directory: tempfile::TempDir,
}

impl World {
    /// A batch of so many products.
    async fn with(total: usize) -> Self {
        Self::answering_within(100 * LIMIT, total).await
    }

    async fn answering_within(reply_within: Duration, total: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let addressing = Addressing {
            product: true,
            summary_url: None,
            language: Language::English,
            dedupe_window: Duration::ZERO,
        };
        let boot_id = "test".into();
        let options = OpenOptions { addressing, claims_max: 4, free_bytes_min: 0, readers: 2, boot_id };
        let opened = sqlite::open(&directory.path().join("ledger.db"), options).unwrap();
        let limits = Limits { queue_max: QUEUE_MAX, group_max: 8, reply_within };
        let (ledger, starter) = handle(opened.reader, limits);
        starter.start(Box::new(opened.store), bystander().await).await.unwrap();
        let gtin = Gtin::parse("0748322148474").unwrap();
        let product = |_| NewProduct {
            ean: gtin.to_string(),
            fate: Fate::Visit { gtin: gtin.clone(), replacement: None },
            note: None,
        };
        let batch = NewBatch {
            batch_id: BatchId::mint(),
            requester: "test".into(),
            key: None,
            body_hash: [0; 32],
            force: true,
            sites: vec!["shop".into()],
            webhook_url: None,
            callback_url: None,
            metadata: None,
            products: (0..total).map(product).collect(),
            ignored_3400: Vec::new(),
        };
        let (batch_id, sites) = (batch.batch_id.clone(), batch.sites.clone());
        let answer = ledger.write(move |store| store.accept(&batch, 0)).await.unwrap();
        let AcceptAnswer::Accepted(accepted) = answer else { panic!("a key without a key") };
        let batch = OpenBatch { no: accepted.batch, batch_id, sites, total: accepted.total };
        Self { ledger, batch, _ledger: starter, _directory: directory }
    }

    async fn coordinator(&self, incarnation: i64, window: usize) -> ActorRef<Msg> {
        let settings = Settings {
            shops: self.batch.sites.clone(),
            catalogue: false,
            attempts_max: 1,
            catalogue_attempts_max: 1,
            retry_min: Duration::ZERO,
            retry_max: Duration::ZERO,
            window,
        };
        let arguments = Arguments {
            batch: self.batch.clone(),
            claim: claim(incarnation),
            settings: watch::channel(Arc::new(settings)).1,
            ledger: self.ledger.clone(),
            scrapers: pool::handle().0,
        };
        let (coordinator, _) = Actor::spawn(None, Coordinator, arguments).await.unwrap();
        coordinator.cast(Msg::Start).unwrap();
        coordinator
    }

    async fn claim(&self, incarnation: i64, count: u32) -> Vec<u32> {
        let no = self.batch.no;
        let claimed = self.ledger.write(move |store| store.claim(no, claim(incarnation), count)).await;
        claimed.unwrap().into_iter().map(|claimed| claimed.index).collect()
    }

    async fn view(&self) -> BatchView {
        let id = self.batch.batch_id.clone();
        self.ledger.reader().read(move |read| read.batch(id.as_str())).await.unwrap().unwrap()
    }

    /// Products that this incarnation, or an older one, holds.
    async fn held_by(&self, incarnation: i64) -> Vec<u32> {
        let no = self.batch.no;
        self.ledger.reader().read(move |read| read.claimed(no, claim(incarnation))).await.unwrap()
    }

    async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let wait = async {
            while !holds().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(LIMIT, wait).await.is_ok(), "never: {what}; {:?}", self.view().await);
    }
}

fn claim(incarnation: i64) -> Claim {
    Claim { epoch: 1, incarnation }
}

#[tokio::test]
async fn a_coordinator_whose_first_write_is_refused_takes_over_all_the_same() {
    let world = World::with(6).await;
    assert_eq!(world.claim(1, 3).await, [1, 2, 3]);
    // The writer is held, and its queue is full.
    let (release, held) = mpsc::channel::<()>();
    let mut waiting = Vec::new();
    let ledger = world.ledger.clone();
    waiting.push(tokio::spawn(async move { ledger.write(move |_| Ok(held.recv().is_err())).await }));
    loop {
        let ledger = world.ledger.clone();
        let more = tokio::spawn(async move { ledger.write(|store| store.touch().map(|()| true)).await });
        tokio::task::yield_now().await;
        if more.is_finished() {
            assert_eq!(more.await.unwrap(), Err(LedgerError::Busy));
            break;
        }
        waiting.push(more);
    }
    let coordinator = world.coordinator(2, 100).await;
    // Long enough for it to hear that its write was refused: all tasks share this thread.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    drop(release);
    for write in waiting {
        write.await.unwrap().unwrap();
    }
    world
        .until("its own", async || world.held_by(2).await.len() == 6 && world.held_by(1).await.is_empty())
        .await;
    coordinator.kill();
}

#[tokio::test]
async fn a_claim_in_nobodys_hands_is_put_back_and_told_and_those_in_hand_stay() {
    let told = Told::default();
    let _listening = tracing::subscriber::set_default(tracing_subscriber::registry().with(told.clone()));
    let world = World::with(6).await;
    let coordinator = world.coordinator(2, 2).await;
    world.until("its window", async || world.held_by(2).await == [1, 2]).await;
    // As if the coordinator had not heard what its claim gave.
    assert_eq!(world.claim(2, 1).await, [3]);
    for look in 1.. {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(11)).await;
        tokio::time::resume();
        tokio::time::sleep(Duration::from_millis(20)).await;
        if world.held_by(2).await == [1, 2] {
            assert!(1 < look, "seen once is not enough");
            break;
        }
        assert!(look < 100, "never: {:?}", world.view().await);
    }
    world.until("it is told", async || told.times("claim_stranded") == 1).await;
    assert_eq!(world.view().await.queued, 4);
    coordinator.kill();
}

#[tokio::test]
async fn an_outcome_whose_commit_was_not_confirmed_is_told_as_ended_and_the_batch_too() {
    let told = Told::default();
    let _listening = tracing::subscriber::set_default(tracing_subscriber::registry().with(told.clone()));
    let world = World::answering_within(Duration::from_millis(300), 1).await;
    let coordinator = world.coordinator(2, 1).await;
    world.until("its window", async || world.held_by(2).await == [1]).await;
    let (release, held) = mpsc::channel::<()>();
    let ledger = world.ledger.clone();
    let hold = tokio::spawn(async move { ledger.write(move |_| Ok(held.recv().is_err())).await });
    // The answer to whichever request is out: it is asked again several times a second.
    let begin = tokio::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        for ask in 0..100 {
            let slot = SlotId { step: Step::Primary, shop: 0, ask };
            let answer = Answer { end: VisitEnd::NotFound, dialled_at: None };
            coordinator.cast(Msg::VisitEnded { index: 1, slot, answer }).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(hold.await.unwrap(), Err(LedgerError::Unknown));
    assert_eq!(told.times("product_ended"), 0, "nobody knows yet");
    drop(release);
    world.until("the batch's end is told", async || told.times("batch_ended") == 1).await;
    assert_eq!((told.times("product_ended"), told.times("outcome_dropped")), (1, 0));
}
