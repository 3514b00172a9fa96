//! The closed list of things that an operator, a metric or a test can wait for.
//!
//! Each is a noun and a past participle with a stable name. `error` means that a person must look; a retry is `info`.
//! Never in a field: secrets, bodies, queries of URLs.

/// Declares the events: name, level, sentence, fields, and what a person should do. A field is a number, a `bool`, a
/// text, or an option of these.
macro_rules! events {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $level:ident, $text:literal
        { $($field:ident : $type:ty),* $(,)? } => $action:literal)+) => {
        /// One thing that happened.
        #[derive(Clone, Copy, Debug)]
        pub enum Event<'a> {
            $($(#[doc = $doc])+ $variant { $($field: $type),* },)+
            #[doc(hidden)]
            _Borrows(std::convert::Infallible, std::marker::PhantomData<&'a ()>),
        }

        impl Event<'_> {
            /// What is said of every event, in the order of the list.
            pub const ALL: &'static [Description] = &[
                $(Description {
                    name: $name,
                    level: stringify!($level),
                    message: $text,
                    fields: &[$(stringify!($field)),*],
                    meaning: concat!($($doc),+),
                    action: $action,
                },)+
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
    /// The sentence in the log.
    pub message: &'static str,
    pub fields: &'static [&'static str],
    pub meaning: &'static str,
    /// What a person should do.
    pub action: &'static str,
}

impl Description {
    /// The journal's `MESSAGE_ID`: a UUID of version 8 (RFC 9562, 5.8) made of the name, so that it is as stable.
    pub fn message_id(&self) -> String {
        message_id(self.name)
    }
}

/// [`Description::message_id`] of the event with this name.
pub fn message_id(event: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("glaneur event {event}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_ref()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().simple().to_string()
}

events! {
    /// The daemon is up: configuration read, ledger open, listener bound.
    DaemonStarted = "daemon_started", INFO, "daemon started"
        { version: &'a str, listen: &'a str, config: &'a str, ledger: &'a str, epoch: i64, shops: u64 }
        => "Nothing. If shops is 0, enable one."
    /// Something may leave the machine without Tor, because the configuration says so.
    DirectAnnounced = "direct_announced", WARN, "goes out without Tor, by configuration" { what: &'a str }
        => "Nothing, if it is meant. Otherwise remove `via = \"direct\"` from what is named."
    /// By what a scraper is bound to one circuit. "strict": its exit is known before each visit, and it stays on it.
    /// "credentials": by its own SOCKS user and password, which tor may move; with a control port the exit is known.
    BindingAnnounced = "binding_announced", INFO, "scrapers are bound to their circuits" { binding: &'a str, control: Option<&'a str> }
        => "Nothing. For the other grade set tor.binding and tor.control, and restart."
    /// No shop is in use; every submit gets 503 until one is enabled.
    NoShopEnabled = "no_shop_enabled", WARN, "no shop is enabled: set sites.<name>.enabled = true" {}
        => "Set sites.NAME.enabled = true in the configuration and reload."
    /// `webhooks.product_url` is "none": outcomes are kept and counted, and nothing is sent until it is set.
    WebhooksUnaddressed = "webhooks_unaddressed", WARN, "outcomes are kept and not sent: set webhooks.product_url" {}
        => "Set webhooks.product_url in the configuration and reload. Nothing, if outcomes are only to be kept."
    /// The process died while these products were being visited; they are charged with the death.
    DeathsCharged = "deaths_charged", WARN, "the last process died; products in hand are charged"
        { products: u64, crashed: u64 }
        => "Find out why the process died: look at the lines before this start, and for the kernel's out-of-memory killer."
    /// Claims of the last process were put back.
    ClaimsReleased = "claims_released", INFO, "claims of the last process put back" { products: u64 }
        => "Nothing. The products are visited again."
    /// The service manager that NOTIFY_SOCKET names cannot be told anything; it may call a start that went well a failure.
    NotifyFailed = "notify_failed", WARN, "the service manager cannot be told what the daemon does" { detail: &'a str }
        => "See that NOTIFY_SOCKET is there and may be written to; the unit needs Type=notify and NotifyAccess=main."
    /// A part is stuck, and the service manager is no longer told that the daemon is alive: it will be killed and started
    /// again unless the part moves in time.
    WatchdogWithheld = "watchdog_withheld", ERROR, "a part is stuck: the watchdog is not fed"
        { part: &'a str, detail: &'a str }
        => "Nothing at once: systemd starts the process again. If the part is the ledger, look at the disk."
    /// The part that was stuck moves again, and the watchdog is fed.
    WatchdogResumed = "watchdog_resumed", INFO, "the part moves again: the watchdog is fed" { part: &'a str }
        => "Nothing."
    /// The daemon was asked to stop and drains.
    DrainStarted = "drain_started", INFO, "drain started" { signal: &'a str, seconds: u64 }
        => "Nothing. The process ends by itself within the time named; what is not done is done after the next start."
    /// The drain is over and the process ends.
    DrainEnded = "drain_ended", INFO, "drain ended" { duration_ms: u64 }
        => "Nothing."
    /// SIGHUP came; the configuration was read again, found right, and applies to what starts from now on.
    Reloaded = "reloaded", INFO, "configuration reloaded" { config: &'a str, changed: &'a str, shops: u64 }
        => "Nothing."
    /// SIGHUP came, and the configuration or a file that it names has mistakes; the old one stays, in every part.
    ReloadRefused = "reload_refused", ERROR, "configuration refused: the old one stays"
        { config: &'a str, problems: u64, detail: &'a str }
        => "Mend what the detail says, line by line, and reload again. `glaneur check` says the same."
    /// These keys changed too, and keep their values until the daemon is restarted; all others apply.
    ReloadNeedsRestart = "reload_needs_restart", WARN, "changed keys that need a restart" { keys: &'a str }
        => "Restart the service when it suits you; nothing is lost by it."
    /// These keys name credentials of systemd, which stay as they were at the start: a new one needs a restart.
    CredentialsKept = "credentials_kept", INFO, "credentials of systemd stay as they are until a restart"
        { keys: &'a str }
        => "Restart the service if a credential changed."
    /// SIGHUP came during the drain; the next start takes the changed configuration.
    ReloadIgnored = "reload_ignored", WARN, "SIGHUP during the drain changes nothing" {}
        => "Nothing. The next start reads the configuration."
    /// A second signal ended the drain at once.
    DrainCut = "drain_cut", WARN, "second signal: ending at once" {}
        => "Nothing. What was committed goes on at the next start."

    /// An actor failed and is started again.
    ActorRestarted = "actor_restarted", WARN, "actor failed and was started again"
        { actor: &'a str, failures: u64, detail: &'a str }
        => "Nothing, if it happens once. If it repeats, report the detail as a bug."
    /// An actor failed too often, or may not be restarted; the process ends with its code.
    ActorEscalated = "actor_escalated", ERROR, "actor failed past its limit: the process ends"
        { actor: &'a str, failures: u64, detail: &'a str }
        => "systemd starts the process again. If it repeats, look at the detail: a disk, or a bug to report."
    /// A thread panicked; its supervisor says what follows.
    Panicked = "panicked", ERROR, "a part of the program panicked" { detail: &'a str, place: &'a str }
        => "Report place and detail as a bug. The supervisor goes on without you."
    /// A child did not end within its time to drain and was killed.
    ActorKilled = "actor_killed", WARN, "actor did not drain in time and was killed" { actor: &'a str }
        => "Nothing is lost. If it repeats, a longer drain may be wanted."

    /// journald did not take so many events in time; the daemon went on without them.
    LogDropped = "log_dropped", WARN, "journald did not take events: dropped" { events: u64 }
        => "Look at systemd-journald (systemctl status systemd-journald) and its disk. The work itself lost nothing."

    /// The ledger's disk is full: accepts get 503, visits pause.
    LedgerFull = "ledger_full", ERROR, "no room on the ledger's disk: accepts get 503, visits pause" {}
        => "Make room on the disk that holds the ledger. All goes on by itself."
    /// Less than `ledger.free_bytes_min` is free on the ledger's disk: accepts get 503, all else goes on.
    LedgerLow = "ledger_low", WARN, "little room on the ledger's disk: accepts get 503" {}
        => "Make room on the disk that holds the ledger, or lower ledger.free_bytes_min."
    /// The ledger's file may not be written, by its attributes or those of its mount. Accepts get 503, visits pause, and
    /// nothing is lost. A file system that turned itself read-only after an error is another case: it takes writes and
    /// fails at the fsync, and that is `ledger_lost`.
    LedgerReadOnly = "ledger_read_only", ERROR, "the ledger may not be written: accepts get 503, visits pause" {}
        => "Make the file and its file system writable (ls -l, lsattr, findmnt). All goes on by itself."
    /// The ledger can write again.
    LedgerRoom = "ledger_room", INFO, "the ledger can write again" {}
        => "Nothing."
    /// The ledger's disk failed, or the file is damaged; nothing in memory is trusted and the process ends.
    LedgerLost = "ledger_lost", ERROR, "the ledger is lost to this process" { detail: &'a str }
        => "Look at the disk (dmesg, smartctl). If the ledger is damaged, restore a backup before the next start."
    /// A command of the ledger was refused by the store: a mistake of this program.
    LedgerCommandRefused = "ledger_command_refused", ERROR, "the ledger refused a command" { detail: &'a str }
        => "Report the detail as a bug."
    /// The counters and a full recount disagree.
    ConservationBroken = "conservation_broken", ERROR, "the conservation law does not hold" { detail: &'a str }
        => "Report the detail as a bug, with a copy of the ledger."

    /// A batch is on disk, and its 202 is sent.
    BatchAccepted = "batch_accepted", INFO, "batch accepted"
        { batch_id: &'a str, total: u64, queued: u64, skipped: u64, ignored: u64, requester: &'a str }
        => "Nothing."
    /// A submit was a repeat and got the first answer.
    BatchRepeated = "batch_repeated", INFO, "submit was a repeat" { batch_id: &'a str, by: &'a str }
        => "Nothing. A sender that repeats often may be impatient: give its requests more time."
    /// A request was refused with this status; nothing was stored.
    RequestRefused = "request_refused", INFO, "request refused"
        { status: u64, path: &'a str, field: Option<&'a str>, detail: &'a str, peer: &'a str }
        => "Tell the sender what the detail says."
    /// Whether a batch is on disk was not known when its request's time was over: closed without an answer.
    AnswerWithheld = "answer_withheld", WARN, "commit not confirmed in time: connection closed without an answer"
        { batch_id: &'a str }
        => "Look at the disk: a commit should take milliseconds. The sender repeats its request and gets the first answer."
    /// The listener cannot accept, most often for want of file descriptors; it is tried again after a pause.
    ListenerPaused = "listener_paused", WARN, "cannot accept connections: trying again" { detail: &'a str }
        => "Raise LimitNOFILE, or lower server.connections_max."
    /// As many connections are open as may be; who connects waits in the kernel, at no cost, until one ends.
    ConnectionsFull = "connections_full", WARN, "as many connections as may be: others wait" { connections: u64 }
        => "Find out who holds them. If they are meant, raise server.connections_max."
    /// The limit of file descriptors leaves fewer connections than server.connections_max, beside the daemon's work.
    ConnectionsCapped = "connections_capped", WARN, "too few file descriptors for server.connections_max"
        { wanted: u64, allowed: u64, limit: u64 }
        => "Raise LimitNOFILE, or lower server.connections_max."
    /// No file descriptor is left: visits and webhooks wait and are tried again, and none is charged.
    DescriptorsUsedUp = "descriptors_used_up", ERROR, "no file descriptor is left: visits and webhooks wait" {}
        => "Raise LimitNOFILE, or look at what the process or the machine has open. All goes on by itself."
    /// All products of a batch ended.
    BatchEnded = "batch_ended", INFO, "batch ended" { batch_id: &'a str }
        => "Nothing."
    /// A batch was set aside: its coordinator failed past its limit, its open products end as failed.
    BatchSetAside = "batch_set_aside", ERROR, "batch set aside: its coordinator kept failing" { batch_id: &'a str }
        => "Report it as a bug. The products are in the webhooks as failed; submit them again."
    /// A coordinator took up a batch.
    BatchTaken = "batch_taken", DEBUG, "coordinator took the batch up" { batch_id: &'a str, incarnation: i64 }
        => "Nothing."
    /// A product ended, and its outcome is on disk.
    ProductEnded = "product_ended", INFO, "product ended"
        { batch_id: &'a str, index: u64, ean: &'a str, outcome: &'a str, kind: Option<&'a str>, duration_ms: u64 }
        => "Nothing. For the whole story: glaneur explain EAN."
    /// An outcome came too late; another one stands.
    OutcomeDropped = "outcome_dropped", INFO, "late outcome dropped"
        { batch_id: &'a str, index: u64, reason: &'a str }
        => "Nothing."
    /// A claimed product had no visit queued or in flight; its claim was released.
    ClaimStranded = "claim_stranded", ERROR, "claimed product without a visit: claim released"
        { batch_id: &'a str, index: u64 }
        => "Report it as a bug. The product is visited again."
    /// A product is suspected of killing the process and runs alone.
    ProductSuspected = "product_suspected", WARN, "product is suspected and runs alone"
        { batch_id: &'a str, index: u64, deaths: u64 }
        => "Nothing. If it ends as crashed, look at the page of that product."

    /// A visit is about to dial.
    VisitStarted = "visit_started", DEBUG, "visit started"
        { batch_id: &'a str, index: u64, ean: &'a str, site: &'a str, circuit: &'a str, attempt: u64 }
        => "Nothing."
    /// A visit takes more than twice its shop's median on `first`: it was started once more, on `circuit`. The first answer
    /// is its end, and the other one is dropped.
    VisitHedged = "visit_hedged", INFO, "slow visit started once more"
        { batch_id: &'a str, index: u64, ean: &'a str, site: &'a str, circuit: &'a str, first: &'a str, attempt: u64,
          after_ms: u64, median_ms: u64 }
        => "Nothing. tor.hedge_percent bounds how often; sites.NAME.hedge = false spares a shop that counts requests."
    /// A visit ended. If it was started once more (`visit_hedged`), `won_by` says whose end it is: `first` or `twin`.
    VisitEnded = "visit_ended", INFO, "visit ended"
        { batch_id: &'a str, index: u64, ean: &'a str, site: &'a str, circuit: &'a str, exit: Option<&'a str>,
          country: Option<&'a str>, attempt: u64, outcome: &'a str, detail: &'a str, duration_ms: u64,
          won_by: Option<&'a str> }
        => "Nothing, for one. If many of a shop fail in the same way, look at its recipe."
    /// A circuit was retired; the next visit of its scraper uses a new one. The reason is `blocked`, `exit_blocked` (before
    /// anything was sent: its exit is one that the shop blocked), `age`, `uses`, `failures` (visits in a row that came to
    /// nothing), `slow` (against the others at a shop), or the kind of the error that was plainly its doing.
    CircuitRetired = "circuit_retired", INFO, "circuit retired" { circuit: &'a str, reason: &'a str }
        => "Nothing."
    /// A shop is left alone until then, because of so many crashes of scrapers in its visits (reason `crashes`), or because
    /// it refused so many visits in a row, whichever way they came (reason `blocks`). After crashes its visits wait,
    /// uncharged; after blocks they end as `blocked`, or wait where the shop has `on_block = "wait"`. The other shops go on.
    ShopSuspended = "shop_suspended", ERROR, "shop suspended: it is left alone and tried now and then"
        { site: &'a str, reason: &'a str, until: &'a str, seconds: u64, count: u64, detail: &'a str }
        => "For crashes report the detail as a bug. For blocks lower the shop's rate; it is tried again by itself."
    /// One visit of a suspended shop was tried and ended as those before: the shop is left alone for longer, until then.
    ShopProbed = "shop_probed", INFO, "suspended shop was tried: it is left alone for longer"
        { site: &'a str, reason: &'a str, until: &'a str, seconds: u64, detail: &'a str }
        => "Nothing. It is tried again by itself."
    /// One visit of a suspended shop was tried and ended well: the others follow.
    ShopResumed = "shop_resumed", INFO, "shop resumed" { site: &'a str, reason: &'a str }
        => "Nothing."
    /// A shop asked to be left alone for a while (`Retry-After`), be it for its robots.txt: all its visits wait until then,
    /// uncharged.
    ShopHeld = "shop_held", INFO, "shop is left alone for a while: its visits wait"
        { site: &'a str, until: &'a str, seconds: u64, reason: &'a str }
        => "Nothing. If it repeats, lower the shop's rate."
    /// A shop is asked half as often as before, or twice as often again: it became slow, answers 429 or 503, or recovers.
    ShopPaced = "shop_paced", INFO, "shop is asked at another pace"
        { site: &'a str, interval_ms: u64, configured_ms: u64, latency_ms: u64 }
        => "Nothing. If a shop stays slow, lower its rate to what it bears."
    /// A shop's robots.txt forbids the path that it is searched at: its visits end as failed with kind robots.
    RobotsForbids = "robots_forbids", WARN, "robots.txt forbids the shop's search: its visits fail"
        { site: &'a str, path: &'a str, line: u64, rule: &'a str }
        => "Ask the shop for leave, and then set sites.NAME.robots = false; or switch the shop off."
    /// Tor is not there: nothing goes out, work waits, no deadline runs.
    TorLost = "tor_lost", ERROR, "Tor is not there: work waits" { reason: &'a str, socks: &'a str }
        => "Start tor, or set tor.socks to where it listens. All goes on by itself."
    /// Tor is there.
    TorFound = "tor_found", INFO, "Tor is there" { socks: &'a str }
        => "Nothing."

    /// Tor's control port answers.
    ControlFound = "control_found", INFO, "the control port answers" { control: &'a str, version: &'a str }
        => "Nothing."
    /// Tor's control port does not answer or lets nobody in: exits are not known, and all else goes on. It is tried again.
    ControlLost = "control_lost", WARN, "the control port is not there: exits are not known"
        { control: &'a str, reason: &'a str }
        => "Do what the reason says. If tor itself is away, tor_lost says so."
    /// At the end the control port did not take tor's streams back: others who use this tor get no connection.
    ControlHeld = "control_held", ERROR, "tor still leaves its streams to a controller" { control: &'a str, reason: &'a str }
        => "Start the daemon again, or run `glaneur tor release`, or restart tor."
    /// Tor may spread a user over several circuits (Conflux), so a scraper is not one circuit and may change its exit.
    ConfluxFound = "conflux_found", WARN, "Conflux is on: a scraper may move to another circuit" { control: &'a str }
        => "Put `ConfluxEnabled 0` into torrc and reload tor, or set tor.binding = \"strict\"."
    /// Tor is on its way to its network.
    BootstrapStarted = "bootstrap_started", INFO, "tor connects to its network" { progress: u64, summary: &'a str }
        => "Nothing."
    /// Tor gets no further on its way to its network; the reason is its own.
    BootstrapStuck = "bootstrap_stuck", WARN, "tor gets no further on its way to its network"
        { progress: u64, summary: &'a str, reason: &'a str }
        => "Look at the network of the machine, its firewall and its clock, and at tor's own log."
    /// Tor is connected to its network.
    BootstrapEnded = "bootstrap_ended", INFO, "tor is connected to its network" {}
        => "Nothing."

    /// A receiver took a webhook.
    DeliveryTaken = "delivery_taken", INFO, "webhook taken"
        { batch_id: &'a str, webhook_id: &'a str, endpoint: &'a str, attempt: u64, status: u64, duration_ms: u64,
          note: Option<&'a str> }
        => "Nothing."
    /// An attempt failed and will be repeated.
    DeliveryRetried = "delivery_retried", INFO, "webhook attempt failed, will be repeated"
        { batch_id: &'a str, webhook_id: &'a str, endpoint: &'a str, attempt: u64, status: Option<u64>,
          reason: &'a str, again_in_ms: u64 }
        => "Nothing. If it repeats for one endpoint, look at the receiver."
    /// A webhook was given up; it is kept and can be sent again.
    DeliveryDead = "delivery_dead", ERROR, "webhook given up"
        { batch_id: &'a str, webhook_id: &'a str, endpoint: &'a str, attempt: u64, status: Option<u64>,
          reason: &'a str }
        => "Look at the reason and mend the receiver."
    /// A webhook is withheld: its endpoint is gone or its host is no longer allowed.
    DeliveryWithheld = "delivery_withheld", WARN, "webhook withheld"
        { batch_id: &'a str, webhook_id: &'a str, endpoint: &'a str, reason: &'a str }
        => "Set webhooks.hosts or the endpoint's URL, as the reason says, and restart."
    /// The record of an attempt came late; another one stands.
    DeliveryRecordLate = "delivery_record_late", INFO, "late record of an attempt dropped"
        { webhook_id: &'a str, attempt: u64 }
        => "Nothing."
    /// An endpoint failed several times in a row; one delivery at a time probes it.
    LaneParked = "lane_parked", WARN, "endpoint is away: lane parked"
        { endpoint: &'a str, failures: u64, reason: &'a str }
        => "Look at the receiver. Nothing is given up before webhooks.patience."
    /// An endpoint answers again; its lane sends, oldest first.
    LaneResumed = "lane_resumed", INFO, "endpoint is back: lane resumed" { endpoint: &'a str }
        => "Nothing."
    /// An endpoint answered 410; its lane stops until the endpoint has another URL.
    EndpointStopped = "endpoint_stopped", ERROR, "endpoint answered 410: stopped until it has another URL"
        { endpoint: &'a str }
        => "The receiver said 410 Gone. If its workflow moved, set webhooks.product_url (or summary_url) and reload."
    /// A stopped endpoint has another URL by the configuration; its lane sends again.
    EndpointResumed = "endpoint_resumed", INFO, "endpoint has another URL: resumed"
        { endpoint: &'a str, deliveries: u64 }
        => "Nothing."
    /// Summaries of ended batches were released.
    SummaryReleased = "summary_released", INFO, "summaries released" { batches: u64 }
        => "Nothing."
    /// The wall clock jumped against the monotonic one; no delivery waits longer for it.
    ClockJumped = "clock_jumped", WARN, "wall clock jumped" { by_ms: i64 }
        => "Look at the time service of the machine."
}
