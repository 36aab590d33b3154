"""`otelbill.*` attributes of a span: who pays, which step, and quantities the application recorded itself."""

from __future__ import annotations

from dataclasses import replace

from otelbill_collector.decode.privacy import clean_id, clean_word, clip_value
from otelbill_collector.decode.quantities import parse_quantity
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.domain.usage import STANDARD_UNITS, Candidate, Problem, Role, UsageSource


def read_attribution(candidate: Candidate, span: SpanView) -> Candidate:
    """The candidate with customer, project, run, step, attempt and the billable mark of its own span."""
    attributes = span.attributes
    attempt = attributes.get("otelbill.attempt")
    candidate = replace(
        candidate,
        customer_id=clean_id(attributes.get("otelbill.customer.id")),
        project_id=clean_id(attributes.get("otelbill.project.id")),
        run_id=clean_id(attributes.get("otelbill.run.id")),
        step=clean_id(attributes.get("otelbill.step")),
        attempt=attempt if isinstance(attempt, int) and not isinstance(attempt, bool) and attempt >= 0 else None,
        explicit_event_id=clean_id(attributes.get("otelbill.event.id")),
    )
    if attributes.get("otelbill.billable") in (False, "false", "False"):
        stated = attributes.get("otelbill.reason")
        known = stated in (Reason.APP_CACHE_HIT, Reason.FREE_OPERATION)
        return replace(candidate, billable=False, reason=Reason(str(stated)) if known else Reason.INTERNAL)
    return candidate


def read_explicit(candidate: Candidate, span: SpanView, *, genai: bool) -> Candidate:
    """The candidate with the quantity of `otelbill.meter`; a Problem when meter or quantity cannot be used."""
    attributes = span.attributes
    meter = clean_word(attributes.get("otelbill.meter"))
    calls = genai and candidate.role in (Role.CALL, Role.AGGREGATE)
    if meter is None:
        return _refuse(candidate, "no_meter", "otelbill.meter", attributes.get("otelbill.meter"))
    if meter in STANDARD_UNITS and not calls:
        return _refuse(candidate, "reserved_meter", "otelbill.meter", meter)
    quantity = parse_quantity(attributes.get("otelbill.quantity"), "otelbill.quantity")
    if isinstance(quantity, Problem):
        return replace(candidate, problem=quantity, billable=False, reason=Reason.INVALID_USAGE)
    if calls:
        return replace(candidate, quantities={meter: quantity, **candidate.quantities})
    tool = candidate.operation == "execute_tool"
    role, reason = (Role.TOOL, Reason.TOOL_USAGE) if tool else (Role.EXPLICIT, Reason.EXPLICIT_USAGE)
    internal = candidate.reason in (Reason.INTERNAL, Reason.APP_CACHE_HIT, Reason.FREE_OPERATION)
    return replace(
        candidate,
        role=role,
        billable=not internal,
        reason=candidate.reason if internal else reason,
        usage_source=UsageSource.REPORTED,
        quantities={meter: quantity},
    )


def _refuse(candidate: Candidate, code: str, name: str, value: object) -> Candidate:
    hint = (
        "name a meter of letters, digits, '_', '.', '-' that is no token unit, for example vector_queries; then replay"
    )
    return replace(
        candidate,
        problem=Problem(code, name, clip_value(value), hint),
        billable=False,
        reason=Reason.INVALID_USAGE,
    )
