"""What credits pay of an invoice: usage of its period, and charges that no event carries. Owns their lines' wording."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from fractions import Fraction

from otelbill_collector.domain.credits import Demand, Place
from otelbill_collector.domain.grants import Measure
from otelbill_collector.domain.invoices import Entry, LineKind
from otelbill_collector.domain.periods import Period
from otelbill_collector.ledger.credits import (
    CreditLine,
    find_charge_time,
    list_credit_lines,
    list_grants,
    save_period_charges,
)


def pay_by_credits(
    connection: sqlite3.Connection, customer_id: str, period: Period, charges: Sequence[Entry]
) -> list[Entry]:
    """All that credits pay of a period, one entry of kind `credit` with a negative amount a grant.

    `charges` are the period's entries that no event carries and that `save_invoiced_charges` has not been given. What
    lowers them (discounts) is taken off the others first; credits pay whole attos of the rest.
    """
    grants = list_grants(connection, customer_id)
    currency = next((grant.asset for grant in grants if grant.measure is Measure.MONEY), "")
    demands = _list_demands(period, charges, currency)
    found = list_credit_lines(connection, customer_id, period.start_nanos, period.end_nanos, charges=demands)
    return [_create_entry(line) for line in found.lines if line.charge_attos] if grants else []


def save_invoiced_charges(
    connection: sqlite3.Connection,
    customer_id: str,
    period: Period,
    charges: Sequence[Entry],
    *,
    currency: str,
    invoice_id: str,
    booked_nanos: int,
) -> None:
    """Tell credits, once, of an invoice's charges that no event carries: balances count them from then on. Call inside
    the write transaction that freezes the invoice.
    """
    demands = _list_demands(period, charges, currency)
    save_period_charges(connection, customer_id, demands, origin=invoice_id, booked_nanos=booked_nanos)


def _list_demands(period: Period, charges: Sequence[Entry], currency: str) -> list[Demand]:
    """Whole attos of what is to be paid, after what lowers it has been taken off in order."""
    carried = [entry for entry in charges if entry.kind not in (LineKind.USAGE, LineKind.CREDIT)]
    lowered = -sum((entry.amount for entry in carried if entry.amount < 0), Fraction(0))
    at_nanos = find_charge_time(period.end_nanos)
    demands = []
    for entry in (entry for entry in carried if entry.amount > 0):
        taken = min(lowered, entry.amount)
        lowered -= taken
        rest = entry.amount - taken
        place = Place(at_nanos, entry.project or "", entry.step or "", entry.model or "", entry.unit or "")
        demands.append(Demand(place, currency, charge_attos=rest.numerator // rest.denominator))
    return [demand for demand in demands if demand.charge_attos]


def _create_entry(line: CreditLine) -> Entry:
    grant = line.grant
    paid = f"{grant.format_amount(line.amount)} {grant.asset} of {grant.format_amount(grant.amount)}"
    label = f"{grant.origin.value.capitalize()} credit {grant.grant_id}"
    return Entry(LineKind.CREDIT, Fraction(line.charge_attos), label=label, arithmetic=f"{paid}: {grant.reason}")
