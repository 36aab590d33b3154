-- Invoices of closed periods, frozen: content is the canonical JSON whose digest is the invoice's id. Never changed.
-- A period is closed while an invoice of it stands that is not voided.
CREATE TABLE invoice (
    invoice_number INTEGER PRIMARY KEY,  -- the order in which they were made
    invoice_id     TEXT    NOT NULL UNIQUE,
    customer_id    TEXT    NOT NULL,
    start_nanos    INTEGER NOT NULL,     -- the period is [start, end)
    end_nanos      INTEGER NOT NULL,
    mark_segment   INTEGER NOT NULL,     -- the last segment that it has seen
    content        TEXT    NOT NULL,
    made_nanos     INTEGER NOT NULL
) STRICT;
CREATE INDEX invoice_by_customer ON invoice (customer_id, start_nanos);

-- What became of an invoice: draft, approved or voided; the latest row counts.
CREATE TABLE invoice_event (
    invoice_event_id INTEGER PRIMARY KEY,
    invoice_id       TEXT    NOT NULL REFERENCES invoice (invoice_id),
    state            TEXT    NOT NULL,
    operator         TEXT    NOT NULL,
    reason           TEXT    NOT NULL,
    at_nanos         INTEGER NOT NULL
) STRICT;
CREATE INDEX invoice_event_by_invoice ON invoice_event (invoice_id);

CREATE TRIGGER invoice_is_final BEFORE UPDATE ON invoice
BEGIN
    SELECT RAISE(ABORT, 'an invoice is never changed');
END;
CREATE TRIGGER invoice_stays BEFORE DELETE ON invoice
BEGIN
    SELECT RAISE(ABORT, 'an invoice is never deleted');
END;
CREATE TRIGGER invoice_event_is_final BEFORE UPDATE ON invoice_event
BEGIN
    SELECT RAISE(ABORT, 'what became of an invoice is never changed');
END;
CREATE TRIGGER invoice_event_stays BEFORE DELETE ON invoice_event
BEGIN
    SELECT RAISE(ABORT, 'what became of an invoice is never deleted');
END;

INSERT INTO row_seal SELECT 'invoice', CAST(invoice_number AS TEXT), otelbill_seal(invoice_number, invoice_id, customer_id, start_nanos, end_nanos, mark_segment, content, made_nanos) FROM invoice;
CREATE TRIGGER invoice_is_sealed AFTER INSERT ON invoice
BEGIN
    INSERT INTO row_seal VALUES ('invoice', CAST(NEW.invoice_number AS TEXT), otelbill_seal(NEW.invoice_number, NEW.invoice_id, NEW.customer_id, NEW.start_nanos, NEW.end_nanos, NEW.mark_segment, NEW.content, NEW.made_nanos));
END;
CREATE TRIGGER invoice_is_sealed_again AFTER UPDATE ON invoice
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.invoice_number AS TEXT), seal = otelbill_seal(NEW.invoice_number, NEW.invoice_id, NEW.customer_id, NEW.start_nanos, NEW.end_nanos, NEW.mark_segment, NEW.content, NEW.made_nanos)
    WHERE table_name = 'invoice' AND row_key = CAST(OLD.invoice_number AS TEXT);
END;
CREATE TRIGGER invoice_is_unsealed AFTER DELETE ON invoice
BEGIN
    DELETE FROM row_seal WHERE table_name = 'invoice' AND row_key = CAST(OLD.invoice_number AS TEXT);
END;

INSERT INTO row_seal SELECT 'invoice_event', CAST(invoice_event_id AS TEXT), otelbill_seal(invoice_event_id, invoice_id, state, operator, reason, at_nanos) FROM invoice_event;
CREATE TRIGGER invoice_event_is_sealed AFTER INSERT ON invoice_event
BEGIN
    INSERT INTO row_seal VALUES ('invoice_event', CAST(NEW.invoice_event_id AS TEXT), otelbill_seal(NEW.invoice_event_id, NEW.invoice_id, NEW.state, NEW.operator, NEW.reason, NEW.at_nanos));
END;
CREATE TRIGGER invoice_event_is_sealed_again AFTER UPDATE ON invoice_event
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.invoice_event_id AS TEXT), seal = otelbill_seal(NEW.invoice_event_id, NEW.invoice_id, NEW.state, NEW.operator, NEW.reason, NEW.at_nanos)
    WHERE table_name = 'invoice_event' AND row_key = CAST(OLD.invoice_event_id AS TEXT);
END;
CREATE TRIGGER invoice_event_is_unsealed AFTER DELETE ON invoice_event
BEGIN
    DELETE FROM row_seal WHERE table_name = 'invoice_event' AND row_key = CAST(OLD.invoice_event_id AS TEXT);
END;
