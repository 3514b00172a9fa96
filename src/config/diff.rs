//! What a changed configuration changes: which keys a running daemon takes at once, and which wait for a restart. Pure.
//!
//! The tables below name every key once, as it is written in `config.toml`. They take the structs apart without `..`, so
//! a new key does not compile until somebody has decided which of the two it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Batches, Catalogue, Config, Fetch, Ledger, Log, Server, Shutdown, Tor, Webhooks};
use crate::markup::Limits;
use crate::recipe::Recipe;

/// The keys whose values differ, in the order of `config.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Taken by what starts from now on.
    pub applied: Vec<String>,
    /// Kept as they were at the start, until the next one.
    pub needs_restart: Vec<String>,
}

/// Takes `new` over `old`: what runs from now on is `new`, but for the keys that only a start can take.
pub fn take(old: &Config, mut new: Config) -> (Config, Changes) {
    let mut changes = Changes::default();
    let Config { server, ledger, batches, webhooks, tor, fetch, extract, catalogue, log, shutdown, sites } =
        &mut new;
    server.take("server", &old.server, &mut changes);
    ledger.take("ledger", &old.ledger, &mut changes);
    batches.take("batches", &old.batches, &mut changes);
    webhooks.take("webhooks", &old.webhooks, &mut changes);
    tor.take("tor", &old.tor, &mut changes);
    fetch.take("fetch", &old.fetch, &mut changes);
    extract.take("extract", &old.extract, &mut changes);
    match (catalogue, &old.catalogue) {
        (Some(new), Some(old)) => new.take("catalogue", old, &mut changes),
        (Some(_), None) | (None, Some(_)) => changes.applied.push("catalogue.url".into()),
        (None, None) => {}
    }
    log.take("log", &old.log, &mut changes);
    shutdown.take("shutdown", &old.shutdown, &mut changes);
    take_sites(&old.sites, sites, &mut changes);
    // A window of 0 is read as twice the circuits: it follows them, and is no change of its own.
    let follows = |config: &Config| config.batches.window == 2 * config.tor.circuits;
    if follows(old) && follows(&new) {
        changes.applied.retain(|key| key != "batches.window");
    }
    (new, changes)
}

/// Shops by their names: one that came or went is one change, another is told key by key.
fn take_sites(
    old: &BTreeMap<String, Arc<Recipe>>,
    new: &mut BTreeMap<String, Arc<Recipe>>,
    changes: &mut Changes,
) {
    let gone = old.keys().filter(|name| !new.contains_key(*name)).cloned().collect::<Vec<_>>();
    for (name, recipe) in new {
        let path = format!("sites.{name}");
        match old.get(name) {
            Some(before) if before == recipe => {}
            Some(before) => Arc::make_mut(recipe).take(&path, before, changes),
            None => changes.applied.push(path),
        }
    }
    changes.applied.extend(gone.into_iter().map(|name| format!("sites.{name}")));
}

trait Take {
    /// Notes what differs from `old`, and puts back what only a start can take.
    fn take(&mut self, path: &str, old: &Self, changes: &mut Changes);
}

/// `live` is taken at once, `start` only by a start; the same with `_unnamed` where the field is no key of its own.
macro_rules! keys {
    ($($section:ident { $($key:ident: $when:ident),+ $(,)? })+) => { $(
        impl Take for $section {
            fn take(&mut self, path: &str, old: &Self, changes: &mut Changes) {
                let Self { $($key),+ } = self;
                $(if *$key != old.$key {
                    keys!(@$when changes, format!("{path}.{}", stringify!($key)), $key, old.$key);
                })+
            }
        }

        #[cfg(test)]
        impl $section {
            pub(super) const KEYS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($key), stringify!($when))),+];
        }
    )+ };
    (@live $changes:ident, $name:expr, $new:expr, $old:expr) => { $changes.applied.push($name) };
    (@start $changes:ident, $name:expr, $new:expr, $old:expr) => {{
        $changes.needs_restart.push($name);
        $new.clone_from(&$old);
    }};
    (@live_unnamed $changes:ident, $name:expr, $new:expr, $old:expr) => {};
    (@start_unnamed $changes:ident, $name:expr, $new:expr, $old:expr) => { $new.clone_from(&$old) };
}

keys! {
    Server {
        listen: start,
        hosts: live,
        allow_from: live,
        token_file: live,
        language: live,
        products_max: live,
        body_bytes_max: live,
        metadata_bytes_max: live,
        header_bytes_max: live,
        header_timeout: live,
        body_timeout: live,
        request_timeout: live,
        connections_max: start,
        dedupe_window: live,
    }
    // The writer is built with them once, and is never restarted.
    Ledger {
        url: start,
        path: start_unnamed,
        free_bytes_min: start,
        claims_max: start,
        queue_max: start,
        group_max: start,
    }
    Batches { window: live, ignore_prefixes: live }
    Webhooks {
        product_url: live,
        summary_url: live,
        secret_file: live,
        hosts: live,
        timeout: live,
        concurrency: live,
        park_after: live,
        patience: live,
        summary_wait: live,
        backoff_min: live,
        backoff_max: live,
        parked_probe_max: live,
    }
    // Another tor has another clock of circuits, and proofs that the old one was there say nothing of it.
    Tor {
        socks: start,
        control: start,
        control_password_file: live,
        binding: start,
        circuits: live,
        uses_max: live,
        age_max: live,
        block_memory: live,
        probe_timeout: live,
        hedge_percent: live,
    }
    Fetch {
        connect_timeout: live,
        first_byte_timeout: live,
        silence_timeout: live,
        visit_deadline: live,
        body_bytes_max: live,
        decoded_bytes_max: live,
        redirects_max: live,
        user_agent: live,
        attempts_max: live,
        retry_min: live,
        retry_max: live,
    }
    Limits { time_max: live, depth_max: live, nodes_max: live }
    Catalogue {
        url: live,
        token_file: live,
        via: live,
        timeout: live,
        rate: live,
        concurrency: live,
        attempts_max: live,
        total: live,
        name: live,
    }
    Log { format: start, level: live }
    Shutdown { drain: live }
    Recipe {
        name: live_unnamed,
        title: live,
        enabled: live,
        // Another shop came before it.
        position: live_unnamed,
        base: live,
        hosts: live,
        via: live,
        unverified: live,
        rate: live,
        adaptive: live,
        pause: live,
        robots: live,
        concurrency: live,
        hedge: live,
        candidates_max: live,
        headers: live,
        blocks: live,
        on_block: live,
        search: live,
        fields: live,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DEFAULT, parse};
    use super::*;

    fn config(text: &str) -> Config {
        parse("c.toml", &format!("webhooks.product_url = \"none\"\n{text}")).unwrap()
    }

    #[track_caller]
    fn changed(old: &str, new: &str) -> (Vec<String>, Vec<String>) {
        let (_, Changes { applied, needs_restart }) = take(&config(old), config(new));
        (applied, needs_restart)
    }

    #[test]
    fn nothing_changed_is_no_change_whatever_the_spelling() {
        let (old, new) =
            (config("server.dedupe_window = \"60s\"\n"), config("server.dedupe_window = \"1m\"\n"));
        let (running, changes) = take(&old, new);
        assert_eq!((running, changes), (old, Changes::default()));
    }

    #[test]
    fn changed_keys_are_named_as_they_are_written() {
        let (applied, needs_restart) = changed(
            "",
            "tor.circuits = 2\nlog.level = \"debug\"\nwebhooks.timeout = \"5s\"\nserver.listen = \"127.0.0.1:1\"\n\
             ledger.url = \"sqlite:other.db\"\nsites.drakkars.rate = \"5/s\"\n",
        );
        assert_eq!(applied, ["webhooks.timeout", "tor.circuits", "log.level", "sites.drakkars.rate"]);
        assert_eq!(needs_restart, ["server.listen", "ledger.url"]);
    }

    #[test]
    fn what_needs_a_restart_stays_and_is_named_again_until_there_is_one() {
        let old = config("");
        let text = "server.listen = \"127.0.0.1:1\"\nledger.url = \"sqlite:other.db\"\ntor.circuits = 2\n";
        let (running, first) = take(&old, config(text));
        assert_eq!(running.server.listen, old.server.listen);
        assert_eq!(running.ledger, old.ledger, "the path stays with its URL");
        assert_eq!(running.tor.circuits, 2, "the rest applies");
        let (_, second) = take(&running, config(text));
        assert_eq!(second.needs_restart, first.needs_restart);
        assert!(second.applied.is_empty(), "{second:?}");
    }

    #[test]
    fn a_shop_that_came_or_went_and_a_catalogue_are_one_change_each() {
        const SHOP: &str = "[sites.mine]\nbase = \"http://x.test\"\n[sites.mine.search]\nurl = \"/{ean}\"\nlinks = \"css:a\"\n";
        assert_eq!(changed("", SHOP).0, ["sites.mine"]);
        assert_eq!(changed(SHOP, "").0, ["sites.mine"]);
        assert_eq!(changed("", "catalogue.url = \"http://x.test/{ean}\"\n").0, ["catalogue.url"]);
        assert_eq!(changed("", "sites.drakkars.enabled = true\n").0, ["sites.drakkars.enabled"]);
    }

    #[test]
    fn a_window_that_follows_the_circuits_is_no_change_of_its_own() {
        assert_eq!(changed("", "tor.circuits = 2\n").0, ["tor.circuits"]);
        assert_eq!(
            changed("", "tor.circuits = 2\nbatches.window = 20\n").0,
            ["batches.window", "tor.circuits"]
        );
    }

    /// The comment right above `line`, as one text.
    fn comment_above(line: usize) -> String {
        let lines: Vec<&str> = DEFAULT.lines().collect();
        let above =
            lines[..line].iter().rev().take_while(|text| text.starts_with("# ") && !text.contains(" = "));
        above.copied().collect()
    }

    #[test]
    fn config_toml_says_which_keys_need_a_restart_and_of_no_other() {
        let sections: [(&str, &[(&str, &str)]); 10] = [
            ("server", Server::KEYS),
            ("ledger", Ledger::KEYS),
            ("batches", Batches::KEYS),
            ("webhooks", Webhooks::KEYS),
            ("tor", Tor::KEYS),
            ("fetch", Fetch::KEYS),
            ("extract", Limits::KEYS),
            ("catalogue", Catalogue::KEYS),
            ("log", Log::KEYS),
            ("shutdown", Shutdown::KEYS),
        ];
        assert!(
            Recipe::KEYS.iter().all(|(_, when)| when.starts_with("live")),
            "a shop never needs a restart"
        );
        for (section, keys) in sections {
            let begin = DEFAULT.lines().position(|line| line == format!("[{section}]")).unwrap();
            for (key, when) in keys.iter().filter(|(_, when)| !when.ends_with("_unnamed")) {
                let is_key = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
                let at = begin + DEFAULT.lines().skip(begin).position(is_key).unwrap();
                let said = comment_above(at).contains("restart");
                assert_eq!(said, *when == "start", "{section}.{key}");
            }
        }
    }
}
