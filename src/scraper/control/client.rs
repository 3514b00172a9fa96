//! One connection to tor's control port: commands with their replies, and what tor says unasked.
//!
//! A task owns the socket. Commands may be sent side by side, since tor answers them in their order; each has a time
//! limit, and one that is not answered in time (a paused tor) leaves the connection as it is: whoever asked decides.
//!
//! Deliberately absent: the method `COOKIE`. It hands the contents of a file that the *other side* names to the other
//! side. `SAFECOOKIE` (tor 0.2.3, 2012) has it prove first that it knows them.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::protocol::{
    Assembler, CircuitNo, Event, Message, ProtocolInfo, Rubbish, StreamNo, answers, challenge, quote,
};

/// Tor answers each command from memory, within a millisecond; only a paused or a very busy one takes longer.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Commands that wait to be written. Each asker waits for its own, so there are no more than askers.
const COMMANDS_MAX: usize = 256;
/// Events that wait to be read: some hundred visits that begin at once. More is a reader that hangs.
const EVENTS_MAX: usize = 4_096;
const COOKIE_BYTES: usize = 32;

/// What the operator set in place of a cookie. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Why there is no connection, or no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot reach the control port {address}: {source}")]
    Unreached { address: SocketAddr, source: io::Error },
    #[error("the control port said nothing to {command} for {limit:?}")]
    Timeout { command: &'static str, limit: Duration },
    #[error("the control port hung up")]
    Closed,
    #[error(transparent)]
    Rubbish(#[from] Rubbish),
    #[error("the control port refused {command}: {code} {text}")]
    Refused { command: &'static str, code: u16, text: String },
    #[error(
        "the cookie of the control port cannot be read: {}: {source}. Put the user of glaneur into the group debian-tor and \
         `CookieAuthFileGroupReadable 1` into torrc; or set tor.control_password_file, and HashedControlPassword in torrc",
        path.display()
    )]
    Cookie { path: PathBuf, source: io::Error },
    #[error(
        "the control port wants a password: set tor.control_password_file (`tor --hash-password` makes the line \
         HashedControlPassword of torrc from it)"
    )]
    PasswordMissing,
    #[error("the control port refused the password in tor.control_password_file")]
    PasswordWrong,
    #[error(
        "the control port offers no way to authenticate that is known: set `CookieAuthentication 1` in torrc"
    )]
    NoMethod,
    #[error("who listens on the control port does not know the cookie in {}: it is not this tor", path.display())]
    Impostor { path: PathBuf },
}

/// The way to a control port. Cheap to clone; the connection ends with the last of them.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    version: Arc<str>,
    _task: Arc<Task>,
}

/// What tor says unasked; ends with the connection.
#[derive(Debug)]
pub struct Events(mpsc::Receiver<Event>);

impl Events {
    /// None: the connection is over.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

#[derive(Debug)]
struct Command {
    /// With its end of line.
    line: String,
    reply: oneshot::Sender<Message>,
}

#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// Connects and authenticates by whatever the port asks for: nothing, the password, or the cookie.
    pub async fn connect(
        address: SocketAddr,
        password: Option<&Password>,
    ) -> Result<(Self, Events), ControlError> {
        let connecting = timeout(ANSWER_WITHIN, TcpStream::connect(address)).await;
        let late = |_| ControlError::Timeout { command: "a connection", limit: ANSWER_WITHIN };
        let socket = connecting.map_err(late)?;
        let socket = socket.map_err(|source| ControlError::Unreached { address, source })?;
        // Commands are small, and each is waited for.
        let _ = socket.set_nodelay(true);
        let (commands, waiting) = mpsc::channel(COMMANDS_MAX);
        let (tell, events) = mpsc::channel(EVENTS_MAX);
        let task = tokio::spawn(async move {
            // Whoever waits for an answer, or for an event, hears of the end.
            let _ = serve(socket, waiting, tell).await;
        });
        let task = Arc::new(Task(task.abort_handle()));
        let mut client = Self { commands, version: "".into(), _task: task };
        let info = ProtocolInfo::parse(&client.ask("PROTOCOLINFO", "PROTOCOLINFO 1".to_owned()).await?)?;
        client.authenticate(&info, password).await?;
        client.version = info.version.into();
        Ok((client, Events(events)))
    }

    /// Tor's own, as `0.4.9.11`.
    pub fn version(&self) -> &str {
        &self.version
    }

    async fn authenticate(
        &self,
        info: &ProtocolInfo,
        password: Option<&Password>,
    ) -> Result<(), ControlError> {
        if info.null {
            return self.ask("AUTHENTICATE", "AUTHENTICATE".to_owned()).await.map(drop);
        }
        match (password, &info.cookie_file) {
            (Some(Password(password)), _) if info.password => {
                let line = format!("AUTHENTICATE {}", quote(password));
                match self.ask("AUTHENTICATE", line).await {
                    Err(ControlError::Refused { code: 515, .. }) => Err(ControlError::PasswordWrong),
                    other => other.map(drop),
                }
            }
            (_, Some(path)) if info.safe_cookie => self.prove_cookie(path).await,
            _ if info.password => Err(ControlError::PasswordMissing),
            _ => Err(ControlError::NoMethod),
        }
    }

    /// Both sides prove that they know the cookie, and neither shows it.
    async fn prove_cookie(&self, path: &Path) -> Result<(), ControlError> {
        let read = tokio::task::spawn_blocking({
            let path = path.to_owned();
            move || read_cookie(&path)
        });
        let read = read.await.unwrap_or_else(|_| Err(io::Error::other("the reader failed")));
        let cookie = read.map_err(|source| ControlError::Cookie { path: path.to_owned(), source })?;
        let mut nonce = [0; 32];
        // A nonce that repeats would only let an impostor replay what tor once answered to us.
        let _ = SystemRandom::new().fill(&mut nonce);
        let line = format!("AUTHCHALLENGE SAFECOOKIE {}", hex(&nonce));
        let (their_hash, their_nonce) = challenge(&self.ask("AUTHCHALLENGE", line).await?)?;
        let proof = |key: &str| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
            hmac::sign(&key, &[&cookie[..], &nonce, &their_nonce].concat())
        };
        let theirs = proof("Tor safe cookie authentication server-to-controller hash");
        if theirs.as_ref() != their_hash {
            return Err(ControlError::Impostor { path: path.to_owned() });
        }
        let ours = proof("Tor safe cookie authentication controller-to-server hash");
        self.ask("AUTHENTICATE", format!("AUTHENTICATE {}", hex(ours.as_ref()))).await.map(drop)
    }

    /// The value of one key; `Refused` if tor does not know it.
    pub async fn get_info(&self, key: &str) -> Result<String, ControlError> {
        let reply = self.ask("GETINFO", format!("GETINFO {key}")).await?;
        let found = answers(&reply).into_iter().find(|(name, _)| name == key).and_then(|(_, value)| value);
        Ok(found.ok_or(Rubbish("another answer than what was asked for"))?)
    }

    /// The value of an option; None if it is at its default and that has no text.
    pub async fn get_conf(&self, option: &str) -> Result<Option<String>, ControlError> {
        let reply = self.ask("GETCONF", format!("GETCONF {option}")).await?;
        let named = |(name, _): &(String, Option<String>)| name.eq_ignore_ascii_case(option);
        let found = answers(&reply).into_iter().find(named);
        Ok(found.ok_or(Rubbish("another option than what was asked for"))?.1)
    }

    /// Sets an option until tor ends or reads its torrc again.
    pub async fn set_conf(&self, option: &str, value: &str) -> Result<(), ControlError> {
        self.ask("SETCONF", format!("SETCONF {option}={}", quote(value))).await.map(drop)
    }

    /// Puts an option back to its default.
    pub async fn reset_conf(&self, option: &str) -> Result<(), ControlError> {
        self.ask("RESETCONF", format!("RESETCONF {option}")).await.map(drop)
    }

    /// From now on these events come, and no others.
    pub async fn set_events(&self, names: &[&str]) -> Result<(), ControlError> {
        self.ask("SETEVENTS", format!("SETEVENTS {}", names.join(" "))).await.map(drop)
    }

    /// Launches a circuit of tor's own choice; see [`Self::keep_circuit`].
    pub async fn launch_circuit(&self) -> Result<CircuitNo, ControlError> {
        let reply = self.ask("EXTENDCIRCUIT", "EXTENDCIRCUIT 0".to_owned()).await?;
        let id = reply.text().strip_prefix("EXTENDED ").and_then(|id| id.trim().parse().ok());
        Ok(CircuitNo(id.ok_or(Rubbish("a new circuit without a number"))?))
    }

    /// Keeps a circuit from being used for what tor attaches by itself; from now on tor leaves its end to us.
    ///
    /// A step of its own: launched with that purpose at once, tor 0.4.9 takes a circuit from its stock, says that it could
    /// not, and keeps the number to itself.
    pub async fn keep_circuit(&self, circuit: CircuitNo) -> Result<(), ControlError> {
        let order = format!("SETCIRCUITPURPOSE {circuit} purpose=controller");
        self.ask("SETCIRCUITPURPOSE", order).await.map(drop)
    }

    /// Attaches a stream to a circuit, or as tor itself would.
    pub async fn attach_stream(
        &self,
        stream: StreamNo,
        circuit: Option<CircuitNo>,
    ) -> Result<(), ControlError> {
        let circuit = circuit.map_or(0, |circuit| circuit.0);
        self.ask("ATTACHSTREAM", format!("ATTACHSTREAM {stream} {circuit}")).await.map(drop)
    }

    /// Ends a stream that is attached to nothing; its client hears what the exit said, as `reason` numbers it.
    pub async fn close_stream(&self, stream: StreamNo, reason: u8) -> Result<(), ControlError> {
        self.ask("CLOSESTREAM", format!("CLOSESTREAM {stream} {reason}")).await.map(drop)
    }

    /// Asks for the end of a circuit and waits for nothing: one that is gone already is as good.
    pub fn close_circuit(&self, circuit: CircuitNo) {
        let (reply, _) = oneshot::channel();
        // A full queue: tor retires the circuit by itself, in its time.
        let _ = self.commands.try_send(Command { line: format!("CLOSECIRCUIT {circuit}\r\n"), reply });
    }

    /// `command`: what an error may show; the line may hold a secret.
    async fn ask(&self, command: &'static str, line: String) -> Result<Message, ControlError> {
        let answered = timeout(ANSWER_WITHIN, async {
            let (reply, answer) = oneshot::channel();
            let sent = self.commands.send(Command { line: line + "\r\n", reply }).await;
            sent.map_err(|_| ControlError::Closed)?;
            answer.await.map_err(|_| ControlError::Closed)
        });
        let late = |_| ControlError::Timeout { command, limit: ANSWER_WITHIN };
        let message = answered.await.map_err(late)??;
        match message.code() {
            200..=299 => Ok(message),
            code => Err(ControlError::Refused { command, code, text: message.text().to_owned() }),
        }
    }
}

/// Serves a connection to its end.
async fn serve(
    mut socket: TcpStream,
    mut commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
) -> Result<(), ControlError> {
    let (mut from, mut to) = socket.split();
    let mut assembler = Assembler::default();
    let mut waiting: VecDeque<oneshot::Sender<Message>> = VecDeque::new();
    let mut bytes = vec![0; 16 * 1024];
    loop {
        tokio::select! {
            read = from.read(&mut bytes) => {
                let count = read.map_err(|_| ControlError::Closed)?;
                if count == 0 {
                    return Err(ControlError::Closed);
                }
                for message in assembler.feed(&bytes[..count])? {
                    if message.is_event() {
                        events.try_send(Event::parse(&message)?).map_err(|_| ControlError::Closed)?;
                    } else {
                        let asker = waiting.pop_front().ok_or(Rubbish("an answer that nobody asked for"))?;
                        // Gone: it did not wait so long.
                        let _ = asker.send(message);
                    }
                }
            }
            command = commands.recv() => {
                let Some(Command { line, reply }) = command else { return Ok(()) };
                waiting.push_back(reply);
                to.write_all(line.as_bytes()).await.map_err(|_| ControlError::Closed)?;
            }
        }
    }
}

/// The path comes from the other side: what is no plain file is not opened, and no more is read than a cookie has.
fn read_cookie(path: &Path) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut cookie = Vec::new();
    std::fs::File::open(path)?.take(COOKIE_BYTES as u64 + 1).read_to_end(&mut cookie)?;
    if cookie.len() != COOKIE_BYTES {
        return Err(io::Error::other("it does not have the 32 bytes of a cookie"));
    }
    Ok(cookie)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
