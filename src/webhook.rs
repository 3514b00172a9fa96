//! The webhook sender: every outcome reaches its receiver.
//!
//! Promise: at least once, with the same `webhook-id` and the same body at each attempt, and never two attempts of one
//! delivery at a time. What an attempt led to is on disk before the next one is made.
//!
//! ```text
//! sender                  looks into the outbox; starts, wakes and restarts lanes
//! ├── lane of "product"   some attempts side by side, each in a task of its own
//! ├── lane of "summary"
//! └── lane of https://…   a per-batch URL is its own lane
//! ```
//!
//! * W1 A lane asks the ledger only for free slots: nothing queues in memory, and a dead endpoint holds up only itself.
//! * W2 A slot is free again when the record of its attempt is committed, or is known to come too late.
//! * W3 A delivery in hand is in [`InHand`]; whoever dies with it lets go of it, and it is simply due again.
//! * W4 A delivery ends as dead only by an answer that says so, by an own failed attempt after its patience, or by
//!   panics of its lane while that very delivery was handled.
//!
//! The pure parts decide, and know no clock: [`verdict`] what an answer means, [`lane`] when who may be sent,
//! [`target`] where to, [`sign`] with which headers, [`clock`] how long the daemon ran. Deliberately absent: a
//! queue, and a memory of parked lanes across restarts (a few failures tell it again).

pub mod actor;
pub mod client;
pub mod clock;
pub mod in_hand;
pub mod lane;
pub mod sign;
pub mod target;
pub mod verdict;

#[cfg(test)]
mod tests;

use std::time::Duration;

use url::Url;

pub use actor::{Args, DRAIN_GRACE, Webhook, WebhookHandle, handle};
pub use in_hand::InHand;
pub use sign::Secret;

use crate::config::HostRule;

/// What the configuration says about webhooks. A new one applies at the next attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `webhooks.product_url`; none if it is `"none"`.
    pub product_url: Option<Url>,
    /// `webhooks.summary_url`.
    pub summary_url: Option<Url>,
    /// `webhooks.hosts`: to which per-batch URLs may point.
    pub allowed_hosts: Vec<HostRule>,
    /// Signs each attempt.
    pub secret: Option<Secret>,
    /// From the dial to the end of the answer.
    pub timeout: Duration,
    /// Attempts of one lane at a time.
    pub concurrency: usize,
    /// Failures in a row after which a lane parks.
    pub park_after: u32,
    /// How long a delivery is tried while the daemon runs, from its first attempt.
    pub patience: Duration,
    /// Between the first attempt of a delivery and the second; doubles from there.
    pub backoff_min: Duration,
    /// At most this between two attempts of one delivery.
    pub backoff_max: Duration,
    /// At most this between two probes of a parked lane.
    pub parked_probe_max: Duration,
    /// A summary goes out this long after the end of its batch, whatever is still open.
    pub summary_wait: Duration,
}

impl Settings {
    /// When a lane parks and how long its deliveries wait.
    pub fn pace(&self) -> lane::Pace {
        lane::Pace {
            park_after: self.park_after,
            backoff_min: self.backoff_min,
            backoff_max: self.backoff_max,
            parked_probe_max: self.parked_probe_max,
        }
    }

    /// Nothing is ever put off for longer: a due time beyond it was written under another clock.
    pub fn interval_max(&self) -> Duration {
        self.backoff_max.max(self.parked_probe_max).max(verdict::RETRY_AFTER_MAX)
    }
}
