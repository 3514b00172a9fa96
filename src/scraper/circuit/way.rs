//! The dial through Tor: bound to a circuit where there is a control port, and from elsewhere than where a shop blocked.

use tokio::net::TcpStream;

use super::socks::{self, Dialled};
use super::{Circuit, StreamReason, is_onion};
use crate::model::page::Via;
use crate::scraper::control::protocol::{CircuitNo, Owner};
use crate::scraper::control::{Control, Unbound};
use crate::scraper::fetch::FetchError;
use crate::telemetry::Event;
use tokio::time::Instant;

/// Dials for one connection: each may meet an exit that the shop blocks (by credentials it is known only afterwards), or
/// a circuit that died or was not ours. Beyond it the exits of this hour are blocked, and the shop may be left in peace.
const DIALS_MAX: u32 = 12;

/// What a dial came to, once its way is known.
enum Way {
    Through(TcpStream),
    /// Nothing was sent: once more. `blocked`: the shop blocks the exit; else the circuit is not the one that was promised.
    Again {
        blocked: bool,
    },
    Ended(FetchError),
}

impl Circuit {
    /// A stream to the shop, through an exit that it does not block as far as that can be known.
    pub(super) async fn reach_through_tor(&mut self, host: &str, port: u16) -> Result<TcpStream, FetchError> {
        let mut any_blocked = false;
        for _ in 0..DIALS_MAX {
            match self.try_through_tor(host, port).await {
                Way::Through(tcp) => return Ok(tcp),
                Way::Again { blocked } => any_blocked |= blocked,
                Way::Ended(error) => return Err(error),
            }
        }
        Err(FetchError::NoOtherExit { tried: DIALS_MAX, blocked: any_blocked })
    }

    async fn try_through_tor(&mut self, host: &str, port: u16) -> Way {
        // The way to an onion service has no exit, and is tor's own choice.
        let control = self.settings.control.clone().filter(|_| !is_onion(host));
        let owner = self.credentials.owner();
        if let Some(control) = &control {
            control.dials(&owner);
        }
        let bound = match &control {
            Some(control) if control.is_strict() => match self.bind(control, &owner).await {
                Ok(circuit) => Some(circuit),
                Err(error) => return Way::Ended(error),
            },
            Some(_) | None => None,
        };
        let tcp = match socks::dial(self.settings.tor.socks(), host, port, &self.credentials).await {
            Dialled::Connected(tcp) => tcp,
            Dialled::Refused(reply) => {
                let Some(control) = control else {
                    return Way::Ended(FetchError::Unreached { reply, reason: None });
                };
                if bound.is_some_and(|circuit| !control.stands(circuit)) {
                    return Way::Again { blocked: false };
                }
                let reason = control.refusal(&owner).await;
                let reason = reason.and_then(|reason| StreamReason::parse(&reason));
                return Way::Ended(FetchError::Unreached { reply, reason });
            }
            Dialled::Away(away) => return Way::Ended(FetchError::Tor(away)),
        };
        let Some(control) = control else { return Way::Through(tcp) };
        let route = match tcp.local_addr() {
            Ok(local) => control.route(&owner, local.port()).await,
            Err(_) => None,
        };
        match (bound, route) {
            (Some(bound), Some((circuit, exit))) if bound == circuit => self.exit_is(Some(exit)),
            // Tor attached it by itself, or does not say: not the circuit that was promised.
            (Some(_), _) => return Way::Again { blocked: false },
            (None, Some((_, exit))) => self.exit_is(Some(exit)),
            (None, None) => self.exit_is(None),
        }
        if self.is_blocked_here() {
            self.avoid_blocked_exit();
            self.note_use(Via::Tor); // The fetch that is under way goes on through the new one.
            return Way::Again { blocked: true };
        }
        Way::Through(tcp)
    }

    async fn bind(&self, control: &Control, owner: &Owner) -> Result<CircuitNo, FetchError> {
        let (site, blocks) = (self.serves.as_deref(), &self.settings.blocks);
        let is_blocked = |exit: &_| site.is_some_and(|site| blocks.is_blocked(site, exit, Instant::now()));
        control.bind(owner, is_blocked).await.map_err(|unbound| match unbound {
            Unbound::Away(away) => FetchError::Tor(away),
            Unbound::NoOtherExit { tried, blocked } => FetchError::NoOtherExit { tried, blocked },
        })
    }

    /// Leaves an exit that the shop of now blocked, before it is asked for anything: its own, or another circuit's news.
    pub fn avoid_blocked_exit(&mut self) {
        if self.is_blocked_here() {
            Event::CircuitRetired { circuit: &self.id.to_string(), reason: "exit_blocked" }.emit();
            self.rotate();
        }
    }

    fn is_blocked_here(&self) -> bool {
        let (Some(site), Some(exit)) = (&self.serves, &self.exit) else { return false };
        self.settings.blocks.is_blocked(site, exit, Instant::now())
    }
}
