"""Spans as they are booked: one by one (`Member`), or many at once (`Singles`; `ColumnSingles` where they are columns).

A span stands alone when nothing else in the ledger or its batch shares a claim key with it and what it bills is what
it says itself. Its record is written straight from the columns; a `Member` is made when something touches its group.
Spans in columns may also be whole traces, in which only who pays had to be decided.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from otelbill_collector.domain.alone import AmountsRow, build_own_decision
from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.records import Amounts, UsageRecord
from otelbill_collector.domain.span_columns import COUNTED_UNITS, RATINGS, Bytes, Int32s, Int64s, RatedColumns, Template
from otelbill_collector.domain.usage import REQUESTS, Candidate, RatingState, Role
from otelbill_collector.ledger.sums import Key, Sums, count_signs, group_rows, sum_amounts, sum_integers


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

    def list_keys(self) -> tuple[Bytes, Sequence[int]]:
        """All claim keys [m, 16], span by span, and how many each span has."""
        return join_keys(list(chain.from_iterable(self.keys))), [len(keys) for keys in self.keys]

    def find_ended_bounds(self) -> tuple[int, int]:
        """When the first and the last of the spans ended."""
        ended = [candidate.ended_nanos for candidate in self.candidates]
        return min(ended), max(ended)

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


@dataclass(slots=True, eq=False)
class ColumnSingles:
    """The first bookings of spans in columns, whose groups were decided by columns: rows as in `rated`."""

    rated: RatedColumns
    _members: dict[int, Member] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rated.spans)

    @property
    def price_bodies(self) -> Mapping[str, str]:
        """Content of the price versions that the amounts name."""
        return self.rated.price_bodies

    def list_keys(self) -> tuple[Bytes, Int32s]:
        """All claim keys [m, 16], span by span, and how many each span has."""
        return self.rated.keys, np.diff(self.rated.key_starts)

    def list_requests(self) -> list[int]:
        """The number of each span's request in its batch."""
        requests: list[int] = self.rated.spans.request.tolist()
        return requests

    def find_ended_bounds(self) -> tuple[int, int]:
        """When the first and the last of the spans ended."""
        ended = self.rated.spans.ended_nanos
        return int(ended.min()), int(ended.max())

    def find_keys(self, row: int) -> tuple[bytes, ...]:
        """The claim keys of a span."""
        starts = self.rated.key_starts
        return tuple(key.tobytes() for key in self.rated.keys[starts[row] : starts[row + 1]])

    def find_row(self, place: int) -> int:
        """The row whose key stands at a place in `rated.keys`."""
        return int(np.searchsorted(self.rated.key_starts, place, side="right")) - 1

    def find_rows(self, places: Int32s) -> NDArray[np.intp]:
        """The same for many places."""
        return np.searchsorted(self.rated.key_starts, places, side="right") - 1

    def find_event(self, row: int) -> str:
        """The event id of a span."""
        return str(self.rated.event_id[row].tobytes().hex())

    def find_member(self, row: int) -> Member:
        """The one object that stands for a span, so that all its keys see the same booking."""
        member = self._members.get(row)
        if member is None:
            record = self._build_record(row)
            member = self._members[row] = Member(
                event_id=record.event_id,
                candidate=record.candidate,
                content=record.content,
                received_nanos=record.received_nanos,
                keys=self.find_keys(row),
                day=record.event_nanos // DAY_NANOS,
                booked=record,
            )
        return member

    def list_records(self) -> Iterable[UsageRecord]:
        """The records as they were written."""
        return map(self._build_record, range(len(self)))

    def sum_rated(self) -> dict[tuple[str | None, ...], Sums]:
        """Sums of what has a charge, by step, provider, model and currency."""
        return sum_rated([self])

    def _build_record(self, row: int) -> UsageRecord:
        rated, spans = self.rated, self.rated.spans
        candidate = spans.build_candidate(row)
        decision = build_own_decision(candidate)
        decision.customer_id = self._find_name(rated.customer[row])
        decision.project_id = self._find_name(rated.project[row])
        decision.step = self._find_name(rated.step[row])
        decision.run_id = rated.run_id.find(row)
        return UsageRecord(
            event_id=self.find_event(row),
            revision=0,
            sign=1,
            content=rated.content[row].tobytes(),
            received_nanos=int(spans.received_nanos[row]),
            candidate=candidate,
            decision=decision,
            amounts=self._find_amounts(row),
        )

    def _find_amounts(self, row: int) -> Amounts:
        rated = self.rated
        version = int(rated.price_version[row])
        return Amounts(
            state=RATINGS[rated.rating[row]],
            price_version=rated.versions[version] if version >= 0 else None,
            cost_attos=_read_words(rated.cost_attos[row]) if rated.has_cost[row] else None,
            charge_attos=_read_words(rated.charge_attos[row]) if rated.has_charge[row] else None,
            currency=self._find_currency(row),
        )

    def _find_currency(self, row: int) -> str | None:
        return self.rated.currency if self.rated.has_currency[row] else None

    def _find_name(self, code: Any) -> str | None:  # Any: a numpy integer
        return self.rated.spans.names[code] if code >= 0 else None


def sum_rated(batches: Sequence[ColumnSingles]) -> dict[tuple[str | None, ...], Sums]:
    """Sums of what has a charge, by step, provider, model and currency, of batches whose names are the same list."""
    totals: dict[tuple[str | None, ...], Sums] = defaultdict(Sums)
    rated = [part.rated for part in batches]
    spans = rated[0].spans
    rows = [np.flatnonzero(part.rating == RATINGS.index(RatingState.RATED)) for part in rated]
    pairs = list(zip(rated, rows, strict=True))
    count = sum(map(len, rows))
    if not count:
        return totals
    template = np.concatenate([part.spans.template[chosen] for part, chosen in pairs]).astype(np.int64)
    step = np.concatenate([part.step[chosen] for part, chosen in pairs]).astype(np.int64)
    priced = np.concatenate([part.has_currency[chosen] for part, chosen in pairs]).astype(np.int64)
    # Rows of one template, step and currency are summed together; what templates have alike is added up below.
    keys = [Key(template, spans.templates), Key(step + 1, (None, *spans.names)), Key(priced, (None, rated[0].currency))]
    found = group_rows(keys)
    signs = np.ones(count, dtype=np.int8)
    events = count_signs(signs, found)
    costs, charges = (
        sum_amounts(
            _join_words(
                np.concatenate([getattr(part, f"{name}_attos")[chosen] for part, chosen in pairs]),
                np.concatenate([getattr(part, f"has_{name}")[chosen] for part, chosen in pairs]),
            ),
            signs,
            found,
        )
        for name in ("cost", "charge")
    )
    counts = [
        sum_integers(
            pa.chunked_array([np.concatenate([part.spans.counts[place][chosen] for part, chosen in pairs])]),
            signs,
            found,
        )
        for place in range(len(COUNTED_UNITS))
    ]
    for group, row in enumerate(found.firsts.tolist()):
        common, code = spans.templates[template[row]], step[row]
        currency = rated[0].currency if priced[row] else None
        sums = totals[spans.names[code] if code >= 0 else None, common.provider, common.model, currency]
        sums.events += events[group]
        sums.cost_attos += costs[group]
        sums.charge_attos += charges[group]
        _add_counts(sums, common, [units[group] for units in counts], events[group])
    return totals


def join_keys(keys: Sequence[bytes]) -> Bytes:
    """Claim keys as [m, 16]."""
    joined: Bytes = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16)
    return joined


def _read_words(words: Int64s) -> int:
    return int.from_bytes(words.astype("<i8").tobytes(), "little", signed=True)


def _join_words(words: Int64s, known: NDArray[np.bool_]) -> pa.ChunkedArray:
    """Amounts as a column: 128-bit integers in two words."""
    buffers = [pa.array(known).buffers()[1], pa.py_buffer(np.ascontiguousarray(words))]
    return pa.chunked_array([pa.Array.from_buffers(pa.decimal128(38, 18), len(words), buffers)])


def _add_counts(sums: Sums, template: Template, counts: Sequence[int], events: int) -> None:
    """Add what spans of one template count, which `SpanColumns.find_quantities` defines for each."""
    found = dict(zip(COUNTED_UNITS, counts, strict=True)) if template.counted else {}
    if template.role is Role.CALL:
        found[REQUESTS] = events
    for unit, count in found.items():
        if count and template.role in (Role.CALL, Role.AGGREGATE):
            sums.quantities[unit] = sums.quantities.get(unit, 0) + count


Row = tuple[Singles | ColumnSingles, int]
