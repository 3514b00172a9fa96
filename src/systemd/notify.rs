//! Notes to the manager, as sd_notify(3) describes them: datagrams to the socket that `NOTIFY_SOCKET` names.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::telemetry::Event;

/// One thing to say. Several may go in one datagram, and then are taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note<'a> {
    /// The listener is up and the ledger is open: units that wait for this one may start.
    Ready,
    /// The daemon has begun to stop.
    Stopping,
    /// The watchdog is fed. The manager counts from READY on, and from the last of these.
    Alive,
    /// The start, or the stop, may take this long from now, whatever its time-out says.
    Extend(Duration),
    /// What it does, in one line for `systemctl status`.
    Status(&'a str),
}

impl fmt::Display for Note<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("READY=1"),
            Self::Stopping => f.write_str("STOPPING=1"),
            Self::Alive => f.write_str("WATCHDOG=1"),
            Self::Extend(by) => write!(f, "EXTEND_TIMEOUT_USEC={}", by.as_micros()),
            Self::Status(line) => {
                f.write_str("STATUS=")?;
                // A line break would begin another note: the words of an error must not say READY=1.
                let one_line = line.chars().map(|c| if c.is_control() { ' ' } else { c });
                one_line.take(STATUS_CHARS_MAX).try_for_each(|c| fmt::Write::write_char(f, c))
            }
        }
    }
}

/// The manager takes datagrams of at most 4096 bytes, and a person reads one line.
const STATUS_CHARS_MAX: usize = 400;

/// A manager whose queue stays full for longer is in trouble of its own, and must not become the daemon's.
const TELL_WITHIN: Duration = Duration::from_secs(1);

/// The way to the manager. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Notifier {
    manager: Option<Arc<Manager>>,
}

#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// The last note did not get through.
    deaf: AtomicBool,
}

impl Notifier {
    /// To the manager that the environment names, if it names one. One that cannot be reached is an event.
    pub fn from_env() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Self { manager: None } };
        Self::to(&name).unwrap_or_else(|error| {
            Event::NotifyFailed { detail: &format!("NOTIFY_SOCKET: {error}") }.emit();
            Self { manager: None }
        })
    }

    /// To the manager whose socket has this name; one that begins with `@` is abstract.
    pub fn to(name: &OsStr) -> io::Result<Self> {
        let address = address(name)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(TELL_WITHIN))?;
        Ok(Self { manager: Some(Arc::new(Manager { socket, address, deaf: AtomicBool::new(false) })) })
    }

    /// Whether anybody listens: notes that cost work to make need not be made for nobody.
    pub fn has_manager(&self) -> bool {
        self.manager.is_some()
    }

    /// Says `notes`. A manager that cannot be reached is an event, once until it hears again: the daemon's work does not
    /// rest on it.
    pub fn tell(&self, notes: &[Note<'_>]) {
        let Some(manager) = &self.manager else { return };
        let lines: Vec<String> = notes.iter().map(ToString::to_string).collect();
        // To the address each time, not through a connection: a manager that was replaced has the same one.
        match manager.socket.send_to_addr(lines.join("\n").as_bytes(), &manager.address) {
            Ok(_) => manager.deaf.store(false, Ordering::Relaxed),
            Err(error) => {
                if !manager.deaf.swap(true, Ordering::Relaxed) {
                    Event::NotifyFailed { detail: &error.to_string() }.emit();
                }
            }
        }
    }
}

fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => {
            let name = OsString::from(name);
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is neither a path from / nor an abstract name from @"),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn notes_go_together_to_a_path_and_to_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let hidden = format!("@glaneur-notify-{}", std::process::id());
        for name in [path.as_os_str(), OsStr::new(&hidden)] {
            let manager = UnixDatagram::bind_addr(&address(name).unwrap()).unwrap();
            Notifier::to(name).unwrap().tell(&[Note::Ready, Note::Status("up")]);
            assert_eq!(heard(&manager), "READY=1\nSTATUS=up");
        }
    }

    #[test]
    fn a_line_break_in_a_status_begins_no_note_and_a_long_one_is_cut() {
        assert_eq!(Note::Status("Tor away: \r\nREADY=1").to_string(), "STATUS=Tor away:   READY=1");
        let long = "é".repeat(5000);
        assert_eq!(Note::Status(&long).to_string().chars().count(), "STATUS=".len() + STATUS_CHARS_MAX);
    }

    #[test]
    fn a_name_of_no_socket_is_refused_and_a_manager_that_is_gone_is_no_trouble() {
        assert!(Notifier::to(OsStr::new("vsock:2:1234")).is_err());
        let dir = tempfile::tempdir().unwrap();
        Notifier::to(dir.path().join("gone").as_os_str()).unwrap().tell(&[Note::Stopping]);
    }
}
