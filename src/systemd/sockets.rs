//! The listener that the manager made and keeps, so that who connects during a restart waits instead of being refused.

use std::fs;
use std::io;
use std::net::TcpListener;

use listenfd::ListenFd;

/// Why what was handed over is no listener for this daemon.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    #[error("LISTEN_FDS = {given:?}: expected a count of sockets")]
    Count { given: String },
    #[error(
        "the service manager handed over {count} sockets ({names}), and exactly one is expected: leave one \
         ListenStream= in the units of this service"
    )]
    Several { count: usize, names: String },
    #[error(
        "the service manager handed over {given}, and a TCP listener is expected: ListenStream= with an address and a \
         port, and Accept=no"
    )]
    Kind { given: String },
    #[error("the socket handed over cannot be used: {0}")]
    Io(#[from] io::Error),
}

/// The first descriptor that a manager hands over.
const FIRST: i32 = 3;

/// Takes the listener that was handed over to this process, if one was.
///
/// Takes it out of the environment, which is only right while the process has one thread.
pub fn take_listener() -> Result<Option<TcpListener>, SocketsError> {
    let get = |name| std::env::var(name).ok();
    let count = count_for(std::process::id(), get("LISTEN_PID").as_deref(), get("LISTEN_FDS").as_deref())?;
    if count == 0 {
        return Ok(None);
    }
    if count > 1 {
        let names = get("LISTEN_FDNAMES").unwrap_or_else(|| "unnamed".into());
        return Err(SocketsError::Several { count, names });
    }
    let mut handed = ListenFd::from_env();
    let Ok(Some(listener)) = handed.take_tcp_listener(0) else {
        return Err(SocketsError::Kind { given: kind_of(&mut handed) });
    };
    if !rustix::net::sockopt::socket_acceptconn(&listener).map_err(io::Error::from)? {
        return Err(SocketsError::Kind { given: "a TCP socket that does not listen".into() });
    }
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}

/// How many sockets are for the process `own`: those for another one were inherited by mistake.
fn count_for(own: u32, pid: Option<&str>, count: Option<&str>) -> Result<usize, SocketsError> {
    let (Some(pid), Some(count)) = (pid, count) else { return Ok(0) };
    if pid.parse() != Ok(own) {
        return Ok(0);
    }
    count.parse().map_err(|_| SocketsError::Count { given: count.into() })
}

/// In words, for whoever wrote the socket unit.
fn kind_of(handed: &mut ListenFd) -> String {
    if let Ok(Some(_)) = handed.take_unix_listener(0) {
        return "a Unix stream socket".into();
    }
    if let Ok(Some(_)) = handed.take_unix_datagram(0) {
        return "a Unix datagram socket".into();
    }
    if let Ok(Some(_)) = handed.take_udp_socket(0) {
        return "a UDP socket".into();
    }
    match fs::read_link(format!("/proc/self/fd/{FIRST}")) {
        Ok(target) => format!("{}, which is neither a TCP, a UDP nor a Unix socket", target.display()),
        Err(_) => format!("descriptor {FIRST}, which is not open"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_another_process_are_not_taken() {
        assert_eq!(count_for(7, Some("8"), Some("1")).unwrap(), 0);
        assert_eq!(count_for(7, None, Some("1")).unwrap(), 0);
        assert_eq!(count_for(7, Some("7"), None).unwrap(), 0);
        assert_eq!(count_for(7, Some("7"), Some("2")).unwrap(), 2);
    }

    #[test]
    fn a_count_that_is_none_is_an_error_that_shows_it() {
        let error = count_for(7, Some("7"), Some("one")).unwrap_err();
        assert!(error.to_string().contains("\"one\""), "{error}");
    }
}
