-- What retention has removed. The row of a pruned segment stays, with an empty body; bodies and claim keys are gone up to
-- the marks `pruned` and `pruned_keys` of high_water. A decision is never changed.
CREATE TABLE pruning (
    pruning_id    INTEGER PRIMARY KEY,
    segment_first INTEGER NOT NULL,
    segment_last  INTEGER NOT NULL,
    ended_min     INTEGER NOT NULL,   -- earliest and latest event time inside
    ended_max     INTEGER NOT NULL,
    record_count  INTEGER NOT NULL,
    digest        BLOB    NOT NULL,   -- SHA-256 over the rows of these segments, without their bodies
    floor_nanos   INTEGER NOT NULL,   -- events before it are final
    policy        TEXT    NOT NULL,
    operator      TEXT    NOT NULL,
    at_nanos      INTEGER NOT NULL
) STRICT;

-- What derived tables had from the segments of one step, kept because it cannot be summed again.
CREATE TABLE pruning_step (
    segment_last  INTEGER PRIMARY KEY,
    segment_first INTEGER NOT NULL,
    sums          BLOB    NOT NULL    -- JSON, deflated: table -> rows
) STRICT;

-- Claim keys of pruned events that have an id of their own: a retry of such an event may come with another time.
CREATE TABLE pruned_event (
    key        BLOB    PRIMARY KEY,
    segment_id INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER pruning_is_final BEFORE UPDATE ON pruning
BEGIN
    SELECT RAISE(ABORT, 'what was pruned is never changed');
END;
CREATE TRIGGER pruning_stays BEFORE DELETE ON pruning
BEGIN
    SELECT RAISE(ABORT, 'what was pruned is never deleted');
END;
CREATE TRIGGER pruning_step_is_final BEFORE UPDATE ON pruning_step
BEGIN
    SELECT RAISE(ABORT, 'a sum of pruned evidence is never changed');
END;
CREATE TRIGGER pruning_step_stays BEFORE DELETE ON pruning_step
BEGIN
    SELECT RAISE(ABORT, 'a sum of pruned evidence is never deleted');
END;
CREATE TRIGGER pruned_event_is_final BEFORE UPDATE ON pruned_event
BEGIN
    SELECT RAISE(ABORT, 'a pruned event is never changed');
END;
CREATE TRIGGER pruned_event_stays BEFORE DELETE ON pruned_event
BEGIN
    SELECT RAISE(ABORT, 'a pruned event is never deleted');
END;

INSERT INTO row_seal SELECT 'pruning', CAST(pruning_id AS TEXT), otelbill_seal(pruning_id, segment_first, segment_last, ended_min, ended_max, record_count, digest, floor_nanos, policy, operator, at_nanos) FROM pruning;
CREATE TRIGGER pruning_is_sealed AFTER INSERT ON pruning
BEGIN
    INSERT INTO row_seal VALUES ('pruning', CAST(NEW.pruning_id AS TEXT), otelbill_seal(NEW.pruning_id, NEW.segment_first, NEW.segment_last, NEW.ended_min, NEW.ended_max, NEW.record_count, NEW.digest, NEW.floor_nanos, NEW.policy, NEW.operator, NEW.at_nanos));
END;
CREATE TRIGGER pruning_is_sealed_again AFTER UPDATE ON pruning
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.pruning_id AS TEXT), seal = otelbill_seal(NEW.pruning_id, NEW.segment_first, NEW.segment_last, NEW.ended_min, NEW.ended_max, NEW.record_count, NEW.digest, NEW.floor_nanos, NEW.policy, NEW.operator, NEW.at_nanos)
    WHERE table_name = 'pruning' AND row_key = CAST(OLD.pruning_id AS TEXT);
END;
CREATE TRIGGER pruning_is_unsealed AFTER DELETE ON pruning
BEGIN
    DELETE FROM row_seal WHERE table_name = 'pruning' AND row_key = CAST(OLD.pruning_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'pruning_step', CAST(segment_last AS TEXT), otelbill_seal(segment_last, segment_first, sums) FROM pruning_step;
CREATE TRIGGER pruning_step_is_sealed AFTER INSERT ON pruning_step
BEGIN
    INSERT INTO row_seal VALUES ('pruning_step', CAST(NEW.segment_last AS TEXT), otelbill_seal(NEW.segment_last, NEW.segment_first, NEW.sums));
END;
CREATE TRIGGER pruning_step_is_sealed_again AFTER UPDATE ON pruning_step
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.segment_last AS TEXT), seal = otelbill_seal(NEW.segment_last, NEW.segment_first, NEW.sums)
    WHERE table_name = 'pruning_step' AND row_key = CAST(OLD.segment_last AS TEXT);
END;
CREATE TRIGGER pruning_step_is_unsealed AFTER DELETE ON pruning_step
BEGIN
    DELETE FROM row_seal WHERE table_name = 'pruning_step' AND row_key = CAST(OLD.segment_last AS TEXT);
END;

INSERT INTO row_seal SELECT 'pruned_event', CAST(hex(key) AS TEXT), otelbill_seal(key, segment_id) FROM pruned_event;
CREATE TRIGGER pruned_event_is_sealed AFTER INSERT ON pruned_event
BEGIN
    INSERT INTO row_seal VALUES ('pruned_event', CAST(hex(NEW.key) AS TEXT), otelbill_seal(NEW.key, NEW.segment_id));
END;
CREATE TRIGGER pruned_event_is_sealed_again AFTER UPDATE ON pruned_event
BEGIN
    UPDATE row_seal SET row_key = CAST(hex(NEW.key) AS TEXT), seal = otelbill_seal(NEW.key, NEW.segment_id)
    WHERE table_name = 'pruned_event' AND row_key = CAST(hex(OLD.key) AS TEXT);
END;
CREATE TRIGGER pruned_event_is_unsealed AFTER DELETE ON pruned_event
BEGIN
    DELETE FROM row_seal WHERE table_name = 'pruned_event' AND row_key = CAST(hex(OLD.key) AS TEXT);
END;
