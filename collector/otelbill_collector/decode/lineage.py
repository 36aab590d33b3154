"""Who stands above whom among the candidates of a group. Owns parent chains and their repair where spans are missing.

A chain is broken when a parent is no candidate (the application's own span, or a span that never came). Then time
decides: a span of the same trace that contains it counts as standing above it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from otelbill_collector.decode.reasons import Reason
from otelbill_collector.domain.usage import Candidate, Role


class Lineage:
    """Parent chains over candidates, addressed by their index."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = candidates
        self._index = {(c.trace_id, c.span_id): i for i, c in reversed(tuple(enumerate(candidates)))}
        self._ancestors: list[tuple[int, ...] | None] = [None] * len(candidates)

    def list_ancestors(self, index: int) -> tuple[int, ...]:
        """Ancestors that are candidates, nearest first. A cycle ends the chain."""
        known = self._ancestors[index]
        if known is None:
            known = self._ancestors[index] = self._climb(index)
        return known

    def _climb(self, index: int) -> tuple[int, ...]:
        chain: list[int] = []
        seen = {index}
        while True:
            here = self._candidates[chain[-1] if chain else index]
            above = self._index.get((here.trace_id, here.parent_span_id)) if here.parent_span_id else None
            if above is None or above in seen:
                return tuple(chain)
            chain.append(above)
            seen.add(above)

    def is_broken(self, index: int) -> bool:
        """True when the top of the chain names a parent that is no candidate."""
        chain = self.list_ancestors(index)
        top = self._candidates[chain[-1] if chain else index]
        return bool(top.parent_span_id) and (top.trace_id, top.parent_span_id) not in self._index

    def is_under(self, index: int, above: int) -> bool:
        """True when `index` descends from `above`, or, its chain being broken, lies within it in time."""
        if index == above:
            return False
        if above in self.list_ancestors(index):
            return True
        inner, outer = self._candidates[index], self._candidates[above]
        if inner.trace_id != outer.trace_id or not self.is_broken(index) or index in self.list_ancestors(above):
            return False
        within = outer.started_nanos <= inner.started_nanos and inner.ended_nanos <= outer.ended_nanos
        return within and _length(inner) < _length(outer)

    def list_above(self, index: int, among: Mapping[bytes, Sequence[int]]) -> list[int]:
        """Which of some candidates, given by trace, stand above `index`."""
        trace = among.get(self._candidates[index].trace_id, ())
        if not trace:
            return []
        if self.is_broken(index):
            return [above for above in trace if self.is_under(index, above)]
        wanted = set(trace)
        return [above for above in self.list_ancestors(index) if above in wanted]

    def list_enclosing_calls(self, index: int) -> list[int]:
        """Calls above this call with nothing but calls between: they may describe the same provider call."""
        found: list[int] = []
        for above in self.list_ancestors(index):
            candidate = self._candidates[above]
            if candidate.problem is not None:
                continue
            if candidate.role is Role.CALL:
                found.append(above)
            elif candidate.reason != Reason.DUPLICATE_DESCRIPTION:
                break
        return found

    def are_nested(self, one: int, other: int) -> bool:
        """True when one of two calls directly encloses the other (only calls between)."""
        return one in self.list_enclosing_calls(other) or other in self.list_enclosing_calls(one)


def _length(candidate: Candidate) -> int:
    return candidate.ended_nanos - candidate.started_nanos


def sort_by_trace(candidates: Sequence[Candidate], indexes: Iterable[int]) -> dict[bytes, list[int]]:
    """Indexes by the trace of their candidate."""
    found: dict[bytes, list[int]] = defaultdict(list)
    for index in indexes:
        found[candidates[index].trace_id].append(index)
    return dict(found)
