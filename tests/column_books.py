"""Books that take spans by columns wherever they can, to compare what they book with what is booked span by span.

Owns no assertions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from otelbill_collector.domain.identified_columns import IdentifiedColumns
from otelbill_collector.domain.records import DeadLetter
from otelbill_collector.domain.usage import Candidate
from otelbill_collector.ledger.booking import Booking, Outcome
from otelbill_collector.ledger.books import Books, Posted
from tests.span_columns import build_columns, fits_columns

Arrivals = Sequence[tuple[Candidate, int]]


class ColumnBooks(Books):
    """Books whose `post` books by columns what can be; `by_columns` counts those spans."""

    by_columns = 0

    def post(
        self,
        arrivals: Arrivals,
        letters: Sequence[DeadLetter],
        now_nanos: int,
        columns: IdentifiedColumns | None = None,
    ) -> Posted:
        """As in Books, with the outcomes in the order of `arrivals`, which are all there is."""
        assert columns is None
        fit = [number for number, (candidate, _) in enumerate(arrivals) if fits_columns(candidate)]
        others = sorted(set(range(len(arrivals))).difference(fit))
        spans = build_columns([arrivals[n][0] for n in fit], [arrivals[n][1] for n in fit])
        spans.request = np.array(fit, dtype=np.int32)
        posted = super().post([arrivals[n] for n in others], letters, now_nanos, self.identify(spans))
        outcomes = [Outcome.ACCEPTED] * len(arrivals)
        for number, outcome in zip([*others, *posted.booking.rest_requests], posted.booking.outcomes, strict=True):
            outcomes[number] = outcome
        self.by_columns += len(posted.booking.columns or ())
        return Posted(Booking(outcomes=outcomes, decided=posted.booking.records), posted.kept)
