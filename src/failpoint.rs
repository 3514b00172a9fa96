//! Places where a test can make the daemon fail. Nothing of it is in a release build.
//!
//! `GLANEUR_FAIL="scraper.visit=panic@2,ledger.write=abort"`: at the second time the first point is passed the thread
//! panics; at the first time the second one is passed the process aborts. Each fires once.

/// The closed list of points: one for each message of each actor, and the places between two transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Point {
    LedgerWrite,
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
    pub const ALL: [Self; 22] = [
        Self::LedgerWrite,
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
            Self::LedgerWrite => "ledger.write",
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

#[cfg(not(debug_assertions))]
pub fn hit(_: Point) {}

#[cfg(debug_assertions)]
pub use armed::hit;

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::Point;

    enum Action {
        Panic,
        Abort,
    }

    struct Plan {
        point: &'static str,
        action: Action,
        at: u32,
        passed: AtomicU32,
    }

    static PLANS: OnceLock<Vec<Plan>> = OnceLock::new();

    /// Fails here if the environment says so.
    pub fn hit(point: Point) {
        let plans = PLANS.get_or_init(|| plans(&std::env::var("GLANEUR_FAIL").unwrap_or_default()));
        // Every plan counts every pass, also one at which another plan fires.
        let fires = |plan: &&Plan| {
            plan.point == point.name() && plan.passed.fetch_add(1, Ordering::SeqCst) + 1 == plan.at
        };
        match plans.iter().filter(fires).last() {
            Some(Plan { action: Action::Panic, .. }) => panic!("fail point {}", point.name()),
            Some(Plan { action: Action::Abort, .. }) => std::process::abort(),
            None => {}
        }
    }

    fn plans(text: &str) -> Vec<Plan> {
        text.split(',').filter(|plan| !plan.is_empty()).map(plan).collect()
    }

    fn plan(text: &str) -> Plan {
        let (name, action) = text.split_once('=').unwrap_or((text, "panic"));
        let (action, at) = action.split_once('@').unwrap_or((action, "1"));
        let point = Point::ALL.into_iter().find(|point| point.name() == name);
        let point = point.unwrap_or_else(|| panic!("GLANEUR_FAIL: no fail point {name:?}")).name();
        let action = match action {
            "panic" => Action::Panic,
            "abort" => Action::Abort,
            other => panic!("GLANEUR_FAIL: no action {other:?}"),
        };
        let at = at.parse().unwrap_or_else(|_| panic!("GLANEUR_FAIL: {at:?} is no count"));
        Plan { point, action, at, passed: AtomicU32::new(0) }
    }
}
