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
_NEW, _ON_THE_WAY, _PLACED = range(3)


class Lineage:
    """Parent chains over candidates, addressed by their index; -1 stands for no parent."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self.parents = _find_parents(candidates)
        self.is_flat = max(self.parents, default=-1) < 0
        self._circular: set[int] = set()
        self.order: Sequence[int] = range(len(candidates)) if self.is_flat else self._sort_down()
        """Every index, parents before their children."""
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
                self._circular.update(path[path.index(at) :])
            for index in reversed(path):
                state[index] = _PLACED
                order.append(index)
        for index in self._circular:
            parents[index] = -1
        return order

    def list_ancestors(self, index: int) -> Iterator[int]:
        """Ancestors that are candidates, nearest first."""
        above = self.parents[index]
        while above >= 0:
            yield above
            above = self.parents[above]

    def is_broken(self, index: int) -> bool:
        """True when the top of the chain names a parent that is no candidate."""
        if self._broken is None:
            self._broken = self._find_broken()
        return self._broken[index]

    def _find_broken(self) -> list[bool]:
        broken = [bool(candidate.parent_span_id) for candidate in self.candidates]
        for index in self._circular:
            broken[index] = False
        for index in self.order:
            above = self.parents[index]
            if above >= 0:
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
        self._next = self._find_next()
        self._by_trace: dict[bytes, IntervalIndex] | None = None

    def _find_next(self) -> list[int]:
        """The nearest chosen ancestor of each candidate, or -1."""
        parents = self._lineage.parents
        found = [-1] * len(parents)
        if not self._lineage.is_flat:
            for index in self._lineage.order:
                above = parents[index]
                if above >= 0:
                    found[index] = above if above in self._chosen else found[above]
        return found

    def list_above(self, index: int) -> list[int]:
        """Chosen candidates above one, ancestors first."""
        found: list[int] = []
        above = self._next[index]
        while above >= 0:
            found.append(above)
            above = self._next[above]
        if self._lineage.is_broken(index):
            known = set(found)
            found += [above for above in self._list_around(index) if above not in known]
        return found

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


def _find_parents(candidates: Sequence[Candidate]) -> list[int]:
    """The index of each candidate's parent; of a span that stands there twice, the first."""
    trace_id = candidates[0].trace_id if candidates else b""
    if all(candidate.trace_id == trace_id for candidate in candidates):
        in_trace = {c.span_id: i for i, c in reversed(tuple(enumerate(candidates)))}
        return [in_trace.get(c.parent_span_id, -1) if c.parent_span_id else -1 for c in candidates]
    anywhere = {(c.trace_id, c.span_id): i for i, c in reversed(tuple(enumerate(candidates)))}
    return [anywhere.get((c.trace_id, c.parent_span_id), -1) if c.parent_span_id else -1 for c in candidates]
