"""What a group makes of each candidate while it is being decided, column by column. Owns those columns and the one
place in which a `Decision` is made of them; the rules that change them stand in `claims`.
"""

from __future__ import annotations

from collections.abc import Sequence

from otelbill_collector.decode.inheritance import Attributions
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.domain.usage import Candidate, Decision, Quantities, Role, UsageSource

NO_QUANTITIES: Quantities = {}


class Verdicts:
    """One entry a candidate. They begin as what each candidate would be with nobody else in its group."""

    __slots__ = (
        "_candidates",
        "billable",
        "caveats",
        "due_nanos",
        "quantities",
        "reason",
        "usage_source",
        "winner_span_id",
        "winner_trace_id",
    )

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        count = len(candidates)
        self._candidates = candidates
        self.billable = [c.billable for c in candidates]
        self.reason = [c.reason for c in candidates]
        self.usage_source = [c.usage_source for c in candidates]
        self.quantities = [NO_QUANTITIES if c.role is Role.LINK else c.quantities for c in candidates]
        self.caveats = [c.caveats for c in candidates]
        self.winner_trace_id = [b""] * count
        self.winner_span_id = [b""] * count
        self.due_nanos: list[int | None] = [None] * count
        for index, candidate in enumerate(candidates):
            if candidate.problem is not None:
                self.billable[index], self.reason[index] = False, Reason.INVALID_USAGE
                self.quantities[index] = NO_QUANTITIES

    def lose(self, index: int, winner: int) -> None:
        """Give the claim of one candidate to another."""
        self.billable[index] = False
        if self.reason[index] != Reason.INTERNAL:
            self.reason[index] = Reason.DUPLICATE_DESCRIPTION
        self.winner_trace_id[index] = self._candidates[winner].trace_id
        self.winner_span_id[index] = self._candidates[winner].span_id

    def is_unknown(self, index: int) -> bool:
        """True when a call happened and its usage did not reach us."""
        return self.usage_source[index] is UsageSource.UNKNOWN

    def build_decisions(self, attributions: Attributions) -> list[Decision]:
        """The decisions as they stand."""
        return list(
            map(
                Decision,
                self.billable,
                self.reason,
                self.usage_source,
                self.quantities,
                self.caveats,
                attributions.customer_id,
                attributions.project_id,
                attributions.run_id,
                attributions.step,
                self.winner_trace_id,
                self.winner_span_id,
                self.due_nanos,
            )
        )


def decide_alone(candidate: Candidate) -> Decision:
    """The decision on a candidate whose group it is."""
    sound = candidate.problem is None
    return Decision(
        candidate.billable and sound,
        candidate.reason if sound else Reason.INVALID_USAGE,
        candidate.usage_source,
        candidate.quantities if sound and candidate.role is not Role.LINK else NO_QUANTITIES,
        candidate.caveats,
        candidate.customer_id,
        candidate.project_id,
        candidate.run_id,
        candidate.step,
    )
