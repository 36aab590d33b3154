-- Events whose booking in force waits for somebody, folded from segments up to the mark `open`. Event time comes first
-- in each kind, so that inserts touch recent pages only.
CREATE TABLE open_event (
    kind        TEXT    NOT NULL,  -- suspense, held or unpriced
    ended_nanos INTEGER NOT NULL,
    event_id    TEXT    NOT NULL,
    revision    INTEGER NOT NULL,
    segment_id  INTEGER NOT NULL,  -- where the booking stands
    position    INTEGER NOT NULL,
    PRIMARY KEY (kind, ended_nanos, event_id)
) STRICT, WITHOUT ROWID;

-- A customer's month is read without every other customer's.
CREATE INDEX rollup_by_customer ON rollup (customer_id, hour_nanos);
