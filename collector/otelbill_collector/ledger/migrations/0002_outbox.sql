-- The Stripe outbox: lanes, their windows, the intents made of them, and what is stopped.
-- Sums are decimal integers in TEXT, because they do not fit 64 bits. Instants are nanoseconds UTC.

CREATE TABLE stripe_lane (
    lane_id INTEGER PRIMARY KEY,
    meter TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    quantum TEXT NOT NULL,            -- sub-units in one whole unit of the meter
    carry TEXT NOT NULL DEFAULT '0',  -- sub-units left over by the last quantising, 0 <= carry < quantum
    -- Running sums, so that a status costs nothing per past window. A test recomputes them from the rows.
    booked TEXT NOT NULL DEFAULT '0',     -- sub-units booked in all windows
    settled TEXT NOT NULL DEFAULT '0',    -- the part of them that went into intents or the carry
    confirmed TEXT NOT NULL DEFAULT '0',  -- whole units of confirmed intents
    UNIQUE (meter, customer_id)
) STRICT;

CREATE TABLE stripe_window (
    lane_id INTEGER NOT NULL REFERENCES stripe_lane (lane_id),
    start_nanos INTEGER NOT NULL,
    length_nanos INTEGER NOT NULL,
    amount TEXT NOT NULL,             -- all that was booked for the window, in sub-units
    settled TEXT NOT NULL DEFAULT '0',-- the part of it that went into intents or the lane's carry
    dirty INTEGER NOT NULL,           -- 1 while amount <> settled
    last_event_nanos INTEGER NOT NULL,
    closed_nanos INTEGER,             -- when its value was last decided
    PRIMARY KEY (lane_id, start_nanos, length_nanos)
) STRICT, WITHOUT ROWID;

CREATE INDEX stripe_window_dirty ON stripe_window (lane_id, start_nanos) WHERE dirty = 1;

CREATE TABLE stripe_intent (
    intent_id INTEGER PRIMARY KEY,
    identifier TEXT NOT NULL UNIQUE,
    lane_id INTEGER NOT NULL REFERENCES stripe_lane (lane_id),
    account TEXT NOT NULL,
    livemode INTEGER NOT NULL,
    start_nanos INTEGER NOT NULL,
    length_nanos INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    kind TEXT NOT NULL,
    amount TEXT NOT NULL,
    carry_before TEXT NOT NULL,
    carry_after TEXT NOT NULL,
    value TEXT NOT NULL,
    stamp_seconds INTEGER NOT NULL,
    made_nanos INTEGER NOT NULL,
    -- Below: delivery. Above: never changed once written (see the trigger).
    state TEXT NOT NULL DEFAULT 'pending',
    stripe_customer_id TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    attempt_group INTEGER NOT NULL DEFAULT 0,
    doubt_nanos INTEGER,
    last_sent_nanos INTEGER,
    due_nanos INTEGER NOT NULL,
    answer_status INTEGER,
    answer_code TEXT,
    answer_message TEXT,
    request_id TEXT,
    superseded_by TEXT,
    UNIQUE (lane_id, start_nanos, length_nanos, revision)
) STRICT;

CREATE INDEX stripe_intent_waiting ON stripe_intent (lane_id, intent_id) WHERE state IN ('pending', 'sending', 'unknown');
CREATE INDEX stripe_intent_stamp ON stripe_intent (stamp_seconds);
CREATE INDEX stripe_intent_unconfirmed ON stripe_intent (stamp_seconds) WHERE state NOT IN ('confirmed', 'dead');

CREATE TRIGGER stripe_intent_is_immutable
BEFORE UPDATE OF identifier, lane_id, account, livemode, start_nanos, length_nanos, revision, kind, amount,
    carry_before, carry_after, value, stamp_seconds, made_nanos ON stripe_intent
BEGIN
    SELECT RAISE(ABORT, 'an intent never changes: make a new revision');
END;

CREATE TRIGGER stripe_intent_is_kept
BEFORE DELETE ON stripe_intent
BEGIN
    SELECT RAISE(ABORT, 'an intent is never deleted');
END;

CREATE TABLE stripe_intent_count (
    state TEXT PRIMARY KEY,
    intents INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER stripe_intent_is_counted AFTER INSERT ON stripe_intent
BEGIN
    INSERT INTO stripe_intent_count (state, intents) VALUES (NEW.state, 1)
    ON CONFLICT (state) DO UPDATE SET intents = intents + 1;
END;

CREATE TRIGGER stripe_intent_is_recounted AFTER UPDATE OF state ON stripe_intent WHEN OLD.state <> NEW.state
BEGIN
    UPDATE stripe_intent_count SET intents = intents - 1 WHERE state = OLD.state;
    INSERT INTO stripe_intent_count (state, intents) VALUES (NEW.state, 1)
    ON CONFLICT (state) DO UPDATE SET intents = intents + 1;
END;

CREATE TABLE stripe_stop (
    scope TEXT NOT NULL,              -- account, meter or lane
    name TEXT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    since_nanos INTEGER NOT NULL,
    retry_nanos INTEGER NOT NULL,
    PRIMARY KEY (scope, name)
) STRICT, WITHOUT ROWID;
