"""What is remembered of a kind of span is what the rules say of each span of that kind."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otelbill_collector.decode import recall, shapes, values
from otelbill_collector.decode.dialects import list_dialects, load_known_keys
from otelbill_collector.decode.rules import read_span
from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.shapes import MEMORY
from otelbill_collector.decode.wire import MalformedRequest, Scope, decode_request
from otelbill_collector.domain.usage import Candidate
from tests.corpus import Case, load_cases
from tests.fuzzing import VALUES, list_mutation_keys, mutate
from tests.spans import TestSpan, build_any, build_message, build_request, chat

MUTANTS = 1_500
CHAT: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "gen_ai.response.id": "chatcmpl-1",
    "gen_ai.usage.input_tokens": 1_200,
    "gen_ai.usage.output_tokens": 5,
    "otelbill.customer.id": "acme",
    "otelbill.run.id": "run-1",
}


UNUSED = {"gen_ai.usage.input_tokens": 0, "gen_ai.usage.output_tokens": 0}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    MEMORY.forget()
    yield
    MEMORY.forget()


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> list[Case]:
    return load_cases(shared_data)


def check(body: bytes) -> int:
    """Each span of a request twice, so that the second is from memory; returns how many candidates there were."""
    try:
        views = decode_request(body + body)
    except MalformedRequest:
        return 0
    found = [select_span(view) for view in views]
    plain = [read_span(view) for view in views]
    for one, other in zip(found, plain, strict=True):
        assert one == other
        assert repr(one) == repr(other)  # equal values of other types (True, 1, a text and its constant) are not equal
    return sum(candidate is not None for candidate in found)


def count_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The spans that the rules are asked about from now on, by name of the function."""
    asked: list[str] = []
    for name in ("read_span", "read_draft"):
        rule = getattr(recall, name)

        def ask(*args: Any, _rule: Any = rule, _name: str = name) -> Any:
            asked.append(_name)
            return _rule(*args)

        monkeypatch.setattr(recall, name, ask)
    return asked


def test_every_recorded_span_is_remembered_as_it_was_read(cases: Sequence[Case]) -> None:
    """All emitters of the corpus, each span new and known, in one memory."""
    assert sum(check(case.body) for case in cases) > 2 * len(cases)


def test_broken_spans_are_remembered_as_they_were_read(cases: Sequence[Case]) -> None:
    """Swapped, retyped and removed attributes among whole ones: what was learned from one never answers for another."""
    keys = list_mutation_keys()
    for number in range(MUTANTS):
        chance = random.Random(f"shapes-{number}")
        check(mutate(chance.choice(cases).body, chance, keys))


def test_nearly_every_recorded_span_is_known_the_second_time(
    cases: Sequence[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is worth its place: the rules themselves read few spans twice."""
    bodies = b"".join(case.body for case in cases)
    views = decode_request(bodies)
    for view in views:
        select_span(view)
    asked = count_read(monkeypatch)
    for view in decode_request(bodies):
        select_span(view)
    assert len(asked) < len(views) / 20


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


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_kindred())
@example([TestSpan("a", CHAT), TestSpan("b", {**CHAT, "gen_ai.usage.input_tokens": 1_000})])
@example(
    [TestSpan("a", CHAT), TestSpan("b", {**CHAT, "gen_ai.usage.input_tokens": 0, "gen_ai.usage.output_tokens": 0})]
)
@example([TestSpan("a", CHAT), TestSpan("b", {**CHAT, "gen_ai.usage.input_tokens": "1200"})])
@example([TestSpan("a", CHAT), TestSpan("b", {**CHAT, "gen_ai.response.id": " "})])
def test_spans_of_one_shape_are_told_apart(spans: list[TestSpan]) -> None:
    """Counts at every threshold, of every type, missing, huge, negative, under every name; other texts, states."""
    check(build_request(spans))


_INPUT, _OUTPUT = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
_SIZES = {
    _INPUT: (0, 127, 128, 1_023, 1_024, 1_150, 1_150, 1_150),
    _OUTPUT: (0, 1, 30),
    "gen_ai.usage.cache_read.input_tokens": (0, 5, 900, 1_030),
    "gen_ai.usage.cache_creation.input_tokens": (0, 0, 0, 130),
    "gen_ai.usage.reasoning.output_tokens": (0, 1, 29, 31),
    "gen_ai.usage.total_tokens": (0, 1_180, 3_030, 4_030),
    "gen_ai.usage.cache_creation.ephemeral_1h_input_tokens": (0, 9),
}
_SHAPES = ((), (2,), (2, 3), (2, 4), (2, 3, 5), (2, 3, 4, 5, 6))


@pytest.mark.parametrize("scope", sorted({row.scopes[0].replace("*", "x") for row in list_dialects()}))
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_counts_at_every_threshold_are_told_apart_for_every_emitter(scope: str, provider: str) -> None:
    """Zero or not, above or below what a fault asks for, sums that cannot be: none takes the outcome of another."""
    chance = random.Random(scope)
    base = {**CHAT, "gen_ai.provider.name": provider, "llm.request.type": "chat"}
    spans = []
    for places in _SHAPES:
        names = (_INPUT, _OUTPUT, *(list(_SIZES)[place] for place in places))
        for number in range(30):
            counts = {name: chance.choice(_SIZES[name]) for name in names}
            spans.append(TestSpan(str(number), base | counts, scope=scope))
    check(build_request(spans))


def test_two_attributes_of_one_name_are_one_as_the_rules_read_them() -> None:
    """The last one wins, also where the shape was met before."""
    message = build_message([TestSpan("a", CHAT), TestSpan("b", CHAT)])
    span = message.resource_spans[0].scope_spans[-1].spans[-1]
    span.attributes.add(key="gen_ai.usage.input_tokens").value.CopyFrom(build_any(7))
    assert check(message.SerializeToString()) == 4


def test_services_and_scopes_do_not_lend_each_other_names() -> None:
    """What stands on the resource or the scope comes from the span's own."""
    request = ExportTraceServiceRequest()
    for scope in ("one", "other"):
        for service in ("shop", "bank"):
            part = build_message([TestSpan("a", CHAT, scope=scope)]).resource_spans[0]
            part.resource.ClearField("attributes")
            part.resource.attributes.add(key="service.name").value.CopyFrom(build_any(service))
            request.resource_spans.append(part)
    assert check(request.SerializeToString()) == 8


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends ever new names, values and shapes costs time, not memory, and gets the same answers."""
    limits = (
        (shapes, "KINDS_MAX", 5),
        (shapes, "NAMES_MAX", 60),
        (values, "VALUES_MAX", 7),
        (recall, "OUTCOMES_MAX", 2),
    )
    for module, name, limit in limits:
        monkeypatch.setattr(module, name, limit)
    for number in range(40):
        attributes = {**CHAT, "gen_ai.request.model": f"m{number % 11}", "otelbill.step": f"s{number}"}
        attributes |= {f"content.{number}": "x", "gen_ai.usage.input_tokens": number % 3}
        check(build_request([TestSpan(str(number), attributes)]))
    assert len(MEMORY.kinds) <= 5
    assert MEMORY.count_names() <= 60
    assert all(len(memory) <= 7 for memory in (values.NUMBERS, values.TEXTS, values.FREE_NAMES))
    assert all(len(kind.outcomes) <= 2 for kind in MEMORY.kinds.values())


def test_what_is_known_is_not_counted_again(cases: Sequence[Case]) -> None:
    """The bound is on what is held: a sidecar that meets the same spans for a year forgets nothing."""
    body = b"".join(case.body for case in cases)
    held = []
    for _ in range(3):
        for view in decode_request(body):
            select_span(view)
        held.append(MEMORY.count_names())
    assert held[0] == held[1] == held[2] > len(cases)


def test_threads_that_learn_at_once_learn_the_same(cases: Sequence[Case]) -> None:
    """A command in the sidecar's process selects beside the writer: what one notes, the other must not overwrite."""
    bodies = [case.body for case in cases]
    orders = [random.Random(number).sample(bodies, len(bodies)) for number in range(4)]
    with ThreadPoolExecutor(len(orders)) as pool:
        list(pool.map(lambda order: [select_span(view) for body in order for view in decode_request(body)], orders))
    check(b"".join(bodies))


def test_content_is_not_remembered() -> None:
    """Values that no rule reads are not even copied, and none of them stays."""
    spans = [TestSpan("a", {**CHAT, "gen_ai.prompt.0.content": "CANARY " * 20, "output.value": "CANARY"})]
    views = decode_request(build_request(spans))
    assert isinstance(select_span(views[0]), Candidate)
    assert "CANARY" not in repr([*MEMORY.kinds, *values.TEXTS, *values.NUMBERS, *values.FREE_NAMES])


def test_a_request_leaves_memory_when_it_is_done() -> None:
    """Its parsed form is as large as its prompts: it must not wait for the next collection of cycles."""
    body = build_request([chat("a"), chat("b", scope="other")])

    def count_scopes() -> int:
        return sum(type(item) is Scope for item in gc.get_objects())

    gc.collect()
    before = count_scopes()
    gc.disable()
    try:
        for _ in range(3):
            assert [select_span(view) for view in decode_request(body)]
        assert count_scopes() == before
    finally:
        gc.enable()
