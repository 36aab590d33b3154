"""Large bodies are counted before they are parsed: what would be gigabytes in memory is refused for its numbers."""

from __future__ import annotations

import tracemalloc

import pytest

from otelbill_collector.decode import weight
from otelbill_collector.decode.weight import TooHeavy, weigh_request
from otelbill_collector.decode.wire import MalformedRequest, TooManySpans, decode_request
from tests.spans import TestSpan, build_request

SPANS_MAX = 100


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is weighed, in slices of a few spans."""
    monkeypatch.setattr(weight, "WEIGHED_BYTES", 0)
    monkeypatch.setattr(weight, "_SLICE_BYTES", 300)


def _wrap(tag: int, body: bytes) -> bytes:
    size, out = len(body), bytearray([tag])
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size]) + body


def _scope(spans: bytes) -> bytes:
    return _wrap(0x0A, _wrap(0x12, spans))


_ATTRIBUTE = _wrap(0x4A, b"\x0a\x01k")
_EVENT_WITH_ATTRIBUTES = _wrap(0x5A, b"\x1a\x03\x0a\x01k" * 100)
BOMBS = {
    "spans": _scope(b"\x12\x00" * 101),
    "scopes and resources": b"\x0a\x00" * 201,
    "span events": _scope(_wrap(0x12, b"\x5a\x00" * 501) * 2),
    "span events of small spans": _scope(_wrap(0x12, b"\x5a\x00" * 20) * 51),
    "attributes": _scope(_wrap(0x12, _ATTRIBUTE * 3_001)),
    "attributes of small spans": _scope(_wrap(0x12, _ATTRIBUTE * 40) * 76),
    "attributes of events": _scope(_wrap(0x12, _EVENT_WITH_ATTRIBUTES) * 31),
    "attributes of a resource": _wrap(0x0A, _wrap(0x0A, b"\x0a\x03\x0a\x01k" * 3_001)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_too_many_elements_are_refused_by_their_number(name: str) -> None:
    """Whatever it is that repeats, the refusal names it, how many there are and the limit."""
    with pytest.raises(TooHeavy, match=rf"{name.partition(' of ')[0]} in one request, the limit is \d+"):
        weigh_request(BOMBS[name], SPANS_MAX)
    with pytest.raises(TooManySpans, match="send smaller batches"):
        decode_request(BOMBS[name], SPANS_MAX)


def test_a_request_within_its_limits_passes_and_is_counted_rightly() -> None:
    """The limit itself is allowed, with spans of all sizes, one of them larger than a slice."""
    spans = [TestSpan(f"s{number}", {f"a{item}": "x" * number for item in range(29)}) for number in range(SPANS_MAX)]
    body = build_request(spans)
    weigh_request(body, SPANS_MAX)
    assert len(decode_request(body, SPANS_MAX)) == SPANS_MAX
    with pytest.raises(TooHeavy, match="spans in one request"):
        weigh_request(body, SPANS_MAX - 1)


@pytest.mark.parametrize(
    "body", [b"\x0a\x7f", b"\x0b\x0c", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0a"]
)
def test_what_cannot_be_walked_is_malformed(body: bytes) -> None:
    """Cut off fields, groups and endless numbers are told to the sender as what they are."""
    with pytest.raises(MalformedRequest):
        decode_request(body, SPANS_MAX)


def test_a_bomb_costs_a_few_times_its_size() -> None:
    """Four megabytes of empty spans were half a gigabyte when they were parsed before they were counted."""
    bomb = _scope(b"\x12\x00" * 2_000_000)
    tracemalloc.start()
    with pytest.raises(TooHeavy):
        weigh_request(bomb, 100_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * len(bomb)
