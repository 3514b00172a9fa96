//! Onion services in a private network.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, timeout};

use super::{Control, TorNetwork};
use crate::{Result, Trouble, client, client::Credentials};

/// Its descriptor is with the directories after about two seconds; longer than that takes on a loaded machine.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(90);

/// One try to reach it: with a descriptor of its last points of contact a client would try for two minutes.
const TRY_MAX: Duration = Duration::from_secs(5);

/// An onion service on the client's tor, from which its visitors are six relays away all the same. It ends with that tor
/// or by [`Onion::close`], and not by being dropped.
#[derive(Debug)]
pub struct Onion {
    host: String,
    control: Control,
}

impl Onion {
    /// `….onion`; its port is 80.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Takes the service away. The directories keep its descriptor, so clients go on looking for it.
    pub async fn close(mut self) -> Result<()> {
        let id = self.host.trim_end_matches(".onion");
        self.control.command(&format!("DEL_ONION {id}")).await.map(drop)
    }
}

impl TorNetwork {
    /// Opens an onion service whose port 80 leads to `target`, and waits until the client reaches it.
    pub async fn open_onion(&self, target: SocketAddr) -> Result<Onion> {
        let mut control = self.open_control().await?;
        let order = format!("ADD_ONION NEW:ED25519-V3 Flags=DiscardPK,Detach Port=80,{target}");
        let said = control.command(&order).await?;
        let id = said.iter().find_map(|line| line.strip_prefix("ServiceID="));
        let host = format!("{}.onion", id.ok_or_else(|| Trouble::new(format!("no ServiceID: {said:?}")))?);
        let deadline = Instant::now() + PUBLISHED_WITHIN;
        let mut tries = 0_u32;
        loop {
            // Of its own, so that no failure of an earlier try is remembered.
            let password = format!("{host}-{tries}");
            let credentials = Credentials { user: "onion", password: &password };
            let reached = timeout(TRY_MAX, client::through_socks(self.socks(), credentials, &host, 80)).await;
            if matches!(reached, Ok(Ok(_))) {
                return Ok(Onion { host, control });
            }
            if Instant::now() > deadline {
                return Err(Trouble::new(format!("the onion service was not reached: {reached:?}")));
            }
            tries += 1;
            tokio::time::sleep(super::LOOK_EVERY).await;
        }
    }
}
