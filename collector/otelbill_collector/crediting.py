"""What operators do with credits: grant, void, list, balance, history; and periodic posting. Owns the answers' shape.

Reading counts all that is acknowledged; transfers are posted by `CreditDesk.post_due`, a customer a transaction.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from otelbill_collector.domain.credits import EndKind
from otelbill_collector.domain.grants import (
    PERCENT,
    SLICE_NANOS,
    Grant,
    InvalidGrant,
    Measure,
    Origin,
    Rollover,
    Scope,
    Void,
    check_instant,
)
from otelbill_collector.domain.instants import floor_slice, format_instant, parse_instant
from otelbill_collector.domain.money import ATTOS_DIGITS, format_attos, parse_attos
from otelbill_collector.domain.prices import render_percent
from otelbill_collector.domain.quantities import QUANTITY_DECIMALS_MAX, format_micros, to_micros
from otelbill_collector.domain.ratecard import DEFAULT_CURRENCY, RateCard
from otelbill_collector.domain.transfers import Transfer
from otelbill_collector.domain.usage import STANDARD_UNITS
from otelbill_collector.ledger.credit_usage import fold_credit_usage
from otelbill_collector.ledger.credits import (
    CreditBook,
    find_balance,
    list_credit_lines,
    list_customers,
    list_due,
    list_posted,
    load_book,
    mark_changed,
    prepare_posting,
    save_grant,
    save_posting,
    save_void,
)
from otelbill_collector.ledger.sqlite import SqliteStore

Json = dict[str, Any]  # answers are printed or sent as JSON
_DIGITS_MAX = 30
_REST_FACTOR = 10
_ATTEMPTS = 3
_PRIORITY_MAX = 1_000_000
_log = logging.getLogger("otelbill.credits")


@dataclass(frozen=True, slots=True)
class CreditTerms:
    """What may be granted: the rate card's currency, and the units it or the contract knows."""

    currency: str = DEFAULT_CURRENCY
    units: frozenset[str] = field(default=frozenset(STANDARD_UNITS))


def create_terms(card: RateCard) -> CreditTerms:
    """The terms of a rate card."""
    units = {entry.unit for section in (card.prices, card.charges) for entry in section}
    return CreditTerms(card.currency, frozenset({*STANDARD_UNITS, *units}))


class CreditDesk:
    """Credits of an open ledger. `clock` gives nanoseconds UTC."""

    def __init__(self, store: SqliteStore, terms: CreditTerms, clock: Callable[[], int]) -> None:
        self._store = store
        self._terms = terms
        self._clock = clock
        self._rest_until = 0

    def give(self, arguments: Mapping[str, Any]) -> Json:
        """Grant what `read_grant` reads. Raises InvalidGrant; then nothing is written."""
        grant = read_grant(arguments, self._terms, self._clock())
        self._store.transact(lambda connection: save_grant(connection, grant))
        self.post_due()
        return render_grant(grant)

    def void(self, *, grant_id: str, reason: str, operator: str) -> Json:
        """Make a grant worth nothing from now on. Raises UnknownGrant, InvalidGrant; then nothing is written."""
        now = self._clock()
        void = Void(grant_id, floor_slice(now, SLICE_NANOS), reason, operator, now)
        grant = self._store.transact(lambda connection: save_void(connection, void))
        self.post_due()
        book = self._store.read(lambda connection: load_book(connection, grant.customer_id, now))
        return render_state(book, next(item for item in book.grants if item.grant_id == grant_id))

    def post_due(self) -> int:
        """Bring usage and transfers up to date; returns how many were posted. Does nothing where nobody has any."""
        if not self._store.read(list_customers):
            return 0
        while self._store.transact(_fold_usage):
            pass
        now, posted = self._clock(), 0
        for customer_id in self._store.read(lambda connection: list_due(connection, now)):
            try:
                posted += self._post(customer_id, now)
            except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError):
                _log.exception("credits of %s cannot be posted; they stay due, the others go on", ascii(customer_id))
        return posted

    def _post(self, customer_id: str, now_nanos: int) -> int:
        """Worked out on a snapshot and written if that still holds; only after many changes, ingest has to wait."""
        for _ in range(_ATTEMPTS):
            posting = self._store.read(lambda connection: prepare_posting(connection, customer_id, now_nanos))
            if self._store.transact(lambda connection, made=posting: save_posting(connection, made)):  # type: ignore[misc]
                return len(posting.transfers)

        def post(connection: sqlite3.Connection) -> int:
            posting = prepare_posting(connection, customer_id, now_nanos)
            save_posting(connection, posting)
            return len(posting.transfers)

        return self._store.transact(post)

    def post_regularly(self) -> None:
        """`post_due` for a periodic job: rests ten times as long as it took, so that it never crowds ingest out."""
        began = self._clock()
        if began >= self._rest_until:
            self.post_due()
            self._rest_until = (ended := self._clock()) + _REST_FACTOR * max(0, ended - began)


def _fold_usage(connection: sqlite3.Connection) -> int:
    folded, changed = fold_credit_usage(connection)
    mark_changed(connection, changed)
    return folded


def read_grant(arguments: Mapping[str, Any], terms: CreditTerms, now_nanos: int) -> Grant:
    """A grant of texts: customer_id, reason, operator; amount and currency, or units and unit; origin, start, expires,
    project_id, step, model, rollover_until, rollover_percent, rollover_max; and the number priority.

    Without a start, the quarter of an hour of now. Raises InvalidGrant with the field, its value and the remedy.
    """
    texts = {name: _read_text(arguments, name) for name in _TEXTS}
    for name in ("customer_id", "reason", "operator"):
        if texts[name] is None:
            raise InvalidGrant(f"{name}: give a non-empty text")
    measure = _read_measure(texts)
    asset = _read_asset(texts, measure, terms)
    amount = _read_amount("amount" if measure is Measure.MONEY else "units", texts, measure)
    start = _read_instant("start", texts)
    unit = texts["unit"]
    if unit is not None and unit not in terms.units:
        raise InvalidGrant(f"unit: {unit!r} is neither a unit of usage nor priced by the rate card; give one that is")
    return Grant(
        customer_id=texts["customer_id"] or "",
        measure=measure,
        asset=asset,
        amount=amount or 0,
        start_nanos=floor_slice(now_nanos, SLICE_NANOS) if start is None else start,
        reason=texts["reason"] or "",
        operator=texts["operator"] or "",
        given_nanos=now_nanos,
        origin=_read_origin(texts["origin"]),
        priority=_read_priority(arguments.get("priority")),
        expiry_nanos=_read_instant("expires", texts),
        scope=Scope(texts["project_id"], texts["step"], texts["model"], unit),
        rollover=_read_rollover(texts, measure),
    )


_TEXTS = (
    *("customer_id", "reason", "operator", "amount", "currency", "units", "unit", "origin", "start", "expires"),
    *("project_id", "step", "model", "rollover_until", "rollover_percent", "rollover_max"),
)


def _read_text(arguments: Mapping[str, Any], name: str) -> str | None:
    value = arguments.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise InvalidGrant(f"{name}: {str(value)[:40]!r} is not a text, or empty; write amounts as text, like '100.00'")
    return value.strip()


def _read_measure(texts: Mapping[str, str | None]) -> Measure:
    if (texts["amount"] is None) == (texts["units"] is None):
        raise InvalidGrant("amount: give either an amount of money, or units with their unit")
    return Measure.MONEY if texts["units"] is None else Measure.UNITS


def _read_asset(texts: Mapping[str, str | None], measure: Measure, terms: CreditTerms) -> str:
    currency = texts["currency"]
    if measure is Measure.UNITS:
        if texts["unit"] is None or currency is not None:
            raise InvalidGrant("unit: name the unit of the units, and no currency; such as output_tokens")
        return texts["unit"]
    if currency is not None and currency != terms.currency:
        raise InvalidGrant(f"currency: {currency!r} is not the rate card's; give {terms.currency}")
    return terms.currency


def _read_amount(name: str, texts: Mapping[str, str | None], measure: Measure) -> int | None:
    text = texts[name]
    if text is None:
        return None
    whole, point, fraction = text.partition(".")
    decimals = ATTOS_DIGITS if measure is Measure.MONEY else QUANTITY_DECIMALS_MAX
    digits = whole.isascii() and whole.isdigit() and (not point or (fraction.isascii() and fraction.isdigit()))
    if not digits or len(whole) > _DIGITS_MAX or len(fraction) > decimals:
        raise InvalidGrant(
            f"{name}: {text[:40]!r} is not an exact amount above zero with at most {decimals} decimals; write it like "
            + ("100.00" if measure is Measure.MONEY else "1000000")
        )
    return parse_attos(text) if measure is Measure.MONEY else to_micros(Decimal(text))


def _read_origin(text: str | None) -> Origin:
    try:
        return Origin(text or Origin.PROMOTIONAL.value)
    except ValueError:
        raise InvalidGrant(f"origin: {text!r} is neither paid nor promotional") from None


def _read_priority(value: object) -> int:
    if value is None:
        return 0
    if type(value) is not int or abs(value) > _PRIORITY_MAX:
        raise InvalidGrant(f"priority: {str(value)[:40]!r} is not an integer up to {_PRIORITY_MAX}; lower burns first")
    return value


def _read_instant(name: str, texts: Mapping[str, str | None]) -> int | None:
    text = texts[name]
    try:
        return None if text is None else parse_instant(text)
    except ValueError as error:
        raise InvalidGrant(f"{name}: {error}") from None


def _read_rollover(texts: Mapping[str, str | None], measure: Measure) -> Rollover | None:
    until = _read_instant("rollover_until", texts)
    if until is None:
        if texts["rollover_percent"] is not None or texts["rollover_max"] is not None:
            raise InvalidGrant("rollover_until: say when what rolls over expires")
        return None
    percent = texts["rollover_percent"] or "100"
    whole, _, fraction = percent.partition(".")
    if not f"{whole}{fraction}".isdigit() or not percent.isascii() or len(whole) > 3 or len(fraction) > 4:
        raise InvalidGrant(f"rollover_percent: {percent[:40]!r} is not a percentage with at most 4 decimals, like 50")
    scaled = int(whole or "0") * PERCENT + int(fraction.ljust(4, "0"))
    return Rollover(until, scaled, _read_amount("rollover_max", texts, measure))


def render_grant(grant: Grant) -> Json:
    """A grant as JSON values."""
    rollover = grant.rollover
    return {
        "grant_id": grant.grant_id,
        "customer_id": grant.customer_id,
        "amount": grant.format_amount(grant.amount),
        "asset": grant.asset,
        "measure": grant.measure.value,
        "origin": grant.origin.value,
        "priority": grant.priority,
        "from": format_instant(grant.start_nanos),
        "expires": None if grant.expiry_nanos is None else format_instant(grant.expiry_nanos),
        "scope": grant.scope.render(),
        "rollover": None
        if rollover is None
        else {
            "until": format_instant(rollover.until_nanos),
            "percent": render_percent(rollover.percent_scaled),
            "max": None if rollover.maximum is None else grant.format_amount(rollover.maximum),
        },
        "rolled_over_from": grant.parent_id,
        "reason": grant.reason,
        "operator": grant.operator,
        "granted_at": format_instant(grant.given_nanos),
    }


def render_state(book: CreditBook, grant: Grant) -> Json:
    """A grant with what has become of it: left, consumed, expired, voided and rolled over, which add up to it."""
    burned = book.burned
    consumed = sum(item.amount for item in burned.allocations if item.grant_id == grant.grant_id)
    ended = dict.fromkeys(EndKind, 0)
    for ending in burned.endings:
        if ending.grant_id == grant.grant_id:
            ended[ending.kind] += ending.amount
    void = next((void for void in book.voids if void.grant_id == grant.grant_id), None)
    in_force = grant.grant_id in burned.left
    return {
        **render_grant(grant),
        "state": _find_state(grant, book, in_force=in_force, voided=void is not None),
        "left": grant.format_amount(burned.left.get(grant.grant_id, 0) if in_force else grant.amount - consumed
                                    - sum(ended.values())),
        "consumed": grant.format_amount(consumed),
        "expired": grant.format_amount(ended[EndKind.EXPIRE]),
        "voided": grant.format_amount(ended[EndKind.VOID]),
        "rolled_over": grant.format_amount(ended[EndKind.ROLL]),
        "void": None
        if void is None
        else {"at": format_instant(void.at_nanos), "reason": void.reason, "operator": void.operator},
    }  # fmt: skip


def _find_state(grant: Grant, book: CreditBook, *, in_force: bool, voided: bool) -> str:
    if in_force:
        return "active" if book.burned.left[grant.grant_id] else "used up"
    if voided:
        return "void"
    return "future" if grant.start_nanos > book.at_nanos else "expired"


def render_credits(connection: sqlite3.Connection, customer_id: str | None, at_nanos: int) -> list[Json]:
    """All grants of one customer or of all, each with what has become of it."""
    customers = list_customers(connection) if customer_id is None else [customer_id]
    books = (load_book(connection, name, at_nanos) for name in customers)
    return [render_state(book, grant) for book in books for grant in book.grants]


def render_balance(connection: sqlite3.Connection, customer_id: str, at_nanos: int) -> Json:
    """What a customer has at an instant, by asset and by grant in the order of burning."""
    book = load_book(connection, customer_id, at_nanos)
    totals = find_balance(book)
    measures = {grant.asset: grant.measure for grant in book.grants}
    return {
        "customer_id": customer_id,
        "at": format_instant(at_nanos),
        "balances": [
            {"asset": asset, "left": format_attos(left) if measures[asset] is Measure.MONEY else format_micros(left)}
            for asset, left in sorted(totals.items())
        ],
        "grants": [render_state(book, grant) for grant in book.grants if grant.grant_id in book.burned.left],
    }


def render_statement(connection: sqlite3.Connection, customer_id: str, from_nanos: int, to_nanos: int) -> Json:
    """Consumption and overage of the usage with event time in [from, to), apart. Raises InvalidGrant for other bounds.

    Consumption by grant: `charge` is negative, `amount` in the grant's asset. Overage by currency and unit.
    """
    check_instant("from", from_nanos)
    check_instant("to", to_nanos)
    found = list_credit_lines(connection, customer_id, from_nanos, to_nanos)
    overage: dict[tuple[str, str], tuple[int, int]] = {}
    for item in found.overage:
        key = (item.currency, item.place.unit)
        before = overage.get(key, (0, 0))
        overage[key] = (before[0] + item.quantity_micros, before[1] + item.charge_attos)
    return {
        "customer_id": customer_id,
        "from": format_instant(from_nanos),
        "to": format_instant(to_nanos),
        "consumption": [
            {
                "grant_id": line.grant.grant_id,
                "reason": line.grant.reason,
                "origin": line.grant.origin.value,
                "amount": line.grant.format_amount(line.amount),
                "asset": line.grant.asset,
                "charge": format_attos(line.charge_attos),
                "currency": line.currency,
            }
            for line in found.lines
        ],
        "overage": [
            {
                "unit": unit or None,
                "quantity": format_micros(micros) if unit else None,
                "charge": format_attos(charge),
                "currency": currency,
            }
            for (currency, unit), (micros, charge) in sorted(overage.items())
        ],
    }


def render_history(connection: sqlite3.Connection, customer_id: str, now_nanos: int) -> list[Json]:
    """Every posted change of a customer's credits in the order of posting, with its grant's scope, dates and reason."""
    book = load_book(connection, customer_id, now_nanos)
    grants = {grant.grant_id: grant for grant in book.grants}
    reasons = {void.grant_id: (void.reason, void.operator) for void in book.voids}
    return [_render_transfer(item, grants, reasons) for item in list_posted(connection, customer_id)]


def _render_transfer(item: Transfer, grants: Mapping[str, Grant], voids: Mapping[str, tuple[str, str]]) -> Json:
    key, flow = item.key, item.flow
    grant = grants.get(key.grant_id)
    said = None if grant is None else (grant.reason, grant.operator)
    if key.kind.value == "void":
        said = voids.get(key.grant_id, said)
    money = grant is not None and grant.measure is Measure.MONEY
    usage = {"project": key.place.project_id, "step": key.place.step, "model": key.place.model, "unit": key.place.unit}
    return {
        "transfer_id": item.transfer_id,
        "kind": key.kind.value,
        "grant_id": key.grant_id,
        "at": format_instant(key.place.at_nanos),
        "from_account": flow.source,
        "to_account": flow.target,
        "amount": format_attos(flow.amount) if money else format_micros(flow.amount),
        "asset": flow.asset,
        "pays": format_attos(flow.value_attos) if key.kind.value == "burn" else None,
        "currency": key.currency or None,
        "usage": {name: value for name, value in usage.items() if value},
        "scope": {} if grant is None else grant.scope.render(),
        "grant_from": None if grant is None else format_instant(grant.start_nanos),
        "grant_expires": None if grant is None or grant.expiry_nanos is None else format_instant(grant.expiry_nanos),
        "reason": None if said is None else said[0],
        "operator": None if said is None else said[1],
        "booked_at": format_instant(item.booked_nanos),
        "corrects": item.corrects,
    }
