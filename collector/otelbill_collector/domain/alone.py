"""What is booked for a span that stands alone: with nobody else in its group it bills what it says itself.

Owns that decision and the short form of amounts. Which spans stand alone is told by `rules` and `ledger.booking`.
"""

from __future__ import annotations

from otelbill_collector.domain.usage import Candidate, Decision, RatingState

AmountsRow = tuple[RatingState, str | None, int | None, int | None, str | None]
"""The fields of `records.Amounts`, in their order: a tuple, because one is made for every event."""


def build_own_decision(candidate: Candidate) -> Decision:
    """The decision of a candidate that stands alone."""
    return Decision(
        billable=candidate.billable,
        reason=candidate.reason,
        usage_source=candidate.usage_source,
        quantities=dict(candidate.quantities),
        caveats=candidate.caveats,
        customer_id=candidate.customer_id,
        project_id=candidate.project_id,
        run_id=candidate.run_id,
        step=candidate.step,
    )
