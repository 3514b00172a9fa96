//! What each shop's robots.txt says (RFC 9309), once for all circuits.
//!
//! Promise: a robots.txt is asked for by one visit at a time, when a first visit needs it and again when it is older than
//! a day; the others of its shop wait for that visit, and no time runs for them. It travels as the shop's own
//! requests do: by the same way, in its turn, through the circuit of the visit that asks.
//!
//! * R1 4xx: there is none, all is allowed (2.3.1.3); so are too many redirects (2.3.1.2), and one that leads away from the
//!   shop's own hosts.
//! * R2 429, 5xx and what brings no answer is an error (2.3.1.4): nothing is fetched there, and it is asked for again later.
//!   A copy that is there is used meanwhile, however old (2.4). What may be the circuit's doing is tried through another
//!   at once, but not for ever. It is an error of every visit that needs it, so that a shop which is down ends its visits
//!   after their attempts; only one that says when to come back is waited for.
//! * R3 A doubtful answer is kept for ten minutes only: an exit that a shop refuses is told 403 for all it asks,
//!   a challenge is a page, and an exit that dies cuts a file without a length in two.
//!
//! Deliberately absent: `Crawl-delay` (not in the RFC; `rate` is ours), a look at where the redirect of an allowed page leads
//! (the shop sent us there), and any memory over a restart.

pub mod rules;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use url::Url;

use crate::model::Reason;
use crate::model::page::{End, Page, Via};
use crate::supervisor::policy::{Backoff, Roll};
use rules::{Rule, Rules};

/// No longer than this (2.4).
const KEEP_FOR: Duration = Duration::from_secs(24 * 3_600);
const KEEP_DOUBTFUL_FOR: Duration = Duration::from_secs(600);
/// Until it is asked for again after an error; doubles with each. At the longest it is no burden for a shop that is down,
/// and with all its attempts no visit waits for long.
const AGAIN_AFTER: Backoff = Backoff { min: Duration::from_secs(30), max: Duration::from_secs(120) };
/// Failures of its way in a row, each through another circuit, after which the fault is taken for the shop's.
const MISSES_MAX: u32 = 3;
/// One for each host that shops are searched and read at; more come only of a shop whose links name ports at will.
const PLACES_MAX: usize = 1_024;

/// All of this process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RobotsCache(Arc<Mutex<HashMap<(String, Via), Place>>>);

/// The robots.txt of one host, held by whoever asks for it.
pub type Place = Arc<tokio::sync::Mutex<Known>>;

/// What is known of one robots.txt.
#[derive(Debug, Default)]
pub struct Known {
    /// The newest that was got.
    rules: Option<Rules>,
    /// When it is to be asked for again; never: it was not yet.
    until: Option<Instant>,
    /// Errors in a row.
    errors: u32,
    /// Failures of the way since the last error.
    misses: u32,
    /// Why it could not be got, and whether the shop said when to come back.
    failed: Option<(Reason, bool)>,
    /// Shops whose search it forbids, and that were told so since it was got.
    told: BTreeSet<Box<str>>,
}

/// What is to be done about a robots.txt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// What is known holds.
    Nothing,
    /// It has to be asked for.
    Ask,
    /// It could not be got, and it is not time yet to try again. `held`: the shop itself said until when.
    Wait { until: Instant, reason: Reason, held: bool },
}

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    Rules {
        rules: Rules,
        keep: Duration,
    },
    /// Try again later.
    Error {
        status: u16,
    },
}

impl Meaning {
    pub fn of(page: &Page) -> Self {
        let is_page = page.content_type.as_deref().is_some_and(|kind| kind.contains("html"));
        match page.status {
            200..=299 if is_page || page.end == End::Closed => {
                Self::Rules { rules: Rules::parse(&page.bytes), keep: KEEP_DOUBTFUL_FOR }
            }
            200..=299 => Self::Rules { rules: Rules::parse(&page.bytes), keep: KEEP_FOR },
            401 | 403 => Self::doubtful_none(),
            status @ 429 => Self::Error { status },
            400..=499 => Self::none(),
            status => Self::Error { status },
        }
    }

    /// There is no robots.txt.
    pub fn none() -> Self {
        Self::Rules { rules: Rules::default(), keep: KEEP_FOR }
    }

    /// There seems to be none; another exit may see one.
    pub fn doubtful_none() -> Self {
        Self::Rules { rules: Rules::default(), keep: KEEP_DOUBTFUL_FOR }
    }
}

impl RobotsCache {
    /// Where the robots.txt for `url` is known, or will be.
    pub fn place(&self, url: &Url, via: Via) -> Place {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (url.origin().ascii_serialization(), via);
        if PLACES_MAX <= places.len() && !places.contains_key(&key) {
            places.clear(); // They are asked for again.
        }
        Arc::clone(places.entry(key).or_default())
    }
}

impl Known {
    pub fn need(&self, now: Instant) -> Need {
        match (self.until, &self.rules, &self.failed) {
            (Some(until), None, Some((reason, held))) if now < until => {
                Need::Wait { until, reason: reason.clone(), held: *held }
            }
            (Some(until), _, _) if now < until => Need::Nothing,
            (Some(_) | None, _, _) => Need::Ask,
        }
    }

    pub fn learn(&mut self, rules: Rules, keep: Duration, now: Instant) {
        *self = Self { rules: Some(rules), until: Some(now + keep), ..Self::default() };
    }

    /// Nothing came, perhaps by the circuit's doing; whether that is as good as an error.
    pub fn miss(&mut self) -> bool {
        self.misses += 1;
        self.rules.is_some() || MISSES_MAX <= self.misses
    }

    /// It could not be got; how long to wait, of which the shop may have said the least.
    pub fn fail(
        &mut self,
        reason: Reason,
        asked_for: Option<Duration>,
        now: Instant,
        roll: Roll,
    ) -> Duration {
        let pause = asked_for.unwrap_or_else(|| AGAIN_AFTER.pause(self.errors, roll));
        (self.errors, self.misses) = (self.errors.saturating_add(1), 0);
        self.until = Some(now + pause);
        self.failed = Some((reason, asked_for.is_some()));
        pause
    }

    /// The rule that forbids `url`.
    pub fn forbid(&self, url: &Url) -> Option<&Rule> {
        self.rules.as_ref()?.forbid(url)
    }

    /// Whether to tell that the search of `site` is forbidden: once for each robots.txt.
    pub fn is_news_for(&mut self, site: &str) -> bool {
        self.told.insert(site.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(status: u16, content_type: &str, body: &str, end: End) -> Page {
        Page {
            url: "https://www.shop.example/robots.txt".parse().unwrap(),
            status,
            content_type: Some(content_type.into()),
            bytes: body.into(),
            end,
        }
    }

    const TEXT: &str = "User-agent: *\nDisallow: /search\n";

    fn search() -> Url {
        "https://www.shop.example/search?q=1".parse().unwrap()
    }

    #[test]
    fn a_status_means_what_the_rfc_says_and_a_doubtful_answer_is_not_kept_for_long() {
        for (status, kind, end, forbids, keep) in [
            (200, "text/plain", End::Framed, true, KEEP_FOR),
            (200, "text/plain", End::Closed, true, KEEP_DOUBTFUL_FOR),
            (200, "text/html; charset=utf-8", End::Framed, true, KEEP_DOUBTFUL_FOR),
            (404, "text/plain", End::Framed, false, KEEP_FOR),
            (410, "text/html", End::Framed, false, KEEP_FOR),
            (403, "text/plain", End::Framed, false, KEEP_DOUBTFUL_FOR),
        ] {
            let meaning = Meaning::of(&page(status, kind, TEXT, end));
            let Meaning::Rules { rules, keep: kept } = meaning else { panic!("{status}: {meaning:?}") };
            assert_eq!((rules.forbid(&search()).is_some(), kept), (forbids, keep), "{status} {kind}");
        }
        for status in [429, 500, 503, 599, 304] {
            let meaning = Meaning::of(&page(status, "text/plain", TEXT, End::Framed));
            assert_eq!(meaning, Meaning::Error { status });
        }
    }

    fn why() -> Reason {
        Reason::new("robots_error", "robots.txt: status 503")
    }

    #[test]
    fn it_is_asked_for_once_and_again_after_a_day() {
        let now = Instant::now();
        let mut known = Known::default();
        assert_eq!(known.need(now), Need::Ask);
        known.learn(Rules::parse(TEXT.as_bytes()), KEEP_FOR, now);
        assert_eq!(known.need(now + KEEP_FOR - Duration::from_millis(1)), Need::Nothing);
        assert_eq!(known.need(now + KEEP_FOR), Need::Ask);
        assert_eq!(known.forbid(&search()).unwrap().line, 2);
    }

    #[test]
    fn an_error_is_tried_again_later_and_is_no_refusal_for_ever() {
        let now = Instant::now();
        let mut known = Known::default();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let pause = known.fail(why(), None, now, Roll(0));
            assert_eq!(known.need(now), Need::Wait { until: now + pause, reason: why(), held: false });
            assert_eq!(known.need(now + pause), Need::Ask);
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [30, 60, 120, 120, 120, 120, 120]);
        let said = Duration::from_secs(7);
        assert_eq!(known.fail(why(), Some(said), now, Roll(0)), said, "the shop knows better");
        assert!(matches!(known.need(now), Need::Wait { held: true, .. }));
        known.learn(Rules::default(), KEEP_FOR, now);
        assert_eq!(known.fail(why(), None, now, Roll(0)), AGAIN_AFTER.min, "and is forgiven");
    }

    #[test]
    fn a_way_that_fails_again_and_again_is_an_error_and_one_that_fails_now_and_then_is_none() {
        let now = Instant::now();
        let mut known = Known::default();
        assert_eq!([known.miss(), known.miss(), known.miss()], [false, false, true]);
        known.fail(why(), None, now, Roll(0));
        assert!(!known.miss(), "counted anew");
        known.learn(Rules::default(), KEEP_FOR, now);
        assert!(known.miss(), "an old one will do at once");
    }

    #[test]
    fn while_it_cannot_be_got_again_the_old_one_holds() {
        let now = Instant::now();
        let mut known = Known::default();
        known.learn(Rules::parse(TEXT.as_bytes()), KEEP_FOR, now);
        let later = now + 2 * KEEP_FOR;
        known.fail(why(), None, later, Roll(0));
        assert_eq!(known.need(later), Need::Nothing);
        assert!(known.forbid(&search()).is_some());
        assert_eq!(known.need(later + AGAIN_AFTER.min), Need::Ask);
    }

    #[test]
    fn each_shop_is_told_once_for_each_robots_txt() {
        let mut known = Known::default();
        assert!(known.is_news_for("a"));
        assert!(known.is_news_for("b"), "two shops may be searched at one host");
        assert!(!known.is_news_for("a"));
        known.learn(Rules::default(), KEEP_FOR, Instant::now());
        assert!(known.is_news_for("a"));
    }

    #[test]
    fn hosts_ports_schemes_and_ways_have_their_own() {
        let cache = RobotsCache::default();
        let place = |url: &str, via| cache.place(&url.parse().unwrap(), via);
        let one = place("https://a.example/x", Via::Tor);
        assert!(Arc::ptr_eq(&one, &place("https://a.example:443/y?z", Via::Tor)));
        for (url, via) in [
            ("https://b.example/", Via::Tor),
            ("http://a.example/", Via::Tor),
            ("https://a.example:444/", Via::Tor),
            ("https://a.example/", Via::Direct),
        ] {
            assert!(!Arc::ptr_eq(&one, &place(url, via)), "{url} {via:?}");
        }
    }

    #[test]
    fn links_that_name_ports_at_will_fill_no_memory() {
        let cache = RobotsCache::default();
        for port in 1..=3 * PLACES_MAX {
            cache.place(&format!("http://a.example:{port}/").parse().unwrap(), Via::Tor);
        }
        assert!(cache.0.lock().unwrap().len() <= PLACES_MAX);
    }
}
