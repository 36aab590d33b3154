"""A candidate from memory, or from the rules and then into memory. Owns learning and rebuilding: see `shapes`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from otelbill_collector.decode.dialects import load_known_keys
from otelbill_collector.decode.draft import finish_draft
from otelbill_collector.decode.grading import price_counts
from otelbill_collector.decode.rules import read_draft, read_span
from otelbill_collector.decode.shapes import MEMORY, Ground, Kind, Layout, Raw, Shape
from otelbill_collector.decode.spans import SpanView, Value
from otelbill_collector.decode.sums import Sums, sum_counts
from otelbill_collector.decode.values import FREE_NAMES, TEXTS, VALUE_BYTES_MAX, read_id
from otelbill_collector.decode.wire import AttributeView, WireSpan
from otelbill_collector.domain.usage import REQUESTS, Candidate, Role

OUTCOMES_MAX = 64  # of one kind

# What spans with one outcome have in common, in the order in which `_build` takes it.
OUTCOME_FIELDS = (
    *("dialect", "role", "detail", "provider", "model", "request_model", "operation", "service_tier"),
    *("attempt", "failed", "billable", "reason", "usage_source", "caveats", "emitter", "traits"),
)
_read_outcome = attrgetter(*OUTCOME_FIELDS)
_read_span_fields = attrgetter(
    *("trace_id", "span_id", "parent_span_id", "start_time_unix_nano", "end_time_unix_nano", "name")
)


_NO_LAYOUT: tuple[Layout, Shape | None] = ((), None)


def select_wire_span(span: WireSpan) -> Candidate | None:
    """What `read_span` says of the span, from memory where it has been said before."""
    message = span.message
    ground = span.scope.memory or MEMORY.enter(span.scope)
    attributes = message.attributes
    layout, shape = ground.latest.get(len(attributes), _NO_LAYOUT)
    for name in layout:
        if name not in attributes:
            shape = None
            break
    if shape is None:
        shape = MEMORY.find_shape(ground, tuple(attributes))
    if shape.read is None:
        return None if shape.ignored else read_span(span)
    values = shape.read(attributes)
    fields = _read_span_fields(message)
    kind = MEMORY.kinds.get((shape, message.status.code, FREE_NAMES[fields[5]], values[shape.fixed :]))
    if kind is not None:
        sums = sum_counts(kind, shape, values, attributes)
        if sums is not None:
            outcome = kind.outcomes.get(sums[0])
            if outcome is not None:
                return _build(outcome, sums, shape, fields, values, ground.service)
    return _learn(span, shape, ground)


def _build(
    outcome: tuple[Any, ...], sums: Sums, shape: Shape, fields: tuple[Any, ...], values: Raw, service: str | None
) -> Candidate:
    """A candidate with this outcome and the span's own ids, times and sums."""
    (dialect, role, detail, provider, model, request_model, operation, tier,
     attempt, failed, billable, reason, usage_source, caveats, emitter, traits) = outcome  # fmt: skip
    trace_id, span_id, parent_span_id, started_nanos, ended_nanos, _ = fields
    _, quantities, counts, response_id = sums
    if role is Role.CALL:
        if counts is not None:
            quantities = price_counts(quantities, counts)
        quantities[REQUESTS] = 1
    elif role is not Role.AGGREGATE:
        quantities = {}
    customer, project, run, step, event = shape.own
    return Candidate(
        trace_id,
        span_id,
        parent_span_id,
        started_nanos,
        ended_nanos,
        dialect,
        role,
        detail,
        provider,
        model,
        request_model,
        operation,
        response_id,
        tier,
        TEXTS[values[customer]] if customer is not None else None,
        TEXTS[values[project]] if project is not None else None,
        read_id(values[run]) if run is not None else None,
        TEXTS[values[step]] if step is not None else None,
        attempt,
        read_id(values[event]) if event is not None else None,
        failed,
        billable,
        reason,
        usage_source,
        caveats,
        quantities,
        None,
        emitter,
        service,
        traits,
    )


class _Watched(Mapping[str, Value]):
    """A span's attributes that note whose values the rules look at, those aside that `_build` reads anew.

    `spoiled` when they looked at something that a shape does not cover: an unknown name, a long value, all the names.
    """

    def __init__(self, attributes: AttributeView, shape: Shape) -> None:
        self._attributes = attributes
        self._copied = set(shape.list_copied())
        self.noted: list[str] = []
        self.spoiled = False

    def __getitem__(self, key: str) -> Value:
        if key not in self._attributes:
            raise KeyError(key)
        return self.get(key)  # type: ignore[no-any-return]

    def get(self, key: str, default: Any = None) -> Any:  # Any: the signature of Mapping.get
        if key not in self:
            return default
        if key in self._copied:
            self._copied.remove(key)  # who asks again is another rule
        else:
            self.noted.append(key)
            self.spoiled |= len(self._attributes.encoded(key)) > VALUE_BYTES_MAX
        return self._attributes.get(key)

    def __contains__(self, key: object) -> bool:
        self.spoiled |= key not in load_known_keys()
        return key in self._attributes

    def __iter__(self) -> Iterator[str]:
        self.spoiled = True
        return iter(self._attributes)

    def __len__(self) -> int:
        return len(self._attributes)


class _WatchedSpan(SpanView):
    """What the rules may look at beside attributes; the other fields are empty, and to ask for one is a fault."""

    __slots__ = ()

    def __init__(self, span: WireSpan, attributes: _Watched) -> None:
        self.name, self.status_code = span.name, span.status_code
        self.attributes = attributes


def _learn(span: WireSpan, shape: Shape, ground: Ground) -> Candidate:
    """What the rules say of the span; remembered where that will do for other spans of its kind."""
    plan = shape.plan
    assert plan is not None  # a shape without a plan is read by the rules
    attributes = AttributeView(span.message.attributes)
    watched = _Watched(attributes, shape)
    draft = read_draft(_WatchedSpan(span, watched), plan, attributes)
    candidate = finish_draft(draft, span)
    if candidate.problem is None and not watched.spoiled:
        with MEMORY.learning:
            shape.note(watched.noted)
            media = {name: attributes.get(name) for name in shape.noted}
            kind = Kind(shape, plan, candidate.provider, aggregate=draft.aggregate, media=media)
            _remember(kind, shape, span.message, candidate, ground)
    return candidate


def _remember(kind: Kind, shape: Shape, message: Any, candidate: Candidate, ground: Ground) -> None:
    assert shape.read is not None  # only such shapes learn
    values, fields = shape.read(message.attributes), _read_span_fields(message)
    kind = MEMORY.keep_kind((shape, message.status.code, FREE_NAMES[fields[5]], values[shape.fixed :]), kind)
    sums = sum_counts(kind, shape, values, message.attributes)
    if sums is None or len(kind.outcomes) >= OUTCOMES_MAX:
        return
    signature, outcome = sums[0], _read_outcome(candidate)
    if _build(outcome, sums, shape, fields, values, ground.service) == candidate:
        kind.outcomes[signature] = outcome
