//! Places where a test can make the daemon fail. Nothing of it is in a release build.
//!
//! `GLANEUR_FAIL="scraper.visit=panic@2,ledger.write=abort"`: at the second time the first point is passed the thread
//! panics; at the first time the second one is passed the process aborts. `hang` never comes back. Each fires once, `@*`
//! every time; `slow` takes its time at every pass from the one named.
//! `scraper.fetched[0748322148474]=abort`: only what is about this barcode, or this shop, passes.

/// The closed list of points: one for each message of each actor, and the places between two transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Point {
    LedgerTakeOver,
    LedgerWrite,
    LedgerCommit,
    LedgerCommitted,
    LaneWake,
    LaneAttempt,
    LaneAnswered,
    LaneRecorded,
    LaneDrain,
    SenderTick,
    ScrapersAsk,
    ScrapersIdle,
    ScrapersTick,
    ScraperVisit,
    ScraperFetched,
    CoordinatorStart,
    CoordinatorClaimed,
    CoordinatorVisitEnded,
    CoordinatorCommitted,
    CoordinatorTick,
    BatchesOpened,
    BatchesTick,
    IngressConnection,
    RootTick,
}

impl Point {
    pub const ALL: [Self; 24] = [
        Self::LedgerTakeOver,
        Self::LedgerWrite,
        Self::LedgerCommit,
        Self::LedgerCommitted,
        Self::LaneWake,
        Self::LaneAttempt,
        Self::LaneAnswered,
        Self::LaneRecorded,
        Self::LaneDrain,
        Self::SenderTick,
        Self::ScrapersAsk,
        Self::ScrapersIdle,
        Self::ScrapersTick,
        Self::ScraperVisit,
        Self::ScraperFetched,
        Self::CoordinatorStart,
        Self::CoordinatorClaimed,
        Self::CoordinatorVisitEnded,
        Self::CoordinatorCommitted,
        Self::CoordinatorTick,
        Self::BatchesOpened,
        Self::BatchesTick,
        Self::IngressConnection,
        Self::RootTick,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::LedgerTakeOver => "ledger.take_over",
            Self::LedgerWrite => "ledger.write",
            Self::LedgerCommit => "ledger.commit",
            Self::LedgerCommitted => "ledger.committed",
            Self::LaneWake => "lane.wake",
            Self::LaneAttempt => "lane.attempt",
            Self::LaneAnswered => "lane.answered",
            Self::LaneRecorded => "lane.recorded",
            Self::LaneDrain => "lane.drain",
            Self::SenderTick => "sender.tick",
            Self::ScrapersAsk => "scrapers.ask",
            Self::ScrapersIdle => "scrapers.idle",
            Self::ScrapersTick => "scrapers.tick",
            Self::ScraperVisit => "scraper.visit",
            Self::ScraperFetched => "scraper.fetched",
            Self::CoordinatorStart => "coordinator.start",
            Self::CoordinatorClaimed => "coordinator.claimed",
            Self::CoordinatorVisitEnded => "coordinator.visit_ended",
            Self::CoordinatorCommitted => "coordinator.committed",
            Self::CoordinatorTick => "coordinator.tick",
            Self::BatchesOpened => "batches.opened",
            Self::BatchesTick => "batches.tick",
            Self::IngressConnection => "ingress.connection",
            Self::RootTick => "root.tick",
        }
    }
}

/// Fails here if the environment says so.
pub fn hit(point: Point) {
    hit_about(point, &[]);
}

#[cfg(not(debug_assertions))]
pub fn hit_about(_: Point, _: &[&str]) {}

#[cfg(debug_assertions)]
pub use armed::hit_about;

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use super::Point;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Action {
        Panic,
        Abort,
        Hang,
        Slow,
    }

    /// Longer than anything does that works as it should, and short enough for a test to wait for several of them.
    const SLOW: Duration = Duration::from_millis(400);

    #[derive(Debug)]
    struct Plan {
        point: &'static str,
        /// What the pass must be about.
        about: Option<String>,
        action: Action,
        /// None: every time.
        at: Option<u32>,
        passed: AtomicU32,
    }

    impl Plan {
        /// Counts the pass if it is meant, and says whether it fails.
        fn passes(&self, point: &str, about: &[&str]) -> bool {
            let meant = self.about.as_deref().is_none_or(|wanted| about.contains(&wanted));
            if self.point != point || !meant {
                return false;
            }
            let nth = self.passed.fetch_add(1, Ordering::SeqCst) + 1;
            self.at.is_none_or(|at| at == nth || (self.action == Action::Slow && at < nth))
        }
    }

    static PLANS: OnceLock<Vec<Plan>> = OnceLock::new();

    /// Fails here if the environment says so, also for what the pass is about.
    pub fn hit_about(point: Point, about: &[&str]) {
        let plans = PLANS.get_or_init(|| plans(&std::env::var("GLANEUR_FAIL").unwrap_or_default()));
        // Every plan counts every pass, also one at which another plan fires.
        match plans.iter().filter(|plan| plan.passes(point.name(), about)).last() {
            Some(Plan { action: Action::Panic, .. }) => panic!("fail point {}", point.name()),
            Some(Plan { action: Action::Abort, .. }) => std::process::abort(),
            Some(Plan { action: Action::Hang, .. }) => stand_still(None),
            Some(Plan { action: Action::Slow, .. }) => stand_still(Some(SLOW)),
            None => {}
        }
    }

    /// Only the part that came here: what its thread has to do besides goes on on another one.
    fn stand_still(time: Option<Duration>) {
        let until = time.map(|time| Instant::now() + time);
        tokio::task::block_in_place(|| {
            loop {
                match until.map(|until| until.saturating_duration_since(Instant::now())) {
                    Some(Duration::ZERO) => return,
                    Some(left) => std::thread::park_timeout(left),
                    None => std::thread::park(),
                }
            }
        });
    }

    fn plans(text: &str) -> Vec<Plan> {
        text.split(',').filter(|plan| !plan.is_empty()).map(plan).collect()
    }

    fn plan(text: &str) -> Plan {
        let (name, action) = text.split_once('=').unwrap_or((text, "panic"));
        let (name, about) = match name.strip_suffix(']').and_then(|name| name.split_once('[')) {
            Some((name, about)) => (name, Some(about.to_owned())),
            None => (name, None),
        };
        let (action, at) = action.split_once('@').unwrap_or((action, "1"));
        let point = Point::ALL.into_iter().find(|point| point.name() == name);
        let point = point.unwrap_or_else(|| panic!("GLANEUR_FAIL: no fail point {name:?}")).name();
        let action = match action {
            "panic" => Action::Panic,
            "abort" => Action::Abort,
            "hang" => Action::Hang,
            "slow" => Action::Slow,
            other => panic!("GLANEUR_FAIL: no action {other:?}"),
        };
        let at =
            (at != "*").then(|| at.parse().unwrap_or_else(|_| panic!("GLANEUR_FAIL: {at:?} is no count")));
        Plan { point, about, action, at, passed: AtomicU32::new(0) }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn fires(text: &str, passes: &[&[&str]]) -> Vec<bool> {
            let plan = plan(text);
            passes.iter().map(|about| plan.passes("scraper.visit", about)).collect()
        }

        #[test]
        fn a_plan_fires_once_at_its_pass_or_every_time_and_counts_what_it_means() {
            let (other, meant): (&[&str], &[&str]) = (&["123", "shop"], &["456", "shop"]);
            assert_eq!(fires("scraper.visit=panic@2", &[other, meant, other]), [false, true, false]);
            assert_eq!(fires("scraper.visit[456]=abort", &[other, meant, meant]), [false, true, false]);
            assert_eq!(fires("scraper.visit[shop]=panic@*", &[other, meant, &[]]), [true, true, false]);
            assert_eq!(fires("scraper.fetched=panic@*", &[other]), [false]);
            assert_eq!(plan("scraper.visit[456]=abort").action, Action::Abort);
        }
    }
}
