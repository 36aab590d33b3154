"""Whether a call bills, from what source, and how detailed its description is. Owns the order of these reasons."""

from __future__ import annotations

from otelbill_collector.decode.dialects import Plan
from otelbill_collector.decode.draft import Draft
from otelbill_collector.decode.quantities import Counts
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.domain.usage import TOKEN_UNITS, Quantities, Quantity, Role, UsageSource

_DETAIL_LEVELS = {UsageSource.REPORTED: 2, UsageSource.ESTIMATED: 1}
_WITHOUT_TOKENS = frozenset({"image", "rerank", "moderation"})  # billed per call or per unit: no tokens is no gap
_WITHOUT_OUTPUT = frozenset({"embeddings", "transcription", "speech"})


def grade_call(
    draft: Draft, span: SpanView, plan: Plan, counts: Counts, *, conflict: str | None, effects: set[str]
) -> None:
    """Settle billable, reason, source and detail of a call whose counts are read."""
    if not counts.has_usage() and _is_told_elsewhere(span, plan):
        draft.role, draft.quantities = Role.LINK, {}
        draft.billable, draft.reason = False, Reason.DUPLICATE_DESCRIPTION
        return
    draft.billable, draft.reason, draft.usage_source = True, Reason.PROVIDER_CALL, UsageSource.REPORTED
    if draft.problem is not None:
        draft.billable, draft.reason, draft.usage_source = False, Reason.INVALID_USAGE, UsageSource.UNKNOWN
    elif "cache_hit" in effects or _is_cache_hit(span, plan):
        draft.billable, draft.reason = False, Reason.APP_CACHE_HIT
    elif draft.failed and not counts.has_usage():
        draft.billable, draft.reason, draft.usage_source = False, Reason.FAILED_WITHOUT_USAGE, UsageSource.UNKNOWN
    elif conflict is not None:
        draft.reason, draft.usage_source = Reason.INCONSISTENT_USAGE, UsageSource.UNKNOWN
    elif "unknown" in effects or not _is_complete(counts, draft.operation):
        draft.reason, draft.usage_source = Reason.NO_USAGE_REPORTED, UsageSource.UNKNOWN
    elif "estimated" in effects:
        draft.usage_source = UsageSource.ESTIMATED
    if draft.marked is not None:
        draft.billable, draft.reason = False, draft.marked
    draft.detail = measure_detail(draft, counts)


def price_counts(quantities: Quantities, counts: Counts) -> dict[str, Quantity]:
    """Quantities without token units when no token count was reported at all."""
    if counts.input is None and counts.output is None:
        return {unit: amount for unit, amount in quantities.items() if unit not in TOKEN_UNITS}
    return dict(quantities)


def measure_detail(draft: Draft, counts: Counts) -> int:
    """How much a description knows: source first, then known flaws, then facts, then trust in the emitter."""
    level = _DETAIL_LEVELS.get(draft.usage_source, 0)
    plain = 0 if draft.caveats else 1
    named = (draft.response_id is not None) * 3 + (draft.model != draft.request_model)
    return level * 10_000 + plain * 1_000 + counts.count_known() * 40 + draft.dialect.trust * 10 + named


def _is_complete(counts: Counts, operation: str | None) -> bool:
    if operation in _WITHOUT_TOKENS:
        return True
    if operation in _WITHOUT_OUTPUT:
        return counts.has_usage()
    return counts.has_usage() and counts.input is not None and counts.output is not None


def _is_told_elsewhere(span: SpanView, plan: Plan) -> bool:
    return plan.dialect.stream_usage_in_log_span and span.attributes.get("logfire.span_type") == "span"


def _is_cache_hit(span: SpanView, plan: Plan) -> bool:
    return any(span.attributes.get(key) in (True, "True", "true") for key in plan.flags.get("cache_hit", ()))
