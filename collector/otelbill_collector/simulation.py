"""What history would have earned under another rate card: events and whole billing periods on both sides, exactly.

Owns the comparison; nothing is written. Sums by columns are `ledger.repricing`'s, statements `domain.statements`'.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.invoices import format_exact
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.periods import Period
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.statements import count_committed, make_statement
from otelbill_collector.domain.terms import COMMITMENT, Term, resolve_terms
from otelbill_collector.invoicing import BillingRules
from otelbill_collector.ledger.corrections import Aspect, list_standing
from otelbill_collector.ledger.journal import find_price_version
from otelbill_collector.ledger.periods import Invoice, list_invoices
from otelbill_collector.ledger.repricing import (
    PeriodSplit,
    Progress,
    Repriced,
    Repricing,
    Scope,
    Uses,
    sum_repriced,
)
from otelbill_collector.ledger.restated_terms import list_closed_terms

Json = dict[str, Any]  # answers are printed as JSON

GROUPS = ("light", "median", "heavy")


@dataclass(frozen=True, slots=True)
class Agreements:
    """What is agreed with customers now, and what would be: for the charges of billing periods on both sides.

    With `keep_closed` closed periods have their terms on both sides, as `rerate` without `--terms` leaves them.
    """

    booked: BillingRules
    then: BillingRules
    customers: Collection[str] = ()  # who is billed for periods without usage, too
    keep_closed: bool = False


@dataclass(slots=True)
class PeriodSums:
    """What billing periods of a customer come to beside the charges of events, exactly: charges, fees, discounts,
    minimums, commitments. In attos; a prorated fee may be a fraction.
    """

    periods: int = 0
    booked: Fraction = Fraction(0)
    then: Fraction = Fraction(0)

    def add(self, other: PeriodSums) -> None:
        """Add another customer's."""
        self.periods += other.periods
        self.booked += other.booked
        self.then += other.then


@dataclass(slots=True)
class Simulated:
    """By customer, the sums over events and those over billing periods."""

    events: dict[str | None, Repriced]
    periods: dict[str | None, PeriodSums] = field(default_factory=dict)


def simulate(
    connection: sqlite3.Connection,
    rater: Rater,
    scope: Scope,
    progress: Progress,
    agreements: Agreements | None = None,
) -> Simulated:
    """By customer, what is booked in the scope and what it would be under the rater's prices.

    A charge that an operator gave by hand stays what it is under any card. With `agreements` the billing periods that
    lie in the scope as a whole are stated on both sides, unless the scope is about a part of their usage. Raises
    UnknownVersion.
    """
    given = frozenset(event_id for event_id, standing in list_standing(connection) if Aspect.CHARGE in standing)
    scope = replace(scope, fixed=given)
    split = None
    if agreements is not None:
        split = PeriodSplit(agreements.booked.find_calendar, by_names=_tell_names(connection, agreements))
    found = sum_repriced(connection, rater, scope, progress, split)
    periods: dict[str | None, PeriodSums] = {}
    if agreements is not None and not set(scope.where) - {"customer_id"}:
        periods = _state_periods(connection, found, scope, agreements)
    return Simulated(found.sums, periods)


def _tell_names(connection: sqlite3.Connection, agreements: Agreements) -> bool:
    """Whether any discount is about usage of certain names, so that those must be summed apart."""
    selectors = [item.selector for rules in (agreements.booked, agreements.then) for item in rules.card.discounts]
    named = any(item.step or item.model or item.provider for item in selectors)
    closed = list_closed_terms(connection, list_invoices(connection)).values()
    return named or any(term.usage for terms, _ in closed for term in terms)


def _state_periods(
    connection: sqlite3.Connection, found: Repricing, scope: Scope, agreements: Agreements
) -> dict[str | None, PeriodSums]:
    invoices = [invoice for invoice in list_invoices(connection) if invoice.stands]
    closed = {place: terms for place, (terms, _) in list_closed_terms(connection, invoices).items()}
    since = scope.from_nanos
    begun = {item.customer_id for item in invoices if since is not None and item.start_nanos < since}
    kept = closed if agreements.keep_closed else {}
    sides = (
        _Side(PriceContents(agreements.booked, {}, connection), agreements.booked, found.booked, closed),
        _Side(PriceContents(agreements.then, found.bodies, connection), agreements.then, found.then, kept),
    )
    sums: dict[str | None, PeriodSums] = {}
    for customer, periods in _list_stated(found, scope, agreements, invoices).items():
        known_from = since if customer in begun else None
        booked, then = (side.sum_periods(customer, periods, known_from) for side in sides)
        sums[customer] = PeriodSums(len(periods), booked, then)
    return sums


def _list_stated(
    found: Repricing, scope: Scope, agreements: Agreements, invoices: Sequence[Invoice]
) -> dict[str, list[Period]]:
    """Which periods are stated for whom: those with usage; for who is billed anyhow, all that anybody has."""
    stated: dict[str, set[Period]] = {}
    for customer, period in {*found.booked, *found.then}:
        stated.setdefault(customer, set()).add(period)
    instants = {*found.instants.values(), *((item.start_nanos + item.end_nanos) // 2 for item in invoices)}
    wanted = scope.where.get("customer_id")
    for customer in {*agreements.customers, *(invoice.customer_id for invoice in invoices)}:
        if wanted in (None, customer):
            calendar = agreements.booked.find_calendar(customer)
            periods = {calendar.find_period(instant) for instant in instants}
            stated.setdefault(customer, set()).update(filter(scope.holds, periods))
    return {
        customer: sorted(periods, key=lambda period: period.start_nanos)
        for customer, periods in stated.items()
        if periods
    }


class PriceContents(dict[str, Mapping[str, Any]]):
    """Contents of price versions by id: those of a card, those that were found, and those of the ledger."""

    def __init__(self, rules: BillingRules, bodies: Mapping[str, str], connection: sqlite3.Connection) -> None:
        versions = [charge.version for charge in rules.card.charges]
        super().__init__({version.version_id: version.read_body() for version in versions})
        self.update({name: json.loads(body) for name, body in bodies.items()})
        self._connection = connection

    def get(self, name: str, default: Any = None) -> Any:
        """The content, read when it is asked for."""
        if name not in self and (body := find_price_version(self._connection, name)) is not None:
            self[name] = json.loads(body)
        return super().get(name, default)


@dataclass(frozen=True, slots=True)
class _Side:
    """Statements of one side: usage, and the terms that hold; those of closed periods stand in their invoices."""

    versions: Mapping[str, Mapping[str, Any]]
    rules: BillingRules
    uses: Uses
    closed: Mapping[tuple[str, int], Sequence[Term]]

    def sum_periods(self, customer: str, periods: Sequence[Period], known_from: int | None) -> Fraction:
        """What the periods come to, less what their events are charged by themselves.

        What was invoiced for time before `known_from` is not known, and so no commitment whose term began before.
        """
        spent: dict[int, Fraction] = {}
        total = Fraction(0)
        for period in periods:
            sums = list(self.uses.get((customer, period), {}).values())
            terms = self._list_terms(customer, period, known_from)

            def count(term: Term) -> Fraction:
                held = [item for item in periods if item.start_nanos in spent and term.counts(item)]
                return sum((spent[item.start_nanos] for item in held), Fraction(0))

            entries = make_statement(sums, self.versions, terms, count)
            spent[period.start_nanos] = count_committed(entries)
            total += sum((entry.amount for entry in entries), Fraction(0)) - sum(item.charge_attos for item in sums)
        return total

    def _list_terms(self, customer: str, period: Period, known_from: int | None) -> list[Term]:
        terms = self.closed.get((customer, period.start_nanos))
        if terms is None:
            terms = resolve_terms(self.rules.card, self.rules.find_names(customer), period)
        return [term for term in terms if term.section != COMMITMENT or _is_known(term, known_from)]


def _is_known(term: Term, known_from: int | None) -> bool:
    return known_from is None or (term.from_nanos is not None and known_from <= term.from_nanos)


def identify_prices(rater: Rater) -> str:
    """16 hex characters that two raters share only when they have the same rate card."""
    return digest_parts("rate-card", repr(rater.card), repr(sorted(rater.members.items()))).hex()[:16]


def render_simulation(found: Simulated, currency: str) -> Json:
    """Customers with the largest charge first, the whole, and light, median and heavy users apart."""
    none = PeriodSums()
    sums = {
        customer: (found.events.get(customer, Repriced()), found.periods.get(customer, none))
        for customer in {**found.events, **found.periods}
    }
    ranked = sorted(sums.items(), key=lambda item: (-item[1][0].charge_attos - item[1][1].then, str(item[0])))
    groups = split_by_use(found.events).items()
    return {
        "currency": currency,
        "customers": [{"customer": customer, **_render(*parts)} for customer, parts in ranked],
        "groups": [
            {"group": name, "customers": len(members), **_render(*_add_up(sums[member] for member in members))}
            for name, members in groups
        ],
        "total": _render(*_add_up(sums.values())),
    }


def split_by_use(sums: Mapping[str | None, Repriced]) -> dict[str, list[str]]:
    """The quarter of customers that cost least, the half in the middle, and the quarter that cost most."""
    known = {customer: found for customer, found in sums.items() if customer is not None}
    ranked = sorted(known, key=lambda customer: (known[customer].cost_attos, customer))
    quarter = len(ranked) // 4
    cuts = (0, quarter, len(ranked) - quarter, len(ranked))
    return {name: ranked[cuts[place] : cuts[place + 1]] for place, name in enumerate(GROUPS)}


def _add_up(parts: Iterable[tuple[Repriced, PeriodSums]]) -> tuple[Repriced, PeriodSums]:
    events, periods = Repriced(), PeriodSums()
    for one, other in parts:
        events.add(one)
        periods.add(other)
    return events, periods


def _render(found: Repriced, periods: PeriodSums) -> Json:
    booked, then = found.booked_charge_attos + periods.booked, found.charge_attos + periods.then
    return {
        "events": found.events,
        "cost": format_attos(found.cost_attos),
        "charge_booked": format_exact(booked),
        "charge": format_exact(then),
        "difference": format_exact(then - booked),
        "margin_booked": format_exact(booked - found.booked_cost_attos),
        "margin": format_exact(then - found.cost_attos),
        "periods": periods.periods,
        "by_period_booked": format_exact(periods.booked),
        "by_period": format_exact(periods.then),
        "unpriced_booked": found.booked_uncharged,
        "unpriced": found.uncharged,
        "changed": found.changed,
    }
