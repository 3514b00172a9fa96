//! The headers of Standard Webhooks (specification 1.0.0): id, timestamp, and an HMAC-SHA256 over both and the body.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// The specification asks for 24 to 64; fewer than this can be guessed.
pub const SECRET_BYTES_MIN: usize = 16;

/// A signing secret. `whsec_` and base64 is the specification's form. Plain text is taken as the key itself, byte by
/// byte: n8n's Crypto node takes a key only so.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

/// Why a text is no secret. Never tells the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("what follows `whsec_` is not base64")]
    Base64,
    #[error("shorter than {SECRET_BYTES_MIN} bytes")]
    Short,
}

impl Secret {
    /// Reads what a file or a credential holds; spaces and line ends around it do not count.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        let bytes = match text.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).map_err(|_| SecretError::Base64)?,
            None => text.as_bytes().to_vec(),
        };
        if bytes.len() < SECRET_BYTES_MIN { Err(SecretError::Short) } else { Ok(Self(bytes.into())) }
    }

    /// The value of `webhook-signature`.
    pub fn sign(&self, webhook_id: &str, timestamp_s: i64, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let mut context = hmac::Context::with_key(&key);
        context.update(format!("{webhook_id}.{timestamp_s}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// The headers of one attempt: the same id each time, the time of this attempt, and its signature.
pub fn headers(
    secret: Option<&Secret>,
    webhook_id: &str,
    timestamp_s: i64,
    body: &[u8],
) -> Vec<(&'static str, String)> {
    let mut headers =
        vec![("webhook-id", webhook_id.to_owned()), ("webhook-timestamp", timestamp_s.to_string())];
    if let Some(secret) = secret {
        headers.push(("webhook-signature", secret.sign(webhook_id, timestamp_s, body)));
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISHED: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_published_vector_gives_the_published_signature() {
        let secret = Secret::parse(PUBLISHED).unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_plain_text_is_the_key_itself() {
        let text = "correct horse battery";
        let encoded = format!("whsec_{}\n", STANDARD.encode(text));
        assert_eq!(Secret::parse(text), Secret::parse(&encoded));
    }

    #[test]
    fn a_bad_secret_is_refused_without_being_told() {
        assert_eq!(Secret::parse("whsec_%%%"), Err(SecretError::Base64));
        assert_eq!(Secret::parse("whsec_c2hvcnQ="), Err(SecretError::Short));
        assert_eq!(Secret::parse("short"), Err(SecretError::Short));
        assert_eq!(Secret::parse(" \n"), Err(SecretError::Short));
    }

    #[test]
    fn debug_shows_nothing_of_it() {
        assert_eq!(format!("{:?}", Secret::parse(PUBLISHED).unwrap()), "Secret(redacted)");
    }

    #[test]
    fn without_a_secret_there_is_no_signature() {
        let names: Vec<_> = headers(None, "msg_1", 1, b"{}").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["webhook-id", "webhook-timestamp"]);
    }
}
