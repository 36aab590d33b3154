-- Credits: what was granted, what was voided, and every movement of it in double entry. See docs/credits.md.
CREATE TABLE credit_grant (
    grant_id     TEXT PRIMARY KEY,   -- digest of what is granted
    customer_id  TEXT    NOT NULL,
    measure      TEXT    NOT NULL,   -- money or units
    asset        TEXT    NOT NULL,   -- the currency, or the unit
    amount       TEXT    NOT NULL,   -- attos, or millionths of the unit
    origin       TEXT    NOT NULL,   -- promotional or paid
    priority     INTEGER NOT NULL,
    start_nanos  INTEGER NOT NULL,
    expiry_nanos INTEGER,
    project_id   TEXT,               -- the scope; NULL is any
    step         TEXT,
    model        TEXT,
    unit         TEXT,
    rollover     TEXT,               -- JSON
    reason       TEXT    NOT NULL,
    operator     TEXT    NOT NULL,
    given_nanos  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX credit_grant_by_customer ON credit_grant (customer_id);

CREATE TABLE credit_void (
    grant_id    TEXT PRIMARY KEY,
    at_nanos    INTEGER NOT NULL,
    reason      TEXT    NOT NULL,
    operator    TEXT    NOT NULL,
    given_nanos INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Never updated: what is corrected is named by the transfer that corrects it.
CREATE TABLE credit_transfer (
    transfer_id  INTEGER PRIMARY KEY,
    kind         TEXT    NOT NULL,   -- grant, burn, expire, void or rollover
    grant_id     TEXT    NOT NULL,
    at_nanos     INTEGER NOT NULL,   -- when it takes effect: event time
    project_id   TEXT    NOT NULL,   -- of the usage that burned it; '' stands for none
    step         TEXT    NOT NULL,
    model        TEXT    NOT NULL,
    unit         TEXT    NOT NULL,
    currency     TEXT    NOT NULL,   -- of the charge that it pays
    customer_id  TEXT    NOT NULL,
    source       TEXT    NOT NULL,   -- account that it is taken from
    target       TEXT    NOT NULL,   -- account that it is added to
    asset        TEXT    NOT NULL,
    amount       TEXT    NOT NULL,
    value_attos  TEXT    NOT NULL,   -- what it pays of a charge
    booked_nanos INTEGER NOT NULL,
    corrects     INTEGER             -- an earlier transfer of the same kind, grant, time and usage
) STRICT;
CREATE INDEX credit_transfer_by_customer ON credit_transfer (customer_id);

-- Charges of whole billing periods, which no event carries, that credits may pay for; negative ones take back.
CREATE TABLE credit_charge (
    charge_id    INTEGER PRIMARY KEY,
    customer_id  TEXT    NOT NULL,
    at_nanos     INTEGER NOT NULL,
    project_id   TEXT    NOT NULL,
    step         TEXT    NOT NULL,
    model        TEXT    NOT NULL,
    unit         TEXT    NOT NULL,
    currency     TEXT    NOT NULL,
    charge_attos TEXT    NOT NULL,
    origin       TEXT    NOT NULL,   -- the invoice that has it
    booked_nanos INTEGER NOT NULL
) STRICT;
CREATE INDEX credit_charge_by_customer ON credit_charge (customer_id);

-- Up to when each customer's transfers are posted, and whether usage or grants have changed since.
CREATE TABLE credit_post (
    customer_id TEXT PRIMARY KEY,
    until_nanos INTEGER NOT NULL,
    next_nanos  INTEGER,             -- when time alone changes something
    dirty       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Rated usage by quarter of an hour, unit and price; folded from segments, derived again by `otelbill replay`.
CREATE TABLE credit_usage (
    customer_id     TEXT    NOT NULL,
    at_nanos        INTEGER NOT NULL,
    project_id      TEXT    NOT NULL,  -- '' stands for none, here and below
    step            TEXT    NOT NULL,
    model           TEXT    NOT NULL,
    unit            TEXT    NOT NULL,  -- '': a charge that is not the sum of its units' prices
    currency        TEXT    NOT NULL,
    price_attos     TEXT    NOT NULL,
    quantity_micros TEXT    NOT NULL,
    charge_attos    TEXT    NOT NULL,
    PRIMARY KEY (customer_id, at_nanos, project_id, step, model, unit, currency, price_attos)
) STRICT, WITHOUT ROWID;

INSERT INTO row_seal SELECT 'credit_grant', CAST(grant_id AS TEXT), otelbill_seal(grant_id, customer_id, measure, asset, amount, origin, priority, start_nanos, expiry_nanos, project_id, step, model, unit, rollover, reason, operator, given_nanos) FROM credit_grant;
CREATE TRIGGER credit_grant_is_sealed AFTER INSERT ON credit_grant
BEGIN
    INSERT INTO row_seal VALUES ('credit_grant', CAST(NEW.grant_id AS TEXT), otelbill_seal(NEW.grant_id, NEW.customer_id, NEW.measure, NEW.asset, NEW.amount, NEW.origin, NEW.priority, NEW.start_nanos, NEW.expiry_nanos, NEW.project_id, NEW.step, NEW.model, NEW.unit, NEW.rollover, NEW.reason, NEW.operator, NEW.given_nanos));
END;
CREATE TRIGGER credit_grant_is_sealed_again AFTER UPDATE ON credit_grant
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.grant_id AS TEXT), seal = otelbill_seal(NEW.grant_id, NEW.customer_id, NEW.measure, NEW.asset, NEW.amount, NEW.origin, NEW.priority, NEW.start_nanos, NEW.expiry_nanos, NEW.project_id, NEW.step, NEW.model, NEW.unit, NEW.rollover, NEW.reason, NEW.operator, NEW.given_nanos)
    WHERE table_name = 'credit_grant' AND row_key = CAST(OLD.grant_id AS TEXT);
END;
CREATE TRIGGER credit_grant_is_unsealed AFTER DELETE ON credit_grant
BEGIN
    DELETE FROM row_seal WHERE table_name = 'credit_grant' AND row_key = CAST(OLD.grant_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'credit_void', CAST(grant_id AS TEXT), otelbill_seal(grant_id, at_nanos, reason, operator, given_nanos) FROM credit_void;
CREATE TRIGGER credit_void_is_sealed AFTER INSERT ON credit_void
BEGIN
    INSERT INTO row_seal VALUES ('credit_void', CAST(NEW.grant_id AS TEXT), otelbill_seal(NEW.grant_id, NEW.at_nanos, NEW.reason, NEW.operator, NEW.given_nanos));
END;
CREATE TRIGGER credit_void_is_sealed_again AFTER UPDATE ON credit_void
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.grant_id AS TEXT), seal = otelbill_seal(NEW.grant_id, NEW.at_nanos, NEW.reason, NEW.operator, NEW.given_nanos)
    WHERE table_name = 'credit_void' AND row_key = CAST(OLD.grant_id AS TEXT);
END;
CREATE TRIGGER credit_void_is_unsealed AFTER DELETE ON credit_void
BEGIN
    DELETE FROM row_seal WHERE table_name = 'credit_void' AND row_key = CAST(OLD.grant_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'credit_transfer', CAST(transfer_id AS TEXT), otelbill_seal(transfer_id, kind, grant_id, at_nanos, project_id, step, model, unit, currency, customer_id, source, target, asset, amount, value_attos, booked_nanos, corrects) FROM credit_transfer;
CREATE TRIGGER credit_transfer_is_sealed AFTER INSERT ON credit_transfer
BEGIN
    INSERT INTO row_seal VALUES ('credit_transfer', CAST(NEW.transfer_id AS TEXT), otelbill_seal(NEW.transfer_id, NEW.kind, NEW.grant_id, NEW.at_nanos, NEW.project_id, NEW.step, NEW.model, NEW.unit, NEW.currency, NEW.customer_id, NEW.source, NEW.target, NEW.asset, NEW.amount, NEW.value_attos, NEW.booked_nanos, NEW.corrects));
END;
CREATE TRIGGER credit_transfer_is_sealed_again AFTER UPDATE ON credit_transfer
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.transfer_id AS TEXT), seal = otelbill_seal(NEW.transfer_id, NEW.kind, NEW.grant_id, NEW.at_nanos, NEW.project_id, NEW.step, NEW.model, NEW.unit, NEW.currency, NEW.customer_id, NEW.source, NEW.target, NEW.asset, NEW.amount, NEW.value_attos, NEW.booked_nanos, NEW.corrects)
    WHERE table_name = 'credit_transfer' AND row_key = CAST(OLD.transfer_id AS TEXT);
END;
CREATE TRIGGER credit_transfer_is_unsealed AFTER DELETE ON credit_transfer
BEGIN
    DELETE FROM row_seal WHERE table_name = 'credit_transfer' AND row_key = CAST(OLD.transfer_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'credit_charge', CAST(charge_id AS TEXT), otelbill_seal(charge_id, customer_id, at_nanos, project_id, step, model, unit, currency, charge_attos, origin, booked_nanos) FROM credit_charge;
CREATE TRIGGER credit_charge_is_sealed AFTER INSERT ON credit_charge
BEGIN
    INSERT INTO row_seal VALUES ('credit_charge', CAST(NEW.charge_id AS TEXT), otelbill_seal(NEW.charge_id, NEW.customer_id, NEW.at_nanos, NEW.project_id, NEW.step, NEW.model, NEW.unit, NEW.currency, NEW.charge_attos, NEW.origin, NEW.booked_nanos));
END;
CREATE TRIGGER credit_charge_is_sealed_again AFTER UPDATE ON credit_charge
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.charge_id AS TEXT), seal = otelbill_seal(NEW.charge_id, NEW.customer_id, NEW.at_nanos, NEW.project_id, NEW.step, NEW.model, NEW.unit, NEW.currency, NEW.charge_attos, NEW.origin, NEW.booked_nanos)
    WHERE table_name = 'credit_charge' AND row_key = CAST(OLD.charge_id AS TEXT);
END;
CREATE TRIGGER credit_charge_is_unsealed AFTER DELETE ON credit_charge
BEGIN
    DELETE FROM row_seal WHERE table_name = 'credit_charge' AND row_key = CAST(OLD.charge_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'credit_post', CAST(customer_id AS TEXT), otelbill_seal(customer_id, until_nanos, next_nanos, dirty) FROM credit_post;
CREATE TRIGGER credit_post_is_sealed AFTER INSERT ON credit_post
BEGIN
    INSERT INTO row_seal VALUES ('credit_post', CAST(NEW.customer_id AS TEXT), otelbill_seal(NEW.customer_id, NEW.until_nanos, NEW.next_nanos, NEW.dirty));
END;
CREATE TRIGGER credit_post_is_sealed_again AFTER UPDATE ON credit_post
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.customer_id AS TEXT), seal = otelbill_seal(NEW.customer_id, NEW.until_nanos, NEW.next_nanos, NEW.dirty)
    WHERE table_name = 'credit_post' AND row_key = CAST(OLD.customer_id AS TEXT);
END;
CREATE TRIGGER credit_post_is_unsealed AFTER DELETE ON credit_post
BEGIN
    DELETE FROM row_seal WHERE table_name = 'credit_post' AND row_key = CAST(OLD.customer_id AS TEXT);
END;
