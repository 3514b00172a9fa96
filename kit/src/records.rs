//! What a stand-in saw, in the order it saw it, with waiting that needs no sleep.

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{Result, Trouble};

/// A growing list that can be waited on. Clones are the same list.
///
/// No lock is held while a closure looks at it, so the closure may look at whatever it likes.
#[derive(Debug)]
pub struct Records<T> {
    all: Arc<watch::Sender<Arc<Vec<T>>>>,
}

impl<T> Clone for Records<T> {
    fn clone(&self) -> Self {
        Self { all: Arc::clone(&self.all) }
    }
}

impl<T> Default for Records<T> {
    fn default() -> Self {
        Self { all: Arc::new(watch::Sender::new(Arc::default())) }
    }
}

impl<T: Clone + fmt::Debug + Send + Sync> Records<T> {
    /// Appends one, and wakes who waits.
    pub fn push(&self, one: T) {
        // Copies the list only if somebody looks at it right now.
        self.all.send_modify(|all| Arc::make_mut(all).push(one));
    }

    /// Looks at the whole list at once.
    pub fn with<R>(&self, look: impl FnOnce(&[T]) -> R) -> R {
        let all = Arc::clone(&self.all.borrow());
        look(&all)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.with(<[T]>::len)
    }

    /// Whether there is none yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of the list as it is now.
    pub fn all(&self) -> Vec<T> {
        self.with(<[T]>::to_vec)
    }

    /// Waits until the list satisfies `enough`, and gives a copy of it.
    ///
    /// `within` is no expectation about speed: it only ends a test that would wait for ever.
    pub async fn wait_until(
        &self,
        mut enough: impl FnMut(&[T]) -> bool + Send,
        within: Duration,
    ) -> Result<Vec<T>> {
        self.wait_for(|all| enough(all).then(|| all.to_vec()), within).await
    }

    /// Waits until `find` finds something in the list, and gives that.
    pub async fn wait_for<R: Send>(
        &self,
        mut find: impl FnMut(&[T]) -> Option<R> + Send,
        within: Duration,
    ) -> Result<R> {
        let mut list = self.all.subscribe();
        let found = async {
            loop {
                let all = Arc::clone(&list.borrow_and_update());
                if let Some(found) = find(&all) {
                    return found;
                }
                drop(all);
                // It cannot fail: `self` holds the sender.
                let _ = list.changed().await;
            }
        };
        tokio::time::timeout(within, found).await.map_err(|_| {
            self.with(|all| {
                Trouble::new(format!(
                    "what was waited for did not come within {within:?}; {} records came, the last ones: {:#?}",
                    all.len(),
                    &all[all.len().saturating_sub(3)..],
                ))
            })
        })
    }
}
