//! A receiver of webhooks that stands for n8n, and answers as n8n was seen to: also badly.
//!
//! Every request is recorded before it is answered. What it is answered is a [`Behaviour`] per path prefix (the longest
//! one that fits decides), which a test may change at any time.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use bytes::Bytes;
use http::{HeaderMap, Method};
use hyper::{Request, Response, body::Incoming};
use ring::hmac;
use serde_json::Value;

use crate::{
    Gate, Result,
    records::Records,
    server::{self, Answering, Content, HungUp, Listeners, Wire},
};

/// What n8n says while it starts, with status 200: the webhook is lost.
pub const STARTING_UP: &str =
    "<html><head><title>n8n</title></head><body>n8n is starting up. Please wait</body></html>";

/// One answer to one request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// 200, as n8n's Webhook node answers: taken.
    Started,
    /// A status with a body; JSON if the body parses as such, else `text/plain`.
    Status(u16, String),
    /// 200 with n8n's start-up page: not taken.
    StartingUp,
    /// 404 `text/html`, as n8n answers until its webhooks are registered: not taken.
    NotYet,
    /// Nothing at all, until the client goes away.
    Hang,
    /// A reset of the connection: not taken.
    Reset,
    /// Taken, and then the connection is closed without an answer.
    TakenThenHungUp,
    /// The answer comes when the gate is open.
    Held(Gate, Box<Answer>),
    /// The answer comes after a time.
    After(Duration, Box<Answer>),
}

impl Answer {
    /// This answer, when `gate` is open.
    pub fn held(self, gate: &Gate) -> Self {
        Self::Held(gate.clone(), Box::new(self))
    }

    /// This answer, after `delay`.
    pub fn after(self, delay: Duration) -> Self {
        Self::After(delay, Box::new(self))
    }

    /// Whether n8n has the webhook after this answer (or will have it, once the answer comes).
    pub fn takes(&self) -> bool {
        match self {
            Self::Started | Self::TakenThenHungUp => true,
            Self::Status(status, _) => (200..300).contains(status),
            Self::StartingUp | Self::NotYet | Self::Hang | Self::Reset => false,
            Self::Held(_, answer) | Self::After(_, answer) => answer.takes(),
        }
    }
}

/// How the answers to the requests of one path prefix are chosen.
#[derive(Clone)]
pub enum Behaviour {
    /// The same answer each time.
    Always(Answer),
    /// Each of these once, in order; then the last answer each time.
    Script(VecDeque<Answer>, Answer),
    /// One answer until a moment, another one after it.
    Until(Instant, Answer, Answer),
    /// Whatever the closure says.
    Decide(Arc<dyn Fn(&Seen) -> Answer + Send + Sync>),
}

impl Behaviour {
    /// These answers once, in order; then `Started`.
    pub fn script(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self::Script(answers.into_iter().collect(), Answer::Started)
    }

    /// `answer` for a while from now; then `Started`.
    pub fn for_a_while(answer: Answer, time: Duration) -> Self {
        Self::Until(Instant::now() + time, answer, Answer::Started)
    }

    /// What the closure says. The [`Seen`] it gets has a placeholder as its `answer`.
    pub fn decide(decide: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        Self::Decide(Arc::new(decide))
    }

    fn next(&mut self, seen: &Seen) -> Answer {
        match self {
            Self::Always(answer) => answer.clone(),
            Self::Script(script, then) => script.pop_front().unwrap_or_else(|| then.clone()),
            Self::Until(moment, before, after) => {
                if seen.at < *moment {
                    before.clone()
                } else {
                    after.clone()
                }
            }
            Self::Decide(decide) => decide(seen),
        }
    }
}

impl From<Answer> for Behaviour {
    fn from(answer: Answer) -> Self {
        Self::Always(answer)
    }
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always(answer) => f.debug_tuple("Always").field(answer).finish(),
            Self::Script(script, then) => f.debug_tuple("Script").field(script).field(then).finish(),
            Self::Until(_, before, after) => f.debug_tuple("Until").field(before).field(after).finish(),
            Self::Decide(_) => f.write_str("Decide"),
        }
    }
}

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its place among all requests, from 0.
    pub order: usize,
    /// When its body had come.
    pub at: Instant,
    /// Who sent it.
    pub peer: SocketAddr,
    /// Its method.
    pub method: Method,
    /// Its path with its query.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, byte for byte.
    pub body: Bytes,
    /// What it is answered.
    pub answer: Answer,
}

impl Seen {
    /// A header as text; `None` if it is missing or no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The `webhook-id`.
    pub fn webhook_id(&self) -> Option<&str> {
        self.header("webhook-id")
    }

    /// The body as JSON; `Null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Whether one of its signatures is right: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
    pub fn is_signed_with(&self, secret: &[u8]) -> bool {
        let headers = ["webhook-id", "webhook-timestamp", "webhook-signature"].map(|name| self.header(name));
        let [Some(id), Some(timestamp), Some(signatures)] = headers else { return false };
        let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", &self.body[..]].concat();
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        signatures.split(' ').filter_map(|signature| signature.strip_prefix("v1,")).any(|signature| {
            let tag = BASE64.decode(signature).unwrap_or_default();
            hmac::verify(&key, &signed, &tag).is_ok()
        })
    }

    /// Whether the receiver took it (see [`Answer::takes`]).
    pub fn taken(&self) -> bool {
        self.answer.takes()
    }
}

/// The receiver. Dropping it closes its port and cuts its connections.
#[derive(Debug)]
pub struct Receiver {
    listeners: Listeners,
    desk: Arc<Desk>,
    address: SocketAddr,
}

/// What the connections of a receiver share.
#[derive(Debug)]
struct Desk {
    seen: Records<Seen>,
    rules: Mutex<BTreeMap<String, Behaviour>>,
}

impl Receiver {
    /// Listens on a free port of 127.0.0.1 and answers [`Answer::Started`].
    pub fn start() -> Result<Self> {
        Self::start_on(Ipv4Addr::LOCALHOST.into())
    }

    /// As [`Receiver::start`], on another address.
    pub fn start_on(ip: IpAddr) -> Result<Self> {
        let desk = Arc::new(Desk { seen: Records::default(), rules: Mutex::default() });
        let listeners = Listeners::http(&[ip], Arc::clone(&desk))?;
        let address = server::first(listeners.addresses())?;
        Ok(Self { listeners, desk, address })
    }

    /// Where it listens, or would.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path that begins with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Behaves so on every path, and forgets what was set before.
    pub fn behave(&self, behaviour: impl Into<Behaviour>) {
        *self.desk.rules() = BTreeMap::from([(String::new(), behaviour.into())]);
    }

    /// Behaves so on paths that begin with `prefix`; the longest prefix that fits decides.
    pub fn behave_at(&self, prefix: &str, behaviour: impl Into<Behaviour>) {
        self.desk.rules().insert(prefix.to_owned(), behaviour.into());
    }

    /// Closes the port and cuts every connection: new ones are refused when this returns.
    pub async fn stop_listening(&self) {
        self.listeners.stop_listening().await;
    }

    /// Listens again on the same port.
    pub fn listen_again(&self) -> Result<()> {
        self.listeners.listen_again()
    }

    /// Everything it saw, for waiting and looking.
    pub fn records(&self) -> &Records<Seen> {
        &self.desk.seen
    }

    /// A copy of everything it saw so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.desk.seen.all()
    }

    /// Waits until `enough` holds for what it saw.
    pub async fn wait_until(
        &self,
        enough: impl FnMut(&[Seen]) -> bool + Send,
        within: Duration,
    ) -> Result<Vec<Seen>> {
        self.desk.seen.wait_until(enough, within).await
    }

    /// Waits until `n` different webhooks were taken (by `webhook-id`).
    pub async fn wait_for_taken(&self, n: usize, within: Duration) -> Result<Vec<Seen>> {
        self.wait_until(|seen| taken_once(seen).len() >= n, within).await
    }

    /// Everything it saw with a `webhook-id`, by that.
    pub fn by_webhook_id(&self) -> BTreeMap<String, Vec<Seen>> {
        let mut by_id = BTreeMap::<_, Vec<_>>::new();
        for seen in self.seen() {
            if let Some(id) = seen.webhook_id() {
                by_id.entry(id.to_owned()).or_default().push(seen);
            }
        }
        by_id
    }

    /// The product webhooks it took, each id once, in order of arrival.
    pub fn products(&self) -> Vec<Value> {
        self.desk.seen.with(|seen| bodies(seen, is_product))
    }

    /// The summaries it took, each id once, in order of arrival.
    pub fn summaries(&self) -> Vec<Value> {
        self.desk.seen.with(|seen| bodies(seen, is_summary))
    }
}

/// Whether a body is the webhook of a product.
pub fn is_product(body: &Value) -> bool {
    body.get("ean").is_some()
}

/// Whether a body is the summary of a batch.
pub fn is_summary(body: &Value) -> bool {
    body.get("ignored_3400_count").is_some()
}

/// What was taken, the first of each `webhook-id`; what has no id counts for itself.
pub fn taken_once(seen: &[Seen]) -> Vec<&Seen> {
    let mut ids = std::collections::BTreeSet::new();
    seen.iter().filter(|seen| seen.taken() && seen.webhook_id().is_none_or(|id| ids.insert(id))).collect()
}

fn bodies(seen: &[Seen], wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    taken_once(seen).into_iter().map(Seen::json).filter(wanted).collect()
}

impl Desk {
    fn rules(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Behaviour>> {
        self.rules.lock().expect("a closure of a test panicked while it chose an answer")
    }

    /// Records a request, with the answer it gets.
    ///
    /// The lock on the rules is held throughout: two requests get the steps of a script in the order they are recorded.
    /// A closure may look at what was seen before, but must not change the rules.
    fn record(&self, mut seen: Seen) -> Answer {
        let mut rules = self.rules();
        seen.order = self.seen.len();
        let rule = rules
            .iter_mut()
            .filter(|(prefix, _)| seen.path.starts_with(prefix.as_str()))
            .max_by_key(|(prefix, _)| prefix.len());
        seen.answer = rule.map_or(Answer::Started, |(_, behaviour)| behaviour.next(&seen));
        let answer = seen.answer.clone();
        self.seen.push(seen);
        answer
    }
}

impl Answering for Desk {
    async fn answer(
        self: Arc<Self>,
        wire: Arc<Wire>,
        request: Request<Incoming>,
    ) -> Result<Response<Content>, HungUp> {
        let (head, body) = request.into_parts();
        let mut answer = self.record(Seen {
            order: 0,
            body: server::collect(body).await?,
            at: Instant::now(),
            peer: wire.peer,
            method: head.method,
            path: head.uri.to_string(),
            headers: head.headers,
            answer: Answer::Started,
        });
        loop {
            answer = match answer {
                Answer::Started => {
                    return Ok(server::page(
                        200,
                        "application/json",
                        r#"{"message":"Workflow was started"}"#,
                    ));
                }
                Answer::Status(status, body) => {
                    let json = serde_json::from_str::<Value>(&body).is_ok();
                    let content_type = if json { "application/json" } else { "text/plain; charset=utf-8" };
                    return Ok(server::page(status, content_type, body));
                }
                Answer::StartingUp => return Ok(server::page(200, "text/html; charset=utf-8", STARTING_UP)),
                Answer::NotYet => {
                    let body = "<!DOCTYPE html><html><body><pre>Cannot POST</pre></body></html>";
                    return Ok(server::page(404, "text/html; charset=utf-8", body));
                }
                Answer::Hang => std::future::pending().await,
                Answer::Reset => {
                    wire.reset_on_close();
                    return Err(HungUp);
                }
                Answer::TakenThenHungUp => return Err(HungUp),
                Answer::Held(gate, answer) => {
                    gate.passed().await;
                    *answer
                }
                Answer::After(delay, answer) => {
                    tokio::time::sleep(delay).await;
                    *answer
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client;

    const SOON: Duration = Duration::from_secs(20);

    async fn post(receiver: &Receiver, path: &str) -> Result<(u16, String)> {
        let answer = client::post_json(receiver.address(), path, r#"{"ean":"1"}"#).await?;
        Ok((answer.status().as_u16(), String::from_utf8_lossy(answer.body()).into_owned()))
    }

    #[tokio::test]
    async fn each_request_is_recorded_and_answered_as_n8n_does() {
        let receiver = Receiver::start().unwrap();
        let (status, body) = post(&receiver, "/webhook/p?x=1").await.unwrap();
        assert_eq!((status, body.as_str()), (200, r#"{"message":"Workflow was started"}"#));
        let seen = receiver.seen();
        assert_eq!(
            (seen.len(), seen[0].path.as_str(), &seen[0].body[..]),
            (1, "/webhook/p?x=1", &br#"{"ean":"1"}"#[..])
        );
        assert_eq!(seen[0].header("content-type"), Some("application/json"));
        assert_eq!(receiver.products().len(), 1);
        assert!(receiver.summaries().is_empty());
    }

    #[tokio::test]
    async fn a_script_is_followed_and_then_left() {
        let receiver = Receiver::start().unwrap();
        let steps = [Answer::NotYet, Answer::StartingUp, Answer::Status(422, r#"{"message":"no"}"#.into())];
        receiver.behave(Behaviour::script(steps));
        assert_eq!(post(&receiver, "/").await.unwrap().0, 404);
        let (status, body) = post(&receiver, "/").await.unwrap();
        assert!(status == 200 && body.contains("n8n is starting up. Please wait"));
        assert_eq!(post(&receiver, "/").await.unwrap(), (422, r#"{"message":"no"}"#.to_owned()));
        assert_eq!(post(&receiver, "/").await.unwrap().0, 200);
        let taken: Vec<_> = receiver.seen().iter().map(Seen::taken).collect();
        assert_eq!(taken, [false, false, false, true]);
    }

    #[tokio::test]
    async fn the_longest_prefix_decides() {
        let receiver = Receiver::start().unwrap();
        receiver.behave_at("/webhook/summary", Answer::Status(500, "boom".into()));
        receiver.behave_at("/webhook", Behaviour::decide(|seen| Answer::Status(201, seen.path.clone())));
        assert_eq!(post(&receiver, "/webhook/summary").await.unwrap(), (500, "boom".to_owned()));
        assert_eq!(post(&receiver, "/webhook/product").await.unwrap(), (201, "/webhook/product".to_owned()));
        assert_eq!(post(&receiver, "/other").await.unwrap().0, 200);
    }

    #[tokio::test]
    async fn a_reset_and_a_hang_up_are_recorded_and_differ_in_what_was_taken() {
        let receiver = Receiver::start().unwrap();
        receiver.behave(Behaviour::script([Answer::Reset, Answer::TakenThenHungUp]));
        let reset = post(&receiver, "/").await.unwrap_err().to_string();
        let hung_up = post(&receiver, "/").await.unwrap_err().to_string();
        assert_ne!(reset, hung_up, "a reset is not an orderly end");
        let taken: Vec<_> = receiver.seen().iter().map(Seen::taken).collect();
        assert_eq!(taken, [false, true]);
    }

    #[tokio::test]
    async fn a_held_answer_waits_for_its_gate() {
        let receiver = Receiver::start().unwrap();
        let gate = Gate::closed();
        receiver.behave(Answer::Started.held(&gate));
        let answered = async {
            let (status, _) = post(&receiver, "/").await.unwrap();
            (status, gate.is_open())
        };
        let opened = async {
            receiver.wait_until(|seen| seen.len() == 1, SOON).await.unwrap();
            gate.open();
        };
        let ((status, open), ()) = tokio::join!(answered, opened);
        assert_eq!((status, open), (200, true));
    }

    #[tokio::test]
    async fn a_hang_ends_only_with_the_client_or_the_listener() {
        let receiver = Receiver::start().unwrap();
        receiver.behave(Answer::Hang);
        let stop = async {
            receiver.wait_until(|seen| seen.len() == 1, SOON).await.unwrap();
            receiver.stop_listening().await;
        };
        let (answer, ()) = tokio::join!(post(&receiver, "/"), stop);
        answer.unwrap_err();
    }

    #[tokio::test]
    async fn a_closed_port_refuses_and_the_same_port_opens_again() {
        let receiver = Receiver::start().unwrap();
        receiver.stop_listening().await;
        let refused = post(&receiver, "/").await.unwrap_err().to_string();
        assert!(refused.contains("refused"), "{refused}");
        receiver.listen_again().unwrap();
        assert_eq!(post(&receiver, "/").await.unwrap().0, 200);
    }

    #[tokio::test]
    async fn a_signature_is_checked_with_its_secret() {
        // The example of the Standard Webhooks specification's own library.
        let secret = BASE64.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let receiver = Receiver::start().unwrap();
        let mut request = client::request("POST", "/", r#"{"test": 2432232314}"#).unwrap();
        for (name, value) in [
            ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("webhook-timestamp", "1614265330"),
            ("webhook-signature", "v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        client::send(receiver.address(), request).await.unwrap();
        let seen = &receiver.seen()[0];
        assert!(seen.is_signed_with(&secret));
        assert!(!seen.is_signed_with(b"another"));
    }

    #[tokio::test]
    async fn what_does_not_come_is_told_with_what_came() {
        let receiver = Receiver::start().unwrap();
        let late = receiver.wait_until(|seen| !seen.is_empty(), Duration::ZERO).await.unwrap_err();
        assert!(late.to_string().contains("0 records came"), "{late}");
    }
}
