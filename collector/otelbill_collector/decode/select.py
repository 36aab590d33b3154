"""From a span to a candidate: is it a model call, a parent with totals, an explicit quantity, or only a link?

A pure function of the span. Which of several candidates bills a call is decided in `claims`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from otelbill_collector.decode.counting import Findings, Reading, Situation, find_faults, read_counts
from otelbill_collector.decode.dialects import Dialect, Plan, find_plan, find_rows, load_known_keys
from otelbill_collector.decode.explicit import read_attribution, read_explicit
from otelbill_collector.decode.privacy import clean_id, clean_name, clean_scope, clean_word
from otelbill_collector.decode.quantities import Counts, split_counts
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.spans import STATUS_ERROR, SpanView
from otelbill_collector.decode.usage_objects import UnreadableUsageError, parse_document, read_usage
from otelbill_collector.decode.vocabulary import Operation, find_provider, load_vocabulary
from otelbill_collector.domain.usage import REQUESTS, TOKEN_UNITS, Candidate, Quantities, Quantity, Role, UsageSource

_DETAIL_LEVELS = {UsageSource.REPORTED: 2, UsageSource.ESTIMATED: 1}
_WITHOUT_TOKENS = frozenset({"image", "rerank", "moderation"})  # billed per call or per unit: no tokens is no gap
_WITHOUT_OUTPUT = frozenset({"embeddings", "image", "rerank", "moderation", "transcription", "speech"})
_IMPLYING = frozenset({"agent", "workflow"})


@dataclass(slots=True)
class Facts:
    """Names read from a span, cleaned."""

    provider: str | None
    model: str | None
    request_model: str | None
    response_id: str | None
    service_tier: str | None
    operation: Operation | None
    operation_given: bool
    streaming: bool
    failed: bool


def select_span(span: SpanView) -> Candidate | None:
    """The candidate this span is, or None when it has nothing to do with billing (a plain HTTP span)."""
    shape = load_known_keys().intersection(span.attributes)
    plan = find_plan(span.scope_name, span.scope_version, shape)
    if plan is None:
        return _select_raw(span)
    candidate = _start_candidate(span, plan.dialect)
    if plan.attribution:
        candidate = read_attribution(candidate, span)
    if plan.genai:
        candidate = _select_genai(candidate, span, plan)
    if plan.explicit and candidate.problem is None:
        candidate = read_explicit(candidate, span, genai=plan.genai)
    return candidate


def _start_candidate(span: SpanView, dialect: Dialect) -> Candidate:
    return Candidate(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        started_nanos=span.started_nanos,
        ended_nanos=span.ended_nanos,
        dialect=dialect.name,
        role=Role.LINK,
        detail=0,
        billable=False,
        reason=Reason.STRUCTURE,
        emitter=clean_scope(span.scope_name),
        failed=span.status_code == STATUS_ERROR,
    )


def _select_genai(candidate: Candidate, span: SpanView, plan: Plan) -> Candidate:
    facts = _read_facts(span, plan)
    aggregate = plan.aggregated or (facts.operation is not None and facts.operation.role is not Role.CALL)
    reading = read_counts(span, plan, facts.provider, aggregate=aggregate)
    _count_output_images(span, plan, facts, reading.counts)
    operation = facts.operation
    candidate = replace(
        candidate,
        provider=facts.provider,
        model=facts.model,
        request_model=facts.request_model,
        operation=operation.name if operation else None,
        response_id=facts.response_id or clean_id(reading.response_id),
        service_tier=facts.service_tier or clean_word(reading.service_tier),
        failed=facts.failed,
    )
    role = _find_role(facts, plan, has_usage=reading.counts.has_usage() or reading.problem is not None)
    if role is Role.CALL:
        return _finish_call(candidate, span, plan, facts, reading)
    if role is Role.AGGREGATE:
        return _finish_aggregate(candidate, plan, reading)
    return _finish_link(candidate, plan, facts)


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


def _finish_call(candidate: Candidate, span: SpanView, plan: Plan, facts: Facts, reading: Reading) -> Candidate:
    dialect, counts = plan.dialect, reading.counts
    name = facts.operation.name if facts.operation else "chat"
    situation = Situation(span, facts.provider, facts.model, name, facts.streaming)
    findings = find_faults(dialect.faults, counts, situation) if counts.has_usage() else Findings()
    if "drop" in findings.effects:
        counts = Counts(units=counts.units)
    split = split_counts(counts)
    candidate = replace(
        candidate,
        role=Role.CALL,
        operation=name,
        problem=reading.problem,
        caveats=tuple(findings.caveats),
        quantities={**_priced(split.quantities, counts), REQUESTS: 1},
        traits=_call_traits(dialect),
    )
    conflict = split.conflict or reading.conflict
    return _grade_call(candidate, span, plan, counts, conflict=conflict, effects=findings.effects)


def _priced(quantities: Quantities, counts: Counts) -> dict[str, Quantity]:
    if counts.input is None and counts.output is None:
        return {unit: amount for unit, amount in quantities.items() if unit not in TOKEN_UNITS}
    return dict(quantities)


def _grade_call(
    candidate: Candidate, span: SpanView, plan: Plan, counts: Counts, *, conflict: str | None, effects: set[str]
) -> Candidate:
    """Settle whether the call bills, from what source, and how detailed its description is."""
    billable, reason, source = True, Reason.PROVIDER_CALL, UsageSource.REPORTED
    complete = _is_complete(counts, candidate.operation)
    if candidate.problem is not None:
        billable, reason, source = False, Reason.INVALID_USAGE, UsageSource.UNKNOWN
    elif _is_cache_hit(span, plan):
        billable, reason = False, Reason.APP_CACHE_HIT
    elif candidate.failed and not counts.has_usage():
        billable, reason, source = False, Reason.FAILED_WITHOUT_USAGE, UsageSource.UNKNOWN
    elif _is_told_elsewhere(span, plan, counts):
        return replace(candidate, role=Role.LINK, billable=False, reason=Reason.DUPLICATE_DESCRIPTION, quantities={})
    elif conflict is not None:
        reason, source = Reason.INCONSISTENT_USAGE, UsageSource.UNKNOWN
    elif not complete or "unknown" in effects:
        reason, source = Reason.NO_USAGE_REPORTED, UsageSource.UNKNOWN
    elif "estimated" in effects:
        source = UsageSource.ESTIMATED
    if _is_internal(candidate):
        billable, reason = False, Reason(candidate.reason)
    return replace(
        candidate,
        billable=billable,
        reason=reason,
        usage_source=source,
        detail=_measure_detail(candidate, plan.dialect, counts, source),
    )


def _is_internal(candidate: Candidate) -> bool:
    """True when attribution already said `otelbill.billable=false`."""
    return candidate.reason not in (Reason.STRUCTURE, Reason.PROVIDER_CALL)


def _is_complete(counts: Counts, operation: str | None) -> bool:
    if operation in _WITHOUT_TOKENS:
        return True
    if operation in _WITHOUT_OUTPUT:
        return counts.has_usage()
    return counts.has_usage() and counts.input is not None and counts.output is not None


def _measure_detail(candidate: Candidate, dialect: Dialect, counts: Counts, source: UsageSource) -> int:
    level = _DETAIL_LEVELS.get(source, 0)
    plain = 0 if candidate.caveats else 1
    named = (candidate.response_id is not None) * 3 + (candidate.model != candidate.request_model)
    return level * 10_000 + plain * 1_000 + counts.count_known() * 40 + dialect.trust * 10 + named


def _call_traits(dialect: Dialect) -> tuple[str, ...]:
    return tuple(name for name, held in (("twin", dialect.twin), ("last_call_only", dialect.last_call_only)) if held)


def _is_told_elsewhere(span: SpanView, plan: Plan, counts: Counts) -> bool:
    return (
        plan.dialect.stream_usage_in_log_span
        and not counts.has_usage()
        and span.attributes.get("logfire.span_type") == "span"
    )


def _is_cache_hit(span: SpanView, plan: Plan) -> bool:
    for key in plan.flags.get("cache_hit", ()):
        if span.attributes.get(key) in (True, "True", "true"):
            return True
    hidden = span.attributes.get("hidden_params") if plan.dialect.raw_prefix else None
    document = parse_document(hidden) if hidden else None
    return isinstance(document, dict) and document.get("cache_hit") is True


def _finish_aggregate(candidate: Candidate, plan: Plan, reading: Reading) -> Candidate:
    split = split_counts(reading.counts)
    internal = _is_internal(candidate)
    return replace(
        candidate,
        role=Role.AGGREGATE,
        problem=reading.problem,
        reason=candidate.reason if internal else Reason.AGGREGATE,
        quantities=split.quantities,
        usage_source=UsageSource.RESIDUAL,
        detail=plan.dialect.trust,
        traits=("implies_call",) if plan.dialect.implies_call and candidate.operation in _IMPLYING else (),
    )


def _finish_link(candidate: Candidate, plan: Plan, facts: Facts) -> Candidate:
    reason = candidate.reason
    if not _is_internal(candidate):
        if facts.operation is not None and facts.operation.free:
            reason = Reason.FREE_OPERATION
        elif facts.operation is None and facts.operation_given:
            reason = Reason.UNKNOWN_OPERATION
    implies = plan.dialect.implies_call and candidate.operation in _IMPLYING and not candidate.failed
    return replace(
        candidate,
        role=Role.LINK,
        reason=reason,
        usage_source=UsageSource.UNKNOWN,
        traits=("implies_call",) if implies else (),
    )


def _read_facts(span: SpanView, plan: Plan) -> Facts:
    vocabulary, texts = load_vocabulary(), plan.texts
    request_model = _find_name(span, texts.get("request_model", ()))
    response_model = _find_name(span, texts.get("response_model", ()))
    host = _find_text(span, texts.get("server", ()))
    stated = _find_name(span, texts.get("provider", ()))
    response_id = clean_id(_find_text(span, texts.get("response_id", ())))
    own = plan.dialect.own_response_ids
    if own is not None and response_id is not None and own.fullmatch(response_id):
        response_id = None
    operation, given = _find_operation(span, plan)
    model = response_model or request_model
    return Facts(
        provider=find_provider(vocabulary, stated, host=host if isinstance(host, str) else None, model=model),
        model=model,
        request_model=request_model,
        response_id=response_id,
        service_tier=clean_word(_find_text(span, texts.get("service_tier", ()))),
        operation=operation,
        operation_given=given,
        streaming=any(span.attributes.get(key) is True for key in plan.flags.get("streaming", ())),
        failed=_has_failed(span, plan),
    )


def _find_text(span: SpanView, keys: tuple[str, ...]) -> object:
    for key in keys:
        value = span.attributes.get(key)
        if value:
            return value
    return None


def _find_name(span: SpanView, keys: tuple[str, ...]) -> str | None:
    for key in keys:
        name = clean_name(span.attributes.get(key))
        if name:
            return name
    return None


def _find_operation(span: SpanView, plan: Plan) -> tuple[Operation | None, bool]:
    """The known operation, and whether any operation was named at all."""
    given = False
    vocabulary = load_vocabulary()
    for key in plan.operation_keys:
        value = span.attributes.get(key)
        if isinstance(value, str) and value:
            given = True
            operation = vocabulary.find_operation(value)
            if operation is not None:
                return operation, True
    return None, given


def _has_failed(span: SpanView, plan: Plan) -> bool:
    if span.status_code == STATUS_ERROR or span.attributes.get("error.type"):
        return True
    for key in plan.status_codes:
        code = span.attributes.get(key)
        if isinstance(code, int) and code >= 400:
            return True
    return False


def _count_output_images(span: SpanView, plan: Plan, facts: Facts, counts: Counts) -> None:
    """OpenInference records generated images as `output.images.<n>.*` of a model span without tokens."""
    if counts.has_usage() or "openinference.span.kind" not in plan.operation_keys:
        return
    images = {key.split(".", 3)[2] for key in span.attributes if key.startswith("output.images.")}
    if images:
        facts.operation = Operation(Role.CALL, "image")
        counts.units["images"] = len(images)


def _select_raw(span: SpanView) -> Candidate | None:
    """A span that only mirrors the provider's answer (`llm.<provider>.usage`): another description of its parent."""
    dialect = find_rows(span.scope_name, span.scope_version)[0]
    if dialect.raw_prefix is None:
        return None
    found: dict[str, str] = {}
    for key in span.attributes:
        parts = key.split(".")
        if key.startswith(dialect.raw_prefix) and len(parts) == 3:
            found[parts[2]] = key
    if not {"usage", "id", "model"} & set(found):
        return None
    return _finish_raw(span, dialect, found)


def _finish_raw(span: SpanView, dialect: Dialect, keys: dict[str, str]) -> Candidate:
    vocabulary = load_vocabulary()
    try:
        usage = read_usage(parse_document(span.attributes.get(keys["usage"]))) if "usage" in keys else None
    except UnreadableUsageError:
        usage = None
    counts = usage.counts if usage else Counts()
    model = clean_name(span.attributes.get(keys["model"])) if "model" in keys else None
    split = split_counts(counts)
    known = usage is not None and split.conflict is None
    stated = next(iter(keys.values())).split(".")[1]
    candidate = replace(
        _start_candidate(span, dialect),
        role=Role.CALL,
        provider=find_provider(vocabulary, stated if stated != "None" else None, host=None, model=model),
        model=model,
        operation="chat",
        response_id=clean_id(span.attributes.get(keys["id"])) if "id" in keys else None,
        service_tier=clean_word(usage.service_tier) if usage else None,
        quantities={**_priced(split.quantities, counts), REQUESTS: 1},
        billable=True,
        reason=Reason.PROVIDER_CALL if known else Reason.NO_USAGE_REPORTED,
        usage_source=UsageSource.REPORTED if known else UsageSource.UNKNOWN,
    )
    if candidate.failed and not known:
        candidate = replace(candidate, billable=False, reason=Reason.FAILED_WITHOUT_USAGE)
    return replace(candidate, detail=_measure_detail(candidate, dialect, counts, candidate.usage_source) - 40)
