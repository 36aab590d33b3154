"""Decisions of a group depend on the set of its candidates alone; no layer and no parent adds to a bill."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.decode.claims import FOREVER_NANOS, claim_keys, decide_group
from otelbill_collector.decode.quantities import sum_quantities
from otelbill_collector.decode.spans import Value
from otelbill_collector.domain.usage import REQUESTS, Candidate, Decision, Quantity, UsageSource
from tests.unit.decode.span_kit import SECOND, T0, list_chat_attributes, make_call, select

SPAN_NAMES = ["a", "b", "c", "d", "e"]
OPERATIONS = ["chat", "chat", "chat", "embeddings", "invoke_agent", "workflow", "execute_tool", "ponder"]
EMITTERS = [
    "client",
    "framework",
    "opentelemetry.instrumentation.openai.v1",
    "@arizeai/openinference-instrumentation-langchain",
]


@st.composite
def draw_span(draw: st.DrawFn) -> Candidate:
    """One candidate of a small world in which ids, numbers, times and parents collide often."""
    tokens = draw(st.sampled_from([None, 0, 5, 12, 12, 12]))
    changes: dict[str, Value] = {
        "gen_ai__usage__input_tokens": tokens,
        "gen_ai__usage__output_tokens": draw(st.sampled_from([tokens, tokens, 5])) if tokens is not None else None,
        "gen_ai__usage__cache_read__input_tokens": draw(st.sampled_from([None, None, 0, 4])),
        "gen_ai__operation__name": draw(st.sampled_from(OPERATIONS)),
        "gen_ai__response__id": draw(st.sampled_from([None, None, "chatcmpl-aaaaaaaa", "chatcmpl-bbbbbbbb"])),
        "gen_ai__response__model": draw(st.sampled_from(["gpt-4o", "gpt-4o-2024-08-06", "gpt-4o", "gpt-5"])),
        "otelbill__customer__id": draw(st.sampled_from([None, None, None, None, "acme", "globex"])),
        "otelbill__billable": draw(st.sampled_from([None, None, None, None, False])),
    }
    start = draw(st.sampled_from([0.0, 0.0, 0.1, 1.9, 2.1, 30.0]))
    return make_call(
        trace=draw(st.sampled_from(["t1", "t2", "t3", "t4"])),
        span=draw(st.sampled_from(SPAN_NAMES)),
        parent=draw(st.sampled_from([None, *SPAN_NAMES, "gone"])),
        scope_name=draw(st.sampled_from(EMITTERS)),
        start=start,
        end=start + draw(st.sampled_from([0.0, 0.3, 1.0, 5.0])),
        status_code=draw(st.sampled_from([0, 0, 0, 2])),
        **changes,
    )


GROUPS = st.lists(draw_span(), max_size=9, unique_by=lambda c: (c.trace_id, c.span_id))
NOWS = st.sampled_from([T0, T0 + 62 * SECOND, FOREVER_NANOS])


def split_by_keys(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Indexes of the groups that a ledger forms: closure over shared claim keys."""
    home = {i: [i] for i in range(len(candidates))}
    by_key: dict[bytes, int] = {}
    for index, candidate in enumerate(candidates):
        for key in claim_keys(candidate):
            one, other = home[by_key.setdefault(key, index)], home[index]
            if one is not other:
                one.extend(other)
                for member in other:
                    home[member] = one
    return [sorted(group) for index, group in home.items() if min(group) == index]


def sum_billed(decisions: Sequence[Decision]) -> dict[str, Quantity]:
    totals = sum_quantities([d.quantities for d in decisions if d.billable])
    return {unit: amount for unit, amount in totals.items() if amount}


@settings(max_examples=150, deadline=None)
@given(GROUPS, NOWS, st.randoms(use_true_random=False))
def test_any_order_gives_the_same_decisions(group: list[Candidate], now: int, rng: object) -> None:
    """Spans arrive in any order, in any batches, before and after restarts: the bill is the same."""
    order = list(range(len(group)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    shuffled = decide_group([group[i] for i in order], now)
    straight = decide_group(group, now)
    assert [straight[i] for i in order] == shuffled


@settings(max_examples=300, deadline=None)
@given(GROUPS, NOWS)
def test_groups_by_keys_decide_as_the_whole_does(group: list[Candidate], now: int) -> None:
    """Whatever is decided between two spans, they share a chain of claim keys: a ledger may decide group by group."""
    whole = decide_group(group, now)
    for indexes in split_by_keys(group):
        part = decide_group([group[i] for i in indexes], now)
        assert part == [whole[i] for i in indexes]


@settings(max_examples=100, deadline=None)
@given(GROUPS, NOWS)
def test_nothing_is_invented(group: list[Candidate], now: int) -> None:
    """A group never bills more of any unit than its spans report together, never less than nothing."""
    decisions = decide_group(group, now)
    reported = sum_quantities([c.quantities for c in group])
    for unit, amount in sum_billed(decisions).items():
        assert amount >= 0
        if unit not in (REQUESTS, "input_tokens"):
            assert amount <= reported.get(unit, 0)
    for decision in decisions:
        assert all(amount >= 0 for amount in decision.quantities.values())
        assert decision.billable or decision.due_nanos is None or decision.due_nanos > now


@settings(max_examples=100, deadline=None)
@given(GROUPS)
def test_losers_name_a_winner_of_their_group(group: list[Candidate]) -> None:
    """A span that lost its claim to another names a span that exists."""
    known = {(c.trace_id, c.span_id) for c in group}
    for decision in decide_group(group, FOREVER_NANOS):
        if decision.winner_span_id:
            assert (decision.winner_trace_id, decision.winner_span_id) in known
            assert not decision.billable


CALLS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(0, 1), st.floats(0, 20, allow_nan=False)),
    min_size=1,
    max_size=8,
)


def make_calls(numbers: list[tuple[int, int, int, float]], *, identified: bool, parent: str | None) -> list[Candidate]:
    """Calls of one client in one trace."""
    return [
        make_call(
            span=f"call{n}",
            parent=parent,
            start=start,
            end=start + 0.5,
            scope_name="opentelemetry.instrumentation.openai.v1",
            gen_ai__usage__input_tokens=asked,
            gen_ai__usage__output_tokens=answered,
            gen_ai__usage__cache_read__input_tokens=min(cached, asked),
            gen_ai__response__id=f"chatcmpl-{n:010}" if identified else None,
        )
        for n, (asked, answered, cached, start) in enumerate(numbers)
    ]


@settings(max_examples=100, deadline=None)
@given(CALLS, st.booleans(), st.booleans())
def test_a_parent_that_repeats_its_children_changes_nothing(
    numbers: list[tuple[int, int, int, float]], split_known: bool, direct: bool
) -> None:
    """Agent totals, with or without the cache split, directly above or around the calls, never add to the bill."""
    calls = make_calls(numbers, identified=True, parent="agent" if direct else "gone")
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.usage.input_tokens": sum(n[0] for n in numbers),
        "gen_ai.usage.output_tokens": sum(n[1] for n in numbers),
    }
    if split_known:
        attributes["gen_ai.usage.cache_read.input_tokens"] = sum(min(n[2], n[0]) for n in numbers)
    agent = select(attributes, span="agent", start=0, end=30)
    alone, together = decide_group(calls, FOREVER_NANOS), decide_group([agent, *calls], FOREVER_NANOS)
    assert sum_billed(together) == sum_billed(alone)
    assert together[1:] == alone


@settings(max_examples=100, deadline=None)
@given(CALLS, st.sampled_from(["same id", "around", "apart"]), st.randoms(use_true_random=False))
def test_a_second_instrumentation_changes_nothing(
    numbers: list[tuple[int, int, int, float]], way: str, rng: object
) -> None:
    """A framework's description of every call, by id, by nesting or only by numbers, never adds to the bill."""
    calls = make_calls(numbers, identified=way == "same id", parent=None)
    layer: list[Candidate] = []
    for n, (asked, answered, _, start) in enumerate(numbers):
        attributes = list_chat_attributes(
            gen_ai__usage__input_tokens=asked,
            gen_ai__usage__output_tokens=answered,
            gen_ai__response__id=f"chatcmpl-{n:010}" if way == "same id" else None,
        )
        trace = "t" if way == "around" else f"framework{n}"
        layer.append(
            select(attributes, trace=trace, span=f"outer{n}", scope_name="framework", start=start, end=start + 0.5)
        )
    if way == "around":
        calls = [
            make_call(
                span=f"call{n}",
                parent=f"outer{n}",
                start=start,
                end=start + 0.5,
                scope_name="opentelemetry.instrumentation.openai.v1",
                gen_ai__usage__input_tokens=asked,
                gen_ai__usage__output_tokens=answered,
                gen_ai__usage__cache_read__input_tokens=min(cached, asked),
            )
            for n, (asked, answered, cached, start) in enumerate(numbers)
        ]
    group = [*calls, *layer]
    rng.shuffle(group)  # type: ignore[attr-defined]
    alone, together = decide_group(calls, FOREVER_NANOS), decide_group(group, FOREVER_NANOS)
    assert sum_billed(together) == sum_billed(alone)


@settings(max_examples=60, deadline=None)
@given(CALLS, st.integers(0, 7))
def test_late_children_end_at_the_same_bill(numbers: list[tuple[int, int, int, float]], early: int) -> None:
    """Children that come after their parent's residual was final take their share back, to the last token."""
    calls = make_calls(numbers, identified=True, parent="agent")
    agent = make_call(
        span="agent",
        end=30,
        gen_ai__operation__name="invoke_agent",
        gen_ai__usage__input_tokens=sum(n[0] for n in numbers),
        gen_ai__usage__output_tokens=sum(n[1] for n in numbers),
    )
    before = decide_group([agent, *calls[:early]], FOREVER_NANOS)
    after = decide_group([agent, *calls], FOREVER_NANOS)
    assert sum_billed(after)["output_tokens"] == sum(n[1] for n in numbers)
    assert sum_billed(before)["output_tokens"] == sum(n[1] for n in numbers)
    assert after[0].usage_source is UsageSource.RESIDUAL
    assert not after[0].billable
