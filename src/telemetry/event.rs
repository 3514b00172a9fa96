//! The closed list of things that an operator, a metric or a test can wait for.
//!
//! Each is a noun and a past participle with a stable name. `error` means that a person must look; a retry is `info`.
//! Never in a field: secrets, bodies, queries of URLs.

/// Declares the events: name, level, sentence, fields. A field is a number, a `bool`, a text, or an option of these.
macro_rules! events {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $level:ident, $text:literal
        { $($field:ident : $type:ty),* $(,)? })+) => {
        /// One thing that happened.
        #[derive(Clone, Copy, Debug)]
        pub enum Event<'a> {
            $($(#[doc = $doc])+ $variant { $($field: $type),* },)+
            #[doc(hidden)]
            _Borrows(std::convert::Infallible, std::marker::PhantomData<&'a ()>),
        }

        impl Event<'_> {
            /// Name, level and meaning of every event, in the order of the list.
            pub const ALL: &'static [Description] = &[
                $(Description { name: $name, level: stringify!($level), meaning: concat!($($doc),+) },)+
            ];

            /// Writes the event to the log.
            pub fn emit(self) {
                match self {
                    $(Self::$variant { $($field),* } => {
                        tracing::event!(target: "glaneur", tracing::Level::$level, event = $name, $($field,)* $text)
                    })+
                    Self::_Borrows(never, _) => match never {},
                }
            }
        }
    };
}

/// What the documentation says of an event.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    pub name: &'static str,
    pub level: &'static str,
    pub meaning: &'static str,
}

events! {
    /// The daemon is up: configuration read, ledger open, listener bound.
    DaemonStarted = "daemon_started", INFO, "daemon started"
        { version: &'a str, listen: &'a str, config: &'a str, ledger: &'a str, epoch: i64, shops: u64 }
    /// Something may leave the machine without Tor, because the configuration says so.
    DirectAnnounced = "direct_announced", WARN, "goes out without Tor, by configuration" { what: &'a str }
    /// No shop is in use; every submit gets 503 until one is enabled.
    NoShopEnabled = "no_shop_enabled", WARN, "no shop is enabled: set sites.<name>.enabled = true" {}
    /// `webhooks.product_url` is "none": outcomes are kept and counted, and nothing is sent until it is set.
    WebhooksUnaddressed = "webhooks_unaddressed", WARN, "outcomes are kept and not sent: set webhooks.product_url" {}
    /// The process died while these products were being visited; they are charged with the death.
    DeathsCharged = "deaths_charged", WARN, "the last process died; products in hand are charged"
        { products: u64, crashed: u64 }
    /// Claims of the last process were put back.
    ClaimsReleased = "claims_released", INFO, "claims of the last process put back" { products: u64 }
    /// The service manager that NOTIFY_SOCKET names cannot be told anything; it may call a start that went well a failure.
    NotifyFailed = "notify_failed", WARN, "the service manager cannot be told what the daemon does" { detail: &'a str }
    /// A part is stuck, and the service manager is no longer told that the daemon is alive: it will be killed and started
    /// again unless the part moves in time.
    WatchdogWithheld = "watchdog_withheld", ERROR, "a part is stuck: the watchdog is not fed"
        { part: &'a str, detail: &'a str }
    /// The part that was stuck moves again, and the watchdog is fed.
    WatchdogResumed = "watchdog_resumed", INFO, "the part moves again: the watchdog is fed" { part: &'a str }
    /// The daemon was asked to stop and drains.
    DrainStarted = "drain_started", INFO, "drain started" { signal: &'a str, seconds: u64 }
    /// The drain is over and the process ends.
    DrainEnded = "drain_ended", INFO, "drain ended" { duration_ms: u64 }
    /// SIGHUP came; a changed configuration is taken at the next start.
    ReloadIgnored = "reload_ignored", WARN, "SIGHUP changes nothing: restart to take a changed configuration" {}
    /// A second signal ended the drain at once.
    DrainCut = "drain_cut", WARN, "second signal: ending at once" {}

    /// An actor failed and is started again.
    ActorRestarted = "actor_restarted", WARN, "actor failed and was started again"
        { actor: &'a str, failures: u64, detail: &'a str }
    /// An actor failed too often, or may not be restarted; the process ends with its code.
    ActorEscalated = "actor_escalated", ERROR, "actor failed past its limit: the process ends"
        { actor: &'a str, failures: u64, detail: &'a str }
    /// A thread panicked; its supervisor says what follows.
    Panicked = "panicked", ERROR, "a part of the program panicked" { detail: &'a str, place: &'a str }
    /// A child did not end within its time to drain and was killed.
    ActorKilled = "actor_killed", WARN, "actor did not drain in time and was killed" { actor: &'a str }

    /// The ledger's disk is full: accepts get 503, visits pause.
    LedgerFull = "ledger_full", ERROR, "no room on the ledger's disk: accepts get 503, visits pause" {}
    /// Less than `ledger.free_bytes_min` is free on the ledger's disk: accepts get 503, all else goes on.
    LedgerLow = "ledger_low", WARN, "little room on the ledger's disk: accepts get 503" {}
    /// The ledger can write again.
    LedgerRoom = "ledger_room", INFO, "the ledger can write again" {}
    /// The ledger's disk failed; nothing in memory is trusted and the process ends.
    LedgerLost = "ledger_lost", ERROR, "the ledger's disk failed" { detail: &'a str }
    /// A command of the ledger was refused by the store: a mistake of this program.
    LedgerCommandRefused = "ledger_command_refused", ERROR, "the ledger refused a command" { detail: &'a str }
    /// The counters and a full recount disagree.
    ConservationBroken = "conservation_broken", ERROR, "the conservation law does not hold" { detail: &'a str }

    /// A batch is on disk, and its 202 is sent.
    BatchAccepted = "batch_accepted", INFO, "batch accepted"
        { batch_id: &'a str, total: u64, queued: u64, skipped: u64, ignored: u64, requester: &'a str }
    /// A submit was a repeat and got the first answer.
    BatchRepeated = "batch_repeated", INFO, "submit was a repeat" { batch_id: &'a str, by: &'a str }
    /// A request was refused with this status; nothing was stored.
    RequestRefused = "request_refused", INFO, "request refused"
        { status: u64, path: &'a str, field: Option<&'a str>, detail: &'a str, peer: &'a str }
    /// Whether a batch is on disk was not known when its request's time was over: closed without an answer.
    AnswerWithheld = "answer_withheld", WARN, "commit not confirmed in time: connection closed without an answer"
        { batch_id: &'a str }
    /// The listener cannot accept, most often for want of file descriptors; it is tried again after a pause.
    ListenerPaused = "listener_paused", WARN, "cannot accept connections: trying again" { detail: &'a str }
    /// All products of a batch ended.
    BatchEnded = "batch_ended", INFO, "batch ended" { batch_id: &'a str }
    /// A batch was set aside: its coordinator failed past its limit, its open products end as failed.
    BatchSetAside = "batch_set_aside", ERROR, "batch set aside: its coordinator kept failing" { batch_id: &'a str }
    /// A coordinator took up a batch.
    BatchTaken = "batch_taken", DEBUG, "coordinator took the batch up" { batch_id: &'a str, incarnation: i64 }
    /// A product ended, and its outcome is on disk.
    ProductEnded = "product_ended", INFO, "product ended"
        { batch_id: &'a str, index: u64, ean: &'a str, outcome: &'a str, kind: Option<&'a str>, duration_ms: u64 }
    /// An outcome came too late; another one stands.
    OutcomeDropped = "outcome_dropped", INFO, "late outcome dropped"
        { batch_id: &'a str, index: u64, reason: &'a str }
    /// A claimed product had no visit queued or in flight; its claim was released.
    ClaimStranded = "claim_stranded", ERROR, "claimed product without a visit: claim released"
        { batch_id: &'a str, index: u64 }
    /// A product is suspected of killing the process and runs alone.
    ProductSuspected = "product_suspected", WARN, "product is suspected and runs alone"
        { batch_id: &'a str, index: u64, deaths: u64 }

    /// A visit is about to dial.
    VisitStarted = "visit_started", DEBUG, "visit started"
        { batch_id: &'a str, index: u64, ean: &'a str, site: &'a str, circuit: &'a str, attempt: u64 }
    /// A visit ended.
    VisitEnded = "visit_ended", INFO, "visit ended"
        { batch_id: &'a str, index: u64, ean: &'a str, site: &'a str, circuit: &'a str, attempt: u64,
          outcome: &'a str, detail: &'a str, duration_ms: u64 }
    /// A circuit was retired; the next visit of its scraper uses a new one.
    CircuitRetired = "circuit_retired", INFO, "circuit retired" { circuit: &'a str, reason: &'a str }
    /// Tor is not there: nothing goes out, work waits, no deadline runs.
    TorLost = "tor_lost", ERROR, "Tor is not there: work waits" { reason: &'a str, socks: &'a str }
    /// Tor is there.
    TorFound = "tor_found", INFO, "Tor is there" { socks: &'a str }

    /// A receiver took a webhook.
    DeliveryTaken = "delivery_taken", INFO, "webhook taken"
        { batch_id: &'a str, webhook_id: &'a str, endpoint: &'a str, attempt: u64, status: u64, duration_ms: u64,
          note: Option<&'a str> }
    /// An attempt failed and will be repeated.
    DeliveryRetried = "delivery_retried", INFO, "webhook attempt failed, will be repeated"
        { batch_id: &'a str, webhook_id: &'a str, endpoint: &'a str, attempt: u64, status: Option<u64>,
          reason: &'a str, again_in_ms: u64 }
    /// A webhook was given up; it is kept and can be sent again.
    DeliveryDead = "delivery_dead", ERROR, "webhook given up"
        { batch_id: &'a str, webhook_id: &'a str, endpoint: &'a str, attempt: u64, status: Option<u64>,
          reason: &'a str }
    /// A webhook is withheld: its endpoint is gone or its host is no longer allowed.
    DeliveryWithheld = "delivery_withheld", WARN, "webhook withheld"
        { batch_id: &'a str, webhook_id: &'a str, endpoint: &'a str, reason: &'a str }
    /// The record of an attempt came late; another one stands.
    DeliveryRecordLate = "delivery_record_late", INFO, "late record of an attempt dropped"
        { webhook_id: &'a str, attempt: u64 }
    /// An endpoint failed several times in a row; one delivery at a time probes it.
    LaneParked = "lane_parked", WARN, "endpoint is away: lane parked"
        { endpoint: &'a str, failures: u64, reason: &'a str }
    /// An endpoint answers again; its lane sends, oldest first.
    LaneResumed = "lane_resumed", INFO, "endpoint is back: lane resumed" { endpoint: &'a str }
    /// An endpoint answered 410; its lane stops until a person resumes it.
    EndpointStopped = "endpoint_stopped", ERROR, "endpoint answered 410: stopped until resumed" { endpoint: &'a str }
    /// Summaries of ended batches were released.
    SummaryReleased = "summary_released", INFO, "summaries released" { batches: u64 }
    /// The wall clock jumped against the monotonic one; no delivery waits longer for it.
    ClockJumped = "clock_jumped", WARN, "wall clock jumped" { by_ms: i64 }
}
