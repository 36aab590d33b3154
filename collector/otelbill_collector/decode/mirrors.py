"""Spans that only mirror a provider's answer under its own names (`llm.<provider>.usage`). Owns reading those.

Such a span is another description of the call its parent describes, sometimes the only one with the provider's id.
"""

from __future__ import annotations

from otelbill_collector.decode.dialects import Dialect, find_rows
from otelbill_collector.decode.draft import Draft, start_draft
from otelbill_collector.decode.grading import measure_detail, price_counts
from otelbill_collector.decode.privacy import clean_id, clean_name, clean_word
from otelbill_collector.decode.quantities import Counts, split_counts
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.decode.usage_objects import UnreadableUsageError, Usage, parse_document, read_usage
from otelbill_collector.decode.vocabulary import find_provider, load_vocabulary
from otelbill_collector.domain.usage import REQUESTS, Role, UsageSource

_MEMBERS = ("usage", "id", "model")


def find_mirror(span: SpanView) -> Draft | None:
    """A call when the span mirrors an answer, else None."""
    dialect = find_rows(span.scope_name, span.scope_version)[0]
    prefix = dialect.mirror_prefix
    if prefix is None:
        return None
    keys: dict[str, str] = {}
    for key in span.attributes:
        parts = key.split(".")
        if len(parts) == 3 and key.startswith(prefix) and parts[2] in _MEMBERS:
            keys[parts[2]] = key
    return _read_mirror(span, dialect, keys) if keys else None


def _read_mirror(span: SpanView, dialect: Dialect, keys: dict[str, str]) -> Draft:
    usage = _read_usage(span, keys)
    counts = usage.counts if usage else Counts()
    split = split_counts(counts)
    known = usage is not None and split.conflict is None
    draft = start_draft(span, dialect)
    draft.role = Role.CALL
    draft.operation = "chat"
    draft.model = clean_name(span.attributes.get(keys["model"])) if "model" in keys else None
    stated = clean_name(next(iter(keys.values())).split(".")[1])
    draft.provider = find_provider(load_vocabulary(), stated, host=None, model=draft.model)
    draft.response_id = clean_id(span.attributes.get(keys["id"])) if "id" in keys else None
    draft.service_tier = clean_word(usage.service_tier) if usage else None
    draft.quantities = {**price_counts(split.quantities, counts), REQUESTS: 1}
    draft.billable = known or not draft.failed
    draft.reason = Reason.PROVIDER_CALL if known else Reason.NO_USAGE_REPORTED
    if draft.failed and not known:
        draft.reason = Reason.FAILED_WITHOUT_USAGE
    draft.usage_source = UsageSource.REPORTED if known else UsageSource.UNKNOWN
    draft.detail = measure_detail(draft, counts) - 40  # its parent knows the same and who asked
    return draft


def _read_usage(span: SpanView, keys: dict[str, str]) -> Usage | None:
    if "usage" not in keys:
        return None
    try:
        return read_usage(parse_document(span.attributes.get(keys["usage"])))
    except UnreadableUsageError:
        return None
