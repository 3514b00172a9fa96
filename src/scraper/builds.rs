//! How many circuits Tor is asked to build at once, and who waits for his turn.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Tor has at most 32 in the making for all its clients (`MaxClientCircuitsPending`) and lets the rest wait where nobody
/// sees it; a start with hundreds of circuits would time out there. Half of them leaves room for others and for tor's own.
pub(super) const BUILDS_MAX: usize = 16;

/// Turns at having a circuit built, for all circuits of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Builds(Arc<Semaphore>);

/// Held while a circuit is built.
#[derive(Debug)]
pub struct Building {
    _turn: Option<OwnedSemaphorePermit>,
}

impl Default for Builds {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BUILDS_MAX)))
    }
}

impl Builds {
    /// Waits for a turn, first come first served.
    pub async fn turn(&self) -> Building {
        // It is never closed; if it were, nobody would have to wait.
        Building { _turn: Arc::clone(&self.0).acquire_owned().await.ok() }
    }

    /// All of them, so that nobody else has one.
    #[cfg(test)]
    pub async fn all_turns(&self) -> Vec<Building> {
        let mut turns = Vec::new();
        for _ in 0..BUILDS_MAX {
            turns.push(self.turn().await);
        }
        turns
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn a_circuit_beyond_the_limit_waits_until_another_stands() {
        let builds = Builds::default();
        let mut building = Vec::new();
        for _ in 0..BUILDS_MAX {
            building.push(builds.turn().await);
        }
        let mut next = pin!(builds.turn());
        let mut context = Context::from_waker(Waker::noop());
        assert!(next.as_mut().poll(&mut context).is_pending());
        building.pop();
        assert!(next.as_mut().poll(&mut context).is_ready());
    }
}
