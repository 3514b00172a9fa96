//! The exit of a circuit, as far as a control port tells.

use std::fmt;
use std::net::IpAddr;

/// A relay that streams leave through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitRelay {
    /// 40 hexadecimal digits in upper case: what tells relays apart.
    pub fingerprint: Box<str>,
    /// Chosen by its operator; several relays may have the same.
    pub nickname: Box<str>,
    /// Where it listens. It may leave from another address.
    pub address: Option<IpAddr>,
    /// Two letters in lower case, as tor's GeoIP file has them.
    pub country: Option<Box<str>>,
}

impl fmt::Display for ExitRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.nickname)?;
        match &self.country {
            Some(country) => write!(f, " ({country})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_shown_by_its_name_and_country() {
        let mut exit = ExitRelay {
            fingerprint: "AB".repeat(20).into(),
            nickname: "quiet".into(),
            address: None,
            country: Some("se".into()),
        };
        assert_eq!(exit.to_string(), "quiet (se)");
        exit.country = None;
        assert_eq!(exit.to_string(), "quiet");
    }
}
