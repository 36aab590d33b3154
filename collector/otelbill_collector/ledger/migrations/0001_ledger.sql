-- Evidence: one columnar blob per group commit, chained by digest, never updated.
CREATE TABLE segment (
    segment_id     INTEGER PRIMARY KEY,  -- 1, 2, 3, ... without gaps
    booked_nanos   INTEGER NOT NULL,
    ended_min      INTEGER NOT NULL,     -- earliest and latest event time inside
    ended_max      INTEGER NOT NULL,
    record_count   INTEGER NOT NULL,
    digest         BLOB    NOT NULL,     -- SHA-256 of the previous digest and this body
    body           BLOB    NOT NULL      -- Arrow IPC stream
) STRICT;

-- Where the members of a claim group stand. The day comes first, so that inserts touch the pages of recent days only.
CREATE TABLE claim_key (
    day        INTEGER NOT NULL,  -- days since 1970 of the span's end
    key        BLOB    NOT NULL,
    segment_id INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    PRIMARY KEY (day, key, segment_id, position)
) STRICT, WITHOUT ROWID;

-- Groups that must be decided again at a later time (a parent's residual waits for late children).
CREATE TABLE due_group (
    due_nanos INTEGER NOT NULL,
    day       INTEGER NOT NULL,
    key       BLOB    NOT NULL,
    PRIMARY KEY (due_nanos, day, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE price_version (
    price_version TEXT PRIMARY KEY,
    body          TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What an operator decided about an event; the latest one counts. Deciding the event's group again books it.
CREATE TABLE instruction (
    instruction_id INTEGER PRIMARY KEY,
    event_id       TEXT    NOT NULL,
    customer_id    TEXT    NOT NULL,
    operator       TEXT    NOT NULL,
    reason         TEXT    NOT NULL,
    given_nanos    INTEGER NOT NULL
) STRICT;
CREATE INDEX instruction_by_event ON instruction (event_id);

CREATE TABLE dead_letter (
    letter_id      TEXT PRIMARY KEY,
    received_nanos INTEGER NOT NULL,
    code           TEXT NOT NULL,
    field          TEXT NOT NULL,
    value          TEXT NOT NULL,
    hint           TEXT NOT NULL,
    trace_id       BLOB NOT NULL,
    span_id        BLOB NOT NULL,
    body           BLOB NOT NULL,
    replayed_nanos INTEGER
) STRICT, WITHOUT ROWID;

-- Sums derived from segments; deleting and folding again gives the same rows. Text holds integers past 64 bits.
CREATE TABLE rollup (
    hour_nanos   INTEGER NOT NULL,
    customer_id  TEXT NOT NULL,   -- '' stands for none, here and below
    project_id   TEXT NOT NULL,
    step         TEXT NOT NULL,
    provider     TEXT NOT NULL,
    model        TEXT NOT NULL,
    currency     TEXT NOT NULL,
    rating       TEXT NOT NULL,
    usage_source TEXT NOT NULL,
    events       INTEGER NOT NULL,
    quantities   TEXT NOT NULL,   -- JSON object unit -> decimal text
    cost_attos   TEXT NOT NULL,
    charge_attos TEXT NOT NULL,
    costless     INTEGER NOT NULL, -- events whose cost is not known
    PRIMARY KEY (hour_nanos, customer_id, project_id, step, provider, model, currency, rating, usage_source)
) STRICT, WITHOUT ROWID;

-- Up to which segment each derived table has been folded.
CREATE TABLE high_water (
    name       TEXT PRIMARY KEY,
    segment_id INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
