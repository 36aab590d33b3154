"""Who stands above whom among the candidates of a group. Owns parent chains and their repair where spans are missing.

A chain is broken when a parent is no candidate (the application's own span, or a span that never came). Then time
decides: a span of the same trace that contains it counts as standing above it. A span that is its own ancestor has no
parent. Everything here is linear in the candidates, whatever their nesting; only lists that are asked for cost more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from otelbill_collector.decode.intervals import IntervalIndex
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.domain.usage import Candidate, Role

_NESTING_MAX = 64  # calls directly around a call that are looked at
DEPTH_MAX = 256  # chosen candidates above one another that are looked at
_NEW, _ON_THE_WAY, _PLACED = range(3)


class Lineage:
    """Parent chains over candidates (one at least), addressed by their index; -1 stands for no parent."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self.parents, self.has_repeats = _find_parents(candidates)
        self.is_flat = max(self.parents) < 0
        self.circular: set[int] = set()
        """Spans that are their own ancestors."""
        self.order: Sequence[int] = range(len(candidates)) if self.is_flat else self._sort_down()
        """Every index, parents before their children."""
        self._descents: list[tuple[int, int]] | None = None
        self._broken: list[bool] | None = None
        self._places: tuple[list[int], list[int]] | None = None

    def _sort_down(self) -> list[int]:
        parents = self.parents
        state = bytearray(len(parents))
        order: list[int] = []
        for start in range(len(parents)):
            path: list[int] = []
            at = start
            while at >= 0 and state[at] == _NEW:
                state[at] = _ON_THE_WAY
                path.append(at)
                at = parents[at]
            if at >= 0 and state[at] == _ON_THE_WAY:
                self.circular.update(path[path.index(at) :])
            for index in reversed(path):
                state[index] = _PLACED
                order.append(index)
        for index in self.circular:
            parents[index] = -1
        return order

    def list_descents(self) -> list[tuple[int, int]]:
        """Every candidate that has a parent, and that parent; from the top down."""
        if self._descents is None:
            parents = self.parents
            order = () if self.is_flat else self.order
            self._descents = [(index, parents[index]) for index in order if parents[index] >= 0]
        return self._descents

    def is_broken(self, index: int) -> bool:
        """True when the top of the chain names a parent that is no candidate."""
        if self._broken is None:
            self._broken = self._find_broken()
        return self._broken[index]

    def _find_broken(self) -> list[bool]:
        broken = [bool(candidate.parent_span_id) for candidate in self.candidates]
        for index in self.circular:
            broken[index] = False
        for index, above in self.list_descents():
            broken[index] = broken[above]
        return broken

    def is_ancestor(self, above: int, index: int) -> bool:
        """True when the parents of `index` lead to `above`."""
        if self._places is None:
            self._places = self._number_subtrees()
        first, after = self._places
        return above != index and first[above] <= first[index] < after[above]

    def _number_subtrees(self) -> tuple[list[int], list[int]]:
        """Numbers so that every subtree is one range: where it begins, and where it ends."""
        count, parents = len(self.parents), self.parents
        sizes = [1] * count
        for index in reversed(self.order):
            if parents[index] >= 0:
                sizes[parents[index]] += sizes[index]
        first, free, after = [0] * count, [0] * count, 0
        for index in self.order:
            above = parents[index]
            if above < 0:
                first[index], after = after, after + sizes[index]
            else:
                first[index] = free[above]
                free[above] += sizes[index]
            free[index] = first[index] + 1
        return first, [start + size for start, size in zip(first, sizes, strict=True)]

    def find_enclosing(self, roles: Sequence[Role]) -> list[int]:
        """For each candidate the call above it with nothing but calls between, or -1.

        Such a call may describe the same provider call. `roles` are the candidates' roles as the group sees them.
        """
        count = len(self.parents)
        if self.is_flat:
            return [-1] * count
        enclosing, through = [-1] * count, [-1] * count
        for index in self.order:
            above, candidate = self.parents[index], self.candidates[index]
            found = enclosing[index] = through[above] if above >= 0 else -1
            if candidate.problem is not None:
                through[index] = found
            elif roles[index] is Role.CALL:
                through[index] = index
            elif candidate.reason == Reason.DUPLICATE_DESCRIPTION:
                through[index] = found
        return enclosing


def list_enclosing(enclosing: Sequence[int], index: int) -> list[int]:
    """Calls around a call, innermost first, as far as they can matter."""
    found: list[int] = []
    above = enclosing[index]
    while above >= 0 and len(found) < _NESTING_MAX:
        found.append(above)
        above = enclosing[above]
    return found


def are_nested(enclosing: Sequence[int], one: int, other: int) -> bool:
    """True when one of two calls directly encloses the other (only calls between)."""
    return one in list_enclosing(enclosing, other) or other in list_enclosing(enclosing, one)


class Canopy:
    """Which of some chosen candidates stand above any candidate: ancestors, or by time where a chain is broken."""

    def __init__(self, lineage: Lineage, chosen: Iterable[int]) -> None:
        self._lineage = lineage
        self._chosen = set(chosen)
        self._next, self._depths = self._measure_depths()
        self._by_trace: dict[bytes, IntervalIndex] | None = None

    def _measure_depths(self) -> tuple[list[int], list[int]]:
        """The nearest chosen ancestor of each candidate, or -1, and how many of them it has."""
        parents = self._lineage.parents
        nearest, depths = [-1] * len(parents), [0] * len(parents)
        for index, above in self._lineage.list_descents():
            is_chosen = above in self._chosen
            nearest[index] = above if is_chosen else nearest[above]
            depths[index] = depths[above] + is_chosen
        return nearest, depths

    def list_above(self, index: int) -> list[int]:
        """Chosen candidates above one, ancestors first, of those the nearest `DEPTH_MAX`."""
        found: list[int] = []
        above = self._next[index]
        while above >= 0 and len(found) < DEPTH_MAX:
            found.append(above)
            above = self._next[above]
        if self._lineage.is_broken(index):
            known = set(found)
            found += [around for around in self._list_around(index) if around not in known]
        return found

    def count_above(self, index: int) -> int:
        """How many stand above one, however deep it is."""
        depth = self._depths[index]
        if self._lineage.is_broken(index):
            return len(self.list_above(index)) + max(0, depth - DEPTH_MAX)
        return depth

    def list_too_high(self) -> list[int]:
        """Chosen candidates that stand above `DEPTH_MAX` others, one inside the other, or more."""
        if max(self._depths) < DEPTH_MAX:
            return []
        heights = dict.fromkeys(self._chosen, 0)
        for index in reversed(self._lineage.order):
            above = self._next[index]
            if index in heights and above >= 0:
                heights[above] = max(heights[above], heights[index] + 1)
        return [index for index, height in heights.items() if height >= DEPTH_MAX]

    def has_above(self, index: int) -> bool:
        """True when one of the chosen is an ancestor."""
        return self._next[index] >= 0

    def _list_around(self, index: int) -> Iterator[int]:
        """Longer chosen spans of the trace that contain this one in time and do not descend from it."""
        if self._by_trace is None:
            self._by_trace = self._index_traces()
        candidates = self._lineage.candidates
        inner = candidates[index]
        intervals = self._by_trace.get(inner.trace_id)
        if intervals is None:
            return
        length = inner.ended_nanos - inner.started_nanos
        for above in intervals.list_around(inner.started_nanos, inner.ended_nanos):
            outer = candidates[above]
            if length < outer.ended_nanos - outer.started_nanos and not self._lineage.is_ancestor(index, above):
                yield above

    def _index_traces(self) -> dict[bytes, IntervalIndex]:
        candidates = self._lineage.candidates
        by_trace: dict[bytes, list[int]] = defaultdict(list)
        for index in sorted(self._chosen):
            by_trace[candidates[index].trace_id].append(index)
        return {
            trace_id: IntervalIndex([(candidates[i].started_nanos, candidates[i].ended_nanos, i) for i in indexes])
            for trace_id, indexes in by_trace.items()
        }


def _find_parents(candidates: Sequence[Candidate]) -> tuple[list[int], bool]:
    """The index of each candidate's parent; of a span that stands there twice, the first. And whether one does."""
    count = len(candidates)
    spans: list[bytes] = [c.span_id for c in candidates]
    above: list[bytes] = [c.parent_span_id for c in candidates]
    traces = [c.trace_id for c in candidates]
    if traces.count(traces[0]) == count:
        in_trace = dict(zip(reversed(spans), range(count - 1, -1, -1), strict=True))
        has_repeats = len(in_trace) != count
        in_trace.pop(b"", None)  # no span's parent
        return [in_trace.get(span_id, -1) for span_id in above], has_repeats
    places = list(zip(traces, spans, strict=True))
    anywhere = dict(zip(reversed(places), range(count - 1, -1, -1), strict=True))
    named = zip(traces, above, strict=True)
    parents = [anywhere.get((trace_id, span_id), -1) if span_id else -1 for trace_id, span_id in named]
    return parents, len(anywhere) != count
