"""Counts of one span: attributes first, then whole usage objects, then what its dialect is known to get wrong.

Owns the order of these sources. Does not own number parsing (`quantities`) or the forms of objects (`usage_objects`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from otelbill_collector.decode.dialects import Fault, Plan, UsageObject
from otelbill_collector.decode.quantities import Counts, parse_count, parse_quantity
from otelbill_collector.decode.spans import SpanView, Value
from otelbill_collector.decode.usage_objects import (
    UnreadableUsageError,
    Usage,
    parse_document,
    read_iterations,
    read_provider_metadata,
    read_response,
    read_usage,
)
from otelbill_collector.domain.usage import Problem

JSON_TYPE = "application/json"
CACHE_RULES = {"yes": True, "no": False, "checked": None}
_TOKEN_FACTS = ("input", "output", "total", "cache_read", "cache_write", "reasoning", "audio_input", "audio_output")


@dataclass(slots=True)
class Reading:
    """What the span's numbers say, before they are split: counts, and what an object knew beside them."""

    counts: Counts
    problem: Problem | None = None
    conflict: str | None = None
    service_tier: str | None = None
    response_id: str | None = None


@dataclass(slots=True)
class Findings:
    """Effects of a dialect's known faults on this span."""

    caveats: list[str] = field(default_factory=list)
    effects: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Situation:
    """What the conditions of a fault may look at."""

    span: SpanView
    provider: str | None
    model: str | None
    operation: str | None
    streaming: bool


def read_counts(attributes: Mapping[str, Value], plan: Plan, provider: str | None, *, aggregate: bool) -> Reading:
    """Counts of a span from all its sources. A broken plain attribute gives a Problem, a broken object a conflict."""
    reading = _read_attributes(attributes, plan, provider)
    for item in plan.usage_objects:
        if reading.problem is None and not (aggregate and item.form == "provider_metadata"):
            _apply_object(reading, item, attributes)
    if plan.dialect.output_from_total:
        _complete_output(reading.counts)
    return reading


def _read_attributes(attributes: Mapping[str, Value], plan: Plan, provider: str | None) -> Reading:
    counts = Counts(
        includes_cache=CACHE_RULES[plan.dialect.find_cache_rule(provider)],
        output_includes_reasoning=plan.dialect.output_includes_reasoning,
    )
    for fact, keys in plan.counts:
        for key in keys:
            count = parse_count(attributes.get(key), key)
            if isinstance(count, Problem):
                return Reading(counts, problem=count)
            if count is not None:
                setattr(counts, fact, count)
                break
    for unit, keys in plan.units:
        quantity = parse_quantity(attributes.get(keys[0]), keys[0])
        if not isinstance(quantity, Problem) and quantity:
            counts.units[unit] = quantity
    return Reading(counts)


def _apply_object(reading: Reading, item: UsageObject, attributes: Mapping[str, Value]) -> None:
    if item.media_type and attributes.get(item.media_type) != JSON_TYPE:
        return
    document = parse_document(attributes.get(item.attribute))
    if item.at and isinstance(document, Mapping):
        document = document.get(item.at)
    try:
        usage = _read_object(document, item)
    except UnreadableUsageError as error:
        if item.trust == "full":
            reading.conflict = f"{item.attribute}: {error}"
        return
    if usage is None or (item.trust == "matching" and not _matches(reading.counts, usage)):
        return
    _take_usage(reading, usage)


def _read_object(document: object, item: UsageObject) -> Usage | None:
    if item.trust == "iterations":
        return read_iterations(document)
    if item.trust == "matching":
        return read_response(document)
    return read_provider_metadata(document) if item.form == "provider_metadata" else read_usage(document)


def _matches(counts: Counts, usage: Usage) -> bool:
    """True when an object repeats the span's own counts; text a model wrote must never count by itself."""
    given, answered = usage.base
    if counts.input is None or given is None:
        return False
    cached = (usage.counts.cache_read or 0) + (usage.counts.cache_write or 0)
    iterated = usage.counts.input != given
    inputs = {given, given + cached} if not iterated else {given, given + cached, usage.counts.input}
    outputs = {answered or 0, usage.counts.output or 0}
    return counts.input in inputs and (counts.output or 0) in outputs


def _take_usage(reading: Reading, usage: Usage) -> None:
    counts, found = reading.counts, usage.counts
    reading.service_tier = reading.service_tier or usage.service_tier
    reading.response_id = reading.response_id or usage.response_id
    if usage.partial:
        changes: dict[str, Any] = {
            name: getattr(found, name)
            for name in ("cache_read", "cache_write", "reasoning")
            if getattr(counts, name) is None
        }
        if found.includes_cache is False and counts.cache_read is None and counts.cache_write is None:
            changes["includes_cache"] = False
        reading.counts = replace(counts, **changes)
        return
    if found.input is None and found.output is None:
        return
    kept = {name: getattr(counts, name) for name in _TOKEN_FACTS if getattr(found, name) is None}
    reading.counts = replace(found, **kept, units={**counts.units, **found.units})


def _complete_output(counts: Counts) -> None:
    """Thoughts that stand in the total only are output."""
    if counts.total is None or counts.input is None or counts.output is None:
        return
    rest = counts.total - counts.input - counts.output
    if rest > 0:
        counts.output += rest
        counts.reasoning = (counts.reasoning or 0) + rest


def find_faults(faults: tuple[Fault, ...], counts: Counts, situation: Situation) -> Findings:
    """Which of a dialect's known faults concern this span, and what follows from them."""
    findings = Findings()
    for fault in faults:
        if all(_TESTS[name](wanted, counts, situation) for name, wanted in fault.when.items()):
            findings.effects.add(fault.then)
            if fault.then != "drop":
                findings.caveats.extend(unit for unit in fault.units if unit not in findings.caveats)
    return findings


def count_all_input(counts: Counts) -> int:
    """Input with its cached part, however the emitter means it."""
    cached = (counts.cache_read or 0) + (counts.cache_write or 0)
    return (counts.input or 0) + (cached if counts.includes_cache is False else 0)


def count_uncached(counts: Counts) -> int:
    """Input without its cached part."""
    return count_all_input(counts) - (counts.cache_read or 0) - (counts.cache_write or 0)


def _has_beta(word: str, span: SpanView) -> bool:
    value = span.attributes.get("anthropic.beta")
    names = value if isinstance(value, tuple) else (value,)
    return any(isinstance(name, str) and word in name for name in names)


def _has_output_member(name: str, span: SpanView) -> bool:
    document = parse_document(span.attributes.get("output.value"))
    return isinstance(document, Mapping) and bool(document.get(name))


def _asks_stream(span: SpanView) -> bool:
    document = parse_document(span.attributes.get("llm.invocation_parameters"))
    return isinstance(document, Mapping) and document.get("stream") is True


def _matches_model(wanted: str, situation: Situation) -> bool:
    return re.fullmatch(wanted, (situation.model or "").lower().rsplit("/", 1)[-1]) is not None


# Conditions by name; each gets the wanted value, the counts and the situation.
_TESTS: Mapping[str, Any] = {  # Any: the wanted values differ in type, `dialects` checks the names
    "provider": lambda wanted, _counts, s: s.provider in wanted,
    "model": lambda wanted, _counts, s: _matches_model(wanted, s),
    "other_provider": lambda wanted, _counts, s: s.provider not in wanted,
    "output_has": lambda wanted, _counts, s: _has_output_member(wanted, s.span),
    "operation": lambda wanted, _counts, s: s.operation in wanted,
    "streaming": lambda wanted, _counts, s: (s.streaming or _asks_stream(s.span)) == wanted,
    "missing": lambda wanted, counts, _s: all(getattr(counts, fact) is None for fact in wanted),
    "zero": lambda wanted, counts, _s: all(not getattr(counts, fact) for fact in wanted),
    "present": lambda wanted, _counts, s: any(key in s.span.attributes for key in wanted),
    "absent": lambda wanted, _counts, s: not any(key in s.span.attributes for key in wanted),
    "input_min": lambda wanted, counts, _s: (counts.input or 0) >= wanted,
    "uncached_min": lambda wanted, counts, _s: count_uncached(counts) >= wanted,
    "total_min": lambda wanted, counts, _s: count_all_input(counts) >= wanted,
    "ended_unset": lambda wanted, _counts, s: (s.span.status_code == 0) == wanted,
    "beta": lambda wanted, _counts, s: _has_beta(wanted, s.span),
}
