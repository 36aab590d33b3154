-- Seals: a digest beside each row that neither the chain of segments nor a fold can prove. See ledger/seals.py, which
-- also gives connections the function otelbill_seal.
CREATE TABLE row_seal (
    table_name TEXT NOT NULL,
    row_key    TEXT NOT NULL,
    seal       BLOB NOT NULL,
    PRIMARY KEY (table_name, row_key)
) STRICT, WITHOUT ROWID;

-- When this ledger was copied by `otelbill backup` and put back by `otelbill restore`; empty in one that never was.
CREATE TABLE copy_event (
    copy_event_id INTEGER PRIMARY KEY,
    kind          TEXT    NOT NULL,  -- backup or restore
    at_nanos      INTEGER NOT NULL
) STRICT;

INSERT INTO row_seal SELECT 'segment', CAST(segment_id AS TEXT), otelbill_seal(segment_id, booked_nanos, ended_min, ended_max, record_count, digest) FROM segment;
CREATE TRIGGER segment_is_sealed AFTER INSERT ON segment
BEGIN
    INSERT INTO row_seal VALUES ('segment', CAST(NEW.segment_id AS TEXT), otelbill_seal(NEW.segment_id, NEW.booked_nanos, NEW.ended_min, NEW.ended_max, NEW.record_count, NEW.digest));
END;
CREATE TRIGGER segment_is_sealed_again AFTER UPDATE ON segment
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.segment_id AS TEXT), seal = otelbill_seal(NEW.segment_id, NEW.booked_nanos, NEW.ended_min, NEW.ended_max, NEW.record_count, NEW.digest)
    WHERE table_name = 'segment' AND row_key = CAST(OLD.segment_id AS TEXT);
END;
CREATE TRIGGER segment_is_unsealed AFTER DELETE ON segment
BEGIN
    DELETE FROM row_seal WHERE table_name = 'segment' AND row_key = CAST(OLD.segment_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'due_group', CAST(due_nanos AS TEXT) || '/' || day || '/' || hex(key), otelbill_seal(due_nanos, day, key) FROM due_group;
CREATE TRIGGER due_group_is_sealed AFTER INSERT ON due_group
BEGIN
    INSERT INTO row_seal VALUES ('due_group', CAST(NEW.due_nanos AS TEXT) || '/' || NEW.day || '/' || hex(NEW.key), otelbill_seal(NEW.due_nanos, NEW.day, NEW.key));
END;
CREATE TRIGGER due_group_is_sealed_again AFTER UPDATE ON due_group
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.due_nanos AS TEXT) || '/' || NEW.day || '/' || hex(NEW.key), seal = otelbill_seal(NEW.due_nanos, NEW.day, NEW.key)
    WHERE table_name = 'due_group' AND row_key = CAST(OLD.due_nanos AS TEXT) || '/' || OLD.day || '/' || hex(OLD.key);
END;
CREATE TRIGGER due_group_is_unsealed AFTER DELETE ON due_group
BEGIN
    DELETE FROM row_seal WHERE table_name = 'due_group' AND row_key = CAST(OLD.due_nanos AS TEXT) || '/' || OLD.day || '/' || hex(OLD.key);
END;

INSERT INTO row_seal SELECT 'claim_run', CAST(run_id AS TEXT), otelbill_seal(run_id, level, day_min, day_max, entries) FROM claim_run;
CREATE TRIGGER claim_run_is_sealed AFTER INSERT ON claim_run
BEGIN
    INSERT INTO row_seal VALUES ('claim_run', CAST(NEW.run_id AS TEXT), otelbill_seal(NEW.run_id, NEW.level, NEW.day_min, NEW.day_max, NEW.entries));
END;
CREATE TRIGGER claim_run_is_sealed_again AFTER UPDATE ON claim_run
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.run_id AS TEXT), seal = otelbill_seal(NEW.run_id, NEW.level, NEW.day_min, NEW.day_max, NEW.entries)
    WHERE table_name = 'claim_run' AND row_key = CAST(OLD.run_id AS TEXT);
END;
CREATE TRIGGER claim_run_is_unsealed AFTER DELETE ON claim_run
BEGIN
    DELETE FROM row_seal WHERE table_name = 'claim_run' AND row_key = CAST(OLD.run_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'instruction', CAST(instruction_id AS TEXT), otelbill_seal(instruction_id, event_id, customer_id, operator, reason, given_nanos) FROM instruction;
CREATE TRIGGER instruction_is_sealed AFTER INSERT ON instruction
BEGIN
    INSERT INTO row_seal VALUES ('instruction', CAST(NEW.instruction_id AS TEXT), otelbill_seal(NEW.instruction_id, NEW.event_id, NEW.customer_id, NEW.operator, NEW.reason, NEW.given_nanos));
END;
CREATE TRIGGER instruction_is_sealed_again AFTER UPDATE ON instruction
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.instruction_id AS TEXT), seal = otelbill_seal(NEW.instruction_id, NEW.event_id, NEW.customer_id, NEW.operator, NEW.reason, NEW.given_nanos)
    WHERE table_name = 'instruction' AND row_key = CAST(OLD.instruction_id AS TEXT);
END;
CREATE TRIGGER instruction_is_unsealed AFTER DELETE ON instruction
BEGIN
    DELETE FROM row_seal WHERE table_name = 'instruction' AND row_key = CAST(OLD.instruction_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'resolution', CAST(resolution_id AS TEXT), otelbill_seal(resolution_id, event_id, quantities, operator, reason, given_nanos) FROM resolution;
CREATE TRIGGER resolution_is_sealed AFTER INSERT ON resolution
BEGIN
    INSERT INTO row_seal VALUES ('resolution', CAST(NEW.resolution_id AS TEXT), otelbill_seal(NEW.resolution_id, NEW.event_id, NEW.quantities, NEW.operator, NEW.reason, NEW.given_nanos));
END;
CREATE TRIGGER resolution_is_sealed_again AFTER UPDATE ON resolution
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.resolution_id AS TEXT), seal = otelbill_seal(NEW.resolution_id, NEW.event_id, NEW.quantities, NEW.operator, NEW.reason, NEW.given_nanos)
    WHERE table_name = 'resolution' AND row_key = CAST(OLD.resolution_id AS TEXT);
END;
CREATE TRIGGER resolution_is_unsealed AFTER DELETE ON resolution
BEGIN
    DELETE FROM row_seal WHERE table_name = 'resolution' AND row_key = CAST(OLD.resolution_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'dead_letter', CAST(letter_id AS TEXT), otelbill_seal(letter_id, received_nanos, code, field, value, hint, trace_id, span_id, body, replayed_nanos) FROM dead_letter;
CREATE TRIGGER dead_letter_is_sealed AFTER INSERT ON dead_letter
BEGIN
    INSERT INTO row_seal VALUES ('dead_letter', CAST(NEW.letter_id AS TEXT), otelbill_seal(NEW.letter_id, NEW.received_nanos, NEW.code, NEW.field, NEW.value, NEW.hint, NEW.trace_id, NEW.span_id, NEW.body, NEW.replayed_nanos));
END;
CREATE TRIGGER dead_letter_is_sealed_again AFTER UPDATE ON dead_letter
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.letter_id AS TEXT), seal = otelbill_seal(NEW.letter_id, NEW.received_nanos, NEW.code, NEW.field, NEW.value, NEW.hint, NEW.trace_id, NEW.span_id, NEW.body, NEW.replayed_nanos)
    WHERE table_name = 'dead_letter' AND row_key = CAST(OLD.letter_id AS TEXT);
END;
CREATE TRIGGER dead_letter_is_unsealed AFTER DELETE ON dead_letter
BEGIN
    DELETE FROM row_seal WHERE table_name = 'dead_letter' AND row_key = CAST(OLD.letter_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'high_water', CAST(name AS TEXT), otelbill_seal(name, segment_id) FROM high_water;
CREATE TRIGGER high_water_is_sealed AFTER INSERT ON high_water
BEGIN
    INSERT INTO row_seal VALUES ('high_water', CAST(NEW.name AS TEXT), otelbill_seal(NEW.name, NEW.segment_id));
END;
CREATE TRIGGER high_water_is_sealed_again AFTER UPDATE ON high_water
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.name AS TEXT), seal = otelbill_seal(NEW.name, NEW.segment_id)
    WHERE table_name = 'high_water' AND row_key = CAST(OLD.name AS TEXT);
END;
CREATE TRIGGER high_water_is_unsealed AFTER DELETE ON high_water
BEGIN
    DELETE FROM row_seal WHERE table_name = 'high_water' AND row_key = CAST(OLD.name AS TEXT);
END;

INSERT INTO row_seal SELECT 'copy_event', CAST(copy_event_id AS TEXT), otelbill_seal(copy_event_id, kind, at_nanos) FROM copy_event;
CREATE TRIGGER copy_event_is_sealed AFTER INSERT ON copy_event
BEGIN
    INSERT INTO row_seal VALUES ('copy_event', CAST(NEW.copy_event_id AS TEXT), otelbill_seal(NEW.copy_event_id, NEW.kind, NEW.at_nanos));
END;
CREATE TRIGGER copy_event_is_sealed_again AFTER UPDATE ON copy_event
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.copy_event_id AS TEXT), seal = otelbill_seal(NEW.copy_event_id, NEW.kind, NEW.at_nanos)
    WHERE table_name = 'copy_event' AND row_key = CAST(OLD.copy_event_id AS TEXT);
END;
CREATE TRIGGER copy_event_is_unsealed AFTER DELETE ON copy_event
BEGIN
    DELETE FROM row_seal WHERE table_name = 'copy_event' AND row_key = CAST(OLD.copy_event_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'stripe_lane', CAST(lane_id AS TEXT), otelbill_seal(lane_id, meter, customer_id, quantum, carry, booked, settled, confirmed) FROM stripe_lane;
CREATE TRIGGER stripe_lane_is_sealed AFTER INSERT ON stripe_lane
BEGIN
    INSERT INTO row_seal VALUES ('stripe_lane', CAST(NEW.lane_id AS TEXT), otelbill_seal(NEW.lane_id, NEW.meter, NEW.customer_id, NEW.quantum, NEW.carry, NEW.booked, NEW.settled, NEW.confirmed));
END;
CREATE TRIGGER stripe_lane_is_sealed_again AFTER UPDATE ON stripe_lane
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.lane_id AS TEXT), seal = otelbill_seal(NEW.lane_id, NEW.meter, NEW.customer_id, NEW.quantum, NEW.carry, NEW.booked, NEW.settled, NEW.confirmed)
    WHERE table_name = 'stripe_lane' AND row_key = CAST(OLD.lane_id AS TEXT);
END;
CREATE TRIGGER stripe_lane_is_unsealed AFTER DELETE ON stripe_lane
BEGIN
    DELETE FROM row_seal WHERE table_name = 'stripe_lane' AND row_key = CAST(OLD.lane_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'stripe_window', CAST(lane_id AS TEXT) || '/' || start_nanos || '/' || length_nanos, otelbill_seal(lane_id, start_nanos, length_nanos, amount, settled, dirty, last_event_nanos, closed_nanos) FROM stripe_window;
CREATE TRIGGER stripe_window_is_sealed AFTER INSERT ON stripe_window
BEGIN
    INSERT INTO row_seal VALUES ('stripe_window', CAST(NEW.lane_id AS TEXT) || '/' || NEW.start_nanos || '/' || NEW.length_nanos, otelbill_seal(NEW.lane_id, NEW.start_nanos, NEW.length_nanos, NEW.amount, NEW.settled, NEW.dirty, NEW.last_event_nanos, NEW.closed_nanos));
END;
CREATE TRIGGER stripe_window_is_sealed_again AFTER UPDATE ON stripe_window
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.lane_id AS TEXT) || '/' || NEW.start_nanos || '/' || NEW.length_nanos, seal = otelbill_seal(NEW.lane_id, NEW.start_nanos, NEW.length_nanos, NEW.amount, NEW.settled, NEW.dirty, NEW.last_event_nanos, NEW.closed_nanos)
    WHERE table_name = 'stripe_window' AND row_key = CAST(OLD.lane_id AS TEXT) || '/' || OLD.start_nanos || '/' || OLD.length_nanos;
END;
CREATE TRIGGER stripe_window_is_unsealed AFTER DELETE ON stripe_window
BEGIN
    DELETE FROM row_seal WHERE table_name = 'stripe_window' AND row_key = CAST(OLD.lane_id AS TEXT) || '/' || OLD.start_nanos || '/' || OLD.length_nanos;
END;

INSERT INTO row_seal SELECT 'stripe_intent', CAST(intent_id AS TEXT), otelbill_seal(intent_id, identifier, lane_id, account, livemode, start_nanos, length_nanos, revision, kind, amount, carry_before, carry_after, value, stamp_seconds, made_nanos, state, stripe_customer_id, attempts, attempt_group, doubt_nanos, last_sent_nanos, due_nanos, answer_status, answer_code, answer_message, request_id, superseded_by) FROM stripe_intent;
CREATE TRIGGER stripe_intent_is_sealed AFTER INSERT ON stripe_intent
BEGIN
    INSERT INTO row_seal VALUES ('stripe_intent', CAST(NEW.intent_id AS TEXT), otelbill_seal(NEW.intent_id, NEW.identifier, NEW.lane_id, NEW.account, NEW.livemode, NEW.start_nanos, NEW.length_nanos, NEW.revision, NEW.kind, NEW.amount, NEW.carry_before, NEW.carry_after, NEW.value, NEW.stamp_seconds, NEW.made_nanos, NEW.state, NEW.stripe_customer_id, NEW.attempts, NEW.attempt_group, NEW.doubt_nanos, NEW.last_sent_nanos, NEW.due_nanos, NEW.answer_status, NEW.answer_code, NEW.answer_message, NEW.request_id, NEW.superseded_by));
END;
CREATE TRIGGER stripe_intent_is_sealed_again AFTER UPDATE ON stripe_intent
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.intent_id AS TEXT), seal = otelbill_seal(NEW.intent_id, NEW.identifier, NEW.lane_id, NEW.account, NEW.livemode, NEW.start_nanos, NEW.length_nanos, NEW.revision, NEW.kind, NEW.amount, NEW.carry_before, NEW.carry_after, NEW.value, NEW.stamp_seconds, NEW.made_nanos, NEW.state, NEW.stripe_customer_id, NEW.attempts, NEW.attempt_group, NEW.doubt_nanos, NEW.last_sent_nanos, NEW.due_nanos, NEW.answer_status, NEW.answer_code, NEW.answer_message, NEW.request_id, NEW.superseded_by)
    WHERE table_name = 'stripe_intent' AND row_key = CAST(OLD.intent_id AS TEXT);
END;
CREATE TRIGGER stripe_intent_is_unsealed AFTER DELETE ON stripe_intent
BEGIN
    DELETE FROM row_seal WHERE table_name = 'stripe_intent' AND row_key = CAST(OLD.intent_id AS TEXT);
END;

INSERT INTO row_seal SELECT 'stripe_stop', CAST(scope AS TEXT) || '/' || name, otelbill_seal(scope, name, code, message, since_nanos, retry_nanos) FROM stripe_stop;
CREATE TRIGGER stripe_stop_is_sealed AFTER INSERT ON stripe_stop
BEGIN
    INSERT INTO row_seal VALUES ('stripe_stop', CAST(NEW.scope AS TEXT) || '/' || NEW.name, otelbill_seal(NEW.scope, NEW.name, NEW.code, NEW.message, NEW.since_nanos, NEW.retry_nanos));
END;
CREATE TRIGGER stripe_stop_is_sealed_again AFTER UPDATE ON stripe_stop
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.scope AS TEXT) || '/' || NEW.name, seal = otelbill_seal(NEW.scope, NEW.name, NEW.code, NEW.message, NEW.since_nanos, NEW.retry_nanos)
    WHERE table_name = 'stripe_stop' AND row_key = CAST(OLD.scope AS TEXT) || '/' || OLD.name;
END;
CREATE TRIGGER stripe_stop_is_unsealed AFTER DELETE ON stripe_stop
BEGIN
    DELETE FROM row_seal WHERE table_name = 'stripe_stop' AND row_key = CAST(OLD.scope AS TEXT) || '/' || OLD.name;
END;
