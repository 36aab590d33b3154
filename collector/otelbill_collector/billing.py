"""Billing under a configuration: drafts, closing, approving, listing. Owns the answers' shape as plain JSON values."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from otelbill_collector.config import Config
from otelbill_collector.credit_payment import CreditPayment
from otelbill_collector.domain.invoices import find_currency
from otelbill_collector.domain.periods import InvalidPeriod, Period
from otelbill_collector.domain.selectors import EventNames, Membership
from otelbill_collector.domain.statements import UnknownVersion
from otelbill_collector.domain.terms import render_term, resolve_terms
from otelbill_collector.invoicing import (
    BillingRules,
    Blocked,
    CannotInvoice,
    Draft,
    Drafting,
    Pay,
    close_period,
    find_billing_period,
    render_blocker,
    require_closable,
)
from otelbill_collector.ledger.journal import save_price_versions
from otelbill_collector.ledger.periods import (
    Invoice,
    InvoiceEvent,
    InvoiceRefused,
    InvoiceState,
    UnknownInvoice,
    append_event,
    change_state,
    list_invoices,
    require_invoice,
)
from otelbill_collector.ledger.repricing import Scope
from otelbill_collector.ledger.restated_terms import Restated, list_closed_terms, save_restated
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.ledger.tombstones import find_floor
from otelbill_collector.ledger.usage_sums import list_customers

Json = dict[str, Any]  # Any: JSON values
BILLING_ERRORS = (CannotInvoice, InvoiceRefused, InvalidPeriod, UnknownVersion, UnknownInvoice)
OPEN = "open"  # the state of a draft whose period is not closed


def build_billing_rules(config: Config) -> BillingRules:
    """What the configuration says about invoices."""
    card, billing, members = config.rate_card, config.billing, config.list_members()

    def find_names(customer_id: str) -> EventNames:
        member = members.get(customer_id, Membership())
        return EventNames(customer_id=customer_id, group=member.group, contract=member.contract)

    currency = find_currency(card.currency, billing.currency_digits)
    return BillingRules(card, currency, billing.grace_nanos, config.find_calendar, find_names)


def load_invoice(
    connection: sqlite3.Connection, rules: BillingRules, customer_id: str, label: str, pay: Pay | None = None
) -> Json:
    """The invoice of a closed period, or the draft of an open one. Raises BILLING_ERRORS."""
    period = find_billing_period(connection, rules, customer_id, label)
    for invoice in list_invoices(connection, customer_id=customer_id):
        if invoice.stands and invoice.start_nanos == period.start_nanos:
            return invoice.render()
    pay = pay or CreditPayment(rules.currency.code).pay
    draft = Drafting(connection, rules, customer_id).draft(period, pay)
    return render_draft(draft)


def render_draft(draft: Draft) -> Json:
    """A draft as JSON values, in the form of an invoice without an id."""
    return {"invoice_id": None, "state": OPEN, **draft.render(), "made_at": None, "history": []}


def render_summary(invoice: Invoice) -> Json:
    """An invoice without its lines and terms."""
    whole = invoice.render()
    names = ("invoice_id", "state", "customer_id", "period", "from", "to", "currency", "total", "made_at", "history")
    return {name: whole[name] for name in names} | {"lines": len(invoice.lines)}


def list_summaries(connection: sqlite3.Connection, *, customer_id: str | None = None) -> list[Json]:
    """Every invoice without its lines, oldest first."""
    return [render_summary(invoice) for invoice in list_invoices(connection, customer_id=customer_id)]


def list_billed_customers(
    connection: sqlite3.Connection, config: Config, rules: BillingRules, label: str
) -> list[tuple[str, Period]]:
    """Who has an invoice for the period of a label: configured customers, and those with records in it."""
    names = set(config.customers) | {invoice.customer_id for invoice in list_invoices(connection)}
    usual = config.find_calendar("").parse_label(label[:7])
    names |= set(list_customers(connection, from_nanos=usual.start_nanos, to_nanos=usual.end_nanos))
    return [(name, find_billing_period(connection, rules, name, label)) for name in sorted(names)]


@dataclass(frozen=True, slots=True)
class CloseRequest:
    """What `otelbill close` is asked: a customer (None: all), the period's label, who and why."""

    customer_id: str | None
    label: str
    operator: str
    reason: str = "period closed"
    dry_run: bool = False


class Billing:
    """Closing and approving on open books. `clock` gives nanoseconds UTC."""

    def __init__(self, store: SqliteStore, config: Config, clock: Callable[[], int]) -> None:
        self._store = store
        self._config = config
        self._rules = build_billing_rules(config)
        self._clock = clock
        self._credits = CreditPayment(self._rules.currency.code)
        # Records name the charge that covers them; what it says must outlive its entry in the file.
        versions = {charge.version.version_id: charge.version.body for charge in self._rules.card.charges}
        if versions:
            store.transact(lambda connection: save_price_versions(connection, versions))

    def close(self, request: CloseRequest) -> Json:
        """Close a period for one customer or for all: what was closed, and what was refused and why.

        Raises InvalidPeriod. A dry run writes nothing and says the same.
        """
        closed: list[Json] = []
        refused: list[Json] = []
        for customer_id, period in self._store.read(lambda connection: self._list_wanted(connection, request)):
            try:
                closed.append(self._close_one(customer_id, period, request))
            except Blocked as error:
                blockers = [render_blocker(blocker) for blocker in error.blockers]
                refused.append(_render_refusal(customer_id, period, error, blockers))
            except (CannotInvoice, InvoiceRefused, UnknownVersion) as error:
                refused.append(_render_refusal(customer_id, period, error, []))
        return {"dry_run": request.dry_run, "closed": closed, "refused": refused}

    def _list_wanted(self, connection: sqlite3.Connection, request: CloseRequest) -> list[tuple[str, Period]]:
        if request.customer_id is not None:
            period = find_billing_period(connection, self._rules, request.customer_id, request.label)
            return [(request.customer_id, period)]
        wanted = list_billed_customers(connection, self._config, self._rules, request.label)
        standing = {(item.customer_id, item.start_nanos) for item in list_invoices(connection) if item.stands}
        return [(name, period) for name, period in wanted if (name, period.start_nanos) not in standing]

    def _close_one(self, customer_id: str, period: Period, request: CloseRequest) -> Json:
        now = self._clock()

        def prepare(connection: sqlite3.Connection) -> Draft:
            require_closable(connection, self._rules, customer_id, period, now)
            return Drafting(connection, self._rules, customer_id).draft(period, self._credits.pay)

        draft = self._store.read(prepare)  # a long read must not keep the writer waiting
        if request.dry_run:
            return render_draft(draft)
        made = InvoiceEvent(InvoiceState.DRAFT, request.operator, request.reason, now)

        def write(connection: sqlite3.Connection) -> Invoice:
            invoice = close_period(connection, draft, self._rules, made)
            self._credits.keep_charges(connection, invoice, sign=1, at_nanos=now)
            if not self._config.billing.approve:
                event = InvoiceEvent(InvoiceState.APPROVED, request.operator, "billing.approve is off", now)
                append_event(connection, invoice.invoice_id, event)
            return require_invoice(connection, invoice.invoice_id)

        return self._store.transact(write).render()

    def approve(self, invoice_ids: Sequence[str], *, operator: str, reason: str) -> Json:
        """Approve drafts: all of them, or none. Raises UnknownInvoice, InvoiceRefused."""
        event = InvoiceEvent(InvoiceState.APPROVED, operator, reason, self._clock())
        return {"approved": self._change(invoice_ids, event)}

    def void(self, invoice_id: str, *, operator: str, reason: str) -> Json:
        """Take a draft back, which opens its period again. Raises UnknownInvoice, InvoiceRefused."""
        event = InvoiceEvent(InvoiceState.VOIDED, operator, reason, self._clock())

        def write(connection: sqlite3.Connection) -> Invoice:
            invoice = change_state(connection, invoice_id, event)
            self._credits.keep_charges(connection, invoice, sign=-1, at_nanos=event.at_nanos)
            return invoice

        return {"voided": [render_summary(self._store.transact(write))]}

    def restate_terms(self, scope: Scope, *, operator: str, reason: str) -> int:
        """Have today's fees, discounts, minimums and commitments hold for closed periods that lie in the scope.

        Returns of how many they are others than before. The next invoices adjust what comes of it.
        """

        def write(connection: sqlite3.Connection) -> int:
            invoices = [invoice for invoice in list_invoices(connection) if invoice.stands]
            closed, floor = list_closed_terms(connection, invoices), find_floor(connection)
            changed: list[Restated] = []
            for invoice in invoices:
                customer, period = invoice.customer_id, invoice.period
                if scope.where.get("customer_id") not in (None, customer) or not scope.holds(period):
                    continue
                if period.end_nanos <= floor:  # final: nothing of it is invoiced any more
                    continue
                terms = tuple(resolve_terms(self._rules.card, self._rules.find_names(customer), period))
                if list(map(render_term, terms)) != list(map(render_term, closed[customer, period.start_nanos][0])):
                    bounds = (period.start_nanos, period.end_nanos)
                    changed.append(Restated(customer, *bounds, terms, operator, reason, self._clock()))
            save_price_versions(connection, {t.version_id: t.version_body for item in changed for t in item.terms})
            save_restated(connection, changed)
            return len(changed)

        return self._store.transact(write)

    def _change(self, invoice_ids: Iterable[str], event: InvoiceEvent) -> list[Json]:
        def write(connection: sqlite3.Connection) -> list[Invoice]:
            return [change_state(connection, invoice_id, event) for invoice_id in invoice_ids]

        return [render_summary(invoice) for invoice in self._store.transact(write)]


def _render_refusal(customer_id: str, period: Period, error: Exception, blockers: list[Json]) -> Json:
    return {"customer_id": customer_id, "period": period.label, "reason": str(error), "blockers": blockers}
