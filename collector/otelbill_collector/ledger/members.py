"""Spans as they are booked: one by one (`Member`), or many that stand alone, in columns (`Singles`).

A span stands alone when nothing else in the ledger or its batch shares a claim key with it and what it bills is what
it says itself. Its record is written straight from the columns; a `Member` is made when something touches its group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from otelbill_collector.domain.alone import AmountsRow, build_own_decision
from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.records import Amounts, UsageRecord
from otelbill_collector.domain.usage import Candidate, RatingState
from otelbill_collector.ledger.sums import Sums


@dataclass(slots=True, weakref_slot=True, eq=False)
class Member:
    """One span of a group. `booked` is its booking in force, None until the first one; `day` is that of its end."""

    event_id: str
    candidate: Candidate
    content: bytes
    received_nanos: int
    keys: tuple[bytes, ...]
    day: int
    booked: UsageRecord | None = None


@dataclass(slots=True, weakref_slot=True, eq=False)
class Singles:
    """The first bookings of spans that stand alone. The n-th item of every list belongs to the n-th span."""

    candidates: Sequence[Candidate]
    contents: Sequence[bytes]
    received: Sequence[int]
    keys: Sequence[tuple[bytes, ...]]
    events: Sequence[bytes]  # event ids, 16 bytes each
    amounts: Sequence[AmountsRow]
    price_bodies: Mapping[str, str]  # content of the price versions that `amounts` name
    _members: dict[int, Member] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.candidates)

    def list_keys(self) -> list[bytes]:
        """All claim keys, span by span."""
        return list(chain.from_iterable(self.keys))

    def find_member(self, row: int) -> Member:
        """The one object that stands for a span, so that all its keys see the same booking."""
        member = self._members.get(row)
        if member is None:
            member = self._members[row] = self._build_member(row)
        return member

    def list_records(self) -> Iterable[UsageRecord]:
        """The records as they were written."""
        return map(self._build_record, range(len(self)))

    def sum_rated(self) -> dict[tuple[str | None, ...], Sums]:
        """Sums of what has a charge, by step, provider, model and currency."""
        groups: dict[tuple[str | None, ...], Sums] = defaultdict(Sums)
        for candidate, (state, _, cost, charge, currency) in zip(self.candidates, self.amounts, strict=True):
            if state is RatingState.RATED:
                sums = groups[candidate.step, candidate.provider, candidate.model, currency]
                sums.events += 1
                sums.cost_attos += cost or 0
                sums.charge_attos += charge or 0
                total = sums.quantities
                for unit, quantity in candidate.quantities.items():
                    if quantity:
                        total[unit] = total.get(unit, 0) + quantity
        return groups

    def _build_member(self, row: int) -> Member:
        record = self._build_record(row)
        return Member(
            event_id=record.event_id,
            candidate=record.candidate,
            content=record.content,
            received_nanos=record.received_nanos,
            keys=self.keys[row],
            day=record.event_nanos // DAY_NANOS,
            booked=record,
        )

    def _build_record(self, row: int) -> UsageRecord:
        candidate = self.candidates[row]
        return UsageRecord(
            event_id=self.events[row].hex(),
            revision=0,
            sign=1,
            content=self.contents[row],
            received_nanos=self.received[row],
            candidate=candidate,
            decision=build_own_decision(candidate),
            amounts=Amounts(*self.amounts[row]),
        )


Row = tuple[Singles, int]
