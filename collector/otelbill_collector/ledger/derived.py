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

import pyarrow as pa
import pyarrow.compute as pc

from otelbill_collector.domain.instants import DAY_NANOS, HOUR_NANOS, format_instant
from otelbill_collector.domain.usage import Candidate
from otelbill_collector.ledger import meters, rollups
from otelbill_collector.ledger.claim_runs import Place, find_wrong_runs, read_prefixes, walk_entries
from otelbill_collector.ledger.evidence import summarise_table
from otelbill_collector.ledger.findings import FINDINGS_MAX, REPLAY, RESTORE, Finding, Progress, Report, Touched
from otelbill_collector.ledger.journal import find_high_water
from otelbill_collector.ledger.meters import Metering
from otelbill_collector.ledger.rollups import FACT_DIMENSIONS
from otelbill_collector.ledger.schema import migrate_schema
from otelbill_collector.ledger.segments import build_record, decode_table

KEYS, ROLLUPS, WINDOWS = "claim keys", "rollups", "stripe windows"
KeyFunction = Callable[[Candidate], tuple[bytes, ...]]
_DIGEST_SPACE = 2**128


def derive_keys(table: pa.Table, keys_of: KeyFunction) -> Iterator[tuple[int, int, bytes]]:
    """The claim keys that booking wrote for a segment: (position, day, key)."""
    for position, row in enumerate(table.to_pylist()):
        if row["sign"] > 0:
            day = row["ended_nanos"] // DAY_NANOS
            for key in keys_of(build_record(row).candidate):
                yield position, day, key


def _derive_places(segment_id: int, table: pa.Table, keys_of: KeyFunction) -> set[Place]:
    derived = [(position, key) for position, _, key in derive_keys(table, keys_of)]
    prefixes = read_prefixes([key for _, key in derived]).tolist()
    return {(prefix, segment_id, position) for prefix, (position, _) in zip(prefixes, derived, strict=True)}


class KeyTally:
    """Claim keys as they should be and as they are, one sum per segment: equal sums mean equal sets of rows."""

    def __init__(self, keys_of: KeyFunction) -> None:
        self._keys_of = keys_of
        self._sums: dict[int, int] = {}
        self._seen: set[int] = set()

    def expect(self, segment_id: int, table: pa.Table) -> None:
        """Add what a sound segment should have."""
        self._seen.add(segment_id)
        for row in _derive_places(segment_id, table, self._keys_of):
            self._add(row, 1)

    def compare(self, connection: sqlite3.Connection, last: int, report: Report, progress: Progress) -> None:
        """Subtract what the table has for segments 1 to `last`, and report every segment that is not even."""
        count = 0
        connection.execute("BEGIN")  # one snapshot: runs are merged while a sidecar books
        try:
            for part in walk_entries(connection):
                progress(KEYS, count, 0)
                for row in part:
                    if row[1] <= last:
                        self._add(row, -1)
                        count += 1
            for run_id in find_wrong_runs(connection):
                report.add(Finding(KEYS, "claim_run", str(run_id), "its bounds are not those of its entries", REPLAY))
        except (sqlite3.DatabaseError, ValueError) as error:  # a chunk that cannot be read as entries
            report.add(Finding(KEYS, "claim_run", "", str(error), REPLAY))
            return
        finally:
            connection.execute("ROLLBACK")
        report.counts["claim_keys"] = count
        uneven = {segment_id for segment_id, total in self._sums.items() if total}
        for segment_id in sorted(uneven - self._seen):
            if segment_id < 1:
                report.add(Finding(KEYS, "claim_key", f"segment {segment_id}", "names no segment", REPLAY))
        wrong = sorted(uneven & self._seen)
        for segment_id in wrong[:FINDINGS_MAX]:
            with report.guard(KEYS, f"segment {segment_id}"):
                report.add(self._describe(connection, segment_id))
        if len(wrong) > FINDINGS_MAX:
            report.notes.append(f"{KEYS}: {len(wrong) - FINDINGS_MAX} more segments have wrong claim keys")

    def _add(self, row: Place, sign: int) -> None:
        segment_id = row[1]
        self._sums[segment_id] = (self._sums.get(segment_id, 0) + sign * _digest_key_row(row)) % _DIGEST_SPACE

    def _describe(self, connection: sqlite3.Connection, segment_id: int) -> Finding:
        (body,) = connection.execute("SELECT body FROM segment WHERE segment_id = ?", (segment_id,)).fetchone()
        table = decode_table(body)
        expected = _derive_places(segment_id, table, self._keys_of)
        found = {row for part in walk_entries(connection) for row in part if row[1] == segment_id}
        missing, surplus = expected - found, found - expected
        positions = sorted({row[2] for row in missing | surplus if 0 <= row[2] < table.num_rows})
        problem = (
            f"{len(missing)} missing and {len(surplus)} that its records do not have: a repeat of such a span would "
            "be booked as new"
        )
        return Finding(KEYS, "claim_key", f"segment {segment_id}", problem, REPLAY, summarise_table(table, positions))


def _digest_key_row(row: Place) -> int:
    return int.from_bytes(hashlib.blake2b(b"%d/%d/%d" % row, digest_size=16).digest(), "big")


@contextmanager
def open_scratch(path: Path, name: str, copies: dict[str, str]) -> Iterator[tuple[sqlite3.Connection, int, int]]:
    """An empty ledger that sees the segments of the one at `path` up to the mark `name`, the mark, and the last segment.

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
        scratch.execute("COMMIT")
        # A name is looked for in `temp` first, so the folds read this view where they say "segment".
        scratch.execute(f"CREATE TEMP VIEW segment AS SELECT * FROM ledger.segment WHERE segment_id <= {mark}")
        yield scratch, mark, last
    finally:
        scratch.close()


def decode_text(raw: bytes) -> str:
    """TEXT of a damaged row may be anything; this never fails and loses nothing."""
    return raw.decode("utf-8", "surrogateescape")


def _fold(scratch: sqlite3.Connection, fold: Callable[[], int], advance: Callable[[], None]) -> None:
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
    report.add(Finding(check, "high_water", name, problem, REPLAY if name == rollups.NAME else RESTORE))
    return False


def compare_rollups(path: Path, report: Report, progress: Progress) -> None:
    """The rollup table against a fresh fold up to its mark."""
    with open_scratch(path, rollups.NAME, {"found": "SELECT * FROM ledger.rollup"}) as (scratch, mark, last):
        if not check_mark(rollups.NAME, ROLLUPS, mark, last, report):
            return
        _fold(
            scratch,
            lambda: rollups.fold_rollups(scratch),
            lambda: progress(ROLLUPS, find_high_water(scratch, rollups.NAME), mark),
        )
        (report.counts["rollup_rows"],) = scratch.execute("SELECT count(*) FROM found").fetchone()
        for found, other in (("found", "rollup"), ("rollup", "found")):
            for row in scratch.execute(f"SELECT * FROM {found} EXCEPT SELECT * FROM {other} LIMIT {FINDINGS_MAX}"):
                report.add(_describe_rollup(row, is_stored=found == "found"))


def _describe_rollup(row: tuple[int | str | bytes, ...], *, is_stored: bool) -> Finding:
    names = (repr(value) if isinstance(value, bytes) else str(value) for value in row[1:9])
    facts = dict(zip(FACT_DIMENSIONS, names, strict=True))
    hour = format_hour(row[0])
    key = " ".join((hour, *(f"{name}={value}" for name, value in facts.items() if value)))
    problem = "is not what the segments add up to" if is_stored else "should be there, with the sums of its segments"
    touched = Touched((facts["customer"] or "(suspense)",), (hour,))
    return Finding(ROLLUPS, "rollup", key.encode("utf-8", "backslashreplace").decode(), problem, REPLAY, touched)


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
        _fold(
            scratch,
            lambda: meters.fold_meters(scratch, metering),
            lambda: progress(WINDOWS, find_high_water(scratch, meters.NAME), mark),
        )
        known = {metering.charge_meter, *metering.unit_meters.values()}
        stored = _sum_hours(scratch, "SELECT * FROM found")
        fresh = _sum_hours(scratch, query.format(hour=_HOUR, db="main."))
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


def list_price_names(table: pa.Table) -> list[str]:
    """Ids of the price versions that a segment's records name."""
    names: list[str | None] = pc.unique(table["price_version"]).to_pylist()
    return [name for name in names if name is not None]
