-- The ledger, schema 1; later ones are in the files beside it. Times are milliseconds since 1970, states are the discriminants of the enums of the model.
--
-- What never changes after the accept (`batch`) lies apart from what changes with every product (`progress`), and
-- bodies lie apart from deliveries, so that a small change does not write a large row again.

-- One row: who runs, and how the last run ended.
CREATE TABLE run (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    epoch    INTEGER NOT NULL,             -- starts of the process so far
    stopping INTEGER NOT NULL,             -- 1: a stop was asked for, the coming death is nobody's fault
    boot_id  TEXT    NOT NULL,
    touched  INTEGER NOT NULL              -- written to see whether there is room
) STRICT;

CREATE TABLE batch (
    no           INTEGER PRIMARY KEY AUTOINCREMENT, -- the thread_id; never used twice, also not after retention
    batch_id     TEXT    NOT NULL UNIQUE,
    accepted_at  INTEGER NOT NULL,
    requester    TEXT    NOT NULL,
    key          TEXT,                     -- Idempotency-Key
    body_hash    BLOB    NOT NULL,         -- SHA-256 of the request
    sites        TEXT    NOT NULL,         -- JSON array
    webhook_url  TEXT,
    callback_url TEXT,
    metadata     TEXT,                     -- JSON object, as it was sent
    ignored_3400 TEXT    NOT NULL,         -- JSON array
    total        INTEGER NOT NULL,
    -- The first answer, for repeats: what the intake counted, and the entries it refused (JSON array).
    intake_queued  INTEGER NOT NULL,
    intake_skipped INTEGER NOT NULL,
    intake_ignored INTEGER NOT NULL,
    refused        TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX batch_key ON batch (requester, key) WHERE key IS NOT NULL;
CREATE INDEX batch_body ON batch (body_hash);

CREATE TABLE progress (
    batch     INTEGER PRIMARY KEY,
    cursor    INTEGER NOT NULL,            -- no product with a lower index is free to be claimed
    ended_at  INTEGER,
    cancelled INTEGER NOT NULL DEFAULT 0,
    summary   INTEGER NOT NULL DEFAULT 0,  -- 1: released, 2: released, but there is no URL for it
    queued    INTEGER NOT NULL,
    claimed   INTEGER NOT NULL DEFAULT 0,
    -- Ended products by status.
    found            INTEGER NOT NULL DEFAULT 0,
    not_found        INTEGER NOT NULL DEFAULT 0,
    ean_mismatch     INTEGER NOT NULL DEFAULT 0,
    not_in_catalogue INTEGER NOT NULL DEFAULT 0,
    ignored          INTEGER NOT NULL DEFAULT 0,
    skipped          INTEGER NOT NULL DEFAULT 0,
    failed           INTEGER NOT NULL DEFAULT 0,
    cancelled_products INTEGER NOT NULL DEFAULT 0,
    -- Product deliveries by state.
    waiting     INTEGER NOT NULL DEFAULT 0,
    taken       INTEGER NOT NULL DEFAULT 0,
    dead        INTEGER NOT NULL DEFAULT 0,
    stopped     INTEGER NOT NULL DEFAULT 0,
    withheld    INTEGER NOT NULL DEFAULT 0,
    unaddressed INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX progress_open ON progress (batch) WHERE ended_at IS NULL;
CREATE INDEX progress_unreleased ON progress (ended_at) WHERE summary = 0 AND ended_at IS NOT NULL;

-- No index over what is queued: `progress.cursor` leads there, and an accept writes one row per product, no more.
CREATE TABLE product (
    batch       INTEGER NOT NULL,
    idx         INTEGER NOT NULL,          -- from 1
    ean         TEXT    NOT NULL,          -- as it was sent
    gtin        TEXT,                      -- its digits, if they are not the same text
    replacement TEXT,
    note        TEXT,
    dup_of      INTEGER,                   -- never claimed, ends with the product of this index
    state       INTEGER NOT NULL,          -- 0 queued, 1 claimed, 2 ended
    claim_epoch INTEGER,
    claim_inc   INTEGER,
    started     INTEGER NOT NULL DEFAULT 0,
    deaths      INTEGER NOT NULL DEFAULT 0,
    status      INTEGER,
    kind        TEXT,
    detail      TEXT,
    ended_at    INTEGER,
    PRIMARY KEY (batch, idx)
) STRICT, WITHOUT ROWID;
CREATE INDEX product_claimed ON product (batch, idx) WHERE state = 1;
CREATE INDEX product_duplicate ON product (batch, dup_of) WHERE dup_of IS NOT NULL;

-- A lane. Named endpoints take their URL from the configuration; a per-batch URL is its own lane.
CREATE TABLE endpoint (
    no      INTEGER PRIMARY KEY,
    key     TEXT    NOT NULL UNIQUE,
    stopped INTEGER NOT NULL DEFAULT 0     -- answered 410; waits for a person
) STRICT;

-- The outbox. `no` is made of batch, index and slot (sqlite/number.rs): one row for each, without an index of its own.
CREATE TABLE delivery (
    no            INTEGER PRIMARY KEY,
    endpoint      INTEGER NOT NULL,
    state         INTEGER NOT NULL,
    due_at        INTEGER NOT NULL,
    attempts      INTEGER NOT NULL DEFAULT 0,
    patience_used INTEGER NOT NULL DEFAULT 0,
    last_at       INTEGER,
    last_status   INTEGER,
    last_detail   TEXT,
    answer_unseen INTEGER NOT NULL DEFAULT 0,
    panics        INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX delivery_due ON delivery (endpoint, due_at, no) WHERE state = 0;
CREATE INDEX delivery_held ON delivery (endpoint, state) WHERE state = 3 OR state = 4;

-- Each body once: `no` is that of the delivery with its slot left out, so both copies of a summary share one.
CREATE TABLE body (
    no    INTEGER PRIMARY KEY,
    bytes BLOB NOT NULL
) STRICT;

-- One row: the conservation law. Deliveries are those of products.
CREATE TABLE tally (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    accepted INTEGER NOT NULL DEFAULT 0,
    queued   INTEGER NOT NULL DEFAULT 0,
    claimed  INTEGER NOT NULL DEFAULT 0,
    ended    INTEGER NOT NULL DEFAULT 0,
    waiting     INTEGER NOT NULL DEFAULT 0,
    taken       INTEGER NOT NULL DEFAULT 0,
    dead        INTEGER NOT NULL DEFAULT 0,
    stopped     INTEGER NOT NULL DEFAULT 0,
    withheld    INTEGER NOT NULL DEFAULT 0,
    unaddressed INTEGER NOT NULL DEFAULT 0
) STRICT;

INSERT INTO run (id, epoch, stopping, boot_id, touched) VALUES (1, 0, 1, '', 0);
INSERT INTO tally (id) VALUES (1);
