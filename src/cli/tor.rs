//! `glaneur tor check`: whether Tor is as the daemon needs it, in plain words, and which line of torrc mends what is not.
//! `glaneur tor release` is in `release.rs`.
//!
//! Works beside a running daemon and without one; see `scraper/survey.rs` for what is asked, `verdict.rs` for what the
//! answers mean.

use std::io::Write;
use std::path::Path;

use super::{find, secrets, wait_for};
use crate::config::Config;
use crate::exit::Exit;
use crate::model::page::Via;
use crate::scraper::survey::{Asked, survey};

mod release;
mod verdict;

pub use release::run as release;
use verdict::{Needs, Verdict};

pub fn check(config: Option<&Path>) -> Exit {
    let found = match find::config(config) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let tor = &found.config.tor;
    let password = match secrets::control_password(&found.config) {
        Ok(password) => password,
        Err(what) => {
            found.complain(what);
            return Exit::File;
        }
    };
    let asked = Asked {
        socks: tor.socks,
        control: tor.control.map(|address| (address, password)),
        name: name_to_look_up(&found.config),
    };
    let seen = match wait_for(survey(&asked)) {
        Ok(seen) => seen,
        Err(exit) => return exit,
    };
    let needs =
        Needs { socks: tor.socks, name: asked.name.as_deref(), age_max: tor.age_max, binding: tor.binding };
    let lines = verdict::lines(&needs, &seen);
    let mut out = std::io::stdout().lock();
    // Nobody reads a closed pipe.
    let _ = writeln!(out, "configuration: {}", found.path.display());
    for line in &lines {
        let _ = writeln!(out, "{line}");
    }
    let bad = lines.iter().filter(|line| line.verdict == Verdict::Bad).count();
    let _ = match bad {
        0 => writeln!(out, "nothing is wrong"),
        1 => writeln!(out, "1 is bad: mend it, reload tor (systemctl reload tor), and check again"),
        _ => writeln!(out, "{bad} are bad: mend them, reload tor (systemctl reload tor), and check again"),
    };
    if bad == 0 { Exit::Ok } else { Exit::No }
}

/// The host of a shop that is visited through Tor; of one that is only described, if none is in use.
fn name_to_look_up(config: &Config) -> Option<String> {
    let in_use = config.enabled_sites().into_iter().find(|recipe| recipe.via == Via::Tor);
    let recipe = in_use.or_else(|| config.sites.values().next().cloned())?;
    recipe.base.host_str().map(str::to_owned)
}
