"""What parents with totals may still bill: their totals minus what their descendants explain. Owns that subtraction.

Never negative. Where a parent does not tell cached from uncached input, whole input is compared, so that a child's
finer split is not billed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from otelbill_collector.decode.lineage import Lineage, sort_by_trace
from otelbill_collector.decode.quantities import sum_quantities, total_input
from otelbill_collector.domain.usage import (
    CACHE_READ_TOKENS,
    CACHE_WRITE_TOKENS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    REQUESTS,
    Candidate,
    Quantities,
    Quantity,
    Role,
)

_INPUT_CLASSES = (INPUT_TOKENS, CACHE_READ_TOKENS, CACHE_WRITE_TOKENS)


@dataclass(frozen=True, slots=True)
class Explained:
    """One provider call below a parent: where it stands, what it explains, whether its own usage is missing."""

    members: tuple[int, ...]
    quantities: Quantities
    open: bool  # its own usage is unknown


@dataclass(slots=True)
class Residual:
    """What is left of one parent, and the open calls it pays for (positions in the list of calls)."""

    quantities: dict[str, Quantity]
    pays_for: list[int] = field(default_factory=list)


def subtract_explained(totals: Quantities, parts: Sequence[Quantities]) -> dict[str, Quantity]:
    """Totals minus parts per disjoint unit; empty when no billable token or unit is left."""
    explained = sum_quantities(list(parts))
    left = {unit: max(0, amount - explained.get(unit, 0)) for unit, amount in totals.items() if unit != REQUESTS}
    budget = max(0, total_input(totals) - total_input(explained))
    for unit in _INPUT_CLASSES:  # uncached first: the dearest guess is the first to go
        excess = total_input(left) - budget
        if excess > 0 and left.get(unit):
            left[unit] = max(0, left[unit] - excess)
    _limit_subsets(left)
    billable = any(
        left.get(unit) for unit in left if unit in _INPUT_CLASSES or unit == OUTPUT_TOKENS or "_tokens" not in unit
    )
    return {unit: amount for unit, amount in left.items() if amount} if billable else {}


def _limit_subsets(left: dict[str, Quantity]) -> None:
    for subset, whole in (
        ("cache_write_1h_tokens", CACHE_WRITE_TOKENS),
        ("reasoning_tokens", OUTPUT_TOKENS),
        ("audio_input_tokens", INPUT_TOKENS),
        ("audio_output_tokens", OUTPUT_TOKENS),
    ):
        if subset in left:
            left[subset] = min(left[subset], left.get(whole, 0))


def find_residuals(
    candidates: Sequence[Candidate], lineage: Lineage, *, parents: Sequence[int], calls: Sequence[Explained]
) -> Mapping[int, Residual]:
    """Residual of every parent, innermost first: an inner parent's residual explains its outer ones."""
    by_trace = sort_by_trace(candidates, parents)
    over = {p: lineage.list_above(p, by_trace) for p in parents}
    calls_below: dict[int, list[int]] = {p: [] for p in parents}
    for number, call in enumerate(calls):
        for parent in {p for member in call.members for p in lineage.list_above(member, by_trace)}:
            calls_below[parent].append(number)
    explained: dict[int, list[Quantities]] = {p: [] for p in parents}
    found: dict[int, Residual] = {}
    taken: set[int] = set()
    for parent in sorted(parents, key=lambda p: (-len(over[p]), _length(candidates[p]), p)):
        below = calls_below[parent]
        parts = [calls[n].quantities for n in below] + explained[parent]
        parts += _list_around(candidates, lineage, parent)
        residual = Residual(subtract_explained(candidates[parent].quantities, parts))
        if residual.quantities:
            residual.pays_for = [n for n in below if calls[n].open and n not in taken]
            taken.update(residual.pays_for)
            for outer in over[parent]:
                explained[outer].append(residual.quantities)
        found[parent] = residual
    return found


def _list_around(candidates: Sequence[Candidate], lineage: Lineage, parent: int) -> list[Quantities]:
    """Quantities of a call around a parent: steps inside one call repeat parts of it. A tool between ends that."""
    for above in lineage.list_ancestors(parent):
        if candidates[above].operation == "execute_tool":
            return []
        if candidates[above].role is Role.CALL and candidates[above].problem is None:
            return [candidates[above].quantities]
    return []


def _length(candidate: Candidate) -> int:
    return candidate.ended_nanos - candidate.started_nanos
