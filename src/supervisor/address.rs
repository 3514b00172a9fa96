//! A stable name for an actor that may be restarted.
//!
//! ractor gives a restarted actor a *new* `ActorRef`, so a handle that stored one would go stale at the first crash.
//! The supervisor owns the [`Publisher`]; every handle owns an [`Address`].

use ractor::{ActorRef, Message};
use tokio::sync::watch;

/// The supervisor's end: says which incarnation answers to the name.
#[derive(Debug)]
pub struct Publisher<M>(watch::Sender<Option<ActorRef<M>>>);

/// A handle's end: finds the incarnation that answers now.
#[derive(Debug)]
pub struct Address<M>(watch::Receiver<Option<ActorRef<M>>>);

impl<M> Clone for Address<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Makes a name that nobody answers to yet.
pub fn channel<M>() -> (Publisher<M>, Address<M>) {
    let (tx, rx) = watch::channel(None);
    (Publisher(tx), Address(rx))
}

impl<M: Message> Publisher<M> {
    pub fn publish(&self, actor: ActorRef<M>) {
        self.0.send_replace(Some(actor));
    }

    pub fn withdraw(&self) {
        self.0.send_replace(None);
    }
}

impl<M: Message> Address<M> {
    /// The actor behind this name now, or `None` while the supervisor is between incarnations.
    pub fn current(&self) -> Option<ActorRef<M>> {
        self.0.borrow().clone()
    }

    /// Sends `message` to whoever answers now; it comes back if nobody does.
    pub fn cast(&self, message: M) -> Result<(), M> {
        match self.current() {
            Some(actor) => actor.cast(message).map_err(|error| match error {
                ractor::MessagingErr::SendErr(message) => message,
                // The other two are of remote actors and of a wrong type, which a typed local reference excludes.
                ractor::MessagingErr::ChannelClosed | ractor::MessagingErr::InvalidActorType => {
                    unreachable!("a typed local actor reference")
                }
            }),
            None => Err(message),
        }
    }
}
