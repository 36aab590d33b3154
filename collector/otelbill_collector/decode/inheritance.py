"""Who pays for a span that does not say so: own value, nearest ancestor, same call, only one of a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Owners:
    """By trace, the only customer and the only project that its spans name."""

    customers: Mapping[bytes, str]
    projects: Mapping[bytes, str]


def resolve_attributions(
    candidates: Sequence[Candidate],
    lineage: Lineage,
    groups: Sequence[Sequence[int]],
    owners: Owners | None = None,
) -> Attributions:
    """Attributions of a group's candidates; `groups` are the sets that describe one call each.

    `owners` are those of the whole group where `candidates` are a part of it.
    """
    found = Attributions(candidates)
    shared = [group for group in groups if len(group) > 1]
    for column in found.list_columns():
        if 0 < column.count(None) < len(column):
            _inherit(column, lineage)
            _share(column, shared)
    for name, column in (("customer_id", found.customer_id), ("project_id", found.project_id)):
        if None in column and (owners is not None or column.count(None) < len(column)):
            owners = owners or find_owners(candidates)
            only = owners.customers if name == "customer_id" else owners.projects
            for index, value in enumerate(column):
                if value is None:
                    column[index] = only.get(candidates[index].trace_id)
            _share(column, shared)
    return found


def find_owners(candidates: Sequence[Candidate]) -> Owners:
    """The only customer and project of each trace, from what its spans say themselves."""
    customers: dict[bytes, set[str]] = {}
    projects: dict[bytes, set[str]] = {}
    for candidate in candidates:
        if candidate.customer_id is not None:
            customers.setdefault(candidate.trace_id, set()).add(candidate.customer_id)
        if candidate.project_id is not None:
            projects.setdefault(candidate.trace_id, set()).add(candidate.project_id)
    return Owners(_keep_single(customers), _keep_single(projects))


def _keep_single(found: Mapping[bytes, set[str]]) -> dict[bytes, str]:
    return {trace_id: next(iter(values)) for trace_id, values in found.items() if len(values) == 1}


def _inherit(column: Column, lineage: Lineage) -> None:
    for index, above in lineage.list_descents():
        if column[index] is None:
            column[index] = column[above]


def _share(column: Column, groups: Sequence[Sequence[int]]) -> None:
    """Descriptions of one call lend each other what only one of them knows."""
    for group in groups:
        values = {value for index in group if (value := column[index]) is not None}
        if len(values) == 1:
            (value,) = values
            for index in group:
                column[index] = value
