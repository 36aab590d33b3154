"""Who pays for a span that does not say so. own value, nearest ancestor, same call, only one of a trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields

from otelbill_collector.decode.lineage import Lineage
from otelbill_collector.domain.usage import Candidate


@dataclass(slots=True)
class Attribution:
    """Customer, project, run and step of one candidate, after inheritance."""

    customer_id: str | None = None
    project_id: str | None = None
    run_id: str | None = None
    step: str | None = None


_FIELDS = tuple(f.name for f in fields(Attribution))


def resolve_attributions(
    candidates: Sequence[Candidate], lineage: Lineage, groups: Sequence[Sequence[int]]
) -> list[Attribution]:
    """One attribution per candidate, in order."""
    found = [_inherit(candidates, lineage, index) for index in range(len(candidates))]
    for group in groups:
        _share(found, group)
    only = _find_only_values(candidates)
    for candidate, attribution in zip(candidates, found, strict=True):
        for name in _FIELDS:
            if getattr(attribution, name) is None:
                setattr(attribution, name, only.get((candidate.trace_id, name)))
    for group in groups:
        _share(found, group)
    return found


def read_own_attribution(candidate: Candidate) -> Attribution:
    """What the candidate says itself."""
    return Attribution(candidate.customer_id, candidate.project_id, candidate.run_id, candidate.step)


def _inherit(candidates: Sequence[Candidate], lineage: Lineage, index: int) -> Attribution:
    attribution = Attribution()
    for source in (index, *lineage.list_ancestors(index)):
        for name in _FIELDS:
            if getattr(attribution, name) is None:
                setattr(attribution, name, getattr(candidates[source], name))
    return attribution


def _share(found: list[Attribution], group: Sequence[int]) -> None:
    """Descriptions of one call lend each other what only one of them knows."""
    for name in _FIELDS:
        values = {value for index in group if (value := getattr(found[index], name)) is not None}
        if len(values) == 1:
            (value,) = values
            for index in group:
                setattr(found[index], name, value)


def _find_only_values(candidates: Sequence[Candidate]) -> dict[tuple[bytes, str], str]:
    seen: dict[tuple[bytes, str], set[str]] = defaultdict(set)
    for candidate in candidates:
        for name in ("customer_id", "project_id"):
            if (value := getattr(candidate, name)) is not None:
                seen[candidate.trace_id, name].add(value)
    return {key: next(iter(values)) for key, values in seen.items() if len(values) == 1}
