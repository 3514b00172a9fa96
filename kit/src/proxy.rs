//! A SOCKS5 proxy in tor's place, fast, and able to fail in ways the real one does not on demand.
//!
//! It connects every `*.test` name to one of its exits: addresses on this machine. Each new pair of user and password
//! gets the next exit in turn and keeps it, as a circuit would, so a shop that listens on all of them sees by its local
//! address which one was used. It knows IP literals of loopback too; everything else "does not exist".

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    Gate, Result,
    records::Records,
    server::{self, Listeners, Wire},
};

const VERSION: u8 = 5;
const NO_AUTH: u8 = 0;
const PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;

/// Reply code: general failure. Tor says it for a refused port, among others.
pub const FAILURE: u8 = 0x01;
/// Reply code: host unreachable. Tor says it for names that cannot be resolved.
pub const UNREACHABLE: u8 = 0x04;
/// Reply code: time to live expired. Tor says it when it has no circuit.
pub const NO_CIRCUIT: u8 = 0x06;

/// How the proxy behaves; what has begun before a change goes on as it was.
#[derive(Clone, Debug)]
pub enum Manner {
    /// Takes user and password and connects.
    Normal,
    /// Picks "no authentication" where it is offered, and connects: the isolation of circuits is silently gone.
    NoAuth,
    /// Refuses every user.
    RefuseUser,
    /// Accepts the connection and says nothing at all, as a frozen tor does.
    Mute,
    /// Takes user and password, and never answers the request.
    StallAfterLogin,
    /// Answers the request with this code and closes: 0x01, 0x04, 0x06, 0xF0 to 0xF7, ….
    Reply(u8),
    /// Resets the connection once the request has come.
    Reset,
    /// Answers as it should, when the gate is open.
    Held(Gate),
    /// Answers as it should, after a time.
    Slow(Duration),
    /// Connects, and ends each stream in good order after so many bytes of the answer, as a killed exit does.
    CutAfter(usize),
    /// Connects, and passes nothing on of the answer, as a frozen exit does.
    Swallow,
}

/// One connection, as far as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Its place among all, from 0.
    pub order: usize,
    /// When its request had come.
    pub at: Instant,
    /// The user, empty without authentication.
    pub user: String,
    /// The password, empty without authentication.
    pub password: String,
    /// The host as it was written: an IP here was resolved by the client.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The exit it gets.
    pub exit: IpAddr,
}

/// The proxy. Dropping it closes its port and cuts its connections.
#[derive(Debug)]
pub struct Proxy {
    listeners: Listeners,
    desk: Arc<Desk>,
    address: SocketAddr,
}

#[derive(Debug)]
struct Desk {
    exits: Vec<IpAddr>,
    manners: Mutex<Manners>,
    circuits: Mutex<BTreeMap<(String, String), IpAddr>>,
    dials: Records<Dial>,
}

#[derive(Debug)]
struct Manners {
    general: Manner,
    /// For single users.
    of_user: BTreeMap<String, Manner>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1, with that address as its only exit.
    pub fn start() -> Result<Self> {
        Self::start_with_exits(&[Ipv4Addr::LOCALHOST.into()])
    }

    /// As [`Proxy::start`], with these exits (127.0.0.1, 127.0.0.2, …); a shop must listen on all of them.
    pub fn start_with_exits(exits: &[IpAddr]) -> Result<Self> {
        let desk = Arc::new(Desk {
            exits: exits.to_vec(),
            manners: Mutex::new(Manners { general: Manner::Normal, of_user: BTreeMap::new() }),
            circuits: Mutex::default(),
            dials: Records::default(),
        });
        let shared = Arc::clone(&desk);
        let listeners = Listeners::start(&[Ipv4Addr::LOCALHOST.into()], move |stream, wire| {
            let desk = Arc::clone(&shared);
            // An error is a client or a shop that went away, or what the test asked for.
            async move { drop(desk.serve(stream, &wire).await) }
        })?;
        let address = server::first(listeners.addresses())?;
        Ok(Self { listeners, desk, address })
    }

    /// Where it listens, or would: `tor.socks`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The addresses a shop must listen on.
    pub fn exits(&self) -> &[IpAddr] {
        &self.desk.exits
    }

    /// Behaves so to new connections, and forgets what was set before.
    pub fn behave(&self, manner: Manner) {
        *self.desk.manners() = Manners { general: manner, of_user: BTreeMap::new() };
    }

    /// Behaves so to one user's requests. (Before a user is known, the general manner decides.)
    pub fn behave_to(&self, user: &str, manner: Manner) {
        self.desk.manners().of_user.insert(user.to_owned(), manner);
    }

    /// Every request, for looking and waiting.
    pub fn dials(&self) -> &Records<Dial> {
        &self.desk.dials
    }

    /// Waits until `enough` holds for the requests.
    pub async fn wait_until(
        &self,
        enough: impl FnMut(&[Dial]) -> bool + Send,
        within: Duration,
    ) -> Result<Vec<Dial>> {
        self.desk.dials.wait_until(enough, within).await
    }

    /// Closes the port and cuts every connection, as a killed tor does: new ones are refused when this returns.
    pub async fn stop_listening(&self) {
        self.listeners.stop_listening().await;
    }

    /// Listens again on the same port.
    pub fn listen_again(&self) -> Result<()> {
        self.listeners.listen_again()
    }
}

impl Desk {
    fn manners(&self) -> std::sync::MutexGuard<'_, Manners> {
        self.manners.lock().expect("no panic under this lock")
    }

    async fn serve(&self, mut client: TcpStream, wire: &Wire) -> io::Result<()> {
        let general = self.manners().general.clone();
        if matches!(general, Manner::Mute) {
            return silence(client).await;
        }
        let Some((user, password)) = greeted(&mut client, &general).await? else { return Ok(()) };
        let manner = self.manners().of_user.get(&user).cloned().unwrap_or(general);
        let Some((host, port)) = requested(&mut client).await? else {
            return reply(&mut client, 0x07).await; // Only CONNECT is known.
        };
        let exit = self.exit_of(&user, &password);
        self.record(Dial { order: 0, at: Instant::now(), user, password, host: host.clone(), port, exit });
        let mut answer_bytes_max = usize::MAX;
        match manner {
            Manner::Normal | Manner::NoAuth | Manner::RefuseUser | Manner::Swallow => {}
            Manner::Mute | Manner::StallAfterLogin => return silence(client).await,
            Manner::Reply(code) => return reply(&mut client, code).await,
            Manner::Reset => {
                wire.reset_on_close();
                return Ok(());
            }
            Manner::Held(ref gate) => gate.passed().await,
            Manner::Slow(delay) => tokio::time::sleep(delay).await,
            Manner::CutAfter(bytes) => answer_bytes_max = bytes,
        }
        let Some(target) = target(&host, exit) else {
            return reply(&mut client, UNREACHABLE).await;
        };
        match TcpStream::connect((target, port)).await {
            // Tor says so of a refused port, after three circuits.
            Err(_) => reply(&mut client, FAILURE).await,
            Ok(shop) => {
                shop.set_nodelay(true)?;
                reply(&mut client, 0).await?;
                match manner {
                    Manner::Swallow => swallow(client, shop).await,
                    _ => relay(client, shop, answer_bytes_max).await,
                }
            }
        }
    }

    /// The exit of a pair of user and password: the next one in turn for a new pair.
    fn exit_of(&self, user: &str, password: &str) -> IpAddr {
        let mut circuits = self.circuits.lock().expect("no panic under this lock");
        let next = self.exits.get(circuits.len() % self.exits.len().max(1)).copied();
        *circuits
            .entry((user.to_owned(), password.to_owned()))
            .or_insert(next.unwrap_or(Ipv4Addr::LOCALHOST.into()))
    }

    fn record(&self, mut dial: Dial) {
        // The lock keeps the order.
        let _circuits = self.circuits.lock().expect("no panic under this lock");
        dial.order = self.dials.len();
        self.dials.push(dial);
    }
}

/// The user and the password, empty without authentication; `None` if the client was refused.
async fn greeted(client: &mut TcpStream, manner: &Manner) -> io::Result<Option<(String, String)>> {
    let [version, count] = read_array(client).await?;
    let methods = read_vec(client, count).await?;
    let wanted = if matches!(manner, Manner::NoAuth) { NO_AUTH } else { PASSWORD };
    if version != VERSION || !methods.contains(&wanted) {
        client.write_all(&[VERSION, NO_METHOD]).await?;
        return Ok(None);
    }
    client.write_all(&[VERSION, wanted]).await?;
    if wanted == NO_AUTH {
        return Ok(Some(Default::default()));
    }
    let [_, length] = read_array(client).await?;
    let user = read_text(client, length).await?;
    let [length] = read_array(client).await?;
    let password = read_text(client, length).await?;
    let refused = matches!(manner, Manner::RefuseUser);
    client.write_all(&[1, u8::from(refused)]).await?;
    Ok((!refused).then_some((user, password)))
}

/// Host and port of the request; `None` if it is no CONNECT.
async fn requested(client: &mut TcpStream) -> io::Result<Option<(String, u16)>> {
    let [version, command, _, kind] = read_array(client).await?;
    let host = match kind {
        1 => IpAddr::from(read_array::<4>(client).await?).to_string(),
        4 => IpAddr::from(read_array::<16>(client).await?).to_string(),
        _ => {
            let [length] = read_array(client).await?;
            read_text(client, length).await?
        }
    };
    let port = u16::from_be_bytes(read_array(client).await?);
    Ok((version == VERSION && command == CONNECT).then_some((host, port)))
}

fn target(host: &str, exit: IpAddr) -> Option<IpAddr> {
    let literal = host.parse::<IpAddr>().ok().filter(IpAddr::is_loopback);
    let known = host.ends_with(".test") && host != "nx.test";
    literal.or(known.then_some(exit))
}

async fn reply(client: &mut TcpStream, code: u8) -> io::Result<()> {
    client.write_all(&[VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]).await
}

/// Reads what comes, says nothing, until the client goes away.
async fn silence(mut client: TcpStream) -> io::Result<()> {
    tokio::io::copy(&mut client, &mut tokio::io::sink()).await.map(drop)
}

async fn swallow(client: TcpStream, shop: TcpStream) -> io::Result<()> {
    let (mut from_client, _to_client) = client.into_split();
    let (mut from_shop, mut to_shop) = shop.into_split();
    let up = tokio::io::copy(&mut from_client, &mut to_shop);
    let (up, _) = tokio::join!(up, async { tokio::io::copy(&mut from_shop, &mut tokio::io::sink()).await });
    up.map(drop)
}

/// Passes on both ways until the answer ends, or has had `answer_bytes_max` bytes.
async fn relay(client: TcpStream, shop: TcpStream, answer_bytes_max: usize) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (from_shop, mut to_shop) = shop.into_split();
    let mut from_shop = from_shop.take(answer_bytes_max as u64);
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_shop).await?;
        to_shop.shutdown().await
    };
    let down = async {
        tokio::io::copy(&mut from_shop, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::pin!(up, down);
    // The end of the answer ends the stream; the end of the request alone does not.
    tokio::select! {
        ended = &mut down => ended,
        ended = &mut up => {
            ended?;
            down.await
        }
    }
}

async fn read_array<const N: usize>(client: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn read_vec(client: &mut TcpStream, length: u8) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length.into()];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn read_text(client: &mut TcpStream, length: u8) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read_vec(client, length).await?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Catalogue, Shop, ShopKind,
        client::{self, Credentials},
    };

    const SOON: Duration = Duration::from_secs(20);

    fn shop_on(proxy: &Proxy) -> Shop {
        Shop::start(ShopKind::Drakkars, Catalogue::real_batch().into(), proxy.exits()).unwrap()
    }

    async fn dial(proxy: &Proxy, shop: &Shop, user: &str) -> Result<TcpStream> {
        let credentials = Credentials { user, password: "1.1" };
        client::through_socks(proxy.address(), credentials, "drakkars.test", shop.port()).await
    }

    async fn visit(proxy: &Proxy, shop: &Shop, user: &str) -> Result<u16> {
        let stream = dial(proxy, shop, user).await?;
        Ok(client::exchange(stream, client::request("GET", "/", "")?).await?.status().as_u16())
    }

    #[tokio::test]
    async fn each_user_has_an_exit_that_the_shop_can_see() {
        let proxy =
            Proxy::start_with_exits(&[1, 2].map(|last| Ipv4Addr::new(127, 0, 0, last).into())).unwrap();
        let shop = shop_on(&proxy);
        for user in ["a", "b", "a"] {
            assert_eq!(visit(&proxy, &shop, user).await.unwrap(), 200);
        }
        let seen: Vec<_> = shop.hits().iter().map(|hit| hit.local).collect();
        assert_eq!(seen, [proxy.exits()[0], proxy.exits()[1], proxy.exits()[0]]);
        let first = &proxy.dials().all()[0];
        assert_eq!(
            (first.user.as_str(), first.password.as_str(), first.host.as_str()),
            ("a", "1.1", "drakkars.test")
        );
        assert_eq!((first.port, first.exit), (shop.port(), proxy.exits()[0]));
    }

    #[tokio::test]
    async fn it_fails_as_asked() {
        let proxy = Proxy::start().unwrap();
        let shop = shop_on(&proxy);
        let with = async |manner| {
            proxy.behave(manner);
            visit(&proxy, &shop, "a").await.unwrap_err().to_string()
        };
        for code in [0x01, 0x04, 0x06, 0xf0, 0xf7] {
            assert!(with(Manner::Reply(code)).await.contains(&format!("answered 0x{code:02x}")));
        }
        assert!(with(Manner::RefuseUser).await.contains("refuses this user"));
        assert!(
            with(Manner::NoAuth).await.contains("refuses user and password"),
            "our client never offers no-auth"
        );
        assert!(with(Manner::Reset).await.contains("reset"));
        with(Manner::CutAfter(20)).await;
        proxy.behave(Manner::Normal);
        proxy.behave_to("b", Manner::Reply(NO_CIRCUIT));
        assert!(visit(&proxy, &shop, "b").await.unwrap_err().to_string().contains("0x06"));
        assert_eq!(visit(&proxy, &shop, "a").await.unwrap(), 200);
        shop.stop_listening().await;
        assert!(visit(&proxy, &shop, "a").await.unwrap_err().to_string().contains("0x01"), "a refused port");
    }

    #[tokio::test]
    async fn a_client_that_offers_it_is_lied_to_with_no_authentication() {
        let proxy = Proxy::start().unwrap();
        proxy.behave(Manner::NoAuth);
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        stream.write_all(&[5, 2, 0, 2]).await.unwrap();
        assert_eq!(read_array(&mut stream).await.unwrap(), [5, 0]);
        stream.write_all(&[5, 1, 0, 1, 10, 0, 0, 1, 0, 80]).await.unwrap();
        assert_eq!(read_array::<10>(&mut stream).await.unwrap()[1], UNREACHABLE);
        let dial = &proxy.dials().all()[0];
        assert_eq!((dial.user.as_str(), dial.host.as_str(), dial.port), ("", "10.0.0.1", 80));
    }

    #[tokio::test]
    async fn silence_lasts_until_the_port_closes() {
        let proxy = Proxy::start().unwrap();
        let shop = shop_on(&proxy);
        proxy.behave(Manner::StallAfterLogin);
        let stopped = async {
            proxy.wait_until(|dials| dials.len() == 1, SOON).await.unwrap();
            proxy.stop_listening().await;
        };
        let (stalled, ()) = tokio::join!(visit(&proxy, &shop, "a"), stopped);
        stalled.unwrap_err();
        assert!(visit(&proxy, &shop, "a").await.unwrap_err().to_string().contains("refused"));
        proxy.listen_again().unwrap();
        proxy.behave(Manner::Normal);
        assert_eq!(visit(&proxy, &shop, "a").await.unwrap(), 200);
    }

    #[tokio::test]
    async fn a_held_request_goes_on_when_its_gate_opens() {
        let proxy = Proxy::start().unwrap();
        let shop = shop_on(&proxy);
        let gate = Gate::closed();
        proxy.behave(Manner::Held(gate.clone()));
        let opened = async {
            proxy.wait_until(|dials| dials.len() == 1, SOON).await.unwrap();
            assert!(shop.records().is_empty());
            gate.open();
        };
        let (status, ()) = tokio::join!(visit(&proxy, &shop, "a"), opened);
        assert_eq!(status.unwrap(), 200);
    }
}
