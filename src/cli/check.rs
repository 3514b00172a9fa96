//! `glaneur check`: every mistake of the configuration at once, and of the secrets that it names, as a start or a reload
//! would find them.

use std::io::Write;
use std::path::Path;

use super::find;
use crate::exit::Exit;
use crate::model::Gtin;
use crate::model::page::Via;
use crate::recipe::Recipe;

/// Whose robots.txt a shop's visits heed; hosts that its links lead to besides are asked as well.
fn robots_hosts(recipe: &Recipe) -> Vec<String> {
    if !recipe.robots {
        return Vec::new();
    }
    let searched = recipe.search_request(&Gtin::any()).url;
    let mut hosts: Vec<String> =
        [&searched, &recipe.base].iter().filter_map(|url| url.host_str().map(str::to_owned)).collect();
    hosts.dedup();
    hosts
}

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
        let _ = match robots_hosts(&recipe) {
            hosts if hosts.is_empty() => writeln!(out, "{}: robots.txt is not asked for", recipe.name),
            hosts => writeln!(out, "{}: robots.txt will be asked of {}", recipe.name, hosts.join(" and ")),
        };
    }
    Exit::Ok
}
