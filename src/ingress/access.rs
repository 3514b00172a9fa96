//! Who may ask: the `Host` and `Origin` that a browser could have been tricked into, the token, the peer's address.
//! Pure.
//!
//! A page on the web can make a browser on this machine or in this network send requests here: under a name of its own
//! that resolves to us (DNS rebinding; `Host` shows it), or across sites (`Origin` shows it). So both are checked even
//! for peers that need no token.

use std::fmt;
use std::net::IpAddr;

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, Uri, Version};
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;
use url::Url;

use super::Settings;
use super::host::Authority;
use super::wire::Problem;

/// A bearer token. Only its hash is kept, so it cannot be printed, and comparing takes the same time for any length.
#[derive(Clone)]
pub struct Token {
    name: String,
    sha256: [u8; 32],
}

impl Token {
    /// `name` is what the ledger and the log call its holder.
    pub fn new(name: impl Into<String>, secret: &[u8]) -> Self {
        Self { name: name.into(), sha256: sha256(secret) }
    }

    fn is(&self, secret: &[u8]) -> bool {
        self.sha256.ct_eq(&sha256(secret)).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("name", &self.name).finish_non_exhaustive()
    }
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// The head of a request, as far as access goes.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub version: Version,
    pub uri: &'a Uri,
    pub headers: &'a HeaderMap,
    pub peer: IpAddr,
}

/// Whether the request means this server. Addresses cannot be rebound, and neither can `localhost`; other names only
/// from `server.hosts`.
pub fn check_host(head: Head<'_>, settings: &Settings) -> Result<(), Problem> {
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => is_ours(host.to_str().unwrap_or_default(), settings)?,
        // Before HTTP/1.1 there was none; no browser leaves it out.
        (None, _) if head.version < Version::HTTP_11 => {}
        (None, _) | (Some(_), Some(_)) => return Err(Problem::NoHost),
    }
    // A target in absolute form wins over the header (RFC 9112, 3.2.2).
    head.uri.authority().map_or(Ok(()), |authority| is_ours(authority.as_str(), settings))
}

fn is_ours(host: &str, settings: &Settings) -> Result<(), Problem> {
    let ours = Authority::parse(host).is_some_and(|host| {
        host.is_ip() || host.is_localhost() || settings.hosts.iter().any(|rule| rule.covers(&host))
    });
    if ours { Ok(()) } else { Err(Problem::HostRefused { host: host.to_owned() }) }
}

/// Refuses what a page of another site makes a browser send. Programs send no `Origin`.
pub fn check_origin(head: Head<'_>) -> Result<(), Problem> {
    let Some(origin) = head.headers.get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let host = head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_same_origin(origin, host) {
        Ok(())
    } else {
        Err(Problem::OriginRefused { origin: origin.to_owned() })
    }
}

fn is_same_origin(origin: &str, host: &str) -> bool {
    let (Ok(origin), Some(host)) = (Url::parse(origin), Authority::parse(host)) else { return false };
    let Some(from) = Authority::of(&origin) else { return false };
    // A `Host` without a port means the port of the scheme, also behind a proxy that speaks TLS.
    let port = match origin.scheme() {
        "http" => host.port.or(Some(80)),
        "https" => host.port.or(Some(443)),
        _ => return false,
    };
    from == Authority { host: host.host, port }
}

/// Who asks, as the ledger calls them: `token:NAME` or `addr:IP`.
pub fn identify(head: Head<'_>, settings: &Settings) -> Result<String, Problem> {
    // A dual-stack listener shows IPv4 peers as `::ffff:a.b.c.d`.
    let peer = head.peer.to_canonical();
    let by_address = || format!("addr:{peer}");
    let listed = settings.allow_from.iter().any(|net| net.contains(&peer));
    match (&settings.token, bearer(head.headers)) {
        (Some(token), Some(secret)) if token.is(secret) => Ok(format!("token:{}", token.name)),
        // Also from a listed address: a token that is wrong should be heard of before it is the only way in.
        (Some(_), Some(_)) => Err(Problem::TokenWrong),
        (_, _) if listed => Ok(by_address()),
        (Some(_), None) => Err(Problem::TokenMissing),
        (None, _) if settings.allow_from.is_empty() && peer.is_loopback() => Ok(by_address()),
        (None, _) => Err(Problem::PeerRefused { peer }),
    }
}

/// The credentials of `Authorization`; another scheme than Bearer is a wrong token, not a missing one.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, rest) = value.split_at_checked(7).unwrap_or((value, b""));
    Some(if scheme.eq_ignore_ascii_case(b"bearer ") { rest.trim_ascii() } else { b"" })
}

#[cfg(test)]
mod tests {
    use super::super::tests::settings;
    use super::*;

    fn headers(pairs: &[(http::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    fn head<'a>(headers: &'a HeaderMap, uri: &'a Uri, peer: &str) -> Head<'a> {
        Head { version: Version::HTTP_11, uri, headers, peer: peer.parse().unwrap() }
    }

    #[test]
    fn addresses_and_localhost_may_stand_in_host_and_names_only_from_the_configuration() {
        let mut settings = settings();
        settings.hosts = vec![Authority::parse("host.docker.internal").unwrap()];
        let uri = Uri::from_static("/");
        let check = |host: &str| check_host(head(&headers(&[(HOST, host)]), &uri, "127.0.0.1"), &settings);
        for host in ["127.0.0.1:1", "[::1]:80", "10.0.0.7", "localhost:8080", "HOST.docker.internal:8080"] {
            assert_eq!(check(host), Ok(()), "{host}");
        }
        for host in ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "a@127.0.0.1"] {
            assert_eq!(check(host), Err(Problem::HostRefused { host: host.into() }));
        }
        let mut two = HeaderMap::new();
        two.append(HOST, "127.0.0.1".parse().unwrap());
        two.append(HOST, "localhost".parse().unwrap());
        assert_eq!(check_host(head(&two, &uri, "127.0.0.1"), &settings), Err(Problem::NoHost));
        assert_eq!(check_host(head(&HeaderMap::new(), &uri, "127.0.0.1"), &settings), Err(Problem::NoHost));
        let absolute = Uri::from_static("http://evil.example/");
        let both = headers(&[(HOST, "127.0.0.1")]);
        assert!(check_host(head(&both, &absolute, "127.0.0.1"), &settings).is_err());
    }

    #[test]
    fn a_page_of_another_site_is_refused_and_our_own_is_not() {
        let uri = Uri::from_static("/");
        let check =
            |origin, host| check_origin(head(&headers(&[(ORIGIN, origin), (HOST, host)]), &uri, "::1"));
        assert_eq!(check("http://127.0.0.1:8080", "127.0.0.1:8080"), Ok(()));
        assert_eq!(check("https://glaneur.example", "glaneur.example"), Ok(()));
        for (origin, host) in [
            ("http://127.0.0.1:3000", "127.0.0.1:8080"),
            ("http://evil.example", "127.0.0.1:8080"),
            ("null", "127.0.0.1"),
            ("file://", "127.0.0.1"),
        ] {
            assert_eq!(check(origin, host), Err(Problem::OriginRefused { origin: origin.into() }));
        }
    }

    #[test]
    fn with_neither_token_nor_addresses_only_this_machine_may_ask() {
        let (settings, uri, none) = (settings(), Uri::from_static("/"), HeaderMap::new());
        let who = |peer| identify(head(&none, &uri, peer), &settings);
        assert_eq!(who("127.0.0.1"), Ok("addr:127.0.0.1".into()));
        assert_eq!(who("::1"), Ok("addr:::1".into()));
        assert_eq!(who("::ffff:127.0.0.1"), Ok("addr:127.0.0.1".into()));
        assert_eq!(who("192.0.2.1"), Err(Problem::PeerRefused { peer: "192.0.2.1".parse().unwrap() }));
    }

    #[test]
    fn a_token_or_a_listed_address_opens_and_a_wrong_token_never_does() {
        let mut settings = settings();
        settings.token = Some(Token::new("api", b"s3cret"));
        settings.allow_from = vec!["203.0.113.0/24".parse().unwrap()];
        let uri = Uri::from_static("/");
        let who = |authorization: Option<&str>, peer| {
            let headers = headers(&authorization.map(|a| (AUTHORIZATION, a)).into_iter().collect::<Vec<_>>());
            identify(head(&headers, &uri, peer), &settings)
        };
        assert_eq!(who(Some("Bearer s3cret"), "192.0.2.1"), Ok("token:api".into()));
        assert_eq!(who(Some("bearer  s3cret"), "192.0.2.1"), Ok("token:api".into()));
        assert_eq!(who(None, "203.0.113.9"), Ok("addr:203.0.113.9".into()));
        assert_eq!(who(None, "127.0.0.1"), Err(Problem::TokenMissing));
        for wrong in ["Bearer s3cre", "Bearer s3crett", "Bearer", "Basic s3cret", "s3cret"] {
            assert_eq!(who(Some(wrong), "203.0.113.9"), Err(Problem::TokenWrong), "{wrong}");
        }
        assert!(!format!("{settings:?}").contains("s3cret"));
    }
}
