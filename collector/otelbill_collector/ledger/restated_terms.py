"""Terms of closed periods as they were corrected after the closing, append-only. Owns the table, not the amounts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from otelbill_collector.domain.invoices import render_canonical
from otelbill_collector.domain.terms import Term, read_term, render_term
from otelbill_collector.ledger.periods import Invoice


@dataclass(frozen=True, slots=True)
class Restated:
    """What holds for a customer's closed period in place of the terms on its invoice, who says so and why."""

    customer_id: str
    start_nanos: int
    end_nanos: int
    terms: tuple[Term, ...]
    operator: str
    reason: str
    given_nanos: int


def save_restated(connection: sqlite3.Connection, restated: Iterable[Restated]) -> None:
    """Append restated terms. Call inside a write transaction."""
    connection.executemany(
        "INSERT INTO restated_terms (customer_id, start_nanos, end_nanos, terms, operator, reason, given_nanos)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (
                *(item.customer_id, item.start_nanos, item.end_nanos),
                render_canonical({"terms": [render_term(term) for term in item.terms]}),
                *(item.operator, item.reason, item.given_nanos),
            )
            for item in restated
        ],
    )


def list_closed_terms(
    connection: sqlite3.Connection, invoices: Sequence[Invoice]
) -> dict[tuple[str, int], tuple[Sequence[Term], bool]]:
    """(terms in force, whether they were restated) of each period that standing invoices close, by customer and start.

    A period that was closed anew has the terms of that closing.
    """
    query = (
        "SELECT customer_id, start_nanos, end_nanos, terms, operator, reason, given_nanos FROM restated_terms"
        " ORDER BY restated_id"
    )
    latest = {(row[0], row[1]): row for row in connection.execute(query)}
    found: dict[tuple[str, int], tuple[Sequence[Term], bool]] = {}
    for invoice in invoices:
        if invoice.stands:
            key = (invoice.customer_id, invoice.start_nanos)
            row = latest.get(key)
            if row is None or row[-1] < invoice.made_nanos:
                found[key] = (invoice.terms, False)
            else:
                found[key] = (tuple(read_term(body) for body in json.loads(row[3])["terms"]), True)
    return found
