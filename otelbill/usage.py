"""Owns `record_usage()`: usage that is not a call to a language model.
Does not own prices or meters; the sidecar does.
"""

from __future__ import annotations

import time
from decimal import Decimal

from opentelemetry.context import get_current

from otelbill import attributes, config
from otelbill.attribution import is_identifier
from otelbill.errors import UsageError
from otelbill.frame import NO_FRAME, find_frame
from otelbill.guard import Guard, report
from otelbill.tracer import find_tracer

QUANTITY_MAX_DIGITS = 38  # what any ledger column and any JSON reader on the way can hold exactly
_INT64_MAX = 2**63 - 1

_RECORD = Guard("record_usage")


def record_usage(
    meter: str, quantity: int | Decimal, *, unit: str = "unit", event_id: str | None = None, billable: bool = True
) -> None:
    """Record that the customer in force used `quantity` `unit`s of `meter`, as one span without duration.

    Args:
        meter: what was used, such as `vector_queries`; printable, 1 to 128 characters.
        quantity: `int` or `Decimal`, not negative, at most 38 digits; `float` cannot hold most decimals.
        unit: the unit of `quantity`.
        event_id: names the event, so that recording it again bills once. Default: the span's own identity.
        billable: `False` records usage that must not be charged.

    Raises:
        UsageError: in strict mode only; otherwise bad usage is reported once, counted and not recorded.
    """
    with _RECORD:
        if not config.current().enabled:
            return
        values: dict[str, str | int | bool] = {
            attributes.METER: _require_name("meter", meter),
            attributes.QUANTITY: render_quantity(quantity),
            attributes.UNIT: _require_name("unit", unit),
            attributes.BILLABLE: bool(billable),
        }
        if event_id is not None:
            values[attributes.EVENT_ID] = _require_name("event_id", event_id)
        _emit(meter, values)


def render_quantity(quantity: object) -> int | str:
    """`quantity` as a span attribute: an `int` where OTLP can hold it, else exact decimal text.

    Raises:
        UsageError: for `float`, `bool`, other types, negative or infinite numbers, and more than 38 digits.
    """
    if isinstance(quantity, bool) or not isinstance(quantity, int | Decimal):
        hint = "pass an int, or a Decimal made from text: Decimal('0.25')"
        raise UsageError("quantity_type", f"quantity is a {type(quantity).__name__}", hint=hint)
    if isinstance(quantity, Decimal):
        return _render_decimal(quantity)
    if quantity < 0:
        raise _refuse_negative()
    if quantity >= 10**QUANTITY_MAX_DIGITS:
        raise _refuse_long()
    return quantity if quantity <= _INT64_MAX else str(quantity)


def _render_decimal(quantity: Decimal) -> str:
    if not quantity.is_finite():
        raise UsageError("quantity_infinite", "quantity is not a finite number", hint="record what was used")
    if quantity < 0:
        raise _refuse_negative()
    _, digits, exponent = quantity.as_tuple()
    assert isinstance(exponent, int), "finite decimals have a number as exponent"
    # Checked before it is written out: Decimal("1e999999") is small to hold and a megabyte to render.
    if len(digits) + abs(exponent) > QUANTITY_MAX_DIGITS:
        raise _refuse_long()
    return format(abs(quantity), "f")  # abs: minus zero is zero


def _refuse_negative() -> UsageError:
    return UsageError("quantity_negative", "quantity is negative", hint="correct usage in the ledger: otelbill adjust")


def _refuse_long() -> UsageError:
    return UsageError("quantity_long", "quantity has too many digits", hint=f"stay within {QUANTITY_MAX_DIGITS}")


def _require_name(field: str, value: object) -> str:
    if not is_identifier(value):
        hint = "pass printable text of 1 to 128 characters"
        raise UsageError(f"{field}_invalid", f"{field} is not usable", hint=hint)
    return str(value)


def _emit(meter: str, values: dict[str, str | int | bool]) -> None:
    frame = find_frame() or NO_FRAME
    now_nanos = time.time_ns()
    span = find_tracer().start_span(
        f"usage {meter}", get_current(), attributes={**frame.span_attributes, **values}, start_time=now_nanos
    )
    span.end(end_time=now_nanos)
    if not span.get_span_context().trace_flags.sampled:
        hint = "call otelbill.configure(), and do not sample out spans that are billed"
        report(
            UsageError("usage_not_traced", "usage was recorded on a span nobody keeps", hint=hint), place="record_usage"
        )
