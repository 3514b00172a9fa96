//! The way in: `POST /api/scrape`, and what may be asked about it afterwards (design 2.1).
//!
//! Promise: a 202 means that the batch is on disk. Any other answer means that nothing was stored. When neither is known
//! before the request's deadline, the connection is closed without an answer, and the same request sent again gets the
//! first answer (design 4, rules 5 and 6).
//!
//! ```text
//! listener ── accept loop ──► actor ──► one task per connection ──► one task per commit
//! (the root's)  waits for a slot          hyper, under limits         outlives the connection
//! ```
//!
//! * I1 Whoever asks holds a slot, from before `accept` until its connection is closed and its commit is known. The
//!   slots belong to [`Ingress`], not to the actor, so a restart does not double them.
//! * I2 The accept loop ends with its actor. Connections outlive it: a restart cuts nobody off.
//! * I3 A panic in one connection closes that connection.
//! * I4 Every wait on a peer has a limit: header, body, a write that makes no progress.
//!
//! Deliberately absent: TLS, which is a reverse proxy's; CORS, since no other site has business here; redirects, since
//! n8n would turn a POST into a GET.

pub mod access;
pub mod actor;
mod circuits;
pub mod host;
mod service;
mod stream;
pub mod submission;
mod view;
pub mod wire;

#[cfg(test)]
mod tests;

use std::time::Duration;

use ipnet::IpNet;

pub use access::Token;
pub use actor::{Args, Drain, Drained, Ingress};
pub use host::Authority;

use crate::config::HostRule;
use crate::model::{Language, SiteName};

/// What the configuration says about the way in. Taken anew for each request.
#[derive(Clone, Debug)]
pub struct Settings {
    pub language: Language,
    /// `server.hosts`: names that may stand in `Host`, besides IP literals and `localhost`.
    pub hosts: Vec<Authority>,
    /// `server.allow_from`: peers that need no token.
    pub allow_from: Vec<IpNet>,
    pub token: Option<Token>,
    /// Shops in use, in the order of the configuration.
    pub sites: Vec<SiteName>,
    /// What may leave the machine without Tor, by configuration; `/readyz` tells it.
    pub direct: Vec<String>,
    /// `tor.circuits`.
    pub circuits: usize,
    /// `batches.ignore_prefixes`.
    pub ignore_prefixes: Vec<String>,
    /// `webhooks.hosts`: where `callback_url` and `webhook_url` may point.
    pub webhook_hosts: Vec<HostRule>,
    pub limits: Limits,
}

/// Limits of the way in; `wire` names their keys under `server` in its sentences.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of `eans`, and of `ignored3400`.
    pub products_max: usize,
    pub body_bytes_max: usize,
    pub metadata_bytes_max: usize,
    /// All header lines of a request; hyper wants at least 8192.
    pub header_bytes_max: usize,
    /// From the connection, or the last answer on it, to the end of the header: also limits idle keep-alive.
    pub header_timeout: Duration,
    /// From the header to the end of the body.
    pub body_timeout: Duration,
    /// From the header to the answer; what is not known by then is not answered.
    pub request_timeout: Duration,
}
