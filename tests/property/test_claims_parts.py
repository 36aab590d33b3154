"""A group may be decided part by part: what is told to be independent is."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.decode.claims import FOREVER_NANOS, decide_group_fully, decide_part
from otelbill_collector.decode.parts import split_group
from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.wire import decode_request
from otelbill_collector.domain.usage import Candidate, Decision
from otelbill_collector.offline import list_groups
from tests.corpus import load_cases
from tests.property.test_claims_exits import draw_tree
from tests.property.test_claims_group import GROUPS, NOWS
from tests.unit.decode.span_kit import make_call, select


def decide_by_parts(group: list[Candidate], now: int) -> list[Decision]:
    """Each part by itself, put together."""
    placed: dict[int, Decision] = {}
    for part in split_group(group):
        chosen = [group[index] for index in (*part.members, *part.ancestors)]
        decisions = decide_part(chosen, part.owners, now)
        for index, decision in zip(part.members, decisions, strict=False):
            assert index not in placed
            placed[index] = decision
    return [placed[index] for index in range(len(group))]


@settings(max_examples=400, deadline=None)
@given(st.one_of(GROUPS, draw_tree()), NOWS, st.randoms(use_true_random=False))
def test_parts_decided_apart_are_the_group_decided_whole(group: list[Candidate], now: int, rng: random.Random) -> None:
    """Every candidate is in one part, and its part alone gives what the whole group gives, in any order."""
    rng.shuffle(group)
    assert decide_by_parts(group, now) == decide_group_fully(group, now)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(GROUPS, draw_tree()), min_size=2, max_size=3), NOWS, st.randoms(use_true_random=False))
def test_repeated_spans_are_parts_as_well(groups: list[list[Candidate]], now: int, rng: random.Random) -> None:
    """The same where spans stand in the group twice with other content."""
    group = [candidate for found in groups for candidate in found]
    rng.shuffle(group)
    assert decide_by_parts(group, now) == decide_group_fully(group, now)


def test_recorded_groups_are_decided_by_parts(shared_data: Path) -> None:
    """The same over everything recorded, whole and with spans missing; and most groups do fall apart."""
    rng = random.Random(11)
    groups = parts = 0
    for case in load_cases(shared_data):
        found = [c for view in decode_request(case.body) if (c := select_span(view)) is not None]
        for group in list_groups([c for c in found if c.problem is None]):
            for size in {len(group), rng.randint(1, len(group))}:
                part = rng.sample(group, size)
                assert decide_by_parts(part, FOREVER_NANOS) == decide_group_fully(part, FOREVER_NANOS), case.name
            groups, parts = groups + 1, parts + len(split_group(group))
    assert parts > 1.5 * groups


def test_steps_of_a_plain_trace_are_parts() -> None:
    """Below a root without totals each call is decided by itself; totals make one part of what they cover."""
    root = select({"otelbill.customer.id": "acme"}, span="root", end=9)
    calls = [
        make_call(span=name, parent="root", gen_ai__response__id=f"chatcmpl-{name}aaaaaaa") for name in ("one", "two")
    ]
    total = make_call(span="root", gen_ai__operation__name="invoke_agent", end=9)
    assert [len(part.members) for part in split_group([root, *calls])] == [1, 1, 1]
    assert [len(part.members) for part in split_group([total, *calls])] == [3]


def test_a_silent_call_is_decided_with_the_descriptions_that_may_hold_its_usage() -> None:
    """In whichever trace they stand: model and second are what links them."""
    attributes = {"openinference.span.kind": "LLM", "llm.model_name": "gpt-4o-mini"}
    usage = {"llm.token_count.prompt": 12, "llm.token_count.completion": 5}
    outer = select(attributes | usage, trace="a", scope_name="@arizeai/openinference-instrumentation-langchain")
    inner = select(
        attributes, trace="b", scope_name="@arizeai/openinference-instrumentation-openai", start=0.1, end=0.9
    )
    assert [len(part.members) for part in split_group([outer, inner])] == [2]


def test_a_circle_of_parents_is_decided_as_a_whole() -> None:
    """Below a circle no chain is broken, so time must not put a call under a parent there."""
    link = {"otelbill.step": "plan"}
    circle = [select(link, span=name, parent=above) for name, above in (("a", "b"), ("b", "a"))]
    named = {"gen_ai__response__id": "chatcmpl-aaaaaaaa"}
    below = make_call(span="below", parent="a", scope_name="client", start=3, end=4, **named)
    beside = make_call(span="beside", parent="gone", scope_name="client", **named)
    layer = make_call(span="layer", parent="gone", scope_name="framework", **named)
    total = make_call(span="total", end=9, gen_ai__operation__name="invoke_agent", gen_ai__usage__input_tokens=100)
    group = [*circle, below, beside, layer, total]
    assert decide_by_parts(group, FOREVER_NANOS) == decide_group_fully(group, FOREVER_NANOS)
    assert decide_group_fully(group, FOREVER_NANOS)[-1].quantities["input_tokens"] == 88
