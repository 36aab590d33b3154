"""`otelbill explain`: one id, and everything in the ledger that it is connected with. Owns the shape of the answer."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from otelbill_collector.domain.instants import HOUR_NANOS, floor_slice, format_instant
from otelbill_collector.domain.intents import Intent
from otelbill_collector.domain.invoices import Line, render_line
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.records import DeadLetter, UsageRecord
from otelbill_collector.domain.retention import EvidencePruned
from otelbill_collector.domain.usage import Candidate, Quantities
from otelbill_collector.ledger.deadletters import find_dead_letter
from otelbill_collector.ledger.journal import find_price_version
from otelbill_collector.ledger.line_records import (
    LineRecords,
    LineRule,
    create_rules,
    list_lines_of,
    load_line_records,
)
from otelbill_collector.ledger.lineage import list_records_by_id, list_trace, list_window_records
from otelbill_collector.ledger.outbox_views import find_intents_for
from otelbill_collector.ledger.periods import Invoice, UnknownInvoice, list_invoices_of_line, require_invoice
from otelbill_collector.ledger.segments import format_quantity
from otelbill_collector.ledger.tombstones import describe_absence

Json = dict[str, Any]  # what is printed as JSON


LINE_RECORDS_MAX = 100  # `otelbill export` has all of them


class NothingFound(LookupError):
    """The id names nothing in this ledger."""


def explain_identifier(connection: sqlite3.Connection, identifier: str) -> Json:
    """Records, the rest of their traces, price versions, invoice lines, Stripe intents and dead letters.

    An invoice has its lines, a line its first records and how many there are. Raises NothingFound.
    """
    if identifier.startswith(("inv1.", "line1.")):
        return _explain_invoice(connection, identifier)
    letter, pruned = find_dead_letter(connection, identifier), describe_absence(connection)
    intents = find_intents_for(connection, identifier=identifier)
    records: list[UsageRecord] = []
    for intent in intents:
        records.extend(_list_window(connection, intent))
    if not intents:
        records = list_records_by_id(connection, identifier)
    if not intents and not records and letter is None:
        raise NothingFound(
            f"nothing in this ledger is called {identifier}; give a record, event, trace or span id, a run or provider "
            "response id, a dead letter's id, an invoice or a line of one (inv1...., line1....), or a Stripe "
            "identifier (ob1....)" + (f"; {pruned}" if pruned else "")
        )
    trace_ids = {record.candidate.trace_id for record in records}
    trace_ids |= {record.decision.winner_trace_id for record in records if record.decision.winner_trace_id}
    named = {record.record_id for record in records}
    related = [] if intents else [item for item in list_trace(connection, trace_ids) if item.record_id not in named]
    versions = sorted({record.amounts.price_version for record in records if record.amounts.price_version})
    return {
        "identifier": identifier,
        "records": [render_record(record) for record in records],
        "related": [render_record(record) for record in related],
        "price_versions": [_load_version(connection, version) for version in versions],
        "dead_letters": [] if letter is None else [render_letter(letter)],
        "stripe": [render_intent(intent) for intent in intents or _list_intents(connection, records)],
        "invoice_lines": [] if intents else _list_lines(connection, records),
        "pruned": pruned,
    }


def _list_window(connection: sqlite3.Connection, intent: Intent) -> list[UsageRecord]:
    """The records of an intent's window; none where they were pruned, which the answer says."""
    end = intent.start_nanos + intent.length_nanos
    try:
        return list_window_records(connection, intent.customer_id, intent.start_nanos, end)
    except EvidencePruned:
        return []


def _list_lines(connection: sqlite3.Connection, records: Sequence[UsageRecord]) -> list[Json]:
    """The invoice lines that count any of these records."""
    return [_place_line(invoice, line) for invoice, line in list_lines_of(connection, records)]


def _place_line(invoice: Invoice, line: Line) -> Json:
    return {"invoice_id": invoice.invoice_id, "state": invoice.state.value, **render_line(line, invoice.currency)}


def _explain_invoice(connection: sqlite3.Connection, identifier: str) -> Json:
    """An invoice with its lines, or a line with its records, each in the form of every explanation."""
    if identifier.startswith("inv1."):
        try:
            placed: list[tuple[Invoice, str | None]] = [(require_invoice(connection, identifier), None)]
        except UnknownInvoice as error:
            raise NothingFound(str(error)) from error
    else:
        placed = [(invoice, identifier) for invoice in list_invoices_of_line(connection, identifier)]
        if not placed:
            raise NothingFound(f"no invoice has a line {identifier}; `otelbill invoices` lists them")
    lines: list[Json] = []
    records: dict[str, UsageRecord] = {}
    versions: set[str] = set()
    for invoice, line_id in placed:
        rules = {rule.line.line_id: rule for rule in create_rules(connection, invoice)} if line_id else {}
        for line in invoice.lines:
            if line_id not in (None, line.line_id):
                continue
            versions |= {line.entry.version} if line.entry.version else set()
            placed_line = _place_line(invoice, line)
            if line_id:  # a search through the period's segments for each line would be too much for an invoice
                found = _load_records(connection, rules.get(line.line_id), LINE_RECORDS_MAX)
                placed_line["records"] = None if found is None else found.count
                records |= {record.record_id: record for record in found.records} if found is not None else {}
            lines.append(placed_line)
    versions |= {record.amounts.price_version for record in records.values() if record.amounts.price_version}
    return {
        "identifier": identifier,
        "invoices": [_summarize(invoice) for invoice, _ in placed],
        "invoice_lines": lines,
        "records": [render_record(record) for record in records.values()],
        "related": [],
        "price_versions": [_load_version(connection, version) for version in sorted(versions)],
        "dead_letters": [],
        "stripe": [render_intent(intent) for intent in _list_intents(connection, list(records.values()))],
        "pruned": describe_absence(connection),
    }


def _load_records(connection: sqlite3.Connection, rule: LineRule | None, limit: int) -> LineRecords | None:
    """None where some of them were pruned."""
    try:
        return LineRecords(0, ()) if rule is None else load_line_records(connection, rule, limit=limit)
    except EvidencePruned:
        return None


def _summarize(invoice: Invoice) -> Json:
    names = ("invoice_id", "state", "customer_id", "period", "from", "to", "currency", "total", "made_at", "history")
    whole = invoice.render()
    return {name: whole[name] for name in names}


def _load_version(connection: sqlite3.Connection, price_version: str) -> Json:
    body = find_price_version(connection, price_version)
    return {"price_version": price_version, "content": None if body is None else json.loads(body)}


def _list_intents(connection: sqlite3.Connection, records: Sequence[UsageRecord]) -> list[Intent]:
    found: dict[str, Intent] = {}
    for record in records:
        if record.decision.customer_id is not None:
            places = {"customer_id": record.decision.customer_id, "event_nanos": record.event_nanos}
            for intent in find_intents_for(connection, **places):  # type: ignore[arg-type]
                found[intent.identifier] = intent
    return list(found.values())


def render_record(record: UsageRecord) -> Json:
    """One record with all that it says; ids in hex, times RFC 3339, amounts decimal text."""
    candidate, decision, amounts = record.candidate, record.decision, record.amounts
    return {
        "record_id": record.record_id,
        "event_id": record.event_id,
        "revision": record.revision,
        "kind": "usage" if record.sign > 0 else "reversal",
        "corrects": record.corrects,
        "note": record.note,
        **render_candidate(candidate),
        "customer_id": decision.customer_id,
        "project_id": decision.project_id,
        "run_id": decision.run_id,
        "step": decision.step,
        "billable": decision.billable,
        "reason": decision.reason,
        "usage_source": decision.usage_source.value,
        "caveats": list(decision.caveats),
        "winner_trace_id": decision.winner_trace_id.hex() or None,
        "winner_span_id": decision.winner_span_id.hex() or None,
        "quantities": render_quantity_map(decision.quantities),
        "rating": amounts.state.value,
        "price_version": amounts.price_version,
        "cost": _render_amount(amounts.cost_attos),
        "charge": _render_amount(amounts.charge_attos),
        "currency": amounts.currency,
        "received_at": format_instant(record.received_nanos),
        "hour": format_instant(floor_slice(record.event_nanos, HOUR_NANOS)),
    }


def render_letter(letter: DeadLetter) -> Json:
    """A dead letter without its body."""
    return {
        "letter_id": letter.letter_id,
        "received_at": format_instant(letter.received_nanos),
        "code": letter.code,
        "field": letter.field,
        "value": letter.value,
        "hint": letter.hint,
        "trace_id": letter.trace_id.hex(),
        "span_id": letter.span_id.hex(),
    }


def render_candidate(candidate: Candidate) -> Json:
    """What the span said of itself."""
    return {
        "trace_id": candidate.trace_id.hex(),
        "span_id": candidate.span_id.hex(),
        "parent_span_id": candidate.parent_span_id.hex() or None,
        "provider": candidate.provider,
        "model": candidate.model,
        "operation": candidate.operation,
        "response_id": candidate.response_id,
        "started_at": format_instant(candidate.started_nanos),
        "ended_at": format_instant(candidate.ended_nanos),
        "dialect": candidate.dialect,
        "attempt": candidate.attempt,
    }


def render_intent(intent: Intent) -> Json:
    """A Stripe intent: its identifier, window, value and state."""
    return {
        "identifier": intent.identifier,
        "meter": intent.meter,
        "customer_id": intent.customer_id,
        "window_start": format_instant(intent.start_nanos),
        "window_end": format_instant(intent.start_nanos + intent.length_nanos),
        "revision": intent.revision,
        "value": str(intent.value),
        "state": intent.state.value,
    }


def render_quantity_map(quantities: Quantities) -> Json:
    """Integers stay integers, decimals become text."""
    return {
        unit: value if isinstance(value, int) else format_quantity(value) for unit, value in sorted(quantities.items())
    }


def _render_amount(attos: int | None) -> str | None:
    return None if attos is None else format_attos(attos)
