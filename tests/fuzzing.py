"""Broken requests made of recorded ones, and what must hold for any request at all. Owns mutation and oracle.

The oracle knows nothing of dialects. It asks that nothing crashes, that every candidate gets one decision, that no
quantity is negative, and that each one stands on the spans of its group or is a sum or difference of what stands there.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otelbill_collector.decode.claims import FOREVER_NANOS, decide_group
from otelbill_collector.decode.dialects import list_dialects, load_known_keys
from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.decode.wire import MalformedRequest, decode_request
from otelbill_collector.domain.usage import QUANTITY_MAX, REQUESTS, Candidate, Decision, Quantity, UsageSource
from otelbill_collector.offline import list_groups
from tests.spans import build_any

REQUEST_SECONDS_MAX = 5.0  # CPU time; an ordinary case takes a millisecond
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_TEXT_MAX = 65_536
_TERMS_SEARCHED_MAX = 400  # numbers of a group that are combined; groups with more are only bounded

VALUES: tuple[object, ...] = (
    -1,
    0,
    1,
    7,
    2**31,
    2**53,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    0.5,
    -3.0,
    12.0,
    1e300,
    math.nan,
    math.inf,
    True,
    False,
    "",
    "12",
    "-5",
    "1e5",
    "nan",
    "9" * 50,
    "text",
    "\x00",
    "x" * 5_000,
    "é@example.com",
    "[" * 2_000,
    '{"input_tokens": 5, "output_tokens": -3}',
    '{"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 90}}',
    '{"input_tokens": 5, "cache_read_input_tokens": 50, "iterations": [{"input_tokens": 3, "output_tokens": 1}]}',
    '{"usage": {"prompt_tokens": "7", "completion_tokens": 1e400}}',
    '{"usage": null, "id": 5}',
    "{'prompt_tokens': 3, 'completion_tokens': Usage()}",
    [1, 2, "three"],
    ["chat"],
    [],
)


def mutate(body: bytes, chance: random.Random, keys: Sequence[str]) -> bytes:
    """The request with one to four faults; a fifth of the time the faults are in its bytes."""
    if chance.random() < 0.2:
        return _mutate_bytes(body, chance)
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    for _ in range(chance.randint(1, 4)):
        _mutate_message(request, chance, keys)
    return request.SerializeToString()


def list_mutation_keys() -> list[str]:
    """Every attribute name that a rule reads."""
    return sorted(load_known_keys())


def _mutate_bytes(body: bytes, chance: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randint(1, 8)):
        if not changed:
            break
        at = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at] = chance.randrange(256)
            case 2:
                del changed[at : at + chance.randint(1, 16)]
            case _:
                changed[at:at] = chance.randbytes(chance.randint(1, 16))
    return bytes(changed[: chance.randrange(len(changed) + 1)] if chance.random() < 0.1 else changed)


def _mutate_message(request: ExportTraceServiceRequest, chance: random.Random, keys: Sequence[str]) -> None:
    scopes = [scope for resource in request.resource_spans for scope in resource.scope_spans if scope.spans]
    if not scopes:
        return
    scope = chance.choice(scopes)
    span = chance.choice(list(scope.spans))
    kind = chance.randrange(10)
    if kind == 0:
        scope.scope.name = chance.choice(chance.choice(list_dialects()).scopes).rstrip("*")
    elif kind == 1:
        scope.spans.add().CopyFrom(span)
        scope.spans[-1].span_id = chance.randbytes(8)
    elif kind == 2:
        _mutate_links(span, chance, [other for item in scopes for other in item.spans])
    elif kind == 3:
        span.start_time_unix_nano = chance.choice((0, 1, span.end_time_unix_nano, 2**64 - 1))
    else:
        _mutate_attributes(span, chance, keys)


def _mutate_links(span: Span, chance: random.Random, spans: Sequence[Span]) -> None:
    other = chance.choice(spans)
    span.parent_span_id = chance.choice((b"", span.span_id, other.span_id, chance.randbytes(8), b"short"))
    span.status.code = chance.choice((0, 1, 2))  # type: ignore[assignment]
    if chance.random() < 0.2:
        span.trace_id, span.span_id = chance.choice(((b"", b""), (bytes(16), bytes(8)), (b"x", b"y")))


def _mutate_attributes(span: Span, chance: random.Random, keys: Sequence[str]) -> None:
    pairs = span.attributes
    kind = chance.randrange(6) if pairs else 0
    if kind == 0:
        pairs.append(KeyValue(key=chance.choice(keys), value=_choose_value(chance)))
        return
    pair = chance.choice(list(pairs))
    if kind == 1:
        pair.value.CopyFrom(_choose_value(chance))
    elif kind == 2:
        other = chance.choice(list(pairs))
        value = AnyValue()
        value.CopyFrom(pair.value)
        pair.value.CopyFrom(other.value)
        other.value.CopyFrom(value)
    elif kind == 3:
        pair.key = chance.choice(keys)
    elif kind == 4:
        pairs.remove(pair)
    else:
        _change_type(pair.value)


def _choose_value(chance: random.Random) -> AnyValue:
    kind = chance.random()
    if kind < 0.05:
        return AnyValue()
    if kind < 0.1:
        return AnyValue(bytes_value=chance.randbytes(5))
    return build_any(chance.choice(VALUES))


def _change_type(value: AnyValue) -> None:
    match value.WhichOneof("value"):
        case "int_value":
            value.string_value = str(value.int_value)
        case "string_value":
            value.array_value.values.add(string_value=value.string_value)
        case "double_value":
            value.string_value = repr(value.double_value)
        case _:
            value.double_value = 3.0


def check_request(body: bytes) -> int:
    """Take a request through decoding, selection and claims; returns how many decisions were made.

    Raises AssertionError, or whatever a fault of ours raises.
    """
    started = time.process_time()
    try:
        views = decode_request(body)
    except MalformedRequest:
        return 0
    by_id: dict[tuple[bytes, bytes], list[SpanView]] = defaultdict(list)  # broken senders give two spans one id
    for view in views:
        by_id[view.trace_id, view.span_id].append(view)
    found = [candidate for view in views if (candidate := select_span(view)) is not None]
    usable = [candidate for candidate in found if candidate.problem is None]
    for candidate in found:
        assert candidate.problem is None or not candidate.billable, candidate
    decided = 0
    for group in list_groups(usable):
        decisions = decide_group(group, FOREVER_NANOS)
        assert len(decisions) == len(group)
        decided += len(decisions)
        _check_group(group, decisions, by_id)
    assert decided == len(usable)
    assert time.process_time() - started < REQUEST_SECONDS_MAX
    return decided


def _check_group(
    group: Sequence[Candidate], decisions: Sequence[Decision], views: Mapping[tuple[bytes, bytes], list[SpanView]]
) -> None:
    numbers: set[Decimal] | None = None
    for candidate, decision in zip(group, decisions, strict=True):
        for unit, amount in decision.quantities.items():
            assert isinstance(amount, int | Decimal), (unit, amount)
            assert not isinstance(amount, bool)
            assert Decimal(amount).is_finite(), (unit, amount)
            assert amount >= 0, (unit, amount, candidate)
            if not decision.billable or not amount:
                continue
            if unit == REQUESTS:
                assert amount <= len(group), (amount, group)
                continue
            if numbers is None:
                numbers = read_numbers(view for item in group for view in views[item.trace_id, item.span_id])
            attributes = max(len(view.attributes) for view in views[candidate.trace_id, candidate.span_id])
            if unit == "images" and amount <= attributes:
                continue  # counted from attribute names
            assert _stands(amount, numbers, decision.usage_source), (unit, amount, candidate, sorted(numbers)[:50])


def read_numbers(views: Iterable[SpanView]) -> set[Decimal]:
    """Every number in any attribute, also inside texts."""
    found: set[Decimal] = set()
    for view in views:
        for key in view.attributes:
            _read_value(view.attributes.get(key), found)
    return {number for number in found if 0 < number <= QUANTITY_MAX}


def _read_value(value: object, found: set[Decimal]) -> None:
    if isinstance(value, tuple):
        for item in value:
            _read_value(item, found)
    elif isinstance(value, str):
        texts = _NUMBER.findall(value[:_TEXT_MAX])
        found.update(Decimal(text) for text in texts if len(text) < 40)
    elif isinstance(value, int | float) and math.isfinite(value):
        found.add(Decimal(value) if isinstance(value, int) else Decimal(repr(value)))


def _stands(amount: Quantity, numbers: set[Decimal], source: UsageSource) -> bool:
    """True for a number on the spans, or up to four of them added and subtracted; residuals are only bounded.

    Four: the input that was not cached is the whole less what was read and less both kinds of what was written.
    """
    wanted = Decimal(amount)
    if wanted in numbers:
        return True
    if source is UsageSource.RESIDUAL or len(numbers) > _TERMS_SEARCHED_MAX:
        return wanted <= sum(numbers)
    pairs = {a - b for a in numbers for b in numbers} | {a + b for a in numbers for b in numbers}
    if wanted in pairs or any(wanted - a in pairs or wanted + a in pairs for a in numbers):
        return True
    return any(wanted - pair in pairs for pair in pairs)
