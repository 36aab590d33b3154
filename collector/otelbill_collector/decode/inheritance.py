"""Who pays for a span that does not say so: own value, nearest ancestor, same call, only one of a trace."""

from __future__ import annotations

from collections.abc import Sequence

from otelbill_collector.decode.lineage import Lineage
from otelbill_collector.domain.usage import Candidate

Column = list[str | None]


class Attributions:
    """Customer, project, run and step of each candidate, after inheritance."""

    __slots__ = ("customer_id", "project_id", "run_id", "step")

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.customer_id: Column = [c.customer_id for c in candidates]
        self.project_id: Column = [c.project_id for c in candidates]
        self.run_id: Column = [c.run_id for c in candidates]
        self.step: Column = [c.step for c in candidates]

    def list_columns(self) -> tuple[Column, Column, Column, Column]:
        """All four, to be treated alike."""
        return self.customer_id, self.project_id, self.run_id, self.step


def resolve_attributions(
    candidates: Sequence[Candidate], lineage: Lineage, groups: Sequence[Sequence[int]]
) -> Attributions:
    """Attributions of a group's candidates; `groups` are the sets that describe one call each."""
    found = Attributions(candidates)
    shared = [group for group in groups if len(group) > 1]
    owned = _find_only_values(candidates, found.customer_id), _find_only_values(candidates, found.project_id)
    for column in found.list_columns():
        if not lineage.is_flat and None in column:
            _inherit(column, lineage)
        _share(column, shared)
    for column, only in zip((found.customer_id, found.project_id), owned, strict=True):
        if only and None in column:
            for index, value in enumerate(column):
                if value is None:
                    column[index] = only.get(candidates[index].trace_id)
            _share(column, shared)
    return found


def _inherit(column: Column, lineage: Lineage) -> None:
    parents = lineage.parents
    for index in lineage.order:
        above = parents[index]
        if above >= 0 and column[index] is None:
            column[index] = column[above]


def _share(column: Column, groups: Sequence[Sequence[int]]) -> None:
    """Descriptions of one call lend each other what only one of them knows."""
    for group in groups:
        values = {value for index in group if (value := column[index]) is not None}
        if len(values) == 1:
            (value,) = values
            for index in group:
                column[index] = value


def _find_only_values(candidates: Sequence[Candidate], column: Column) -> dict[bytes, str]:
    """By trace, the value its candidates say themselves, where they say one only."""
    if None not in column:
        return {}
    seen: dict[bytes, set[str]] = {}
    for candidate, value in zip(candidates, column, strict=True):
        if value is not None:
            seen.setdefault(candidate.trace_id, set()).add(value)
    return {trace_id: next(iter(values)) for trace_id, values in seen.items() if len(values) == 1}
