"""Which span of a group bills a provider call, and for what: counted once. Owns claim keys and the group's decisions.

`decide_group` is a pure function of the set of candidates and of `now`: any order gives the same decisions, and
candidates of other groups change nothing. Evidence is weighed in `twins` and `descriptions`, totals in `residuals`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from otelbill_collector.decode.descriptions import group_descriptions
from otelbill_collector.decode.inheritance import Owners, resolve_attributions
from otelbill_collector.decode.lineage import Canopy, Lineage
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.residuals import Explained, Residual, find_calls_around, find_residuals
from otelbill_collector.decode.totals import demote_sums, list_calls, list_parents
from otelbill_collector.decode.twins import find_claim_id, list_twin_keys
from otelbill_collector.decode.verdicts import NO_QUANTITIES, Verdicts, decide_alone
from otelbill_collector.domain.ids import derive_response_key, derive_trace_key
from otelbill_collector.domain.instants import NANOS
from otelbill_collector.domain.usage import (
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    REQUESTS,
    Candidate,
    Decision,
    Role,
    UsageSource,
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
    trace_key = derive_trace_key(candidate.trace_id)
    if candidate.role is not Role.CALL:
        return (trace_key,)
    claim_id = find_claim_id(candidate)
    if claim_id is None:
        return (trace_key, *list_twin_keys(candidate))
    if "twin" not in candidate.traits:
        return trace_key, derive_response_key(claim_id)
    return (trace_key, derive_response_key(claim_id), *list_twin_keys(candidate))


def decide_group(
    candidates: Sequence[Candidate], now_nanos: int, policy: ClaimPolicy = _DEFAULT_POLICY
) -> list[Decision]:
    """One decision per candidate, in the order given. `now_nanos` settles which residuals are final."""
    if len(candidates) == 1 and _stands_alone(candidates[0]):
        return [decide_alone(candidates[0])]
    return _decide_apart(candidates) or decide_group_fully(candidates, now_nanos, policy)


def decide_group_fully(
    candidates: Sequence[Candidate], now_nanos: int, policy: ClaimPolicy = _DEFAULT_POLICY
) -> list[Decision]:
    """The same by the general rule, whatever the shape of the group."""
    return decide_part(candidates, None, now_nanos, policy)


def decide_part(
    candidates: Sequence[Candidate], owners: Owners | None, now_nanos: int, policy: ClaimPolicy = _DEFAULT_POLICY
) -> list[Decision]:
    """The same for a part of a group by itself (see `parts`); `owners` are those of the whole group."""
    if not candidates:
        return []
    order = rank_candidates(candidates)
    decisions = _Group([candidates[i] for i in order], now_nanos, policy).decide(owners)
    placed = list(decisions)
    for position, index in enumerate(order):
        placed[index] = decisions[position]
    return placed


def _stands_alone(candidate: Candidate) -> bool:
    """True when a group of this candidate only needs no weighing."""
    return candidate.role is not Role.AGGREGATE and "implies_call" not in candidate.traits


def _decide_apart(candidates: Sequence[Candidate]) -> list[Decision] | None:
    """Decisions of a group in which nothing is weighed but who pays: calls of one emitter, none inside another, and
    nothing with totals or hidden calls. None for other groups.
    """
    calls = 0
    emitter: str | None = None
    for candidate in candidates:
        role, traits = candidate.role, candidate.traits
        if traits and ("implies_call" in traits or "last_call_only" in traits):
            return None
        if role is Role.CALL:
            if (calls and candidate.emitter != emitter) or candidate.reason == Reason.INTERNAL:
                return None
            calls, emitter = calls + 1, candidate.emitter
        elif role is Role.AGGREGATE and candidate.quantities:
            return None
    lineage = Lineage(candidates) if candidates else None
    if lineage is None or lineage.has_repeats:
        return None
    if calls > 1 and not lineage.is_flat:
        enclosing = lineage.find_enclosing([c.role for c in candidates])
        if any(above >= 0 and c.role is Role.CALL for above, c in zip(enclosing, candidates, strict=True)):
            return None
    return Verdicts(candidates).build_decisions(resolve_attributions(candidates, lineage, ()))


def rank_candidates(candidates: Sequence[Candidate]) -> list[int]:
    """Indexes in an order that depends on the candidates alone."""
    ids = [(c.trace_id, c.span_id) for c in candidates]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    if len(set(ids)) == len(ids):
        return order
    repeated = {ids[i] for i, after in pairwise(order) if ids[i] == ids[after]}
    contents = {i: (-candidates[i].detail, repr(candidates[i])) for i in order if ids[i] in repeated}
    return sorted(order, key=lambda i: (ids[i], contents.get(i, ())))


class _Group:
    """One group being decided: its candidates in canonical order, what they are to each other, and the verdicts."""

    def __init__(self, candidates: Sequence[Candidate], now_nanos: int, policy: ClaimPolicy) -> None:
        self.candidates = candidates
        self.now_nanos = now_nanos
        self.grace_nanos = policy.grace_nanos
        self.lineage = Lineage(candidates)
        self.roles = [c.role for c in candidates]
        self.verdicts = Verdicts(candidates)
        self._tool_parents: frozenset[int] | None = None
        self._canopy: tuple[list[int], Canopy] | None = None

    def decide(self, owners: Owners | None) -> list[Decision]:
        """One decision per candidate, in order."""
        groups = self._group_calls()
        attributions = resolve_attributions(self.candidates, self.lineage, groups, owners)
        winners = [self._decide_call(group) for group in groups]
        residuals = self._decide_parents(groups, winners)
        self._decide_implied(groups, residuals)
        if self.lineage.has_repeats:
            self._settle_repeats()
        return self.verdicts.build_decisions(attributions)

    def _group_calls(self) -> list[list[int]]:
        """The sets of candidates that describe one provider call each."""
        calls = list_calls(self.candidates, self.roles)
        if len(calls) < 2:
            return [calls] if calls else []
        enclosing = demote_sums(self.candidates, self.roles, self.lineage)
        return group_descriptions(self.candidates, list_calls(self.candidates, self.roles), enclosing)

    def _decide_call(self, group: list[int]) -> int:
        """Settle one provider call among its descriptions; returns the index of the winner."""
        candidates, verdicts = self.candidates, self.verdicts
        winner = group[0]
        if len(group) > 1:
            winner = max(group, key=lambda i: (candidates[i].detail, candidates[i].billable, -i))
        if any(candidates[i].reason == Reason.INTERNAL for i in group):
            for index in group:
                verdicts.billable[index], verdicts.reason[index] = False, Reason.INTERNAL
        elif "last_call_only" in candidates[winner].traits and self._hides_calls(winner):
            caveats = verdicts.caveats[winner]
            verdicts.usage_source[winner] = UsageSource.ESTIMATED
            verdicts.caveats[winner] = (*caveats, *(u for u in (INPUT_TOKENS, OUTPUT_TOKENS) if u not in caveats))
        for index in group:
            if index != winner and not (candidates[index].failed and not candidates[index].billable):
                verdicts.lose(index, winner)
        return winner

    def _hides_calls(self, index: int) -> bool:
        """True when an emitter that shows one span for several provider calls has run tools inside this one."""
        return self.candidates[index].usage_source is not UsageSource.UNKNOWN and index in self._list_tool_parents()

    def _list_tool_parents(self) -> frozenset[int]:
        if self._tool_parents is None:
            parents = self.lineage.parents
            self._tool_parents = frozenset(
                parents[i] for i, c in enumerate(self.candidates) if c.operation == "execute_tool"
            )
        return self._tool_parents

    def _decide_parents(self, groups: list[list[int]], winners: list[int]) -> Mapping[int, Residual]:
        parents = list_parents(self.candidates, self.roles)
        if not parents:
            return {}
        calls = [self._explain(group, winner) for group, winner in zip(groups, winners, strict=True)]
        around = find_calls_around(self.candidates, self.roles, self.lineage)
        residuals = find_residuals(self.candidates, around, self._shade(parents), parents=parents, calls=calls)
        for parent, residual in residuals.items():
            self._decide_parent(parent, residual, winners)
        return residuals

    def _explain(self, group: list[int], winner: int) -> Explained:
        unknown = self.verdicts.is_unknown(winner)
        quantities = NO_QUANTITIES if unknown else self.verdicts.quantities[winner]
        return Explained(group, quantities, unknown and self.verdicts.billable[winner])

    def _decide_parent(self, parent: int, residual: Residual, winners: list[int]) -> None:
        verdicts = self.verdicts
        if not residual.quantities:
            verdicts.billable[parent] = False
            verdicts.quantities[parent] = NO_QUANTITIES
            verdicts.usage_source[parent] = UsageSource.RESIDUAL
            return
        due = self.candidates[parent].ended_nanos + self.grace_nanos
        verdicts.quantities[parent] = {**residual.quantities, REQUESTS: max(1, len(residual.pays_for))}
        if verdicts.reason[parent] in (Reason.INTERNAL, Reason.APP_CACHE_HIT):
            verdicts.billable[parent] = False
        elif self.now_nanos < due:
            verdicts.billable[parent], verdicts.reason[parent] = False, Reason.AWAITING_CHILDREN
            verdicts.due_nanos[parent] = due
            return
        else:
            verdicts.billable[parent], verdicts.reason[parent] = True, Reason.AGGREGATE
            verdicts.usage_source[parent] = UsageSource.RESIDUAL
        for number in residual.pays_for:
            verdicts.lose(winners[number], parent)

    def _decide_implied(self, groups: list[list[int]], residuals: Mapping[int, Residual]) -> None:
        """Frames known to call a provider, with no call beneath them: one happened, its usage is unknown."""
        candidates, verdicts = self.candidates, self.verdicts
        frames = [i for i, c in enumerate(candidates) if "implies_call" in c.traits]
        if not frames:
            return
        canopy = self._shade(frames)
        shown = {above for i in _list_telling(groups, residuals) for above in (i, *canopy.list_above(i))}
        for index in frames:
            candidate = candidates[index]
            if index in shown or candidate.failed or candidate.reason == Reason.INTERNAL or canopy.has_above(index):
                continue
            due = candidate.ended_nanos + self.grace_nanos
            late = self.now_nanos >= due
            verdicts.billable[index] = late
            verdicts.reason[index] = Reason.NO_USAGE_REPORTED if late else Reason.AWAITING_CHILDREN
            verdicts.usage_source[index] = UsageSource.UNKNOWN
            verdicts.quantities[index] = {REQUESTS: 1}
            verdicts.due_nanos[index] = None if late else due

    def _shade(self, chosen: list[int]) -> Canopy:
        """Which of the chosen stand above any candidate; parents with totals and silent frames are often the same."""
        if self._canopy is None or self._canopy[0] != chosen:
            self._canopy = chosen, Canopy(self.lineage, chosen)
        return self._canopy[1]

    def _settle_repeats(self) -> None:
        """One span that stands in the group twice bills once."""
        for index in range(1, len(self.candidates)):
            first, again = self.candidates[index - 1], self.candidates[index]
            if first.span_id == again.span_id and first.trace_id == again.trace_id:
                self.verdicts.lose(index, index - 1)


def _list_telling(groups: list[list[int]], residuals: Mapping[int, Residual]) -> Iterator[int]:
    """Candidates that show that a provider was called."""
    for group in groups:
        yield from group
    for index, residual in residuals.items():
        if residual.quantities:
            yield index
