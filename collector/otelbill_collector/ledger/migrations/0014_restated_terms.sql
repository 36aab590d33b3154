-- Terms (fees, discounts, minimums, commitments) of a closed period as `otelbill rerate --terms` corrected them, in
-- place of those on its invoice. Append-only; the latest row of a period counts, unless the period was closed anew since.
CREATE TABLE restated_terms (
    restated_id INTEGER PRIMARY KEY,
    customer_id TEXT    NOT NULL,
    start_nanos INTEGER NOT NULL,  -- the period is [start, end)
    end_nanos   INTEGER NOT NULL,
    terms       TEXT    NOT NULL,  -- canonical JSON
    operator    TEXT    NOT NULL,
    reason      TEXT    NOT NULL,
    given_nanos INTEGER NOT NULL
) STRICT;
CREATE INDEX restated_terms_by_customer ON restated_terms (customer_id);

CREATE TRIGGER restated_terms_are_final BEFORE UPDATE ON restated_terms
BEGIN
    SELECT RAISE(ABORT, 'restated terms are never changed');
END;
CREATE TRIGGER restated_terms_stay BEFORE DELETE ON restated_terms
BEGIN
    SELECT RAISE(ABORT, 'restated terms are never deleted');
END;

INSERT INTO row_seal SELECT 'restated_terms', CAST(restated_id AS TEXT), otelbill_seal(restated_id, customer_id, start_nanos, end_nanos, terms, operator, reason, given_nanos) FROM restated_terms;
CREATE TRIGGER restated_terms_is_sealed AFTER INSERT ON restated_terms
BEGIN
    INSERT INTO row_seal VALUES ('restated_terms', CAST(NEW.restated_id AS TEXT), otelbill_seal(NEW.restated_id, NEW.customer_id, NEW.start_nanos, NEW.end_nanos, NEW.terms, NEW.operator, NEW.reason, NEW.given_nanos));
END;
CREATE TRIGGER restated_terms_is_sealed_again AFTER UPDATE ON restated_terms
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.restated_id AS TEXT), seal = otelbill_seal(NEW.restated_id, NEW.customer_id, NEW.start_nanos, NEW.end_nanos, NEW.terms, NEW.operator, NEW.reason, NEW.given_nanos)
    WHERE table_name = 'restated_terms' AND row_key = CAST(OLD.restated_id AS TEXT);
END;
CREATE TRIGGER restated_terms_is_unsealed AFTER DELETE ON restated_terms
BEGIN
    DELETE FROM row_seal WHERE table_name = 'restated_terms' AND row_key = CAST(OLD.restated_id AS TEXT);
END;
