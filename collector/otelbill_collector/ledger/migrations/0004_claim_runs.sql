-- Where the members of claim groups stand, as sorted runs: a commit appends one run, and runs of one level are merged.
-- claim_key holds what was written before; nothing is added to it.
CREATE TABLE claim_run (
    run_id  INTEGER PRIMARY KEY,
    level   INTEGER NOT NULL,  -- how often its entries were merged
    day_min INTEGER NOT NULL,  -- earliest and latest day, since 1970, of the spans' ends
    day_max INTEGER NOT NULL,
    entries INTEGER NOT NULL
) STRICT;
CREATE INDEX claim_run_by_day ON claim_run (day_max);

CREATE TABLE claim_chunk (
    chunk_id  INTEGER PRIMARY KEY,
    run_id    INTEGER NOT NULL REFERENCES claim_run (run_id),
    last_key  INTEGER NOT NULL,  -- the first 8 bytes of a claim key as a signed integer
    first_key INTEGER NOT NULL,
    body      BLOB NOT NULL      -- entries of 16 bytes by key: key, segment (4 bytes), position (4 bytes)
) STRICT;
CREATE INDEX claim_chunk_by_key ON claim_chunk (run_id, last_key, first_key);
