//! What a visit does: search, candidates, page, extraction, check of the GTIN; or the question to the catalogue.

mod manners;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;

use self::manners::Asked;
use super::actor::{CatalogueGear, Gear, Shop};
use super::circuit::{By, Circuit};
use super::deadlines::Watched;
use super::errand::Errand;
use super::fetch::{FetchError, Redirects, Verdict};
use super::pace::Pace;
use super::suspension::Went;
use super::tor::TorState;
use super::{Announced, CATALOGUE, Slow, Ticket, Visit};
use crate::batch::machine::{Again, BLOCKED, VisitEnd};
use crate::descriptors;
use crate::failpoint::{self, Point};
use crate::ledger::LedgerError;
use crate::ledger::store::{Claim, Store};
use crate::markup::Unreadable;
use crate::model::page::{Page, Request, Via};
use crate::model::way::Way;
use crate::model::{Gtin, ProductKey, Reason, SiteName};
use crate::recipe::extract::{self, Match};
use crate::recipe::{Block, Expected, Found, RecipeError, search};
use crate::supervisor::policy::Roll;
use crate::telemetry::Event;

/// A scraper's tools, for one visit.
pub(super) struct Call<'a> {
    pub gear: &'a Arc<Gear>,
    pub circuit: &'a mut Circuit,
    pub pace: Option<Pace>,
    pub drain: &'a mut watch::Receiver<Option<Instant>>,
    /// Told of every deadline.
    pub watched: &'a Watched,
}

/// Why a visit came to no result.
#[derive(Debug)]
enum Stop {
    /// The attempt is charged.
    Failed { reason: Reason, again: Again },
    /// The shop said no, and its circuit is already another.
    Refused { rule: String, way: Way, again: Again },
    /// Tor is not there, or no descriptor: nothing is charged.
    PutBack,
}

impl<'a> Call<'a> {
    /// Does the visit and answers its ticket; how it went.
    pub async fn run(&mut self, mut visit: Visit) -> Went {
        let mark = Mark::of(&visit, self.gear);
        let in_flight = mark.announced.enter();
        // A slow write is the ledger's affair, whose own sign the watchdog has.
        self.watched.waits();
        let end = match mark.write().await {
            Ok(true) => None,
            Ok(false) => Some(VisitEnd::Void),
            // Not known to be on disk: nothing may be dialled.
            Err(_) => Some(VisitEnd::Lost { dialled: false }),
        };
        if let Some(end) = end {
            visit.ticket.answer(end);
            return Went::Nowhere;
        }
        self.circuit.serve(Some(visit.site.clone()));
        self.circuit.avoid_blocked_exit();
        let begun = visit.ticket.begin(VisitFacts::of(&visit), self.circuit.id().to_string());
        let Some(started) = begun else {
            self.circuit.serve(None);
            return Went::Nowhere;
        };
        let overtaken = visit.ticket.overtaken();
        let end = tokio::select! {
            biased;
            () = overtaken => None,
            end = self.visit_or_put_back(&mut visit, started) => Some(end),
        };
        if end.is_none() {
            self.circuit.note_overtaken();
        }
        visit.ticket.went_by(self.circuit.visited_by());
        self.circuit.serve(None);
        // Its twin has the answer, or the one whose twin it is: the exchange is dropped, and nothing is charged.
        let Some(end) = end else { return Went::Nowhere };
        failpoint::hit_about(Point::ScraperFetched, &[&visit.ean, &visit.site]);
        if end.is_answer() {
            self.watched.is_answered();
        }
        let went = went(&end);
        if let Went::LetIn | Went::Refused { .. } = went {
            self.circuit.note_success();
        }
        let reply = visit.ticket.over(end);
        drop(in_flight);
        if visit.suspect {
            self.watched.waits();
            mark.clear_after_the_last().await;
        }
        drop(reply); // Now it is heard of.
        went
    }

    /// Ends at once, uncharged, when Tor is found away or the drain's time for visits is over.
    async fn visit_or_put_back(&mut self, visit: &mut Visit, started: Instant) -> VisitEnd {
        let mut tor = self.gear.tor.watch();
        let mut drain = self.drain.clone();
        let through_tor = self.via(&visit.site) == Via::Tor;
        let work = self.visit(visit, started);
        tokio::select! {
            biased;
            end = work => end,
            () = async { let _ = tor.wait_for(|state| matches!(state, TorState::Away { .. })).await; }, if through_tor => {
                VisitEnd::PutBack
            }
            () = over(&mut drain) => VisitEnd::PutBack,
        }
    }

    fn via(&self, site: &str) -> Via {
        match (self.gear.shops.get(site), &self.gear.catalogue) {
            (Some(shop), _) => shop.recipe.waits_for(),
            (None, Some(catalogue)) => catalogue.limits.via,
            (None, None) => Via::Tor,
        }
    }

    async fn visit(&mut self, visit: &mut Visit, started: Instant) -> VisitEnd {
        let gear = Arc::clone(self.gear);
        let result = if &*visit.site == CATALOGUE {
            match &gear.catalogue {
                Some(catalogue) => {
                    self.ask_catalogue(catalogue, &visit.gtin, &mut visit.ticket, started).await
                }
                None => Ok(VisitEnd::NoCatalogue),
            }
        } else {
            match gear.shops.get(&visit.site) {
                Some(shop) => self.look_up(shop, &visit.gtin, &mut visit.ticket, started).await,
                None => Ok(VisitEnd::removed()),
            }
        };
        match result {
            Ok(end) => end,
            Err(Stop::Failed { reason, again }) => VisitEnd::Failed { reason, again },
            Err(Stop::Refused { rule, way, again }) => VisitEnd::Refused { rule, way, again },
            Err(Stop::PutBack) => VisitEnd::PutBack,
        }
    }

    async fn ask_catalogue(
        &mut self,
        gear: &CatalogueGear,
        gtin: &Gtin,
        ticket: &mut Ticket,
        started: Instant,
    ) -> Result<VisitEnd, Stop> {
        let catalogue = &gear.catalogue;
        let mut request = Request::get(catalogue.url(gtin));
        request.headers.push(("Accept".into(), "application/json".into()));
        if let Some(token) = &gear.token {
            request.headers.push(("Authorization".into(), format!("Bearer {token}")));
        }
        let mut errand = self.errand(CATALOGUE, catalogue.via, started + catalogue.timeout);
        let own = [authority(&request.url)];
        let redirects = Redirects { hosts: &own, blocks: None };
        let page = self.fetch(&request, &mut errand, ticket, redirects).await?;
        if !(200..300).contains(&page.status) {
            return Err(failed("status", format!("status {}", page.status), Again::Soon));
        }
        let answer: serde_json::Value = serde_json::from_slice(&page.bytes)
            .map_err(|error| failed("answer", format!("not JSON: {error}"), Again::Soon))?;
        match count(&catalogue.total.texts(&answer)) {
            Some(0) => Ok(VisitEnd::NotSold),
            Some(_) => Ok(VisitEnd::Sold),
            None => Err(failed("answer", "no number where catalogue.total says", Again::Soon)),
        }
    }

    async fn look_up(
        &mut self,
        shop: &Shop,
        gtin: &Gtin,
        ticket: &mut Ticket,
        started: Instant,
    ) -> Result<VisitEnd, Stop> {
        let recipe = &shop.recipe;
        let mut errand = self.errand(&recipe.name, recipe.search.via, started + self.gear.visit_deadline);
        let redirects = Redirects { hosts: &shop.hosts, blocks: Some(&recipe.blocks) };
        let search = recipe.search_request(gtin);
        self.heed_robots(shop, Asked::Search(&search.url), &mut errand, ticket).await?;
        let answer = self.fetch(&search, &mut errand, ticket, redirects).await?;
        self.refuse_blocked(recipe.search.via, recipe.blocks.of_page(&answer, recipe.expected_of_search()))?;
        self.require_success(&answer)?;
        let limits = self.gear.extract;
        let parsed = Arc::clone(recipe);
        let candidates = self.parse(move || search::candidates(&parsed, &answer, &limits)).await?;

        errand.via = recipe.via;
        let mut mismatch = None;
        for url in candidates {
            self.heed_robots(shop, Asked::Page(&url), &mut errand, ticket).await?;
            errand.pause(recipe.pause, Roll::by_chance()).await;
            let page = self.fetch(&recipe.page_request(&url), &mut errand, ticket, redirects).await?;
            self.refuse_blocked(recipe.via, recipe.blocks.of_page(&page, Expected::Page))?;
            if matches!(page.status, 404 | 410) {
                continue; // The search knows a page that is gone.
            }
            self.require_success(&page)?;
            let (parsed, asked, page_url) = (Arc::clone(recipe), gtin.clone(), page.url.clone());
            let read = move || -> Result<_, RecipeError> {
                let extracted = extract::extract(&parsed, &page, &limits)?;
                Ok((extract::check(&asked, &extracted, parsed.unverified), extracted))
            };
            let (verdict, extracted) = self.parse(read).await?;
            let ean = gtin.padded();
            let found = |verified| Found { ean: &ean, url: &page_url, original_ean: None, verified };
            match verdict {
                Match::Verified => return Ok(VisitEnd::Found(recipe.site_object(found(true), &extracted))),
                Match::Unverified => {
                    return Ok(VisitEnd::Found(recipe.site_object(found(false), &extracted)));
                }
                Match::Other(other) => {
                    mismatch.get_or_insert(format!("asked {ean}, the page is for {}", other.padded()));
                }
                Match::NoGtin => {
                    mismatch.get_or_insert("no gtin".to_owned());
                }
            }
        }
        Ok(mismatch.map_or(VisitEnd::NotFound, |detail| VisitEnd::Mismatch { detail }))
    }

    fn errand(&self, site: &str, via: Via, deadline: Instant) -> Errand<'a> {
        let pace = self.pace.clone();
        let pace = pace.unwrap_or_else(|| Pace::new(Duration::ZERO, Instant::now()));
        Errand::of_visit(site, via, pace, deadline, self.watched)
    }

    /// One request in its turn, with what its failure means.
    async fn fetch(
        &mut self,
        request: &Request,
        errand: &mut Errand<'_>,
        ticket: &mut Ticket,
        redirects: Redirects<'_>,
    ) -> Result<Page, Stop> {
        ticket.dialled(Instant::now());
        match self.circuit.fetch_in_turn(request, &self.gear.fetch, redirects, errand).await {
            Ok(page) => {
                self.heed_answer(page.status, errand);
                Ok(page)
            }
            Err(FetchError::Blocked { block }) => Err(self.refused(&block, errand.via)),
            Err(error) => Err(self.stop_for(&error, request, errand.via).await),
        }
    }

    /// Rule 4: a visit that timed out, or brought not one byte, is charged only once Tor is shown to be there now: it may
    /// have been paused while the time ran.
    async fn stop_for(&mut self, error: &FetchError, request: &Request, via: Via) -> Stop {
        if error.is_lack() {
            descriptors::wait().await;
            return Stop::PutBack;
        }
        if let FetchError::Tor(away) = error {
            self.gear.tor.lose(away, None);
            return Stop::PutBack;
        }
        if let FetchError::NoOtherExit { blocked: true, .. } = error {
            // As good as asked and refused: what a shop that blocks every exit is suspended for.
            let (rule, way) = (error.to_string(), self.circuit.way(via));
            return Stop::Refused { rule, way, again: Again::Soon };
        }
        if via == Via::Tor {
            let host = request.url.host_str().unwrap_or_default();
            let was_there = self.gear.tor.was_there(error, host, self.gear.probe_timeout).await;
            if let Err((away, prove_with)) = was_there {
                if away.lack {
                    descriptors::wait().await;
                }
                self.gear.tor.lose(&away, prove_with);
                return Stop::PutBack;
            }
        }
        let again = match error.verdict() {
            Verdict::RetryHere => {
                self.circuit.note_failure();
                Again::Soon
            }
            Verdict::RetryElsewhere => {
                self.change_circuit(error.kind());
                Again::Soon
            }
            Verdict::Later(after) => Again::After(after),
            Verdict::Never => Again::Never,
        };
        Stop::Failed { reason: Reason::new(error.kind(), with_causes(error)), again }
    }

    fn refuse_blocked(&mut self, via: Via, block: Option<Block>) -> Result<(), Stop> {
        block.map_or(Ok(()), |block| Err(self.refused(&block, via)))
    }

    /// The shop said no to what came by this circuit: the next visit leaves by another.
    fn refused(&mut self, block: &Block, via: Via) -> Stop {
        let again = self.when_the_shop_says();
        let way = self.circuit.way(via);
        match via {
            Via::Tor => {
                self.circuit.note_block(self.gear.block_memory);
                self.change_circuit("blocked");
            }
            // It is this machine that was refused; the circuit had no part in it.
            Via::Direct => {}
        }
        Stop::Refused { rule: block.to_string(), way, again }
    }

    /// What the last answer's `Retry-After` asked for (RFC 9110, 10.2.3), else the schedule.
    fn when_the_shop_says(&self) -> Again {
        self.circuit.retry_after().map_or(Again::Soon, Again::After)
    }

    fn require_success(&self, page: &Page) -> Result<(), Stop> {
        match page.status {
            200..=299 => Ok(()),
            // The shop's own trouble: it may be over soon.
            status @ (429 | 500..=599) => {
                Err(failed("status", format!("status {status}"), self.when_the_shop_says()))
            }
            status => Err(failed("status", format!("status {status}"), Again::Never)),
        }
    }

    fn change_circuit(&mut self, reason: &str) {
        Event::CircuitRetired { circuit: &self.circuit.id().to_string(), reason }.emit();
        self.circuit.rotate();
    }

    /// Parses on a blocking thread, as many at once as there are cores.
    async fn parse<T, F>(&mut self, work: F) -> Result<T, Stop>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, RecipeError> + Send + 'static,
    {
        let core = Arc::clone(&self.gear.cores).acquire_owned().await;
        let result = tokio::task::spawn_blocking(move || {
            let _core = core;
            work()
        })
        .await;
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                if let RecipeError::Page(Unreadable::Truncated(_)) = error {
                    self.circuit.note_failure(); // An exit that died looks like a clean end.
                }
                Err(failed(error.kind(), error.to_string(), again_after(&error)))
            }
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

/// Whether the same page may be read at another attempt.
fn again_after(error: &RecipeError) -> Again {
    match error {
        // An exit that died looks like a clean end: another attempt may bring all of it.
        RecipeError::Page(Unreadable::Truncated(_)) => Again::Soon,
        // The time is that of the wall, as the watchdog's is: a machine that is busy with others makes any page slow. One
        // that is slow by itself is so at each attempt, and those are few.
        RecipeError::Page(Unreadable::TooSlow(_)) => Again::Soon,
        RecipeError::Page(Unreadable::TooDeep(_) | Unreadable::TooLarge(_)) | RecipeError::Answer(_) => {
            Again::Never
        }
    }
}

/// The first number among what a path gave.
fn count(texts: &[String]) -> Option<u64> {
    texts.first()?.parse().ok()
}

/// `host:port`, as redirects are compared.
pub(super) fn authority(url: &Url) -> String {
    let port = url.port_or_known_default().unwrap_or_default();
    format!("{}:{port}", url.host_str().unwrap_or_default())
}

fn failed(kind: &str, detail: impl Into<String>, again: Again) -> Stop {
    Stop::Failed { reason: Reason::new(kind, detail), again }
}

/// An error and what is behind it: "agree on TLS with the shop: certificate expired".
fn with_causes(error: &FetchError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Returns when the drain's time for visits is over; never without a drain.
async fn over(drain: &mut watch::Receiver<Option<Instant>>) {
    let until = drain.wait_for(Option::is_some).await.map(|until| *until);
    match until {
        Ok(Some(until)) => tokio::time::sleep_until(until).await,
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

/// The mark in the ledger that a product is being visited: what a death of the process is charged to.
struct Mark {
    key: ProductKey,
    claim: Claim,
    suspect: bool,
    announced: Arc<Announced>,
    gear: Arc<Gear>,
}

impl Mark {
    fn of(visit: &Visit, gear: &Arc<Gear>) -> Self {
        let announced = Arc::clone(&visit.announced);
        Self { key: visit.key, claim: visit.claim, suspect: visit.suspect, announced, gear: Arc::clone(gear) }
    }

    /// Before the first dial; a suspect says so for each visit. `false`: the claim is lost.
    async fn write(&self) -> Result<bool, LedgerError> {
        let (key, claim, ledger) = (self.key, self.claim, &self.gear.ledger);
        if self.suspect {
            // First: whoever starts after this suspect must see that its own mark is gone.
            let floor = self.gear.floor.fetch_add(1, Ordering::AcqRel) + 1;
            let _writing = self.announced.writing.lock().await;
            let start = move |store: &mut dyn Store| {
                store.rest_all_but(key)?;
                store.start(key, claim)
            };
            return self.noted(ledger.write(start).await?, floor);
        }
        let _writing = self.announced.writing.lock().await;
        let floor = self.gear.floor.load(Ordering::Acquire);
        if self.announced.holds(floor) {
            return Ok(true);
        }
        self.noted(ledger.write(move |store| store.start(key, claim)).await?, floor)
    }

    fn noted(&self, held: bool, floor: u64) -> Result<bool, LedgerError> {
        if held {
            self.announced.set(floor);
        }
        Ok(held)
    }

    /// A suspect is at rest when the last of its visits side by side has ended, and not before.
    async fn clear_after_the_last(&self) {
        let _writing = self.announced.writing.lock().await;
        if self.announced.in_flight.load(Ordering::Acquire) == 0 {
            let (key, claim) = (self.key, self.claim);
            // At worst it is charged with a death that was not its own.
            let _ = self.gear.ledger.write(move |store| store.rest(key, claim)).await;
        }
    }
}

/// What an end says of its shop.
fn went(end: &VisitEnd) -> Went {
    match end {
        VisitEnd::Found(_)
        | VisitEnd::NotFound
        | VisitEnd::Mismatch { .. }
        | VisitEnd::Sold
        | VisitEnd::NotSold => Went::LetIn,
        VisitEnd::Failed { .. } => Went::Astray,
        VisitEnd::Refused { rule, way, .. } => Went::Refused { way: way.clone(), rule: rule.clone() },
        VisitEnd::NoCatalogue | VisitEnd::PutBack | VisitEnd::Lost { .. } | VisitEnd::Void => Went::Nowhere,
    }
}

/// What the log says of a visit.
pub(super) struct VisitFacts {
    batch_id: String,
    index: u64,
    ean: Box<str>,
    site: SiteName,
    attempt: u64,
}

impl VisitFacts {
    pub(super) fn of(visit: &Visit) -> Self {
        Self {
            batch_id: visit.batch_id.to_string(),
            index: visit.key.index.into(),
            ean: visit.ean.clone(),
            site: visit.site.clone(),
            attempt: visit.attempt.into(),
        }
    }

    pub(super) fn tell_started(&self, circuit: &str) {
        let Self { batch_id, index, ean, site, attempt } = self;
        Event::VisitStarted { batch_id, index: *index, ean, site, circuit, attempt: *attempt }.emit();
    }

    /// `first`: the circuit that is slow.
    pub(super) fn tell_hedged(&self, circuit: &str, first: &str, slow: &Slow) {
        let Self { batch_id, index, ean, site, attempt } = self;
        let (index, attempt) = (*index, *attempt);
        let (after_ms, median_ms) = (slow.spent.as_millis() as u64, slow.median.as_millis() as u64);
        Event::VisitHedged { batch_id, index, ean, site, circuit, first, attempt, after_ms, median_ms }
            .emit();
    }

    /// `by`: what it really went through, where that is known; a blocked exit may have been left before. `won_by`: whose
    /// end it is, if it was hedged.
    pub(super) fn tell_ended(
        &self,
        circuit: &str,
        by: Option<&By>,
        end: &VisitEnd,
        took: Duration,
        won_by: Option<&str>,
    ) {
        let Self { batch_id, index, ean, site, attempt } = self;
        let (outcome, detail) = match end {
            VisitEnd::Found(_) => ("found", ""),
            VisitEnd::NotFound => ("not_found", ""),
            VisitEnd::Mismatch { detail } => ("ean_mismatch", detail.as_str()),
            VisitEnd::Sold => ("sold", ""),
            VisitEnd::NotSold => ("not_sold", ""),
            VisitEnd::NoCatalogue => ("no_catalogue", ""),
            VisitEnd::Failed { reason, .. } => (reason.kind.as_str(), reason.detail.as_str()),
            VisitEnd::Refused { rule, .. } => (BLOCKED, rule.as_str()),
            VisitEnd::PutBack => ("put_back", ""),
            VisitEnd::Lost { .. } | VisitEnd::Void => ("lost", ""),
        };
        let duration_ms = took.as_millis() as u64;
        let (index, attempt) = (*index, *attempt);
        let by_name = by.map(|by| by.circuit.to_string());
        let circuit = by_name.as_deref().unwrap_or(circuit);
        let exit = by.map(|by| &*by.exit.nickname);
        let country = by.and_then(|by| by.exit.country.as_deref());
        Event::VisitEnded {
            batch_id,
            index,
            ean,
            site,
            circuit,
            exit,
            country,
            attempt,
            outcome,
            detail,
            duration_ms,
            won_by,
        }
        .emit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_again_where_the_machine_or_the_exit_may_be_to_blame() {
        for (error, again) in [
            (RecipeError::Page(Unreadable::TooSlow(Duration::from_secs(1))), Again::Soon),
            (RecipeError::Page(Unreadable::Truncated("no </html>")), Again::Soon),
            (RecipeError::Page(Unreadable::TooDeep(512)), Again::Never),
            (RecipeError::Page(Unreadable::TooLarge(1000)), Again::Never),
            (RecipeError::Answer("not JSON".into()), Again::Never),
        ] {
            assert_eq!(again_after(&error), again, "{error}");
        }
    }
}
