//! A `config.toml` for the daemon under test, as a user would write it: short, over the compiled-in defaults.

use std::{fmt, net::SocketAddr};

use serde_json::Value;

use crate::{Shop, ShopKind, Shops};

/// Stands for the daemon's directory in a configuration; replaced when the file is written.
pub const DIR: &str = "{dir}";

/// Builds the text of a configuration. `Display` (and so `to_string`) gives it.
///
/// It begins with a free port and a ledger in the daemon's directory; every key can be set again.
#[derive(Clone, Debug)]
pub struct Config {
    /// In order of first mention; a key given twice keeps its last value.
    sections: Vec<(String, Vec<(String, String)>)>,
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

impl Config {
    /// Only `server.listen` on a free port and `ledger.url`.
    pub fn new() -> Self {
        Self { sections: Vec::new() }.set("server", "listen", "127.0.0.1:0").set(
            "ledger",
            "url",
            format!("sqlite:{DIR}/ledger.sqlite"),
        )
    }

    /// Sets one key; a value is anything JSON and TOML write alike (text, numbers, booleans, lists of these).
    pub fn set(mut self, section: &str, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into().to_string();
        if !self.sections.iter().any(|(name, _)| name == section) {
            self.sections.push((section.to_owned(), Vec::new()));
        }
        for (name, keys) in &mut self.sections {
            if name == section {
                keys.retain(|(other, _)| other != key);
                keys.push((key.to_owned(), value));
                break;
            }
        }
        self
    }

    /// Where product webhooks go.
    pub fn product_url(self, url: impl Into<String>) -> Self {
        self.set("webhooks", "product_url", url.into())
    }

    /// Where summaries go.
    pub fn summary_url(self, url: impl Into<String>) -> Self {
        self.set("webhooks", "summary_url", url.into())
    }

    /// The SOCKS port of tor, or of the stand-in.
    pub fn socks(self, socks: SocketAddr) -> Self {
        self.set("tor", "socks", socks.to_string())
    }

    /// How many circuits, and so scrapers.
    pub fn circuits(self, circuits: u32) -> Self {
        self.set("tor", "circuits", circuits)
    }

    /// Switches a shop on, at `base` (`scheme://host:port`).
    pub fn site(self, name: &str, base: impl Into<String>) -> Self {
        self.site_key(name, "enabled", true).site_key(name, "base", base.into())
    }

    /// Switches a demonstration shop on, through Tor: also its search where the real one is another company's service,
    /// with an id that a user would put there.
    pub fn shop(self, shop: &Shop) -> Self {
        let name = shop.kind().name();
        let config = self.site(name, shop.base());
        match shop.kind() {
            ShopKind::Drakkars => {
                let url = format!("{}?hashid=demo&query={{ean}}", shop.kind().search_path());
                config.set(&format!("sites.{name}.search"), "url", url)
            }
            ShopKind::Cocooncenter | ShopKind::Pharmagdd => config,
        }
    }

    /// Switches all demonstration shops on, through Tor.
    pub fn shops(self, shops: &Shops) -> Self {
        shops.all.iter().fold(self, Self::shop)
    }

    /// Sets a key of a shop: `rate`, `concurrency`, `via`, ….
    pub fn site_key(self, name: &str, key: &str, value: impl Into<Value>) -> Self {
        self.set(&format!("sites.{name}"), key, value)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, keys) in &self.sections {
            writeln!(f, "[{name}]")?;
            for (key, value) in keys {
                writeln!(f, "{key} = {value}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl From<Config> for String {
    fn from(config: Config) -> Self {
        config.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_key_is_written_once() {
        let config = Config::new()
            .product_url("http://127.0.0.1:1/p")
            .site("drakkars", "http://drakkars.test:80")
            .site_key("drakkars", "rate", 2)
            .set("server", "listen", "127.0.0.1:9");
        let expected = "[server]\nlisten = \"127.0.0.1:9\"\n\n\
             [ledger]\nurl = \"sqlite:{dir}/ledger.sqlite\"\n\n\
             [webhooks]\nproduct_url = \"http://127.0.0.1:1/p\"\n\n\
             [sites.drakkars]\nenabled = true\nbase = \"http://drakkars.test:80\"\nrate = 2\n\n";
        assert_eq!(config.to_string(), expected);
    }
}
