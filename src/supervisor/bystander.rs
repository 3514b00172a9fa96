//! A parent for the actors of tests: it hears of their deaths and does nothing about them.

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};

struct Bystander;

impl Actor for Bystander {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    /// Without it ractor would end the parent with its child.
    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        _: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

pub async fn bystander() -> ActorCell {
    let (actor, _) = Actor::spawn(None, Bystander, ()).await.expect("nothing in it fails");
    actor.get_cell()
}
