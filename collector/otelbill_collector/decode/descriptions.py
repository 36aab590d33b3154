"""Which calls of a group describe one provider call. Owns the links between them and how links become sets.

The evidence between two spans stands in `twins`. Calls that nothing links, nearly all of them, cost one look.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from otelbill_collector.decode.lineage import are_nested, list_enclosing
from otelbill_collector.decode.twins import (
    SLACK_NANOS,
    GapSeen,
    NumbersSeen,
    are_other_calls,
    count_tokens,
    do_agree,
    find_claim_id,
    list_twin_evidence,
    measure_gap,
)
from otelbill_collector.domain.usage import Candidate

_NEIGHBOURS_MAX = 64  # identical calls compared with at most this many others in time order
_DESCRIPTIONS_MAX = 64  # of one call: each is compared with each

_BY_ID, _NESTED_EQUAL, _NESTED_UNKNOWN, _BY_NUMBERS, _BY_GAP, _NESTED_UNEQUAL, _NESTED_FAILED = range(7)

_Link = tuple[int, int, int, int]  # strength, gap in nanoseconds, the smaller index, the larger one


class _Calls:
    """The calls of a group, with what is asked of each more than once."""

    def __init__(self, candidates: Sequence[Candidate], indexes: Sequence[int], enclosing: Sequence[int]) -> None:
        self.candidates = candidates
        self.indexes = indexes
        self.enclosing = enclosing
        self.ids = {i: find_claim_id(candidates[i]) for i in indexes}
        self.tokens = {i: count_tokens(candidates[i]) for i in indexes}
        self._evidence: dict[int, frozenset[NumbersSeen | GapSeen]] = {}

    def find_evidence(self, index: int) -> frozenset[NumbersSeen | GapSeen]:
        found = self._evidence.get(index)
        if found is None:
            found = self._evidence[index] = list_twin_evidence(self.candidates[index])
        return found

    def link(self, strength: int, one: int, other: int) -> _Link:
        gap = measure_gap(self.candidates[one], self.candidates[other])
        return (strength, gap, one, other) if one < other else (strength, gap, other, one)


def group_descriptions(
    candidates: Sequence[Candidate], indexes: Sequence[int], enclosing: Sequence[int]
) -> list[list[int]]:
    """Sets of calls (as sorted indexes) that describe one provider call each; candidates are in canonical order.

    `indexes` names the calls in order, `enclosing` the call directly around each candidate.
    """
    if len(indexes) < 2:
        return [[index] for index in indexes]
    calls = _Calls(candidates, indexes, enclosing)
    links = [*_link_by_id(calls), *_link_nested(calls), *_link_by_numbers(calls), *_link_gaps(calls)]
    if not links:
        return [[index] for index in indexes]
    links.sort()
    home = {index: [index] for index in indexes}
    for _, _, first, second in links:
        one, other = home[first], home[second]
        if one is not other and _may_merge(calls, one, other):
            one.extend(other)
            for index in other:
                home[index] = one
    return [sorted(group) for index, group in home.items() if min(group) == index]


def _may_merge(calls: _Calls, one: list[int], other: list[int]) -> bool:
    if len(one) + len(other) > _DESCRIPTIONS_MAX:
        return False
    candidates = calls.candidates
    for i in one:
        for j in other:
            if are_other_calls(calls.ids[i], calls.ids[j]):
                return False
            if candidates[i].emitter == candidates[j].emitter and not are_nested(calls.enclosing, i, j):
                return False
    return True


def _link_by_id(calls: _Calls) -> Iterator[_Link]:
    by_id: dict[str, list[int]] = defaultdict(list)
    for index, claim_id in calls.ids.items():
        if claim_id is not None:
            by_id[claim_id].append(index)
    if len(by_id) == len(calls.ids):
        return
    for indexes in by_id.values():
        for i, j in _pair_neighbours(calls.candidates, indexes):
            if calls.candidates[i].emitter != calls.candidates[j].emitter or are_nested(calls.enclosing, i, j):
                yield calls.link(_BY_ID, i, j)


def _pair_neighbours(candidates: Sequence[Candidate], indexes: list[int]) -> Iterator[tuple[int, int]]:
    if len(indexes) < 2:
        return
    ordered = sorted(indexes, key=lambda i: (candidates[i].started_nanos, i))
    for position, i in enumerate(ordered):
        for j in ordered[position + 1 : position + 1 + _NEIGHBOURS_MAX]:
            yield i, j


def _link_nested(calls: _Calls) -> Iterator[_Link]:
    for inner in calls.indexes:
        if calls.enclosing[inner] < 0:
            continue
        for outer in list_enclosing(calls.enclosing, inner):
            strength = _weigh_nesting(calls, outer, inner)
            if strength is not None and not are_other_calls(calls.ids[outer], calls.ids[inner]):
                yield calls.link(strength, outer, inner)


def _weigh_nesting(calls: _Calls, outer: int, inner: int) -> int | None:
    a, b = calls.candidates[outer], calls.candidates[inner]
    if b.failed and not a.failed:
        return _NESTED_FAILED
    first, second = calls.tokens[outer], calls.tokens[inner]
    if first is None or second is None:
        return _NESTED_UNKNOWN
    if first == second:
        return _NESTED_EQUAL
    return None if a.emitter == b.emitter else _NESTED_UNEQUAL


def _link_by_numbers(calls: _Calls) -> Iterator[_Link]:
    by_tokens: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, tokens in calls.tokens.items():
        if tokens is not None:
            by_tokens[tokens].append(index)
    if len(by_tokens) == len(calls.tokens):
        return
    for indexes in by_tokens.values():
        if len(indexes) > 1 and _have_several_emitters(calls.candidates, indexes):
            yield from _link_equals(calls, indexes)


def _have_several_emitters(candidates: Sequence[Candidate], indexes: Iterable[int]) -> bool:
    return len({candidates[index].emitter for index in indexes}) > 1


def _link_equals(calls: _Calls, indexes: list[int]) -> Iterator[_Link]:
    """Calls of equal tokens, by different emitters, in one trace or with evidence from trace to trace."""
    candidates = calls.candidates
    ordered = sorted(indexes, key=lambda i: (candidates[i].started_nanos, i))
    for position, i in enumerate(ordered):
        a = candidates[i]
        latest = a.ended_nanos + SLACK_NANOS
        for j in ordered[position + 1 : position + 1 + _NEIGHBOURS_MAX]:
            b = candidates[j]
            if b.started_nanos > latest:
                break  # nor do those overlap that begin later still
            if a.emitter == b.emitter:
                continue
            known = a.trace_id == b.trace_id or not calls.find_evidence(i).isdisjoint(calls.find_evidence(j))
            if known and do_agree(a, b):
                yield calls.link(_BY_NUMBERS, i, j)


def _link_gaps(calls: _Calls) -> Iterator[_Link]:
    """Calls without usage that lie within a framework's description of a call in another trace."""
    candidates = calls.candidates
    inner = [index for index, tokens in calls.tokens.items() if tokens is None]
    if not inner or len(inner) == len(calls.indexes):
        return
    outer_by_evidence: dict[NumbersSeen | GapSeen, list[tuple[int, int]]] = defaultdict(list)
    for index, tokens in calls.tokens.items():
        if tokens is not None and "traces_apart" in candidates[index].traits:
            for evidence in calls.find_evidence(index):
                outer_by_evidence[evidence].append((candidates[index].started_nanos, index))
    for outers in outer_by_evidence.values():
        outers.sort()
    for index in inner if outer_by_evidence else ():
        b = candidates[index]
        for outer in _list_begun_before(calls, index, outer_by_evidence):
            a = candidates[outer]
            within = a.started_nanos <= b.started_nanos + SLACK_NANOS and b.ended_nanos <= a.ended_nanos + SLACK_NANOS
            if within and a.emitter != b.emitter and do_agree(a, b):
                yield calls.link(_BY_GAP, outer, index)


def _list_begun_before(
    calls: _Calls, inner: int, by_evidence: dict[NumbersSeen | GapSeen, list[tuple[int, int]]]
) -> set[int]:
    """Of the calls that share evidence with one, those that began last before it."""
    found: set[int] = set()
    latest = calls.candidates[inner].started_nanos + SLACK_NANOS
    for evidence in calls.find_evidence(inner):
        outers = by_evidence.get(evidence)
        if outers:
            count = bisect_right(outers, (latest, len(calls.candidates)))
            found.update(index for _, index in outers[max(0, count - _NEIGHBOURS_MAX) : count])
    return found
