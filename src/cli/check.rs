//! `glaneur check`: every mistake of the configuration at once, and of the secrets that it names, as a start or a reload
//! would find them.

use std::io::Write;
use std::path::Path;

use super::find;
use crate::exit::Exit;
use crate::model::page::Via;

pub fn run(config: Option<&Path>) -> Exit {
    let found = match find::load(config) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let mut out = std::io::stdout().lock();
    let shops: Vec<String> = found.config.enabled_sites().iter().map(|recipe| recipe.name.clone()).collect();
    let in_use = if shops.is_empty() {
        "no shop is in use: set sites.<name>.enabled = true".to_owned()
    } else {
        format!("shops in use: {}", shops.join(", "))
    };
    // Nobody reads a closed pipe.
    let _ = writeln!(out, "{}: no mistake; {in_use}", found.path.display());
    for recipe in found.config.enabled_sites() {
        if recipe.via == Via::Direct || recipe.search.via == Via::Direct {
            let _ = writeln!(out, "{}: goes out without Tor, by configuration", recipe.name);
        }
    }
    Exit::Ok
}
