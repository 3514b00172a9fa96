//! Whatever dies, at whatever moment, every product ends in exactly one outcome and every outcome is sent.

mod actors;
mod kills;
mod poison;
mod storms;
mod suspects;
pub mod waiting;

use glaneur_kit::receiver::Seen;

/// The default of `ledger.claims_max`.
const CLAIMS_MAX: usize = 4;
/// How the kit tells a death by this signal.
const SIGABRT: i32 = 128 + 6;

/// Waits until one of the three shops has a request that fits, after the `marks` taken by [`marks`].
async fn any_hit(
    shops: &glaneur_kit::Shops,
    marks: [usize; 3],
    fits: impl Fn(&glaneur_kit::shop::Hit) -> bool + Send + Copy,
) {
    let wait = |at: usize| {
        let since = marks[at];
        shops.all[at].wait_until(move |hits| hits[since..].iter().any(fits), crate::support::LONG)
    };
    let hit = tokio::select! {
        hit = wait(0) => hit,
        hit = wait(1) => hit,
        hit = wait(2) => hit,
    };
    hit.unwrap();
}

fn marks(shops: &glaneur_kit::Shops) -> [usize; 3] {
    [0, 1, 2].map(|at| shops.all[at].records().len())
}

/// The deliveries of one batch: a `webhook-id` names it and, after the last underscore, the product.
fn is_of(seen: &Seen, batch: &str) -> bool {
    let name: String = batch.chars().filter(|c| *c != '-').collect();
    seen.webhook_id().is_some_and(|id| id.contains(&name))
}
