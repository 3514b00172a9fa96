//! A host with or without a port, as it stands in `Host`, in a URL and in the configuration; pure.

use std::fmt;

use url::{Host, Url};

/// `example.org`, `example.org:8080`, `192.0.2.1`, `[2001:db8::1]:8080`. Compared in its normal form: case, a dot at the
/// end and the notation of an address do not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    pub host: Host<String>,
    /// As a rule, none means any port.
    pub port: Option<u16>,
}

impl Authority {
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            Some((_, tail)) if tail.contains(']') => (text, None),
            // The colons of a bare IPv6 address separate no port.
            Some((head, _)) if head.contains(':') && !head.ends_with(']') => {
                let host = Host::Ipv6(text.parse().ok()?);
                return Some(Self { host, port: None });
            }
            // RFC 3986 allows an empty port.
            Some((head, "")) => (head, None),
            Some((head, tail)) if tail.bytes().all(|b| b.is_ascii_digit()) => {
                (head, Some(tail.parse().ok()?))
            }
            Some(_) => return None,
            None => (text, None),
        };
        let host = Host::parse(host.strip_suffix('.').unwrap_or(host)).ok()?;
        Some(Self { host, port })
    }

    /// What a URL of the web connects to.
    pub fn of(url: &Url) -> Option<Self> {
        let host = Host::parse(url.host_str()?.trim_end_matches('.')).ok()?;
        Some(Self { host, port: url.port_or_known_default() })
    }

    /// Whether `self`, as a rule, allows `other`.
    pub fn covers(&self, other: &Self) -> bool {
        self.host == other.host && (self.port.is_none() || self.port == other.port)
    }

    pub fn is_ip(&self) -> bool {
        match self.host {
            Host::Ipv4(_) | Host::Ipv6(_) => true,
            Host::Domain(_) => false,
        }
    }

    /// A name of this machine by standard (RFC 6761), so nobody else can own it in the DNS.
    pub fn is_localhost(&self) -> bool {
        matches!(&self.host, Host::Domain(name) if name == "localhost" || name.ends_with(".localhost"))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => write!(f, "{}", self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_with_and_without_a_port() {
        let claims = [
            ("Example.org", "example.org"),
            ("example.org.:8080", "example.org:8080"),
            ("example.org:", "example.org"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[2001:DB8::1]:80", "[2001:db8::1]:80"),
            ("[::1]", "[::1]"),
            ("::1", "[::1]"),
        ];
        for (text, normal) in claims {
            assert_eq!(Authority::parse(text).map(|a| a.to_string()).as_deref(), Some(normal), "{text}");
        }
        for text in ["", ":80", "a:b", "a:99999", "user@host", "a/b", "a b", "::x", "[::1"] {
            assert_eq!(Authority::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_rule_without_a_port_covers_every_port_and_with_one_only_that() {
        let of = |url: &str| Authority::of(&Url::parse(url).unwrap()).unwrap();
        let rule = |text: &str| Authority::parse(text).unwrap();
        assert!(rule("n8n").covers(&of("http://N8N:5678/webhook?x=1")));
        assert!(rule("n8n:443").covers(&of("https://n8n/")));
        assert!(!rule("n8n:5678").covers(&of("http://n8n/")));
        assert!(!rule("n8n").covers(&of("http://n8n.evil.example/")));
        assert!(!rule("n8n").covers(&of("http://n8n@evil.example/")));
        assert!(rule("127.0.0.1").covers(&of("http://0x7f.1/")), "an address in disguise is that address");
    }
}
