"""From a span to a candidate: is it a model call, a parent with totals, an explicit quantity, or only a link?

A pure function of the span, and the one definition of what a span means: `shapes` only remembers what came out here.
Which of several candidates bills a call is decided in `claims`.
"""

from __future__ import annotations

from collections.abc import Mapping

from otelbill_collector.decode.counting import Findings, Reading, Situation, find_faults, read_counts
from otelbill_collector.decode.dialects import Dialect, Plan, find_plan, find_shape
from otelbill_collector.decode.draft import Draft, finish_draft, start_draft
from otelbill_collector.decode.explicit import read_attribution, read_explicit
from otelbill_collector.decode.facts import Facts, read_facts
from otelbill_collector.decode.grading import grade_call, price_counts
from otelbill_collector.decode.mirrors import find_mirror
from otelbill_collector.decode.privacy import clean_id, clean_word
from otelbill_collector.decode.quantities import Counts, split_counts
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.spans import SpanView, Value
from otelbill_collector.decode.vocabulary import Operation
from otelbill_collector.domain.usage import REQUESTS, Candidate, Role, UsageSource

_IMPLYING = frozenset({"agent", "workflow"})
_NO_FINDINGS = Findings()


def read_span(span: SpanView) -> Candidate | None:
    """The candidate this span is, or None when it has nothing to do with billing (a plain HTTP span)."""
    plan = find_plan(span.scope_name, span.scope_version, find_shape(span.attributes))
    if plan is None:
        mirror = find_mirror(span)
        return finish_draft(mirror, span) if mirror is not None else None
    return finish_draft(read_draft(span, plan, span.attributes), span)


def read_draft(span: SpanView, plan: Plan, counted: Mapping[str, Value]) -> Draft:
    """What the plan makes of a span. Its counts and usage objects are read from `counted`, all else from the span."""
    draft = start_draft(span, plan.dialect)
    if plan.attribution:
        read_attribution(draft, span)
    if plan.genai:
        _read_genai(draft, span, plan, counted)
    if plan.explicit and draft.problem is None:
        read_explicit(draft, span)
    return draft


def _read_genai(draft: Draft, span: SpanView, plan: Plan, counted: Mapping[str, Value]) -> None:
    facts = read_facts(span, plan)
    draft.aggregate = plan.aggregated or (facts.operation is not None and facts.operation.role is not Role.CALL)
    reading = read_counts(counted, plan, facts.provider, aggregate=draft.aggregate)
    _count_output_images(plan, facts, reading.counts)
    draft.provider, draft.model, draft.request_model = facts.provider, facts.model, facts.request_model
    draft.operation = facts.operation.name if facts.operation else None
    draft.response_id = facts.response_id or clean_id(reading.response_id)
    draft.service_tier = facts.service_tier or clean_word(reading.service_tier)
    draft.failed = facts.failed
    draft.role = _find_role(facts, plan, has_usage=reading.counts.has_usage() or reading.problem is not None)
    draft.problem = reading.problem
    if draft.role is Role.CALL:
        _finish_call(draft, span, plan, facts, reading)
    elif draft.role is Role.AGGREGATE:
        _finish_aggregate(draft, plan, reading)
    else:
        _finish_link(draft, plan, facts)


def _find_role(facts: Facts, plan: Plan, *, has_usage: bool) -> Role:
    if plan.aggregated:
        return Role.AGGREGATE if has_usage else Role.LINK
    if facts.operation is not None:
        if facts.operation.role is Role.CALL:
            return Role.CALL
        return Role.AGGREGATE if has_usage and not facts.operation.free else Role.LINK
    if facts.operation_given:
        return Role.AGGREGATE if has_usage else Role.LINK
    return Role.CALL if has_usage or facts.request_model else Role.LINK


def _finish_call(draft: Draft, span: SpanView, plan: Plan, facts: Facts, reading: Reading) -> None:
    counts, faults = reading.counts, plan.dialect.faults
    draft.operation = draft.operation or "chat"
    findings = _NO_FINDINGS
    if faults and counts.has_usage():
        situation = Situation(span, facts.provider, facts.model, draft.operation, facts.streaming)
        findings = find_faults(faults, counts, situation)
    if "drop" in findings.effects:
        counts = Counts(units=counts.units)
    split = split_counts(counts)
    draft.caveats = tuple(findings.caveats)
    draft.quantities = price_counts(split.quantities, counts)
    draft.quantities[REQUESTS] = 1
    draft.traits = _list_call_traits(plan.dialect)
    grade_call(draft, span, plan, counts, conflict=split.conflict or reading.conflict, effects=findings.effects)


def _list_call_traits(dialect: Dialect) -> tuple[str, ...]:
    return tuple(name for name in ("twin", "traces_apart", "last_call_only") if getattr(dialect, name))


def _finish_aggregate(draft: Draft, plan: Plan, reading: Reading) -> None:
    draft.quantities = dict(split_counts(reading.counts).quantities)
    draft.usage_source = UsageSource.RESIDUAL
    draft.reason = draft.marked or Reason.AGGREGATE
    draft.detail = plan.dialect.trust
    _mark_implied(draft, plan)


def _finish_link(draft: Draft, plan: Plan, facts: Facts) -> None:
    draft.usage_source = UsageSource.UNKNOWN
    if draft.marked is not None:
        draft.reason = draft.marked
    elif facts.operation is not None and facts.operation.free:
        draft.reason = Reason.FREE_OPERATION
    elif facts.operation is None and facts.operation_given:
        draft.reason = Reason.UNKNOWN_OPERATION
    _mark_implied(draft, plan)


def _mark_implied(draft: Draft, plan: Plan) -> None:
    if plan.dialect.implies_call and draft.operation in _IMPLYING:
        draft.role, draft.traits = Role.AGGREGATE, ("implies_call",)  # it may have to stand for calls nobody saw


def _count_output_images(plan: Plan, facts: Facts, counts: Counts) -> None:
    """OpenInference records generated images as `output.images.<n>.*` of a model span without tokens."""
    if plan.output_images and not counts.has_usage() and "openinference.span.kind" in plan.operation_keys:
        facts.operation = Operation(Role.CALL, "image")
        counts.units["images"] = plan.output_images
