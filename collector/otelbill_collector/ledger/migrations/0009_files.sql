-- Files beside the ledger that are made of segments: Parquet for queries, and where ids stand. All of them can be
-- written again from the segments; a row is added in the transaction that moves the mark `parquet`.
CREATE TABLE derived_file (
    name          TEXT    PRIMARY KEY,  -- below the folder `parquet` beside the ledger
    kind          TEXT    NOT NULL,     -- records or ids
    day           INTEGER NOT NULL,     -- days since 1970 of its records' event time; -1 where it holds several
    level         INTEGER NOT NULL,     -- how often its content was merged
    segment_first INTEGER NOT NULL,     -- the segments it was made of, and perhaps others, stand between these
    segment_last  INTEGER NOT NULL,
    entries       INTEGER NOT NULL,     -- records, or ids
    size_bytes    INTEGER NOT NULL,
    digest        BLOB    NOT NULL      -- SHA-256 of the file
) STRICT, WITHOUT ROWID;

INSERT INTO row_seal SELECT 'derived_file', CAST(name AS TEXT), otelbill_seal(name, kind, day, level, segment_first, segment_last, entries, size_bytes, digest) FROM derived_file;
CREATE TRIGGER derived_file_is_sealed AFTER INSERT ON derived_file
BEGIN
    INSERT INTO row_seal VALUES ('derived_file', CAST(NEW.name AS TEXT), otelbill_seal(NEW.name, NEW.kind, NEW.day, NEW.level, NEW.segment_first, NEW.segment_last, NEW.entries, NEW.size_bytes, NEW.digest));
END;
CREATE TRIGGER derived_file_is_sealed_again AFTER UPDATE ON derived_file
BEGIN
    UPDATE row_seal SET row_key = CAST(NEW.name AS TEXT), seal = otelbill_seal(NEW.name, NEW.kind, NEW.day, NEW.level, NEW.segment_first, NEW.segment_last, NEW.entries, NEW.size_bytes, NEW.digest)
    WHERE table_name = 'derived_file' AND row_key = CAST(OLD.name AS TEXT);
END;
CREATE TRIGGER derived_file_is_unsealed AFTER DELETE ON derived_file
BEGIN
    DELETE FROM row_seal WHERE table_name = 'derived_file' AND row_key = CAST(OLD.name AS TEXT);
END;
