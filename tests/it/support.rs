//! How the tests use the kit: one stage with shops, a receiver and the daemon between them.

use std::time::Duration;

use glaneur_kit::{Catalogue, Config, Daemon, Receiver, ShopKind, Shops};
use serde_json::{Value, json};

pub const BINARY: &str = env!("CARGO_BIN_EXE_glaneur");

/// No expectation about speed: it only ends a test that would wait for ever.
pub const LONG: Duration = Duration::from_secs(120);

/// Waits for what cannot be waited on: `/proc` and the ledger's file tell nobody of a change.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LONG, "not within {LONG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// As [`until`], of what has to be asked.
pub async fn until_told(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let asked = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, asked).await.is_ok(), "not within {LONG:?}: {what}");
}

/// Three shops, a receiver for products at `/p` and summaries at `/s`, and a configuration that joins them.
pub struct Stage {
    pub shops: Shops,
    pub receiver: Receiver,
    pub config: Config,
}

impl Stage {
    /// Shops that are visited without Tor, which most tests have no business with.
    pub fn direct(catalogue: Catalogue) -> Self {
        let shops = Shops::start_here(catalogue).unwrap();
        let receiver = Receiver::start().unwrap();
        let mut config = impatient(&receiver);
        for shop in &shops.all {
            let name = shop.kind().name();
            config = config.site(name, shop.direct_base()).site_key(name, "via", "direct");
            config = brisk(config, name);
        }
        config = own_search(config);
        Self { shops, receiver, config }
    }

    /// The real batch of 17 October 2025.
    pub fn real_batch() -> Self {
        Self::direct(Catalogue::real_batch())
    }

    /// `n` products that every shop has.
    pub fn of(n: usize) -> Self {
        Self::direct(Catalogue::synthetic(n, 7))
    }

    /// Leaves only this shop in use.
    pub fn only(mut self, kind: ShopKind) -> Self {
        for other in [ShopKind::Cocooncenter, ShopKind::Pharmagdd, ShopKind::Drakkars] {
            if other != kind {
                self.config = self.config.site_key(other.name(), "enabled", false);
            }
        }
        self
    }

    pub fn set(mut self, section: &str, key: &str, value: impl Into<Value>) -> Self {
        self.config = self.config.set(section, key, value);
        self
    }

    pub async fn start(&self) -> Daemon {
        Daemon::start(BINARY, self.config.clone()).await.unwrap()
    }

    /// Waits until each of `n` products and the summary was taken; the bodies, products by index.
    pub async fn finished(&self, n: usize) -> (Vec<Value>, Value) {
        let seen = self
            .receiver
            .wait_until(|seen| taken_ids(seen, true) >= n && taken_ids(seen, false) >= 1, LONG)
            .await
            .unwrap();
        let once = glaneur_kit::receiver::taken_once(&seen);
        let bodies: Vec<Value> = once.iter().map(|seen| seen.json()).collect();
        let (mut products, summaries): (Vec<_>, Vec<_>) =
            bodies.into_iter().partition(glaneur_kit::receiver::is_product);
        products.sort_by_key(|product| product["index"].as_u64());
        assert_eq!(products.len(), n, "one webhook per product");
        assert_eq!(summaries.len(), 1, "one summary");
        (products, summaries[0].clone())
    }
}

fn taken_ids(seen: &[glaneur_kit::receiver::Seen], products: bool) -> usize {
    let once = glaneur_kit::receiver::taken_once(seen);
    once.iter().filter(|seen| glaneur_kit::receiver::is_product(&seen.json()) == products).count()
}

/// A configuration whose pauses are short, so that a test that waits for a retry does not wait long.
pub fn impatient(receiver: &Receiver) -> Config {
    Config::new()
        .product_url(receiver.url("/p"))
        .summary_url(receiver.url("/s"))
        .circuits(6)
        .set("ledger", "free_bytes_min", 0)
        .set("fetch", "retry_min", "20ms")
        .set("fetch", "retry_max", "100ms")
        .set("webhooks", "backoff_min", "20ms")
        .set("webhooks", "backoff_max", "200ms")
        .set("webhooks", "parked_probe_max", "200ms")
        .set("log", "format", "json")
        .set("log", "level", "debug")
}

/// No pause between two requests of a shop on this machine, however busy that is.
pub fn brisk(config: Config, shop: &str) -> Config {
    config
        .site_key(shop, "rate", "1000/s")
        .site_key(shop, "adaptive", false)
        .site_key(shop, "pause", "0s")
        .site_key(shop, "concurrency", 6)
}

/// The search service of the third shop is another host's in the world, and its own here.
pub fn own_search(config: Config) -> Config {
    config.set("sites.drakkars.search", "url", "/5/search?hashid=demo&query={ean}")
}

/// A batch of these barcodes.
pub fn batch<'a>(eans: impl IntoIterator<Item = &'a str>) -> Value {
    let entries: Vec<Value> =
        eans.into_iter().map(|ean| json!({"primary": ean, "replacement": null})).collect();
    json!({"eans": entries})
}

/// Submits and expects a 202.
#[track_caller]
pub fn accepted(answer: (u16, Value)) -> Value {
    assert_eq!(answer.0, 202, "{}", answer.1);
    answer.1
}

/// The eight barcodes of 17 October 2025.
pub const REAL: [&str; 8] = [
    "0748322148474",
    "0748322148481",
    "0748322148498",
    "0748322148863",
    "3665606002802",
    "3701129820322",
    "3701129811955",
    "3701129811962",
];

/// A catalogue of exactly these products.
pub fn stocked(eans: &[&str]) -> Catalogue {
    Catalogue::of(eans.iter().copied())
}
