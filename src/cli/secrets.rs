//! What the files named in the configuration hold: the API's token, the key that signs webhooks, the catalogue's token,
//! the password of tor's control port.

use std::fmt;
use std::path::Path;

use crate::config::{Config, Problem, problem_at};
use crate::exit::Exit;
use crate::ingress;
use crate::scraper::control::client::Password;
use crate::webhook;

/// Where systemd puts the credentials of a service, for its whole run.
pub const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

const TOKEN: &str = "server.token_file";
const WEBHOOK: &str = "webhooks.secret_file";
const CATALOGUE: &str = "catalogue.token_file";
const CONTROL: &str = "tor.control_password_file";

/// Read anew at each reload. Never printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets {
    token: Option<Hidden>,
    webhook: Option<webhook::Secret>,
    catalogue: Option<Hidden>,
    control: Option<Hidden>,
}

#[derive(Clone, PartialEq, Eq)]
struct Hidden(String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(…)")
    }
}

/// A file that does not hold what it should, at the key that names it.
#[derive(Debug)]
pub struct Trouble {
    pub problem: Problem,
    pub exit: Exit,
}

/// The files that `config` names, by their keys.
fn files(config: &Config) -> [(&'static str, Option<&Path>); 4] {
    let catalogue = config.catalogue.as_ref().and_then(|catalogue| catalogue.token_file.as_deref());
    [
        (TOKEN, config.server.token_file.as_deref()),
        (WEBHOOK, config.webhooks.secret_file.as_deref()),
        (CATALOGUE, catalogue),
        (CONTROL, config.tor.control_password_file.as_deref()),
    ]
}

/// The keys whose files are credentials of systemd in `directory`: those stay as they were handed over at the start.
pub fn credentials(config: &Config, directory: Option<&Path>) -> Vec<&'static str> {
    let is_there = |path: &Path| directory.is_some_and(|directory| path.starts_with(directory));
    files(config).into_iter().filter(|(_, path)| path.is_some_and(is_there)).map(|(key, _)| key).collect()
}

impl Secrets {
    /// Reads all files that `config` names, whose text is `text` in `file_name`; every trouble at once. `credentials` is
    /// where systemd puts those that it hands over.
    pub fn read(
        config: &Config,
        (file_name, text): (&str, &str),
        credentials: Option<&Path>,
    ) -> Result<Self, Vec<Trouble>> {
        let mut troubles = Vec::new();
        let mut trouble = |key: &str, exit: Exit, what: String| {
            let problem = problem_at(file_name, text, key, format!("`{key}`: {what}"));
            troubles.push(Trouble { problem, exit });
        };
        let [token, webhook, catalogue, control] = files(config).map(|(key, path)| {
            let path = path?;
            match read(path) {
                Ok(line) => Some(line),
                Err(what) => {
                    let is_credential = credentials.is_some_and(|directory| path.starts_with(directory));
                    let hint = if is_credential {
                        "; systemd hands credentials over only when the service starts: restart it"
                    } else {
                        ""
                    };
                    trouble(key, Exit::File, format!("\"{}\": {what}{hint}", path.display()));
                    None
                }
            }
        });
        let webhook = webhook.and_then(|line| match webhook::Secret::parse(&line) {
            Ok(secret) => Some(secret),
            Err(error) => {
                trouble(WEBHOOK, Exit::Config, error.to_string());
                None
            }
        });
        if troubles.is_empty() {
            let [token, catalogue, control] = [token, catalogue, control].map(|line| line.map(Hidden));
            Ok(Self { token, webhook, catalogue, control })
        } else {
            Err(troubles)
        }
    }

    /// What every caller of the API must send.
    pub fn token(&self) -> Option<ingress::Token> {
        self.token.as_ref().map(|token| ingress::Token::new("api", token.0.as_bytes()))
    }

    /// What signs the webhooks.
    pub fn webhook(&self) -> Option<webhook::Secret> {
        self.webhook.clone()
    }

    /// What the catalogue wants to hear, without the word "Bearer".
    pub fn catalogue(&self) -> Option<String> {
        self.catalogue.as_ref().map(|token| token.0.clone())
    }

    /// What tor's control port wants to hear.
    pub fn control(&self) -> Option<Password> {
        self.control.as_ref().map(|password| Password(password.0.clone()))
    }

    /// The keys whose files hold something else than in `old`.
    pub fn changed(&self, old: &Self) -> Vec<&'static str> {
        let changed = [
            (TOKEN, self.token != old.token),
            (WEBHOOK, self.webhook != old.webhook),
            (CATALOGUE, self.catalogue != old.catalogue),
            (CONTROL, self.control != old.control),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }
}

/// What tor's control port wants to hear, of the configuration alone. None: the cookie that tor names is read.
pub fn control_password(config: &Config) -> Result<Option<Password>, String> {
    let Some(path) = &config.tor.control_password_file else { return Ok(None) };
    let password = read(path).map_err(|what| format!("`{CONTROL}`: \"{}\": {what}", path.display()))?;
    Ok(Some(Password(password)))
}

/// A secret of one line; what is wrong never tells what the file holds.
fn read(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    match first_line(&text) {
        "" => Err("its first line is empty".into()),
        line => Ok(line.to_owned()),
    }
}

/// What follows may be a remark of whoever keeps the file.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str, credentials: Option<&Path>) -> Result<Secrets, Vec<String>> {
        let config = crate::config::parse("c.toml", text).unwrap();
        Secrets::read(&config, ("c.toml", text), credentials)
            .map_err(|troubles| troubles.iter().map(|trouble| trouble.problem.to_string()).collect())
    }

    #[test]
    fn a_secret_is_the_first_line_of_its_file() {
        assert_eq!(first_line("whsec_abc\nmade in November\n"), "whsec_abc");
        assert_eq!(first_line(" token \r\n"), "token");
        assert_eq!(first_line("\ntoken"), "");
    }

    #[test]
    fn every_file_that_cannot_serve_is_told_at_once_at_its_key_and_not_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let short = dir.path().join("short");
        std::fs::write(&short, "s3cret\n").unwrap();
        let text = format!(
            "[server]\ntoken_file = \"/nonexistent/token\"\n\n[webhooks]\nproduct_url = \"none\"\n\
             secret_file = {short:?}\n"
        );
        let told = read_all(&text, None).unwrap_err();
        assert!(
            told[0].starts_with("c.toml:2:14: `server.token_file`: \"/nonexistent/token\": "),
            "{told:?}"
        );
        assert!(
            told[1].starts_with("c.toml:6:15: `webhooks.secret_file`: shorter than 16 bytes"),
            "{told:?}"
        );
        assert!(!format!("{told:?}").contains("s3cret"));
    }

    #[test]
    fn a_credential_that_is_not_there_wants_a_restart() {
        let text = "[server]\ntoken_file = \"/run/x/token\"\n[webhooks]\nproduct_url = \"none\"\n";
        let told = |directory: Option<&str>| read_all(text, directory.map(Path::new)).unwrap_err().remove(0);
        assert!(told(Some("/run/x")).contains("restart"));
        assert!(!told(Some("/run/y")).contains("restart") && !told(None).contains("restart"));
        let config = crate::config::parse("c.toml", text).unwrap();
        assert_eq!(credentials(&config, Some(Path::new("/run/x"))), [TOKEN]);
        assert!(credentials(&config, None).is_empty());
    }

    #[test]
    fn a_file_that_holds_another_secret_is_a_change_of_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        let text = format!("server.token_file = {token:?}\nwebhooks.product_url = \"none\"\n");
        let [one, same, other] = ["one", "one\n", "other"].map(|secret| {
            std::fs::write(&token, secret).unwrap();
            read_all(&text, None).unwrap()
        });
        assert!(same.changed(&one).is_empty());
        assert_eq!(other.changed(&one), [TOKEN]);
        assert!(!format!("{other:?}").contains("other"));
    }
}
