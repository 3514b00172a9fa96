//! A private Tor network on loopback, of the real tor: an authority that is also an exit, three exits, a client.
//!
//! ```text
//!             127.A.B.1            127.A.B.11–14              127.A.B.211–214
//!   daemon ─▶ client :9050 ─▶ 3 of 4 relays ─▶ exit ─ alias of that exit ─▶ shop
//!                                     │ name?
//!                                     └▶ a nameserver per exit on 127.A.B.1
//! ```
//!
//! All addresses are in one /24 of 127/8, so that several networks run side by side. Each exit resolves every `*.test`
//! name to an address of its own, its *alias*: a shop that listens on all aliases sees by its local address which exit
//! was used ([`TorNetwork::exit_of`]). Every process ends when its network is dropped, and within 15 s of the end of
//! the process that started it.
//!
//! A fresh start takes 10 s on an idle machine; with a cache directory later starts take about one, from a
//! snapshot of the first. A network belongs to no tokio runtime: it may be shared by tests that have their own.

pub mod control;
pub mod dns;
mod node;
mod onion;
mod sabotage;
mod snapshot;
mod subnet;

use std::{
    fmt::Write,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::{net::TcpStream, time::Instant};

pub use self::{
    control::{Circuit, Control},
    dns::{Dns, Lie},
    onion::Onion,
    sabotage::Saboteur,
};
use self::{
    node::{AUTHORITY, CLIENT, FirstVote, Node, relay_name},
    subnet::{CONTROL_PORT, DIR_PORT, SOCKS_PORT, Subnet},
};
use crate::{Because, Result, Trouble, apt};

/// The authority and three exits: paths have three relays, so one may be lost.
const RELAYS: u8 = 4;

/// How long a fresh start may take on a loaded machine.
const FRESH_MAX: Duration = Duration::from_secs(120);

/// How long a start from a snapshot may take before the snapshot is taken for broken.
const SNAPSHOT_MAX: Duration = Duration::from_secs(45);

/// Pause between two looks at a file of tor, which has no way to tell us.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a person can run to get tor.
const INSTALL: &str = "apt-get install -y tor";

/// One relay that streams can leave through.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Its nickname, as circuits show it.
    pub name: String,
    /// Its own address.
    pub ip: IpAddr,
    /// What it resolves every `*.test` name to.
    pub alias: IpAddr,
}

/// A private Tor network. Dropping it ends its processes.
#[derive(Debug)]
pub struct TorNetwork {
    subnet: Subnet,
    run: PathBuf,
    exits: Vec<Exit>,
    /// The relays by number, then the client.
    nodes: Mutex<Vec<Node>>,
    dns: Dns,
    /// Holds `run` where there is no cache.
    _temporary: Option<TempDir>,
}

impl TorNetwork {
    /// Starts a network: from a snapshot in `cache` if there is a good one, else afresh (and keeps a snapshot there).
    pub async fn start(cache: Option<&Path>) -> Result<Self> {
        Self::start_with(cache, "").await
    }

    /// As [`TorNetwork::start`], with more lines for the client's torrc.
    pub async fn start_with(cache: Option<&Path>, client_lines: &str) -> Result<Self> {
        if !is_installed() {
            return Err(Trouble::new(format!("tor is not installed; as root: {INSTALL}")));
        }
        for dir in cache.map(snapshot::subnets).unwrap_or_default() {
            let Some(subnet) = Subnet::named(&dir, RELAYS) else { continue };
            if snapshot::is_valid(&dir)
                && let Ok(network) = Self::from_snapshot(subnet, &dir, client_lines).await
            {
                return Ok(network);
            }
            // Too old, or broken. Its subnet was ours a moment ago, so nobody runs in it.
            let _ = fs::remove_dir_all(&dir);
        }
        Self::afresh(cache, client_lines).await
    }

    async fn from_snapshot(subnet: Subnet, dir: &Path, client_lines: &str) -> Result<Self> {
        let deadline = Instant::now() + SNAPSHOT_MAX;
        let run = clean(dir.join("run"))?;
        snapshot::take(dir, &run)?;
        // There is a consensus already: a first vote is not needed.
        let network = Self::prepare(subnet, run, None, FirstVote::not_yet(), client_lines)?;
        network.launch(deadline).await?;
        Ok(network)
    }

    /// Starts everything, from data directories that have all there is to know.
    async fn launch(&self, deadline: Instant) -> Result<()> {
        let relays = usize::from(RELAYS);
        self.nodes()[..relays].iter_mut().try_for_each(Node::start)?;
        // A client that is refused by its first guard waits for many seconds before it tries again.
        for number in 0..RELAYS {
            self.wait_for_exit(number, deadline).await?;
        }
        self.nodes()[relays].start()?;
        self.wait_for_client(0, deadline).await
    }

    async fn afresh(cache: Option<&Path>, client_lines: &str) -> Result<Self> {
        let deadline = Instant::now() + FRESH_MAX;
        let subnet = Subnet::any(RELAYS)?;
        let (run, temporary) = match cache {
            Some(cache) => (clean(cache.join(subnet.name()).join("run"))?, None),
            None => {
                let dir = tempfile::Builder::new().prefix("glaneur-tor-").tempdir();
                let dir = dir.because("make a directory for a Tor network")?;
                (dir.path().to_owned(), Some(dir))
            }
        };
        node::make_keys(&run, &subnet, RELAYS)?;
        let network = Self::prepare(subnet, run, temporary, FirstVote::not_yet(), client_lines)?;
        network.agree(deadline).await?;
        network.tell_everybody()?;
        if let Some(cache) = cache {
            let names: Vec<String> = network.nodes().iter().map(|node| node.name.clone()).collect();
            snapshot::keep(&cache.join(network.subnet.name()), &network.run, &names)?;
        }
        network.launch(deadline).await?;
        Ok(network)
    }

    /// Has the relays agree on a consensus; none runs when this returns.
    async fn agree(&self, deadline: Instant) -> Result<()> {
        // A vote that misses a relay cannot be mended for hours, and how long an upload takes depends on the machine's
        // load. So the authority gathers the descriptors first, without voting, and votes when it has them on disk.
        self.nodes()[0].start()?;
        self.wait_for_port((self.subnet.relay(0), DIR_PORT).into(), deadline).await?;
        self.nodes()[1..usize::from(RELAYS)].iter_mut().try_for_each(Node::start)?;
        self.wait_for_descriptors(deadline).await?;
        self.nodes().iter_mut().for_each(Node::kill);
        self.let_authority_vote()?;
        self.wait_for_consensus(deadline).await?;
        self.nodes()[0].kill();
        Ok(())
    }

    /// Writes what the processes need, for relays that have keys; starts the nameserver and nothing else.
    fn prepare(
        subnet: Subnet,
        run: PathBuf,
        temporary: Option<TempDir>,
        vote: FirstVote,
        client_lines: &str,
    ) -> Result<Self> {
        let authority = node::authority_line(&run, &subnet)?;
        let mut bandwidths = format!("{}\n", node::now());
        let mut nodes = Vec::new();
        let mut ports = Vec::new();
        let mut exits = Vec::new();
        for number in 0..RELAYS {
            let name = relay_name(number);
            let torrc = match number {
                0 => node::authority_torrc(&run, &subnet, vote),
                _ => node::relay_torrc(&run, &subnet, number),
            };
            let torrc = torrc + &authority;
            nodes.push(Node::new(&run, &name, &torrc)?);
            let resolver = format!("nameserver {}:{}\n", subnet.client(), subnet.dns_port(number));
            let path = run.join(&name).join("resolv.conf");
            fs::write(&path, resolver).because(format_args!("write {}", path.display()))?;
            // Equal weights, so that every exit is used.
            writeln!(bandwidths, "node_id=${} bw=1000", node::fingerprint(&run, &name)?)
                .because("write to memory")?;
            ports.push((subnet.dns_port(number), subnet.alias(number)));
            exits.push(Exit { name, ip: subnet.relay(number).into(), alias: subnet.alias(number).into() });
        }
        // The plain exits first: without the authority nothing new would be learned.
        exits.rotate_left(1);
        fs::write(run.join("bandwidths"), bandwidths).because("write the weights of the relays")?;
        let torrc = node::client_torrc(&run, &subnet) + client_lines + "\n" + &authority;
        nodes.push(Node::new(&run, CLIENT, &torrc)?);
        let dns = Dns::start(subnet.client(), &ports)?;
        Ok(Self { subnet, run, exits, nodes: Mutex::new(nodes), dns, _temporary: temporary })
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().expect("no panic under this lock")
    }

    async fn wait_for_port(&self, address: SocketAddr, deadline: Instant) -> Result<()> {
        while TcpStream::connect(address).await.is_err() {
            self.pause(&format!("a listener on {address}"), deadline).await?;
        }
        Ok(())
    }

    /// Waits until a relay serves as an exit: it takes connections some seconds earlier, but until it has made its own
    /// descriptor it believes to be no exit, and fails every name it is asked for.
    async fn wait_for_exit(&self, number: u8, deadline: Instant) -> Result<()> {
        let address = (self.subnet.relay(number), CONTROL_PORT).into();
        let name = relay_name(number);
        let cookie = self.run.join(&name).join("cookie");
        let has_policy = async || {
            let mut control = Control::connect(address, &cookie).await?;
            control.command("GETINFO exit-policy/full").await
        };
        while has_policy().await.is_err() {
            self.pause(&format!("the exit {name}"), deadline).await?;
        }
        Ok(())
    }

    async fn wait_for_descriptors(&self, deadline: Instant) -> Result<()> {
        let authority = self.run.join(AUTHORITY);
        self.wait("the descriptors of all relays", deadline, || {
            let known = node::read(&authority.join("cached-descriptors"))
                + &node::read(&authority.join("cached-descriptors.new"));
            let whole = known.matches("-----END SIGNATURE-----").count() >= usize::from(RELAYS);
            Ok(whole && (0..RELAYS).all(|number| known.contains(&format!("router {} ", relay_name(number)))))
        })
        .await
    }

    fn let_authority_vote(&self) -> Result<()> {
        let line = node::authority_line(&self.run, &self.subnet)?;
        let torrc = node::authority_torrc(&self.run, &self.subnet, FirstVote::soon()) + &line;
        let mut nodes = self.nodes();
        nodes[0] = Node::new(&self.run, AUTHORITY, &torrc)?;
        nodes[0].start()
    }

    async fn wait_for_consensus(&self, deadline: Instant) -> Result<()> {
        let authority = self.run.join(AUTHORITY);
        let relays = usize::from(RELAYS);
        self.wait("the authority's consensus", deadline, || {
            let consensus = node::read(&authority.join("cached-microdesc-consensus"));
            let listed = consensus.matches("\nr ").count();
            if consensus.contains("\ndirectory-footer") && listed < relays {
                // The next vote is hours away.
                return Err(Trouble::new(format!(
                    "the first vote of the Tor network knew {listed} relays of {relays}"
                )));
            }
            let known = |name| node::read(&authority.join(name)).matches("onion-key").count();
            let both = node::read(&authority.join("cached-consensus")).contains("\ndirectory-footer");
            Ok(both
                && listed == relays
                && known("cached-microdescs") + known("cached-microdescs.new") >= relays)
        })
        .await
    }

    /// Gives everybody what the authority knows, which saves them seconds of fetching.
    fn tell_everybody(&self) -> Result<()> {
        let files =
            ["cached-certs", "cached-microdesc-consensus", "cached-microdescs", "cached-microdescs.new"];
        for node in self.nodes().iter().filter(|node| node.name != AUTHORITY) {
            for file in files {
                let from = self.run.join(AUTHORITY).join(file);
                if from.exists() {
                    let to = self.run.join(&node.name).join(file);
                    fs::copy(&from, to).because(format_args!("copy {}", from.display()))?;
                }
            }
        }
        Ok(())
    }

    /// Waits until the client says once more than `before` times that it is ready.
    async fn wait_for_client(&self, before: usize, deadline: Instant) -> Result<()> {
        let ready = || Ok(self.nodes()[usize::from(RELAYS)].times_ready() > before);
        self.wait("the Tor client at 100 %", deadline, ready).await
    }

    async fn wait(
        &self,
        what: &str,
        deadline: Instant,
        mut done: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        while !done()? {
            self.pause(what, deadline).await?;
        }
        Ok(())
    }

    /// Waits a moment for `what`; fails if a process has ended, or the time is over.
    async fn pause(&self, what: &str, deadline: Instant) -> Result<()> {
        for node in self.nodes().iter_mut() {
            if let Some(ended) = node.has_ended()? {
                return Err(Trouble::new(ended));
            }
        }
        if Instant::now() > deadline {
            let logs: String =
                self.nodes().iter().map(|node| format!("\n{}:\n{}", node.name, node.log_tail())).collect();
            return Err(Trouble::new(format!("{what} did not come in time{logs}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        Ok(())
    }

    /// The client's SOCKS port.
    pub fn socks(&self) -> SocketAddr {
        (self.subnet.client(), SOCKS_PORT).into()
    }

    /// The client's control port.
    pub fn control(&self) -> SocketAddr {
        (self.subnet.client(), CONTROL_PORT).into()
    }

    /// The cookie for the control port.
    pub fn cookie(&self) -> PathBuf {
        self.run.join(CLIENT).join("cookie")
    }

    /// A new connection to the control port.
    pub async fn open_control(&self) -> Result<Control> {
        Control::connect(self.control(), &self.cookie()).await
    }

    /// The exits; the last one is the authority.
    pub fn exits(&self) -> &[Exit] {
        &self.exits
    }

    /// The exit whose alias this is.
    pub fn exit_of(&self, local: IpAddr) -> Option<&Exit> {
        self.exits.iter().find(|exit| exit.alias == local)
    }

    /// The addresses a shop must listen on to be seen from every exit.
    pub fn aliases(&self) -> Vec<IpAddr> {
        self.exits.iter().map(|exit| exit.alias).collect()
    }

    /// How many bytes the client has taken from its relays so far.
    pub async fn client_bytes_read(&self) -> Result<u64> {
        let said = self.open_control().await?.command("GETINFO traffic/read").await?;
        let bytes = said.iter().find_map(|line| line.strip_prefix("traffic/read=")?.parse().ok());
        bytes.ok_or_else(|| Trouble::new(format!("tor does not say what it read: {said:?}")))
    }

    /// What the exits asked their nameservers.
    pub fn dns(&self) -> &Dns {
        &self.dns
    }

    /// Has every tor send as soon as it can, until it ends. Right for figures alone: on loopback tor's own scheduler, which
    /// is made for the internet, is the limit.
    pub async fn hurry(&self) -> Result<()> {
        let relays = (0..RELAYS).map(|number| (self.subnet.relay(number), relay_name(number)));
        for (ip, name) in relays.chain([(self.subnet.client(), CLIENT.to_owned())]) {
            let cookie = self.run.join(&name).join("cookie");
            let mut control = Control::connect((ip, CONTROL_PORT).into(), &cookie).await?;
            control.command("SETCONF Schedulers=Vanilla").await?;
        }
        Ok(())
    }

    /// Kills the client with SIGKILL; its ports refuse when this returns.
    pub fn stop_client(&self) {
        self.nodes()[usize::from(RELAYS)].kill();
    }

    /// Starts the client again, and waits until it is at 100 %.
    pub async fn start_client(&self) -> Result<()> {
        let before = {
            let client = &mut self.nodes()[usize::from(RELAYS)];
            let before = client.times_ready();
            client.start()?;
            before
        };
        self.wait_for_client(before, Instant::now() + FRESH_MAX).await
    }

    /// Freezes the client (SIGSTOP): it accepts connections and says nothing.
    pub fn pause_client(&self) -> Result<()> {
        self.nodes()[usize::from(RELAYS)].signal(Signal::STOP)
    }

    /// Lets a frozen client go on (SIGCONT).
    pub fn resume_client(&self) -> Result<()> {
        self.nodes()[usize::from(RELAYS)].signal(Signal::CONT)
    }

    /// The process id of the client, if it runs.
    pub fn client_pid(&self) -> Option<u32> {
        self.nodes()[usize::from(RELAYS)].pid()
    }

    /// The process id of an exit, by its place in [`TorNetwork::exits`], if it runs.
    pub fn exit_pid(&self, exit: usize) -> Option<u32> {
        self.nodes()[Self::number(exit)].pid()
    }

    /// Kills an exit with SIGKILL, by its place in [`TorNetwork::exits`]. Without two of them there is no path.
    pub fn kill_exit(&self, exit: usize) {
        self.nodes()[Self::number(exit)].kill();
    }

    /// Sends a signal to an exit, by its place in [`TorNetwork::exits`].
    pub fn signal_exit(&self, exit: usize, signal: Signal) -> Result<()> {
        self.nodes()[Self::number(exit)].signal(signal)
    }

    /// Starts an exit again, and waits until it serves.
    pub async fn revive_exit(&self, exit: usize) -> Result<()> {
        let number = Self::number(exit);
        self.nodes()[number].start()?;
        let number = u8::try_from(number).because("number the relays")?;
        self.wait_for_exit(number, Instant::now() + FRESH_MAX).await
    }

    /// The number of the relay behind a place in `exits`: the authority, number 0, is the last there.
    fn number(exit: usize) -> usize {
        (exit + 1) % usize::from(RELAYS)
    }
}

impl Drop for TorNetwork {
    fn drop(&mut self) {
        if let Ok(nodes) = self.nodes.get_mut() {
            nodes.iter_mut().for_each(Node::kill);
        }
        // What is left over is cleaned by the next network in this subnet.
        let _ = fs::remove_dir_all(&self.run);
    }
}

/// Installs tor from the system's packages if it is missing, which needs root; else says what to run.
pub fn ensure_tor() -> Result<()> {
    apt::ensure("tor", is_installed)
}

fn is_installed() -> bool {
    let runs = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status()
    };
    // `tor-gencert` knows no `--version`: that it can be run at all is enough.
    runs("tor").is_ok_and(|status| status.success()) && runs("tor-gencert").is_ok()
}

/// An empty directory in the place of whatever a killed run has left there.
fn clean(dir: PathBuf) -> Result<PathBuf> {
    let _ = fs::remove_dir_all(&dir);
    snapshot::private_dir(&dir).because(format_args!("make {}", dir.display()))?;
    Ok(fs::canonicalize(&dir).unwrap_or(dir))
}

#[cfg(test)]
mod tests;
