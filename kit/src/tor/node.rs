//! One tor process of a private network: its configuration, its start, its end.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::SystemTime,
};

use rustix::process::{Pid, Signal};

use super::{
    snapshot,
    subnet::{CONTROL_PORT, DIR_PORT, OR_PORT, SOCKS_PORT, Subnet},
};
use crate::{Because, Result, Trouble};

/// Keeps tor from reading what the system has configured.
const NO_DEFAULTS: [&str; 3] = ["--ignore-missing-torrc", "--defaults-torrc", "/nonexistent"];

/// The authority is relay 0; it is an exit as well.
pub(super) const AUTHORITY: &str = "auth0";
pub(super) const CLIENT: &str = "client";

/// Lines of a log shown when something fails.
const TAIL_LINES: usize = 12;

/// The name of a relay.
pub(super) fn relay_name(number: u8) -> String {
    match number {
        0 => AUTHORITY.to_owned(),
        number => format!("exit{}", number - 1),
    }
}

/// One tor, running or not.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    dir: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// A node whose data directory is `run/name`; does not start it.
    pub(super) fn new(run: &Path, name: &str, torrc: &str) -> Result<Self> {
        let dir = run.join(name);
        let write = || {
            snapshot::private_dir(&dir)?;
            fs::write(dir.join("torrc"), torrc)
        };
        write().because(format_args!("write the torrc of {name}"))?;
        Ok(Self { name: name.to_owned(), dir, child: None })
    }

    /// Starts it, if it does not run.
    pub(super) fn start(&mut self) -> Result<()> {
        if self.has_ended()?.is_none() && self.child.is_some() {
            return Ok(());
        }
        let spawn = || {
            let output = File::options().create(true).append(true).open(self.dir.join("stdout"))?;
            Command::new("tor")
                .args(NO_DEFAULTS)
                .arg("-f")
                .arg(self.dir.join("torrc"))
                .current_dir(&self.dir)
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output)
                .spawn()
        };
        self.child = Some(spawn().because(format_args!("start the tor {}", self.name))?);
        Ok(())
    }

    /// How it ended, if it was started and has ended by itself.
    pub(super) fn has_ended(&mut self) -> Result<Option<String>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait().because(format_args!("look after the tor {}", self.name))?;
        Ok(status.map(|status| format!("the tor {} ended ({status}): {}", self.name, self.log_tail())))
    }

    /// Kills it with SIGKILL and waits until it is gone. Does nothing if it does not run.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if it is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let pid = pid.ok_or_else(|| Trouble::new(format!("the tor {} does not run", self.name)))?;
        rustix::process::kill_process(pid, signal)
            .because(format_args!("send {signal:?} to the tor {}", self.name))
    }

    /// How often its log says that it is ready.
    pub(super) fn times_ready(&self) -> usize {
        read(&self.dir.join("log")).matches("Bootstrapped 100%").count()
    }

    /// The end of its log, and of what it printed before it had a log.
    pub(super) fn log_tail(&self) -> String {
        let text = read(&self.dir.join("stdout")) + &read(&self.dir.join("log"));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// The text of a file, empty if it is not there.
pub(super) fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Makes the keys of all relays, side by side.
pub(super) fn make_keys(run: &Path, subnet: &Subnet, relays: u8) -> Result<()> {
    let mut makers = Vec::new();
    for number in 0..relays {
        let name = relay_name(number);
        let dir = run.join(&name);
        let keys = dir.join("keys");
        snapshot::private_dir(&keys).because(format_args!("make {}", keys.display()))?;
        if number == 0 {
            let mut gencert = Command::new("tor-gencert");
            gencert.args(["--create-identity-key", "--passphrase-fd", "0", "-m", "12", "-a"]);
            gencert.arg(format!("{}:{DIR_PORT}", subnet.relay(number)));
            gencert.arg("-i").arg(keys.join("authority_identity_key"));
            gencert.arg("-s").arg(keys.join("authority_signing_key"));
            gencert.arg("-c").arg(keys.join("authority_certificate"));
            makers.push(gencert);
        }
        let mut tor = Command::new("tor");
        tor.args(NO_DEFAULTS).args(["-f", "/nonexistent", "--DataDirectory"]).arg(&dir);
        tor.args(["--ORPort", "1", "--Nickname", &name, "--list-fingerprint", "--quiet"]);
        makers.push(tor);
    }
    let start = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    };
    let children: Vec<_> = makers.iter_mut().map(start).collect();
    for child in children {
        let status = child.and_then(|mut child| child.wait()).because("make the keys of a Tor network")?;
        if !status.success() {
            return Err(Trouble::new(format!("could not make the keys of a Tor network: {status}")));
        }
    }
    Ok(())
}

/// The fingerprint of a relay that has keys.
pub(super) fn fingerprint(run: &Path, name: &str) -> Result<String> {
    let text = read(&run.join(name).join("fingerprint"));
    let fingerprint = text.split_whitespace().nth(1).map(str::to_owned);
    fingerprint.ok_or_else(|| Trouble::new(format!("the tor {name} has no fingerprint")))
}

/// The line by which everybody knows the authority.
pub(super) fn authority_line(run: &Path, subnet: &Subnet) -> Result<String> {
    let certificate = read(&run.join(AUTHORITY).join("keys/authority_certificate"));
    let identity = certificate.lines().find_map(|line| line.strip_prefix("fingerprint "));
    let identity = identity.ok_or_else(|| Trouble::new("the Tor authority has no certificate"))?;
    let (ip, fingerprint) = (subnet.relay(0), fingerprint(run, AUTHORITY)?);
    Ok(format!(
        "DirAuthority {AUTHORITY} orport={OR_PORT} no-v2 v3ident={identity} {ip}:{DIR_PORT} {fingerprint}\n"
    ))
}

/// What all have. Each ends when we are gone, whatever happened to us. Nobody asks for countries here, and reading the
/// tables of them is most of the work of a start: seconds on a loaded machine.
fn common(dir: &Path) -> String {
    format!(
        "TestingTorNetwork 1\nDataDirectory {dir}\nLog notice file {dir}/log\nShutdownWaitLength 0\n\
         PathsNeededToBuildCircuits 0.67\nGeoIPFile /dev/null\nGeoIPv6File /dev/null\n__OwningControllerProcess {owner}\n",
        dir = dir.display(),
        owner = std::process::id(),
    )
}

/// A relay, which is an exit to everywhere: clients take a policy of loopback only for "rejects all".
pub(super) fn relay_torrc(run: &Path, subnet: &Subnet, number: u8) -> String {
    let name = relay_name(number);
    let dir = run.join(&name);
    format!(
        "{common}Nickname {name}\nAddress {ip}\nORPort {ip}:{OR_PORT}\nSocksPort 0\nAssumeReachable 1\n\
         RefuseUnknownExits 0\nExitRelay 1\nExitPolicy accept *:*\nOutboundBindAddress {ip}\n\
         ServerDNSResolvConfFile {dir}/resolv.conf\nServerDNSAllowBrokenConfig 1\nServerDNSDetectHijacking 0\n\
         ControlPort {ip}:{CONTROL_PORT}\nCookieAuthentication 1\nCookieAuthFile {dir}/cookie\n",
        common = common(&dir),
        ip = subnet.relay(number),
        dir = dir.display(),
    )
}

/// When the authority votes, as long as it has no consensus: whenever the time modulo `interval` is `offset`.
///
/// The interval must divide half an hour.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstVote {
    interval: u64,
    offset: u64,
}

impl FirstVote {
    /// In a quarter of an hour.
    pub(super) fn not_yet() -> Self {
        const INTERVAL: u64 = 1_800;
        Self { interval: INTERVAL, offset: (now() + INTERVAL / 2) % INTERVAL }
    }

    /// In six seconds. Delays of 2 s each for the vote and its distribution are the least tor takes, so it begins in two.
    pub(super) fn soon() -> Self {
        const INTERVAL: u64 = 10;
        Self { interval: INTERVAL, offset: (now() + 6) % INTERVAL }
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    // Before 1970 no consensus would be valid anyway.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The authority, which is a relay as well. It believes that every relay runs: after its second start it has tried none.
/// The long voting interval makes a consensus last for a day.
pub(super) fn authority_torrc(run: &Path, subnet: &Subnet, vote: FirstVote) -> String {
    let relay = relay_torrc(run, subnet, 0);
    format!(
        "{relay}AuthoritativeDirectory 1\nV3AuthoritativeDirectory 1\nDirPort {ip}:{DIR_PORT}\nContactInfo none\n\
         TestingDirAuthVoteExit *\nTestingDirAuthVoteGuard *\nTestingMinExitFlagThreshold 0\n\
         AuthDirTestReachability 0\n\
         TestingV3AuthInitialVotingInterval {interval}\nTestingV3AuthInitialVoteDelay 2\n\
         TestingV3AuthInitialDistDelay 2\nTestingV3AuthVotingStartOffset {offset}\n\
         V3AuthVotingInterval 43200\nV3AuthVoteDelay 2\nV3AuthDistDelay 2\nV3AuthNIntervalsValid 2\n\
         V3BandwidthsFile {run}/bandwidths\n",
        ip = subnet.relay(0),
        interval = vote.interval,
        offset = vote.offset,
        run = run.display(),
    )
}

/// The client: circuits are told apart by user and password, stay for as long as they are used, and are not joined.
pub(super) fn client_torrc(run: &Path, subnet: &Subnet) -> String {
    let dir = run.join(CLIENT);
    format!(
        "{common}SocksPort {ip}:{SOCKS_PORT} IsolateSOCKSAuth KeepAliveIsolateSOCKSAuth ExtendedErrors\n\
         ControlPort {ip}:{CONTROL_PORT}\nCookieAuthentication 1\nCookieAuthFile {dir}/cookie\nConfluxEnabled 0\n",
        common = common(&dir),
        ip = subnet.client(),
        dir = dir.display(),
    )
}
