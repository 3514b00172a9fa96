//! Gives a tor back as it was: it attaches streams by itself again, and none waits for us.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use super::Control;
use super::client::{Client, ControlError, Password};
use super::protocol::{Stream, StreamStatus};

/// While it is set, tor leaves every stream, of whomever, to a controller.
pub(super) const UNATTACHED: &str = "__LeaveStreamsUnattached";
/// At the end of the process. A tor that takes longer is paused or gone; the next start, or `glaneur tor release`, does it.
const RELEASE_WITHIN: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// Whether tor had left streams to a controller.
    pub was_held: bool,
    /// Streams that waited.
    pub attached: usize,
}

/// Does it on a connection of its own.
pub async fn release(address: SocketAddr, password: Option<&Password>) -> Result<Released, ControlError> {
    let (client, _events) = Client::connect(address, password).await?;
    let was_held = client.get_conf(UNATTACHED).await?.as_deref() == Some("1");
    client.reset_conf(UNATTACHED).await?;
    Ok(Released { was_held, attached: attach_waiting(&client).await? })
}

/// Attaches whatever waits, as tor itself would.
pub(super) async fn attach_waiting(client: &Client) -> Result<usize, ControlError> {
    let mut attached = 0;
    for stream in Stream::parse_all(&client.get_info("stream-status").await?)? {
        let waits = matches!(stream.status, StreamStatus::New | StreamStatus::Detached);
        // Refused: it is tor's own, or gone meanwhile.
        if waits && client.attach_stream(stream.id, None).await.is_ok() {
            attached += 1;
        }
    }
    Ok(attached)
}

impl Control {
    /// The end of this process's hold on tor, if it has one; from now on it takes none. `Err`: it could not be done in time.
    pub async fn release(&self) -> Result<(), String> {
        self.0.stopping.store(true, Ordering::Release);
        if !self.is_strict() {
            return Ok(());
        }
        let password = self.password();
        match timeout(RELEASE_WITHIN, release(self.0.address, password.as_ref())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {RELEASE_WITHIN:?}")),
        }
    }
}
