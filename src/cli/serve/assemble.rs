//! From the configuration to the parts of the tree: what each part is told, and nothing started yet.

use std::fs;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::complain_and;
use crate::batch;
use crate::cli::secrets::Secrets;
use crate::config::{self, Binding, Config};
use crate::descriptors::{self, Needs};
use crate::exit::Exit;
use crate::ingress;
use crate::ledger::LedgerHandle;
use crate::ledger::actor::{self as ledger, Limits};
use crate::ledger::sqlite::{OpenOptions, Opened};
use crate::ledger::store::Addressing;
use crate::model::page::Via;
use crate::model::{Language, SiteName};
use crate::recipe::OnBlock;
use crate::scraper::actor::{CatalogueGear, Gear, Shop};
use crate::scraper::circuit::{self, WearLimits};
use crate::scraper::control::{Control, State as ControlState};
use crate::scraper::deadlines::Deadlines;
use crate::scraper::fetch::FetchLimits;
use crate::scraper::queue::ShopLimits;
use crate::scraper::robots::RobotsCache;
use crate::scraper::tls::Tls;
use crate::scraper::tor::TorGate;
use crate::scraper::{pool, tor::TorState};
use crate::supervisor::Parts;
use crate::webhook;

/// Connections that read the ledger: one for the sender, one for the API, one to spare.
const READERS: usize = 3;
/// A commit that takes longer than this is a disk in trouble: its result is called unknown, and asked for again.
const COMMIT_WITHIN: Duration = Duration::from_secs(10);

pub fn open_options(config: &Config) -> OpenOptions {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    OpenOptions {
        addressing: addressing(config),
        claims_max: config.ledger.claims_max,
        free_bytes_min: config.ledger.free_bytes_min,
        readers: READERS,
        boot_id,
    }
}

fn addressing(config: &Config) -> Addressing {
    Addressing {
        product: config.webhooks.product_url.url().is_some(),
        summary_url: config.webhooks.summary_url.as_ref().map(ToString::to_string),
        language: language(config),
        dedupe_window: config.server.dedupe_window,
    }
}

/// What may leave the machine without Tor, by configuration; the webhooks always do.
pub fn direct_ways(config: &Config) -> Vec<String> {
    let mut ways = Vec::new();
    for recipe in config.enabled_sites() {
        if recipe.via == Via::Direct {
            ways.push(format!("shop {}", recipe.name));
        } else if recipe.search.via == Via::Direct {
            ways.push(format!("search of shop {}", recipe.name));
        }
    }
    if config.catalogue.as_ref().is_some_and(|catalogue| catalogue.via == Via::Direct) {
        ways.push("catalogue".into());
    }
    ways
}

fn language(config: &Config) -> Language {
    match config.server.language {
        config::Language::Fr => Language::French,
        config::Language::En => Language::English,
    }
}

/// Where a changed configuration is put in. Each part holds the other end and takes a new value for what it starts next.
#[derive(Debug)]
pub struct Inlets {
    base: Base,
    gears: watch::Sender<Arc<Gear>>,
    batches: watch::Sender<Arc<batch::Settings>>,
    webhooks: watch::Sender<Arc<webhook::Settings>>,
    ingress: watch::Sender<Arc<ingress::Settings>>,
}

/// What every gear of this process has in common.
#[derive(Debug)]
struct Base {
    ledger: LedgerHandle,
    tor: TorGate,
    circuits: circuit::Settings,
    epoch: u64,
    floor: Arc<AtomicU64>,
    cores: Arc<Semaphore>,
    deadlines: Deadlines,
    robots: RobotsCache,
}

/// How soon the ledger is told again of new addresses, if it could not hear.
const READDRESS_AGAIN_AFTER: Duration = Duration::from_millis(500);

impl Inlets {
    /// Puts in a configuration that was checked. The order matters: a shop is known to the scrapers before a coordinator
    /// asks for it, and to both before a batch with it is accepted; and no outcome is kept unaddressed after its sender
    /// has a URL for it.
    pub async fn put(&self, config: &Config, secrets: &Secrets) {
        self.readdress(config).await;
        if let Some(control) = self.control() {
            control.set_password(secrets.control());
        }
        self.gears.send_replace(Arc::new(gear(config, &self.base, secrets.catalogue())));
        self.batches.send_replace(Arc::new(batch_settings(config)));
        self.webhooks.send_replace(Arc::new(webhook_settings(config, secrets.webhook())));
        self.ingress.send_replace(Arc::new(ingress_settings(config, secrets.token())));
    }

    /// The control port, for who ends the process.
    pub fn control(&self) -> Option<&Control> {
        self.base.tor.control()
    }

    /// Until the ledger has heard: to say it twice does no harm, and half a configuration would.
    async fn readdress(&self, config: &Config) {
        loop {
            let new = addressing(config);
            let told = self.base.ledger.write(move |store| {
                store.readdress(new);
                Ok(())
            });
            if told.await.is_ok() {
                return;
            }
            tokio::time::sleep(READDRESS_AGAIN_AFTER).await;
        }
    }
}

/// All parts, a handle on the ledger for the signals, and where a changed configuration is put in.
pub fn parts(
    config: &Config,
    secrets: &Secrets,
    opened: Opened,
    listener: tokio::net::TcpListener,
) -> Result<(Parts, LedgerHandle, Inlets), Exit> {
    let limits = Limits {
        queue_max: config.ledger.queue_max,
        group_max: config.ledger.group_max,
        reply_within: COMMIT_WITHIN,
    };
    let epoch = opened.report.epoch;
    let (handle, ledger) = ledger::handle(opened.reader, limits);
    let control =
        config.tor.control.map(|address| Control::new(address, config.tor.binding, secrets.control()));
    let tor = TorGate::new(config.tor.socks).controlled_by(control.clone());
    let tls = Tls::new(None).map_err(|error| complain_and(Exit::Escalated, format_args!("TLS: {error}")))?;
    let base = Base {
        ledger: handle.clone(),
        tor: tor.clone(),
        circuits: circuit::Settings { control, ..circuit::Settings::new(tor.clone(), tls) },
        epoch: epoch as u64,
        floor: Arc::default(),
        cores: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))),
        deadlines: Deadlines::default(),
        robots: RobotsCache::default(),
    };
    let (gears_tx, gear) = watch::channel(Arc::new(gear(config, &base, secrets.catalogue())));
    let (batches_tx, batch_settings) = watch::channel(Arc::new(batch_settings(config)));
    let (webhooks_tx, webhook_settings) =
        watch::channel(Arc::new(webhook_settings(config, secrets.webhook())));
    let (ingress_tx, ingress_settings) = watch::channel(Arc::new(ingress_settings(config, secrets.token())));
    let (scrapers, pool) = pool::handle();
    let (accepted_tx, accepted) = watch::channel(0);
    let (batches_handle, batches) = batch::supervisor::handle();
    let (webhook_handle, webhook) = webhook::handle(webhook::Args {
        ledger: handle.clone(),
        settings: webhook_settings,
        claims_max: config.ledger.claims_max,
    })
    .map_err(|error| complain_and(Exit::Escalated, format_args!("the webhook client: {error}")))?;
    let ingress = ingress::Ingress::new(ingress::Args {
        ledger: handle.clone(),
        settings: ingress_settings,
        connections: descriptors::for_connections(
            config.server.connections_max,
            Needs { scrapers: config.tor.circuits, webhooks_at_once: config.webhooks.concurrency },
        ),
        status: tor_status(&tor, config.tor.binding),
        roster: base.circuits.roster.clone(),
        batches: accepted_tx,
    });
    let parts = Parts {
        ledger,
        store: Mutex::new(Some(Box::new(opened.store))),
        webhook,
        webhook_handle,
        pool,
        scrapers: scrapers.clone(),
        batches,
        batches_handle,
        batches_arguments: batch::supervisor::Arguments {
            epoch,
            ledger: handle.clone(),
            scrapers,
            settings: batch_settings,
            accepted,
        },
        gear,
        ingress,
        listener: Some(Arc::new(listener)),
    };
    let inlets =
        Inlets { base, gears: gears_tx, batches: batches_tx, webhooks: webhooks_tx, ingress: ingress_tx };
    Ok((parts, handle, inlets))
}

fn gear(config: &Config, base: &Base, token: Option<String>) -> Gear {
    let shops = config.enabled_sites().into_iter().map(|recipe| {
        let name = SiteName::from(recipe.name.as_str());
        (name, Shop::new(recipe))
    });
    let catalogue = config.catalogue.clone().map(|catalogue| CatalogueGear {
        limits: ShopLimits {
            interval: catalogue.rate.interval(),
            // The owner knows what the server can bear, and said so.
            adaptive: false,
            concurrency: catalogue.concurrency as u32,
            via: catalogue.via,
            // It is the owner's own server, and blocks nobody.
            on_block: OnBlock::Wait,
        },
        catalogue,
        token,
    });
    let fetch = &config.fetch;
    Gear {
        floor: Arc::clone(&base.floor),
        scrapers: config.tor.circuits,
        ledger: base.ledger.clone(),
        tor: base.tor.clone(),
        probe_timeout: config.tor.probe_timeout,
        hedge_percent: config.tor.hedge_percent,
        shops: shops.collect(),
        catalogue,
        circuits: base.circuits.clone(),
        epoch: base.epoch,
        wear: WearLimits { age_max: config.tor.age_max, uses_max: config.tor.uses_max },
        block_memory: config.tor.block_memory,
        fetch: FetchLimits::from(fetch),
        visit_deadline: fetch.visit_deadline,
        deadlines: base.deadlines.clone(),
        robots: base.robots.clone(),
        extract: config.extract,
        cores: Arc::clone(&base.cores),
    }
}

fn webhook_settings(config: &Config, secret: Option<webhook::Secret>) -> webhook::Settings {
    let webhooks = &config.webhooks;
    webhook::Settings {
        product_url: webhooks.product_url.url().cloned(),
        summary_url: webhooks.summary_url.clone(),
        allowed_hosts: webhooks.hosts.clone(),
        secret,
        timeout: webhooks.timeout,
        concurrency: webhooks.concurrency,
        park_after: webhooks.park_after,
        patience: webhooks.patience,
        backoff_min: webhooks.backoff_min,
        backoff_max: webhooks.backoff_max,
        parked_probe_max: webhooks.parked_probe_max,
        summary_wait: webhooks.summary_wait,
    }
}

fn ingress_settings(config: &Config, token: Option<ingress::Token>) -> ingress::Settings {
    let server = &config.server;
    ingress::Settings {
        language: language(config),
        hosts: server.hosts.iter().filter_map(|name| ingress::Authority::parse(name)).collect(),
        allow_from: server.allow_from.clone(),
        token,
        sites: config.enabled_sites().iter().map(|recipe| recipe.name.as_str().into()).collect(),
        direct: direct_ways(config),
        circuits: config.tor.circuits,
        ignore_prefixes: config.batches.ignore_prefixes.clone(),
        webhook_hosts: config.webhooks.hosts.clone(),
        limits: ingress::Limits {
            products_max: server.products_max,
            body_bytes_max: server.body_bytes_max,
            metadata_bytes_max: server.metadata_bytes_max,
            header_bytes_max: server.header_bytes_max,
            header_timeout: server.header_timeout,
            body_timeout: server.body_timeout,
            request_timeout: server.request_timeout,
        },
    }
}

fn batch_settings(config: &Config) -> batch::Settings {
    batch::Settings {
        shops: config.enabled_sites().iter().map(|recipe| recipe.name.as_str().into()).collect(),
        catalogue: config.catalogue.is_some(),
        attempts_max: config.fetch.attempts_max,
        catalogue_attempts_max: config.catalogue.as_ref().map_or(1, |catalogue| catalogue.attempts_max),
        retry_min: config.fetch.retry_min,
        retry_max: config.fetch.retry_max,
        window: config.batches.window,
    }
}

/// What `/readyz` tells of Tor; it never changes its status.
fn tor_status(tor: &TorGate, binding: Binding) -> watch::Receiver<serde_json::Value> {
    let mut states = tor.watch();
    let mut controls = tor.control().map(Control::watch);
    let words = move |state: &TorState, control: Option<&ControlState>| {
        let mut words = match state {
            TorState::Unknown => serde_json::json!({"tor": "unknown"}),
            TorState::There => serde_json::json!({"tor": "there"}),
            TorState::Away { reason, .. } => serde_json::json!({"tor": "away", "reason": reason}),
        };
        words["binding"] = binding.as_str().into();
        words["control"] = match control {
            None => serde_json::Value::Null,
            Some(ControlState::Unknown) => serde_json::json!({"state": "unknown"}),
            Some(ControlState::Away { reason }) => serde_json::json!({"state": "away", "reason": reason}),
            Some(ControlState::There(there)) => serde_json::json!({
                "state": "there",
                "version": there.version(),
                "conflux": there.conflux,
                "bootstrap": there.bootstrap.as_ref().map(|bootstrap| serde_json::json!({
                    "progress": bootstrap.progress, "summary": bootstrap.summary, "trouble": bootstrap.trouble,
                })),
            }),
        };
        words
    };
    let (tx, rx) =
        watch::channel(words(&states.borrow(), controls.as_ref().map(|it| it.borrow().clone()).as_ref()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                () = Control::changed(controls.as_mut()) => {}
            }
            let control = controls.as_mut().map(|controls| controls.borrow_and_update().clone());
            let now = words(&states.borrow_and_update(), control.as_ref());
            if tx.send(now).is_err() {
                return;
            }
        }
    });
    rx
}
