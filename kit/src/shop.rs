//! Demonstration shops with the structures of the three real ones, which record every request and misbehave on request.
//!
//! A shop listens on one port of several addresses. In a private Tor network each exit resolves the shop's name to
//! another of them, so that the local address of a request tells the exit it came through ([`Hit::local`]).

pub mod catalogue;
mod conduct;
mod structure;
mod wary;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Method};
use hyper::{Request, Response, body::Incoming};

pub use self::{
    catalogue::{Catalogue, Product},
    conduct::{BOMB_BYTES, Conduct, NESTED_BYTES, When},
    structure::{Purpose, ShopKind},
    wary::{Wariness, Wary},
};
use self::{
    catalogue::{DECOY, gtin14},
    conduct::Variant,
    structure::{Ask, Document},
};
use crate::{
    Result,
    records::Records,
    server::{self, Answering, Content, HungUp, Listeners, Wire},
};

/// One request to a shop.
#[derive(Clone, Debug)]
pub struct Hit {
    /// Its place among all requests to this shop, from 0.
    pub order: usize,
    /// When it had come whole.
    pub at: Instant,
    /// The address of the shop it reached: tells the exit.
    pub local: IpAddr,
    /// Who sent it.
    pub peer: SocketAddr,
    /// Its method.
    pub method: Method,
    /// Its path with its query.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// What it is for.
    pub purpose: Purpose,
    /// The barcode it asks for, as it was written.
    pub ean: Option<String>,
    /// How it is answered.
    pub conduct: Conduct,
}

impl Hit {
    /// Whether it asks for this barcode, compared as 14 digits.
    pub fn is_about(&self, ean: &str) -> bool {
        self.ean.as_deref().is_some_and(|own| gtin14(own) == gtin14(ean))
    }

    /// A header as text; `None` if it is missing or no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A shop. Dropping it closes its port and cuts its connections.
#[derive(Debug)]
pub struct Shop {
    kind: ShopKind,
    listeners: Listeners,
    counter: Arc<Counter>,
    port: u16,
}

/// What the connections of a shop share.
#[derive(Debug)]
struct Counter {
    kind: ShopKind,
    catalogue: Arc<Catalogue>,
    hits: Records<Hit>,
    /// Those for `/robots.txt`, which come by themselves and would disturb every count.
    robots: Records<Hit>,
    rules: Mutex<Vec<Rule>>,
}

#[derive(Debug)]
struct Rule {
    when: When,
    conduct: Conduct,
    /// Requests that had come before the rule was made: they do not count for those who count.
    hits_before: usize,
}

impl Shop {
    /// Opens a shop on one free port of all these addresses.
    pub fn start(kind: ShopKind, catalogue: Arc<Catalogue>, ips: &[IpAddr]) -> Result<Self> {
        let counter = Arc::new(Counter {
            kind,
            catalogue,
            hits: Records::default(),
            robots: Records::default(),
            rules: Mutex::default(),
        });
        let listeners = Listeners::http(ips, Arc::clone(&counter))?;
        let port = server::first(listeners.addresses())?.port();
        Ok(Self { kind, listeners, counter, port })
    }

    /// Opens a shop on 127.0.0.1 only.
    pub fn start_here(kind: ShopKind, catalogue: Arc<Catalogue>) -> Result<Self> {
        Self::start(kind, catalogue, &[Ipv4Addr::LOCALHOST.into()])
    }

    /// Whose structure it has.
    pub fn kind(&self) -> ShopKind {
        self.kind
    }

    /// Its port, on all of its addresses.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its name, which only the exits (and the proxy that stands for tor) can resolve.
    pub fn host(&self) -> String {
        format!("{}.test", self.kind.name())
    }

    /// `http://NAME.test:PORT`, for `base` in the daemon's configuration.
    pub fn base(&self) -> String {
        format!("http://{}:{}", self.host(), self.port)
    }

    /// `http://127.0.0.1:PORT`, for `base` with `via = "direct"`.
    pub fn direct_base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The path of a product's page; `None` if the shop does not know the barcode.
    pub fn page_path(&self, ean: &str) -> Option<String> {
        Some(self.kind.page_path(self.counter.catalogue.product(ean)?))
    }

    /// Behaves so for these requests. The rule that was made last and fits decides.
    pub fn behave(&self, when: When, conduct: Conduct) {
        let rule = Rule { when, conduct, hits_before: self.counter.hits.len() };
        self.counter.rules().push(rule);
    }

    /// Forgets all rules: everything is normal again.
    pub fn behave_well(&self) {
        self.counter.rules().clear();
    }

    /// Closes the port and cuts every connection: new ones are refused when this returns.
    pub async fn stop_listening(&self) {
        self.listeners.stop_listening().await;
    }

    /// Listens again on the same port.
    pub fn listen_again(&self) -> Result<()> {
        self.listeners.listen_again()
    }

    /// A copy of every request for `/robots.txt` so far.
    pub fn robots_hits(&self) -> Vec<Hit> {
        self.counter.robots.all()
    }

    /// Every request but those for `/robots.txt`, for looking and waiting.
    pub fn records(&self) -> &Records<Hit> {
        &self.counter.hits
    }

    /// A copy of every request so far, but those for `/robots.txt`.
    pub fn hits(&self) -> Vec<Hit> {
        self.counter.hits.all()
    }

    /// Waits until `enough` holds for its requests.
    pub async fn wait_until(
        &self,
        enough: impl FnMut(&[Hit]) -> bool + Send,
        within: Duration,
    ) -> Result<Vec<Hit>> {
        self.counter.hits.wait_until(enough, within).await
    }
}

/// One shop of each kind, with one catalogue.
#[derive(Debug)]
pub struct Shops {
    /// In the order of [`ShopKind::ALL`].
    pub all: [Shop; 3],
}

impl Shops {
    /// Opens all three on these addresses, each on its own port.
    pub fn start(catalogue: Catalogue, ips: &[IpAddr]) -> Result<Self> {
        let catalogue = Arc::new(catalogue);
        let open = |kind| Shop::start(kind, Arc::clone(&catalogue), ips);
        let [first, second, third] = ShopKind::ALL.map(open);
        Ok(Self { all: [first?, second?, third?] })
    }

    /// Opens all three on 127.0.0.1 only.
    pub fn start_here(catalogue: Catalogue) -> Result<Self> {
        Self::start(catalogue, &[Ipv4Addr::LOCALHOST.into()])
    }

    /// The shop of one kind.
    pub fn of(&self, kind: ShopKind) -> &Shop {
        match kind {
            ShopKind::Cocooncenter => &self.all[0],
            ShopKind::Pharmagdd => &self.all[1],
            ShopKind::Drakkars => &self.all[2],
        }
    }

    /// All three behave so for these requests.
    pub fn behave(&self, when: &When, conduct: &Conduct) {
        self.all.iter().for_each(|shop| shop.behave(when.clone(), conduct.clone()));
    }
}

impl Counter {
    fn rules(&self) -> std::sync::MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().expect("a closure of a test panicked while it looked at a request")
    }

    /// Records a request, with how it is answered. The lock on the rules keeps the order.
    fn record(&self, mut hit: Hit) -> Hit {
        let rules = self.rules();
        let hits = if hit.purpose == Purpose::Robots { &self.robots } else { &self.hits };
        hit.order = hits.len();
        if let Some(rule) = rules.iter().rev().find(|rule| rule.when.fits(&hit)) {
            hit.conduct = self.decided(rule, &hit);
        }
        hits.push(hit.clone());
        hit
    }

    fn decided(&self, rule: &Rule, hit: &Hit) -> Conduct {
        let free = match rule.conduct {
            Conduct::BlockedAfter(free) => free,
            Conduct::Wary(wariness) => {
                let mut wary = Wary::new(wariness);
                let refused = self.hits.with(|hits| {
                    let before = hits[rule.hits_before..].iter().filter(|other| rule.when.fits(other));
                    before.chain([hit]).fold(false, |_, hit| wary.refuses(hit.local))
                });
                return if refused { Conduct::Status(403) } else { Conduct::Normal };
            }
            ref other => return other.clone(),
        };
        let counts = |other: &&Hit| other.local == hit.local && rule.when.fits(other);
        let came = self.hits.with(|hits| hits[rule.hits_before..].iter().filter(counts).count());
        if came < free { Conduct::Normal } else { Conduct::Status(403) }
    }

    /// What a shop in good order answers.
    fn document(&self, hit: &Hit, variant: Variant) -> Document {
        let decoy = || self.catalogue.product(DECOY).cloned().unwrap_or_else(|| Product::invented(DECOY));
        let path = hit.path.split('?').next().unwrap_or_default();
        match (hit.purpose, variant) {
            (Purpose::Robots, _) => structure::other_page(404, "Page introuvable"),
            (Purpose::Other, _) => match path {
                "/" => structure::other_page(200, "Accueil"),
                _ => structure::other_page(404, "Page introuvable"),
            },
            // The real ones answer with a page to what is no request of their own script.
            (Purpose::Search, _) if !self.is_from_script(hit) => structure::other_page(200, "Recherche"),
            (Purpose::Search, Variant::Right) => {
                let ean = hit.ean.as_deref().unwrap_or_default();
                self.kind.search_answer(&self.catalogue.search(self.kind, ean), host(hit))
            }
            (Purpose::Search, Variant::Wrong) => self.kind.search_answer(&[&decoy()], host(hit)),
            (Purpose::Search, Variant::Nothing) => self.kind.search_answer(&[], host(hit)),
            (Purpose::Page, Variant::Wrong) => self.kind.page(&decoy()),
            (Purpose::Page, Variant::Nothing) => structure::other_page(404, "Page introuvable"),
            (Purpose::Page, Variant::Right) => match structure::product_at(&self.catalogue, path) {
                Some(product) => self.kind.page(product),
                None => structure::other_page(404, "Page introuvable"),
            },
        }
    }

    fn is_from_script(&self, hit: &Hit) -> bool {
        let marked = hit.header("x-requested-with") == Some("XMLHttpRequest");
        match self.kind {
            ShopKind::Cocooncenter => marked && hit.method == Method::POST,
            ShopKind::Pharmagdd => marked && hit.method == Method::GET,
            ShopKind::Drakkars => hit.method == Method::GET,
        }
    }
}

fn host(hit: &Hit) -> &str {
    hit.header("host").unwrap_or("drakkars.test")
}

impl Answering for Counter {
    async fn answer(
        self: Arc<Self>,
        wire: Arc<Wire>,
        request: Request<Incoming>,
    ) -> Result<Response<Content>, HungUp> {
        let (head, body) = request.into_parts();
        let body = server::collect(body).await?;
        let text = String::from_utf8_lossy(&body);
        let ask =
            Ask { path: head.uri.path(), query: head.uri.query().unwrap_or_default(), body: text.as_ref() };
        let hit = self.record(Hit {
            order: 0,
            at: Instant::now(),
            local: wire.local.ip(),
            peer: wire.peer,
            purpose: self.kind.purpose(ask.path),
            ean: self.kind.ean(&ask),
            path: head.uri.to_string(),
            method: head.method,
            headers: head.headers,
            body: body.clone(),
            conduct: Conduct::Normal,
        });
        conduct::perform(hit.conduct.clone(), &hit, &wire, |variant| self.document(&hit, variant)).await
    }
}

#[cfg(test)]
mod tests;
