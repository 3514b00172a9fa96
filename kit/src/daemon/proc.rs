//! What Linux tells about a process: memory, CPU time, sockets.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::{Because, Result, Trouble};

/// One TCP socket of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; port 0 if it listens.
    pub remote: SocketAddr,
    /// Whether it waits for connections.
    pub listening: bool,
}

/// Resident memory of a process.
pub fn rss_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/statm");
    let text = fs::read_to_string(&path).because(format_args!("read {path}"))?;
    let pages: u64 =
        text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).ok_or_else(|| strange(&path, &text))?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// CPU time a process has used, in user and kernel mode.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).because(format_args!("read {path}"))?;
    // The name in parentheses may contain anything; the fields after it are numbered from 3.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |number: usize| fields.get(number - 3).and_then(|ticks| ticks.parse::<u64>().ok());
    match (ticks(14), ticks(15)) {
        (Some(user), Some(kernel)) => Ok(Duration::from_secs_f64(
            (user + kernel) as f64 / rustix::param::clock_ticks_per_second() as f64,
        )),
        _ => Err(strange(&path, &text)),
    }
}

/// The TCP sockets of a process.
pub fn sockets(pid: u32) -> Result<Vec<Socket>> {
    let descriptors = format!("/proc/{pid}/fd");
    let mut own = HashSet::new();
    for entry in fs::read_dir(&descriptors).because(format_args!("read {descriptors}"))? {
        // A descriptor closed in the meantime is no error.
        let Some(target) = entry.ok().and_then(|entry| fs::read_link(entry.path()).ok()) else { continue };
        let target = target.to_string_lossy().into_owned();
        if let Some(inode) = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
            own.insert(inode.to_owned());
        }
    }
    let mut sockets = Vec::new();
    for table in ["tcp", "tcp6"] {
        let path = format!("/proc/{pid}/net/{table}");
        // Without IPv6 in the kernel the second table is missing.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, remote, state, _, _, _, _, _, inode, ..] = fields[..] else {
                return Err(strange(&path, line));
            };
            if own.contains(inode) {
                let end = |text| address(text).ok_or_else(|| strange(&path, line));
                sockets.push(Socket { local: end(local)?, remote: end(remote)?, listening: state == "0A" });
            }
        }
    }
    Ok(sockets)
}

/// Reads `0100007F:1F90`: 32-bit words in the machine's byte order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..words.len()).step_by(8) {
        let word = u32::from_str_radix(words.get(at..at + 8)?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let ip: IpAddr = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(four) => Ipv4Addr::from(four).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(ip, port))
}

fn strange(path: &str, text: &str) -> Trouble {
    Trouble::new(format!("{path} has an unexpected form: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_sockets_memory_and_time_are_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = std::net::TcpStream::connect(address).unwrap();
        let sockets = sockets(std::process::id()).unwrap();
        assert!(sockets.iter().any(|socket| socket.local == address && socket.listening));
        let open = Socket { local: stream.local_addr().unwrap(), remote: address, listening: false };
        assert!(sockets.contains(&open), "{sockets:?}");
        assert!(rss_bytes(std::process::id()).unwrap() > 100_000);
        cpu_time(std::process::id()).unwrap();
    }
}
