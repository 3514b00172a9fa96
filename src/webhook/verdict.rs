//! What an answer means for its delivery (design 4, rule 9). Pure: a table, and its test.

use std::time::Duration;

/// At most this is waited because a receiver asks for it: longer is more likely a mistake than a wish.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Response(Response),
    /// The request did not leave: refused, no such name, no TLS.
    NotSent {
        reason: String,
    },
    /// The request may have arrived, and no whole answer was seen.
    Unseen {
        reason: String,
    },
}

/// As much of a response as a verdict needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Its content type is `text/html`.
    pub html: bool,
    pub retry_after: Option<String>,
    /// The beginning of its body.
    pub body: Vec<u8>,
}

/// What becomes of the delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Taken {
        note: Option<&'static str>,
    },
    /// The receiver may take it later.
    Again {
        reason: String,
        retry_after: Option<Duration>,
    },
    /// The receiver will never take it.
    Dead {
        reason: String,
    },
    /// Nobody is there any more, for any delivery.
    StopEndpoint,
}

/// The note of a delivery that was taken although nobody saw the answer.
pub const TAKEN_UNSEEN: &str = "finished already: an earlier attempt, whose answer was not seen, was taken";

/// Judges `answer`. `unseen_before`: the answer of an earlier attempt was not seen, so the receiver may have acted.
pub fn judge(answer: &Answer, unseen_before: bool, now_ms: i64) -> Verdict {
    match answer {
        Answer::NotSent { reason } | Answer::Unseen { reason } => {
            Verdict::Again { reason: reason.clone(), retry_after: None }
        }
        Answer::Response(response) => judge_response(response, unseen_before, now_ms),
    }
}

fn judge_response(response: &Response, unseen_before: bool, now_ms: i64) -> Verdict {
    let again = |reason: String| {
        let asked = response.retry_after.as_deref().and_then(|text| retry_after(text, now_ms));
        Verdict::Again { reason, retry_after: asked }
    };
    match response.status {
        200..=299 if is_startup_page(response) => again("n8n is starting up: the webhook was lost".into()),
        200..=299 => Verdict::Taken { note: None },
        300..=399 => again(format!("{}: redirects are not followed", response.status)),
        400 => Verdict::Dead { reason: "400: the receiver calls the request bad".into() },
        413 => Verdict::Dead { reason: "413: the receiver calls the body too large".into() },
        422 => Verdict::Dead { reason: "422: the receiver cannot read the body".into() },
        409 if says(response, "finished") && unseen_before => Verdict::Taken { note: Some(TAKEN_UNSEEN) },
        409 if says(response, "finished") => {
            Verdict::Dead { reason: "409: the execution has finished already".into() }
        }
        409 if says(response, "running already") => again("409: the execution is running already".into()),
        410 => Verdict::StopEndpoint,
        status => again(format!("status {status}{}", hint(status))),
    }
}

/// What usually helps, for the person who reads the log.
fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => ": is the receiver's authentication set?",
        404 => ": is the workflow active?",
        _ => "",
    }
}

/// n8n answers 200 with this page before its webhooks are registered; what was sent is lost.
fn is_startup_page(response: &Response) -> bool {
    response.html && says(response, "n8n is starting up")
}

fn says(response: &Response, words: &str) -> bool {
    String::from_utf8_lossy(&response.body).to_lowercase().contains(words)
}

/// `Retry-After`: seconds or an HTTP date, bounded; none if it is neither.
fn retry_after(text: &str, now_ms: i64) -> Option<Duration> {
    let text = text.trim();
    let asked = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        Duration::from_millis(u64::try_from(date.as_millisecond() - now_ms).unwrap_or(0))
    };
    Some(asked.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, content_type: &str, body: &str) -> Answer {
        let html = content_type.starts_with("text/html");
        Answer::Response(Response { status, html, retry_after: None, body: body.into() })
    }

    /// The first word of the verdict.
    fn word(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Taken { note: None } => "taken",
            Verdict::Taken { note: Some(_) } => "taken with a note",
            Verdict::Again { .. } => "again",
            Verdict::Dead { .. } => "dead",
            Verdict::StopEndpoint => "stop",
        }
    }

    /// Every answer of n8n 2.41.1 that was seen, and the rest of rule 9.
    const TABLE: &[(u16, &str, &str, &str)] = &[
        (200, "application/json", r#"{"message":"Workflow was started"}"#, "taken"),
        (200, "text/html", "<html>n8n is starting up. Please wait</html>", "again"),
        (200, "text/html; charset=utf-8", "n8n is starting up. Please wait", "again"),
        (200, "text/html", "<html>thank you</html>", "taken"),
        (200, "application/json", r#"{"note":"n8n is starting up"}"#, "taken"),
        (204, "", "", "taken"),
        (299, "", "", "taken"),
        (301, "", "", "again"),
        (302, "", "", "again"),
        (304, "", "", "again"),
        (308, "", "", "again"),
        (400, "application/json", "{}", "dead"),
        (401, "", "Unauthorized", "again"),
        (402, "", "", "again"),
        (403, "", "Authorization data is wrong!", "again"),
        (
            404,
            "application/json",
            r#"{"code":404,"message":"The requested webhook is not registered."}"#,
            "again",
        ),
        (404, "text/html", "<html>Cannot POST /webhook/x</html>", "again"),
        (405, "", "", "again"),
        (408, "", "", "again"),
        (409, "application/json", r#"{"message":"The execution \"7\" has finished already."}"#, "dead"),
        (409, "application/json", r#"{"message":"The execution \"7\" is running already."}"#, "again"),
        (409, "", "something else", "again"),
        (410, "", "", "stop"),
        (413, "", "", "dead"),
        (415, "", "", "again"),
        (422, "application/json", r#"{"message":"Failed to parse request body"}"#, "dead"),
        (429, "", "", "again"),
        (500, "application/json", r#"{"message":"Error in workflow"}"#, "again"),
        (500, "text/html", "request entity too large", "again"),
        (502, "", "", "again"),
        (503, "", "", "again"),
        (599, "", "", "again"),
        (999, "", "", "again"),
    ];

    #[test]
    fn every_answer_has_its_verdict() {
        for (status, content_type, body, expected) in TABLE {
            let verdict = judge(&answer(*status, content_type, body), false, 0);
            assert_eq!(word(&verdict), *expected, "{status} {content_type} {body}");
        }
    }

    #[test]
    fn nothing_seen_means_again() {
        let reason = || "connection reset".to_owned();
        assert_eq!(word(&judge(&Answer::NotSent { reason: reason() }, false, 0)), "again");
        assert_eq!(word(&judge(&Answer::Unseen { reason: reason() }, true, 0)), "again");
    }

    #[test]
    fn finished_after_an_unseen_answer_was_taken() {
        let finished = answer(409, "", "The execution \"7\" has finished already.");
        assert_eq!(word(&judge(&finished, true, 0)), "taken with a note");
        let running = answer(409, "", "The execution \"7\" is running already.");
        assert_eq!(word(&judge(&running, true, 0)), "again");
    }

    #[test]
    fn an_unseen_answer_changes_nothing_else() {
        for (status, content_type, body, expected) in TABLE.iter().filter(|row| row.0 != 409) {
            assert_eq!(word(&judge(&answer(*status, content_type, body), true, 0)), *expected, "{status}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let now_ms = 1_445_412_420_000; // Wed, 21 Oct 2015 07:27:00 GMT
        for (text, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("86400", Some(3_600)),
            ("99999999999999999999999", Some(3_600)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(60)),
            ("Wed, 21 Oct 2015 07:26:00 GMT", Some(0)),
            ("Wed, 21 Oct 2099 07:28:00 GMT", Some(3_600)),
            ("-5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(text, now_ms), seconds.map(Duration::from_secs), "{text:?}");
        }
    }

    #[test]
    fn an_answer_that_asks_for_time_gets_it() {
        let response = Response { status: 429, retry_after: Some("30".into()), ..Response::default() };
        let Verdict::Again { retry_after, .. } = judge(&Answer::Response(response), false, 0) else {
            panic!()
        };
        assert_eq!(retry_after, Some(Duration::from_secs(30)));
    }
}
