//! Why a fetch produced no page, and what that says about the next attempt.
//!
//! | what happened                                              | what follows                                             |
//! |------------------------------------------------------------|----------------------------------------------------------|
//! | Tor is not there                                           | later, uncharged                                         |
//! | Tor did not reach the shop                                 | by its reply and its reason: [`reason`]                  |
//! | no connection, no byte, silence, the deadline, a cut answer | elsewhere: the circuit is the usual culprit              |
//! | the shop hung up on a kept connection                      | here: its idle limit met the request                     |
//! | the shop hung up on a new one                              | elsewhere                                                |
//! | TLS or HTTP not as it should be, a body that does not unpack | elsewhere: an exit that meddles shows here first        |
//! | a block (a status, a word, a challenge, a small page)      | elsewhere                                                |
//! | a redirect to another shop                                 | elsewhere: shops sort exits by country                   |
//! | too large, too many redirects, one to http or to nothing, an unknown coding, a request that cannot be sent | never |

use crate::descriptors;
use crate::recipe::Block;
use crate::scraper::circuit::reason::{self, TOR_LOOK_AGAIN_AFTER};
use crate::scraper::circuit::{SocksReply, StreamReason};
use crate::scraper::decode::DecodeError;
use crate::scraper::probe::TorAway;
use std::error::Error;
use std::io;
use std::time::Duration;

/// Why one fetch through one circuit produced no page. Texts name no URL: a query may hold what must not be logged.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No fault of the shop's: whoever meets it is put back uncharged.
    #[error(transparent)]
    Tor(#[from] TorAway),
    /// With what the control port says of it, where there is one.
    #[error("tor did not reach the shop: {reply}{}", .reason.map_or(String::new(), |reason| format!("; {reason}")))]
    Unreached { reply: SocksReply, reason: Option<StreamReason> },
    /// Nothing was sent to the shop.
    #[error("all of {tried} circuits ended on exits that the shop blocks, or were lost")]
    NoOtherExit { tried: u32, blocked: bool },
    #[error("connect to the shop")]
    Connect { source: io::Error, seen: bool },
    #[error("no connection within {limit:?}")]
    ConnectTimeout { limit: Duration, seen: bool },
    #[error("agree on TLS with the shop")]
    Tls { source: rustls::Error, seen: bool },
    #[error("no byte of an answer within {limit:?}")]
    FirstByteTimeout { limit: Duration, seen: bool },
    #[error("the answer fell silent for {limit:?}")]
    SilenceTimeout { limit: Duration },
    #[error("the deadline of the visit passed")]
    Deadline { seen: bool },
    /// `kept`: on a connection that had carried an answer before, and only because the request may not be repeated.
    #[error("the connection ended before the answer began")]
    HungUp { kept: bool, seen: bool, source: hyper::Error },
    #[error("the answer was cut short after {bytes} bytes")]
    Truncated { bytes: usize, source: Box<dyn Error + Send + Sync> },
    #[error("the answer is not HTTP")]
    Protocol { source: hyper::Error },
    #[error("the head of the answer is too large")]
    HeadTooLarge { source: hyper::Error },
    #[error("body larger than {limit_bytes} bytes")]
    BodyTooLarge { limit_bytes: usize },
    #[error("body larger than {limit_bytes} bytes when decoded")]
    DecodedTooLarge { limit_bytes: usize },
    #[error("decode the body")]
    Encoding { source: DecodeError },
    #[error("{block}")]
    Blocked { block: Block },
    #[error("redirected to {host}, which is not the shop's")]
    RedirectElsewhere { host: String },
    #[error("redirected from https to http")]
    RedirectDowngrade,
    #[error("redirected to what is no web address")]
    RedirectInvalid,
    #[error("more than {limit} redirects")]
    TooManyRedirects { limit: u32 },
    #[error("request cannot be sent: {reason}")]
    Request { reason: &'static str },
}

/// What to do after an attempt that brought no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On the same circuit.
    RetryHere,
    /// Through another circuit.
    RetryElsewhere,
    /// Not before this time has passed: the shop's `Retry-After`, or Tor is away.
    Later(Duration),
    /// It would end the same way.
    Never,
}

impl FetchError {
    /// A stable word for webhooks, logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tor(_) => "tor",
            Self::Unreached { .. } | Self::Connect { .. } | Self::HungUp { .. } => "connect",
            Self::ConnectTimeout { .. }
            | Self::FirstByteTimeout { .. }
            | Self::SilenceTimeout { .. }
            | Self::Deadline { .. } => "timeout",
            Self::NoOtherExit { blocked: true, .. } => "blocked",
            Self::NoOtherExit { blocked: false, .. } => "connect",
            Self::Tls { .. } => "tls",
            Self::Truncated { .. } => "truncated",
            Self::Protocol { .. } => "protocol",
            Self::HeadTooLarge { .. } | Self::BodyTooLarge { .. } | Self::DecodedTooLarge { .. } => {
                "too_large"
            }
            Self::Encoding { .. } => "encoding",
            Self::Blocked { .. } => "blocked",
            Self::RedirectElsewhere { .. }
            | Self::RedirectDowngrade
            | Self::RedirectInvalid
            | Self::TooManyRedirects { .. } => "redirect",
            Self::Request { .. } => "request",
        }
    }

    /// Whether the exchange that failed brought one byte of the shop, which proves that Tor was there. Without one, an
    /// attempt is charged only after another circuit or a probe has shown it (rule 4).
    pub fn seen_bytes(&self) -> bool {
        match self {
            // Not even 0x04 is a byte of the shop, though it is an answer of the exit's.
            Self::Tor(_) | Self::Unreached { .. } | Self::NoOtherExit { .. } | Self::Request { .. } => false,
            Self::Connect { seen, .. }
            | Self::ConnectTimeout { seen, .. }
            | Self::Tls { seen, .. }
            | Self::FirstByteTimeout { seen, .. }
            | Self::HungUp { seen, .. }
            | Self::Deadline { seen } => *seen,
            Self::SilenceTimeout { .. }
            | Self::Truncated { .. }
            | Self::Protocol { .. }
            | Self::HeadTooLarge { .. }
            | Self::BodyTooLarge { .. }
            | Self::DecodedTooLarge { .. }
            | Self::Encoding { .. }
            | Self::Blocked { .. }
            | Self::RedirectElsewhere { .. }
            | Self::RedirectDowngrade
            | Self::RedirectInvalid
            | Self::TooManyRedirects { .. } => true,
        }
    }

    /// This machine had no descriptor for the attempt: no shop and no circuit is to blame.
    pub fn is_lack(&self) -> bool {
        match self {
            Self::Tor(away) => away.lack,
            Self::Connect { source, .. } => descriptors::is_lack(source),
            Self::Unreached { .. }
            | Self::NoOtherExit { .. }
            | Self::ConnectTimeout { .. }
            | Self::Tls { .. }
            | Self::FirstByteTimeout { .. }
            | Self::SilenceTimeout { .. }
            | Self::Deadline { .. }
            | Self::HungUp { .. }
            | Self::Truncated { .. }
            | Self::Protocol { .. }
            | Self::HeadTooLarge { .. }
            | Self::BodyTooLarge { .. }
            | Self::DecodedTooLarge { .. }
            | Self::Encoding { .. }
            | Self::Blocked { .. }
            | Self::RedirectElsewhere { .. }
            | Self::RedirectDowngrade
            | Self::RedirectInvalid
            | Self::TooManyRedirects { .. }
            | Self::Request { .. } => false,
        }
    }

    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Tor(_) => Verdict::Later(TOR_LOOK_AGAIN_AFTER),
            Self::Unreached { reply, reason } => reason::verdict(*reply, *reason),
            // The circuit is the usual culprit: the same page loads at once through another.
            Self::NoOtherExit { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::FirstByteTimeout { .. }
            | Self::SilenceTimeout { .. }
            | Self::Deadline { .. }
            | Self::Truncated { .. } => Verdict::RetryElsewhere,
            // The server's idle limit met the request; the circuit did nothing wrong.
            Self::HungUp { kept: true, .. } => Verdict::RetryHere,
            Self::HungUp { kept: false, .. } => Verdict::RetryElsewhere,
            // An exit that meddles shows here first, as a wrong certificate or a page that is not the shop's.
            Self::Tls { .. } | Self::Protocol { .. } => Verdict::RetryElsewhere,
            Self::Encoding { source } => Self::verdict_of_coding(source),
            // Shops send exits of some countries to another shop, and suspects to a challenge.
            Self::Blocked { .. } | Self::RedirectElsewhere { .. } => Verdict::RetryElsewhere,
            Self::HeadTooLarge { .. }
            | Self::BodyTooLarge { .. }
            | Self::DecodedTooLarge { .. }
            | Self::RedirectDowngrade
            | Self::RedirectInvalid
            | Self::TooManyRedirects { .. }
            | Self::Request { .. } => Verdict::Never,
        }
    }

    fn verdict_of_coding(source: &DecodeError) -> Verdict {
        match source {
            DecodeError::Unknown { .. } | DecodeError::Several | DecodeError::TooLarge { .. } => {
                Verdict::Never
            }
            DecodeError::Cut | DecodeError::Corrupt(_) => Verdict::RetryElsewhere,
        }
    }

    /// An error of the TLS handshake: the peer's doing, or the connection's.
    pub(in crate::scraper) fn of_tls(error: io::Error, seen: bool) -> Self {
        match rustls_error(&error) {
            Some(source) => Self::Tls { source, seen },
            None => Self::Connect { source: error, seen },
        }
    }
}

/// The TLS error behind `error`, if there is one.
pub(super) fn rustls_error(error: &(dyn Error + 'static)) -> Option<rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found.clone());
        }
        // An io::Error answers `source` with the source of what it holds, and so hides what it holds.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match held {
            Some(held) => Some(held as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}
