//! A stable name for an actor that may be restarted.
//!
//! ractor gives a restarted actor a *new* `ActorRef`, so a handle that stored one would go stale at the first crash.
//! The supervisor owns the [`Publisher`]; every handle owns an [`Address`].

use ractor::rpc::CallResult;
use ractor::{Actor, ActorCell, ActorRef, Message, RpcReplyPort, SpawnErr};
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
    /// Starts an incarnation under `supervisor` and lets it answer to the name; until then, and if it does not start,
    /// nobody does. `first` is in its mailbox before anything else.
    ///
    /// `name` is ractor's own, for its log: one for the whole process, so only for what is there once in it.
    pub async fn start<A>(
        &self,
        name: Option<&str>,
        actor: A,
        arguments: A::Arguments,
        first: Option<M>,
        supervisor: ActorCell,
    ) -> Result<ActorCell, SpawnErr>
    where
        A: Actor<Msg = M>,
    {
        self.0.send_replace(None);
        let name = name.map(str::to_owned);
        let (actor, _) = Actor::spawn_linked(name, actor, arguments, supervisor).await?;
        let cell = actor.get_cell();
        if let Some(first) = first {
            actor.cast(first).map_err(|error| SpawnErr::StartupFailed(error.into()))?;
        }
        self.0.send_replace(Some(actor));
        Ok(cell)
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

/// Tells `actor` of each change, until it is gone. At most one such message waits for it, however many changes came
/// meanwhile: mailboxes have no bound of their own. `tell` carries a port that is answered when the message is handled.
pub async fn tell_changes<T, M: Message>(
    mut changes: watch::Receiver<T>,
    actor: ActorRef<M>,
    tell: impl Fn(RpcReplyPort<()>) -> M,
) {
    while changes.changed().await.is_ok() {
        let Ok(CallResult::Success(())) = actor.call(&tell, None).await else { return };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use ractor::{ActorProcessingErr, SupervisionEvent};
    use tokio::sync::Semaphore;

    use super::*;

    /// Takes a permit for each message.
    struct Slow;

    enum Msg {
        Changed(RpcReplyPort<()>),
        Plain(u32),
        Panic,
    }

    impl Actor for Slow {
        type Msg = Msg;
        type State = (Arc<Semaphore>, u32);
        type Arguments = Arc<Semaphore>;

        async fn pre_start(
            &self,
            _: ActorRef<Msg>,
            go: Self::Arguments,
        ) -> Result<Self::State, ActorProcessingErr> {
            go.acquire().await?.forget();
            Ok((go, 0))
        }

        async fn handle(
            &self,
            _: ActorRef<Msg>,
            msg: Msg,
            (go, handled): &mut Self::State,
        ) -> Result<(), ActorProcessingErr> {
            match msg {
                Msg::Changed(reply) => {
                    go.acquire().await?.forget();
                    *handled += 1;
                    reply.send(())?;
                }
                Msg::Plain(n) => assert_eq!(n, 1, "the first message is first"),
                Msg::Panic => panic!("asked to"),
            }
            Ok(())
        }

        async fn handle_supervisor_evt(
            &self,
            _: ActorRef<Msg>,
            _: SupervisionEvent,
            _: &mut Self::State,
        ) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
    }

    async fn parent() -> ActorCell {
        Actor::spawn(None, Slow, Arc::new(Semaphore::new(1))).await.unwrap().0.get_cell()
    }

    #[tokio::test(start_paused = true)]
    async fn a_handle_finds_the_next_incarnation_and_nobody_in_between() {
        let (publisher, address) = channel::<Msg>();
        assert!(address.cast(Msg::Plain(1)).is_err(), "nobody yet");
        let parent = parent().await;
        let start = || publisher.start(None, Slow, Arc::new(Semaphore::new(1)), None, parent.clone());
        let one = start().await.unwrap();
        assert_eq!(address.current().unwrap().get_id(), one.get_id());
        address.cast(Msg::Panic).map_err(|_| "gone").unwrap();
        one.wait(None).await.unwrap();
        assert!(address.cast(Msg::Plain(1)).is_err(), "it comes back to its sender");
        let two = start().await.unwrap();
        assert_eq!(address.current().unwrap().get_id(), two.get_id());
        // A start that fails leaves nobody behind the name.
        let closed = Arc::new(Semaphore::new(0));
        closed.close();
        assert!(publisher.start(None, Slow, closed, None, parent.clone()).await.is_err());
        assert!(address.current().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_changes_while_an_actor_is_busy_are_one_message() {
        let go = Arc::new(Semaphore::new(1));
        let (actor, _) = Actor::spawn(None, Slow, Arc::clone(&go)).await.unwrap();
        let (changes, seen) = watch::channel(0);
        let telling = tokio::spawn(tell_changes(seen, actor.clone(), Msg::Changed));
        for n in 1..=1_000 {
            changes.send_replace(n);
            tokio::task::yield_now().await;
        }
        // One is being handled; what came after it is one more. A third has no reason to come.
        go.add_permits(3);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(go.available_permits(), 1, "two of three were used");
        actor.stop(None);
        changes.send_replace(0);
        telling.await.unwrap();
    }
}
