"""Print what selection and claims make of OTLP files, one JSON object per candidate, without prices.

Run: PYTHONPATH=.:collector python tests/golden/score.py FILE...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from otelbill_collector.decode.claims import FOREVER_NANOS, decide_group
from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.domain.usage import Candidate, Decision
from tests.golden.otlp_views import read_views


def rate_views(views: Sequence[SpanView]) -> list[dict[str, Any]]:
    """Objects with the fields that a scorer reads, in event-time order."""
    found = [candidate for view in views if (candidate := select_span(view)) is not None]
    decisions = decide_group(found, FOREVER_NANOS)
    rows = [_render(c, d) for c, d in zip(found, decisions, strict=True)]
    return sorted(rows, key=lambda row: (row["started_nanos"], row["span_id"]))


def _render(candidate: Candidate, decision: Decision) -> dict[str, Any]:
    return {
        "trace_id": candidate.trace_id.hex(),
        "span_id": candidate.span_id.hex(),
        "started_nanos": candidate.started_nanos,
        "dialect": candidate.dialect,
        "role": candidate.role.value,
        "provider": candidate.provider,
        "model": candidate.model,
        "operation": candidate.operation,
        "response_id": candidate.response_id,
        "service_tier": candidate.service_tier,
        "customer_id": decision.customer_id,
        "billable": decision.billable,
        "reason": str(decision.reason),
        "usage_source": decision.usage_source.value,
        "caveats": list(decision.caveats),
        "quantities": {
            unit: str(amount) if not isinstance(amount, int) else amount for unit, amount in decision.quantities.items()
        },
        "winner": decision.winner_span_id.hex(),
        "detail": candidate.detail,
        "problem": repr(candidate.problem) if candidate.problem else None,
    }


def main(paths: Sequence[str]) -> None:
    """Rate the files together and print."""
    views = [view for path in paths for view in read_views(Path(path))]
    for row in rate_views(views):
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
