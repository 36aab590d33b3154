-- What an operator said of usage that never reached us; the latest statement about an event counts. Never updated.
CREATE TABLE resolution (
    resolution_id INTEGER PRIMARY KEY,
    event_id      TEXT    NOT NULL,
    quantities    TEXT    NOT NULL,  -- JSON object unit -> integer, token units only
    operator      TEXT    NOT NULL,
    reason        TEXT    NOT NULL,
    given_nanos   INTEGER NOT NULL
) STRICT;
CREATE INDEX resolution_by_event ON resolution (event_id);
