"""What parents with totals may still bill: their totals minus what their descendants explain. Owns that subtraction.

Never negative. Where a parent does not tell cached from uncached input, whole input is compared, so that a child's
finer split is not billed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from otelbill_collector.decode.lineage import Canopy, Lineage
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
_SUBSETS = (
    ("cache_write_1h_tokens", CACHE_WRITE_TOKENS),
    ("reasoning_tokens", OUTPUT_TOKENS),
    ("audio_input_tokens", INPUT_TOKENS),
    ("audio_output_tokens", OUTPUT_TOKENS),
)


@dataclass(slots=True)
class Explained:
    """One provider call below a parent: where it stands, what it explains, whether its own usage is missing."""

    members: Sequence[int]
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
    for subset, whole in _SUBSETS:
        if subset in left:
            left[subset] = min(left[subset], left.get(whole, 0))
    if any(amount and _is_billable(unit) for unit, amount in left.items()):
        return {unit: amount for unit, amount in left.items() if amount}
    return {}


def _is_billable(unit: str) -> bool:
    return unit in _INPUT_CLASSES or unit == OUTPUT_TOKENS or "_tokens" not in unit


def find_residuals(
    candidates: Sequence[Candidate],
    roles: Sequence[Role],
    lineage: Lineage,
    *,
    parents: Sequence[int],
    calls: Sequence[Explained],
) -> Mapping[int, Residual]:
    """Residual of every parent, innermost first: an inner parent's residual explains its outer ones."""
    canopy = Canopy(lineage, parents)
    over = {p: canopy.list_above(p) for p in parents}
    calls_below: dict[int, list[int]] = {p: [] for p in parents}
    for number, call in enumerate(calls):
        for parent in {p for member in call.members for p in canopy.list_above(member)}:
            calls_below[parent].append(number)
    around = _find_calls_around(candidates, roles, lineage)
    explained: dict[int, list[Quantities]] = {p: [] for p in parents}
    found: dict[int, Residual] = {}
    taken: set[int] = set()
    for parent in sorted(parents, key=lambda p: (-len(over[p]), _length(candidates[p]), p)):
        below = calls_below[parent]
        parts = [calls[n].quantities for n in below] + explained[parent]
        if around[parent] >= 0:
            parts.append(candidates[around[parent]].quantities)
        residual = Residual(subtract_explained(candidates[parent].quantities, parts))
        if residual.quantities:
            residual.pays_for = [n for n in below if calls[n].open and n not in taken]
            taken.update(residual.pays_for)
            for outer in over[parent]:
                explained[outer].append(residual.quantities)
        found[parent] = residual
    return found


def _find_calls_around(candidates: Sequence[Candidate], roles: Sequence[Role], lineage: Lineage) -> list[int]:
    """The call around each candidate, or -1: steps inside one call repeat parts of it. A tool between ends that."""
    around = [-1] * len(candidates)
    for index in () if lineage.is_flat else lineage.order:
        above = lineage.parents[index]
        if above < 0 or candidates[above].operation == "execute_tool":
            continue
        is_call = roles[above] is Role.CALL and candidates[above].problem is None
        around[index] = above if is_call else around[above]
    return around


def _length(candidate: Candidate) -> int:
    return candidate.ended_nanos - candidate.started_nanos
