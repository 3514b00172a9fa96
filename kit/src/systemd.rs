//! The real systemd as PID 1 of namespaces of its own, booted in a second from this machine's own files.
//!
//! Its root is this machine's, read through an overlay, so that nothing is downloaded and nothing that it writes is left
//! when it ends. Its network is its own as well: a thread that has gone there with [`Lab::enter_network`] reaches the
//! services in it on loopback, and what it starts is reached by them.
//!
//! It ends when the [`Lab`] is dropped, and with the process that started it, however that ends.
//!
//! It needs root, namespaces, overlays and a cgroup2 that may be written, as a virtual machine or a privileged container
//! has them; [`Lab::start`] says which of them is missing.

use std::{
    fmt, fs,
    io::{BufRead, BufReader},
    os::{fd::AsFd, unix::fs::PermissionsExt, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustix::time::{ClockId, clock_gettime};

use crate::{Because, Result, Trouble};

const SYSTEMD: &str = "/lib/systemd/systemd";

/// Longer than any boot on a loaded machine (0.5 s on an idle one): it only ends a test that would wait for ever.
const BOOT_MAX: Duration = Duration::from_secs(60);

/// As [`BOOT_MAX`], in seconds, for one command; the longest is a `systemctl stop` that waits for a drain.
const COMMAND_MAX_S: &str = "90";

/// Between two looks at a thing that nobody tells us about.
const POLL: Duration = Duration::from_millis(10);

/// A systemd that runs.
#[derive(Debug)]
pub struct Lab {
    /// The shell that holds it, and kills it when its standard input ends.
    holder: Child,
    /// Its PID 1, as seen from here.
    init: u32,
}

/// What a command in the lab did.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its exit code; 124 if it took too long, 128 and more after a signal.
    pub code: i32,
    /// What it said, without the last line's end.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Ran {
    fn from(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        Self {
            code: output.status.code().unwrap_or(128),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Its standard output, if it ended well.
    pub fn ok(self) -> Result<String> {
        if self.code == 0 { Ok(self.stdout) } else { Err(Trouble::new(self.to_string())) }
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}\n{}\n{}", self.code, self.stdout, self.stderr)
    }
}

impl Lab {
    /// Boots it and waits until it is up. An error says what this machine lacks.
    pub fn start() -> Result<Self> {
        let cgroups = possible()?;
        // The holder removes it: a test that is killed cannot.
        let dir =
            tempfile::Builder::new().prefix("glaneur-lab-").tempdir().because("make a directory")?.keep();
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).because(format_args!("write {}", path.display()))
        };
        write("boot.sh", include_str!("systemd/boot.sh"))?;
        write("lab.sh", include_str!("systemd/lab.sh"))?;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut holder = Command::new("sh")
            .arg(dir.join("lab.sh"))
            .arg(&dir)
            .arg(cgroups.join(format!("glaneur-lab-{}-{number}", std::process::id())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // What ends a whole run (Ctrl-C, timeout) is sent to its group; the holder is to see the end, and clear away.
            .process_group(0)
            .spawn()
            .because("start a shell")?;
        let told = holder.stdout.take().expect("stdout is piped");
        // Dropped on an error from here on, and with it all that was started.
        let mut lab = Self { holder, init: 0 };
        let mut line = String::new();
        BufReader::new(told).read_line(&mut line).because("hear of the lab")?;
        let above = line.trim().parse().map_err(|_| Trouble::new("the lab did not start"))?;
        lab.wait_until_up(above).map_err(|trouble| {
            let console = fs::read_to_string(dir.join("console.log")).unwrap_or_default();
            Trouble::new(format!("systemd did not come up: {trouble}\n{console}"))
        })?;
        Ok(lab)
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "a thread of a test that waits: there need be no runtime yet"
    )]
    fn wait_until_up(&mut self, above: u32) -> Result<()> {
        let begin = Instant::now();
        let patience = |what: &str| {
            if !Path::new(&format!("/proc/{above}")).exists() {
                return Err(Trouble::new("it ended"));
            }
            thread::sleep(POLL);
            if begin.elapsed() < BOOT_MAX { Ok(()) } else { Err(Trouble::new(format!("no {what}"))) }
        };
        while self.init == 0 {
            // Before unshare there is a shell, which has children of its own.
            match children_of(above).into_iter().find(|pid| is_first_of_its_namespace(*pid)) {
                Some(pid) => self.init = pid,
                None => patience("child")?,
            }
        }
        // Before it is there the process is a shell that still mounts.
        let comm = format!("/proc/{}/comm", self.init);
        while !(fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "systemd")
            && self.root().join("run/systemd/private").exists())
        {
            patience("systemd")?;
        }
        let state = self.run(&["systemctl", "is-system-running", "--wait"])?;
        if state.stdout == "running" { Ok(()) } else { Err(Trouble::new(state.to_string())) }
    }

    /// Its version, as `systemctl --version` begins.
    pub fn version(&self) -> Result<String> {
        let all = self.run(&["systemctl", "--version"])?.ok()?;
        Ok(all.lines().next().unwrap_or_default().to_owned())
    }

    /// Its root directory, as seen from here.
    pub fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.init).into()
    }

    /// Runs a command in it, as root.
    pub fn run(&self, command: &[&str]) -> Result<Ran> {
        let output = Command::new("timeout")
            .args(["--kill-after=1", COMMAND_MAX_S, "nsenter", "--target"])
            .arg(self.init.to_string())
            .args(["--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd", "--"])
            .args(["env", "-i", "LANG=C.UTF-8", "SYSTEMD_PAGER=cat", "SYSTEMD_COLORS=0"])
            .arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .args(command)
            .stdin(Stdio::null())
            .output()
            .because(format_args!("run {command:?}"))?;
        Ok(Ran::from(&output))
    }

    /// Writes a file in it, and the directories above.
    pub fn write(&self, path: &str, text: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        let there = self.root().join(path.trim_start_matches('/'));
        let deed = format!("write {path} in the lab");
        fs::create_dir_all(there.parent().unwrap_or(&there)).because(&deed)?;
        // A program that runs cannot be written to, but its name can be given to another.
        let _ = fs::remove_file(&there);
        fs::write(&there, text).because(&deed)?;
        fs::set_permissions(&there, fs::Permissions::from_mode(mode)).because(&deed)
    }

    /// Removes what is there, file or directory.
    pub fn remove(&self, path: &str) -> Result<()> {
        self.run(&["rm", "-rf", path])?.ok().map(drop)
    }

    /// Copies a file of this machine into it.
    pub fn copy(&self, from: &Path, to: &str, mode: u32) -> Result<()> {
        self.write(to, fs::read(from).because(format_args!("read {}", from.display()))?, mode)
    }

    /// Takes this thread, and the threads it starts from now on, into its network, where 127.0.0.1 is its loopback
    /// and [`ELSEWHERE`] another address.
    pub fn enter_network(&self) -> Result<()> {
        let path = format!("/proc/{}/ns/net", self.init);
        let namespace = fs::File::open(&path).because(format_args!("open {path}"))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .because("enter the network of the lab")
    }
}

/// An address in the network of every lab that is not loopback's.
pub const ELSEWHERE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 99, 0, 1);

/// The time on the clock of systemd's properties that end in `TimestampMonotonic`.
pub fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // The holder ends once everything is gone.
        let _ = self.holder.wait();
    }
}

fn children_of(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn is_first_of_its_namespace(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    ids.split_whitespace().skip(1).last() == Some("1")
}

/// Where cgroups may be made, if all that a lab needs is there.
fn possible() -> Result<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return Err(Trouble::new("namespaces with a systemd in them need root"));
    }
    if !Path::new(SYSTEMD).exists() {
        return Err(Trouble::new(format!("{SYSTEMD} is missing")));
    }
    let probe = ["--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "true"];
    let probed = Command::new("unshare").args(probe).stdin(Stdio::null()).output().because("run unshare")?;
    if !probed.status.success() {
        let why = String::from_utf8_lossy(&probed.stderr).trim().to_owned();
        return Err(Trouble::new(format!("no namespaces here: {why}")));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").because("read /proc/self/mounts")?;
    cgroup2(&mounts).ok_or_else(|| Trouble::new("no cgroup2 is mounted that may be written"))
}

/// The place of the cgroup2 in a list of mounts, which is the root or, beside the older cgroups, below it.
fn cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|mount| match mount.split(' ').collect::<Vec<_>>()[..] {
        [_, path, "cgroup2", options, ..] if options.split(',').any(|option| option == "rw") => {
            Some(path.into())
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_is_found_beside_the_older_ones() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(cgroup2(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2("cgroup2 /sys/fs/cgroup cgroup2 ro,nosuid 0 0"), None);
    }

    #[test]
    fn a_lab_leaves_nothing_behind() {
        let lab = match Lab::start() {
            Ok(lab) => lab,
            Err(trouble) => return println!("no lab: {trouble}"),
        };
        assert!(lab.version().unwrap().starts_with("systemd "));
        lab.write("/etc/glaneur-lab-was-here", "x", 0o600).unwrap();
        let init = format!("/proc/{}", lab.init);
        let cgroups = possible().unwrap();
        let ours = || {
            let prefix = format!("glaneur-lab-{}-", std::process::id());
            let all = fs::read_dir(&cgroups).unwrap().flatten();
            all.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
        };
        assert_eq!((Path::new(&init).exists(), ours()), (true, 1));
        drop(lab);
        assert_eq!((Path::new(&init).exists(), ours()), (false, 0));
        assert!(!Path::new("/etc/glaneur-lab-was-here").exists());
    }
}
