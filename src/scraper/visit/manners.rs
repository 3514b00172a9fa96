//! What a visit does out of politeness: it reads the shop's robots.txt first, and heeds what answers ask for.

use std::time::Duration;

use tokio::time::Instant;
use url::Url;

use super::{Call, Shop, Stop, Ticket, failed};
use crate::batch::machine::Again;
use crate::model::Reason;
use crate::model::page::Request;
use crate::scraper::errand::Errand;
use crate::scraper::fetch::{FetchError, FetchLimits, Redirects, Verdict};
use crate::scraper::pace::slowing::Mood;
use crate::scraper::robots::{Known, Meaning, Need};
use crate::supervisor::policy::Roll;
use crate::telemetry::Event;
use crate::wall;

/// Redirects of a robots.txt that are followed, as the RFC wants (2.3.1.2).
const REDIRECTS_MAX: u32 = 5;

/// What is about to be fetched.
#[derive(Clone, Copy)]
pub(super) enum Asked<'a> {
    Search(&'a Url),
    Page(&'a Url),
}

impl Call<'_> {
    /// Stops the visit where the shop's robots.txt forbids what is asked, or is not known and cannot be got now.
    pub(super) async fn heed_robots(
        &mut self,
        shop: &Shop,
        asked: Asked<'_>,
        errand: &mut Errand<'_>,
        ticket: &mut Ticket,
    ) -> Result<(), Stop> {
        if !shop.recipe.robots {
            return Ok(());
        }
        let (Asked::Search(url) | Asked::Page(url)) = asked;
        let place = self.gear.robots.place(url, errand.via);
        let mut known = match place.try_lock() {
            Ok(known) => known,
            // Somebody asks for it.
            Err(_) => errand.give_way(place.lock()).await,
        };
        match known.need(Instant::now()) {
            Need::Nothing => {}
            Need::Ask => self.ask_robots(&mut known, shop, url, errand, ticket).await?,
            Need::Wait { until, held: true, .. } => {
                // Whoever tried is charged; all others wait in the queue.
                errand.pace().hold(until, Instant::now());
                return Err(Stop::PutBack);
            }
            Need::Wait { until, reason, held: false } => {
                let again = Again::After(until.saturating_duration_since(Instant::now()));
                return Err(Stop::Failed { reason, again });
            }
        }
        let Some(rule) = known.forbid(url) else { return Ok(()) };
        let (host, path, line, text) =
            (url.host_str().unwrap_or_default(), url.path(), rule.line, rule.text.clone());
        let detail = format!("robots.txt of {host} forbids {path} by line {line}: \"{text}\"");
        if matches!(asked, Asked::Search(_)) && known.is_news_for(&errand.site) {
            Event::RobotsForbids { site: &errand.site, path, line: line as u64, rule: &text }.emit();
        }
        Err(failed("robots", detail, Again::Never))
    }

    /// Asks for the robots.txt of `url`, in the first turn of this visit.
    async fn ask_robots(
        &mut self,
        known: &mut Known,
        shop: &Shop,
        url: &Url,
        errand: &mut Errand<'_>,
        ticket: &mut Ticket,
    ) -> Result<(), Stop> {
        let mut at = url.clone();
        at.set_path("/robots.txt");
        at.set_query(None);
        at.set_fragment(None);
        let request = Request::get(at);
        let limits = FetchLimits { redirects_max: REDIRECTS_MAX, ..self.gear.fetch.clone() };
        let began = Instant::now();
        ticket.dialled(began);
        let mut first = errand.before(began + self.gear.visit_deadline);
        let redirects = Redirects { hosts: &shop.hosts, blocks: None };
        let answer = self.circuit.fetch_in_turn(&request, &limits, redirects, &mut first).await;
        errand.resume(began);
        let meaning = match answer {
            Ok(page) => {
                self.heed_answer(page.status, &first);
                Meaning::of(&page)
            }
            Err(FetchError::TooManyRedirects { .. }) => Meaning::none(),
            // It leads where we do not go: as good as none, for as long as a doubtful one is believed.
            Err(
                FetchError::RedirectElsewhere { .. }
                | FetchError::RedirectDowngrade
                | FetchError::RedirectInvalid,
            ) => Meaning::doubtful_none(),
            Err(error) => {
                let stop = self.stop_for(&error, &request, first.via).await;
                let is_charged = matches!(stop, Stop::Failed { .. });
                return if is_charged && (error.verdict() == Verdict::Never || known.miss()) {
                    self.robots_failed(known, errand, stop)
                } else {
                    stop.about_robots()
                };
            }
        };
        match meaning {
            Meaning::Rules { rules, keep } => {
                known.learn(rules, keep, Instant::now());
                Ok(())
            }
            Meaning::Error { status } => {
                let stop = failed("robots_error", format!("status {status}"), Again::Soon);
                self.robots_failed(known, errand, stop)
            }
        }
    }

    /// Nothing is fetched until it is asked for again, unless an old one will do.
    fn robots_failed(&self, known: &mut Known, errand: &Errand<'_>, stop: Stop) -> Result<(), Stop> {
        let Stop::Failed { reason, again } = stop else { return Err(stop) };
        let now = Instant::now();
        let asked_for = self.circuit.retry_after().filter(|pause| !pause.is_zero());
        let reason = Reason::new(&reason.kind, format!("robots.txt: {}", reason.detail));
        let pause = known.fail(reason.clone(), asked_for, now, Roll::by_chance());
        if known.need(now) == Need::Nothing {
            return Ok(());
        }
        if asked_for.is_some() {
            hold(errand, pause, &reason.detail);
        }
        let again = if again == Again::Never { Again::Never } else { Again::After(pause) };
        Err(Stop::Failed { reason, again })
    }

    /// A 429 or 503 that says for how long holds the whole shop; how long any answer took may change its interval.
    pub(super) fn heed_answer(&self, status: u16, errand: &Errand<'_>) {
        let mood = Mood::of(status);
        if let (Mood::Refused, Some(pause)) = (mood, self.circuit.retry_after()) {
            hold(errand, pause, &format!("status {status} with Retry-After"));
        }
        let took = errand.latency().unwrap_or_default();
        if let Some(change) = errand.pace().answered(took, mood, Instant::now()) {
            Event::ShopPaced {
                site: &errand.site,
                interval_ms: change.interval.as_millis() as u64,
                configured_ms: change.configured.as_millis() as u64,
                latency_ms: change.latency.as_millis() as u64,
            }
            .emit();
        }
    }
}

impl Stop {
    /// The same, with a word on what could not be got.
    fn about_robots(self) -> Result<(), Self> {
        Err(match self {
            Self::Failed { reason, again } => {
                let detail = format!("robots.txt: {}", reason.detail);
                failed(&reason.kind, detail, again)
            }
            Self::Refused { .. } | Self::PutBack => self,
        })
    }
}

fn hold(errand: &Errand<'_>, pause: Duration, reason: &str) {
    let now = Instant::now();
    if !pause.is_zero() && errand.pace().hold(now + pause, now) {
        let until = wall::format_ms(wall::now_ms() + pause.as_millis() as i64);
        Event::ShopHeld { site: &errand.site, until: &until, seconds: pause.as_secs(), reason }.emit();
    }
}
