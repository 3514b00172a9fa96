//! Where a redirect leads, and whether one goes there. Pure.

use super::FetchError;
use crate::model::page::{Method, Request};
use crate::recipe::Blocks;
use url::Url;

/// Where the redirects of one request may lead.
#[derive(Clone, Copy, Debug)]
pub struct Redirects<'a> {
    /// `host` for the scheme's own port, or `host:port`.
    pub hosts: &'a [String],
    /// What says which addresses are the shop's way to say no; they are not gone to.
    pub blocks: Option<&'a Blocks>,
}

/// Statuses that are followed; 300, 304, 305 and 306 are answers like any other.
pub(super) fn is_followed(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// The request that answers a redirect of `request`.
pub(super) fn next(
    mut request: Request,
    status: u16,
    location: &str,
    redirects: &Redirects<'_>,
) -> Result<Request, FetchError> {
    let mut url = request.url.join(location.trim()).map_err(|_| FetchError::RedirectInvalid)?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(FetchError::RedirectInvalid);
    }
    if let Some(block) = redirects.blocks.and_then(|blocks| blocks.of_redirect(&request.url, &url)) {
        return Err(FetchError::Blocked { block });
    }
    if request.url.scheme() == "https" && url.scheme() == "http" {
        return Err(FetchError::RedirectDowngrade);
    }
    if !redirects.hosts.iter().any(|host| is_at(&url, host)) {
        return Err(FetchError::RedirectElsewhere { host: url.host_str().unwrap_or_default().to_owned() });
    }
    // A name and password in an address are nobody's headers here; neither can fail on a web address.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    // 307 and 308 ask for the same request again; the others for the page that took its place.
    if !matches!(status, 307 | 308) {
        request.method = Method::Get;
        request.body = None;
    }
    if request.url.origin() != url.origin() {
        request.headers.retain(|(name, _)| !PRIVATE.iter().any(|private| name.eq_ignore_ascii_case(private)));
    }
    request.url = url;
    Ok(request)
}

/// Headers meant for one host alone.
const PRIVATE: [&str; 2] = ["authorization", "cookie"];

/// Whether `url` is at `host`: a name, which means the scheme's own port, or `name:port`.
fn is_at(url: &Url, host: &str) -> bool {
    let Some(name) = url.host_str() else { return false };
    match url.port() {
        None if name.eq_ignore_ascii_case(host) => true,
        _ => url
            .port_or_known_default()
            .is_some_and(|port| format!("{name}:{port}").eq_ignore_ascii_case(host)),
    }
}

#[cfg(test)]
mod tests {
    use super::{FetchError, Redirects, is_at, next};
    use crate::markup::Pattern;
    use crate::model::page::{Method, Request};
    use crate::recipe::Blocks;
    use url::Url;

    fn post() -> Request {
        Request {
            method: Method::Post,
            url: Url::parse("https://www.shop.fr/a/search?q=1").unwrap(),
            headers: vec![
                ("X-Requested-With".into(), "XMLHttpRequest".into()),
                ("Cookie".into(), "a=b".into()),
            ],
            body: Some(("text/plain".into(), b"x".to_vec())),
        }
    }

    fn to(status: u16, location: &str) -> Result<Request, FetchError> {
        to_unless(status, location, None)
    }

    fn to_unless(status: u16, location: &str, blocks: Option<&Blocks>) -> Result<Request, FetchError> {
        let hosts = ["www.shop.fr".into(), "img.shop.fr:8443".into()];
        next(post(), status, location, &Redirects { hosts: &hosts, blocks })
    }

    #[test]
    fn a_challenge_is_not_gone_to_wherever_it_is() {
        let blocks = Blocks { redirect: vec![Pattern::parse("/challenge").unwrap()], ..Blocks::default() };
        for challenge in ["/challenge?back=1", "http://www.shop.fr/challenge", "//guard.example/challenge"] {
            let refused = to_unless(302, challenge, Some(&blocks));
            assert!(matches!(refused, Err(FetchError::Blocked { .. })), "{challenge}: {refused:?}");
        }
        assert!(to_unless(302, "/p.html", Some(&blocks)).is_ok());
        let elsewhere = to_unless(302, "//evil.example/p", Some(&blocks));
        assert!(matches!(elsewhere, Err(FetchError::RedirectElsewhere { .. })), "{elsewhere:?}");
    }

    #[test]
    fn a_post_becomes_a_get_but_for_307_and_308() {
        for status in [301, 302, 303] {
            let request = to(status, "/p.html").unwrap();
            assert_eq!((request.method, request.body), (Method::Get, None), "{status}");
            assert_eq!(request.url.as_str(), "https://www.shop.fr/p.html");
        }
        for status in [307, 308] {
            let request = to(status, "../p.html").unwrap();
            assert_eq!((request.method, request.body), (Method::Post, post().body), "{status}");
        }
    }

    #[test]
    fn only_the_shops_own_hosts_are_gone_to() {
        for elsewhere in [
            "https://www.shop.fr.evil.example/",
            "//evil.example/p",
            "https://www.shop.fr:8080/",
            "https://img.shop.fr/",
            "https://www.shop.fr@evil.example/",
            "https://127.0.0.1/",
        ] {
            assert!(matches!(to(302, elsewhere), Err(FetchError::RedirectElsewhere { .. })), "{elsewhere}");
        }
        assert!(to(302, "https://img.shop.fr:8443/p").is_ok());
        assert!(to(302, "https://WWW.SHOP.FR:443/p").is_ok());
    }

    #[test]
    fn http_is_not_gone_back_to() {
        assert!(matches!(to(302, "http://www.shop.fr/p"), Err(FetchError::RedirectDowngrade)));
    }

    #[test]
    fn what_is_no_web_address_is_invalid() {
        for location in
            ["ftp://www.shop.fr/", "javascript:alert(1)", "https://[", "file:///etc/passwd", "data:,x"]
        {
            assert!(matches!(to(302, location), Err(FetchError::RedirectInvalid)), "{location}");
        }
    }

    #[test]
    fn credentials_stay_with_their_host() {
        let there = to(302, "https://img.shop.fr:8443/p").unwrap();
        assert_eq!(there.headers.len(), 1);
        assert_eq!(to(302, "/p").unwrap().headers.len(), 2);
        let named = to(302, "https://user:secret@www.shop.fr/p").unwrap();
        assert_eq!(named.url.as_str(), "https://www.shop.fr/p");
    }

    #[test]
    fn a_host_without_a_port_means_the_schemes_own() {
        let at = |url: &str, host: &str| is_at(&Url::parse(url).unwrap(), host);
        assert!(at("http://shop.fr/", "shop.fr") && at("https://shop.fr/", "shop.fr"));
        assert!(at("http://127.0.0.1:81/", "127.0.0.1:81") && at("http://[::1]:81/", "[::1]:81"));
        assert!(!at("http://127.0.0.1:81/", "127.0.0.1") && !at("http://127.0.0.1:81/", "127.0.0.1:82"));
    }
}
