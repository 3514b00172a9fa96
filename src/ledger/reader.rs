//! Reads beside the writer: a few read-only connections, each read on a blocking thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::store::{Read, StoreError};

/// Reads the ledger. Cheap to clone.
#[derive(Clone)]
pub struct LedgerReader {
    idle: Arc<Mutex<Vec<Box<dyn Read>>>>,
    /// As many permits as connections: a permit in hand means an idle connection is there.
    permits: Arc<Semaphore>,
    /// The conservation law was seen broken.
    broken: Arc<AtomicBool>,
    /// A read found that the file is not what was written; the first one says how.
    damage: Arc<OnceLock<String>>,
}

impl fmt::Debug for LedgerReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LedgerReader").finish_non_exhaustive()
    }
}

impl LedgerReader {
    pub fn new(connections: Vec<Box<dyn Read>>) -> Self {
        let permits = Arc::new(Semaphore::new(connections.len()));
        let (broken, damage) = (Arc::default(), Arc::default());
        Self { idle: Arc::new(Mutex::new(connections)), permits, broken, damage }
    }

    /// Whether the counters and a recount have always agreed.
    pub fn is_conserved(&self) -> bool {
        !self.broken.load(Ordering::Acquire)
    }

    pub(super) fn mark_broken(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// How a read found the file damaged: the writer ends for it, since it may meet that page much later, or never.
    pub(super) fn damage(&self) -> Option<StoreError> {
        self.damage.get().cloned().map(StoreError::Corrupt)
    }

    /// Runs `query` on one consistent snapshot.
    pub async fn read<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut dyn Read) -> Result<T, StoreError> + Send + 'static,
    {
        let gone = || StoreError::Other("the reader is closed".into());
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| gone())?;
        let idle = Arc::clone(&self.idle);
        let connection = idle.lock().unwrap_or_else(PoisonError::into_inner).pop().ok_or_else(gone)?;
        let mut lent = Lent { connection: Some(connection), idle, _permit: permit };
        let work = tokio::task::spawn_blocking(move || match lent.connection.as_mut() {
            Some(connection) => {
                connection.begin_snapshot()?;
                query(connection.as_mut())
            }
            None => Err(gone()),
        });
        let answer = work.await.unwrap_or_else(|error| Err(StoreError::Other(error.to_string())));
        if let Err(StoreError::Corrupt(detail)) = &answer {
            self.damage.get_or_init(|| detail.clone());
        }
        answer
    }
}

/// Goes back to the pool also when the query panics.
struct Lent {
    connection: Option<Box<dyn Read>>,
    idle: Arc<Mutex<Vec<Box<dyn Read>>>>,
    /// Dropped after the connection is back: fields drop after `drop` ran.
    _permit: OwnedSemaphorePermit,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            connection.end_snapshot();
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}
