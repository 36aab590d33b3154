"""The rules of one configuration as the functions that booking calls. Owns their composition, none of their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from otelbill_collector.decode.claims import ClaimPolicy, claim_keys, decide_group
from otelbill_collector.domain.instants import NANOS
from otelbill_collector.domain.rating import Rated, Rater
from otelbill_collector.domain.records import Amounts
from otelbill_collector.domain.usage import Candidate, Decision, RatingState, UsageSource

__all__ = ["RuleSet", "claim_keys"]


class RuleSet:
    """Claims and rating under one configuration."""

    def __init__(self, rater: Rater, *, grace_seconds: int, accept_estimates: Sequence[str] = ()) -> None:
        self._rater = rater
        self._accept_estimates = frozenset(accept_estimates)
        self._policy = ClaimPolicy(grace_nanos=grace_seconds * NANOS)

    def decide(self, candidates: Sequence[Candidate], now_nanos: int) -> Sequence[Decision]:
        """What each member of a claim group bills."""
        return decide_group(candidates, now_nanos, self._policy)

    def rate(self, candidate: Candidate, decision: Decision) -> tuple[Amounts, Mapping[str, str]]:
        """Amounts of a decision, and the content of the price version they name."""
        if not decision.billable:
            return Amounts(RatingState.NOT_BILLABLE), {}
        if self._must_hold(candidate, decision):
            return Amounts(RatingState.HELD, currency=self._rater.card.currency), {}
        rated = self.rate_lines(candidate, decision)
        amounts = Amounts(rated.state, rated.price_version, rated.cost_attos, rated.charge_attos, rated.currency)
        return amounts, {rated.version.version_id: rated.version.body} if rated.version else {}

    def _must_hold(self, candidate: Candidate, decision: Decision) -> bool:
        """Unknown usage always waits; an emitter's estimate unless the operator accepts that dialect's."""
        if decision.usage_source is UsageSource.ESTIMATED:
            return candidate.dialect not in self._accept_estimates
        return decision.usage_source is UsageSource.UNKNOWN

    def rate_lines(self, candidate: Candidate, decision: Decision) -> Rated:
        """The same with its lines, for showing the arithmetic. Priced at event time: the end of the span."""
        return self._rater.rate(
            decision.quantities,
            candidate.ended_nanos,
            provider=candidate.provider,
            model=candidate.model,
            request_model=candidate.request_model,
            service_tier=candidate.service_tier,
            customer_id=decision.customer_id,
            step=decision.step,
        )
