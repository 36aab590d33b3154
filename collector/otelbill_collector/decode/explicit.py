"""`otelbill.*` attributes of a span: who pays, which step, and quantities the application recorded itself."""

from __future__ import annotations

from otelbill_collector.decode.draft import Draft
from otelbill_collector.decode.privacy import clean_id, clean_word, clip_value
from otelbill_collector.decode.quantities import parse_quantity
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.domain.usage import STANDARD_UNITS, Problem, Role, UsageSource

_MARKS = {reason.value: reason for reason in (Reason.APP_CACHE_HIT, Reason.FREE_OPERATION)}
_HINT_METER = (
    "name a meter of letters, digits, '_', '.', '-' that is no token unit, such as vector_queries; then replay"
)


def read_attribution(draft: Draft, span: SpanView) -> None:
    """Customer, project, run, step, attempt, event id and the billable mark of the span itself."""
    attributes = span.attributes
    attempt = attributes.get("otelbill.attempt")
    draft.customer_id = clean_id(attributes.get("otelbill.customer.id"))
    draft.project_id = clean_id(attributes.get("otelbill.project.id"))
    draft.run_id = clean_id(attributes.get("otelbill.run.id"))
    draft.step = clean_id(attributes.get("otelbill.step"))
    draft.attempt = attempt if isinstance(attempt, int) and not isinstance(attempt, bool) and attempt >= 0 else None
    draft.explicit_event_id = clean_id(attributes.get("otelbill.event.id"))
    if attributes.get("otelbill.billable") in (False, "false", "False"):
        draft.marked = draft.reason = _MARKS.get(str(attributes.get("otelbill.reason")), Reason.INTERNAL)


def read_explicit(draft: Draft, span: SpanView) -> None:
    """The quantity of `otelbill.meter`; a Problem when meter or quantity cannot be used."""
    attributes = span.attributes
    meter = clean_word(attributes.get("otelbill.meter"))
    beside_call = draft.role in (Role.CALL, Role.AGGREGATE)
    if meter is None:
        _refuse(draft, Problem("no_meter", "otelbill.meter", clip_value(attributes.get("otelbill.meter")), _HINT_METER))
        return
    if meter in STANDARD_UNITS and not beside_call:
        _refuse(draft, Problem("reserved_meter", "otelbill.meter", meter, _HINT_METER))
        return
    quantity = parse_quantity(attributes.get("otelbill.quantity"), "otelbill.quantity")
    if isinstance(quantity, Problem):
        _refuse(draft, quantity)
    elif beside_call and meter in STANDARD_UNITS and not isinstance(quantity, int):
        _refuse(draft, Problem("reserved_meter", "otelbill.meter", meter, _HINT_METER))
    elif beside_call:
        draft.quantities.setdefault(meter, quantity)
    else:
        tool = draft.operation == "execute_tool"
        draft.role = Role.TOOL if tool else Role.EXPLICIT
        draft.billable = draft.marked is None
        draft.reason = draft.marked or (Reason.TOOL_USAGE if tool else Reason.EXPLICIT_USAGE)
        draft.usage_source = UsageSource.REPORTED
        draft.quantities = {meter: quantity}


def _refuse(draft: Draft, problem: Problem) -> None:
    draft.problem, draft.billable, draft.reason = problem, False, Reason.INVALID_USAGE
