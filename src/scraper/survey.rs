//! What a person wants to know of Tor before trusting it, asked of a SOCKS port and, where there is one, of the control
//! port. Facts alone: what they mean is decided in `cli/tor/verdict.rs`.
//!
//! Works beside a running daemon and without one, and makes no request to any shop: a shop's name is at most looked up
//! at an exit, and the one connection that is asked for goes to a name that does not exist. Two questions with own
//! credentials are under way at once, and the control port tells which circuit each of them was put on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::circuit::SocksReply;
use super::circuit::socks::Credentials;
use super::control::ask_relay;
use super::control::client::{Client, ControlError, Events, Password};
use super::control::protocol::{Bootstrap, Circuit, CircuitNo, Event, Hop, Owner};
use super::probe::{self, Command, NAME_FOR_NOBODY, TorAway};
use super::relay::ExitRelay;

/// For the SOCKS port itself, which answers from memory.
const PORT_WITHIN: Duration = Duration::from_secs(5);
/// For a new circuit to an exit that answers: with a tor that has just started, half a minute is not rare.
const EXIT_WITHIN: Duration = Duration::from_secs(40);

/// Whom to ask.
#[derive(Clone, Debug)]
pub struct Asked {
    pub socks: SocketAddr,
    /// The control port, and its password where it has one.
    pub control: Option<(SocketAddr, Option<Password>)>,
    /// A name that exists, best a shop's: looked up, never connected to.
    pub name: Option<String>,
}

/// Everything that was seen.
#[derive(Debug)]
pub struct Seen {
    /// The SOCKS port took a password, offered nothing else.
    pub port: Result<(), TorAway>,
    /// What it chose when "no authentication" was offered besides, as tokio-socks does; none if it was not asked.
    pub choice: Option<[u8; 2]>,
    /// One for each of two credentials; none if the port is not there.
    pub ways: Option<[Way; 2]>,
    pub control: ControlSeen,
}

/// What became of the questions of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub answer: ExitAnswer,
    /// Where its streams were put, with the exit if that is still told; empty without a control port.
    pub circuits: Vec<(CircuitNo, Option<ExitRelay>)>,
}

/// What counts as proof: see `probe.rs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitAnswer {
    /// An exit looked the name up.
    Resolved,
    /// An exit said that the name for nobody does not exist.
    NobodyThere,
    /// RESOLVE, which is tor's own, is not known.
    NotTor,
    /// Why there is no proof.
    Nothing(String),
}

impl ExitAnswer {
    /// Whether an exit answered.
    pub fn is_proof(&self) -> bool {
        matches!(self, Self::Resolved | Self::NobodyThere)
    }
}

#[derive(Debug)]
pub enum ControlSeen {
    NotConfigured,
    Away(ControlError),
    There(Facts),
}

/// What the control port tells besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub version: String,
    pub bootstrap: Option<Bootstrap>,
    pub conflux: Told,
    /// The first `SocksPort` line.
    pub socks_port: Told,
    /// `MaxCircuitDirtiness`, in seconds.
    pub dirtiness: Told,
}

/// An option of tor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Told {
    Value(String),
    /// At its default, which has no text.
    Default,
    /// This tor does not know it.
    NoSuchOption,
    /// The control port did not answer.
    #[default]
    Nothing,
}

/// Asks everything; takes as long as the slowest answer, at most about a minute.
pub async fn survey(asked: &Asked) -> Seen {
    let connected = match &asked.control {
        None => Err(ControlSeen::NotConfigured),
        Some((address, password)) => {
            Client::connect(*address, password.as_ref()).await.map_err(ControlSeen::Away)
        }
    };
    let socks = asked.socks.to_string();
    let port = probe::probe_port(&socks, PORT_WITHIN).await;
    let choice = if port.is_ok() { choice(&socks).await } else { None };
    let users = [Credentials::for_a_probe(), Credentials::for_a_probe()];
    let (answers, control, mut places) = match connected {
        Err(seen) => (ask_both(&port, &users, &socks, asked.name.as_deref()).await, seen, Places::new()),
        Ok((client, events)) => {
            let owners = users.each_ref().map(Credentials::owner);
            let watch = watch(&client, events, owners).await;
            let answers = ask_both(&port, &users, &socks, asked.name.as_deref()).await;
            let facts = facts(&client).await;
            let places = watch.places(&client).await;
            (answers, ControlSeen::There(facts), places)
        }
    };
    let ways = answers.map(|answers| {
        let mut way = |answer, user: &Credentials| Way {
            answer,
            circuits: places.remove(&user.owner()).unwrap_or_default(),
        };
        let [first, second] = answers;
        [way(first, &users[0]), way(second, &users[1])]
    });
    Seen { port, choice, ways, control }
}

/// What the port picks of "no authentication" and "password".
async fn choice(socks: &str) -> Option<[u8; 2]> {
    let pick = async {
        let mut tcp = TcpStream::connect(socks).await?;
        tcp.write_all(&[0x05, 0x02, 0x00, 0x02]).await?;
        let mut reply = [0; 2];
        tcp.read_exact(&mut reply).await?;
        Ok::<_, std::io::Error>(reply)
    };
    timeout(PORT_WITHIN, pick).await.ok()?.ok()
}

async fn ask_both(
    port: &Result<(), TorAway>,
    users: &[Credentials; 2],
    socks: &str,
    name: Option<&str>,
) -> Option<[ExitAnswer; 2]> {
    port.as_ref().ok()?;
    let [first, second] = users;
    let (first, second) = tokio::join!(ask_exit(first, socks, name), ask_exit(second, socks, name));
    Some([first, second])
}

/// Asks for proof that an exit answers; a failed look-up proves nothing, so there is a second question.
async fn ask_exit(user: &Credentials, socks: &str, name: Option<&str>) -> ExitAnswer {
    let until = Instant::now() + EXIT_WITHIN;
    if let Some(name) = name.filter(|name| probe::exits_resolve(name)) {
        match timeout(EXIT_WITHIN / 2, probe::ask_as(user, socks, Command::Resolve, name)).await {
            Ok(Ok(SocksReply::Succeeded)) => return ExitAnswer::Resolved,
            Ok(Ok(SocksReply::NotSupported)) => return ExitAnswer::NotTor,
            Ok(Ok(_) | Err(_)) | Err(_) => {}
        }
    }
    match timeout_at(until, probe::ask_as(user, socks, Command::Connect, NAME_FOR_NOBODY)).await {
        Ok(Ok(SocksReply::NameOrRoute | SocksReply::Succeeded)) => ExitAnswer::NobodyThere,
        Ok(Ok(reply)) => ExitAnswer::Nothing(format!("SOCKS reply {reply}")),
        Ok(Err(away)) => ExitAnswer::Nothing(away.reason),
        Err(_) => ExitAnswer::Nothing(format!("nothing within {EXIT_WITHIN:?}")),
    }
}

async fn facts(client: &Client) -> Facts {
    let phase = client.get_info("status/bootstrap-phase").await.ok();
    Facts {
        version: client.version().to_owned(),
        bootstrap: phase.and_then(|text| Bootstrap::parse(&text).ok().flatten()),
        conflux: option(client, "ConfluxEnabled").await,
        socks_port: option(client, "SocksPort").await,
        dirtiness: option(client, "MaxCircuitDirtiness").await,
    }
}

async fn option(client: &Client, name: &str) -> Told {
    match client.get_conf(name).await {
        Ok(Some(value)) => Told::Value(value),
        Ok(None) => Told::Default,
        Err(ControlError::Refused { .. }) => Told::NoSuchOption,
        Err(_) => Told::Nothing,
    }
}

/// Where the streams of each user were put, in the order of first use.
type Places = BTreeMap<Owner, Vec<(CircuitNo, Option<ExitRelay>)>>;

/// Somebody who listens to the control port. Reads all the time: a busy tor says more than waits unread.
struct Watch {
    listener: JoinHandle<BTreeMap<Owner, Vec<CircuitNo>>>,
    stop: oneshot::Sender<()>,
}

async fn watch(client: &Client, mut events: Events, owners: [Owner; 2]) -> Watch {
    // A refusal shows as no circuit seen.
    let _ = client.set_events(&["STREAM"]).await;
    let (stop, mut stopped) = oneshot::channel();
    let listener = tokio::spawn(async move {
        let mut seen = BTreeMap::<Owner, Vec<CircuitNo>>::new();
        loop {
            let event = tokio::select! {
                biased; // What waits is read before the end is seen.
                event = events.next() => event,
                _ = &mut stopped => None,
            };
            let Some(event) = event else { return seen };
            let Event::Stream(stream) = event else { continue };
            let (Some(owner), Some(circuit)) = (stream.owner, stream.circuit) else { continue };
            if owners.contains(&owner) {
                let circuits = seen.entry(owner).or_default();
                if !circuits.contains(&circuit) {
                    circuits.push(circuit);
                }
            }
        }
    });
    Watch { listener, stop }
}

impl Watch {
    /// What was seen until now. The status is asked for last, so that what came before it is in.
    async fn places(self, client: &Client) -> Places {
        let status = client.get_info("circuit-status").await.unwrap_or_default();
        let circuits = Circuit::parse_all(&status).unwrap_or_default();
        let mut places = Places::new();
        for (owner, used) in self.until_now().await {
            let mut seen = Vec::new();
            for id in used {
                let hop =
                    circuits.iter().find(|circuit| circuit.id == id).and_then(|circuit| circuit.path.last());
                let exit = match hop {
                    Some(hop) => Some(exit(client, hop).await),
                    None => None,
                };
                seen.push((id, exit));
            }
            places.insert(owner, seen);
        }
        places
    }

    async fn until_now(self) -> BTreeMap<Owner, Vec<CircuitNo>> {
        let _ = self.stop.send(());
        self.listener.await.unwrap_or_default()
    }
}

async fn exit(client: &Client, hop: &Hop) -> ExitRelay {
    let (address, country) = ask_relay(client, hop).await.unwrap_or_default();
    ExitRelay { fingerprint: hop.fingerprint.clone(), nickname: hop.nickname.clone(), address, country }
}
