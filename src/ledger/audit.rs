//! The conservation law (design 4, rule 14), counted row by row in the background.
//!
//! The counters change in the transactions of the rows they count; this looks whether they still tell the truth. A
//! difference is a mistake of this program: an `error` event, and a `readyz` that fails until the process is replaced.

use std::time::Duration;

use super::reader::LedgerReader;
use super::store::Tally;
use crate::telemetry::Event;

/// Not in the way of a start.
const FIRST_AFTER: Duration = Duration::from_secs(5);
/// A million products are counted in well below a second.
const EVERY: Duration = Duration::from_secs(3600);

/// Counts for ever.
pub async fn keep_counting(reader: LedgerReader) {
    tokio::time::sleep(FIRST_AFTER).await;
    loop {
        count_once(&reader).await;
        tokio::time::sleep(EVERY).await;
    }
}

async fn count_once(reader: &LedgerReader) {
    // One read is one snapshot, so that what is committed between the two counts is no difference. A read that fails is
    // told by whoever needs its answer; here it only means to count again later.
    let Ok((kept, counted)) = reader.read(|read| Ok((read.tally()?, read.recount()?))).await else { return };
    if let Some(detail) = difference(&kept, &counted) {
        Event::ConservationBroken { detail: &detail }.emit();
        reader.mark_broken();
    }
}

fn difference(kept: &Tally, counted: &Tally) -> Option<String> {
    if kept != counted {
        return Some(format!("kept {kept:?}, counted {counted:?}"));
    }
    (!counted.holds()).then(|| format!("{counted:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_counter_and_a_lost_product_are_both_differences() {
        let right = Tally { accepted: 3, queued: 1, claimed: 1, ended: 1, deliveries: [1, 0, 0, 0, 0, 0] };
        assert_eq!(difference(&right, &right), None);
        assert!(difference(&Tally { queued: 2, ..right }, &right).is_some());
        let lost = Tally { claimed: 0, ..right };
        assert!(difference(&lost, &lost).is_some());
        let unsent = Tally { deliveries: [0; 6], ..right };
        assert!(difference(&unsent, &unsent).is_some());
    }
}
