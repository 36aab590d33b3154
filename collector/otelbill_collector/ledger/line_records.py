"""From an invoice line to the records it adds up, and from a record to the lines it is in. Owns the search; reads only.

One rule says which records a line counts, as a mask over columns; both directions use it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from otelbill_collector.domain.invoices import Line, LineKind
from otelbill_collector.domain.periods import Period
from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.ledger.journal import find_price_version, list_tables
from otelbill_collector.ledger.periods import Invoice, list_invoices
from otelbill_collector.ledger.segments import RECORD_COLUMNS, build_record

_COUNTED = frozenset({LineKind.USAGE, LineKind.CHARGE})
_NAMES = {"project_id": "project", "step": "step", "provider": "provider", "model": "model"}
_COLUMNS = ("customer_id", "ended_nanos", "rating", "price_version", *_NAMES)
Covers = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class LineRecords:
    """The records of a line: how many there are, and the first of them in booking order."""

    count: int
    records: tuple[UsageRecord, ...]


@dataclass(frozen=True, slots=True)
class LineRule:
    """Which records a line counts: those of segments past `after` up to `upto` that `match` chooses."""

    invoice: Invoice
    line: Line
    after: int
    upto: int
    covers: Covers

    def match(self, table: pa.Table) -> pa.ChunkedArray:
        """A mask over a table that has at least the columns this needs."""
        line, entry = self.line, self.line.entry
        ended = table["ended_nanos"]
        mask = pc.and_(pc.greater_equal(ended, line.period.start_nanos), pc.less(ended, line.period.end_nanos))
        mask = pc.and_(mask, _equals(table["customer_id"], self.invoice.customer_id))
        mask = pc.and_(mask, _equals(table["rating"], "rated"))
        if entry.kind is LineKind.CHARGE:
            versions = [name for name in table["price_version"].unique().to_pylist() if name and self.covers(name)]
            return pc.and_(mask, pc.is_in(table["price_version"], value_set=pa.array(versions, pa.string())))
        for column, name in _NAMES.items():
            mask = pc.and_(mask, _equals(table[column], getattr(entry, name)))
        return pc.and_(mask, _equals(table["price_version"], entry.version))


def _equals(column: pa.ChunkedArray, value: str | None) -> pa.ChunkedArray:
    return pc.is_null(column) if value is None else pc.fill_null(pc.equal(column, value), False)


def create_rules(connection: sqlite3.Connection, invoice: Invoice) -> list[LineRule]:
    """The rules of all lines of an invoice that count records; fees and the like count none.

    An adjustment counts what was booked since the invoice before it that looked at the same period.
    """
    others = [item for item in list_invoices(connection, customer_id=invoice.customer_id) if item.stands]
    known: dict[str, dict[str, object]] = {}

    def read_prices(version: str) -> dict[str, object]:
        if version not in known:
            body = find_price_version(connection, version)
            known[version] = {} if body is None else json.loads(body).get("prices", {})
        return known[version]

    def create_covers(charge_version: str | None) -> Covers:
        return lambda version: any(_is_covered(price, charge_version) for price in read_prices(version).values())

    rules = []
    for line in invoice.lines:
        if line.entry.kind in _COUNTED:
            before = [
                item.mark
                for item in others
                if line.adjustment and item.number < invoice.number and item.start_nanos >= line.period.start_nanos
            ]
            after = max(before, default=0)
            rules.append(LineRule(invoice, line, after, invoice.mark, create_covers(line.entry.version)))
    return rules


def _is_covered(price: object, charge_version: str | None) -> bool:
    if not isinstance(price, dict) or price.get("charge") != "period":
        return False
    return bool(price["entry"]["period_charge"]["version"] == charge_version)


def load_line_records(connection: sqlite3.Connection, rule: LineRule, *, limit: int) -> LineRecords:
    """How many records a line counts, and the first `limit` of them."""
    count = 0
    records: list[UsageRecord] = []
    period = rule.line.period
    start, end = period.start_nanos, period.end_nanos
    for segment_id, table in list_tables(connection, rule.after, ended_from=start, ended_to=end, columns=_COLUMNS):
        if segment_id > rule.upto:
            break
        found = pc.sum(rule.match(table)).as_py() or 0
        count += found
        if found and len(records) < limit:
            whole = _load_segment(connection, segment_id)
            rows = whole.filter(rule.match(whole)).slice(0, limit - len(records)).to_pylist()
            records += [build_record(row) for row in rows]
    return LineRecords(count, tuple(records))


def _load_segment(connection: sqlite3.Connection, segment_id: int) -> pa.Table:
    return next(table for _, table in list_tables(connection, segment_id - 1, columns=RECORD_COLUMNS))


def list_lines_of(connection: sqlite3.Connection, records: Sequence[UsageRecord]) -> list[tuple[Invoice, Line]]:
    """The lines of all invoices, voided ones included, that count any of these records."""
    found: dict[tuple[str, str], tuple[Invoice, Line]] = {}
    rules: dict[str, list[LineRule]] = {}
    for record in records:
        customer_id = record.decision.customer_id
        if customer_id is None:
            continue
        if customer_id not in rules:
            invoices = list_invoices(connection, customer_id=customer_id)
            rules[customer_id] = [rule for invoice in invoices for rule in create_rules(connection, invoice)]
        wanted = [rule for rule in rules[customer_id] if rule.line.period.holds(record.event_nanos)]
        for segment_id, row in _locate(connection, record) if wanted else ():
            for rule in wanted:
                if rule.after < segment_id <= rule.upto and pc.any(rule.match(row)).as_py():
                    found[rule.invoice.invoice_id, rule.line.line_id] = (rule.invoice, rule.line)
    return list(found.values())


def _locate(connection: sqlite3.Connection, record: UsageRecord) -> Iterator[tuple[int, pa.Table]]:
    """The segment that a record is in, and its row."""
    at = record.event_nanos
    columns = ("event_id", "revision", "sign", *_COLUMNS)
    for segment_id, table in list_tables(connection, 0, ended_from=at, ended_to=at + 1, columns=columns):
        same = pc.and_(pc.equal(table["event_id"], record.event_id), pc.equal(table["revision"], record.revision))
        row = table.filter(pc.and_(same, pc.equal(table["sign"], record.sign)))
        if row.num_rows:
            yield segment_id, row


def list_period_records(
    connection: sqlite3.Connection, customer_id: str, period: Period, *, upto: int
) -> Iterator[UsageRecord]:
    """Every record of a customer's period in segments up to `upto`, in booking order."""
    start, end = period.start_nanos, period.end_nanos
    for segment_id, table in list_tables(connection, 0, ended_from=start, ended_to=end, columns=RECORD_COLUMNS):
        if segment_id > upto:
            return
        ended = table["ended_nanos"]
        inside = pc.and_(pc.greater_equal(ended, start), pc.less(ended, end))
        chosen = table.filter(pc.and_(inside, _equals(table["customer_id"], customer_id)))
        yield from (build_record(row) for row in chosen.to_pylist())
