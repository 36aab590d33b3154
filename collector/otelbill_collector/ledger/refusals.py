"""Spans from before the floor of retention: whether they are booked cannot be told, so they are left out of a booking.

Owns their places among its outcomes; what becomes of them is the pipeline's.
"""

from __future__ import annotations

from collections.abc import Sequence

from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.records import digest_candidate, identify_candidate
from otelbill_collector.domain.span_columns import SpanColumns
from otelbill_collector.domain.usage import Candidate
from otelbill_collector.ledger.booking import Booking, Outcome
from otelbill_collector.ledger.column_booking import Rows, list_candidates
from otelbill_collector.ledger.members import Member


def refuse_pruned(booking: Booking, arrivals: Sequence[tuple[Candidate, int]], floor_nanos: int) -> None:
    """Put the arrivals from before the floor, which were left out of a booking, back into their places."""
    outcomes, arrived = iter(booking.outcomes), iter(booking.arrived)
    booking.outcomes, booking.arrived = [], []
    for candidate, received_nanos in arrivals:
        if candidate.ended_nanos >= floor_nanos:
            booking.outcomes.append(next(outcomes))
            booking.arrived.append(next(arrived))
        else:
            booking.outcomes.append(Outcome.PRUNED)
            booking.arrived.append(_stand_in(candidate, received_nanos))
    booking.outcomes.extend(outcomes)  # of spans that came in columns
    booking.arrived.extend(arrived)


def refuse_pruned_columns(booking: Booking, columns: SpanColumns, rows: Rows) -> None:
    """Add the spans in columns from before the floor, which were left out of a booking."""
    for (candidate, received_nanos), request in zip(
        list_candidates(columns, rows), columns.request[rows].tolist(), strict=True
    ):
        booking.outcomes.append(Outcome.PRUNED)
        booking.arrived.append(_stand_in(candidate, received_nanos))
        booking.rest.append(candidate)
        booking.rest_requests.append(request)


def _stand_in(candidate: Candidate, received_nanos: int) -> Member:
    """A member that is booked nowhere."""
    day = candidate.ended_nanos // DAY_NANOS
    return Member(identify_candidate(candidate), candidate, digest_candidate(candidate), received_nanos, (), day)
