"""The short ways of deciding a group give what the general rule gives, and lineage is what its definition says."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from otelbill_collector.decode.claims import FOREVER_NANOS, decide_group, decide_group_fully
from otelbill_collector.decode.intervals import IntervalIndex
from otelbill_collector.decode.lineage import Canopy, Lineage, list_enclosing
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.wire import decode_request
from otelbill_collector.domain.usage import Candidate, Decision, Role
from otelbill_collector.offline import list_groups
from tests.corpus import load_cases
from tests.property.test_claims_group import GROUPS, NOWS
from tests.unit.decode.span_kit import T0, make_call, select

EMITTERS = ["client", "client", "client", "framework", "opentelemetry.instrumentation.google_genai"]


@st.composite
def draw_tree(draw: st.DrawFn) -> list[Candidate]:
    """Calls, steps, tools and now and then totals in one trace, mostly by one emitter: shapes with short ways."""
    group: list[Candidate] = []
    for number in range(draw(st.integers(1, 9))):
        parents = [None, "gone", *(f"s{n}" for n in range(number))]
        start = draw(st.sampled_from([0.0, 0.2, 2.0]))
        place: dict[str, Any] = {
            "span": f"s{number}",
            "parent": draw(st.sampled_from(parents)),
            "scope_name": draw(st.sampled_from(EMITTERS)),
            "start": start,
            "end": start + draw(st.sampled_from([0.1, 1.0, 4.0])),
        }
        owner = draw(st.sampled_from([None, None, "acme", "globex"]))
        kind = draw(st.sampled_from(["call", "call", "call", "link", "tool", "total"]))
        if kind in ("link", "tool"):
            attributes: dict[str, Any] = {
                "gen_ai.operation.name": "execute_tool" if kind == "tool" else "invoke_agent",
                "otelbill.run.id": draw(st.sampled_from([None, "r1"])),
                "otelbill.customer.id": owner,
            }
            group.append(select({name: value for name, value in attributes.items() if value}, **place))
        else:
            group.append(
                make_call(
                    gen_ai__operation__name="chat" if kind == "call" else "invoke_agent",
                    gen_ai__usage__input_tokens=draw(st.sampled_from([None, 12, 30])),
                    gen_ai__response__id=draw(st.sampled_from([None, f"chatcmpl-{number:010}"])),
                    otelbill__customer__id=owner,
                    otelbill__billable=draw(st.sampled_from([None, None, None, False])),
                    **place,
                )
            )
    return group


@settings(max_examples=300, deadline=None)
@given(st.one_of(GROUPS, draw_tree()), NOWS, st.randoms(use_true_random=False))
def test_short_ways_decide_as_the_general_rule_does(group: list[Candidate], now: int, rng: random.Random) -> None:
    """Whether a group is recognised as simple or not never shows in a bill, in whatever order its spans came."""
    rng.shuffle(group)
    assert decide_group(group, now) == decide_group_fully(group, now)


def test_short_ways_decide_recorded_groups_as_the_general_rule_does(shared_data: Path) -> None:
    """The same over everything recorded, whole, shuffled and with spans missing."""
    rng = random.Random(7)
    short = 0
    for case in load_cases(shared_data):
        found = [c for view in decode_request(case.body) if (c := select_span(view)) is not None]
        for group in list_groups([c for c in found if c.problem is None]):
            for size in {len(group), rng.randint(1, len(group)), rng.randint(1, len(group))}:
                part = rng.sample(group, size)
                for now in (group[0].ended_nanos, FOREVER_NANOS):
                    assert decide_group(part, now) == decide_group_fully(part, now), case.name
                short += 1
    assert short > 300


def list_ancestors(candidates: Sequence[Candidate], index: int) -> list[int] | None:
    """By definition: follow parents by id. None where that leads back to a span already met."""
    chain: list[int] = []
    at = candidates[index]
    while at.parent_span_id:
        ids = [(c.trace_id, c.span_id) for c in candidates]
        if (at.trace_id, at.parent_span_id) not in ids:
            break
        above = ids.index((at.trace_id, at.parent_span_id))
        if above == index or above in chain:
            return None
        chain.append(above)
        at = candidates[above]
    return chain


def list_above(candidates: Sequence[Candidate], index: int, chosen: Sequence[int]) -> set[int]:
    """By definition: ancestors, and for a broken chain the longer spans of the trace that contain the span in time."""
    chain = list_ancestors(candidates, index)
    assert chain is not None
    top, inner = candidates[chain[-1] if chain else index], candidates[index]
    broken = bool(top.parent_span_id)
    found = {above for above in chosen if above in chain}
    for above in chosen:
        outer, others = candidates[above], list_ancestors(candidates, above)
        if broken and outer.trace_id == inner.trace_id and above != index and others is not None:
            within = outer.started_nanos <= inner.started_nanos and inner.ended_nanos <= outer.ended_nanos
            longer = outer.ended_nanos - outer.started_nanos > inner.ended_nanos - inner.started_nanos
            if within and longer and index not in others:
                found.add(above)
    return found


def iterate_enclosing(candidates: Sequence[Candidate], index: int) -> Iterator[int]:
    """By definition: calls above a call with nothing but calls between."""
    for above in list_ancestors(candidates, index) or ():
        if candidates[above].problem is None and candidates[above].role is Role.CALL:
            yield above
        elif candidates[above].problem is None and candidates[above].reason != Reason.DUPLICATE_DESCRIPTION:
            return


@settings(max_examples=300, deadline=None)
@given(st.one_of(GROUPS.filter(bool), draw_tree()), st.sets(st.integers(0, 8)))
def test_lineage_is_what_its_definition_says(group: list[Candidate], numbers: set[int]) -> None:
    """Who stands above whom is found in one pass, and is what following the parents one by one finds."""
    lineage = Lineage(group)
    enclosing = lineage.find_enclosing([c.role for c in group])
    chosen = sorted(number for number in numbers if number < len(group))
    canopy = Canopy(lineage, chosen)
    for index, candidate in enumerate(group):
        chain = list_ancestors(group, index)
        if chain is None:  # in a circle, or below one: another test
            continue
        assert [above for above in range(len(group)) if lineage.is_ancestor(above, index)] == sorted(chain)
        assert canopy.has_above(index) == any(above in chosen for above in chain)
        found = canopy.list_above(index)
        assert len(found) == len(set(found)) == canopy.count_above(index)
        if all(list_ancestors(group, above) is not None for above in chosen):
            assert set(found) == list_above(group, index, chosen)
        if candidate.role is Role.CALL:
            assert list_enclosing(enclosing, index) == list(iterate_enclosing(group, index))


INTERVALS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=9)


@given(INTERVALS, st.integers(0, 9), st.integers(0, 9))
@example([], 1, 1)
def test_intervals_around_another_are_all_found(pairs: list[tuple[int, int]], start: int, end: int) -> None:
    """Exactly the intervals that begin no later and end no earlier, in the order of their beginnings."""
    index = IntervalIndex([(first, last, number) for number, (first, last) in enumerate(pairs)])
    found = index.list_around(start, end)
    assert sorted(found) == [n for n, (first, last) in enumerate(pairs) if first <= start and last >= end]
    assert [pairs[n][0] for n in found] == sorted(pairs[n][0] for n in found)


def sum_billed(decisions: Sequence[Decision]) -> int:
    return sum(int(d.quantities.get("input_tokens", 0)) for d in decisions if d.billable)


def test_a_span_that_is_its_own_ancestor_has_no_parent() -> None:
    """A circle of parents, which only a fault or malice makes, neither stops the group nor hides a call."""
    circle = [
        make_call(span=name, parent=above, start=at, end=at + 1.0, gen_ai__usage__input_tokens=tokens)
        for name, above, at, tokens in (("a", "b", 0.0, 3), ("b", "c", 5.0, 4), ("c", "a", 9.0, 5), ("d", "a", 20.0, 6))
    ]
    decisions = decide_group(circle, FOREVER_NANOS)
    assert sum_billed(decisions) == 18
    assert decide_group(circle[::-1], FOREVER_NANOS) == decisions[::-1]


def test_parents_nested_without_end_never_bill_twice() -> None:
    """A thousand agents, each inside the other and each repeating the call's totals, bill the one call."""
    names = ["call", *(f"agent{n}" for n in range(1_000))]
    group = [
        make_call(
            span=name,
            parent=above,
            start=0.0,
            end=1.0 + number,
            gen_ai__operation__name="chat" if name == "call" else "invoke_agent",
        )
        for number, (name, above) in enumerate(zip(names, [*names[1:], None], strict=True))
    ]
    decisions = decide_group(group, FOREVER_NANOS)
    assert (sum_billed(decisions), decisions[0].billable) == (12, True)
    assert sum_billed(decide_group(group[1:], FOREVER_NANOS)) == 12


def test_a_call_has_a_bounded_number_of_descriptions() -> None:
    """Calls inside one another by the hundred are decided in bounded time, and in any order alike."""
    names = [f"call{n}" for n in range(300)]
    group = [
        make_call(span=name, parent=above, end=300.0 - number, scope_name="client")
        for number, (name, above) in enumerate(zip(names, [None, *names], strict=False))
    ]
    decisions = decide_group(group, T0)
    assert 1 <= sum(d.billable for d in decisions) <= 300 // 32
    assert decide_group(group[::-1], T0) == decisions[::-1]
