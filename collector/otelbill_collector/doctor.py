"""`otelbill doctor`: what captured spans say of their emitters, and what stands in the way of billing them.

Owns the findings and their wording. The rules are those of selection and claims; the remedies are `dialect_guide`'s.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from otelbill.allow_list import find_rule
from otelbill_collector.decode.claims import FOREVER_NANOS, decide_group
from otelbill_collector.decode.privacy import clean_scope, clean_word
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.dialect_guide import find_advice, load_content_names
from otelbill_collector.domain.records import identify_candidate
from otelbill_collector.domain.usage import Candidate, Decision, UsageSource
from otelbill_collector.offline import list_groups

Json = dict[str, Any]  # what is printed as JSON
_PROSE = re.compile(r"\w+\W+\w+\W+\w+\W+\w+")  # four words: no id, name or number
_PROSE_LENGTH_MAX = 4_096  # the beginning tells
_GENAI_PREFIXES = ("gen_ai.", "llm.", "ai.")
_CUSTOMER_REMEDY = (
    "wrap the work in otelbill.customer('ID') in the application, set the attribute otelbill.customer.id on the span "
    "or one above it, or assign what is booked with `otelbill adjust`"
)
_UNKNOWN_REMEDY = (
    "compare a few calls with the provider's invoice: its counts are read by the general conventions, and input that "
    "excludes cached tokens is noticed only where more are cached than read"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know. `severity`: `problem` keeps money from being billed or prompts from staying private."""

    code: str
    severity: str
    subject: str
    count: int
    message: str
    remedy: str

    def render(self) -> Json:
        """As JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _Picture:
    """Everything seen, counted by what the findings are about."""

    emitters: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    twice: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    silent: Counter[str] = field(default_factory=Counter)
    estimated: Counter[str] = field(default_factory=Counter)
    unreliable: Counter[tuple[str, tuple[str, ...]]] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    broken: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    content: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    customerless: int = 0


def examine_spans(spans: Sequence[SpanView]) -> Json:
    """Emitters, counts and findings of spans that are examined together. Never holds an attribute's value."""
    picture = _Picture()
    members: dict[str, Candidate] = {}
    for span in spans:
        candidate = select_span(span)
        dialect = candidate.dialect if candidate is not None else ""
        if candidate is not None or _is_genai(span):
            picture.emitters[clean_scope(span.scope_name), _clean_version(span), dialect] += 1
            picture.content[dialect or "default"].update(_list_content(span))
        _note_unknown(picture, span, candidate)
        if candidate is not None and candidate.problem is not None:
            problem = candidate.problem
            picture.broken[problem.code, problem.field, problem.hint] += 1
        elif candidate is not None:
            members.setdefault(identify_candidate(candidate), candidate)
    for group in list_groups(list(members.values())):
        _note_group(picture, group, decide_group(group, FOREVER_NANOS))
    return _render(picture, len(spans))


def _clean_version(span: SpanView) -> str:
    return span.scope_version if re.fullmatch(r"[\w.+\-]{1,40}", span.scope_version) else ""


def _is_genai(span: SpanView) -> bool:
    return any(key.startswith(_GENAI_PREFIXES) for key in span.attributes)


def _note_unknown(picture: _Picture, span: SpanView, candidate: Candidate | None) -> None:
    known = candidate is not None and not candidate.dialect.endswith("-conventions")
    if not known and _is_genai(span):
        picture.unknown[clean_scope(span.scope_name) or "(no scope)"] += 1


def _note_group(picture: _Picture, group: Sequence[Candidate], decisions: Sequence[Decision]) -> None:
    emitters = {(c.trace_id, c.span_id): c.emitter for c in group}
    for candidate, decision in zip(group, decisions, strict=True):
        if decision.reason == Reason.DUPLICATE_DESCRIPTION and decision.winner_span_id:
            winner = emitters.get((decision.winner_trace_id, decision.winner_span_id), "")
            picture.twice[candidate.emitter, winner, candidate.dialect] += 1
        if not decision.billable:
            continue
        picture.calls[candidate.emitter, candidate.dialect] += 1
        picture.customerless += decision.customer_id is None
        if decision.usage_source is UsageSource.UNKNOWN:
            picture.silent[candidate.dialect] += 1
        elif decision.usage_source is UsageSource.ESTIMATED:
            picture.estimated[candidate.dialect] += 1
        elif decision.caveats:
            picture.unreliable[candidate.dialect, decision.caveats] += 1


def _list_content(span: SpanView) -> Iterator[str]:
    """Names of attributes, of the span and its events, that hold text; indexes and keys of maps are left out."""
    yield from _list_texts(span.attributes)
    for event in span.events:
        for name in _list_texts(event.attributes):
            yield f"event {clean_word(event.name) or 'event'}: {name}"


def _list_texts(attributes: Mapping[str, Any]) -> Iterator[str]:
    """Any: attribute values, of which only texts are looked at."""
    exact, prefixes = load_content_names()
    for key in attributes:
        if key.startswith("otelbill."):
            continue
        prefix = next((item for item in prefixes if key.startswith(item)), None)
        if key not in exact and prefix is None and find_rule(key) is not None:
            continue
        value = attributes.get(key)
        if key in exact or prefix is not None:
            if _holds_text(value):
                yield key if prefix is None or key in exact else f"{prefix}*"
        elif isinstance(value, str) and _PROSE.search(value[:_PROSE_LENGTH_MAX]):
            yield clean_word(key) or "(a name that is no plain word)"


def _holds_text(value: object) -> bool:
    if isinstance(value, tuple):
        return any(_holds_text(item) for item in value)
    return isinstance(value, str) and value not in ("", "[]", "{}", "null", "__REDACTED__")


def _render(picture: _Picture, spans: int) -> Json:
    findings = sorted(_list_findings(picture), key=lambda item: (item.severity != "problem", item.code, item.subject))
    return {
        "spans": spans,
        "calls": sum(picture.calls.values()),
        "emitters": [
            {
                "scope": scope,
                "version": version or None,
                "dialect": dialect or None,
                "spans": count,
                "calls": picture.calls.get((scope, dialect), 0),
            }
            for (scope, version, dialect), count in sorted(picture.emitters.items())
        ],
        "content": sorted({name for names in picture.content.values() for name in names}),
        "findings": [item.render() for item in findings],
        "healthy": not any(item.severity == "problem" for item in findings),
    }


def _list_findings(picture: _Picture) -> Iterator[Finding]:
    yield from _list_usage_findings(picture)
    if picture.customerless:
        text = f"{picture.customerless} billable calls belong to no customer and go to suspense"
        yield Finding("no_customer", "problem", "", picture.customerless, text, _CUSTOMER_REMEDY)
    for scope, count in picture.unknown.items():
        text = f"{count} GenAI spans of {scope}, which no rule knows by name"
        yield Finding("unknown_emitter", "problem", scope, count, text, _UNKNOWN_REMEDY)
    for (code, name, hint), count in picture.broken.items():
        text = f"{count} spans would become dead letters ({code} in {name})"
        yield Finding("dead_letter", "problem", name, count, text, hint)
    for dialect, names in picture.content.items():
        if names:
            text = f"prompts or answers stand in {', '.join(sorted(names))}"
            count = sum(names.values())
            yield Finding("content", "problem", dialect, count, text, find_advice(dialect, "content"))


def _list_usage_findings(picture: _Picture) -> Iterator[Finding]:
    for dialect, count in picture.silent.items():
        text = f"{count} calls described by {dialect} have no usage and would be held"
        yield Finding("no_usage", "problem", dialect, count, text, find_advice(dialect, "usage"))
    for dialect, count in picture.estimated.items():
        text = f"{count} calls described by {dialect} carry estimated counts and would be held"
        yield Finding("estimated_usage", "problem", dialect, count, text, find_advice(dialect, "estimates"))
    for (dialect, units), count in picture.unreliable.items():
        text = f"{count} calls of {dialect} are priced as reported, though {', '.join(units)} may be off"
        remedy = f"see {dialect} in docs/dialects.md for the emitter that reports them"
        yield Finding("unreliable_counts", "note", dialect, count, text, remedy)
    for (loser, winner, dialect), count in picture.twice.items():
        text = f"{count} spans of {loser} describe calls that {winner or 'another span'} describes too; billed once"
        yield Finding("described_twice", "note", loser, count, text, find_advice(dialect, "twice"))
