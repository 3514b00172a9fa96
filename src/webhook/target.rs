//! Where a delivery goes now: the URL of its endpoint by the configuration of this moment (design 4, rule 8).

use url::Url;

use super::Settings;
use crate::config::HostRule;
use crate::model::delivery::Endpoint;

/// The URL to send to, or why the delivery is withheld, with the key to set.
pub fn resolve(endpoint: &Endpoint, settings: &Settings) -> Result<Url, String> {
    match endpoint {
        Endpoint::Product => settings.product_url.clone().ok_or_else(|| gone("webhooks.product_url")),
        Endpoint::Summary => settings.summary_url.clone().ok_or_else(|| gone("webhooks.summary_url")),
        Endpoint::Url(text) => {
            let url = Url::parse(text).map_err(|error| format!("its URL is none: {error}"))?;
            check_host(&url, &settings.allowed_hosts)?;
            Ok(url)
        }
    }
}

fn gone(key: &str) -> String {
    format!("there is no `{key}`")
}

/// Whether a per-batch URL may be sent to; if not, why, with the key to set. An entry without a port allows them all.
pub fn check_host(url: &Url, allowed_hosts: &[HostRule]) -> Result<(), String> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("its scheme is `{}`, not http or https", url.scheme()));
    }
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return Err("its URL has no host".into());
    };
    if allowed_hosts.iter().any(|rule| rule.allows(url)) {
        return Ok(());
    }
    Err(format!("its host is not allowed: add \"{host}\" or \"{host}:{port}\" to `webhooks.hosts`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::tests::settings;

    fn check(url: &str, hosts: &[&str]) -> Result<(), String> {
        let hosts: Vec<HostRule> = hosts.iter().map(|host| HostRule::parse(host).unwrap()).collect();
        check_host(&Url::parse(url).unwrap(), &hosts)
    }

    #[test]
    fn a_host_is_allowed_with_every_port_or_with_one() {
        for (url, entry, allowed) in [
            ("https://n8n.example/hook", "n8n.example", true),
            ("https://n8n.example:8443/hook", "n8n.example", true),
            ("https://N8N.example/hook?a=b", "n8n.EXAMPLE:443", true),
            ("http://n8n.example/hook", "n8n.example:443", false),
            ("http://localhost:5678/x", "localhost:5678", true),
            ("http://localhost:5679/x", "localhost:5678", false),
            ("http://[::1]:5678/x", "[::1]:5678", true),
            ("http://[::1]:5678/x", "[::1]", true),
            ("http://n8n.:5678/x", "n8n", true),
            ("http://n8n:5678/x", "n8n.:5678", true),
            ("http://[::1]:5678/x", "[::1]:5679", false),
            ("http://127.0.0.1/x", "127.0.0.1", true),
            ("http://2130706433/x", "127.0.0.1", true),
            ("http://127.0.0.1/x", "localhost", false),
            ("https://evil-n8n.example/x", "n8n.example", false),
            ("https://n8n.example@evil.example/x", "n8n.example", false),
            ("https://bücher.example/x", "bücher.example", true),
            ("ftp://n8n.example/x", "n8n.example", false),
        ] {
            assert_eq!(check(url, &[entry]).is_ok(), allowed, "{url} with {entry:?}");
        }
    }

    #[test]
    fn a_refusal_names_the_key_to_set() {
        let refusal = check("http://localhost:5678/x?signature=s", &["n8n.example"]).unwrap_err();
        assert!(refusal.contains("`webhooks.hosts`") && refusal.contains("localhost:5678"), "{refusal}");
        assert!(!refusal.contains("signature"), "{refusal}");
    }

    #[test]
    fn a_named_endpoint_has_the_url_of_the_configuration_of_now() {
        let mut settings = settings("http://127.0.0.1:1/product");
        assert_eq!(resolve(&Endpoint::Product, &settings).unwrap().path(), "/product");
        settings.product_url = None;
        assert!(resolve(&Endpoint::Product, &settings).unwrap_err().contains("webhooks.product_url"));
        assert!(resolve(&Endpoint::Summary, &settings).unwrap_err().contains("webhooks.summary_url"));
    }

    #[test]
    fn a_url_of_a_batch_keeps_its_query() {
        let mut settings = settings("http://127.0.0.1:1/");
        settings.allowed_hosts = vec![HostRule::parse("localhost").unwrap()];
        let text = "http://localhost:5678/webhook-waiting/7?signature=abc";
        assert_eq!(resolve(&Endpoint::Url(text.into()), &settings).unwrap().as_str(), text);
    }
}
