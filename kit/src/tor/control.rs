//! A client of tor's control port, as far as tests need it: who uses which circuit, through which exit.

use std::{fmt::Write, fs, net::SocketAddr, path::Path};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::{Because, Result, Trouble};

/// A connection to a control port.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<TcpStream>,
}

/// One circuit, as `GETINFO circuit-status` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuit {
    /// Tor's number for it.
    pub id: String,
    /// `BUILT`, `EXTENDED`, ….
    pub state: String,
    /// The nicknames of its relays; the last one is the exit.
    pub path: Vec<String>,
    /// `GENERAL`, `CONFLUX_LINKED`, ….
    pub purpose: String,
    /// The SOCKS user it belongs to.
    pub socks_username: Option<String>,
    /// The password of that user.
    pub socks_password: Option<String>,
}

impl Circuit {
    /// The nickname of its exit.
    pub fn exit(&self) -> Option<&str> {
        self.path.last().map(String::as_str)
    }
}

impl Control {
    /// Connects and authenticates with the cookie in this file.
    pub async fn connect(address: SocketAddr, cookie: &Path) -> Result<Self> {
        let secret = fs::read(cookie).because(format_args!("read {}", cookie.display()))?;
        let mut hex = String::new();
        for byte in secret {
            write!(hex, "{byte:02x}").because("write to memory")?;
        }
        let stream = TcpStream::connect(address)
            .await
            .because(format_args!("connect to the control port {address}"))?;
        let mut control = Self { stream: BufReader::new(stream) };
        control.command(&format!("AUTHENTICATE {hex}")).await?;
        Ok(control)
    }

    /// Sends a command and gives the lines of its reply, without the codes and the `OK` at the end.
    pub async fn command(&mut self, command: &str) -> Result<Vec<String>> {
        let name = command.split(' ').next().unwrap_or_default();
        let sent = self.stream.write_all(format!("{command}\r\n").as_bytes()).await;
        sent.because(format_args!("send {name} to the control port"))?;
        let mut lines = Vec::new();
        let mut in_data = false;
        loop {
            let mut line = String::new();
            let read =
                self.stream.read_line(&mut line).await.because(format_args!("read the reply to {name}"))?;
            if read == 0 {
                return Err(Trouble::new(format!("tor closed the control port during {name}")));
            }
            let line = line.trim_end();
            if in_data {
                match line {
                    "." => in_data = false,
                    _ => lines.push(line.to_owned()),
                }
                continue;
            }
            let (code, mark, text) = (line.get(..3), line.get(3..4), line.get(4..));
            match (code, mark, text) {
                (Some("250"), Some(" "), Some("OK")) => return Ok(lines),
                (Some("250"), Some(mark), Some(text)) => {
                    lines.push(text.to_owned());
                    in_data = mark == "+";
                    if mark == " " {
                        return Ok(lines);
                    }
                }
                _ => return Err(Trouble::new(format!("tor answers to {name}: {line}"))),
            }
        }
    }

    /// The next event asked for by `SETEVENTS`, without its code.
    pub async fn event(&mut self) -> Result<String> {
        loop {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line).await.because("read an event of the control port")?;
            if read == 0 {
                return Err(Trouble::new("tor closed the control port"));
            }
            if let Some(event) = line.trim_end().strip_prefix("650 ") {
                return Ok(event.to_owned());
            }
        }
    }

    /// All circuits.
    pub async fn circuit_status(&mut self) -> Result<Vec<Circuit>> {
        let lines = self.command("GETINFO circuit-status").await?;
        Ok(lines.iter().filter_map(|line| circuit(line)).collect())
    }
}

fn circuit(line: &str) -> Option<Circuit> {
    // A single circuit comes on the line of the reply itself.
    let line = line.strip_prefix("circuit-status=").unwrap_or(line);
    let mut words = words(line).into_iter();
    let id = words.next().filter(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))?;
    let state = words.next()?;
    let rest: Vec<String> = words.collect();
    let value = |name: &str| {
        let value = rest.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value).to_owned())
    };
    let path = rest.first().filter(|word| word.starts_with('$'));
    let relays =
        path.map(|path| path.split(',').filter_map(|relay| relay.split('~').nth(1).map(str::to_owned)));
    Some(Circuit {
        id,
        state,
        path: relays.map(Iterator::collect).unwrap_or_default(),
        purpose: value("PURPOSE").unwrap_or_default(),
        socks_username: value("SOCKS_USERNAME"),
        socks_password: value("SOCKS_PASSWORD"),
    })
}

/// Splits at spaces outside of quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for char in line.chars() {
        quoted ^= char == '"';
        match words.last_mut() {
            Some(word) if char != ' ' || quoted => word.push(char),
            _ => words.push(String::new()),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circuit_is_read_from_its_line() {
        let line = "circuit-status=7 BUILT $AA~exit1,$BB~auth0,$CC~exit0 BUILD_FLAGS=NEED_CAPACITY PURPOSE=GENERAL \
            TIME_CREATED=2026-11-24T06:00:00.1 SOCKS_USERNAME=\"w 1\" SOCKS_PASSWORD=\"e.1\"";
        let circuit = circuit(line).unwrap();
        assert_eq!((circuit.id.as_str(), circuit.exit()), ("7", Some("exit0")));
        assert_eq!(
            (circuit.state.as_str(), circuit.path.len(), circuit.purpose.as_str()),
            ("BUILT", 3, "GENERAL")
        );
        assert_eq!(circuit.socks_username.as_deref(), Some("w 1"));
        assert_eq!(circuit.socks_password.as_deref(), Some("e.1"));
    }

    #[test]
    fn a_circuit_without_relays_or_user_is_read_too() {
        let circuit = circuit("12 LAUNCHED PURPOSE=GENERAL").unwrap();
        assert_eq!((circuit.path.len(), circuit.socks_username), (0, None));
        assert_eq!(super::circuit(""), None);
    }
}
