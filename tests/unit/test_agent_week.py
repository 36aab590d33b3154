"""The agent week sums to exactly what was published, whatever share of it is made."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.week_requests import CATALOGUE, WeekRequests
from benchmarks.week_shape import HOUR_NANOS, MODELS, WEEK_HOURS, Totals, Week
from otelbill_collector.decode.wire import decode_request

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


def test_encoded_week_reads_as_generated() -> None:
    """The decoder reads from the requests what was generated, so a difference later is the ledger's."""
    totals = Totals().divide(10_000)
    week, requests = Week(totals, END), WeekRequests()
    assert len(set(CATALOGUE)) == MODELS
    sums = dict.fromkeys(("input_tokens", "cache_read.input_tokens", "output_tokens"), 0)
    spans, calls, models, ids = 0, set(), set(), set()
    bodies = [
        body
        for number, first in enumerate(range(0, totals.turns, 50))
        for body in requests.encode(week.make_chunk(first, min(first + 50, totals.turns)), number, 30)
    ]
    assert len(bodies) == 2 * (totals.turns // 50) + 1
    for body in bodies:
        for span in decode_request(body):
            spans += 1
            ids.add((bytes(span.trace_id), bytes(span.span_id)))
            if span.attributes.get("gen_ai.operation.name") != "chat":
                continue
            calls.add(span.attributes["gen_ai.response.id"])
            models.add(span.attributes["gen_ai.request.model"])
            for name in sums:
                sums[name] += int(str(span.attributes[f"gen_ai.usage.{name}"]))
    assert spans == len(ids) == totals.turns + totals.calls + totals.tools
    assert list(sums.values()) == [totals.prompt, totals.cached, totals.completion]
    assert (len(calls), len(models)) == (totals.calls, MODELS)
