"""What credits pay of a period's invoice. Joins `ledger.credits`, which burns by event time, and invoices' entries.

Usage priced by event is known to credits by itself. What no event carries (period charges, fees, discounts, minimums,
commitments) is handed to them as one charge at the end of its period, and kept when the period is closed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import floor

from otelbill_collector.domain.credits import Demand, Place
from otelbill_collector.domain.grants import Grant, Measure
from otelbill_collector.domain.invoices import Entry, LineKind, format_exact
from otelbill_collector.domain.periods import Period
from otelbill_collector.domain.quantities import format_micros
from otelbill_collector.ledger.credits import find_charge_time, list_credit_lines, list_grants, save_period_charges
from otelbill_collector.ledger.periods import Invoice

_CARRIED = frozenset({LineKind.USAGE, LineKind.CREDIT})


class CreditPayment:
    """Pays invoices in one currency."""

    def __init__(self, currency: str) -> None:
        self._currency = currency

    def pay(
        self,
        connection: sqlite3.Connection,
        customer_id: str,
        period: Period,
        placed: Sequence[tuple[Period, Entry]],
    ) -> list[Entry]:
        """All that credits pay of a period, one entry for each grant; `placed` is what no invoice has charged yet."""
        if not list_grants(connection, customer_id):
            return []
        charges = self._list_charges(placed)
        found = list_credit_lines(connection, customer_id, period.start_nanos, period.end_nanos, charges=charges)
        return [
            Entry(
                LineKind.CREDIT,
                Fraction(line.charge_attos),
                label=_name_grant(line.grant),
                arithmetic=_describe_burned(line.grant, line.amount, line.charge_attos),
            )
            for line in found.lines
            if line.currency == self._currency and line.charge_attos
        ]

    def keep_charges(self, connection: sqlite3.Connection, invoice: Invoice, *, sign: int, at_nanos: int) -> None:
        """Have credits pay for what an invoice charges from now on, or no longer (`sign` -1), when it is voided.

        Call inside the write transaction that closes or voids.
        """
        charges = self._list_charges([(line.period, line.entry) for line in invoice.lines])
        signed = [charge._replace(charge_attos=sign * charge.charge_attos) for charge in charges]
        save_period_charges(
            connection, invoice.customer_id, signed, origin=f"{invoice.invoice_id}/{sign:+d}", booked_nanos=at_nanos
        )

    def _list_charges(self, entries: Iterable[tuple[Period, Entry]]) -> list[Demand]:
        """One charge for each period, below zero where discounts are more than the rest; rounded down to an atto."""
        sums: dict[int, Fraction] = {}
        for period, entry in entries:
            if entry.kind not in _CARRIED:
                end = period.end_nanos
                sums[end] = sums.get(end, Fraction(0)) + entry.amount
        return [
            Demand(Place(find_charge_time(end), "", "", "", ""), self._currency, charge_attos=floor(amount))
            for end, amount in sorted(sums.items())
        ]


def _name_grant(grant: Grant) -> str:
    return f"credit {grant.grant_id}: {grant.reason}"


def _describe_burned(grant: Grant, amount: int, charge_attos: int) -> str:
    if grant.measure is Measure.UNITS:
        return f"{format_micros(amount)} {grant.asset} of the grant, worth {format_exact(Fraction(-charge_attos))}"
    return f"{format_exact(Fraction(-charge_attos))} of the grant"
