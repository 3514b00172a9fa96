//! The daemon under a service manager, which the test plays: what it tells, what it is handed, and when it falls silent.

mod drain;
mod progress;
mod sockets;
mod status;

use glaneur_kit::Daemon;
use glaneur_kit::daemon::Setup;

use crate::support::{BINARY, Stage};

fn setup(stage: &Stage) -> Setup {
    Daemon::builder(BINARY).config(stage.config.clone())
}
