"""Which span of a group bills a provider call, and for what: counted once. Owns claim keys and the group's decisions.

`decide_group` is a pure function of the set of candidates and of `now`: any order gives the same decisions, and
candidates of other groups change nothing. Ids, nesting and numbers are weighed in `twins`, totals in `residuals`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from otelbill_collector.decode.inheritance import Attribution, read_own_attribution, resolve_attributions
from otelbill_collector.decode.lineage import Lineage, sort_by_trace
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.residuals import Explained, Residual, find_residuals
from otelbill_collector.decode.twins import find_claim_id, group_descriptions, list_twin_keys
from otelbill_collector.domain.ids import derive_claim_key
from otelbill_collector.domain.instants import NANOS
from otelbill_collector.domain.usage import (
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    REQUESTS,
    Candidate,
    Decision,
    Quantities,
    Role,
    UsageSource,
    replace,
)

FOREVER_NANOS = 2**63 - 1
"""A `now` past every grace time: residuals are final."""


@dataclass(frozen=True, slots=True)
class ClaimPolicy:
    """How long a parent with totals waits for late children before its residual is billed."""

    grace_nanos: int = 60 * NANOS


_DEFAULT_POLICY = ClaimPolicy()


def claim_keys(candidate: Candidate) -> tuple[bytes, ...]:
    """16-byte keys: trace, provider response id, equal numbers. Candidates that share one belong to one group; keys of
    equal numbers (`is_twin_key`) link candidates of different emitters only.
    """
    keys = [derive_claim_key("claim-trace", candidate.trace_id)]
    claim_id = find_claim_id(candidate) if candidate.role is Role.CALL else None
    if claim_id is not None:
        keys.append(derive_claim_key("claim-response", claim_id))
    keys.extend(list_twin_keys(candidate))
    return tuple(keys)


def decide_group(
    candidates: Sequence[Candidate], now_nanos: int, policy: ClaimPolicy = _DEFAULT_POLICY
) -> list[Decision]:
    """One decision per candidate, in the order given. `now_nanos` settles which residuals are final."""
    if len(candidates) == 1 and _stands_alone(candidates[0]):
        return [_decide_alone(candidates[0], read_own_attribution(candidates[0]))]
    order = _rank(candidates)
    ranked = _demote_sums([candidates[i] for i in order])
    decisions = _decide_ranked(ranked, now_nanos, policy)
    placed: list[Decision | None] = [None] * len(candidates)
    for position, index in enumerate(order):
        placed[index] = decisions[position]
    return [decision for decision in placed if decision is not None]


def _stands_alone(candidate: Candidate) -> bool:
    """True when a group of this candidate only needs no weighing."""
    return candidate.role is not Role.AGGREGATE and "implies_call" not in candidate.traits


def _rank(candidates: Sequence[Candidate]) -> list[int]:
    """Indexes in an order that depends on the candidates alone."""
    ids = [(c.trace_id, c.span_id) for c in candidates]
    if len(set(ids)) == len(ids):
        return sorted(range(len(ids)), key=ids.__getitem__)
    return sorted(range(len(ids)), key=lambda i: (*ids[i], -candidates[i].detail, repr(candidates[i])))


def _demote_sums(candidates: list[Candidate]) -> list[Candidate]:
    """Calls that enclose several calls of another layer and equal none of them are totals of those, not calls."""
    lineage = Lineage(candidates)
    inner: dict[int, list[int]] = {}
    for index, candidate in enumerate(candidates):
        if candidate.role is Role.CALL and candidate.problem is None and _has_counts(candidate):
            for outer in lineage.list_enclosing_calls(index)[:1]:
                inner.setdefault(outer, []).append(index)
    ranked = list(candidates)
    for outer, indexes in inner.items():
        if _is_sum(candidates[outer], [candidates[i] for i in indexes]):
            ranked[outer] = replace(candidates[outer], role=Role.AGGREGATE, traits=())
    return ranked


def _is_sum(outer: Candidate, inner: list[Candidate]) -> bool:
    others = [c for c in inner if c.emitter != outer.emitter]
    if len(others) < 2 or not _has_counts(outer):
        return False
    tokens = (outer.quantities.get(INPUT_TOKENS, 0), outer.quantities.get(OUTPUT_TOKENS, 0))
    same = any(
        (c.quantities.get(INPUT_TOKENS, 0), c.quantities.get(OUTPUT_TOKENS, 0)) == tokens
        or (outer.response_id is not None and c.response_id == outer.response_id)
        for c in others
    )
    return not same


def _has_counts(candidate: Candidate) -> bool:
    return candidate.usage_source is not UsageSource.UNKNOWN and len(candidate.quantities) > 1


def _decide_ranked(candidates: list[Candidate], now_nanos: int, policy: ClaimPolicy) -> list[Decision]:
    lineage = Lineage(candidates)
    groups = group_descriptions(candidates, lineage)
    attributions = resolve_attributions(candidates, lineage, groups)
    decisions = [_decide_alone(c, a) for c, a in zip(candidates, attributions, strict=True)]
    calls: list[Explained] = []
    winners: list[int] = []
    for group in groups:
        winner = _decide_call(candidates, lineage, group, decisions)
        winners.append(winner)
        calls.append(_explain(group, decisions[winner]))
    parents = [i for i, c in enumerate(candidates) if c.role is Role.AGGREGATE and c.problem is None and c.quantities]
    residuals = find_residuals(candidates, lineage, parents=parents, calls=calls)
    for parent, residual in residuals.items():
        _decide_parent(candidates, parent, residual, decisions, winners, now_nanos, policy)
    _decide_implied(candidates, lineage, groups, residuals, decisions, now_nanos, policy)
    _settle_repeats(candidates, decisions)
    return decisions


def _decide_alone(candidate: Candidate, attribution: Attribution) -> Decision:
    """What the candidate would be with nobody else in its group."""
    problem = candidate.problem is not None
    shown: Quantities = {} if problem or candidate.role is Role.LINK else candidate.quantities
    return Decision(
        billable=candidate.billable and not problem,
        reason=Reason.INVALID_USAGE if problem else candidate.reason,
        usage_source=candidate.usage_source,
        quantities=dict(shown),
        caveats=candidate.caveats,
        customer_id=attribution.customer_id,
        project_id=attribution.project_id,
        run_id=attribution.run_id,
        step=attribution.step,
    )


def _explain(group: list[int], decision: Decision) -> Explained:
    unknown = decision.usage_source is UsageSource.UNKNOWN
    is_open = decision.billable and unknown
    return Explained(tuple(group), {} if unknown else decision.quantities, is_open)


def _decide_call(candidates: Sequence[Candidate], lineage: Lineage, group: list[int], decisions: list[Decision]) -> int:
    """Settle one provider call among its descriptions; returns the index of the winner."""
    winner = max(group, key=lambda i: (candidates[i].detail, candidates[i].billable, -i))
    internal = any(candidates[i].reason == Reason.INTERNAL for i in group)
    if internal:
        for index in group:
            decisions[index] = replace(decisions[index], billable=False, reason=Reason.INTERNAL)
    elif _hides_calls(candidates, lineage, winner):
        units = tuple(unit for unit in (INPUT_TOKENS, OUTPUT_TOKENS) if unit not in decisions[winner].caveats)
        decisions[winner] = replace(
            decisions[winner],
            usage_source=UsageSource.ESTIMATED,
            caveats=(*decisions[winner].caveats, *units),
        )
    for index in group:
        if index != winner and not (candidates[index].failed and not candidates[index].billable):
            decisions[index] = _lose(decisions[index], candidates[winner])
    return winner


def _lose(decision: Decision, winner: Candidate) -> Decision:
    reason = decision.reason if decision.reason == Reason.INTERNAL else Reason.DUPLICATE_DESCRIPTION
    return replace(
        decision,
        billable=False,
        reason=reason,
        winner_trace_id=winner.trace_id,
        winner_span_id=winner.span_id,
    )


def _hides_calls(candidates: Sequence[Candidate], lineage: Lineage, index: int) -> bool:
    """True when an emitter that shows one span for several provider calls has run tools inside this one."""
    if "last_call_only" not in candidates[index].traits or candidates[index].usage_source is UsageSource.UNKNOWN:
        return False
    return any(
        c.operation == "execute_tool" and index in lineage.list_ancestors(i)[:1] for i, c in enumerate(candidates)
    )


def _decide_parent(
    candidates: Sequence[Candidate],
    parent: int,
    residual: Residual,
    decisions: list[Decision],
    winners: list[int],
    now_nanos: int,
    policy: ClaimPolicy,
) -> None:
    own, before = candidates[parent], decisions[parent]
    if not residual.quantities:
        decisions[parent] = replace(before, billable=False, quantities={}, usage_source=UsageSource.RESIDUAL)
        return
    due = own.ended_nanos + policy.grace_nanos
    quantities = {**residual.quantities, REQUESTS: max(1, len(residual.pays_for))}
    if before.reason in (Reason.INTERNAL, Reason.APP_CACHE_HIT):
        decisions[parent] = replace(before, billable=False, quantities=quantities)
    elif now_nanos < due:
        decisions[parent] = replace(
            before, billable=False, reason=Reason.AWAITING_CHILDREN, quantities=quantities, due_nanos=due
        )
        return
    else:
        decisions[parent] = replace(
            before,
            billable=True,
            reason=Reason.AGGREGATE,
            quantities=quantities,
            usage_source=UsageSource.RESIDUAL,
        )
    for number in residual.pays_for:
        index = winners[number]
        decisions[index] = _lose(decisions[index], own)


def _decide_implied(
    candidates: Sequence[Candidate],
    lineage: Lineage,
    groups: list[list[int]],
    residuals: Mapping[int, Residual],
    decisions: list[Decision],
    now_nanos: int,
    policy: ClaimPolicy,
) -> None:
    """Frames known to call a provider, with no call beneath them: one happened, its usage is unknown."""
    telling = [i for group in groups for i in group]
    telling += [i for i, residual in residuals.items() if residual.quantities]
    frames = [i for i, c in enumerate(candidates) if "implies_call" in c.traits]
    by_trace = sort_by_trace(candidates, frames)
    shown = {above for i in telling for above in (i, *lineage.list_above(i, by_trace))} if frames else set()
    for index in frames:
        candidate = candidates[index]
        if index in shown or candidate.failed or candidate.reason == Reason.INTERNAL:
            continue
        if any("implies_call" in candidates[a].traits for a in lineage.list_ancestors(index)):
            continue
        due = candidate.ended_nanos + policy.grace_nanos
        late = now_nanos >= due
        decisions[index] = replace(
            decisions[index],
            billable=late,
            reason=Reason.NO_USAGE_REPORTED if late else Reason.AWAITING_CHILDREN,
            usage_source=UsageSource.UNKNOWN,
            quantities={REQUESTS: 1},
            due_nanos=None if late else due,
        )


def _settle_repeats(candidates: Sequence[Candidate], decisions: list[Decision]) -> None:
    """One span that stands in the group twice bills once."""
    for index in range(1, len(candidates)):
        first, again = candidates[index - 1], candidates[index]
        if (first.trace_id, first.span_id) == (again.trace_id, again.span_id):
            decisions[index] = _lose(decisions[index], first)
