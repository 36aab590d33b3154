"""From records to invoices: the draft of one customer and period, and what closing a period checks and freezes.

Composes sums, prices, terms, earlier invoices and credits; each of them is owned elsewhere (see docs/decisions/0008).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from otelbill_collector.domain.instants import format_instant
from otelbill_collector.domain.invoices import (
    Currency,
    Entry,
    Key,
    Line,
    LineKind,
    derive_line_id,
    format_exact,
    list_differences,
    render_line,
    round_amounts,
    sum_entries,
)
from otelbill_collector.domain.periods import BillingCalendar, InvalidPeriod, Period
from otelbill_collector.domain.ratecard import RateCard
from otelbill_collector.domain.selectors import EventNames
from otelbill_collector.domain.statements import UsageSum, count_committed, make_statement
from otelbill_collector.domain.terms import COMMITMENT, Term, render_term, resolve_terms
from otelbill_collector.ledger.journal import find_last_segment, find_price_version, save_price_versions
from otelbill_collector.ledger.periods import Invoice, InvoiceEvent, append_invoice, list_invoices
from otelbill_collector.ledger.restated_terms import list_closed_terms
from otelbill_collector.ledger.tombstones import find_floor
from otelbill_collector.ledger.usage_sums import Blocker, has_records, list_blockers, load_usage_sums

Json = dict[str, Any]  # Any: JSON values
# What credits pay of a period in all, as entries of kind `credit` with negative amounts. Handed in is what the draft
# charges, for any period, that no earlier invoice has.
Pay = Callable[[sqlite3.Connection, str, Period, Sequence[tuple[Period, Entry]]], Sequence[Entry]]


class CannotInvoice(ValueError):
    """A draft or a closing is refused. The message says why and what resolves it; nothing is written."""


class Blocked(CannotInvoice):
    """Usage in the period waits for a decision. `blockers` are the events, each with the command that resolves it."""

    def __init__(self, customer_id: str, period: Period, blockers: Sequence[Blocker]) -> None:
        count = len(blockers)
        super().__init__(
            f"{customer_id} {period.label} cannot be closed: "
            f"{count} event{'s wait' if count > 1 else ' waits'} for a decision"
        )
        self.blockers = tuple(blockers)


@dataclass(frozen=True, slots=True)
class BillingRules:
    """What the configuration says about invoices. `find_names` gives a customer with its group and contract."""

    card: RateCard
    currency: Currency
    grace_nanos: int
    find_calendar: Callable[[str], BillingCalendar]
    find_names: Callable[[str], EventNames]


@dataclass(frozen=True, slots=True)
class Draft:
    """What an invoice would say now. `mark` is the last segment seen, `after` the invoices it comes after."""

    customer_id: str
    period: Period
    calendar: BillingCalendar
    currency: Currency
    mark: int
    lines: tuple[Line, ...]
    terms: tuple[Term, ...]
    revision: int
    after: tuple[str, ...]
    restated: tuple[tuple[Period, tuple[Term, ...]], ...] = ()  # terms of earlier periods that its adjustments follow

    def render(self) -> Json:
        """The content of the invoice: what is frozen when the period is closed."""
        total = sum(line.minor for line in self.lines)
        restated = [
            {"period": period.label, "from": format_instant(period.start_nanos), "terms": list(map(render_term, terms))}
            for period, terms in self.restated
        ]
        return {
            **({"restated": restated} if restated else {}),
            "customer_id": self.customer_id,
            "period": self.period.label,
            "from": format_instant(self.period.start_nanos),
            "to": format_instant(self.period.end_nanos),
            "from_nanos": self.period.start_nanos,
            "to_nanos": self.period.end_nanos,
            "time_zone": self.calendar.time_zone,
            "anchor_day": self.calendar.anchor_day,
            "mark_segment": self.mark,
            "revision": self.revision,
            "after": list(self.after),
            "currency": self.currency.code,
            "digits": self.currency.digits,
            "terms": [render_term(term) for term in self.terms],
            "lines": [render_line(line, self.currency) for line in self.lines],
            "exact_total": format_exact(sum((line.entry.amount for line in self.lines), Fraction(0))),
            "total": self.currency.format_minor(total),
        }


def pay_nothing(
    _connection: sqlite3.Connection, _customer_id: str, _period: Period, _placed: Sequence[tuple[Period, Entry]]
) -> Sequence[Entry]:
    """Without credits, nothing is paid before the invoice is."""
    return ()


def find_billing_period(connection: sqlite3.Connection, rules: BillingRules, customer_id: str, label: str) -> Period:
    """The period of a label. Periods that are closed keep their limits, whatever the calendar says today.

    Where a calendar was changed, the first period after that begins where the last closed one ended.
    """
    standing = [invoice for invoice in list_invoices(connection, customer_id=customer_id) if invoice.stands]
    for invoice in standing:
        if label in (invoice.period.label, f"{invoice.period.label}-01"):
            return invoice.period
    calendar = rules.find_calendar(customer_id)
    period = calendar.parse_label(label)
    for other in (invoice.period for invoice in standing):
        if (other.start_nanos, other.end_nanos) == (period.start_nanos, period.end_nanos):
            return other
        if other.start_nanos <= period.start_nanos < other.end_nanos < period.end_nanos:
            return Period(calendar.name_start(other.end_nanos), other.end_nanos, period.end_nanos)
        if other.start_nanos < period.end_nanos and period.start_nanos < other.end_nanos:
            raise InvalidPeriod(f"{label} overlaps {other.label} of {customer_id}, which is closed; name that one")
    return period


class _History:
    """A customer's invoices: what was invoiced for which period, and which periods must be computed again."""

    def __init__(self, invoices: Sequence[Invoice], terms: Mapping[int, tuple[Sequence[Term], bool]]) -> None:
        self.all = invoices
        self._terms = terms
        self.standing = [invoice for invoice in invoices if invoice.stands]
        self.closed = sorted((invoice.period for invoice in self.standing), key=lambda period: period.start_nanos)

    def list_invoiced(self, period: Period, *, credits: bool = False) -> dict[Key, Entry]:
        """Everything invoiced for a period that still stands, by key: what is owed, or the credits that paid for it."""
        lines = (line for invoice in self.standing for line in invoice.lines)
        return sum_entries(
            line.entry
            for line in lines
            if line.period.start_nanos == period.start_nanos and (line.entry.kind is LineKind.CREDIT) is credits
        )

    def list_terms(self, period: Period) -> list[Term]:
        """The terms of a closed period: those of its closing, or as they were restated since."""
        return list(self._terms[period.start_nanos][0])

    def is_restated(self, period: Period) -> bool:
        """Whether its terms are others than those on its invoice."""
        return self._terms[period.start_nanos][1]

    def find_settled_mark(self, period: Period) -> int | None:
        """The last segment that an invoice has considered for a period; None when that must not be relied on."""
        later = [invoice for invoice in self.all if invoice.start_nanos >= period.start_nanos]
        if not all(invoice.stands for invoice in later):
            return None
        return max((invoice.mark for invoice in later), default=None)

    def count_revisions(self, period: Period) -> int:
        """How many invoices of this period have been made."""
        return sum(invoice.start_nanos == period.start_nanos for invoice in self.all)


def _load_history(connection: sqlite3.Connection, customer_id: str) -> _History:
    invoices = list_invoices(connection, customer_id=customer_id)
    terms = list_closed_terms(connection, invoices)
    return _History(invoices, {start: found for (_, start), found in terms.items()})


class Drafting:
    """Drafts of one customer, on one snapshot of the ledger."""

    def __init__(self, connection: sqlite3.Connection, rules: BillingRules, customer_id: str) -> None:
        self._connection = connection
        self._rules = rules
        self._customer_id = customer_id
        self._history = _load_history(connection, customer_id)
        self._floor_nanos = find_floor(connection)
        self._spent: dict[int, Fraction] = {}  # start of a period -> what of it counts towards commitments
        self._versions: dict[str, Json] = {
            charge.version.version_id: dict(charge.version.read_body()) for charge in rules.card.charges
        }

    def draft(self, period: Period, pay: Pay = pay_nothing) -> Draft:
        """What the invoice of a period would say now. Raises CannotInvoice, UnknownVersion."""
        history, customer_id = self._history, self._customer_id
        terms = resolve_terms(self._rules.card, self._rules.find_names(customer_id), period)
        adjustments = [
            (earlier, entry)
            for earlier in history.closed
            if earlier.start_nanos < period.start_nanos
            for entry in self._list_late(earlier)
        ]
        current = self._state_period(period, terms)
        own = [(period, entry) for entry in list_differences(current, history.list_invoiced(period))]
        placed = [*own, *adjustments]
        placed += self._list_credits(period, placed, pay)
        return Draft(
            customer_id=customer_id,
            period=period,
            calendar=self._rules.find_calendar(customer_id),
            currency=self._rules.currency,
            mark=find_last_segment(self._connection),
            lines=tuple(self._number_lines(period, placed)),
            terms=tuple(terms),
            revision=history.count_revisions(period),
            after=tuple(invoice.invoice_id for invoice in history.standing),
            restated=tuple(
                (earlier, tuple(history.list_terms(earlier)))
                for earlier in history.closed
                if earlier.start_nanos < period.start_nanos and history.is_restated(earlier)
            ),
        )

    def _list_credits(
        self, period: Period, placed: Sequence[tuple[Period, Entry]], pay: Pay
    ) -> list[tuple[Period, Entry]]:
        """Credits follow by difference, as everything does: late usage may burn more, a late grant may pay for more."""
        found: list[tuple[Period, Entry]] = []
        earlier = [closed for closed in self._history.closed if closed.start_nanos < period.start_nanos]
        for item in (period, *earlier):
            paid = pay(self._connection, self._customer_id, item, placed)
            invoiced = self._history.list_invoiced(item, credits=True)
            found += [(item, entry) for entry in list_differences(paid, invoiced)]
        return found

    def list_adjusted(self, period: Period) -> list[Entry]:
        """What is left to invoice of a closed period, because of usage that came late or was corrected since."""
        for earlier in self._history.closed:
            if earlier.start_nanos < period.start_nanos:
                self._list_late(earlier)
        return self._list_late(period)

    def _list_late(self, period: Period) -> list[Entry]:
        """Differences of a closed period; periods must be asked for in order, since terms may reach over several."""
        invoiced, terms = self._history.list_invoiced(period), self._history.list_terms(period)
        if self._is_settled(period, terms):
            self._spent[period.start_nanos] = count_committed(invoiced.values())
            return []
        return list_differences(self._state_period(period, terms), invoiced)

    def _is_settled(self, period: Period, terms: Sequence[Term]) -> bool:
        if period.end_nanos <= self._floor_nanos:  # nothing was left to invoice when it became final
            return True
        mark = self._history.find_settled_mark(period)
        if mark is None or self._history.is_restated(period) or any(term.section == COMMITMENT for term in terms):
            return False
        bounds = {"from_nanos": period.start_nanos, "to_nanos": period.end_nanos}
        return not has_records(self._connection, self._customer_id, after=mark, **bounds)

    def _state_period(self, period: Period, terms: Sequence[Term]) -> list[Entry]:
        """What the records say of a period now."""
        sums = load_usage_sums(
            self._connection,
            from_nanos=period.start_nanos,
            to_nanos=period.end_nanos,
            customer_id=self._customer_id,
        ).get(self._customer_id, [])
        self._require_currency(sums, period)
        self._load_versions(sums)
        entries = make_statement(sums, self._versions, terms, lambda term: self._count_spent(term, period))
        self._spent[period.start_nanos] = count_committed(entries)
        return entries

    def _count_spent(self, term: Term, period: Period) -> Fraction:
        """What the closed periods of a term, before this one, came to."""
        earlier = (item for item in self._history.closed if item.start_nanos < period.start_nanos and term.counts(item))
        return sum((self._spent[item.start_nanos] for item in earlier), Fraction(0))

    def _require_currency(self, sums: Iterable[UsageSum], period: Period) -> None:
        other = {item.currency for item in sums} - {self._rules.currency.code, None}
        if other:
            raise CannotInvoice(
                f"usage of {self._customer_id} in {period.label} was rated in {', '.join(sorted(map(str, other)))}, "
                f"the rate card is in {self._rules.currency.code}; invoice that period with a card in its own currency"
            )

    def _load_versions(self, sums: Iterable[UsageSum]) -> None:
        for name in {item.version for item in sums if item.version is not None}:
            self._load_version(name)
            for price in self._versions.get(name, {}).get("prices", {}).values():
                if price["charge"] == "period":
                    self._load_version(price["entry"]["period_charge"]["version"])

    def _load_version(self, name: str) -> None:
        if name not in self._versions and (version := find_price_version(self._connection, name)) is not None:
            self._versions[name] = json.loads(version)

    def _number_lines(self, period: Period, placed: Sequence[tuple[Period, Entry]]) -> Iterator[Line]:
        amounts = [entry.amount for _, entry in placed]
        rounded = round_amounts(amounts, self._rules.currency.minor_attos)
        for (origin, entry), minor in zip(placed, rounded, strict=True):
            line_id = derive_line_id(self._customer_id, period, origin, entry)
            yield Line(line_id, origin, origin.start_nanos != period.start_nanos, entry, minor)


def require_closable(
    connection: sqlite3.Connection, rules: BillingRules, customer_id: str, period: Period, now_nanos: int
) -> None:
    """Raises CannotInvoice unless a period can be closed now."""
    history = _load_history(connection, customer_id)
    for invoice in history.standing:
        if invoice.start_nanos == period.start_nanos:
            raise CannotInvoice(
                f"{customer_id} {period.label} is closed: invoice {invoice.invoice_id} is {invoice.state.value}; "
                "what came since is adjusted with the next period"
            )
    due = period.end_nanos + rules.grace_nanos
    if now_nanos < due:
        raise CannotInvoice(
            f"{customer_id} {period.label} ends {format_instant(period.end_nanos)} and can be closed from"
            f" {format_instant(due)} on (billing.grace)"
        )
    _require_earlier_closed(history, customer_id, period)
    blockers = list_blockers(connection, customer_id, from_nanos=period.start_nanos, to_nanos=period.end_nanos)
    if history.closed and history.closed[0].start_nanos < period.start_nanos:
        # Late usage in closed periods, all of which comes after what those have seen.
        mark = min(invoice.mark for invoice in history.standing)
        bounds = {"from_nanos": history.closed[0].start_nanos, "to_nanos": period.start_nanos}
        blockers = [*list_blockers(connection, customer_id, after=mark, **bounds), *blockers]
    if blockers:
        raise Blocked(customer_id, period, blockers)


def _require_earlier_closed(history: _History, customer_id: str, period: Period) -> None:
    """Periods are closed one after the other, or what lies between would never be invoiced."""
    ends = [closed.end_nanos for closed in history.closed if closed.end_nanos <= period.start_nanos]
    voided = [
        invoice.period
        for invoice in history.all
        if not invoice.stands and invoice.start_nanos < period.start_nanos and invoice.period not in history.closed
    ]
    if voided:
        raise CannotInvoice(
            f"{customer_id} {voided[0].label} comes first, its invoice was voided; run "
            f"`otelbill close {customer_id} --period {voided[0].label}`"
        )
    if ends and max(ends) < period.start_nanos:
        raise CannotInvoice(
            f"{customer_id} {period.label} comes after a period that is still open, the one that begins "
            f"{format_instant(max(ends))}; close that first"
        )


def close_period(connection: sqlite3.Connection, draft: Draft, rules: BillingRules, event: InvoiceEvent) -> Invoice:
    """Freeze a draft, with the price versions that it names. Call inside a write transaction. Raises InvoiceRefused."""
    bodies = {term.version_id: term.version_body for term in draft.terms if term.version_body}
    bodies |= {charge.version.version_id: charge.version.body for charge in rules.card.charges}
    save_price_versions(connection, bodies)
    return append_invoice(connection, draft.render(), event, draft.mark)


def list_remedies(blocker: Blocker) -> list[str]:
    """What resolves it, ready to be typed; the last one bills nothing for it."""
    event_id = blocker.event_id
    void = f'otelbill adjust {event_id} --void --reason "..."'
    if blocker.state == "suspense":
        return [f'otelbill adjust {event_id} --customer CUSTOMER --reason "..."', void]
    if blocker.state == "held":
        return [f'otelbill resolve {event_id} --input-tokens N --output-tokens N --reason "..."', void]
    names = " ".join(name for name in (blocker.provider, blocker.model) if name)
    what = names or "its units, which `otelbill held` shows,"
    card = f"add a price for {what} to rate_card.prices, then start otelbill collector again"
    return [card, f'otelbill adjust {event_id} --charge AMOUNT --reason "..."', void]


def render_blocker(blocker: Blocker) -> Json:
    """A blocker with what resolves it, as JSON values."""
    return {**blocker.render(), "remedies": list_remedies(blocker)}
