"""The rules of one configuration as the functions that booking calls. Owns their composition, none of their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.decode.claims import ClaimPolicy, claim_keys, decide_group
from otelbill_collector.domain.alone import AmountsRow, build_own_decision
from otelbill_collector.domain.instants import NANOS
from otelbill_collector.domain.rating import Rated, Rater
from otelbill_collector.domain.records import Amounts
from otelbill_collector.domain.span_columns import RATINGS, AmountColumns, Int32s, SpanColumns, Template
from otelbill_collector.domain.usage import Candidate, Decision, RatingState, Role, UsageSource
from otelbill_collector.span_rating import SpanRater

__all__ = ["RuleSet", "claim_keys"]

_SELF_TOLD = frozenset({Role.CALL, Role.TOOL, Role.EXPLICIT})  # an aggregate waits for children, a link says nothing
_read_amounts = attrgetter("state", "price_version", "cost_attos", "charge_attos", "currency")


class RuleSet:
    """Claims and rating under one configuration."""

    def __init__(self, rater: Rater, *, grace_seconds: int, accept_estimates: Sequence[str] = ()) -> None:
        self._rater = rater
        self._accept_estimates = frozenset(accept_estimates)
        self._policy = ClaimPolicy(grace_nanos=grace_seconds * NANOS)
        self._columns = SpanRater(rater, self._settle)

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

    def rate_columns(
        self, spans: SpanColumns, customer: Int32s | None = None, step: Int32s | None = None
    ) -> AmountColumns:
        """Amounts of spans in columns: what `rate_alone` gives for the candidate of each, or for one with this customer
        and step. Raises OverflowError for an amount past 128 bits.
        """
        customer, step = spans.customer if customer is None else customer, spans.step if step is None else step
        amounts, rest = self._columns.rate(spans, customer, step)
        if not len(rest):
            return amounts
        candidates = []
        for row in rest.tolist():
            candidate = spans.build_candidate(row)
            candidate.customer_id = spans.names[customer[row]] if customer[row] >= 0 else None
            candidate.step = spans.names[step[row]] if step[row] >= 0 else None
            candidates.append(candidate)
        rows, bodies = self.rate_alone(candidates)
        for row, (state, version, cost, charge, currency) in zip(rest.tolist(), rows, strict=True):
            amounts.rating[row] = RATINGS.index(state)
            amounts.price_version[row] = self._columns.number_version(version, bodies[version]) if version else -1
            amounts.cost_attos[row], amounts.charge_attos[row] = _split_words(cost or 0), _split_words(charge or 0)
            amounts.has_cost[row], amounts.has_charge[row] = cost is not None, charge is not None
            amounts.has_currency[row] = currency is not None
        amounts.price_bodies.update(bodies)
        return amounts

    def _settle(self, template: Template) -> RatingState | None:
        """What `rate` says of all candidates of a template, whatever they used."""
        if not template.billable:
            return RatingState.NOT_BILLABLE
        return RatingState.HELD if self._holds(template.usage_source, template.dialect) else None

    def rate(self, candidate: Candidate, decision: Decision) -> tuple[Amounts, Mapping[str, str]]:
        """Amounts of a decision, and the content of the price version they name."""
        if not decision.billable:
            return Amounts(RatingState.NOT_BILLABLE), {}
        if self._holds(decision.usage_source, candidate.dialect):
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

    def _holds(self, source: UsageSource, dialect: str) -> bool:
        """Unknown usage always waits; an emitter's estimate unless the operator accepts that dialect's."""
        if source is UsageSource.ESTIMATED:
            return dialect not in self._accept_estimates
        return source is UsageSource.UNKNOWN

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


def _split_words(attos: int) -> NDArray[np.int64]:
    return np.frombuffer(attos.to_bytes(16, "little", signed=True), dtype="<i8")
