//! What the daemon does, in the one line that `systemctl status` shows. Pure.

use std::fmt;
use std::time::Duration;

use crate::ledger::actor::Health;
use crate::scraper::tor::TorState;

/// What the line is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doing {
    /// Batches with open products.
    pub batches: u64,
    /// Products that no coordinator has taken up yet.
    pub queued: u64,
    /// Visits in flight.
    pub visits: u64,
    /// Webhooks that wait or are being sent.
    pub deliveries: u64,
    pub tor: TorState,
    pub ledger: Health,
}

/// What is left to be done in a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draining {
    /// In flight.
    pub visits: u64,
    /// Being sent.
    pub deliveries: u64,
    pub left: Duration,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.batches, "batch open", "batches open"),
            (self.queued, "product queued", "products queued"),
            (self.visits, "visit", "visits"),
            (self.deliveries, "delivery", "deliveries"),
        ];
        let busy: Vec<String> = counts
            .into_iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, one, several)| counted(count, one, several))
            .collect();
        f.write_str(if busy.is_empty() { "idle" } else { "" })?;
        f.write_str(&busy.join(", "))?;
        match &self.tor {
            TorState::Unknown => {}
            TorState::There => f.write_str("; Tor there")?,
            TorState::Away { reason, .. } => write!(f, "; Tor away, work waits: {reason}")?,
        }
        f.write_str(match self.ledger {
            Health::Writing => "",
            Health::Low => "; little room on the ledger's disk, submits are refused",
            Health::ReadOnly => "; the ledger may not be written, submits are refused and visits wait",
            Health::Full => "; no room on the ledger's disk, submits are refused and visits wait",
        })
    }
}

impl fmt::Display for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let visits = counted(self.visits, "visit", "visits");
        let deliveries = counted(self.deliveries, "delivery", "deliveries");
        // Rounded up: while there is time left the line does not say that there is none.
        let seconds = self.left.as_millis().div_ceil(1000);
        write!(f, "draining {visits}, {deliveries}, {seconds} s left")
    }
}

fn counted(count: u64, one: &str, several: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { several })
}

/// `1204` as `1 204`.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_counts_what_there_is_and_groups_large_numbers() {
        let doing = Doing {
            batches: 2,
            queued: 1_204,
            visits: 7,
            deliveries: 1,
            tor: TorState::There,
            ledger: Health::Writing,
        };
        assert_eq!(
            doing.to_string(),
            "2 batches open, 1 204 products queued, 7 visits, 1 delivery; Tor there"
        );
        assert_eq!(Doing { tor: TorState::There, ..Doing::default() }.to_string(), "idle; Tor there");
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(grouped),
            ["0", "999", "1 000", "1 234 567"].map(String::from)
        );
    }

    #[test]
    fn the_line_says_why_work_waits() {
        let away = TorState::Away { reason: "connection refused".into(), prove_with: None };
        let doing = Doing { batches: 1, tor: away, ledger: Health::Full, ..Doing::default() };
        assert_eq!(
            doing.to_string(),
            "1 batch open; Tor away, work waits: connection refused; \
             no room on the ledger's disk, submits are refused and visits wait"
        );
    }

    #[test]
    fn a_drain_shows_its_arithmetic() {
        let left = Duration::from_millis(11_001);
        let draining = Draining { visits: 7, deliveries: 3, left };
        assert_eq!(draining.to_string(), "draining 7 visits, 3 deliveries, 12 s left");
    }
}
