//! Packages of the system, installed where they are missing and this user may.

use std::process::{Command, Stdio};

use crate::{Because, Result, Trouble};

/// Installs `package` with `apt-get` unless `is_there`, which needs root; else says what to run.
pub(crate) fn ensure(package: &str, is_there: impl Fn() -> bool) -> Result<()> {
    let command = format!("apt-get install -y {package}");
    if is_there() {
        return Ok(());
    }
    if !rustix::process::getuid().is_root() {
        return Err(Trouble::new(format!("{package} is not installed; run this first: sudo {command}")));
    }
    for arguments in [&["update"][..], &["install", "-y", package]] {
        let deed = format!("run apt-get {}", arguments.join(" "));
        let mut apt = Command::new("apt-get");
        // Its standard output is not ours to fill; its complaints are for the person who waits.
        apt.args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let status = apt.status().because(&deed)?;
        if !status.success() {
            return Err(Trouble::new(format!("could not {deed}: {status}")));
        }
    }
    match is_there() {
        true => Ok(()),
        false => Err(Trouble::new(format!("{package} is still missing after {command}"))),
    }
}
