//! Tor's control protocol: bytes → replies and events → what they say. Pure.
//!
//! Nothing of the other side is trusted: it may be any program that listens on that port, and what it tells of other
//! users of the same tor was written by them. Lines and messages have a limit, and what is not understood is an error,
//! but for words, statuses and events that a newer tor may add.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// A circuit of ten relays has 900 bytes; a user name and a password add 255 each, up to four times as long if escaped.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// The status of ten thousand streams; tor keeps to fewer.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What the other side said is no control protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not speak tor's control protocol: {0}")]
pub struct Rubbish(pub &'static str);

/// One line of a message: `250-text`, or `250+text` with data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub code: u16,
    pub text: String,
    /// What follows a `+`, without its dots.
    pub data: Vec<String>,
}

/// A whole reply or a whole event; never without a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub lines: Vec<Line>,
}

impl Message {
    /// The last line has the last word.
    pub fn code(&self) -> u16 {
        self.lines.last().map_or(0, |line| line.code)
    }

    /// Whether it came by itself and answers nothing.
    pub fn is_event(&self) -> bool {
        self.code() / 100 == 6
    }

    /// The text of a refusal or of an `OK`.
    pub fn text(&self) -> &str {
        self.lines.last().map_or("", |line| line.text.as_str())
    }
}

/// Makes messages of the bytes as they come, in pieces of any size.
#[derive(Debug, Default)]
pub struct Assembler {
    line: Vec<u8>,
    lines: Vec<Line>,
    /// Of the message so far.
    bytes: usize,
    in_data: bool,
}

impl Assembler {
    /// The messages that end in `bytes`.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Message>, Rubbish> {
        let mut messages = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if LINE_BYTES_MAX < self.line.len() + piece.len() {
                return Err(Rubbish("a line without an end"));
            }
            self.bytes += piece.len();
            if MESSAGE_BYTES_MAX < self.bytes {
                return Err(Rubbish("a message without an end"));
            }
            self.line.extend_from_slice(piece);
            if self.line.last() != Some(&b'\n') {
                break;
            }
            let line = std::mem::take(&mut self.line);
            // Bytes of other users, in the names they ask for, must not end our connection.
            let line = String::from_utf8_lossy(&line);
            messages.extend(self.line(line.trim_end_matches(['\r', '\n']))?);
        }
        Ok(messages)
    }

    fn line(&mut self, line: &str) -> Result<Option<Message>, Rubbish> {
        if self.in_data {
            let Some(last) = self.lines.last_mut() else { return Err(Rubbish("data of no line")) };
            match line.strip_prefix('.') {
                Some("") => self.in_data = false,
                Some(stuffed) => last.data.push(stuffed.to_owned()),
                None => last.data.push(line.to_owned()),
            }
            return Ok(None);
        }
        const SHAPE: Rubbish = Rubbish("a line that begins with no code");
        let (code, rest) = line.split_at_checked(3).ok_or(SHAPE)?;
        if !code.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(SHAPE);
        }
        let code: u16 = code.parse().map_err(|_| SHAPE)?;
        let (mark, text) = rest.split_at_checked(1).ok_or(SHAPE)?;
        if self.lines.last().is_some_and(|last| (last.code / 100 == 6) != (code / 100 == 6)) {
            return Err(Rubbish("an event within a reply"));
        }
        self.lines.push(Line { code, text: text.to_owned(), data: Vec::new() });
        match mark {
            "-" => Ok(None),
            "+" => {
                self.in_data = true;
                Ok(None)
            }
            " " => {
                self.bytes = 0;
                Ok(Some(Message { lines: std::mem::take(&mut self.lines) }))
            }
            _ => Err(SHAPE),
        }
    }
}

/// The words of a line: those that have a place, and those that have a name.
#[derive(Debug, Default)]
struct Words {
    placed: Vec<String>,
    named: Vec<(String, String)>,
}

impl Words {
    fn of(text: &str) -> Result<Self, Rubbish> {
        let mut words = Self::default();
        let mut rest = text.trim_start_matches(' ');
        while !rest.is_empty() {
            let end = rest.find([' ', '"']).unwrap_or(rest.len());
            let (before, after) = rest.split_at(end);
            let (value, after) = match after.strip_prefix('"') {
                // `KEY="quoted"`, or a quoted word of its own; never one within a word.
                Some(quoted) if before.is_empty() || before.ends_with('=') => {
                    let (value, after) = unquote(quoted)?;
                    (before.to_owned() + &value, after)
                }
                Some(_) => return Err(Rubbish("a quote within a word")),
                None => (before.to_owned(), after),
            };
            match value.split_once('=') {
                Some((key, value)) if is_key(key) => words.named.push((key.to_owned(), value.to_owned())),
                _ => words.placed.push(value),
            }
            if !after.is_empty() && !after.starts_with(' ') {
                return Err(Rubbish("a word right behind a quote"));
            }
            rest = after.trim_start_matches(' ');
        }
        Ok(words)
    }

    fn named(&self, key: &str) -> Option<&str> {
        self.named.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    fn owned(&self, key: &str) -> Option<Box<str>> {
        self.named(key).map(Box::from)
    }

    fn place(&self, place: usize) -> Result<&str, Rubbish> {
        self.placed.get(place).map(String::as_str).ok_or(Rubbish("a line that ends too soon"))
    }
}

/// A relay in a path may be written `$FINGERPRINT=nick`, which names nothing.
fn is_key(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Reads a quoted text behind its first quote; gives what follows the second.
fn unquote(text: &str) -> Result<(String, &str), Rubbish> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes().iter().enumerate();
    while let Some((at, byte)) = rest.next() {
        match byte {
            b'"' => return Ok((String::from_utf8_lossy(&bytes).into_owned(), &text[at + 1..])),
            b'\\' => {
                let Some((_, escaped)) = rest.next() else { break };
                bytes.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    digit @ b'0'..=b'7' => {
                        let mut value = u16::from(digit - b'0');
                        for _ in 0..2 {
                            match rest.clone().next() {
                                Some((_, next @ b'0'..=b'7')) => {
                                    value = value * 8 + u16::from(next - b'0');
                                    rest.next();
                                }
                                _ => break,
                            }
                        }
                        u8::try_from(value).map_err(|_| Rubbish("an escape that is no byte"))?
                    }
                    other => *other,
                });
            }
            byte => bytes.push(*byte),
        }
    }
    Err(Rubbish("a quote without its end"))
}

/// A text for a command: one line whatever it holds.
pub fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            char => quoted.push(char),
        }
    }
    quoted + "\""
}

/// Tor's number for a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CircuitNo(pub u64);

/// Tor's number for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamNo(pub u64);

impl fmt::Display for CircuitNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for StreamNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn number(word: &str) -> Result<u64, Rubbish> {
    let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| word.parse().ok()).flatten().ok_or(Rubbish("something else where a number should be"))
}

/// One hop of a circuit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// 40 hexadecimal digits in upper case.
    pub fingerprint: Box<str>,
    /// Empty where tor does not know it.
    pub nickname: Box<str>,
}

impl Hop {
    fn of(text: &str) -> Result<Self, Rubbish> {
        const SHAPE: Rubbish = Rubbish("a relay without a fingerprint");
        let text = text.strip_prefix('$').ok_or(SHAPE)?;
        let (fingerprint, nickname) = text.split_once(['~', '=']).unwrap_or((text, ""));
        if fingerprint.len() != 40 || !fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(SHAPE);
        }
        Ok(Self { fingerprint: fingerprint.to_ascii_uppercase().into(), nickname: nickname.into() })
    }
}

/// The SOCKS user and password that a stream came with, or that a circuit is kept for.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    pub user: Box<str>,
    pub password: Box<str>,
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").field("user", &self.user).finish_non_exhaustive()
    }
}

fn owner(words: &Words) -> Option<Owner> {
    Some(Owner { user: words.owned("SOCKS_USERNAME")?, password: words.owned("SOCKS_PASSWORD")? })
}

/// What tor says of a circuit, in an event or in `circuit-status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuit {
    pub id: CircuitNo,
    pub status: CircuitStatus,
    /// As far as it is built; the last one is the exit.
    pub path: Vec<Hop>,
    /// `GENERAL`, `CONTROLLER`, `CONFLUX_LINKED`, ….
    pub purpose: Box<str>,
    pub owner: Option<Owner>,
    /// Why it failed or was closed, in tor's words.
    pub reason: Option<Box<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitStatus {
    /// Launched, extended, or waiting for a guard.
    Underway,
    Built,
    /// Before it was built.
    Failed,
    Closed,
}

impl Circuit {
    pub fn parse(text: &str) -> Result<Self, Rubbish> {
        let words = Words::of(text)?;
        let id = CircuitNo(number(words.place(0)?)?);
        let status = match words.place(1)? {
            "BUILT" => CircuitStatus::Built,
            "FAILED" => CircuitStatus::Failed,
            "CLOSED" => CircuitStatus::Closed,
            _ => CircuitStatus::Underway,
        };
        let path = words.placed.get(2).map(|path| path.split(',').map(Hop::of).collect());
        let reason = match (words.named("REASON"), words.named("REMOTE_REASON")) {
            (Some(reason), Some(remote)) => Some(format!("{reason} {remote}").into()),
            (reason, remote) => reason.or(remote).map(Box::from),
        };
        Ok(Self {
            id,
            status,
            path: path.transpose()?.unwrap_or_default(),
            purpose: words.owned("PURPOSE").unwrap_or_default(),
            owner: owner(&words),
            reason,
        })
    }

    /// The lines of `circuit-status`.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, Rubbish> {
        text.lines().filter(|line| !line.is_empty()).map(Self::parse).collect()
    }
}

/// What tor says of a stream, in an event or in `stream-status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    pub id: StreamNo,
    pub status: StreamStatus,
    /// None as long as it is attached to no circuit.
    pub circuit: Option<CircuitNo>,
    /// The port that its client connected from.
    pub source_port: Option<u16>,
    pub owner: Option<Owner>,
    /// It goes to an onion service, by a circuit of another kind.
    pub is_onion: bool,
    /// Why it was detached or closed: the exit's own words where there are any.
    pub reason: Option<Box<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamStatus {
    /// A new request, to connect or to resolve.
    New,
    /// Attached, and asked of the exit.
    Sent,
    Succeeded,
    /// Attached to nothing any more; may be attached again.
    Detached,
    Failed,
    Closed,
    /// Remapped, or a status of a newer tor.
    Other,
}

impl Stream {
    pub fn parse(text: &str) -> Result<Self, Rubbish> {
        let words = Words::of(text)?;
        let id = StreamNo(number(words.place(0)?)?);
        let status = match words.place(1)? {
            "NEW" | "NEWRESOLVE" => StreamStatus::New,
            "SENTCONNECT" | "SENTRESOLVE" => StreamStatus::Sent,
            "SUCCEEDED" => StreamStatus::Succeeded,
            "DETACHED" => StreamStatus::Detached,
            "FAILED" => StreamStatus::Failed,
            "CLOSED" => StreamStatus::Closed,
            _ => StreamStatus::Other,
        };
        let circuit = number(words.place(2)?)?;
        let host = words.place(3)?.rsplit_once(':').map_or("", |(host, _)| host);
        let is_onion = host.trim_end_matches('.').to_ascii_lowercase().ends_with(".onion");
        let source_port = words
            .named("SOURCE_ADDR")
            .and_then(|address| address.rsplit_once(':'))
            .and_then(|(_, port)| port.parse().ok());
        let reason = words.owned("REMOTE_REASON").or_else(|| words.owned("REASON"));
        let circuit = (circuit != 0).then_some(CircuitNo(circuit));
        Ok(Self { id, status, circuit, source_port, owner: owner(&words), is_onion, reason })
    }

    /// The lines of `stream-status`.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, Rubbish> {
        text.lines().filter(|line| !line.is_empty()).map(Self::parse).collect()
    }
}

/// How far tor is on its way to the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// In percent.
    pub progress: u8,
    /// What it does now, in tor's words.
    pub summary: String,
    /// Why it goes no further, in tor's words.
    pub trouble: Option<String>,
}

impl Bootstrap {
    /// From `status/bootstrap-phase`, or from an event behind its name.
    pub fn parse(text: &str) -> Result<Option<Self>, Rubbish> {
        let words = Words::of(text)?;
        if words.place(1)? != "BOOTSTRAP" {
            return Ok(None);
        }
        let progress = number(words.named("PROGRESS").unwrap_or_default())?;
        let progress = u8::try_from(progress).ok().filter(|progress| *progress <= 100);
        let progress = progress.ok_or(Rubbish("more than all of the bootstrap"))?;
        let trouble = words.named("WARNING").map(|warning| match words.named("REASON") {
            Some(reason) => format!("{warning} ({reason})"),
            None => warning.to_owned(),
        });
        Ok(Some(Self { progress, summary: words.named("SUMMARY").unwrap_or_default().to_owned(), trouble }))
    }

    pub fn is_done(&self) -> bool {
        self.progress == 100
    }
}

/// Something that tor said unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Circuit(Circuit),
    Stream(Stream),
    Bootstrap(Bootstrap),
    /// Options were set by somebody, or tor read its torrc again.
    ConfChanged,
    Other,
}

impl Event {
    pub fn parse(message: &Message) -> Result<Self, Rubbish> {
        let first = message.lines.first().map_or("", |line| line.text.as_str());
        let (name, rest) = first.split_once(' ').unwrap_or((first, ""));
        Ok(match name {
            "CIRC" => Self::Circuit(Circuit::parse(rest)?),
            "STREAM" => Self::Stream(Stream::parse(rest)?),
            "STATUS_CLIENT" => Bootstrap::parse(rest)?.map_or(Self::Other, Self::Bootstrap),
            "CONF_CHANGED" => Self::ConfChanged,
            _ => Self::Other,
        })
    }
}

/// What `PROTOCOLINFO` tells before anybody has authenticated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProtocolInfo {
    /// Nothing is asked for.
    pub null: bool,
    pub password: bool,
    pub safe_cookie: bool,
    pub cookie_file: Option<PathBuf>,
    pub version: String,
}

impl ProtocolInfo {
    pub fn parse(message: &Message) -> Result<Self, Rubbish> {
        let mut info = Self::default();
        for line in &message.lines {
            let words = Words::of(&line.text)?;
            match words.placed.first().map(String::as_str) {
                Some("AUTH") => {
                    for method in words.named("METHODS").unwrap_or_default().split(',') {
                        match method {
                            "NULL" => info.null = true,
                            "HASHEDPASSWORD" => info.password = true,
                            "SAFECOOKIE" => info.safe_cookie = true,
                            _ => {}
                        }
                    }
                    info.cookie_file = words.named("COOKIEFILE").map(PathBuf::from);
                }
                Some("VERSION") => info.version = words.named("Tor").unwrap_or_default().to_owned(),
                _ => {}
            }
        }
        Ok(info)
    }
}

/// The two answers to `AUTHCHALLENGE`: the hash that proves that the other side knows the cookie, and its nonce.
pub fn challenge(message: &Message) -> Result<([u8; 32], [u8; 32]), Rubbish> {
    let words = Words::of(message.text())?;
    let bytes = |key| words.named(key).and_then(from_hex).ok_or(Rubbish("a challenge without its answers"));
    Ok((bytes("SERVERHASH")?, bytes("SERVERNONCE")?))
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..text.len()).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// The answers of a reply to `GETINFO` or `GETCONF`, by their keys. An option that is at its default has no value.
pub fn answers(message: &Message) -> Vec<(String, Option<String>)> {
    let is_ok = |line: &&Line| !(line.text == "OK" && line.data.is_empty());
    let answer = |line: &Line| {
        let Some((key, value)) = line.text.split_once('=') else { return (line.text.clone(), None) };
        let value = if line.data.is_empty() { value.to_owned() } else { line.data.join("\n") };
        (key.to_owned(), Some(value))
    };
    message.lines.iter().filter(is_ok).map(answer).collect()
}

/// Where a relay listens, by the lines of `ns/id/…`.
pub fn address_of(network_status: &str) -> Option<IpAddr> {
    let line = network_status.lines().find(|line| line.starts_with("r "))?;
    line.split(' ').find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests;
