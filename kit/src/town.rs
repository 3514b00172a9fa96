//! Two networks apart from this machine's: a *town*, where tor, shops and the receiver live, and a *cell* whose only
//! neighbour is the town, with a nameserver of its own and a tap that sees every packet in it.
//!
//! ```text
//!   cell                                   town (the thread that entered it, and what it started)
//!   198.18.0.2 ─────────── veth ────────── 198.18.0.1   tor's SOCKS port, the receiver, a nameserver at port 53
//!   resolv.conf: 198.18.0.1                127/8        the rest
//! ```
//!
//! Nothing leads out of the town, so nothing that strays reaches anybody. Both end when they are dropped, and with the
//! process that made them. They need root, `unshare` and `ip`; [`Town::enter`] says what is missing.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType, recv, socket, sockopt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::{Because, Result, Trouble, records::Records};

/// The town as the cell sees it. The network is one for tests of networks (RFC 2544).
pub const TOWN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// The cell's own address.
pub const CELL: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// Leaves IPv6 out, in which the kernel talks by itself; says that it is up, and holds the namespaces until its standard input ends.
const HOLD: &str =
    "if [ -e /proc/sys/net/ipv6 ]; then echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; fi &&
    ip link set lo up && echo up && exec cat >/dev/null";

/// How often the tap looks whether it is to end.
const TAP_WAITS: Duration = Duration::from_millis(100);

/// What the tap may have to keep while its thread has no processor.
const TAP_BUFFER_BYTES: usize = 8 << 20;

/// A network of its own.
#[derive(Debug)]
pub struct Town {
    _holder: Holder,
}

/// A network whose only neighbour is the town.
#[derive(Debug)]
pub struct Cell {
    holder: Holder,
    packets: Records<Packet>,
    end_tap: Arc<AtomicBool>,
    tap: Option<JoinHandle<()>>,
    _dir: TempDir,
}

/// One packet, as it was seen in the cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where from; port 0 for what has no ports.
    pub from: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
    /// 6 is TCP, 17 UDP.
    pub protocol: u8,
}

/// A process that holds namespaces; they end with what runs in them.
#[derive(Debug)]
struct Holder(Child);

impl Holder {
    fn start(namespaces: &[&str], script: &str) -> Result<Self> {
        let mut unshare = Command::new("unshare");
        unshare.args(namespaces).args(["--", "sh", "-c", script]);
        unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = unshare.spawn().because("run unshare")?;
        let mut line = String::new();
        let said = child.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
        if matches!(said, Some(Ok(_))) && line == "up\n" {
            return Ok(Self(child));
        }
        let mut complaint = String::new();
        if let Some(mut errors) = child.stderr.take() {
            let _ = errors.read_to_string(&mut complaint);
        }
        let _ = child.wait();
        Err(Trouble::new(format!("no network of its own here: {}", complaint.trim())))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Takes this thread, and the threads and processes it starts from now on, into its network.
    fn enter(&self) -> Result<()> {
        let path = format!("/proc/{}/ns/net", self.pid());
        let namespace = fs::File::open(&path).because(format_args!("open {path}"))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .because("enter another network")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Town {
    /// Makes one and moves this thread there, with all that it starts from now on. An error says what is missing.
    pub fn enter() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(Trouble::new("networks of their own need root"));
        }
        let holder = Holder::start(&["--net"], HOLD)?;
        holder.enter()?;
        Ok(Self { _holder: holder })
    }

    /// Makes the cell beside it. Its nameserver is whoever listens at port 53 of [`TOWN`].
    pub fn build_cell(&self) -> Result<Cell> {
        let dir = tempfile::Builder::new().prefix("glaneur-cell-").tempdir().because("make a directory")?;
        for (name, text) in [
            ("resolv.conf", format!("nameserver {TOWN}\noptions attempts:1 timeout:2\n")),
            // No daemon is asked, so that whatever is asked comes by the network.
            ("nsswitch.conf", "hosts: files dns\n".to_owned()),
        ] {
            fs::write(dir.path().join(name), text).because(format_args!("write {name}"))?;
        }
        let at = dir.path().display();
        let script = format!(
            "mount --bind {at}/resolv.conf /etc/resolv.conf && mount --bind {at}/nsswitch.conf /etc/nsswitch.conf &&
             if [ -d /run/nscd ]; then mount -t tmpfs tmpfs /run/nscd; fi && {HOLD}"
        );
        let holder = Holder::start(&["--net", "--mount", "--propagation", "private"], &script)?;
        let pid = holder.pid().to_string();
        run(&["ip", "link", "add", "town0", "type", "veth", "peer", "name", "cell0", "netns", &pid])?;
        run(&["ip", "addr", "add", &format!("{TOWN}/30"), "dev", "town0"])?;
        run(&["ip", "link", "set", "town0", "up"])?;
        let (packets, end_tap) = (Records::default(), Arc::<AtomicBool>::default());
        let mut cell = Cell { holder, packets, end_tap, tap: None, _dir: dir };
        cell.run(&["ip", "addr", "add", &format!("{CELL}/30"), "dev", "cell0"])?;
        cell.run(&["ip", "link", "set", "cell0", "up"])?;
        cell.tap = Some(cell.open_tap()?);
        Ok(cell)
    }
}

impl Cell {
    /// What makes a program run in it, before its name.
    pub fn words(&self) -> Vec<String> {
        let of = |option: &str, kind: &str| format!("--{option}=/proc/{}/ns/{kind}", self.holder.pid());
        // The working directory is the same place there.
        vec!["nsenter".into(), of("net", "net"), of("mount", "mnt"), "--wd=.".into(), "--".into()]
    }

    /// Gives it a way to everywhere else, which ends in the town: so what strays is not refused, and shows.
    pub fn open_way_to_nowhere(&self) -> Result<()> {
        self.run(&["ip", "route", "add", "default", "via", &TOWN.to_string()])
    }

    /// Every packet in it so far.
    pub fn packets(&self) -> &Records<Packet> {
        &self.packets
    }

    fn run(&self, command: &[&str]) -> Result<()> {
        let words = self.words();
        let words: Vec<&str> = words.iter().map(String::as_str).chain(command.iter().copied()).collect();
        run(&words)
    }

    fn open_tap(&self) -> Result<JoinHandle<()>> {
        // A thread that has gone to another network does not come back: the socket is made by one of its own.
        let open = || {
            self.holder.enter()?;
            tap_socket().because("open a tap")
        };
        let tap = std::thread::scope(|scope| scope.spawn(open).join());
        let tap = tap.map_err(|_| Trouble::new("opening a tap panicked"))??;
        let (packets, end) = (self.packets.clone(), Arc::clone(&self.end_tap));
        Ok(std::thread::spawn(move || {
            let mut bytes = vec![0; 65_536];
            while !end.load(Ordering::Relaxed) {
                match recv(&tap, bytes.as_mut_slice(), RecvFlags::empty()) {
                    Ok((length, _)) => {
                        packet(&bytes[..length]).into_iter().for_each(|packet| packets.push(packet))
                    }
                    Err(error) if io_kind(error) == ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        }))
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.end_tap.store(true, Ordering::Relaxed);
        if let Some(tap) = self.tap.take() {
            let _ = tap.join();
        }
    }
}

fn io_kind(error: rustix::io::Errno) -> ErrorKind {
    std::io::Error::from(error).kind()
}

/// A socket that gets a copy of every packet of this thread's network, of all its interfaces and both directions.
fn tap_socket() -> rustix::io::Result<OwnedFd> {
    /// `ETH_P_ALL`, in the byte order of the network.
    const EVERYTHING: Option<Protocol> = match std::num::NonZeroU32::new(3_u16.to_be() as u32) {
        Some(number) => Some(Protocol::from_raw(number)),
        None => None,
    };
    let tap = socket(AddressFamily::PACKET, SocketType::RAW, EVERYTHING)?;
    sockopt::set_socket_timeout(&tap, sockopt::Timeout::Recv, Some(TAP_WAITS))?;
    sockopt::set_socket_recv_buffer_size_force(&tap, TAP_BUFFER_BYTES)?;
    Ok(tap)
}

/// Reads a frame; what is no IP (the search for a neighbour's address) is none.
fn packet(frame: &[u8]) -> Option<Packet> {
    let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
    let ip = frame.get(14..)?;
    let (from, to, protocol, rest): (IpAddr, IpAddr, u8, &[u8]) = match kind {
        0x0800 => {
            let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
            let header = usize::from(ip.first()? & 0x0f) * 4;
            (address(12)?.into(), address(16)?.into(), *ip.get(9)?, ip.get(header..)?)
        }
        0x86dd => {
            let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
            (address(8)?.into(), address(24)?.into(), *ip.get(6)?, ip.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| match (protocol, rest.get(at..at + 2)) {
        (6 | 17, Some(&[high, low])) => u16::from_be_bytes([high, low]),
        _ => 0,
    };
    Some(Packet { from: (from, port(0)).into(), to: (to, port(2)).into(), protocol })
}

fn run(command: &[&str]) -> Result<()> {
    let deed = format!("run {}", command.join(" "));
    let (program, arguments) = command.split_first().ok_or_else(|| Trouble::new("no command"))?;
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().because(&deed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Trouble::new(format!("could not {deed}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_down_to_its_ports() {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 198, 18, 0, 2, 198, 18, 0, 1]);
        frame.extend([0x1f, 0x90, 0x23, 0x5a]);
        let expected = Packet { from: (CELL, 8_080).into(), to: (TOWN, 9_050).into(), protocol: 6 };
        assert_eq!(packet(&frame), Some(expected));
        for length in 0..34 {
            assert_eq!(packet(&frame[..length]), None, "{length}");
        }
        frame[13] = 0x06;
        assert_eq!(packet(&frame), None, "ARP");
    }

    #[test]
    fn what_leaves_a_cell_is_seen_whether_it_arrives_or_not() {
        let seen = std::thread::spawn(|| {
            let town = Town::enter()?;
            let cell = town.build_cell()?;
            let send = |to: &str| cell.run(&["bash", "-c", &format!("echo x >/dev/udp/{to}/53")]);
            send("198.18.0.1")?;
            let refused = send("192.0.2.1").unwrap_err().to_string();
            assert!(refused.contains("unreachable"), "{refused}");
            cell.open_way_to_nowhere()?;
            send("192.0.2.1")?;
            let both = |packets: &[Packet]| {
                [Ipv4Addr::from([198, 18, 0, 1]), Ipv4Addr::from([192, 0, 2, 1])]
                    .iter()
                    .all(|to| packets.iter().any(|packet| packet.to == (*to, 53).into()))
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .because("start a runtime")?
                .block_on(cell.packets().wait_until(both, Duration::from_secs(30)))
        });
        match seen.join().unwrap() {
            Ok(packets) => {
                assert!(
                    packets.iter().all(|packet| packet.from.ip() == IpAddr::from(CELL)
                        || packet.to.ip() == IpAddr::from(CELL)),
                    "{packets:?}"
                )
            }
            Err(trouble) if trouble.to_string().contains("network") => println!("no town: {trouble}"),
            Err(trouble) => panic!("{trouble}"),
        }
    }
}
