"""Books that take spans by columns wherever they can, to compare what they book with what is booked span by span.

Owns no assertions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.decode.column_claims import Decided, create_column_claims
from otelbill_collector.decode.column_keys import derive_keys
from otelbill_collector.domain.alone import build_own_decision
from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.records import Amounts, DeadLetter
from otelbill_collector.domain.span_columns import RATINGS, Int64s, RatedColumns, SpanColumns
from otelbill_collector.domain.usage import Candidate
from otelbill_collector.ledger.booking import Booking, Outcome, Rules, book_candidates, collect_keys
from otelbill_collector.ledger.books import Books, Posted
from otelbill_collector.ledger.column_ids import derive_events, digest_contents
from otelbill_collector.ledger.journal import Placed, append_segment
from otelbill_collector.ledger.members import ColumnSingles
from tests.span_columns import build_columns, fits_columns

Arrivals = Sequence[tuple[Candidate, int]]
Rows = NDArray[np.intp]


class ColumnBooks(Books):
    """Books whose `post` books by columns what can be; `by_columns` counts those spans. No dead letters are kept."""

    by_columns = 0

    def post(self, arrivals: Arrivals, letters: Sequence[DeadLetter], now_nanos: int) -> Posted:
        """As in Books."""

        def work(connection: sqlite3.Connection) -> Posted:
            taken = self._book_columns(connection, arrivals, now_nanos)
            rest = [number for number in range(len(arrivals)) if number not in taken]
            chosen = [arrivals[number] for number in rest]
            booking = book_candidates(connection, self._index, chosen, self._rules, now_nanos)
            outcomes = [Outcome.ACCEPTED] * len(arrivals)
            for number, outcome in zip(rest, booking.outcomes, strict=True):
                outcomes[number] = outcome
            return Posted(Booking(outcomes=outcomes, decided=booking.records), (True,) * len(letters))

        return self._transact(work)

    def _book_columns(self, connection: sqlite3.Connection, arrivals: Arrivals, now_nanos: int) -> set[int]:
        """The numbers of the arrivals that were booked by columns."""
        fit = [number for number, (candidate, _) in enumerate(arrivals) if fits_columns(candidate)]
        others = [arrivals[number][0] for number in sorted(set(range(len(arrivals))).difference(fit))]
        columns = build_columns([arrivals[n][0] for n in fit], [arrivals[n][1] for n in fit])
        keys, key_starts = derive_keys(columns)
        other_keys = [collect_keys(candidate, self._rules.claim_keys) for candidate in others]
        claims = create_column_claims()
        assert claims is not None
        settled = ~self._index.expect_columns(columns, keys, key_starts, other_keys)
        decided = claims.decide(columns, settled)
        rows = np.flatnonzero(decided.rows)
        if len(rows):
            singles = ColumnSingles(rate_columns(columns, decided, rows, self._rules))
            self._index.add_columns(singles)
            placed = [
                Placed(record, record.event_nanos // DAY_NANOS, singles.find_keys(row))
                for row, record in enumerate(singles.list_records())
            ]
            append_segment(connection, placed, now_nanos)
            self.by_columns += len(rows)
        return {fit[row] for row in rows.tolist()}


def rate_columns(columns: SpanColumns, decided: Decided, rows: Rows, rules: Rules) -> RatedColumns:
    """Rows as booking makes them, rated one by one."""
    columns, run_id = columns.take(rows), decided.run_id.take(rows)
    customer, project, step = decided.customer[rows], decided.project[rows], decided.step[rows]
    amounts: list[Amounts] = []
    bodies: dict[str, str] = {}
    for row in range(len(rows)):
        candidate = columns.build_candidate(row)
        decision = build_own_decision(candidate)
        decision.customer_id = columns.names[customer[row]] if customer[row] >= 0 else None
        decision.step = columns.names[step[row]] if step[row] >= 0 else None
        found, named = rules.rate(candidate, decision)
        amounts.append(found)
        bodies.update(named)
    versions = sorted(bodies)
    (currency,) = {item.currency for item in amounts} - {None} or {"EUR"}
    assert currency is not None
    keys, key_starts = derive_keys(columns)
    return RatedColumns(
        spans=columns,
        customer=customer,
        project=project,
        step=step,
        run_id=run_id,
        event_id=derive_events(columns),
        content=digest_contents(columns),
        keys=keys,
        key_starts=key_starts,
        rating=np.array([RATINGS.index(item.state) for item in amounts], dtype=np.int32),
        price_version=np.array(
            [-1 if item.price_version is None else versions.index(item.price_version) for item in amounts],
            dtype=np.int32,
        ),
        versions=versions,
        cost_attos=split_words([item.cost_attos for item in amounts]),
        charge_attos=split_words([item.charge_attos for item in amounts]),
        has_cost=np.array([item.cost_attos is not None for item in amounts], dtype=np.bool_),
        has_charge=np.array([item.charge_attos is not None for item in amounts], dtype=np.bool_),
        currency=currency,
        has_currency=np.array([item.currency is not None for item in amounts], dtype=np.bool_),
        price_bodies=bodies,
    )


def split_words(amounts: Sequence[int | None]) -> Int64s:
    """128-bit integers as [n, 2]: low and high word."""
    raw = b"".join([(amount or 0).to_bytes(16, "little", signed=True) for amount in amounts])
    return np.frombuffer(raw, dtype="<i8").reshape(-1, 2).astype(np.int64)
