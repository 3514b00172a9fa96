//! A gate that holds an answer back until the test opens it, so that a test can stop in the middle of something.

use std::sync::Arc;

use tokio::sync::watch;

/// A gate, closed at first. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    open: Arc<watch::Sender<bool>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::closed()
    }
}

impl Gate {
    /// A new gate, closed.
    pub fn closed() -> Self {
        Self { open: Arc::new(watch::Sender::new(false)) }
    }

    /// Lets through all who wait, and all who come later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Holds back all who come from now on.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Whether it lets through.
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Waits until nobody waits at the gate: those who were held back went away, or through.
    pub async fn left(&self) {
        self.open.closed().await;
    }

    /// Waits until the gate is open.
    pub async fn passed(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}
