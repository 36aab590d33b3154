"""Tables of state checked: schema, file header, seals, price versions, dead letters, the Stripe outbox. Reads only."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.intents import Intent, LaneSums
from otelbill_collector.domain.windows import WindowKey, derive_identifier
from otelbill_collector.ledger.derived import format_hour
from otelbill_collector.ledger.evidence import find_segment_touched
from otelbill_collector.ledger.findings import REPLAY, RESTORE, Finding, Report, Touched
from otelbill_collector.ledger.outbox_views import find_intents_for, list_lane_sums, recompute_lane_sums
from otelbill_collector.ledger.schema import SchemaTooNew, list_migrations, migrate_schema
from otelbill_collector.ledger.seals import SEALED, Sealed, list_broken_seals

DATABASE, SCHEMA, SEALS, PRICES, LETTERS, OUTBOX = (
    "database file",
    "schema",
    "seals",
    "prices",
    "dead letters",
    "outbox",
)
SEALS_SINCE = 5  # the schema version that has row_seal
FILES_SINCE = 9  # and derived_file
OPENINGS_SINCE = 10  # and open_event
DAYS_SINCE = 11  # and rollup_day
CREDIT_RATES_SINCE = 12  # and credits for one unit in credit_usage
PRUNINGS_SINCE = 13  # and pruning
WHOLE_BYTES_MAX = 2 * 1024**3  # larger files are not checked page by page in one long snapshot
_HEADER_BYTES = 100
_DERIVED_MARKS = tuple(("high_water", name) for name in ("rollup", "parquet", "parquet_from", "ids", "open", "credit"))


def check_header(path: Path, version: int, report: Report) -> None:
    """The fields of the file's header that SQLite itself does not miss when they are wrong.

    While a write-ahead log holds newer pages, the fields that a commit may have changed there are left to it.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    log = path.with_name(path.name + "-wal")
    expected = {
        "magic": (0, 16, {b"SQLite format 3\0"}),
        "file format": (18, 20, {b"\1\1", b"\2\2"}),
        "payload fractions": (20, 24, {bytes((0, 64, 32, 32))}),
        "cache size and vacuum": (48, 56, {bytes(8)}),
        "reserved fields": (64, 92, {bytes(28)}),
    }
    if not log.exists() or not log.stat().st_size:
        expected |= {
            "schema format": (44, 48, {(4).to_bytes(4, "big")}),
            "text encoding": (56, 60, {(1).to_bytes(4, "big")}),
            "schema version": (60, 64, {version.to_bytes(4, "big")}),
            "change counter": (24, 28, {header[92:96]}),
        }
    for name, (start, end, values) in expected.items():
        if header[start:end] not in values:
            report.add(Finding(DATABASE, "file header", name, f"bytes {start}..{end - 1} were changed", RESTORE))


def check_schema(connection: sqlite3.Connection, report: Report) -> int:
    """Tables, indexes and triggers against those that the migrations make; returns the schema version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not 1 <= version <= len(list_migrations()):
        raise SchemaTooNew(f"schema version {version} is not one that this otelbill knows; upgrade otelbill")
    fresh = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate_schema(fresh, upto=version)
        expected, found = _list_schema(fresh), _list_schema(connection)
    finally:
        fresh.close()
    for kind, name, table, _ in sorted(found ^ expected, key=repr):
        problem = f"{kind} {name} is not as the migrations made it"
        finding = Finding(SCHEMA, str(table), str(name), problem, RESTORE)
        if finding not in report.findings:
            report.add(finding)
    return int(version)


def _list_schema(connection: sqlite3.Connection) -> set[tuple[str, str, str, str | None]]:
    return set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema"))


def check_pages(connection: sqlite3.Connection, *, whole: bool, report: Report) -> None:
    """SQLite's own integrity check: of everything in one snapshot, or table by table without the large ones."""
    if whole:
        _check_pages_of(connection, "PRAGMA integrity_check(100)", "ledger.sqlite", report)
        return
    report.notes.append(
        f"{DATABASE}: larger than {WHOLE_BYTES_MAX // 1024**3} GiB, so pages of segments and claim keys were checked "
        "by reading rows only, for a snapshot held that long would keep the write-ahead log growing; verify a "
        "backup with --whole for the rest"
    )
    for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
        if table not in ("segment", "claim_key", "claim_chunk"):
            _check_pages_of(connection, f"PRAGMA integrity_check('{table}')", table, report)


def _check_pages_of(connection: sqlite3.Connection, pragma: str, table: str, report: Report) -> None:
    with report.guard(DATABASE, table):
        for (message,) in connection.execute(pragma).fetchall():
            for line in str(message).splitlines():
                if line != "ok":
                    report.add(Finding(DATABASE, table, "", line, RESTORE))


def check_seals(connection: sqlite3.Connection, report: Report) -> None:
    """Every sealed row against its seal, a table at a time. That a table is missing is the schema's check to say."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    for sealed in (item for item in SEALED if item.table in tables):
        with report.guard(SEALS, sealed.table):
            _snapshot(connection, lambda sealed=sealed: _check_seals_of(connection, sealed, report))  # type: ignore[misc]


def _check_seals_of(connection: sqlite3.Connection, sealed: Sealed, report: Report) -> None:
    for broken in list_broken_seals(connection, sealed):
        touched = _find_touched(connection, sealed, broken.row_key)
        key = broken.row_key.encode("utf-8", "backslashreplace").decode()
        derived_again = broken.table in ("claim_run", "derived_file") or (broken.table, key) in _DERIVED_MARKS
        remedy = REPLAY if derived_again else RESTORE
        report.add(Finding(SEALS, broken.table, key, broken.problem, remedy, touched))
    known = [sealed.table for sealed in SEALED]
    marks = ", ".join("?" * len(known))
    if sealed is SEALED[0]:
        query = f"SELECT table_name, row_key FROM row_seal WHERE table_name NOT IN ({marks})"
        for table, row_key in connection.execute(query, known):
            report.add(Finding(SEALS, "row_seal", f"{table!a} {row_key!a}", "seals no table there is", RESTORE))


_TOUCHED = {
    "credit_grant": "SELECT customer_id, NULL, start_nanos FROM credit_grant WHERE grant_id = ?",
    "credit_transfer": "SELECT customer_id, NULL, at_nanos FROM credit_transfer WHERE transfer_id = ?",
    "instruction": "SELECT customer_id, event_id, NULL FROM instruction WHERE instruction_id = ?",
    "correction": "SELECT NULL, event_id, NULL FROM correction WHERE correction_id = ?",
    "invoice": "SELECT customer_id, NULL, start_nanos FROM invoice WHERE invoice_number = ?",
    "invoice_event": "SELECT customer_id, NULL, start_nanos FROM invoice_event JOIN invoice USING (invoice_id)"
    " WHERE invoice_event_id = ?",
    "resolution": "SELECT NULL, event_id, NULL FROM resolution WHERE resolution_id = ?",
    "restated_terms": "SELECT customer_id, NULL, start_nanos FROM restated_terms WHERE restated_id = ?",
    "stripe_lane": "SELECT customer_id, NULL, NULL FROM stripe_lane WHERE lane_id = ?",
    "stripe_window": "SELECT customer_id, NULL, start_nanos FROM stripe_window JOIN stripe_lane USING (lane_id)"
    " WHERE lane_id || '/' || start_nanos || '/' || length_nanos = ?",
    "stripe_intent": "SELECT customer_id, NULL, start_nanos FROM stripe_intent JOIN stripe_lane USING (lane_id)"
    " WHERE intent_id = ?",
}


def _find_touched(connection: sqlite3.Connection, sealed: Sealed, row_key: str) -> Touched:
    query = _TOUCHED.get(sealed.table)
    try:
        if sealed.table == "segment":
            return find_segment_touched(connection, int(row_key))
        row = None if query is None else connection.execute(query, (row_key,)).fetchone()
    except (sqlite3.Error, ValueError, OverflowError):
        row = None
    if row is None:
        return Touched()
    customer, event, nanos = row
    return Touched(
        () if customer is None else (ascii(customer)[1:-1],),
        () if nanos is None else (format_hour(nanos),),
        () if event is None else (ascii(event)[1:-1],),
    )


def check_prices(connection: sqlite3.Connection, named: set[str], report: Report) -> None:
    """Every price version a record names exists, and every one's id is the digest of its content."""
    found = set()
    for name, body in connection.execute("SELECT price_version, body FROM price_version").fetchall():
        found.add(name)
        if digest_parts("price", body.encode("utf-8", "surrogateescape")).hex()[:16] != name:
            report.add(
                Finding(PRICES, "price_version", ascii(name)[1:-1], "its id is not its content's digest", RESTORE)
            )
    for name in sorted(named - found):
        problem = "records name it, but its content is gone: their amounts stand, but cannot be explained"
        report.add(Finding(PRICES, "price_version", name, problem, RESTORE))
    report.counts["price_versions"] = len(found)


def check_letters(connection: sqlite3.Connection, report: Report) -> None:
    """Every dead letter's id is the digest of its fault and body, so that it can be read and replayed."""
    count = 0
    for letter_id, code, name, body in connection.execute("SELECT letter_id, code, field, body FROM dead_letter"):
        count += 1
        parts = (text.encode("utf-8", "surrogateescape") for text in (code, name))
        if digest_parts("dead-letter", *parts, body).hex()[:32] != letter_id:
            key = ascii(letter_id)[1:-1]
            report.add(Finding(LETTERS, "dead_letter", key, "its id is not the digest of what it holds", RESTORE))
    report.counts["dead_letters"] = count


def check_outbox(connection: sqlite3.Connection, report: Report) -> None:
    """Intents are named by what they are and balance; lanes' running sums are those of their windows and intents."""
    _snapshot(connection, lambda: _check_outbox(connection, report))


def _check_outbox(connection: sqlite3.Connection, report: Report) -> None:
    intents = find_intents_for(connection)
    for intent in intents:
        problem = _find_fault(intent)
        if problem is not None:
            touched = Touched((intent.customer_id,), (format_hour(intent.start_nanos),))
            report.add(Finding(OUTBOX, "stripe_intent", ascii(intent.identifier)[1:-1], problem, RESTORE, touched))
    counted: dict[str, int] = {}
    for intent in intents:
        counted[intent.state.value] = counted.get(intent.state.value, 0) + 1
    stored = {state: count for state, count in connection.execute("SELECT * FROM stripe_intent_count") if count}
    if stored != counted:
        report.add(Finding(OUTBOX, "stripe_intent_count", "", f"says {stored}, there are {counted}", RESTORE))
    (total,) = connection.execute("SELECT count(*) FROM stripe_intent").fetchone()
    if total != len(intents):
        report.add(Finding(OUTBOX, "stripe_intent", "", f"{total - len(intents)} intents have no lane", RESTORE))
    recomputed = {lane.lane_id: lane for lane in recompute_lane_sums(connection)}
    for lane in list_lane_sums(connection):
        _check_lane(lane, recomputed.get(lane.lane_id), report)
    report.counts["stripe_intents"] = len(intents)


def _check_lane(lane: LaneSums, recomputed: LaneSums | None, report: Report) -> None:
    problem = None
    if recomputed != lane:
        problem = "its running sums are not those of its windows and intents"
    elif not lane.balanced:
        problem = (
            f"does not balance: booked {lane.booked}, intended {lane.intended}, carried {lane.carry}, open {lane.open}"
        )
    if problem is not None:
        report.add(Finding(OUTBOX, "stripe_lane", str(lane.lane_id), problem, RESTORE, Touched((lane.customer_id,))))


def _find_fault(intent: Intent) -> str | None:
    key = WindowKey(
        intent.account,
        intent.livemode,
        intent.meter,
        intent.customer_id,
        intent.start_nanos,
        intent.length_nanos,
        intent.revision,
    )
    if derive_identifier(key) != intent.identifier:
        return "its identifier is not that of its account, meter, customer, window and revision"
    if intent.amount + intent.carry_before != intent.value * intent.quantum + intent.carry_after:
        return "amount + carry before is not value x quantum + carry after"
    return None


def _snapshot(connection: sqlite3.Connection, work: Callable[[], None]) -> None:
    connection.execute("BEGIN")
    try:
        work()
    finally:
        connection.execute("ROLLBACK")
