"""What credits knew when an invoice was made, as JSON values for its archive: grants, voids, usage.

Owns the form only; the amounts are worked out by `domain.credits`, and again by `archive_credits`.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from otelbill_collector.domain.credits import Demand
from otelbill_collector.domain.grants import Grant, Void, derive_successor_id
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.prices import render_percent
from otelbill_collector.domain.quantities import format_micros
from otelbill_collector.domain.retention import EvidencePruned
from otelbill_collector.ledger.credit_usage import sum_demands
from otelbill_collector.ledger.credits import list_grants, list_voids
from otelbill_collector.ledger.periods import Invoice

Json = dict[str, Any]  # Any: JSON values


def render_credit_evidence(connection: sqlite3.Connection, invoice: Invoice) -> Json:
    """Grants and voids of before the invoice, and usage up to its mark; usage is null where segments were pruned."""
    made = invoice.made_nanos
    grants = [grant for grant in list_grants(connection, invoice.customer_id) if grant.given_nanos <= made]
    voids = {void.grant_id: void for void in list_voids(connection) if void.given_nanos <= made}
    usage: list[list[Any]] | None = []
    try:
        if grants:
            usage = [_render_demand(item) for item in sum_demands(connection, invoice.customer_id, upto=invoice.mark)]
    except EvidencePruned:
        usage = None
    return {"grants": [_render_grant(grant, voids) for grant in grants], "usage": usage}


def _render_grant(grant: Grant, voids: dict[str, Void]) -> Json:
    successor = derive_successor_id(grant.grant_id)
    rollover = grant.rollover
    return {
        "grant_id": grant.grant_id,
        "measure": grant.measure.value,
        "asset": grant.asset,
        "amount": grant.format_amount(grant.amount),
        "from": grant.start_nanos,
        "expires": grant.expiry_nanos,
        "void": _find_void(voids, grant.grant_id),
        "priority": grant.priority,
        "origin": grant.origin.value,
        "scope": grant.scope.render(),
        "rollover": None
        if rollover is None
        else {
            "until": rollover.until_nanos,
            "percent": render_percent(rollover.percent_scaled),
            "max": None if rollover.maximum is None else grant.format_amount(rollover.maximum),
            "successor": successor,
            "void": _find_void(voids, successor),
        },
        "reason": grant.reason,
        "operator": grant.operator,
        "granted": grant.given_nanos,
    }


def _find_void(voids: dict[str, Void], grant_id: str) -> int | None:
    return voids[grant_id].at_nanos if grant_id in voids else None


def _render_demand(item: Demand) -> list[Any]:
    """Quarter of an hour, project, step, model, unit, price, credits for one, quantity, charge."""
    numbers = (format_attos(item.price_attos), format_micros(item.credits_micros), format_micros(item.quantity_micros))
    return [*item.place, *numbers, format_attos(item.charge_attos)]
