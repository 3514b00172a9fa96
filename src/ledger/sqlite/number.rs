//! The number of a delivery: its batch, index and slot in one integer.
//!
//! So "one delivery per outcome" is the primary key itself, the deliveries of a batch lie together, and finding the
//! delivery of a product needs no index.

use super::super::store::StoreError;
use crate::model::delivery::Subject;
use crate::model::{BatchNo, ProductKey};

const SLOT_BITS: u32 = 2;
const INDEX_BITS: u32 = 24;
const SLOT_MASK: i64 = (1 << SLOT_BITS) - 1;

/// Entries of one batch at most; far above any limit of the intake.
pub const INDEX_MAX: u32 = (1 << INDEX_BITS) - 1;
/// 137 thousand million batches.
const BATCH_MAX: i64 = (1 << (63 - INDEX_BITS - SLOT_BITS)) - 1;

/// The row of `subject` of `batch`. The summary has index 0.
pub fn delivery(batch: BatchNo, subject: Subject) -> Result<i64, StoreError> {
    let (index, slot) = match subject {
        Subject::Product(index) => (index, 0),
        Subject::Summary(slot) => (0, i64::from(slot)),
    };
    let fits = (0..=BATCH_MAX).contains(&batch.0) && index <= INDEX_MAX && slot <= SLOT_MASK;
    if !fits {
        return Err(StoreError::Other(format!("no number for {subject:?} of batch {}", batch.0)));
    }
    Ok(batch.0 << (INDEX_BITS + SLOT_BITS) | i64::from(index) << SLOT_BITS | slot)
}

/// The same for a product.
pub fn of_product(key: ProductKey) -> Result<i64, StoreError> {
    delivery(key.batch, Subject::Product(key.index))
}

/// What a row tells of.
pub fn parts(no: i64) -> (BatchNo, Subject) {
    let batch = BatchNo(no >> (INDEX_BITS + SLOT_BITS));
    let index = (no >> SLOT_BITS) as u32 & INDEX_MAX;
    let slot = (no & SLOT_MASK) as u8;
    (batch, if slot == 0 { Subject::Product(index) } else { Subject::Summary(slot) })
}

/// The row of the body that a delivery sends: both copies of a summary share one.
pub fn body(no: i64) -> i64 {
    no & !SLOT_MASK
}

/// The first and last row that a delivery of `batch` can have.
pub fn range(batch: BatchNo) -> (i64, i64) {
    let first = batch.0 << (INDEX_BITS + SLOT_BITS);
    (first, first | ((1 << (INDEX_BITS + SLOT_BITS)) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_gives_back_what_it_was_made_of() {
        for batch in [1, 42, BATCH_MAX] {
            for subject in
                [Subject::Product(1), Subject::Product(INDEX_MAX), Subject::Summary(1), Subject::Summary(2)]
            {
                let no = delivery(BatchNo(batch), subject).unwrap();
                assert_eq!(parts(no), (BatchNo(batch), subject));
                let (first, last) = range(BatchNo(batch));
                assert!((first..=last).contains(&no));
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(delivery(BatchNo(1), Subject::Product(INDEX_MAX + 1)).is_err());
        assert!(delivery(BatchNo(BATCH_MAX + 1), Subject::Product(1)).is_err());
        assert!(delivery(BatchNo(1), Subject::Summary(4)).is_err());
    }

    #[test]
    fn both_copies_of_a_summary_share_a_body_and_no_product_has_it() {
        let [one, two] = [1, 2].map(|slot| delivery(BatchNo(7), Subject::Summary(slot)).unwrap());
        assert_eq!(body(one), body(two));
        assert_ne!(body(one), body(of_product(ProductKey { batch: BatchNo(7), index: 1 }).unwrap()));
    }
}
