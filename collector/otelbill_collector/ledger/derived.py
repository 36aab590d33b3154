"""Derived tables checked against the segments: claim keys, rollups, Stripe windows. Reads the ledger only.

Folds run in a scratch database beside the ledger (a temporary file of SQLite), which sees the segments up to the mark
of the table in question: the very functions that filled a table fill it again.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS, format_instant
from otelbill_collector.domain.usage import Candidate
from otelbill_collector.ledger import compaction, credit_usage, meters, openings, rollups
from otelbill_collector.ledger.claim_runs import Entries, make_entries, read_entries
from otelbill_collector.ledger.evidence import find_segment_touched
from otelbill_collector.ledger.findings import FINDINGS_MAX, REPLAY, RESTORE, Finding, Progress, Report, Touched
from otelbill_collector.ledger.journal import find_high_water
from otelbill_collector.ledger.meters import Metering
from otelbill_collector.ledger.pruned_sums import SUMMED_WINDOWS, list_steps, restore_fold
from otelbill_collector.ledger.rollups import FACT_DIMENSIONS
from otelbill_collector.ledger.schema import migrate_schema
from otelbill_collector.ledger.segments import build_record
from otelbill_collector.ledger.tombstones import FILES as TRIMMED
from otelbill_collector.ledger.tombstones import find_pruned

KEYS, ROLLUPS, WINDOWS, FILES, OPENINGS = "claim keys", "rollups", "stripe windows", "files", "open events"
_REPLAYED_MARKS = (rollups.NAME, compaction.NAME, compaction.IDS_NAME, openings.NAME, credit_usage.NAME)
KeyFunction = Callable[[Candidate], tuple[bytes, ...]]
_KeyRow = tuple[int, bytes, int, int]
_BATCH = 20_000
_DIGEST_SPACE = 2**128


def derive_key_rows(segment_id: int, table: pa.Table, keys_of: KeyFunction) -> Iterator[_KeyRow]:
    """The claim keys that booking wrote for a segment: (day, key, segment id, position)."""
    for position, row in enumerate(table.to_pylist()):
        if row["sign"] > 0:
            day = row["ended_nanos"] // DAY_NANOS
            for key in keys_of(build_record(row).candidate):
                yield day, key, segment_id, position


class KeyTally:
    """Claim keys as they should be and as they are, one sum per segment: equal sums mean equal sets of keys.

    A segment's keys stand in `claim_key` (ledgers from before the runs) or in the sorted runs, never in both.
    """

    def __init__(self, keys_of: KeyFunction) -> None:
        self._keys_of = keys_of
        self._rows: dict[int, int] = {}  # segment -> what claim_key lacks, as a sum of digests
        self._runs: dict[int, int] = {}  # segment -> what the runs lack
        self._expected: dict[int, tuple[int, int]] = {}
        self.pruned = 0  # segments up to here need no keys, and may still have some

    def expect(self, segment_id: int, table: pa.Table) -> None:
        """Add what a sound segment should have."""
        rows = list(derive_key_rows(segment_id, table, self._keys_of))
        total = sum(_digest_key_row(row) for row in set(rows)) % _DIGEST_SPACE
        entries = make_entries(segment_id, [row[1] for row in rows], [row[3] for row in rows])
        self._expected[segment_id] = (total, int(digest_entries(entries).sum()))

    def compare(self, connection: sqlite3.Connection, last: int, report: Report, progress: Progress) -> None:
        """Subtract what the tables have for segments 1 to `last`, and report every segment that is not even."""
        count = 0
        for batch in _walk_keys(connection, report, progress):
            for row in batch:
                if row[2] <= last:
                    self._rows[row[2]] = (self._rows.get(row[2], 0) + _digest_key_row(row)) % _DIGEST_SPACE
                    count += 1
        count += self._add_runs(connection, last, report)
        report.counts["claim_keys"] = count
        wrong = [
            segment_id
            for segment_id in sorted(self._rows.keys() | self._runs.keys() | self._expected.keys())
            if segment_id > self.pruned
            and (self._rows.get(segment_id, 0), self._runs.get(segment_id, 0)) not in self._list_right(segment_id)
        ]
        for segment_id in wrong:
            table = "claim_key" if segment_id in self._rows else "claim_chunk"
            problem = "its claim keys are not those of its records: a repeat of such a span may be booked as new"
            touched = Touched() if segment_id not in self._expected else find_segment_touched(connection, segment_id)
            report.add(Finding(KEYS, table, f"segment {segment_id}", problem, REPLAY, touched))

    def _list_right(self, segment_id: int) -> tuple[tuple[int, int], ...]:
        rows, runs = self._expected.get(segment_id, (0, 0))
        return (rows, 0), (0, runs)

    def _add_runs(self, connection: sqlite3.Connection, last: int, report: Report) -> int:
        """All runs in one snapshot, for merging moves entries between them."""
        counts: dict[int, int] = {}
        if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'claim_run'").fetchone() is None:
            return 0  # a ledger, such as an old backup, from before the runs
        query = "SELECT chunk_id, run_id, first_key, last_key, body FROM claim_chunk ORDER BY chunk_id"
        connection.execute("BEGIN")
        try:
            runs = dict(connection.execute("SELECT run_id, entries FROM claim_run"))
            for chunk_id, run_id, first_key, last_key, body in connection.execute(query):
                entries = read_entries(body)
                counts[run_id] = counts.get(run_id, 0) + len(entries)
                keys = entries["key"]
                if (keys[0], keys[-1]) != (first_key, last_key) or (keys[1:] < keys[:-1]).any():
                    problem = "its keys are not in the order that its row says: some would not be found"
                    report.add(Finding(KEYS, "claim_chunk", str(chunk_id), problem, REPLAY))
                self._add_entries(entries[entries["segment"] <= last])
        finally:
            connection.execute("ROLLBACK")
        for run_id in sorted(runs.keys() | counts.keys()):
            if runs.get(run_id) != counts.get(run_id):
                problem = f"says {runs.get(run_id)} entries, its chunks have {counts.get(run_id)}"
                report.add(Finding(KEYS, "claim_run", str(run_id), problem, REPLAY))
        return sum(counts.values())

    def _add_entries(self, entries: Entries) -> None:
        digests = digest_entries(entries)
        segments, places = np.unique(entries["segment"], return_inverse=True)
        sums = np.zeros(len(segments), dtype=np.uint64)
        np.add.at(sums, places, digests)
        for segment_id, total in zip(segments.tolist(), sums.tolist(), strict=True):
            self._runs[segment_id] = (self._runs.get(segment_id, 0) + total) % 2**64


def digest_entries(entries: Entries) -> NDArray[np.uint64]:
    """64 mixed bits for each entry of a run; whoever changes an entry changes them."""
    places = entries["segment"].astype(np.uint64) << np.uint64(32) | entries["position"].astype(np.uint64)
    mixed = entries["key"].astype(np.uint64) ^ (places * np.uint64(0x9E3779B97F4A7C15))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    digests: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return digests


def _digest_key_row(row: _KeyRow) -> int:
    day, key, segment_id, position = row
    text = b"%d/%d/%d/" % (day, segment_id, position) + bytes(key)
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "big")


def _walk_keys(connection: sqlite3.Connection, report: Report, progress: Progress) -> Iterator[list[_KeyRow]]:
    """All rows in key order, each batch a snapshot of its own; rows of newer segments may come in between."""
    after: _KeyRow = (-(2**63), b"", 0, 0)
    query = (
        "SELECT day, key, segment_id, position FROM claim_key WHERE (day, key, segment_id, position) > (?, ?, ?, ?)"
        f" ORDER BY day, key, segment_id, position LIMIT {_BATCH}"
    )
    done = 0
    while True:
        progress(KEYS, done, 0)
        batch: list[_KeyRow] = connection.execute(query, after).fetchall()
        if not batch:
            return
        if batch[-1] <= after:
            report.add(Finding(KEYS, "claim_key", f"day {after[0]}", "rows are out of order", REPLAY))
            return
        yield batch
        after = batch[-1]
        done += len(batch)


@contextmanager
def open_scratch(path: Path, name: str, copies: dict[str, str]) -> Iterator[tuple[sqlite3.Connection, int, int]]:
    """An empty ledger that sees the segments of the one at `path` up to the mark `name`; the mark; the last segment.

    `copies` are tables to make in it: name -> SELECT over `ledger.*`, all taken in one short snapshot with the mark.
    """
    scratch = sqlite3.connect("", uri=True, isolation_level=None)
    try:
        scratch.text_factory = decode_text
        migrate_schema(scratch)
        scratch.execute("ATTACH ? AS ledger", (f"{path.absolute().as_uri()}?mode=ro",))
        scratch.execute("BEGIN")
        row = scratch.execute("SELECT segment_id FROM ledger.high_water WHERE name = ?", (name,)).fetchone()
        mark = 0 if row is None else int(row[0])
        (last,) = scratch.execute("SELECT coalesce(max(segment_id), 0) FROM ledger.segment").fetchone()
        for table, query in copies.items():
            scratch.execute(f"CREATE TABLE {table} AS {query}")
        restore_fold(scratch, name, schema="ledger")
        scratch.execute("COMMIT")
        # A name is looked for in `temp` first, so the folds read this view where they say "segment".
        scratch.execute(f"CREATE TEMP VIEW segment AS SELECT * FROM ledger.segment WHERE segment_id <= {mark}")
        yield scratch, mark, last
    finally:
        scratch.close()


def decode_text(raw: bytes) -> str:
    """TEXT of a damaged row may be anything; this never fails and loses nothing."""
    return raw.decode("utf-8", "surrogateescape")


def fold_all(scratch: sqlite3.Connection, fold: Callable[[], int], advance: Callable[[], None]) -> None:
    """Call a fold of the scratch database until nothing is left, a transaction each."""
    folded = 1
    while folded:
        scratch.execute("BEGIN")
        folded = fold()
        scratch.execute("COMMIT")
        advance()


def check_mark(name: str, check: str, mark: int, last: int, report: Report) -> bool:
    """Whether a mark points at a segment that exists."""
    if 0 <= mark <= last:
        return True
    problem = f"points at segment {mark}, the last one is {last}: usage past it would never be counted"
    report.add(Finding(check, "high_water", name, problem, REPLAY if name in _REPLAYED_MARKS else RESTORE))
    return False


def compare_rollups(path: Path, report: Report, progress: Progress, *, has_days: bool = True) -> None:
    """The rollup tables against a fresh fold up to their mark."""
    copies = {"found": "SELECT * FROM ledger.rollup"}
    if has_days:
        copies["found_days"] = "SELECT * FROM ledger.rollup_day"
    with open_scratch(path, rollups.NAME, copies) as (scratch, mark, last):
        if not check_mark(rollups.NAME, ROLLUPS, mark, last, report):
            return
        fold_all(
            scratch,
            lambda: rollups.fold_rollups(scratch),
            lambda: progress(ROLLUPS, find_high_water(scratch, rollups.NAME), mark),
        )
        (report.counts["rollup_rows"],) = scratch.execute("SELECT count(*) FROM found").fetchone()
        for found, other in (("found", "rollup"), ("rollup", "found")):
            for row in scratch.execute(f"SELECT * FROM {found} EXCEPT SELECT * FROM {other} LIMIT {FINDINGS_MAX}"):
                report.add(_describe_rollup(row, is_stored=found == "found"))
        for found, other in (("found_days", "rollup_day"), ("rollup_day", "found_days")) if has_days else ():
            query = f"SELECT * FROM {found} EXCEPT SELECT * FROM {other} LIMIT {FINDINGS_MAX}"
            for customer, day, *rest in scratch.execute(query):
                row = (day, customer, *rest)
                report.add(_describe_rollup(row, is_stored=found == "found_days", table="rollup_day"))


def compare_openings(path: Path, report: Report, progress: Progress) -> None:
    """The table of open events against a fresh fold up to its mark."""
    with open_scratch(path, openings.NAME, {"found": "SELECT * FROM ledger.open_event"}) as (scratch, mark, last):
        if not check_mark(openings.NAME, OPENINGS, mark, last, report):
            return
        fold_all(
            scratch,
            lambda: openings.fold_openings(scratch),
            lambda: progress(OPENINGS, find_high_water(scratch, openings.NAME), mark),
        )
        (report.counts["open_events"],) = scratch.execute("SELECT count(*) FROM found").fetchone()
        for found, other in (("found", "open_event"), ("open_event", "found")):
            query = f"SELECT * FROM {found} EXCEPT SELECT * FROM {other} LIMIT {FINDINGS_MAX}"
            for kind, nanos, event_id, *_ in scratch.execute(query):
                problem = "is not what the segments say" if found == "found" else "should be there"
                key = f"{ascii(kind)[1:-1]} {ascii(event_id)[1:-1]}"
                touched = Touched((), (format_hour(nanos),), (ascii(event_id)[1:-1],))
                report.add(Finding(OPENINGS, "open_event", key, problem, REPLAY, touched))


def _describe_rollup(row: tuple[int | str | bytes, ...], *, is_stored: bool, table: str = "rollup") -> Finding:
    names = (repr(value) if isinstance(value, bytes) else str(value) for value in row[1:9])
    facts = dict(zip(FACT_DIMENSIONS, names, strict=True))
    hour = format_hour(row[0])
    key = " ".join((hour, *(f"{name}={value}" for name, value in facts.items() if value)))
    problem = "is not what the segments add up to" if is_stored else "should be there, with the sums of its segments"
    touched = Touched((facts["customer"] or "(suspense)",), (hour,))
    return Finding(ROLLUPS, table, key.encode("utf-8", "backslashreplace").decode(), problem, REPLAY, touched)


def format_hour(nanos: object) -> str:
    """An instant that may be damaged, for a message."""
    try:
        return format_instant(int(str(nanos)))
    except (ValueError, OverflowError, OSError):
        return repr(nanos)


_HOUR = f"w.start_nanos - ((w.start_nanos % {HOUR_NANOS}) + {HOUR_NANOS}) % {HOUR_NANOS}"
_WINDOWS = "SELECT l.meter, l.customer_id, {hour} AS hour, w.amount FROM {db}stripe_window w JOIN {db}stripe_lane l"
_STRIPE_REMEDY = (
    "if the stripe section (mode, event_name, meters, since) was changed since these windows were booked, this is "
    "expected: check with --no-stripe; otherwise " + RESTORE
)


def compare_windows(path: Path, metering: Metering, report: Report, progress: Progress) -> None:
    """Amounts of Stripe windows, by meter, customer and hour, against a fresh fold up to their mark.

    By hour, because windows of several lengths may stand side by side after a change of `stripe.window`.
    """
    query = f"{_WINDOWS} USING (lane_id)"
    copies = {"found": query.format(hour=_HOUR, db="ledger.")}
    with open_scratch(path, meters.NAME, copies) as (scratch, mark, last):
        if not check_mark(meters.NAME, WINDOWS, mark, last, report):
            return
        fold_all(
            scratch,
            lambda: meters.fold_meters(scratch, metering),
            lambda: progress(WINDOWS, find_high_water(scratch, meters.NAME), mark),
        )
        known = {metering.charge_meter, *metering.unit_meters.values()}
        stored = _sum_hours(scratch, "SELECT * FROM found")
        fresh = _sum_hours(scratch, query.format(hour=_HOUR, db="main."))
        for steps in list_steps(scratch, "ledger") if find_pruned(scratch, schema="ledger") else ():
            for meter, customer_id, hour, amount in steps[SUMMED_WINDOWS][1:]:
                fresh[meter, customer_id, hour] = fresh.get((meter, customer_id, hour), 0) + int(amount)
    report.counts["stripe_hours"] = len(stored)
    unknown = sorted({str(key[0]) for key in stored if key[0] not in known})
    if unknown:
        report.notes.append(f"{WINDOWS}: not compared for {', '.join(unknown)}, which the configuration does not name")
    for key in sorted(stored.keys() | fresh.keys(), key=str):
        if key[0] in known and stored.get(key, 0) != fresh.get(key, 0):
            problem = f"{stored.get(key, 0)} sub-units are booked, the segments add up to {fresh.get(key, 0)}"
            hour = format_hour(key[2])
            touched = Touched((key[1],), (hour,))
            name = f"{key[0]} {key[1]} {hour}".encode("utf-8", "backslashreplace").decode()
            report.add(Finding(WINDOWS, "stripe_window", name, problem, _STRIPE_REMEDY, touched))


def _sum_hours(scratch: sqlite3.Connection, query: str) -> dict[tuple[str, str, int], int]:
    sums: dict[tuple[str, str, int], int] = {}
    for meter, customer_id, hour, amount in scratch.execute(query):
        key = (meter, customer_id, hour)
        sums[key] = sums.get(key, 0) + int(amount)
    return {key: total for key, total in sums.items() if total}


def compare_files(connection: sqlite3.Connection, path: Path, report: Report, progress: Progress) -> None:
    """Files made of segments: each is whole, and together they hold every record up to their mark."""
    connection.execute("BEGIN")
    try:
        rows = compaction.list_files(connection)
        mark = find_high_water(connection, compaction.NAME)
        ids_mark = compaction.find_mark(connection, compaction.IDS)
        query = (
            "SELECT coalesce(max(segment_id), 0), coalesce(sum(record_count * (segment_id > ? AND segment_id <= ?)), 0)"
            " FROM segment"
        )
        last, records = connection.execute(query, (find_pruned(connection, TRIMMED), mark)).fetchone()
    finally:
        connection.execute("ROLLBACK")
    is_sound = check_mark(compaction.IDS_NAME, FILES, ids_mark, last, report)
    if not check_mark(compaction.NAME, FILES, mark, last, report) or not is_sound:
        return
    for done, row in enumerate(rows):
        progress(FILES, done, len(rows))
        problem = compaction.find_fault(compaction.find_folder(path), row)
        if problem is not None:
            report.add(Finding(FILES, "derived_file", row.name, problem, REPLAY))
    held = sum(row.entries for row in rows if row.kind == compaction.RECORDS)
    if held != records:
        problem = f"the files hold {held} records, the segments up to their mark {records}"
        report.add(Finding(FILES, "derived_file", "", problem, REPLAY))
    report.counts["files"] = len(rows)


def list_price_names(table: pa.Table) -> list[str]:
    """Ids of the price versions that a segment's records name."""
    names: list[str | None] = pc.unique(table["price_version"]).to_pylist()
    return [name for name in names if name is not None]
