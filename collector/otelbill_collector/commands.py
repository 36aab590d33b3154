"""Operator commands by name: JSON arguments in, JSON answers out. Owns the checking of arguments; `operations` acts.

The sidecar's API serves them at /v1/operations/NAME, and the command line calls them on a ledger that no sidecar holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from otelbill_collector.billing import BILLING_ERRORS, Billing, CloseRequest
from otelbill_collector.domain.grants import InvalidGrant
from otelbill_collector.domain.money import InexactAmount, parse_attos
from otelbill_collector.ledger.corrections import InvalidCorrection, Wish
from otelbill_collector.ledger.repricing import SCOPE_COLUMNS, Scope
from otelbill_collector.ledger.resolutions import InvalidResolution
from otelbill_collector.operations import Operations
from otelbill_collector.web.api import BadQuery

Arguments = dict[str, Any]  # a JSON object


def build_operate(operations: Operations) -> dict[str, Callable[[Arguments], Any]]:
    """Every command, each taking a JSON object. Raises BadQuery for an argument that is missing or wrong."""
    return {
        "adjust": lambda arguments: _adjust(operations, arguments),
        "take-back": lambda arguments: _take_back(operations, arguments),
        "rerate": lambda arguments: _rerate(operations, arguments),
        "resolve-usage": lambda arguments: _resolve(operations, arguments),
        "replay-dead-letters": lambda arguments: operations.replay_dead_letters(arguments.get("letter_ids") or ()),
        "stripe-flush": lambda _: operations.flush_stripe(),
        "stripe-plan": lambda _: operations.plan_stripe(),
        "stripe-apply": lambda _: operations.apply_stripe(),
        "stripe-reissue": lambda arguments: operations.reissue_intent(str(arguments.get("identifier"))),
        "close": lambda arguments: _close(operations.billing, arguments),
        "approve-invoices": lambda arguments: _approve(operations.billing, arguments),
        "void-invoice": lambda arguments: _void(operations.billing, arguments),
        "credits-grant": lambda arguments: _check_grant(lambda: operations.credits.give(arguments)),
        "credits-void": lambda arguments: _check_grant(
            lambda: operations.credits.void(**require_texts(arguments, ("grant_id", "reason", "operator")))
        ),
        "retention-apply": lambda arguments: operations.retention.apply(
            operator=require_texts(arguments, ("operator",))["operator"], partly=arguments.get("partly") is True
        ),
        "reconcile": lambda arguments: operations.reconcile_stripe(since_nanos=arguments.get("since_nanos")),
    }


def _adjust(operations: Operations, arguments: Arguments) -> Any:
    try:
        return operations.adjust(read_wish(arguments, operations.clock()))
    except InvalidCorrection as error:
        raise BadQuery(str(error)) from error


def _take_back(operations: Operations, arguments: Arguments) -> Any:
    try:
        return operations.take_back(**require_texts(arguments, ("batch", "operator", "reason")))
    except InvalidCorrection as error:
        raise BadQuery(str(error)) from error


def _rerate(operations: Operations, arguments: Arguments) -> Any:
    texts = require_texts(arguments, ("prices", "operator", "reason"))
    from_nanos, to_nanos, where = (arguments.get(name) for name in ("from_nanos", "to_nanos", "where"))
    for name, value in (("from_nanos", from_nanos), ("to_nanos", to_nanos)):
        if value is not None and type(value) is not int:
            raise BadQuery(f"{name}: give nanoseconds since 1970, or nothing")
    if not isinstance(where, dict) or not set(where) <= set(SCOPE_COLUMNS):
        raise BadQuery(f"where: give an object with any of {', '.join(SCOPE_COLUMNS)}")
    terms = arguments.get("terms") is True
    if terms and set(where) - {"customer_id"}:
        raise BadQuery("terms: hold for all usage of a period; give no model, provider or step with them")
    return operations.rerate(Scope(from_nanos, to_nanos, where), **texts, terms=terms)


def _resolve(operations: Operations, arguments: Arguments) -> Any:
    texts = require_texts(arguments, ("event_id", "operator", "reason"))
    quantities = arguments.get("quantities")
    if not isinstance(quantities, dict):
        raise BadQuery("quantities: give an object of token units and integers")
    try:
        return operations.resolve_usage(**texts, quantities=quantities)
    except InvalidResolution as error:
        raise BadQuery(str(error)) from error


def _close(billing: Billing, arguments: Arguments) -> Any:
    texts = require_texts(arguments, ("label", "operator", "reason"))
    customer_id = arguments.get("customer_id")
    if customer_id is not None:
        require_texts(arguments, ("customer_id",))
    try:
        return billing.close(CloseRequest(customer_id, **texts, dry_run=arguments.get("dry_run") is True))
    except BILLING_ERRORS as error:
        raise BadQuery(str(error)) from error


def _approve(billing: Billing, arguments: Arguments) -> Any:
    invoice_ids = arguments.get("invoice_ids")
    if not isinstance(invoice_ids, list) or not all(isinstance(item, str) for item in invoice_ids):
        raise BadQuery("invoice_ids: give a list of invoice ids")
    try:
        return billing.approve(invoice_ids, **require_texts(arguments, ("operator", "reason")))
    except BILLING_ERRORS as error:
        raise BadQuery(str(error)) from error


def _void(billing: Billing, arguments: Arguments) -> Any:
    try:
        return billing.void(**require_texts(arguments, ("invoice_id", "operator", "reason")))
    except BILLING_ERRORS as error:
        raise BadQuery(str(error)) from error


def _check_grant(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except InvalidGrant as error:
        raise BadQuery(str(error)) from error


def read_wish(arguments: Arguments, now_nanos: int) -> Wish:
    """What `adjust` is asked for: event_ids, operator and reason, and any of customer_id, quantities, charge with
    currency, and void.
    """
    texts = require_texts(arguments, ("operator", "reason"))
    event_ids = arguments.get("event_ids")
    if not isinstance(event_ids, list) or not all(isinstance(item, str) and item.strip() for item in event_ids):
        raise BadQuery("event_ids: give a list of event or record ids")
    customer_id, quantities, charge = (arguments.get(name) for name in ("customer_id", "quantities", "charge"))
    if customer_id is not None:
        require_texts(arguments, ("customer_id",))
    if quantities is not None and not isinstance(quantities, dict):
        raise BadQuery("quantities: give an object of units and integers")
    if charge is not None:
        require_texts(arguments, ("charge", "currency"))
    return Wish(
        event_ids=tuple(dict.fromkeys(event_ids)),
        **texts,
        given_nanos=now_nanos,
        customer_id=customer_id,
        quantities=quantities,
        charge_attos=None if charge is None else _parse_charge(charge),
        currency=None if charge is None else arguments["currency"],
        void=arguments.get("void") is True,
    )


def _parse_charge(text: str) -> int:
    try:
        return parse_attos(text)
    except (InexactAmount, ArithmeticError):
        raise BadQuery(f"charge: {text[:40]!r} is not a decimal amount; write it like 0.15") from None


def require_texts(arguments: Arguments, names: Sequence[str]) -> dict[str, str]:
    """The named arguments, each of which must be a text that is not empty."""
    for name in names:
        if not isinstance(arguments.get(name), str) or not arguments[name].strip():
            raise BadQuery(f"{name}: give a non-empty text")
    return {name: arguments[name] for name in names}
