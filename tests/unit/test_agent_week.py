"""The agent week sums to exactly what was published, whatever share of it is made."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.week_shape import HOUR_NANOS, MODELS, WEEK_HOURS, Totals, Week

END = 490_000 * HOUR_NANOS


@pytest.mark.parametrize("share", [1, 1_000, 10_000])
def test_totals_are_exact(share: int) -> None:
    """A benchmark that claims the published totals generates them, to the last call and token."""
    totals = Totals().divide(share)
    week = Week(totals, END)
    sums = dict.fromkeys(("turns", "calls", "tools", "prompt", "cached", "completion"), 0)
    sessions, models = 0, set()
    last_session = -1
    for first in range(0, totals.turns, 49_999):
        chunk = week.make_chunk(first, min(first + 49_999, totals.turns))
        sums["turns"] += chunk.session.size
        sums["calls"] += chunk.call_turn.size
        sums["tools"] += chunk.tool_turn.size
        for name in ("prompt", "cached", "completion"):
            sums[name] += int(getattr(chunk, name).sum())
        sessions += int((np.diff(chunk.session, prepend=last_session) > 0).sum())
        last_session = int(chunk.session[-1])
        models |= set(np.unique(chunk.model).tolist())
        assert (chunk.cached > 0).all()
        assert (chunk.cached <= chunk.prompt).all()
        assert (chunk.completion > 0).all()
        assert chunk.ended_nanos.min() >= END - WEEK_HOURS * HOUR_NANOS
        assert chunk.ended_nanos.max() <= END
    assert sums == {name: getattr(totals, name) for name in sums}
    assert sessions == totals.sessions
    assert len(models) == MODELS
