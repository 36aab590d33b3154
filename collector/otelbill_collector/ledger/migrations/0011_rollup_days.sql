-- The sums of `rollup` by day, folded with it: a customer's month is a few rows that stand together. Both are folded
-- from the first segment again, which is how the days come into a ledger that has hours.
CREATE TABLE rollup_day (
    customer_id  TEXT NOT NULL,
    day_nanos    INTEGER NOT NULL,
    project_id   TEXT NOT NULL,
    step         TEXT NOT NULL,
    provider     TEXT NOT NULL,
    model        TEXT NOT NULL,
    currency     TEXT NOT NULL,
    rating       TEXT NOT NULL,
    usage_source TEXT NOT NULL,
    events       INTEGER NOT NULL,
    quantities   TEXT NOT NULL,
    cost_attos   TEXT NOT NULL,
    charge_attos TEXT NOT NULL,
    costless     INTEGER NOT NULL,
    PRIMARY KEY (customer_id, day_nanos, project_id, step, provider, model, currency, rating, usage_source)
) STRICT, WITHOUT ROWID;
DELETE FROM rollup;
DELETE FROM high_water WHERE name = 'rollup';
