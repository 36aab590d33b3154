"""The rules of one configuration as the functions that booking calls. Owns their composition, none of their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

from otelbill_collector.decode.claims import ClaimPolicy, claim_keys, decide_group
from otelbill_collector.domain.alone import AmountsRow, build_own_decision
from otelbill_collector.domain.instants import NANOS
from otelbill_collector.domain.rating import Rated, Rater
from otelbill_collector.domain.records import Amounts
from otelbill_collector.domain.usage import Candidate, Decision, RatingState, Role, UsageSource

__all__ = ["RuleSet", "claim_keys"]

_SELF_TOLD = frozenset({Role.CALL, Role.TOOL, Role.EXPLICIT})  # an aggregate waits for children, a link says nothing
_read_amounts = attrgetter("state", "price_version", "cost_attos", "charge_attos", "currency")


class RuleSet:
    """Claims and rating under one configuration."""

    def __init__(self, rater: Rater, *, grace_seconds: int, accept_estimates: Sequence[str] = ()) -> None:
        self._rater = rater
        self._accept_estimates = frozenset(accept_estimates)
        self._policy = ClaimPolicy(grace_nanos=grace_seconds * NANOS)

    def decide(self, candidates: Sequence[Candidate], now_nanos: int) -> Sequence[Decision]:
        """What each member of a claim group bills."""
        return decide_group(candidates, now_nanos, self._policy)

    def stands_alone(self, candidate: Candidate) -> bool:
        """True where a candidate with nobody else in its group bills what it says itself, now and later."""
        return (
            candidate.role in _SELF_TOLD
            and candidate.explicit_event_id is None
            and candidate.problem is None
            and "implies_call" not in candidate.traits
        )

    def rate_alone(self, candidates: Sequence[Candidate]) -> tuple[list[AmountsRow], dict[str, str]]:
        """Amounts of candidates that stand alone, in order, and the content of the price versions they name."""
        sum_plain, currency, reported = self._rater.sum_plain, self._rater.card.currency, UsageSource.REPORTED
        rows: list[AmountsRow] = []
        bodies: dict[str, str] = {}
        for candidate in candidates:
            sums = None
            if candidate.billable and candidate.usage_source is reported:
                names = (candidate.provider, candidate.model, candidate.request_model, candidate.service_tier)
                sums = sum_plain(
                    candidate.quantities, candidate.ended_nanos, names, candidate.customer_id, candidate.step
                )
            if sums is not None:
                cost, charge, version = sums
                bodies[version.version_id] = version.body
                rows.append((RatingState.RATED, version.version_id, cost, charge, currency))
            else:
                amounts, versions = self.rate(candidate, build_own_decision(candidate))
                bodies.update(versions)
                rows.append(_read_amounts(amounts))
        return rows, bodies

    def rate(self, candidate: Candidate, decision: Decision) -> tuple[Amounts, Mapping[str, str]]:
        """Amounts of a decision, and the content of the price version they name."""
        if not decision.billable:
            return Amounts(RatingState.NOT_BILLABLE), {}
        if self._must_hold(candidate, decision):
            return Amounts(RatingState.HELD, currency=self._rater.card.currency), {}
        names = (candidate.provider, candidate.model, candidate.request_model, candidate.service_tier)
        sums = self._rater.sum_plain(
            decision.quantities, candidate.ended_nanos, names, decision.customer_id, decision.step
        )
        if sums is not None:
            cost, charge, version = sums
            amounts = Amounts(RatingState.RATED, version.version_id, cost, charge, self._rater.card.currency)
            return amounts, {version.version_id: version.body}
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
