"""Which members of a group can be decided apart from the others. Owns the ways in which one span touches another.

A part is decided from its members, their ancestors and the only customer of their traces; nothing else of the group can
change what becomes of it. So when spans join a group, the parts that stand as they stood need not be decided again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from otelbill_collector.decode.claims import rank_candidates
from otelbill_collector.decode.descriptions import NEIGHBOURS_MAX
from otelbill_collector.decode.inheritance import Owners, find_owners
from otelbill_collector.decode.lineage import Canopy, Lineage
from otelbill_collector.decode.residuals import find_calls_around
from otelbill_collector.decode.totals import demote_sums, list_calls, list_parents
from otelbill_collector.decode.twins import (
    SLACK_NANOS,
    GapSeen,
    NumbersSeen,
    count_tokens,
    find_claim_id,
    list_twin_evidence,
)
from otelbill_collector.domain.usage import Candidate


@dataclass(frozen=True, slots=True)
class Part:
    """Members that are decided together, and what is looked at for it: all as indexes into the group."""

    members: tuple[int, ...]
    ancestors: tuple[int, ...]  # of members, not members themselves
    owners: Owners  # of the traces of the members


def split_group(candidates: Sequence[Candidate]) -> list[Part]:
    """Independent parts: every candidate is a member of exactly one.

    `claims.decide_part` over members and ancestors of a part decides its members as `decide_group` over all does.
    """
    if not candidates:
        return []
    order = rank_candidates(candidates)
    parts = _Parts([candidates[i] for i in order])
    parts.join_circles()
    parts.join_descriptions()
    parts.join_totals()
    parts.join_frames()
    return [
        Part(tuple(order[i] for i in part.members), tuple(order[i] for i in part.ancestors), part.owners)
        for part in parts.collect()
    ]


class _Parts:
    """Sets of candidates that grow together."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self.lineage = Lineage(candidates)
        self.home = list(range(len(candidates)))
        self.first_roles = [c.role for c in candidates]
        self.roles = list(self.first_roles)
        self.first_calls = list_calls(candidates, self.roles)
        self.enclosing = self.lineage.find_enclosing(self.roles)
        demote_sums(candidates, self.roles, self.lineage)
        self.calls = list_calls(candidates, self.roles)

    def find(self, index: int) -> int:
        home = self.home
        while home[index] != index:
            home[index] = home[home[index]]
            index = home[index]
        return index

    def join(self, members: Iterable[int]) -> None:
        first = -1
        for index in members:
            other = self.find(index)
            if first < 0:
                first = other
            elif first != other:
                first, other = min(first, other), max(first, other)
                self.home[other] = first

    def join_circles(self) -> None:
        """Spans that are their own ancestors, and all below them: a circle is one only as a whole."""
        circular = set(self.lineage.circular)
        self.join(circular)
        for index, above in self.lineage.list_descents() if circular else ():
            if above in circular:
                circular.add(index)
                self.join((index, above))

    def join_descriptions(self) -> None:
        """Calls that may be weighed against each other: one inside the other, of one id, or of equal numbers."""
        for index in self.first_calls:
            if self.enclosing[index] >= 0:
                self.join((index, self.enclosing[index]))
        by_id: dict[str, list[int]] = defaultdict(list)
        by_tokens: dict[tuple[int, int], list[int]] = defaultdict(list)
        silent: list[int] = []
        for index in self.first_calls:
            if (claim_id := find_claim_id(self.candidates[index])) is not None:
                by_id[claim_id].append(index)
            if (tokens := count_tokens(self.candidates[index])) is not None:
                by_tokens[tokens].append(index)
            else:
                silent.append(index)
        for indexes in by_id.values():
            if len(indexes) > NEIGHBOURS_MAX:
                self.join(indexes)
            self._join_emitters(indexes)
        for indexes in by_tokens.values():
            self._join_simultaneous(indexes)
        self._join_gaps(silent)
        self._join_repeats()

    def _join_emitters(self, indexes: Sequence[int]) -> None:
        if len({self.candidates[index].emitter for index in indexes}) > 1:
            self.join(indexes)

    def _join_simultaneous(self, indexes: Sequence[int]) -> None:
        """Calls of equal numbers, cut where none overlaps the next."""
        if len(indexes) < 2:
            return
        candidates = self.candidates
        cluster: list[int] = []
        latest = 0
        for index in sorted(indexes, key=lambda i: candidates[i].started_nanos):
            if cluster and candidates[index].started_nanos > latest + SLACK_NANOS:
                self._join_emitters(cluster)
                cluster = []
            latest = max(latest, candidates[index].ended_nanos) if cluster else candidates[index].ended_nanos
            cluster.append(index)
        self._join_emitters(cluster)

    def _join_gaps(self, silent: Sequence[int]) -> None:
        """Calls without usage, and the descriptions in other traces that may hold it."""
        by_evidence: dict[NumbersSeen | GapSeen, list[int]] = defaultdict(list)
        for index in silent:
            for evidence in list_twin_evidence(self.candidates[index]):
                by_evidence[evidence].append(index)
        touched: set[NumbersSeen | GapSeen] = set()
        for index in self.first_calls if by_evidence else ():
            if "traces_apart" in self.candidates[index].traits and count_tokens(self.candidates[index]) is not None:
                for evidence in list_twin_evidence(self.candidates[index]) & by_evidence.keys():
                    by_evidence[evidence].append(index)
                    touched.add(evidence)
        for evidence in touched:
            self.join(by_evidence[evidence])

    def _join_repeats(self) -> None:
        if self.lineage.has_repeats:
            by_span: dict[tuple[bytes, bytes], int] = {}
            for index, candidate in enumerate(self.candidates):
                self.join((by_span.setdefault((candidate.trace_id, candidate.span_id), index), index))

    def join_totals(self) -> None:
        """Parents with totals and what explains them; calls and the tools that were run inside them."""
        parents = list_parents(self.candidates, self.roles)
        if parents:
            canopy = Canopy(self.lineage, parents)
            for index in (*self.calls, *parents):
                self.join((index, *canopy.list_above(index)))
            for roles in (self.first_roles, self.roles):
                around = find_calls_around(self.candidates, roles, self.lineage)
                for parent in parents:
                    if around[parent] >= 0:
                        self.join((parent, around[parent]))
        for index, above in self.lineage.list_descents():
            if self.candidates[index].operation == "execute_tool" and "last_call_only" in self.candidates[above].traits:
                self.join((index, above))

    def join_frames(self) -> None:
        """Frames that imply a call, and what may be that call."""
        frames = [i for i, c in enumerate(self.candidates) if "implies_call" in c.traits]
        if frames:
            canopy = Canopy(self.lineage, frames)
            for index in (*self.calls, *list_parents(self.candidates, self.roles)):
                self.join((index, *canopy.list_above(index)))

    def collect(self) -> list[Part]:
        """The parts, by their first member."""
        by_home: dict[int, list[int]] = defaultdict(list)
        for index in range(len(self.home)):
            by_home[self.find(index)].append(index)
        owners = find_owners(self.candidates)
        return [
            Part(tuple(members), self._list_ancestors(members), self._limit(owners, members))
            for members in by_home.values()
        ]

    def _list_ancestors(self, members: Sequence[int]) -> tuple[int, ...]:
        parents = self.lineage.parents
        known = set(members)
        found: list[int] = []
        for index in members:
            above = parents[index]
            while above >= 0 and above not in known:
                known.add(above)
                found.append(above)
                above = parents[above]
        return tuple(sorted(found))

    def _limit(self, owners: Owners, members: Sequence[int]) -> Owners:
        traces = {self.candidates[index].trace_id for index in members}
        return Owners(_pick(owners.customers, traces), _pick(owners.projects, traces))


def _pick(found: Mapping[bytes, str], traces: Iterable[bytes]) -> dict[bytes, str]:
    return {trace_id: found[trace_id] for trace_id in traces if trace_id in found}
