"""Meter event summaries: what the counted events of one meter and customer add up to, by hour, day or in all."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Context, Decimal, Inexact

from otelbill_collector.testing.stripe.call import Call, CustomerCheck, Outcome
from otelbill_collector.testing.stripe.errors import Json, StripeRefusal, refuse_missing
from otelbill_collector.testing.stripe.events import TABLE as EVENTS
from otelbill_collector.testing.stripe.forms import Params, page, read_choice, require_int
from otelbill_collector.testing.stripe.meters import require_meter
from otelbill_collector.testing.stripe.store import Store, make_id

LIST = Params(
    required=("customer", "start_time", "end_time"),
    optional=("value_grouping_window", "limit", "starting_after", "ending_before"),
)
_SECONDS = {"hour": 3600, "day": 24 * 3600}
_MINUTE = 60
_EXACT = Context(prec=100, traps=[Inexact])


def list_summaries(call: Call, store: Store) -> Outcome:
    """Buckets with usage, newest first; without a grouping window one bucket for the whole range, even when empty.

    The range is half-open. `aggregated_value` is a float, as in Stripe: the exact sum is the oracle's.
    """
    meter = require_meter(call, store)
    window = read_choice(call.params, "value_grouping_window", ("hour", "day"))
    start, end = _read_range(call.params, window)
    customer = str(call.params["customer"])
    known = call.behaviour.customer_check is CustomerCheck.OFF or store.find("customers", call.key(customer))
    if not known:
        raise refuse_missing("customer", customer, param="customer", status=400)
    events = [
        row
        for row in store.iter_rows(EVENTS, call.scope)
        if (row["meter"], row["customer"], row["status"]) == (meter["id"], customer, "counted")
        and start <= row["timestamp"] < end
        and row["received_at"] <= call.now - call.behaviour.summary_lag_seconds
    ]
    buckets: dict[int, list[Json]] = {} if window else {start: []}
    for event in events:
        at = event["timestamp"] - event["timestamp"] % _SECONDS[window] if window else start
        buckets.setdefault(at, []).append(event)
    length = _SECONDS[window] if window else end - start
    rows = [_render(call, meter, customer, (at, at + length), buckets[at]) for at in sorted(buckets, reverse=True)]
    return Outcome(page(rows, call.params, call.path))


def aggregate(meter: Json, events: Iterable[Json]) -> Decimal:
    """Exact value of the events under the meter's formula; a pre-aggregation window keeps its last received event."""
    kept = list(events)
    if window := meter["event_time_window"]:
        newest = {row["timestamp"] // _SECONDS[window]: row for row in sorted(kept, key=lambda row: row["sequence"])}
        kept = list(newest.values())
    formula = meter["default_aggregation"]["formula"]
    if formula == "count":
        return Decimal(len(kept))
    if formula == "last":
        latest = max(kept, key=lambda row: (row["timestamp"], row["sequence"]), default=None)
        return Decimal(latest["value"]) if latest else Decimal(0)
    return add_exact(row["value"] for row in kept)


def add_exact(values: Iterable[str | Decimal]) -> Decimal:
    """Sum without rounding: wide enough for any number of 15-digit values of any scale."""
    total = Decimal(0)
    for value in values:
        total = _EXACT.add(total, Decimal(value))
    return total


def _read_range(params: Json, window: str | None) -> tuple[int, int]:
    start, end = require_int(params, "start_time"), require_int(params, "end_time")
    unit = window or "minute"
    step = _SECONDS[window] if window else _MINUTE
    for name, value in (("start_time", start), ("end_time", end)):
        if value % step:
            raise StripeRefusal(f"`{name}` must be aligned with {unit} boundaries.", param=name)
    if end <= start:
        raise StripeRefusal("`end_time` must be after `start_time`.", param="end_time")
    return start, end


def _render(call: Call, meter: Json, customer: str, bounds: tuple[int, int], events: list[Json]) -> Json:
    start, end = bounds
    return {
        "id": make_id("mtrusg_live" if call.livemode else "mtrusg_test", meter["id"], customer, start, end),
        "object": "billing.meter_event_summary",
        "aggregated_value": float(aggregate(meter, events)),
        "end_time": end,
        "livemode": call.livemode,
        "meter": meter["id"],
        "start_time": start,
    }
