"""Closed periods and their frozen invoices: append-only, with who, when and why. Owns the tables, not the amounts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from otelbill_collector.domain.instants import format_instant
from otelbill_collector.domain.invoices import (
    Currency,
    Line,
    derive_invoice_id,
    derive_line_id,
    read_line,
    render_canonical,
)
from otelbill_collector.domain.periods import Period
from otelbill_collector.domain.terms import Term, read_term
from otelbill_collector.ledger.findings import RESTORE, Finding, Report, Touched

INVOICES = "invoices"
SINCE = 8  # the schema version that has invoices

Json = dict[str, Any]  # Any: JSON values


class InvoiceState(StrEnum):
    """What an invoice is: frozen and waiting, to be paid, or taken back before it was approved."""

    DRAFT = "draft"
    APPROVED = "approved"
    VOIDED = "voided"


class InvoiceRefused(ValueError):
    """The state of an invoice does not allow what was asked. The message says why; nothing is written."""


class UnknownInvoice(LookupError):
    """No invoice or line has this id."""


@dataclass(frozen=True, slots=True)
class InvoiceEvent:
    """One change of an invoice's state."""

    state: InvoiceState
    operator: str
    reason: str
    at_nanos: int

    def render(self) -> Json:
        """JSON values."""
        at = format_instant(self.at_nanos)
        return {"state": self.state.value, "operator": self.operator, "reason": self.reason, "at": at}


@dataclass(frozen=True)
class Invoice:
    """A frozen invoice. `text` is canonical JSON; everything else is read from there. No slots: that is kept."""

    number: int
    invoice_id: str
    customer_id: str
    mark: int
    text: str
    made_nanos: int
    events: tuple[InvoiceEvent, ...]
    start_nanos: int
    end_nanos: int

    @property
    def state(self) -> InvoiceState:
        """The latest state."""
        return self.events[-1].state

    @property
    def stands(self) -> bool:
        """Whether its lines count as invoiced."""
        return self.state is not InvoiceState.VOIDED

    @cached_property
    def content(self) -> Json:
        """What the invoice says."""
        value: Json = json.loads(self.text)
        return value

    @property
    def period(self) -> Period:
        """The period that it closed."""
        return Period(self.content["period"], self.start_nanos, self.end_nanos)

    @property
    def currency(self) -> Currency:
        """What it is in."""
        return Currency(self.content["currency"], self.content["digits"])

    @cached_property
    def lines(self) -> list[Line]:
        """Its lines, in order."""
        return [read_line(body, self.currency) for body in self.content["lines"]]

    @property
    def terms(self) -> list[Term]:
        """The fees, discounts, minimums and commitments that held for its period."""
        return [read_term(body) for body in self.content["terms"]]

    def render(self) -> Json:
        """Id, state, history and all that it says, as JSON values."""
        return {
            "invoice_id": self.invoice_id,
            "state": self.state.value,
            **self.content,
            "made_at": format_instant(self.made_nanos),
            "history": [event.render() for event in self.events],
        }


def append_invoice(connection: sqlite3.Connection, content: Json, event: InvoiceEvent, mark: int) -> Invoice:
    """Freeze an invoice as a draft, which closes its period. Call inside a write transaction. Raises InvoiceRefused.

    Refused when another invoice of the customer was made since `content` was computed.
    """
    text = render_canonical(content)
    invoice_id, customer_id = derive_invoice_id(text), content["customer_id"]
    found = list_invoices(connection, customer_id=customer_id)
    if [invoice.invoice_id for invoice in found if invoice.stands] != content["after"]:
        raise InvoiceRefused(f"another invoice of {customer_id} was made at the same time; try again")
    period = (content["from_nanos"], content["to_nanos"])
    connection.execute(
        "INSERT INTO invoice (invoice_id, customer_id, start_nanos, end_nanos, mark_segment, content, made_nanos)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (invoice_id, customer_id, *period, mark, text, event.at_nanos),
    )
    append_event(connection, invoice_id, event)
    return require_invoice(connection, invoice_id)


def append_event(connection: sqlite3.Connection, invoice_id: str, event: InvoiceEvent) -> None:
    """Record what became of an invoice. Call inside a write transaction."""
    connection.execute(
        "INSERT INTO invoice_event (invoice_id, state, operator, reason, at_nanos) VALUES (?, ?, ?, ?, ?)",
        (invoice_id, event.state.value, event.operator, event.reason, event.at_nanos),
    )


def change_state(connection: sqlite3.Connection, invoice_id: str, event: InvoiceEvent) -> Invoice:
    """Approve or void a draft. Call inside a write transaction. Raises UnknownInvoice, InvoiceRefused."""
    invoice = require_invoice(connection, invoice_id)
    if invoice.state is not InvoiceState.DRAFT:
        last = invoice.events[-1]
        remedy = "correct its usage: the difference comes with the next invoice"
        if invoice.state is InvoiceState.VOIDED:
            remedy = "close its period again"
        raise InvoiceRefused(
            f"invoice {invoice_id} was {last.state.value} by {last.operator} at {format_instant(last.at_nanos)};"
            f" {remedy}"
        )
    append_event(connection, invoice_id, event)
    return require_invoice(connection, invoice_id)


def list_invoices(connection: sqlite3.Connection, *, customer_id: str | None = None) -> list[Invoice]:
    """All invoices, or a customer's, in the order in which they were made."""
    where, values = ("", ()) if customer_id is None else ("WHERE customer_id = ?", (customer_id,))
    rows = connection.execute(f"{_SELECT} {where} ORDER BY invoice_number", values).fetchall()
    events: dict[str, list[InvoiceEvent]] = {}
    query = "SELECT invoice_id, state, operator, reason, at_nanos FROM invoice_event JOIN invoice USING (invoice_id)"
    for invoice_id, state, *rest in connection.execute(f"{query} {where} ORDER BY invoice_event_id", values):
        events.setdefault(invoice_id, []).append(InvoiceEvent(InvoiceState(state), *rest))
    return [_create_invoice(row, events.get(row[1], ())) for row in rows]


_SELECT = (
    "SELECT invoice_number, invoice_id, customer_id, mark_segment, content, made_nanos, start_nanos, end_nanos"
    " FROM invoice"
)


def _create_invoice(row: Sequence[Any], events: Iterable[InvoiceEvent]) -> Invoice:
    number, invoice_id, customer_id, mark, text, made, start, end = row
    return Invoice(number, invoice_id, customer_id, mark, text, made, tuple(events), start, end)


def require_invoice(connection: sqlite3.Connection, invoice_id: str) -> Invoice:
    """The invoice of an id. Raises UnknownInvoice."""
    row = connection.execute("SELECT customer_id FROM invoice WHERE invoice_id = ?", (invoice_id,)).fetchone()
    found = [] if row is None else list_invoices(connection, customer_id=row[0])
    for invoice in found:
        if invoice.invoice_id == invoice_id:
            return invoice
    raise UnknownInvoice(f"no invoice {invoice_id}; `otelbill invoices` lists them")


def list_invoices_of_line(connection: sqlite3.Connection, line_id: str) -> list[Invoice]:
    """The invoices that a line stands on: one, unless a voided one was made again as it was."""
    rows = connection.execute(
        "SELECT DISTINCT customer_id FROM invoice WHERE instr(content, ?) > 0", (line_id,)
    ).fetchall()
    invoices = [invoice for (customer_id,) in rows for invoice in list_invoices(connection, customer_id=customer_id)]
    return [invoice for invoice in invoices if any(line.line_id == line_id for line in invoice.lines)]


def check_invoices(connection: sqlite3.Connection, report: Report) -> None:
    """Every invoice is what its id is a digest of, its lines are what their ids say, and add up to its total."""
    count = 0
    for invoice in list_invoices(connection):
        count += 1
        try:
            problem = _find_fault(invoice)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            problem = "its content cannot be read"
        if problem is not None:
            key, customer = (ascii(text)[1:-1] for text in (invoice.invoice_id, invoice.customer_id))
            report.add(Finding(INVOICES, "invoice", key, problem, RESTORE, Touched((customer,))))
    report.counts["invoices"] = count


def _find_fault(invoice: Invoice) -> str | None:
    content = invoice.content
    if derive_invoice_id(invoice.text) != invoice.invoice_id:
        return "its id is not its content's digest"
    said = (content["customer_id"], content["from_nanos"], content["to_nanos"], content["mark_segment"])
    if said != (invoice.customer_id, invoice.start_nanos, invoice.end_nanos, invoice.mark):
        return "it says another customer, period or mark than its row"
    for line in invoice.lines:
        if derive_line_id(invoice.customer_id, invoice.period, line.period, line.entry) != line.line_id:
            return f"the id of line {line.line_id} is not its content's digest"
    if invoice.currency.format_minor(sum(line.minor for line in invoice.lines)) != content["total"]:
        return "its lines do not add up to its total"
    states = [event.state for event in invoice.events]
    if states[:1] != [InvoiceState.DRAFT] or len(states) > 2 or states[1:] == [InvoiceState.DRAFT]:
        return f"its states cannot follow each other: {', '.join(states)}"
    return None
