"""Spans that the native scanner recognises are what the rules and the pipeline say they are; the others it leaves."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.requests import Load, Template
from otelbill_collector.decode import scanner as scanner_module
from otelbill_collector.decode.dialects import Dialect, list_dialects, load_known_keys
from otelbill_collector.decode.scanner import Scanner
from otelbill_collector.decode.shapes import MEMORY
from otelbill_collector.decode.vocabulary import load_vocabulary, load_yaml, parse_vocabulary
from otelbill_collector.domain.usage import Candidate, Problem
from otelbill_collector.native.build import CannotBuild, build_library, find_compiler
from otelbill_collector.native.loading import find_library
from otelbill_collector.pipeline import Limits
from tests.corpus import Case, load_cases
from tests.fuzzing import VALUES
from tests.scanning import LIMITS, Batch, check_batch, check_mutants
from tests.spans import SECOND, T0, TestSpan, build_message, build_request

pytestmark = pytest.mark.skipif(find_library() is None, reason="no native library; see otelbill_collector.native.build")

MUTANTS = 800
SANITIZED_MUTANTS = 200
CHAT: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.id": "chatcmpl-1",
    "gen_ai.usage.input_tokens": 1_200,
    "gen_ai.usage.output_tokens": 5,
    "otelbill.customer.id": "acme",
    "otelbill.run.id": "run-1",
}
HTTP = {"http.request.method": "GET", "url.full": "https://example.com/"}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    MEMORY.forget()
    yield
    MEMORY.forget()


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> list[Case]:
    return load_cases(shared_data)


def check_twice(bodies: Sequence[bytes], scanner: Scanner | None = None, limits: Limits = LIMITS) -> Batch:
    """New, and then known as far as it can be; returns the second."""
    scanner = scanner or Scanner()
    check_batch(scanner, bodies, limits)
    return check_batch(scanner, bodies, limits)


def check_known(body: bytes, scanner: Scanner | None = None) -> None:
    """Every span of the request comes from the scanner the second time."""
    batch = check_twice([body], scanner)
    assert batch.recognised == batch.spans > 0


def test_every_recorded_span_is_read_as_the_rules_read_it(cases: Sequence[Case]) -> None:
    """All emitters of the corpus, new and known; most of it is recognised, and no request needs the parser."""
    batch = check_twice([case.body for case in cases])
    assert batch.whole == 0
    assert batch.recognised > 0.7 * batch.spans


@pytest.mark.parametrize("http_third", [False, True])
def test_every_span_of_the_load_is_recognised(*, http_third: bool) -> None:
    """With ids, counts and times of its own each time."""
    template, scanner = Template(Load(http_third=http_third), seed=1), Scanner()
    for turn in range(3):
        batch = check_batch(scanner, [bytes(body) for body in template.renew(T0 + turn * SECOND)])
    assert batch.recognised == batch.spans >= 512


def test_broken_requests_are_read_as_the_rules_read_them(cases: Sequence[Case]) -> None:
    """Mutants of all kinds among whole requests, several in a batch: refused, buried and billed alike."""
    assert check_mutants(Scanner(), [case.body for case in cases], MUTANTS, "scanner") > MUTANTS


def test_any_order_of_attributes_means_the_same(cases: Sequence[Case]) -> None:
    """Layouts are of names in wire order; each order is learned for itself."""
    scanner, chance = Scanner(), random.Random(5)
    for case in chance.sample(list(cases), 60):
        request = ExportTraceServiceRequest.FromString(case.body)
        for resource in request.resource_spans:
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                pairs = chance.sample(list(span.attributes), len(span.attributes))
                del span.attributes[:]
                span.attributes.extend(pairs)
        check_twice([case.body, request.SerializeToString()], scanner)


def test_requests_of_a_batch_keep_their_spans_apart() -> None:
    """A refused request, an empty one and one that nobody knows change nothing about the others."""
    known, other = (
        build_request([TestSpan("a", CHAT), TestSpan("h", HTTP)]),
        build_request([TestSpan("b", HTTP, scope="b")]),
    )
    scanner = Scanner()
    check_twice([known], scanner)
    batch = check_batch(scanner, [known, b"\xff", b"", other, known])
    assert isinstance(batch.results[1], str)
    assert batch.results[2] == []
    assert (batch.whole, batch.recognised, batch.spans) == (1, 4, 5)


# --- the wire ---------------------------------------------------------------------------------------------------------


def field(number: int, content: bytes | int, kind: int = 2) -> bytes:
    """One field, by hand: what no library writes."""
    head = write_number(number << 3 | kind)
    return head + (content if isinstance(content, bytes) and kind != 2 else write_content(content))


def write_content(content: bytes | int) -> bytes:
    return write_number(content) if isinstance(content, int) else write_number(len(content)) + content


def write_number(number: int) -> bytes:
    head = bytearray()
    while number >= 0x80:
        head.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*head, number])


def wrap(*spans: bytes, scope: bytes = b"", resource: bytes = b"") -> bytes:
    """A request of encoded spans."""
    scoped = field(1, scope) + b"".join(field(2, span) for span in spans)
    return field(1, field(1, resource) + field(2, scoped))


def take_span(attributes: dict[str, Any], **changes: Any) -> bytes:
    """One encoded span."""
    message = build_message([TestSpan("a", attributes, **changes)])
    return message.resource_spans[0].scope_spans[0].spans[0].SerializeToString()


SPAN = take_span(CHAT)
PAIR = field(1, b"k") + field(2, field(1, b"v"))
STRANGE_SPANS = {
    "unknown fields of all types": field(77, 5, 0)
    + field(99, b"8 bytes.", 1)
    + field(33, b"4 by", 5)
    + field(40, b"x"),
    "links, flags and counts": field(13, field(1, bytes(16))) + field(16, b"\x01\0\0\0", 5) + field(10, 3, 0),
    "a field twice": field(5, b"other name"),
    "an id twice": field(1, bytes(range(16))),
    "another wire type": field(5, 7, 0),
    "attributes of another wire type": field(9, 7, 0),
    "a status of another wire type": field(15, b"8 bytes.", 1),
    "a status twice": field(15, field(3, 2, 0)),
    "a negative status": field(15, field(3, 2**64 - 1, 0)),
    "a group": b"\xa3\x06\xa4\x06",
    "a group that does not end": b"\xa3\x06",
    "field number zero": b"\x00\x01",
    "wire type six": b"\xa6\x06\x01",
    "wire type seven": b"\xa7\x06\x01",
    "a number written too long": b"\xa0\x06\x85\x00",
    "a number without end": b"\xa0\x06" + b"\xff" * 11,
    "a number past 64 bits": b"\xa0\x06" + b"\xff" * 9 + b"\x7f",
    "a tag written too long": b"\xca\x00" + write_content(PAIR),
    "a tag past five bytes": b"\xff\xff\xff\xff\xff\xff\x01\x01",
    "a length written too long": b"\x4a" + bytes([len(PAIR) | 0x80, 0]) + PAIR,
    "a length of five bytes": b"\x4a" + bytes([len(PAIR) | 0x80, 0x80, 0x80, 0x80, 0]) + PAIR,
    "a length of six bytes": b"\x4a" + bytes([len(PAIR) | 0x80, 0x80, 0x80, 0x80, 0x80, 0]) + PAIR,
    "a length of ten bytes": b"\x4a" + bytes([len(PAIR) | 0x80, *[0x80] * 8, 0]) + PAIR,
    "a number of ten bytes": b"\xa0\x06" + bytes([0x85, *[0x80] * 8, 0]),
    "a length past the end": b"\x4a\x7f",
    "a length past all memory": b"\x4a" + write_number(2**63),
    "a value before its key": field(9, field(2, field(1, b"v")) + field(1, b"k")),
    "a key without value": field(9, field(1, b"k")),
    "a value without key": field(9, field(2, field(1, b"v"))),
    "an empty attribute": field(9, b""),
    "a key twice in one attribute": field(9, field(1, b"a") + PAIR),
    "an attribute with more fields": field(9, PAIR + field(3, 1, 0)),
    "a key of another wire type": field(9, field(1, 1, 0) + field(2, b"")),
    "a cut attribute": b"\x4a\x02\x0a\x05",
    "a name twice": field(9, field(1, b"gen_ai.usage.input_tokens") + field(2, field(3, 7, 0))),
    "a key that is no text": field(9, field(1, b"\xff") + field(2, b"")),
    "a key with a surrogate": field(9, field(1, b"\xed\xa0\x80") + field(2, b"")),
    "a key written too long": field(9, field(1, b"\xc0\x80") + field(2, b"")),
    "a key of other letters": field(9, field(1, "ключ-鍵-🔑".encode()) + field(2, b"")),
    "a value that is no AnyValue": field(9, field(1, b"k") + field(2, b"\xff\xff")),
    "an event": field(11, field(1, b"8 bytes.", 1) + field(2, b"e") + field(3, PAIR) + field(4, 1, 0)),
    "an event whose name is no text": field(11, field(2, b"\xff")),
    "an event with two names": field(11, field(2, b"a") + field(2, b"b")),
    "an event with a broken attribute": field(11, field(3, b"\x0a\x05")),
    "an event with an odd attribute": field(11, field(3, field(2, b"") + field(1, b"k"))),
    "a broken event": field(11, b"\x12"),
}


@pytest.mark.parametrize("what", sorted(STRANGE_SPANS))
@pytest.mark.parametrize("attributes", [CHAT, HTTP], ids=["chat", "http"])
def test_strange_bytes_in_a_span_are_read_as_the_parser_reads_them(what: str, attributes: dict[str, Any]) -> None:
    """Taken, refused and understood alike, before and after the span's own fields, beside spans that are known."""
    scanner, span = Scanner(), take_span(attributes)
    check_twice([wrap(span)], scanner)
    for strange in (STRANGE_SPANS[what] + span, span + STRANGE_SPANS[what], STRANGE_SPANS[what]):
        check_twice([wrap(span, strange, span), wrap(span)], scanner)


def test_common_fields_that_nobody_reads_do_not_keep_a_span_from_being_known() -> None:
    """Links, flags, counts and events stand on many spans."""
    for what in ("links, flags and counts", "an event", "unknown fields of all types"):
        check_known(wrap(SPAN + STRANGE_SPANS[what]))


def test_numbers_and_lengths_of_a_fixed_size_do_not_keep_a_span_from_being_known() -> None:
    """Encoders that know no size beforehand write varints longer than they have to be, which protobuf allows."""
    for what in ("a number written too long", "a number of ten bytes", "a length written too long"):
        check_known(wrap(SPAN + STRANGE_SPANS[what]))


@pytest.mark.parametrize(
    "body",
    [
        field(1, field(2, field(2, SPAN)) + field(1, field(1, PAIR))),
        field(1, field(1, field(1, PAIR)) + field(1, b"") + field(2, field(2, SPAN))),
        field(1, field(2, field(2, SPAN) + field(1, field(1, b"late")))),
        field(1, field(2, field(1, field(1, b"a")) + field(1, field(2, b"1")) + field(2, SPAN))),
        wrap(SPAN, scope=field(1, b"a") + field(1, b"b")),
        wrap(SPAN, scope=field(1, b"\xff")),
        wrap(SPAN, scope=field(1, 5, 0)),
        wrap(SPAN, scope=field(1, b"tests") + field(3, PAIR) + field(4, 1, 0)),
        wrap(SPAN, resource=field(1, PAIR) + field(2, 1, 0)),
        wrap(SPAN, resource=field(1, field(2, b"") + field(1, b"k"))),
        wrap(SPAN, resource=field(1, b"\x0a\x05")),
        wrap(SPAN, resource=field(1, 5, 0)),
        wrap(SPAN) + field(2, b"more") + wrap(SPAN),
        wrap(SPAN) + field(1, 5, 0),
        field(1, field(3, b"schema") + field(2, field(3, b"schema") + field(2, SPAN))),
        field(1, b"") + field(1, field(2, b"")) + wrap(),
    ],
)
def test_strange_bytes_around_spans_are_read_as_the_parser_reads_them(body: bytes) -> None:
    """Resources and scopes that are late, double, missing, broken or hold more than is known."""
    scanner = Scanner()
    check_twice([wrap(SPAN)], scanner)
    check_twice([body, wrap(SPAN)], scanner)


def test_every_cut_and_every_changed_byte_is_read_as_the_parser_reads_it() -> None:
    """A known request with each of its bytes set to each of some values, and cut at each place."""
    span = take_span({**CHAT, "otelbill.step": "s"}, status=1, parent="p", events=(("e", {"k": "v"}),))
    body, scanner = wrap(span, scope=field(1, b"tests")), Scanner()
    check_known(body, scanner)
    for at in range(len(body)):
        changed = [body[:at]]
        changed += [body[:at] + bytes([value]) + body[at + 1 :] for value in (0, 0x7F, 0x80, 0xFF, body[at] ^ 1)]
        check_batch(scanner, changed)


# --- what is recognised -----------------------------------------------------------------------------------------------


def test_texts_that_need_a_look_are_left_to_the_rules() -> None:
    """Ids that are cleaned, over-long, of other letters or no text; customers may be anything that was seen before."""
    texts: list[Any] = ["x", "a b", "x@example.com", "é", "x" * 127, "x" * 128, "x" * 600, "", " ", 7, True, 0.5, ["a"]]
    for key in (
        "gen_ai.response.id",
        "otelbill.run.id",
        "otelbill.customer.id",
        "otelbill.step",
        "otelbill.project.id",
    ):
        for text in texts:
            batch = check_twice([build_request([TestSpan("a", {**CHAT, key: text}), TestSpan("b", CHAT)])])
            known = text in ("x", "x" * 127) or (
                key not in ("gen_ai.response.id", "otelbill.run.id") and text != "x" * 600
            )
            assert batch.recognised == 1 + known, (key, text)


@pytest.mark.parametrize(
    "name", ["count_tokens", "x CountTokens y", "count_to\u212aens", "count_token\u017f", "Zähler", "tOKen"]
)
def test_names_of_requests_that_cost_nothing_are_left_to_the_rules(name: str) -> None:
    """Whatever the case, and whatever other letters the pattern takes for the same."""
    scanner = Scanner()
    check_twice([build_request([TestSpan("a", CHAT)])], scanner)
    assert check_twice([build_request([TestSpan(name, CHAT)])], scanner).recognised == 0


@given(st.from_regex(load_vocabulary().free_names, fullmatch=True))
def test_every_free_name_holds_the_word_that_the_scanner_looks_for(name: str) -> None:
    """Names of other letters are left to the rules unseen."""
    assert not name.isascii() or load_vocabulary().free_names_hold in name.lower()


@pytest.mark.parametrize("word", ["", "Token", "co unt", "price"])
def test_a_word_that_free_names_need_not_hold_is_refused(word: str) -> None:
    """A vocabulary that contradicts itself does not start."""
    document = load_yaml(Path(str(scanner_module.__file__)).with_name("vocabulary.yaml"))
    with pytest.raises(ValueError, match="free_names_hold"):
        parse_vocabulary({**document, "free_names_hold": word})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"trace_id": b""}, "invalid_trace_id"),
        ({"trace_id": bytes(16)}, "invalid_trace_id"),
        ({"trace_id": b"x" * 17}, "invalid_trace_id"),
        ({"span_id": bytes(8)}, "invalid_span_id"),
        ({"span_id": b"short"}, "invalid_span_id"),
        ({"parent_span_id": b"short"}, "invalid_parent_span_id"),
        ({"parent_span_id": bytes(8)}, None),
        ({"start_time_unix_nano": 2**63}, "start_time_out_of_range"),
        ({"start_time_unix_nano": 2**63 - 1}, None),
        ({"end_time_unix_nano": 0}, "event_time_missing"),
        ({"end_time_unix_nano": 631_152_000 * 10**9 - 1}, "event_time_too_old"),
        ({"end_time_unix_nano": 631_152_000 * 10**9}, None),
        ({"end_time_unix_nano": T0 + LIMITS.future_nanos}, None),
        ({"end_time_unix_nano": T0 + LIMITS.future_nanos + 1}, "event_time_in_future"),
        ({"end_time_unix_nano": 2**64 - 1}, "event_time_in_future"),
    ],
)
def test_ids_and_times_that_cannot_be_are_buried(changes: dict[str, Any], problem: str | None) -> None:
    """The same problems as without the scanner, at the same instants."""
    message = build_message([TestSpan("a", CHAT)])
    scanner, body = Scanner(), message.SerializeToString()
    check_twice([body], scanner)
    for name, value in changes.items():
        setattr(message.resource_spans[0].scope_spans[0].spans[0], name, value)
    batch = check_batch(scanner, [message.SerializeToString()], received=T0)
    [[found]] = batch.results
    assert batch.recognised == (problem is None)
    assert found.code == problem if isinstance(found, Problem) else problem is None


def test_limits_are_those_of_the_parser_and_the_pipeline() -> None:
    """Too many spans, events or attributes: refused or buried, each at its own number."""
    many = build_request([TestSpan(str(number), CHAT) for number in range(11)])
    wide = build_request([TestSpan("a", {**CHAT, **{f"k{number}": 1 for number in range(13)}})])
    wide_http = build_request([TestSpan("a", {f"k{number}": 1 for number in range(21)})])
    eventful = build_request([TestSpan("a", CHAT, events=(("e", {}),) * 101)])
    scanner = Scanner()
    for spans_max in (10, 11):
        for attributes_max in (20, 21):
            limits = Limits(spans_max=spans_max, attributes_max=attributes_max, future_nanos=0)
            check_twice([many, wide, wide_http, eventful], scanner, limits)
    assert isinstance(check_batch(scanner, [eventful], Limits(10, 99, 0)).results[0], str)
    assert isinstance(check_batch(scanner, [eventful], Limits(11, 99, 0)).results[0], list)


def test_heavy_requests_are_weighed_as_the_parser_weighs_them() -> None:
    """Of a body of more than two MiB attributes and scopes are counted too."""
    content = {f"k{number}": "x" * 1_000 for number in range(60)}
    body = build_request([TestSpan(str(number), {**CHAT, **content}, scope=str(number)) for number in range(40)])
    scanner = Scanner()
    for spans_max in (40, 80, 90, 100):
        check_twice([body], scanner, Limits(spans_max, 256, 0))


def test_more_attributes_than_a_span_can_be_recognised_by() -> None:
    """They are left to the rules, whatever the limit is."""
    body = build_request([TestSpan("a", {**CHAT, **{f"k{number}": 1 for number in range(600)}})])
    assert check_twice([body], limits=Limits(100, 10_000, 0)).recognised == 0


def test_a_kind_that_is_told_apart_by_more_than_before_is_learned_anew() -> None:
    """Whose values the rules look at depends on values: what was learned by fewer of them does not answer any more."""
    operations = ("chat", "unheard", "chat", "embeddings", "unheard")
    others = ("LLM", "LLM", "EMBEDDING", "unheard", "LLM")
    spans = [
        TestSpan(
            str(number), {**CHAT, "gen_ai.operation.name": one, "llm.request.type": other, "traceloop.span.kind": other}
        )
        for number, (one, other) in enumerate(zip(operations, others, strict=True))
    ]
    scanner = Scanner()
    for body in [build_request([span]) for span in spans] * 3:
        check_batch(scanner, [body])
    assert check_batch(scanner, [build_request(spans)]).recognised == len(spans)


_INPUT, _OUTPUT = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
_SIZES = {
    _INPUT: (0, 127, 128, 1_023, 1_024, 1_150, 1_150, 1_150, 2**53, 2**53 + 1, -1),
    _OUTPUT: (0, 1, 30, 2**53),
    "gen_ai.usage.cache_read.input_tokens": (0, 5, 900, 1_030),
    "gen_ai.usage.cache_creation.input_tokens": (0, 0, 0, 130),
    "gen_ai.usage.reasoning.output_tokens": (0, 1, 29, 31),
    "gen_ai.usage.total_tokens": (0, 1_180, 3_030, 4_030),
    "gen_ai.usage.cache_creation.ephemeral_5m_input_tokens": (0, 9, 600),
}
_SHAPES = ((), (2,), (2, 3), (2, 4), (2, 3, 5), (2, 3, 4, 5), (2, 6), (2, 3, 5, 6))


@pytest.mark.parametrize("scope", sorted({row.scopes[0].replace("*", "x") for row in list_dialects()}))
def test_counts_at_every_threshold_are_told_apart_for_every_emitter(scope: str) -> None:
    """Zero or not, above or below what a fault asks for, sums that cannot be."""
    chance, scanner = random.Random(scope), Scanner()
    bodies = []
    for provider in ("openai", "anthropic"):
        base = {**CHAT, "gen_ai.provider.name": provider, "llm.request.type": "chat"}
        for places in _SHAPES:
            names = (_INPUT, _OUTPUT, *(list(_SIZES)[place] for place in places))
            chosen = [{name: chance.choice(_SIZES[name]) for name in names} for _ in range(25)]
            spans = [TestSpan(str(number), base | counts, scope=scope) for number, counts in enumerate(chosen)]
            bodies.append(build_request(spans))
    check_twice(bodies, scanner)


_CACHE_WRITES = {
    "gen_ai.usage.cache_creation.input_tokens": (0, 130, 500),
    "anthropic.usage.cache_creation.ephemeral_5m_input_tokens": (0, 1, 130, 600),
    "anthropic.usage.cache_creation.ephemeral_1h_input_tokens": (0, 0, 0, 0, 5),
}


@pytest.mark.parametrize("scope", ["com.anthropic.sdk.python", "opentelemetry.instrumentation.anthropic", "unheard"])
def test_cache_writes_by_time_to_live_are_summed_as_the_rules_sum_them(scope: str) -> None:
    """Together as reported, or more where the parts are more; what was written for an hour has no column."""
    chance, bodies = random.Random(scope), []
    for provider in ("anthropic", "openai"):
        base = {**CHAT, "gen_ai.provider.name": provider, "gen_ai.usage.cache_read.input_tokens": 40}
        for names in (list(_CACHE_WRITES), list(_CACHE_WRITES)[1:], list(_CACHE_WRITES)[1:2]):
            for number in range(60):
                counts = {name: chance.choice(_CACHE_WRITES[name]) for name in names}
                counts |= {_INPUT: chance.choice(_SIZES[_INPUT]), _OUTPUT: chance.choice(_SIZES[_OUTPUT])}
                bodies.append(build_request([TestSpan(str(number), base | counts, scope=scope)]))
    batch = check_twice(bodies)
    assert 0.3 * batch.spans < batch.recognised < batch.spans


def test_ids_that_an_emitter_may_have_made_up_are_left_to_the_rules() -> None:
    """Told by their length, which the dialect table has beside the pattern."""
    scanner, made_up = Scanner(), "01234567-89ab-cdef-0123-456789abcdef"
    for response, recognised in (("chatcmpl-1", 1), (made_up, 0), (made_up.replace("0", "x"), 0), (made_up + "0", 1)):
        body = build_request([TestSpan("a", {**CHAT, "gen_ai.response.id": response}, scope="litellm")])
        assert check_twice([body], scanner).recognised == recognised


@pytest.mark.parametrize("row", [row for row in list_dialects() if row.own_response_ids], ids=lambda row: row.name)
@given(data=st.data())
def test_every_id_that_an_emitter_makes_up_has_the_length_that_the_table_tells(
    row: Dialect, data: st.DataObject
) -> None:
    """A pattern and a length that contradict each other would let made-up ids link calls."""
    assert row.own_response_ids is not None
    made_up = data.draw(st.from_regex(row.own_response_ids, fullmatch=True))
    assert len(made_up) == row.own_response_id_length


_counts = st.integers(0, 40) | st.sampled_from([127, 128, 1_023, 1_024, 1_025, 2**53, 2**53 + 1])
_odd: st.SearchStrategy[Any] = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans() | st.sampled_from(VALUES)
_names = sorted(load_known_keys())
_count_names = [name for name in _names if "tokens" in name or "token_count" in name]
_scopes = st.sampled_from(sorted({scope.rstrip("*") for dialect in list_dialects() for scope in dialect.scopes}))
_words = st.sampled_from(["openai", "anthropic", "google", "gpt-5.6", "claude-4", "chat", "invoke_agent", "LLM", ""])


@st.composite
def _kindred(draw: st.DrawFn) -> list[TestSpan]:
    """Spans of one scope with the same names and mostly the same values: what a memory could take for another."""
    names = draw(st.lists(st.sampled_from(_count_names), max_size=4, unique=True))
    others = draw(st.lists(st.sampled_from(_names), max_size=5, unique=True))
    texts = {name: draw(_words | _odd) for name in others}
    scope, spans = draw(_scopes), []
    for number in range(draw(st.integers(2, 5))):
        attributes = {**(CHAT if draw(st.booleans()) else {}), **texts}
        attributes |= {name: draw(_counts | _counts | _odd) for name in names}
        if others and draw(st.booleans()):
            attributes[draw(st.sampled_from(others))] = draw(_words | _odd)
        status, name = draw(st.sampled_from([0, 0, 1, 2])), draw(st.sampled_from(["chat", "count_tokens"]))
        spans.append(TestSpan(f"{name} {number}", attributes, scope=scope, status=status))
    return spans


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_kindred(), min_size=1, max_size=3))
def test_spans_of_one_layout_are_told_apart(requests: list[list[TestSpan]]) -> None:
    """Counts at every threshold, of every type, missing, huge, negative, under every name; other texts, states."""
    scanner = Scanner()
    bodies = [build_request(spans) for spans in requests]
    check_twice(bodies, scanner)
    check_batch(scanner, bodies[::-1])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=40), max_size=4))
def test_any_bytes_are_a_request_or_refused(bodies: list[bytes]) -> None:
    """As the parser has it."""
    check_twice([*bodies, *(wrap(body) for body in bodies), *(wrap(SPAN + body) for body in bodies)])


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_full_memory_is_forgotten_and_learned_again(cases: Sequence[Case]) -> None:
    """Whoever sends ever new names, values and shapes costs time, not memory, and gets the same answers."""
    scanner = Scanner(entries_max=300, bytes_max=20_000)
    bodies, lists = [case.body for case in cases], []
    for turn in range(3):
        for body in random.Random(turn).sample(bodies, 60):
            check_batch(scanner, [body])
            lists.append(scanner.names)
    assert len({id(names) for names in lists}) > 5
    assert max(map(len, lists)) <= 300


def test_a_burst_is_read_as_its_parts_are() -> None:
    """More spans than the scanner keeps room for, in one batch, and then few again: new, and known."""
    http, chat = take_span(HTTP), take_span(CHAT)
    bodies, scanner = [wrap(*[chat] * 15_000)] * 10, Scanner()
    limits = {"spans_max": 20_000, "attributes_max": 99, "earliest_nanos": 0, "future_nanos": 0}
    for known in (False, True):
        scanned = scanner.scan(bodies, [2 * T0] * 10, **limits)
        assert (len(scanned.columns), len(scanned.rest)) == ((150_000, 0) if known else (0, 10))
        check_twice([wrap(chat, http)], scanner)
    assert set(scanned.columns.counts[0].tolist()) == {1_200}


def test_columns_keep_their_names_when_the_scanner_forgets() -> None:
    """Codes point into the lists they came with."""
    scanner, body = Scanner(), build_request([TestSpan("a", CHAT)])
    limits = {"spans_max": 9, "attributes_max": 99, "earliest_nanos": 0, "future_nanos": 0}
    check_twice([body], scanner)
    columns = scanner.scan([body], [T0 + SECOND], **limits).columns
    scanner.forget()
    check_twice([build_request([TestSpan("a", {**CHAT, "otelbill.customer.id": "other"})])], scanner)
    assert columns.build_candidate(0).customer_id == "acme"
    assert scanner.scan([], [], **limits).columns.names == scanner.names != columns.names


def test_candidates_are_the_same_built_one_by_one_or_together(cases: Sequence[Case]) -> None:
    """In any order, some of them twice."""
    scanner, bodies = Scanner(), [case.body for case in cases]
    check_batch(scanner, bodies)
    limits = {"spans_max": 999, "attributes_max": 999, "earliest_nanos": 0, "future_nanos": 0}
    columns = scanner.scan(bodies, [2 * T0] * len(bodies), **limits).columns
    one_by_one = [columns.build_candidate(row) for row in range(len(columns))]
    chosen = random.Random(1).choices(range(len(columns)), k=2 * len(columns))
    for rows in (chosen, [0], [], list(range(len(columns)))):
        together = columns.build_candidates(np.array(rows, dtype=np.intp))
        assert together == [one_by_one[row] for row in rows]
        assert repr(together) == repr([one_by_one[row] for row in rows])


def test_content_is_not_remembered() -> None:
    """Values that no rule reads are not told to the scanner."""
    scanner = Scanner()
    check_known(build_request([TestSpan("a", {**CHAT, "gen_ai.prompt.0.content": "CANARY"})]), scanner)
    check_known(build_request([TestSpan("a", {**CHAT, "gen_ai.prompt.0.content": "another text"})]), scanner)
    assert "CANARY" not in repr([scanner.names, scanner.templates])


def test_without_the_library_everything_is_left_to_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bills, slower."""
    monkeypatch.setattr(scanner_module, "find_library", lambda: None)
    batch = check_twice([build_request([TestSpan("a", CHAT)]), b"\xff"], Scanner())
    assert (batch.whole, batch.recognised) == (2, 0)
    assert isinstance(batch.results[0], list)
    assert isinstance(batch.results[0][0], Candidate)


def test_the_library_reads_no_byte_beyond_what_it_is_given(shared_data: Path, tmp_path: Path) -> None:
    """Mutants and cut requests under the address and undefined-behaviour sanitizers find nothing."""
    compiler = find_compiler()
    runtime = (
        compiler
        and subprocess.run(
            [*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
        ).stdout.strip()
    )
    if not runtime or not Path(runtime).is_absolute():
        pytest.skip("no C compiler with an address sanitizer")
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g")
    try:
        library = build_library(tmp_path / "sanitized.so", flags)
    except CannotBuild as error:
        pytest.skip(f"no sanitizers: {error}"[:200])
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
    command = [sys.executable, "-m", "tests.scanning", str(library), str(shared_data), str(SANITIZED_MUTANTS)]
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4_000:]
    found = re.fullmatch(r"sanitized\.so (\d+)", result.stdout.strip())
    assert found is not None
    assert int(found[1]) > SANITIZED_MUTANTS
