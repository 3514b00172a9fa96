//! Is Tor there? Two questions, asked when nothing else can tell.
//!
//! [`probe_port`] asks the SOCKS port alone: does it speak, and does it take a password? [`probe_circuit`] asks for
//! proof that an exit answered. What counts as proof was tried on tor 0.4.9.11, with all its relays dead and alive:
//!
//! * RESOLVE of a name, 0x00: an exit looked it up. Proof. (An address is echoed by the client itself: no proof.)
//! * RESOLVE, 0x04: **no proof**. The client answers every failed RESOLVE so: after `SocksTimeout` without a circuit,
//!   and at once for `.onion`.
//! * CONNECT, 0x04: the exit could not resolve the name, or found no route. Proof.
//! * CONNECT, 0x01: **no proof**. It is the reply for a dead circuit, for a client that never had a network, for a
//!   refused port, a policy, a resolver that fails. 0x06 is a circuit that was not built in time.
//!
//! So a shop's name is looked up first, which no shop sees; and if that proves nothing, a CONNECT to a name that does
//! not exist has the last word. A shop whose resolver is dead is thereby not taken for a dead Tor, which would make
//! every other shop wait. Where neither proves anything Tor counts as away: work waits and asks again, while the
//! opposite mistake would charge visits for a network that is not there.
//!
//! Deliberately absent: `circuit-established` of the control port, which stays 1 with all relays dead.

use crate::descriptors;
use crate::scraper::circuit::socks::{Credentials, SocksReply};
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

/// Never exists (RFC 6761), so the exit's failure to resolve it is the expected answer.
pub(super) const NAME_FOR_NOBODY: &str = "probe.invalid";

/// Tor cannot be used now, through no fault of any shop: whoever meets it waits, and is charged nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tor is away: {reason}")]
pub struct TorAway {
    /// One line in plain words.
    pub reason: String,
    /// Nothing is said of Tor: this machine had no descriptor to ask it with.
    pub lack: bool,
}

impl TorAway {
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), lack: false }
    }

    /// No connection to `socks` could be made.
    pub fn unreached(socks: &str, error: &io::Error) -> Self {
        Self { reason: format!("cannot reach {socks}: {error}"), lack: descriptors::is_lack(error) }
    }
}

/// Asks the SOCKS port at `socks` (`host:port`) to take a password, offering nothing else.
pub async fn probe_port(socks: &str, within: Duration) -> Result<(), TorAway> {
    let greeted = timeout(within, greet(socks, &Credentials::for_a_probe())).await;
    greeted.map_err(|_| TorAway::new(format!("{socks} said nothing for {within:?}")))?.map(|_| ())
}

/// Asks for proof that a new circuit to some exit works, by a look-up of `name`, best a shop's; no shop sees it.
pub async fn probe_circuit(socks: &str, name: &str, within: Duration) -> Result<(), TorAway> {
    let until = Instant::now() + within;
    if exits_resolve(name) {
        // The rest of the time is for the second question, whatever happens to the first.
        match timeout(within / 2, ask(socks, Command::Resolve, name)).await {
            Ok(Ok(SocksReply::Succeeded)) => return Ok(()),
            Ok(Err(away)) => return Err(away),
            Ok(Ok(_)) | Err(_) => {}
        }
    }
    let asked = timeout_at(until, ask(socks, Command::Connect, NAME_FOR_NOBODY)).await;
    match asked.map_err(|_| TorAway::new(format!("no exit answered within {within:?}")))?? {
        SocksReply::Succeeded | SocksReply::NameOrRoute => Ok(()),
        no_proof => Err(TorAway::new(format!("no exit answered ({no_proof})"))),
    }
}

/// Whether the answer for `name` comes from an exit; the client answers for the others by itself.
pub(super) fn exits_resolve(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    let local =
        name == "localhost" || [".onion", ".exit", ".localhost"].iter().any(|end| name.ends_with(end));
    !name.is_empty() && name.len() <= 255 && !address && !local
}

#[derive(Clone, Copy)]
pub(super) enum Command {
    Connect = 0x01,
    Resolve = 0xf0,
}

/// A port that every exit allows; nothing is reached there.
const PROBE_PORT: u16 = 443;

/// One question on a circuit of its own.
async fn ask(socks: &str, command: Command, name: &str) -> Result<SocksReply, TorAway> {
    ask_as(&Credentials::for_a_probe(), socks, command, name).await
}

/// One question on the circuit of these credentials.
pub(super) async fn ask_as(
    credentials: &Credentials,
    socks: &str,
    command: Command,
    name: &str,
) -> Result<SocksReply, TorAway> {
    let mut tcp = greet(socks, credentials).await?;
    let length = u8::try_from(name.len()).map_err(|_| TorAway::new("name to probe with is too long"))?;
    let mut request = vec![0x05, command as u8, 0x00, 0x03, length];
    request.extend_from_slice(name.as_bytes());
    request.extend_from_slice(&PROBE_PORT.to_be_bytes());
    tcp.write_all(&request).await.map_err(|error| hung_up(socks, &error))?;
    let mut reply = [0; 2];
    tcp.read_exact(&mut reply).await.map_err(|error| hung_up(socks, &error))?;
    match reply {
        [0x05, code] => Ok(SocksReply::of(code)),
        _ => Err(TorAway::new(format!("{socks} does not speak SOCKS5"))),
    }
}

/// Connects and authenticates.
async fn greet(socks: &str, credentials: &Credentials) -> Result<TcpStream, TorAway> {
    let reached = TcpStream::connect(socks).await;
    let mut tcp = reached.map_err(|error| TorAway::unreached(socks, &error))?;
    tcp.write_all(&[0x05, 0x01, 0x02]).await.map_err(|error| hung_up(socks, &error))?;
    let mut reply = [0; 2];
    tcp.read_exact(&mut reply).await.map_err(|error| hung_up(socks, &error))?;
    check_method(socks, reply)?;
    tcp.write_all(&credentials.message()).await.map_err(|error| hung_up(socks, &error))?;
    tcp.read_exact(&mut reply).await.map_err(|error| hung_up(socks, &error))?;
    check_password(socks, reply)?;
    Ok(tcp)
}

/// What the port's choice of a method means: anything but "password" would put every circuit's streams on one circuit.
pub(super) fn check_method(socks: &str, reply: [u8; 2]) -> Result<(), TorAway> {
    match reply {
        [0x05, 0x02] => Ok(()),
        [0x05, 0x00] => {
            Err(TorAway::new(format!("{socks} wants no password, so circuits would not be isolated")))
        }
        [0x05, 0xff] => Err(TorAway::new(format!("{socks} takes no password"))),
        [0x05, method] => Err(TorAway::new(format!("{socks} chose the unknown method {method:#04x}"))),
        _ => Err(TorAway::new(format!("{socks} does not speak SOCKS5"))),
    }
}

pub(super) fn check_password(socks: &str, reply: [u8; 2]) -> Result<(), TorAway> {
    match reply {
        [0x01, 0x00] => Ok(()),
        _ => Err(TorAway::new(format!("{socks} refused the password, so it is not tor"))),
    }
}

fn hung_up(socks: &str, error: &io::Error) -> TorAway {
    TorAway::new(format!("{socks} hung up: {error}"))
}

#[cfg(test)]
mod tests {
    use super::{exits_resolve, probe_circuit, probe_port};
    use crate::scraper::stand_in::{Manner, Socks};
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(20);
    const AT_ONCE: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_port_that_takes_a_password_is_there() {
        let socks = Socks::start(Manner::Replies { connect: 0x00, resolve: 0x00 }).await;
        assert_eq!(probe_port(&socks.address, SOON).await, Ok(()));
    }

    #[tokio::test]
    async fn a_port_that_is_not_tor_is_away_with_its_reason() {
        for (manner, reason) in [
            (Manner::TakesNoAuth, "would not be isolated"),
            (Manner::RefusesMethods, "takes no password"),
            (Manner::RefusesPassword, "refused the password"),
            (Manner::SpeaksHttp, "does not speak SOCKS5"),
            (Manner::HangsUpAtOnce, "hung up"),
        ] {
            let socks = Socks::start(manner).await;
            let away = probe_port(&socks.address, SOON).await.unwrap_err();
            assert!(away.reason.contains(reason), "{manner:?}: {away}");
        }
        let socks = Socks::start(Manner::StallsAtOnce).await;
        let away = probe_port(&socks.address, AT_ONCE).await.unwrap_err();
        assert!(away.reason.contains("said nothing"), "{away}");
        let away = probe_port(&Socks::nobody().await, SOON).await.unwrap_err();
        assert!(away.reason.contains("cannot reach"), "{away}");
    }

    #[tokio::test]
    async fn only_an_exit_proves_a_circuit() {
        for (resolve, connect, there) in [
            (0x00, 0x01, true),
            (0x04, 0x04, true), // The exit could not resolve the name of nobody.
            (0x04, 0x00, true), // A resolver that knows everybody.
            (0x01, 0x04, true),
            (0x04, 0x01, false), // What a tor that never had a network says.
            (0x04, 0x06, false), // What a tor says whose relays are dead.
            (0x01, 0x01, false),
        ] {
            let socks = Socks::start(Manner::Replies { connect, resolve }).await;
            let answer = probe_circuit(&socks.address, "www.shop.example", SOON).await;
            assert_eq!(answer.is_ok(), there, "{resolve:#04x} {connect:#04x}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn a_dead_resolver_of_one_shop_is_not_a_dead_tor() {
        let socks = Socks::start(Manner::StallsResolve).await;
        assert_eq!(probe_circuit(&socks.address, "www.shop.example", Duration::from_secs(1)).await, Ok(()));
        let socks = Socks::start(Manner::StallsReply).await;
        let away = probe_circuit(&socks.address, "www.shop.example", AT_ONCE).await.unwrap_err();
        assert!(away.reason.contains("no exit answered within"), "{away}");
    }

    #[tokio::test]
    async fn every_question_has_a_circuit_of_its_own() {
        let socks = Socks::start(Manner::Replies { connect: 0x04, resolve: 0x04 }).await;
        probe_circuit(&socks.address, "www.shop.example", SOON).await.unwrap();
        probe_circuit(&socks.address, "www.shop.example", SOON).await.unwrap();
        let mut passwords: Vec<_> = socks.dials().into_iter().map(|dial| dial.password).collect();
        assert_eq!(passwords.len(), 4);
        passwords.sort();
        passwords.dedup();
        assert_eq!(passwords.len(), 4);
    }

    #[tokio::test]
    async fn a_name_that_tor_answers_for_itself_is_not_asked_for() {
        for name in ["127.0.0.1", "[::1]", "shop.onion", "Shop.ONION.", "a.exit", "localhost", ""] {
            assert!(!exits_resolve(name), "{name}");
        }
        let socks = Socks::start(Manner::Replies { connect: 0x04, resolve: 0x04 }).await;
        probe_circuit(&socks.address, "10.1.2.3", SOON).await.unwrap();
        assert!(socks.dials().iter().all(|dial| dial.host == "probe.invalid"), "{:?}", socks.dials());
    }
}
