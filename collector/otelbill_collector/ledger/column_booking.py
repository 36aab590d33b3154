"""Spans in columns booked without an object for each: which of them can be, and what is written of those.

A span can be when its whole group stands in the batch, is decided by columns, and no operator has spoken of it. Every
other span becomes a candidate and is booked in its group by `booking`. Owns that parting; no rule of claims or prices.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.domain.identified_columns import IdentifiedColumns
from otelbill_collector.domain.span_columns import (
    AmountColumns,
    Bytes,
    DecidedColumns,
    Int32s,
    RatedColumns,
    SpanColumns,
    join_texts,
)
from otelbill_collector.domain.usage import Candidate
from otelbill_collector.ledger.groups import GroupIndex
from otelbill_collector.ledger.members import ColumnSingles, join_keys
from otelbill_collector.ledger.recent_keys import Earlier

Rows = NDArray[np.intp]
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class ColumnRules:
    """What is applied to columns: `derive_keys` gives their claim keys, `decide` the groups that are settled, `rate`
    the amounts of spans for these customers and steps.
    """

    derive_keys: Callable[[SpanColumns], tuple[Bytes, Int32s]]
    decide: Callable[[SpanColumns, NDArray[np.bool_]], DecidedColumns]
    rate: Callable[[SpanColumns, Int32s, Int32s], AmountColumns]


@dataclass(frozen=True, slots=True)
class Parted:
    """Spans booked by columns, and the rows of the others, ascending."""

    singles: ColumnSingles | None
    rest: Rows


def book_columns(
    connection: sqlite3.Connection,
    index: GroupIndex,
    identified: IdentifiedColumns,
    other_keys: Sequence[tuple[bytes, ...]],
    rules: ColumnRules,
    told: Collection[str],
) -> Parted:
    """Decide, rate and make visible what can be. `other_keys` are those of the batch's other spans, `told` the events
    of which operators have said something.
    """
    meeting = index.expect_columns(connection, identified, other_keys)
    settled, seen = ~meeting.company, meeting.seen
    if told:
        settled &= ~_find_told(identified.event_id, told)
    decided = _decide(identified.spans, settled, meeting.earlier, rules)
    rest = np.flatnonzero(~decided.rows)
    if len(rest) == len(identified):
        return Parted(None, rest)
    if len(rest):
        rows = np.flatnonzero(decided.rows)
        seen = seen[np.repeat(decided.rows, np.diff(identified.key_starts))]
        identified, decided = identified.take(rows), decided.take(rows)
    singles = ColumnSingles(_rate(identified, decided, rules))
    index.add_columns(singles, seen)
    return Parted(singles, rest)


def _decide(
    columns: SpanColumns, settled: NDArray[np.bool_], earlier: Sequence[Earlier], rules: ColumnRules
) -> DecidedColumns:
    """Decide spans with the earlier ones of their traces. Where these were booked as decided now, nothing is to be
    corrected; a trace of which one was not is left to the rules.
    """
    usable = [part for part in earlier if part.singles.rated.spans.templates is columns.templates]
    for part in earlier:
        if part.singles.rated.spans.templates is not columns.templates:  # of before the scanner forgot
            settled[part.found_for] = False
    if not usable:
        return rules.decide(columns, settled)
    count, before = len(columns), [part.singles.rated for part in usable]
    together = columns.join([rated.spans.take(part.rows) for rated, part in zip(before, usable, strict=True)])
    decided = rules.decide(together, np.concatenate([settled, np.ones(len(together) - count, dtype=np.bool_)]))
    rest = np.arange(count, len(together))
    changed = decided.run_id.take(rest).differ(
        join_texts([rated.run_id.take(part.rows) for rated, part in zip(before, usable, strict=True)])
    )
    for name in ("customer", "project", "step"):
        booked = np.concatenate([getattr(rated, name)[part.rows] for rated, part in zip(before, usable, strict=True)])
        changed |= getattr(decided, name)[count:] != booked
    decided = decided.take(np.arange(count))
    if changed.any():
        found_for = np.concatenate([part.found_for for part in usable])
        decided.rows[_find_traces(columns, columns.trace_id[found_for[changed]])] = False
    return decided


def _find_traces(columns: SpanColumns, traces: Bytes) -> NDArray[np.bool_]:
    """Which spans are of these traces."""
    return np.isin(_as_ids(columns.trace_id), _as_ids(traces))


def _as_ids(ids: Bytes) -> NDArray[Any]:
    """16-byte ids as values of their own."""
    return np.ascontiguousarray(ids).view(f"S{_ID_BYTES}").ravel()


def _rate(identified: IdentifiedColumns, decided: DecidedColumns, rules: ColumnRules) -> RatedColumns:
    amounts = rules.rate(identified.spans, decided.customer, decided.step)
    return RatedColumns(
        customer=decided.customer,
        project=decided.project,
        step=decided.step,
        run_id=decided.run_id,
        **{spec.name: getattr(part, spec.name) for part in (identified, amounts) for spec in fields(part)},
    )


def list_candidates(columns: SpanColumns, rows: Rows) -> Iterator[tuple[Candidate, int]]:
    """(candidate, received time) of rows."""
    return zip(columns.build_candidates(rows), columns.received_nanos[rows].tolist(), strict=True)


def _find_told(events: Bytes, told: Collection[str]) -> NDArray[np.bool_]:
    return np.isin(_as_ids(events), _as_ids(join_keys(list(map(bytes.fromhex, told)))))
