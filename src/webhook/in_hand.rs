//! Who is being sent right now: outlives lanes and sender, so that a restart cannot begin a second attempt while the
//! first one is still being cut (W3).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::delivery::DeliveryNo;

/// The deliveries in hand, of all lanes of this process. As many as there are attempts at a time.
#[derive(Clone, Debug, Default)]
pub struct InHand(Arc<Mutex<HashSet<DeliveryNo>>>);

/// The right to attempt one delivery; given back when dropped, also by a panic or an abort.
#[derive(Debug)]
pub struct Hold {
    no: DeliveryNo,
    of: InHand,
}

impl InHand {
    /// `None` while somebody else has it.
    pub fn take(&self, no: DeliveryNo) -> Option<Hold> {
        let fresh = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(no);
        fresh.then(|| Hold { no, of: self.clone() })
    }

    /// How many are in hand.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.of.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.no);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_in_one_hand_at_a_time() {
        let all = InHand::default();
        let hold = all.take(DeliveryNo(1)).unwrap();
        assert!(all.take(DeliveryNo(1)).is_none());
        let other = all.take(DeliveryNo(2));
        assert!(other.is_some());
        assert_eq!(all.count(), 2);
        drop(hold);
        assert_eq!(all.count(), 1);
        assert!(all.take(DeliveryNo(1)).is_some());
    }
}
