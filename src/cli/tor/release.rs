//! `glaneur tor release`: gives a tor back that a daemon in the strict grade left when it was killed. Until then no stream
//! of anybody who uses that tor is attached to a circuit.

use std::io::Write;
use std::path::Path;

use crate::cli::{complain, find, secrets, wait_for};
use crate::config::Binding;
use crate::exit::Exit;
use crate::scraper::control::{Released, release};

/// `quiet`: for a service manager, which asks after each end of the daemon. A daemon that was not started for mistakes in
/// its configuration has said them, and held nothing.
pub fn run(config: Option<&Path>, quiet: bool) -> Exit {
    let found = match if quiet { find::config_if_right(config) } else { find::config(config) } {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let say_nothing_to_do = |why| {
        if !quiet {
            say(format_args!("nothing to release: {why}"));
        }
        Exit::Ok
    };
    let tor = &found.config.tor;
    let (Some(address), Binding::Strict) = (tor.control, tor.binding) else {
        return say_nothing_to_do("tor.binding is not \"strict\"");
    };
    let password = match secrets::control_password(&found.config) {
        Ok(password) => password,
        Err(what) => {
            found.complain(what);
            return Exit::File;
        }
    };
    match wait_for(release(address, password.as_ref())) {
        Err(exit) => exit,
        Ok(Ok(Released { was_held: false, .. })) => say_nothing_to_do("tor attaches streams by itself"),
        Ok(Ok(Released { was_held: true, attached })) => {
            say(format_args!("tor attaches streams by itself again; {attached} waited"));
            Exit::Ok
        }
        Ok(Err(error)) => {
            complain(error);
            Exit::No
        }
    }
}

fn say(line: std::fmt::Arguments<'_>) {
    // Nobody reads a closed pipe.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
