"""What a group makes of each candidate while it is being decided, column by column. Owns those columns and the one
place in which a `Decision` is made of them; the rules that change them stand in `claims`.
"""

from __future__ import annotations

from collections.abc import Sequence

from otelbill_collector.decode.inheritance import Attributions
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.domain.usage import Candidate, Decision, Quantities, Role, UsageSource

_NOTHING: Quantities = {}


class Verdicts:
    """One entry a candidate. They begin as what each candidate would be with nobody else in its group."""

    __slots__ = ("billable", "caveats", "due_nanos", "quantities", "reason", "usage_source", "winner")

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.billable = [c.billable and c.problem is None for c in candidates]
        self.reason: list[str] = [c.reason if c.problem is None else Reason.INVALID_USAGE for c in candidates]
        self.usage_source = [c.usage_source for c in candidates]
        self.quantities: list[Quantities] = [
            c.quantities if c.problem is None and c.role is not Role.LINK else _NOTHING for c in candidates
        ]
        self.caveats = [c.caveats for c in candidates]
        self.winner: list[int] = [-1] * len(candidates)
        self.due_nanos: list[int | None] = [None] * len(candidates)

    def lose(self, index: int, winner: int) -> None:
        """Give the claim of one candidate to another."""
        self.billable[index] = False
        if self.reason[index] != Reason.INTERNAL:
            self.reason[index] = Reason.DUPLICATE_DESCRIPTION
        self.winner[index] = winner

    def is_unknown(self, index: int) -> bool:
        """True when a call happened and its usage did not reach us."""
        return self.usage_source[index] is UsageSource.UNKNOWN

    def build(self, index: int, candidates: Sequence[Candidate], attributions: Attributions) -> Decision:
        """The decision on one candidate."""
        winner = self.winner[index]
        return Decision(
            self.billable[index],
            self.reason[index],
            self.usage_source[index],
            self.quantities[index],
            self.caveats[index],
            attributions.customer_id[index],
            attributions.project_id[index],
            attributions.run_id[index],
            attributions.step[index],
            candidates[winner].trace_id if winner >= 0 else b"",
            candidates[winner].span_id if winner >= 0 else b"",
            self.due_nanos[index],
        )


def decide_alone(candidate: Candidate) -> Decision:
    """The decision on a candidate whose group it is."""
    sound = candidate.problem is None
    return Decision(
        candidate.billable and sound,
        candidate.reason if sound else Reason.INVALID_USAGE,
        candidate.usage_source,
        candidate.quantities if sound and candidate.role is not Role.LINK else _NOTHING,
        candidate.caveats,
        candidate.customer_id,
        candidate.project_id,
        candidate.run_id,
        candidate.step,
    )
