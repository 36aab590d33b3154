"""Which span of a group bills a provider call, and for what: counted once. Owns claim keys and the group's decisions.

`decide_group` is a pure function of the set of candidates and of `now`: any order gives the same decisions, and
candidates of other groups change nothing. Evidence is weighed in `twins` and `descriptions`, totals in `residuals`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from otelbill_collector.decode.descriptions import group_descriptions
from otelbill_collector.decode.inheritance import resolve_attributions
from otelbill_collector.decode.lineage import Canopy, Lineage
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.residuals import Explained, Residual, find_residuals
from otelbill_collector.decode.twins import find_claim_id, list_twin_keys
from otelbill_collector.decode.verdicts import Verdicts, decide_alone
from otelbill_collector.domain.ids import derive_response_key, derive_trace_key
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
)

FOREVER_NANOS = 2**63 - 1
"""A `now` past every grace time: residuals are final."""

_NOTHING: Quantities = {}


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
    return (trace_key, derive_response_key(claim_id), *list_twin_keys(candidate))


def decide_group(
    candidates: Sequence[Candidate], now_nanos: int, policy: ClaimPolicy = _DEFAULT_POLICY
) -> list[Decision]:
    """One decision per candidate, in the order given. `now_nanos` settles which residuals are final."""
    if len(candidates) == 1 and _stands_alone(candidates[0]):
        return [decide_alone(candidates[0])]
    return decide_group_fully(candidates, now_nanos, policy)


def decide_group_fully(
    candidates: Sequence[Candidate], now_nanos: int, policy: ClaimPolicy = _DEFAULT_POLICY
) -> list[Decision]:
    """The same by the general rule, whatever the shape of the group."""
    order = _rank(candidates)
    decisions = _Group([candidates[i] for i in order], now_nanos, policy).decide()
    placed = list(decisions)
    for position, index in enumerate(order):
        placed[index] = decisions[position]
    return placed


def _stands_alone(candidate: Candidate) -> bool:
    """True when a group of this candidate only needs no weighing."""
    return candidate.role is not Role.AGGREGATE and "implies_call" not in candidate.traits


def _rank(candidates: Sequence[Candidate]) -> list[int]:
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

    def decide(self) -> list[Decision]:
        """One decision per candidate, in order."""
        candidates, verdicts = self.candidates, self.verdicts
        enclosing = self._demote_sums(self.lineage.find_enclosing(self.roles))
        calls = [i for i, c in enumerate(candidates) if self.roles[i] is Role.CALL and c.problem is None]
        groups = group_descriptions(candidates, calls, enclosing)
        attributions = resolve_attributions(candidates, self.lineage, groups)
        winners = [self._decide_call(group) for group in groups]
        residuals = self._decide_parents(groups, winners)
        self._decide_implied(groups, residuals)
        self._settle_repeats()
        return [verdicts.build(index, candidates, attributions) for index in range(len(candidates))]

    def _demote_sums(self, enclosing: list[int]) -> list[int]:
        """Calls that enclose several calls of another layer and equal none of them are totals of those, not calls.

        Returns which call encloses which after that.
        """
        inner: dict[int, list[Candidate]] = {}
        for index, outer in enumerate(enclosing):
            if outer >= 0 and self.roles[index] is Role.CALL:
                candidate = self.candidates[index]
                if candidate.problem is None and _has_counts(candidate):
                    inner.setdefault(outer, []).append(candidate)
        sums = [outer for outer, found in inner.items() if _is_sum(self.candidates[outer], found)]
        for outer in sums:
            self.roles[outer] = Role.AGGREGATE
        return self.lineage.find_enclosing(self.roles) if sums else enclosing

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
        parents = [
            i
            for i, c in enumerate(self.candidates)
            if self.roles[i] is Role.AGGREGATE and c.problem is None and c.quantities
        ]
        if not parents:
            return {}
        calls = [self._explain(group, winner) for group, winner in zip(groups, winners, strict=True)]
        residuals = find_residuals(self.candidates, self.roles, self.lineage, parents=parents, calls=calls)
        for parent, residual in residuals.items():
            self._decide_parent(parent, residual, winners)
        return residuals

    def _explain(self, group: list[int], winner: int) -> Explained:
        unknown = self.verdicts.is_unknown(winner)
        quantities = _NOTHING if unknown else self.verdicts.quantities[winner]
        return Explained(group, quantities, unknown and self.verdicts.billable[winner])

    def _decide_parent(self, parent: int, residual: Residual, winners: list[int]) -> None:
        verdicts = self.verdicts
        if not residual.quantities:
            verdicts.billable[parent] = False
            verdicts.quantities[parent] = _NOTHING
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
        canopy = Canopy(self.lineage, frames)
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

    def _settle_repeats(self) -> None:
        """One span that stands in the group twice bills once."""
        for index in range(1, len(self.candidates)):
            first, again = self.candidates[index - 1], self.candidates[index]
            if first.span_id == again.span_id and first.trace_id == again.trace_id:
                self.verdicts.lose(index, index - 1)


def _is_sum(outer: Candidate, inner: list[Candidate]) -> bool:
    others = [c for c in inner if c.emitter != outer.emitter]
    if len(others) < 2 or not _has_counts(outer):
        return False
    tokens = _read_tokens(outer)
    return not any(
        _read_tokens(c) == tokens or (outer.response_id is not None and c.response_id == outer.response_id)
        for c in others
    )


def _read_tokens(candidate: Candidate) -> tuple[object, object]:
    return candidate.quantities.get(INPUT_TOKENS, 0), candidate.quantities.get(OUTPUT_TOKENS, 0)


def _has_counts(candidate: Candidate) -> bool:
    return candidate.usage_source is not UsageSource.UNKNOWN and len(candidate.quantities) > 1


def _list_telling(groups: list[list[int]], residuals: Mapping[int, Residual]) -> Iterator[int]:
    """Candidates that show that a provider was called."""
    for group in groups:
        yield from group
    for index, residual in residuals.items():
        if residual.quantities:
            yield index
