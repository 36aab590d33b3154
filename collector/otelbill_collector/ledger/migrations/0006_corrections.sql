-- What operators said of booked events, one aspect a row; the latest about an aspect of an event stands. Never updated.
-- instruction holds what was written before; nothing is added to it.
CREATE TABLE correction (
    correction_id INTEGER PRIMARY KEY,
    event_id      TEXT    NOT NULL,
    aspect        TEXT    NOT NULL,  -- customer, quantities, charge or void
    value         TEXT,              -- JSON; NULL: nothing is said of it any more
    batch         TEXT    NOT NULL,  -- those given together
    operator      TEXT    NOT NULL,
    reason        TEXT    NOT NULL,
    given_nanos   INTEGER NOT NULL,
    reverses      TEXT               -- the batch that this one takes back
) STRICT;
CREATE INDEX correction_by_event ON correction (event_id);
CREATE INDEX correction_by_batch ON correction (batch);

INSERT INTO correction (event_id, aspect, value, batch, operator, reason, given_nanos, reverses)
SELECT event_id, 'customer', json_quote(customer_id), 'instruction-' || instruction_id, operator, reason, given_nanos, NULL
FROM instruction ORDER BY instruction_id;

INSERT INTO row_seal SELECT 'correction', CAST(correction_id AS TEXT), otelbill_seal(correction_id, event_id, aspect, value, batch, operator, reason, given_nanos, reverses) FROM correction;
CREATE TRIGGER correction_is_sealed AFTER INSERT ON correction
BEGIN
    INSERT INTO row_seal VALUES ('correction', CAST(NEW.correction_id AS TEXT), otelbill_seal(NEW.correction_id, NEW.event_id, NEW.aspect, NEW.value, NEW.batch, NEW.operator, NEW.reason, NEW.given_nanos, NEW.reverses));
END;
CREATE TRIGGER correction_is_sealed_again AFTER UPDATE ON correction
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.correction_id AS TEXT), seal = otelbill_seal(NEW.correction_id, NEW.event_id, NEW.aspect, NEW.value, NEW.batch, NEW.operator, NEW.reason, NEW.given_nanos, NEW.reverses)
    WHERE table_name = 'correction' AND row_key = CAST(OLD.correction_id AS TEXT);
END;
CREATE TRIGGER correction_is_unsealed AFTER DELETE ON correction
BEGIN
    DELETE FROM row_seal WHERE table_name = 'correction' AND row_key = CAST(OLD.correction_id AS TEXT);
END;
