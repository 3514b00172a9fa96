//! What Tor tells of a stream that failed, and what follows from it. Pure.
//!
//! The SOCKS port answers with one byte, and most of what goes wrong is 0x01 there; the control port tells the reason
//! besides (`STREAM … REASON=END REMOTE_REASON=…`). What is known decides:
//!
//! | SOCKS reply                  | reason of the control port             | what follows, and why                                  |
//! |------------------------------|----------------------------------------|--------------------------------------------------------|
//! | 0x01 to 0x06, or unknown     | none                                   | elsewhere: a refused port, a policy, a dead circuit or a silent shop look alike |
//! | 0xF0 to 0xF3, 0xF7           | none                                   | elsewhere: the onion service may be reached by another path |
//! | 0xF4, 0xF5, 0xF6             | none                                   | never: the address or the key is wrong                  |
//! | 0x00, 0x07, 0x08             | none                                   | never: nothing that this program asks for               |
//! | any                          | `EXITPOLICY`                           | elsewhere: this exit does not go there, others do        |
//! | any                          | `RESOLVEFAILED`                        | elsewhere: this exit's resolver does not know the name   |
//! | any                          | `CONNECTREFUSED`, `CONNRESET`          | elsewhere: many shops refuse exits so, and one that is down refuses all |
//! | any                          | `TIMEOUT`, `NOROUTE`, `NET_UNREACHABLE` | elsewhere: the shop is silent to this exit              |
//! | any                          | `DESTROY`, `DONE`, `END`               | elsewhere: the circuit went                             |
//! | any                          | `HIBERNATING`, `RESOURCELIMIT`, `INTERNAL`, `TORPROTOCOL`, `MISC` | elsewhere: the relay's trouble |
//! | any                          | `CANT_ATTACH`                          | later: tor has no circuit, and a further one costs it more |
//! | any                          | `PRIVATE_ADDR`, `NOTDIRECTORY`         | never: the shop's address is none that Tor goes to       |
//!
//! "Elsewhere" retires the circuit, also where the shop is to blame: a new one costs a second, and a visit that is wrongly
//! repeated by the same exit costs an attempt.

use std::fmt;
use std::time::Duration;

use super::socks::{OnionFailure, SocksReply};
use crate::scraper::fetch::Verdict;

/// How soon it is worth asking Tor again for what it could not do.
pub(in crate::scraper) const TOR_LOOK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Why a stream ended, by the control port; from the far end where that said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamReason {
    Misc,
    ResolveFailed,
    ConnectRefused,
    ExitPolicy,
    Destroy,
    Done,
    Timeout,
    NoRoute,
    Hibernating,
    Internal,
    ResourceLimit,
    ConnReset,
    TorProtocol,
    NotDirectory,
    End,
    PrivateAddr,
    CantAttach,
    NetUnreachable,
}

impl StreamReason {
    /// As the control port writes them (control-spec, 4.1.2).
    const WORDS: [(&str, Self); 18] = [
        ("MISC", Self::Misc),
        ("RESOLVEFAILED", Self::ResolveFailed),
        ("CONNECTREFUSED", Self::ConnectRefused),
        ("EXITPOLICY", Self::ExitPolicy),
        ("DESTROY", Self::Destroy),
        ("DONE", Self::Done),
        ("TIMEOUT", Self::Timeout),
        ("NOROUTE", Self::NoRoute),
        ("HIBERNATING", Self::Hibernating),
        ("INTERNAL", Self::Internal),
        ("RESOURCELIMIT", Self::ResourceLimit),
        ("CONNRESET", Self::ConnReset),
        ("TORPROTOCOL", Self::TorProtocol),
        ("NOTDIRECTORY", Self::NotDirectory),
        ("END", Self::End),
        ("PRIVATE_ADDR", Self::PrivateAddr),
        ("CANT_ATTACH", Self::CantAttach),
        ("NET_UNREACHABLE", Self::NetUnreachable),
    ];

    /// The word after `REMOTE_REASON=`, or after `REASON=` where there is no other; `None` for one that is not known, which
    /// is no more than no reason.
    pub fn parse(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, reason)| *reason)
    }
}

impl fmt::Display for StreamReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::WORDS.iter().find(|(_, reason)| reason == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

/// What to do after Tor did not reach a shop.
pub fn verdict(reply: SocksReply, reason: Option<StreamReason>) -> Verdict {
    match reason {
        Some(reason) => verdict_of_reason(reason),
        None => verdict_of_reply(reply),
    }
}

fn verdict_of_reason(reason: StreamReason) -> Verdict {
    match reason {
        StreamReason::Misc
        | StreamReason::ResolveFailed
        | StreamReason::ConnectRefused
        | StreamReason::ExitPolicy
        | StreamReason::Destroy
        | StreamReason::Done
        | StreamReason::Timeout
        | StreamReason::NoRoute
        | StreamReason::Hibernating
        | StreamReason::Internal
        | StreamReason::ResourceLimit
        | StreamReason::ConnReset
        | StreamReason::TorProtocol
        | StreamReason::End
        | StreamReason::NetUnreachable => Verdict::RetryElsewhere,
        StreamReason::CantAttach => Verdict::Later(TOR_LOOK_AGAIN_AFTER),
        StreamReason::PrivateAddr | StreamReason::NotDirectory => Verdict::Never,
    }
}

fn verdict_of_reply(reply: SocksReply) -> Verdict {
    match reply {
        // Each of these may be the exit's or the circuit's doing alone; see `SocksReply`.
        SocksReply::General
        | SocksReply::NotAllowed
        | SocksReply::NetworkUnreachable
        | SocksReply::NameOrRoute
        | SocksReply::Refused
        | SocksReply::Expired
        | SocksReply::Other(_) => Verdict::RetryElsewhere,
        SocksReply::Onion(
            OnionFailure::DescriptorNotFound
            | OnionFailure::DescriptorInvalid
            | OnionFailure::Introduction
            | OnionFailure::Rendezvous
            | OnionFailure::IntroductionTimedOut,
        ) => Verdict::RetryElsewhere,
        SocksReply::Onion(
            OnionFailure::ClientAuthMissing | OnionFailure::ClientAuthWrong | OnionFailure::BadAddress,
        ) => Verdict::Never,
        SocksReply::Succeeded | SocksReply::NotSupported => Verdict::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_read_as_it_is_written_and_another_is_none() {
        for (number, (word, reason)) in StreamReason::WORDS.into_iter().enumerate() {
            assert_eq!(reason as usize, number, "each is in the table");
            assert_eq!((StreamReason::parse(word), reason.to_string().as_str()), (Some(reason), word));
        }
        assert_eq!(StreamReason::parse("SOMETHING_NEW"), None);
    }

    #[test]
    fn a_reply_without_a_reason_says_little_and_the_reason_decides() {
        for reply in [SocksReply::General, SocksReply::NameOrRoute, SocksReply::Expired, SocksReply::Other(9)]
        {
            assert_eq!(verdict(reply, None), Verdict::RetryElsewhere, "{reply}");
            let with = |word: &str| verdict(reply, StreamReason::parse(word));
            assert_eq!(with("EXITPOLICY"), Verdict::RetryElsewhere);
            assert_eq!(with("CANT_ATTACH"), Verdict::Later(TOR_LOOK_AGAIN_AFTER));
            assert_eq!(with("PRIVATE_ADDR"), Verdict::Never);
            assert_eq!(with("SOMETHING_NEW"), Verdict::RetryElsewhere);
        }
    }

    #[test]
    fn tors_own_codes_tell_a_wrong_address_from_a_service_that_is_away() {
        for code in [0xf0, 0xf1, 0xf2, 0xf3, 0xf7] {
            assert_eq!(verdict(SocksReply::of(code), None), Verdict::RetryElsewhere, "{code:#04x}");
        }
        for code in [0xf4, 0xf5, 0xf6] {
            assert_eq!(verdict(SocksReply::of(code), None), Verdict::Never, "{code:#04x}");
        }
    }
}
