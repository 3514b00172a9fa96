//! What the way in says: every refusal with its status and its sentence, and the 202. Pure; the only file that knows
//! HTTP status codes.
//!
//! n8n shows `error` to a person, so each sentence says what to do, and names the key to set where that is the cure.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

use crate::ledger::LedgerError;
use crate::model::Language;
use crate::model::batch::{Accepted, IntakeCounts, Refused, Repeat, SiteName};

mod sentence;

pub type Answer = Response<Full<Bytes>>;

/// Why a request got no 2xx. Nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    // The body.
    BodyNotUtf8,
    BodySyntax { line: usize, column: usize, fault: Syntax },
    BodyNotAnObject,
    BodyCutOff,
    BodySlow { within: Duration },
    BodyTooLarge { bytes_max: usize },
    NotJson,
    Encoded,
    NothingInIt,
    KeyTwice { field: String },
    WrongType { field: String, expected: Expected },
    TooMany { field: &'static str, products_max: usize },
    SiteUnknown { field: String, name: String, known: Vec<SiteName> },
    SitesEmpty { known: Vec<SiteName> },
    UrlRefused { field: &'static str, fault: UrlFault },
    MetadataTooLarge { bytes_max: usize },
    MetadataTooOften { products: usize, metadata_bytes: usize, bytes_max: usize },
    MetadataUnreadable,
    // The head.
    KeyMalformed,
    KeyReused,
    QueryMalformed { field: &'static str, max: u32 },
    NoHost,
    HostRefused { host: String },
    OriginRefused { origin: String },
    TokenMissing,
    TokenWrong,
    PeerRefused { peer: IpAddr },
    NoRoute { path: String },
    NoBatch { id: String },
    WrongMethod { allow: &'static str },
    // This side.
    NoShop,
    LedgerBusy,
    LedgerAway,
    LedgerFull,
    LedgerReadOnly,
    LedgerRefused,
    LedgerSlow,
}

/// What a JSON parser stumbled over, as far as a person is helped by knowing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    EndsEarly,
    Trailing,
    /// Most often a barcode with a leading zero and no quotes.
    Number,
    Other,
}

/// The JSON type that a field must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Barcode,
    Entry,
    List,
    Object,
    Text,
    Truth,
}

/// Why a URL of a batch is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UrlFault {
    Malformed,
    Scheme,
    Credentials,
    Host { host: String },
}

impl Problem {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BodyNotUtf8
            | Self::BodySyntax { .. }
            | Self::BodyNotAnObject
            | Self::BodyCutOff
            | Self::NothingInIt
            | Self::KeyTwice { .. }
            | Self::WrongType { .. }
            | Self::SiteUnknown { .. }
            | Self::SitesEmpty { .. }
            | Self::UrlRefused { .. }
            | Self::MetadataTooLarge { .. }
            | Self::MetadataUnreadable
            | Self::KeyMalformed
            | Self::QueryMalformed { .. }
            | Self::NoHost => StatusCode::BAD_REQUEST,
            Self::TokenMissing | Self::TokenWrong => StatusCode::UNAUTHORIZED,
            Self::HostRefused { .. } | Self::OriginRefused { .. } | Self::PeerRefused { .. } => {
                StatusCode::FORBIDDEN
            }
            Self::NoRoute { .. } | Self::NoBatch { .. } => StatusCode::NOT_FOUND,
            Self::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodySlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } | Self::TooMany { .. } | Self::MetadataTooOften { .. } => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Self::NotJson | Self::Encoded => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NoShop
            | Self::LedgerBusy
            | Self::LedgerAway
            | Self::LedgerFull
            | Self::LedgerReadOnly
            | Self::LedgerRefused
            | Self::LedgerSlow => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Where in the body, counting from 0 as JSON does; or the header or parameter.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::KeyTwice { field } | Self::WrongType { field, .. } | Self::SiteUnknown { field, .. } => {
                Some(field)
            }
            Self::TooMany { field, .. }
            | Self::UrlRefused { field, .. }
            | Self::QueryMalformed { field, .. } => Some(field),
            Self::SitesEmpty { .. } => Some("sites"),
            Self::MetadataTooLarge { .. } | Self::MetadataTooOften { .. } | Self::MetadataUnreadable => {
                Some("metadata")
            }
            Self::NothingInIt => Some("eans"),
            Self::KeyMalformed | Self::KeyReused => Some("Idempotency-Key"),
            Self::BodyNotUtf8
            | Self::BodySyntax { .. }
            | Self::BodyNotAnObject
            | Self::BodyCutOff
            | Self::BodySlow { .. }
            | Self::BodyTooLarge { .. }
            | Self::NotJson
            | Self::Encoded
            | Self::NoHost
            | Self::HostRefused { .. }
            | Self::OriginRefused { .. }
            | Self::TokenMissing
            | Self::TokenWrong
            | Self::PeerRefused { .. }
            | Self::NoRoute { .. }
            | Self::NoBatch { .. }
            | Self::WrongMethod { .. }
            | Self::NoShop
            | Self::LedgerBusy
            | Self::LedgerAway
            | Self::LedgerFull
            | Self::LedgerReadOnly
            | Self::LedgerRefused
            | Self::LedgerSlow => None,
        }
    }

    /// Seconds after which the same request may do better by itself.
    pub fn retry_after_s(&self) -> Option<u32> {
        match self {
            Self::LedgerBusy | Self::BodySlow { .. } => Some(1),
            Self::LedgerAway | Self::LedgerRefused | Self::LedgerSlow => Some(5),
            // Someone or something must make room first, or mount it for writing.
            Self::LedgerFull | Self::LedgerReadOnly => Some(30),
            _ => None,
        }
    }

    /// One sentence for a person.
    pub fn sentence(&self, language: Language) -> String {
        match language {
            Language::French => self.french(),
            Language::English => self.english(),
        }
    }

    pub fn answer(&self, language: Language) -> Answer {
        let error = self.sentence(language);
        let body = ErrorBody { success: false, error: &error, field: self.field() };
        let mut answer = json(self.status(), to_json(&body));
        let mut set = |name: HeaderName, value: &str| {
            // Digits and words of this file are valid in a header.
            if let Ok(value) = HeaderValue::from_str(value) {
                answer.headers_mut().insert(name, value);
            }
        };
        if let Some(seconds) = self.retry_after_s() {
            set(RETRY_AFTER, &seconds.to_string());
        }
        match self {
            Self::WrongMethod { allow } => set(ALLOW, allow),
            Self::TokenMissing => set(WWW_AUTHENTICATE, "Bearer realm=\"glaneur\""),
            Self::TokenWrong => set(WWW_AUTHENTICATE, "Bearer realm=\"glaneur\", error=\"invalid_token\""),
            _ => {}
        }
        answer
    }
}

/// What a failed accept means to the one who asks; none where it is not known whether the batch was stored.
pub fn refusal(error: &LedgerError) -> Option<Problem> {
    match error {
        LedgerError::Busy => Some(Problem::LedgerBusy),
        LedgerError::Away => Some(Problem::LedgerAway),
        LedgerError::Full => Some(Problem::LedgerFull),
        LedgerError::ReadOnly => Some(Problem::LedgerReadOnly),
        LedgerError::Refused(_) => Some(Problem::LedgerRefused),
        LedgerError::Unknown => None,
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    success: bool,
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

/// In the order of the contract.
#[derive(Serialize)]
struct AcceptedBody<'a> {
    success: bool,
    message: &'static str,
    status: &'static str,
    total_products: u32,
    thread_id: i64,
    batch_id: &'a str,
    status_url: String,
    counts: IntakeCounts,
    refused: &'a [Refused],
    /// Only on a repeat that was recognised by its body (design 4, rule 6).
    #[serde(skip_serializing_if = "Option::is_none")]
    duplicate: Option<bool>,
}

/// The 202.
pub fn accepted(accepted: &Accepted, language: Language) -> Answer {
    let message = match language {
        Language::French => "Scraping lancé en arrière-plan",
        Language::English => "Scraping started in the background",
    };
    let body = AcceptedBody {
        success: true,
        message,
        status: "processing",
        total_products: accepted.total,
        thread_id: accepted.batch.0,
        batch_id: accepted.batch_id.as_str(),
        status_url: format!("/api/batches/{}", accepted.batch_id),
        counts: accepted.counts,
        refused: &accepted.refused,
        duplicate: (accepted.repeat == Some(Repeat::Body)).then_some(true),
    };
    json(StatusCode::ACCEPTED, to_json(&body))
}

/// 200 with a JSON body.
pub fn ok(body: Vec<u8>) -> Answer {
    json(StatusCode::OK, body)
}

/// `/readyz`: whether a valid submit would get 202.
pub fn readiness(ready: bool, body: &impl Serialize) -> Answer {
    json(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, to_json(body))
}

/// Says that no further request is read from this connection.
pub fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

pub fn to_json(body: &impl Serialize) -> Vec<u8> {
    // Structs and maps with text keys: there is nothing in it that could fail to serialise.
    serde_json::to_vec(body).unwrap_or_default()
}

fn json(status: StatusCode, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::model::{BatchId, BatchNo};

    async fn text(answer: Answer) -> String {
        String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
    }

    fn first() -> Accepted {
        Accepted {
            batch: BatchNo(42),
            batch_id: BatchId::from_text("0198-b"),
            total: 2,
            counts: IntakeCounts { queued: 1, skipped: 1, ignored: 0 },
            refused: vec![Refused { index: 2, ean: "123".into(), reason: "longueur".into() }],
            repeat: None,
        }
    }

    #[tokio::test]
    async fn the_202_has_the_keys_of_the_contract_in_their_order() {
        let answer = accepted(&first(), Language::French);
        assert_eq!(answer.status(), 202);
        assert_eq!(
            text(answer).await,
            r#"{"success":true,"message":"Scraping lancé en arrière-plan","status":"processing","total_products":2,"#
                .to_owned()
                + r#""thread_id":42,"batch_id":"0198-b","status_url":"/api/batches/0198-b","#
                + r#""counts":{"queued":1,"skipped":1,"ignored":0},"#
                + r#""refused":[{"index":2,"ean":"123","reason":"longueur"}]}"#
        );
    }

    #[tokio::test]
    async fn only_a_repeat_by_body_says_that_it_is_a_duplicate() {
        let repeat = |repeat| Accepted { repeat, ..first() };
        let by_body = text(accepted(&repeat(Some(Repeat::Body)), Language::French)).await;
        assert!(by_body.ends_with(r#","duplicate":true}"#));
        let by_key = text(accepted(&repeat(Some(Repeat::Key)), Language::French)).await;
        assert_eq!(
            by_key,
            text(accepted(&first(), Language::French)).await,
            "the first answer, byte for byte"
        );
    }

    #[tokio::test]
    async fn an_error_is_a_sentence_with_its_field_and_headers() {
        let wrong = Problem::WrongType { field: "eans[3].primary".into(), expected: Expected::Barcode };
        let answer = wrong.answer(Language::French);
        assert_eq!(answer.status(), 400);
        assert_eq!(
            text(answer).await,
            r#"{"success":false,"error":"« eans[3].primary » doit être un code-barres (texte ou nombre).","#
                .to_owned()
                + r#""field":"eans[3].primary"}"#
        );
        let full = Problem::LedgerFull.answer(Language::English);
        assert_eq!((full.status().as_u16(), &full.headers()[RETRY_AFTER]), (503, &HeaderValue::from(30)));
        let method = Problem::WrongMethod { allow: "POST" }.answer(Language::English);
        assert_eq!((method.status().as_u16(), method.headers()[ALLOW].as_bytes()), (405, b"POST".as_slice()));
        let token = Problem::TokenMissing.answer(Language::English);
        assert!(token.headers()[WWW_AUTHENTICATE].as_bytes().starts_with(b"Bearer"));
    }

    #[test]
    fn a_refusal_names_the_key_that_would_cure_it() {
        let fault = UrlFault::Host { host: "n8n.local".into() };
        for (problem, key) in [
            (Problem::HostRefused { host: "x".into() }, "server.hosts"),
            (Problem::PeerRefused { peer: "192.0.2.1".parse().unwrap() }, "server.allow_from"),
            (Problem::UrlRefused { field: "callback_url", fault }, "webhooks.hosts"),
            (Problem::NoShop, "sites.<name>.enabled"),
            (Problem::BodyTooLarge { bytes_max: 1 }, "server.body_bytes_max"),
        ] {
            for language in [Language::French, Language::English] {
                assert!(problem.sentence(language).contains(key), "{problem:?}");
            }
        }
    }

    #[test]
    fn what_was_sent_is_quoted_short_and_clean() {
        let host = format!("\u{1b}[31m{}", "x".repeat(10_000));
        let sentence = Problem::HostRefused { host }.sentence(Language::French);
        assert!(sentence.chars().count() < 200 && !sentence.contains('\u{1b}'));
    }

    #[test]
    fn an_unknown_commit_has_no_answer() {
        assert_eq!(refusal(&LedgerError::Unknown), None);
        for known in [
            LedgerError::Busy,
            LedgerError::Away,
            LedgerError::Full,
            LedgerError::ReadOnly,
            LedgerError::Refused("x".into()),
        ] {
            assert_eq!(refusal(&known).map(|p| p.status().as_u16()), Some(503));
        }
    }
}
