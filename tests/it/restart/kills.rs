//! `kill -9`, again and again, in each window between two transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime};

use glaneur_kit::receiver::{Answer, Seen, is_product, is_summary, taken_once};
use glaneur_kit::shop::{Conduct, Purpose, When};
use glaneur_kit::{Daemon, Gate};
use serde_json::{Value, json};

use super::{any_hit, is_of, marks};
use crate::support::{LONG, Stage, accepted, stocked};

/// Kills in each window, and at moments that only the seed knows.
const EACH: usize = 38;
const ANYWHERE: usize = 20;

const STOCK: [&str; 4] = ["0748322148474", "0748322148481", "3665606002802", "3701129820322"];
const NOWHERE: &str = "3701129811962";
const REPLACED: &str = "0748322148863";
const REPLACEMENT: &str = "0748322148993";

/// Where the daemon is when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Window {
    /// The 202 was seen, and no product of its batch has ended.
    Accept,
    /// A shop has a request and has not answered it.
    Visit,
    /// A product has ended, and the receiver has not heard of it.
    Outcome,
    /// The receiver has a webhook and has not answered it.
    Delivery,
    /// All product webhooks of a batch are taken, its summary is not.
    Summary,
    /// After so many lines of the log.
    Anywhere,
}

impl Window {
    const ALL: [Self; 6] =
        [Self::Accept, Self::Visit, Self::Outcome, Self::Delivery, Self::Summary, Self::Anywhere];
}

#[tokio::test]
async fn two_hundred_kills_lose_nothing_and_double_nothing() {
    let seed = seed();
    println!("seed {seed}; GLANEUR_TEST_SEED={seed} repeats it");
    let begin = Instant::now();
    let mut siege = Siege::start(Rng(seed)).await;
    let mut windows = [EACH, EACH, EACH, EACH, EACH, ANYWHERE]
        .iter()
        .zip(Window::ALL)
        .flat_map(|(&times, window)| std::iter::repeat_n(window, times))
        .collect::<Vec<_>>();
    siege.rng.shuffle(&mut windows);
    assert!(windows.len() >= 200);
    for window in windows {
        siege.kill_in(window).await;
    }
    let Siege { kills, lost, .. } = &siege;
    println!("kills by window {kills:?}; with something to lose {lost:?}; {:?}", begin.elapsed());
    for window in Window::ALL {
        assert_eq!(lost.get(&window), kills.get(&window), "each {window:?} had something to lose");
    }
    siege.relieve().await;
    siege.check().await;
    println!("{} batches; {:?} in all", siege.batches.len(), begin.elapsed());
}

fn seed() -> u64 {
    match std::env::var("GLANEUR_TEST_SEED") {
        Ok(seed) => seed.parse().expect("GLANEUR_TEST_SEED is a number"),
        Err(_) => SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos().into(),
    }
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) >> 33).unwrap() % n
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            all.swap(last, self.below(last + 1));
        }
    }
}

/// A batch that was accepted.
struct Sent {
    id: String,
    url: String,
    /// What each entry must end as, by index from 1.
    expected: Vec<&'static str>,
    /// Where its summary goes.
    summaries: Vec<&'static str>,
    metadata: Value,
}

struct Siege {
    stage: Stage,
    daemon: Daemon,
    rng: Rng,
    batches: Vec<Sent>,
    /// How many kills were in this window.
    kills: BTreeMap<Window, usize>,
    /// How many of them had something to lose.
    lost: BTreeMap<Window, usize>,
}

impl Siege {
    async fn start(rng: Rng) -> Self {
        let stock: Vec<&str> = STOCK.into_iter().chain([REPLACEMENT]).collect();
        let stage =
            Stage::direct(stocked(&stock)).set("ledger", "claims_max", 100_000).set("log", "level", "info");
        let here = stage.receiver.address().to_string();
        let stage = stage.set("webhooks", "hosts", json!([here]));
        let mut daemon = stage.start().await;
        daemon.kill_9().await.unwrap();
        let (kills, lost) = (BTreeMap::new(), BTreeMap::new());
        Self { stage, daemon, rng, batches: Vec::new(), kills, lost }
    }

    /// Sets the scene while the daemon is dead, starts it, and kills it in this window.
    async fn kill_in(&mut self, window: Window) {
        self.stage.receiver.behave(Answer::Started);
        self.stage.shops.all.iter().for_each(glaneur_kit::Shop::behave_well);
        let had_something = match window {
            Window::Accept => self.kill_after_accept().await,
            Window::Visit => self.kill_in_visit().await,
            Window::Outcome => self.kill_after_outcome().await,
            Window::Delivery => self.kill_in_delivery().await,
            Window::Summary => self.kill_before_summary().await,
            Window::Anywhere => self.kill_anywhere().await,
        };
        *self.kills.entry(window).or_default() += 1;
        *self.lost.entry(window).or_default() += usize::from(had_something);
    }

    async fn restart(&mut self) {
        self.daemon.restart().await.unwrap();
    }

    async fn kill(&mut self) {
        assert!(self.daemon.is_running(), "it lives until it is killed");
        self.daemon.kill_9().await.unwrap();
    }

    async fn kill_after_accept(&mut self) -> bool {
        let gate = Gate::closed();
        if self.rng.coin() {
            self.stage.shops.behave(&When::Always, &Conduct::Normal.held(&gate));
        }
        self.restart().await;
        let batch = self.submit().await;
        self.kill().await;
        !self.daemon.events("product_ended").iter().any(|event| event["batch_id"] == *batch)
    }

    async fn kill_in_visit(&mut self) -> bool {
        let gate = Gate::closed();
        // The second request of a visit comes only for what a shop has, as every new batch does.
        let page = self.rng.coin();
        let when = if page { When::Pages } else { When::Always };
        self.stage.shops.behave(&when, &Conduct::Normal.held(&gate));
        let marks = marks(&self.stage.shops);
        self.restart().await;
        if page || self.open_products().await == 0 {
            self.submit().await;
        }
        any_hit(&self.stage.shops, marks, |hit| !page || hit.purpose == Purpose::Page).await;
        self.kill().await;
        !gate.is_open()
    }

    async fn kill_after_outcome(&mut self) -> bool {
        self.stage.receiver.stop_listening().await;
        let seen_before = self.stage.receiver.records().len();
        self.restart().await;
        if self.open_products().await == 0 {
            self.submit().await;
        }
        // Before the receiver was called at all, or after it could not be reached.
        let event = if self.rng.coin() { "product_ended" } else { "delivery_retried" };
        self.daemon.wait_for_event("product_ended", |_| true).await.unwrap();
        self.daemon.wait_for_event(event, |_| true).await.unwrap();
        self.kill().await;
        self.stage.receiver.listen_again().unwrap();
        self.stage.receiver.records().len() == seen_before
    }

    async fn kill_in_delivery(&mut self) -> bool {
        self.stage.receiver.behave_at("/p", Answer::Hang);
        let before = self.stage.receiver.records().len();
        self.restart().await;
        if self.open_products().await + self.waiting_webhooks().await == 0 {
            self.submit().await;
        }
        let fits = |seen: &Seen| seen.path.starts_with("/p") && !seen.taken();
        let came = |seen: &[Seen]| seen[before..].iter().any(fits);
        self.stage.receiver.wait_until(came, LONG).await.unwrap();
        self.kill().await;
        true
    }

    async fn kill_before_summary(&mut self) -> bool {
        self.stage.receiver.behave(Answer::Hang);
        self.stage.receiver.behave_at("/p", Answer::Started);
        self.restart().await;
        let seen = self.stage.receiver.seen();
        if self.batches.iter().all(|batch| batch.summaries_taken(&seen) > 0) {
            self.submit().await;
        }
        // Either at the last product, or when a summary is out and not answered.
        let out = self.rng.coin();
        let batches = &self.batches;
        let before = seen.len();
        let find = |seen: &[Seen]| {
            let ready = |batch: &&Sent| {
                let products = batch.products_taken(seen) == batch.expected.len();
                let summary_out = seen[before..].iter().any(|seen| is_of(seen, &batch.id) && !seen.taken());
                batch.summaries_taken(seen) == 0 && products && (!out || summary_out)
            };
            batches.iter().find(ready).map(|batch| batch.id.clone())
        };
        let batch = self.stage.receiver.records().wait_for(find, LONG).await.unwrap();
        self.kill().await;
        let batch = self.batches.iter().find(|sent| sent.id == batch).unwrap();
        batch.summaries_taken(&self.stage.receiver.seen()) == 0
    }

    async fn kill_anywhere(&mut self) -> bool {
        self.restart().await;
        self.submit().await;
        // A start and a new batch bring more lines than this.
        let lines = 6 + self.rng.below(14);
        let run = self.daemon.run();
        let enough = |log: &[glaneur_kit::daemon::LogLine]| {
            lines <= log.iter().rev().take_while(|line| line.run == run).count()
        };
        self.daemon.log().wait_until(enough, LONG).await.unwrap();
        self.kill().await;
        true
    }

    /// A batch with every kind of entry; its id.
    async fn submit(&mut self) -> String {
        let n = self.batches.len();
        let first = STOCK[self.rng.below(STOCK.len())];
        let mut eans =
            vec![json!({"primary": first}), json!({"primary": REPLACED, "replacement": REPLACEMENT})];
        let mut expected = vec!["found", "found"];
        if self.rng.coin() {
            eans.extend([json!({"primary": first, "replacement": null}), json!({"primary": NOWHERE})]);
            expected.extend(["found", "not_found"]);
        }
        if self.rng.coin() {
            eans.extend([json!("7.48E+11"), json!({"primary": "3400930000120"})]);
            expected.extend(["skipped", "ignored"]);
        }
        let metadata = json!({"n": n, "text": "né d'un été"});
        let mut body = json!({"eans": eans, "metadata": metadata, "ignored3400": ["3400930000120"]});
        let shops =
            [&["pharmagdd"][..], &["cocooncenter", "drakkars"], &["cocooncenter", "pharmagdd", "drakkars"]];
        body["sites"] = json!(shops[self.rng.below(3)]);
        let mut summaries = vec!["/s"];
        if self.rng.coin() {
            body["callback_url"] = self.stage.receiver.url("/callback").into();
            summaries.push("/callback");
        }
        let answer = accepted(self.daemon.submit(&body).await.unwrap());
        assert_eq!(answer["duplicate"], Value::Null);
        let text = |key: &str| answer[key].as_str().unwrap().to_owned();
        let id = text("batch_id");
        self.batches.push(Sent { id: id.clone(), url: text("status_url"), expected, summaries, metadata });
        id
    }

    /// Those batches whose summaries are not all out, as the API shows them.
    async fn views(&self) -> Vec<Value> {
        let seen = self.stage.receiver.seen();
        let mut views = Vec::new();
        for batch in self.batches.iter().filter(|batch| batch.summaries_taken(&seen) < batch.summaries.len())
        {
            let (status, view) = self.daemon.get(&batch.url).await.unwrap();
            assert_eq!(status, 200, "{view}");
            views.push(view);
        }
        views
    }

    async fn open_products(&self) -> u64 {
        let open = |view: &Value| ["queued", "claimed"].map(|state| view["counts"][state].as_u64().unwrap());
        self.views().await.iter().flat_map(open).sum()
    }

    async fn waiting_webhooks(&self) -> u64 {
        self.views().await.iter().map(|view| view["deliveries"]["waiting"].as_u64().unwrap()).sum()
    }

    /// No more kills: everything must come to its end by itself.
    async fn relieve(&mut self) {
        self.stage.receiver.behave(Answer::Started);
        self.stage.shops.all.iter().for_each(glaneur_kit::Shop::behave_well);
        self.restart().await;
        let batches = &self.batches;
        let over = |seen: &[Seen]| {
            batches.iter().all(|batch| {
                batch.summaries_taken(seen) >= batch.summaries.len()
                    && batch.products_taken(seen) >= batch.expected.len()
            })
        };
        if let Err(trouble) = self.stage.receiver.wait_until(over, LONG).await {
            panic!("what was accepted did not end: {trouble}\n{:#?}", self.views().await);
        }
    }

    async fn check(&self) {
        let seen = self.stage.receiver.seen();
        let by_id = self.stage.receiver.by_webhook_id();
        assert!(seen.iter().all(|seen| seen.webhook_id().is_some()));
        for (id, seen) in &by_id {
            assert!(seen.iter().all(|one| one.body == seen[0].body), "{id}: one body");
            assert!(seen.iter().any(Seen::taken), "{id}: taken at least once");
        }
        let entries: usize = self.batches.iter().map(|batch| batch.expected.len()).sum();
        let summaries: usize = self.batches.iter().map(|batch| batch.summaries.len()).sum();
        assert_eq!(by_id.len(), entries + summaries, "one id for each product, and for each summary and URL");
        for batch in &self.batches {
            let ids = self.check_ledger(batch).await;
            check_webhooks(batch, &seen, &ids);
        }
        assert!(self.daemon.events_of_all_runs("conservation_broken").is_empty());
        assert!(self.daemon.events_of_all_runs("claim_stranded").is_empty());
        assert!(self.daemon.events_of_all_runs("panicked").is_empty());
        assert!(!self.daemon.events_of_all_runs("product_suspected").is_empty(), "some died often");
        let (status, ready) = self.daemon.get("/readyz").await.unwrap();
        assert_eq!(status, 200, "{ready}");
    }

    /// What the API says of a batch, page by page; the webhook ids by index.
    async fn check_ledger(&self, batch: &Sent) -> Vec<String> {
        let mut next = Some(format!("{}?limit=2", batch.url));
        let mut products = Vec::new();
        while let Some(url) = next {
            let (status, view) = self.daemon.get(&url).await.unwrap();
            assert_eq!(status, 200, "{view}");
            assert_eq!(view["status"], "ended");
            let ended = batch.expected.len();
            assert_eq!((&view["counts"]["queued"], &view["counts"]["claimed"]), (&json!(0), &json!(0)));
            assert_eq!(view["total_products"], ended);
            assert_eq!(view["deliveries"]["taken"], ended, "{view}");
            products.extend(view["products"].as_array().unwrap().iter().cloned());
            next = view["next"].as_str().map(str::to_owned);
        }
        let indices: Vec<_> = products.iter().map(|product| product["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, (1..=batch.expected.len() as u64).collect::<Vec<_>>());
        for (product, expected) in products.iter().zip(&batch.expected) {
            assert_eq!(
                (&product["state"], &product["status"]),
                (&json!("ended"), &json!(expected)),
                "{product}"
            );
            assert_ne!(product["reason"]["kind"], "crashed");
        }
        let id = |product: &Value| product["delivery"]["webhook_id"].as_str().unwrap().to_owned();
        products.iter().map(id).collect()
    }
}

/// What the receiver saw of a batch, against the ids that the ledger has for its products.
fn check_webhooks(batch: &Sent, seen: &[Seen], ids: &[String]) {
    let ours: Vec<(&Seen, Value)> =
        seen.iter().filter(|seen| is_of(seen, &batch.id)).map(|seen| (seen, seen.json())).collect();
    let mut all_taken_at = 0;
    for ((index, id), expected) in (1_u64..).zip(ids).zip(&batch.expected) {
        let of_product: Vec<_> =
            ours.iter().filter(|(_, body)| is_product(body) && body["index"] == index).collect();
        let ids: BTreeSet<_> = of_product.iter().map(|(seen, _)| seen.webhook_id().unwrap()).collect();
        assert_eq!(ids, BTreeSet::from([id.as_str()]), "one id for product {index} of {}", batch.id);
        let first_taken = of_product.iter().find(|(seen, _)| seen.taken()).expect("taken");
        all_taken_at = all_taken_at.max(first_taken.0.order);
        assert_eq!(first_taken.1["status"], **expected);
        assert_eq!(first_taken.1["metadata"], batch.metadata);
    }
    for path in &batch.summaries {
        let copies: Vec<_> =
            ours.iter().filter(|(seen, body)| is_summary(body) && seen.path == *path).collect();
        let ids: BTreeSet<_> = copies.iter().map(|(seen, _)| seen.webhook_id().unwrap()).collect();
        assert_eq!(ids.len(), 1, "one summary of {} to {path}", batch.id);
        let (first, body) = copies.first().unwrap();
        assert!(all_taken_at < first.order, "the summary comes after the products");
        assert_eq!(
            body["deliveries"],
            json!({"taken": batch.expected.len(), "dead": 0, "open": 0, "unaddressed": 0})
        );
        assert_eq!(body["metadata"], batch.metadata);
    }
    let summaries: BTreeSet<_> =
        ours.iter().filter(|(_, body)| is_summary(body)).map(|(seen, _)| &seen.body).collect();
    assert_eq!(summaries.len(), 1, "one frozen body, whatever the URL");
}

impl Sent {
    fn taken(&self, seen: &[Seen], summaries: bool) -> usize {
        let is_summary = |seen: &Seen| !seen.path.starts_with("/p");
        taken_once(seen).iter().filter(|seen| is_summary(seen) == summaries && is_of(seen, &self.id)).count()
    }

    fn products_taken(&self, seen: &[Seen]) -> usize {
        self.taken(seen, false)
    }

    fn summaries_taken(&self, seen: &[Seen]) -> usize {
        self.taken(seen, true)
    }
}
