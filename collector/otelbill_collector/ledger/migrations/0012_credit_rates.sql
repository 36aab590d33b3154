-- What usage costs in credits: how many one unit is. The table is folded from the first segment again.
DROP TABLE credit_usage;
CREATE TABLE credit_usage (
    customer_id     TEXT    NOT NULL,
    at_nanos        INTEGER NOT NULL,
    project_id      TEXT    NOT NULL,  -- '' stands for none, here and below
    step            TEXT    NOT NULL,
    model           TEXT    NOT NULL,
    unit            TEXT    NOT NULL,  -- '': a charge that is not the sum of its units' prices
    currency        TEXT    NOT NULL,
    price_attos     TEXT    NOT NULL,
    credits_micros  TEXT    NOT NULL,  -- millionths of a credit that one unit costs; 0 where its price is money
    quantity_micros TEXT    NOT NULL,
    charge_attos    TEXT    NOT NULL,
    PRIMARY KEY (customer_id, at_nanos, project_id, step, model, unit, currency, price_attos, credits_micros)
) STRICT, WITHOUT ROWID;
DELETE FROM high_water WHERE name = 'credit';
