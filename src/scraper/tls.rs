//! TLS of the circuits: one set of roots for all, one store of sessions for each.
//!
//! A resumed session tells a shop that two connections come from the same client, whatever the exits; measured, a
//! shared rustls configuration did resume across "isolated" clients. So [`Tls`] is only the mould: every generation of
//! every circuit gets a clone with an empty store of its own, which ends with it.
//!
//! Deliberately absent: HTTP/2. ALPN offers `http/1.1` alone, because one visit needs one exchange at a time, and what
//! h2 reveals of a client (settings, priorities) would be one more thing to keep like a browser's.

use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;

/// Sessions one circuit remembers: a few hosts for each of the shops it visits. A store costs nothing until it is used.
const SESSIONS_MAX: usize = 32;

/// The mould of every circuit's TLS: roots, provider and ALPN. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tls {
    mould: ClientConfig,
}

impl Tls {
    /// Trusts the roots of webpki and, besides, the certificates in `extra_roots` (PEM, read by the caller): those of
    /// a shop of one's own, or of the tests.
    pub fn new(extra_roots: Option<&[u8]>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(pem) = extra_roots {
            let mut added = 0;
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(TlsError::Pem)?;
                roots.add(certificate).map_err(TlsError::Root)?;
                added += 1;
            }
            if added == 0 {
                return Err(TlsError::NoRoot);
            }
        }
        let mut mould = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        mould.alpn_protocols = vec![b"http/1.1".to_vec()];
        mould.resumption = Resumption::disabled();
        Ok(Self { mould })
    }

    /// The configuration of one generation of one circuit: it shares the roots, and no session with any other.
    pub fn for_one_circuit(&self) -> Arc<ClientConfig> {
        let mut config = self.mould.clone();
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        Arc::new(config)
    }
}

/// Why the configured roots cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read extra roots as PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("take an extra root")]
    Root(#[source] rustls::Error),
    #[error("extra roots hold no certificate")]
    NoRoot,
    #[error("set up TLS")]
    Setup(#[source] rustls::Error),
}

#[cfg(test)]
mod tests {
    use super::{Tls, TlsError};
    use std::sync::Arc;

    #[test]
    fn only_http_1_1_is_offered() {
        let config = Tls::new(None).unwrap().for_one_circuit();
        assert_eq!(config.alpn_protocols, vec![b"http/1.1".to_vec()]);
    }

    #[test]
    fn circuits_share_no_configuration() {
        let tls = Tls::new(None).unwrap();
        assert!(!Arc::ptr_eq(&tls.for_one_circuit(), &tls.for_one_circuit()));
    }

    #[test]
    fn extra_roots_without_a_certificate_are_refused() {
        assert!(matches!(Tls::new(Some(b"nothing here")), Err(TlsError::NoRoot)));
        let broken = b"-----BEGIN CERTIFICATE-----\n@@@\n-----END CERTIFICATE-----\n";
        assert!(matches!(Tls::new(Some(broken)), Err(TlsError::Pem(_))));
    }
}
