//! A nameserver for the exits of a private network: one port per exit, so that each resolves the same name differently.
//!
//! Every `*.test` has the port's own address, except: `nx.test` does not exist, `servfail.test` fails, `hang.test` gets
//! no reply, `slow.test` a late one. There is no IPv6. What a port says of them can be changed at any time
//! ([`Dns::lie`]); tor remembers what it was told of a name, so a test asks for one of its own then.
//!
//! It runs on a thread of its own, so that a network shared by several tests does not end with the runtime of the first.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket as StdUdpSocket},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::{Semaphore, oneshot},
    task::JoinSet,
};

use crate::{Because, Result, records::Records};

/// How late `slow.test` is.
pub const SLOW: Duration = Duration::from_secs(3);

/// Queries in hand at once; more than any test asks, so that a loop of errors cannot eat the memory.
const QUERIES_MAX: usize = 1_024;

/// Longer than any query: they have 255 bytes of name and few of everything else.
const QUERY_BYTES_MAX: usize = 1_500;

const TYPE_A: u16 = 1;

/// One query, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The name, in lower case.
    pub name: String,
    /// The type: 1 is an IPv4 address, 28 an IPv6 address.
    pub kind: u16,
    /// The address of the port that was asked.
    pub answer: Ipv4Addr,
}

/// What a port says of every `*.test`, instead of the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// This address.
    Address(Ipv4Addr),
    /// That it does not exist.
    NoSuchName,
    /// That it could not be found out.
    Failure,
    /// Nothing at all.
    Silence,
}

/// By the address of the port.
type Lies = Arc<Mutex<BTreeMap<Ipv4Addr, Lie>>>;

/// The nameserver. Dropping it ends it.
#[derive(Debug)]
pub struct Dns {
    lies: Lies,
    queries: Records<Query>,
    ports: Vec<SocketAddr>,
    /// Dropped to stop.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Serves each port on `ip` with its address.
    pub fn start(ip: Ipv4Addr, ports: &[(u16, Ipv4Addr)]) -> Result<Self> {
        let mut sockets = Vec::new();
        let mut bound = Vec::new();
        for &(port, answer) in ports {
            let open = || {
                let socket = StdUdpSocket::bind((ip, port))?;
                socket.set_nonblocking(true)?;
                Ok::<_, std::io::Error>((socket.local_addr()?, socket))
            };
            let (address, socket) = open().because(format_args!("open a nameserver on {ip}:{port}"))?;
            bound.push(address);
            sockets.push((socket, answer));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.because("start a runtime for the nameserver")?;
        let queries = Records::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let records = queries.clone();
        let lies = Lies::default();
        let told = Arc::clone(&lies);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                let mut ports = JoinSet::new();
                for (socket, answer) in sockets {
                    // Without this socket its exit hears nothing, which a test will report.
                    if let Ok(socket) = UdpSocket::from_std(socket) {
                        ports.spawn(serve(socket, answer, records.clone(), Arc::clone(&told)));
                    }
                }
                let _ = stopped.await;
            });
        });
        Ok(Self { lies, queries, ports: bound, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens, in the order given.
    pub fn ports(&self) -> &[SocketAddr] {
        &self.ports
    }

    /// Has the port whose address this is (an exit's alias) lie from now on.
    pub fn lie(&self, answer: IpAddr, lie: Lie) {
        if let IpAddr::V4(answer) = answer {
            self.lies.lock().expect("no panic under this lock").insert(answer, lie);
        }
    }

    /// All tell the truth again.
    pub fn be_honest(&self) {
        self.lies.lock().expect("no panic under this lock").clear();
    }

    /// Every query that could be read.
    pub fn queries(&self) -> &Records<Query> {
        &self.queries
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // The ports are free when this returns. A panic in the thread has been printed.
            let _ = thread.join();
        }
    }
}

async fn serve(socket: UdpSocket, answer: Ipv4Addr, queries: Records<Query>, lies: Lies) {
    let socket = Arc::new(socket);
    let slots = Arc::new(Semaphore::new(QUERIES_MAX));
    let mut bytes = [0; QUERY_BYTES_MAX];
    loop {
        // An error is the echo of an earlier reply nobody waited for.
        let Ok((length, from)) = socket.recv_from(&mut bytes).await else { continue };
        let Some((query, end)) = parsed(&bytes[..length], answer) else { continue };
        queries.push(query.clone());
        let lie = lies.lock().expect("no panic under this lock").get(&answer).copied();
        let Some(reply) = reply(&bytes[..end], &query, lie) else { continue };
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let socket = Arc::clone(&socket);
        tokio::spawn(async move {
            if query.name == "slow.test" {
                tokio::time::sleep(SLOW).await;
            }
            // If it is lost, the resolver asks again.
            let _ = socket.send_to(&reply, from).await;
            drop(slot);
        });
    }
}

/// The question of a query, and where it ends.
fn parsed(bytes: &[u8], answer: Ipv4Addr) -> Option<(Query, usize)> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(bytes.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?);
    let end = at + 4;
    (bytes.len() >= end).then(|| (Query { name: labels.join("."), kind, answer }, end))
}

/// The reply to a query of which `question` is all up to the end of its question.
fn reply(question: &[u8], query: &Query, lie: Option<Lie>) -> Option<Vec<u8>> {
    const SERVFAIL: u16 = 2;
    const NXDOMAIN: u16 = 3;
    let (code, address) = match (lie, query.name.as_str()) {
        (_, name) if !name.ends_with(".test") => (NXDOMAIN, query.answer),
        (Some(Lie::Silence), _) | (None, "hang.test") => return None,
        (Some(Lie::Failure), _) | (None, "servfail.test") => (SERVFAIL, query.answer),
        (Some(Lie::NoSuchName), _) | (None, "nx.test") => (NXDOMAIN, query.answer),
        (Some(Lie::Address(address)), _) => (0, address),
        (None, _) => (0, query.answer),
    };
    let answers = u16::from(code == 0 && query.kind == TYPE_A);
    let mut reply = question[..2].to_vec();
    // A reply with authority, recursion available; one question; no authority and no additional records.
    for word in [0x8580 | code, 1, answers, 0, 0] {
        reply.extend_from_slice(&word.to_be_bytes());
    }
    reply.extend_from_slice(&question[12..]);
    if answers == 1 {
        // The name of the question, type A, class IN, 60 s, 4 bytes.
        reply.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend_from_slice(&address.octets());
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut query = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend_from_slice(label.as_bytes());
        }
        query.push(0);
        query.extend_from_slice(&kind.to_be_bytes());
        query.extend_from_slice(&[0, 1]);
        query
    }

    async fn ask(server: SocketAddr, name: &str, kind: u16) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&query(name, kind), server).await.unwrap();
        let mut bytes = [0; 512];
        let length =
            tokio::time::timeout(Duration::from_secs(20), socket.recv(&mut bytes)).await.unwrap().unwrap();
        bytes[..length].to_vec()
    }

    #[tokio::test]
    async fn each_port_has_its_own_address() {
        let addresses = [Ipv4Addr::new(127, 1, 2, 211), Ipv4Addr::new(127, 1, 2, 212)];
        let dns = Dns::start(Ipv4Addr::LOCALHOST, &addresses.map(|address| (0, address))).unwrap();
        for (port, address) in dns.ports().iter().zip(addresses) {
            let reply = ask(*port, "Shop.TEST", TYPE_A).await;
            assert_eq!((reply[..4].to_vec(), reply[7]), (vec![0xab, 0xcd, 0x85, 0x80], 1));
            assert_eq!(reply[reply.len() - 4..], address.octets());
        }
        assert_eq!(dns.queries().all()[1], Query { name: "shop.test".into(), kind: 1, answer: addresses[1] });
    }

    #[tokio::test]
    async fn names_fail_as_asked() {
        let dns = Dns::start(Ipv4Addr::LOCALHOST, &[(0, Ipv4Addr::LOCALHOST)]).unwrap();
        let code = async |name, kind| {
            let reply = ask(dns.ports()[0], name, kind).await;
            (reply[3] & 0x0f, reply[7])
        };
        assert_eq!(code("nx.test", 1).await, (3, 0));
        assert_eq!(code("example.org", 1).await, (3, 0));
        assert_eq!(code("servfail.test", 1).await, (2, 0));
        assert_eq!(code("shop.test", 28).await, (0, 0), "no IPv6");
        let hang = Query { name: "hang.test".into(), kind: 1, answer: Ipv4Addr::LOCALHOST };
        assert_eq!(reply(&query("hang.test", 1), &hang, None), None);
    }

    #[tokio::test]
    async fn one_port_lies_until_it_is_told_not_to() {
        let (honest, liar) = (Ipv4Addr::new(127, 1, 2, 211), Ipv4Addr::new(127, 1, 2, 212));
        let dns = Dns::start(Ipv4Addr::LOCALHOST, &[(0, honest), (0, liar)]).unwrap();
        let code = async |port: usize| {
            let reply = ask(dns.ports()[port], "shop.test", 1).await;
            (reply[3] & 0x0f, reply[reply.len() - 1])
        };
        for (lie, code_and_end) in [
            (Lie::NoSuchName, (3, 1)),
            (Lie::Failure, (2, 1)),
            (Lie::Address(Ipv4Addr::new(127, 1, 2, 9)), (0, 9)),
        ] {
            dns.lie(liar.into(), lie);
            assert_eq!((code(1).await, code(0).await), (code_and_end, (0, 211)), "{lie:?}");
        }
        let asked = Query { name: "shop.test".into(), kind: 1, answer: liar };
        assert_eq!(reply(&query("shop.test", 1), &asked, Some(Lie::Silence)), None);
        dns.be_honest();
        assert_eq!(code(1).await, (0, 212));
    }

    #[test]
    fn rubbish_is_no_query() {
        let whole = query("shop.test", 1);
        for length in 0..whole.len() {
            assert_eq!(parsed(&whole[..length], Ipv4Addr::LOCALHOST), None, "{length}");
        }
    }
}
