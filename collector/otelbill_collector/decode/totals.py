"""Which candidates of a group are calls and which are totals of others. Owns what makes a call a total."""

from __future__ import annotations

from collections.abc import Sequence

from otelbill_collector.decode.lineage import Lineage
from otelbill_collector.domain.usage import INPUT_TOKENS, OUTPUT_TOKENS, Candidate, Role, UsageSource


def list_calls(candidates: Sequence[Candidate], roles: Sequence[Role]) -> list[int]:
    """Indexes of the calls."""
    return [i for i, c in enumerate(candidates) if roles[i] is Role.CALL and c.problem is None]


def list_parents(candidates: Sequence[Candidate], roles: Sequence[Role]) -> list[int]:
    """Indexes of the parents that carry totals."""
    return [i for i, c in enumerate(candidates) if roles[i] is Role.AGGREGATE and c.quantities and c.problem is None]


def demote_sums(candidates: Sequence[Candidate], roles: list[Role], lineage: Lineage) -> list[int]:
    """Calls that enclose several calls of another layer and equal none of them are totals of those, not calls.

    Changes their roles; returns the call directly around each candidate after that (`Lineage.find_enclosing`).
    """
    enclosing = lineage.find_enclosing(roles)
    inner: dict[int, list[Candidate]] = {}
    for index, outer in enumerate(enclosing):
        if outer >= 0 and roles[index] is Role.CALL:
            candidate = candidates[index]
            if candidate.problem is None and _has_counts(candidate):
                inner.setdefault(outer, []).append(candidate)
    sums = [outer for outer, found in inner.items() if _is_sum(candidates[outer], found)]
    for outer in sums:
        roles[outer] = Role.AGGREGATE
    return lineage.find_enclosing(roles) if sums else enclosing


def _is_sum(outer: Candidate, inner: list[Candidate]) -> bool:
    others = [c for c in inner if c.emitter != outer.emitter]
    if len(others) < 2 or not _has_counts(outer):
        return False
    tokens = _read_tokens(outer)
    return not any(
        _read_tokens(c) == tokens or (outer.response_id is not None and c.response_id == outer.response_id)
        for c in others
    )


def _read_tokens(candidate: Candidate) -> tuple[object, object]:
    return candidate.quantities.get(INPUT_TOKENS, 0), candidate.quantities.get(OUTPUT_TOKENS, 0)


def _has_counts(candidate: Candidate) -> bool:
    return candidate.usage_source is not UsageSource.UNKNOWN and len(candidate.quantities) > 1
