"""What the app's allow-list takes away never makes a bill larger: recorded spans, rated before and after stripping."""

from __future__ import annotations

from pathlib import Path

from otelbill_collector.app import build_rules
from otelbill_collector.config import Config
from otelbill_collector.decode.redaction import redact_span
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.decode.wire import decode_request
from otelbill_collector.offline import rate_spans

# Emitters that keep a call's id or usage nowhere but inside content: without content less can be known of them.
LESS_KNOWN_MAX = 8
_INPUT_UNITS = ("input_tokens", "cache_read_tokens", "cache_write_tokens")


def _total(spans: list[SpanView]) -> tuple[dict[str, int], int]:
    """(quantities of billable spans, held ones included, number of billable spans)."""
    totals: dict[str, int] = {}
    billable = 0
    for row in rate_spans(spans, build_rules(Config())):
        if row["billable"]:
            billable += 1
            for unit, value in row["quantities"].items():
                # Cached tokens that lose their name are counted as input: the sum is what may not grow.
                name = "all_input_tokens" if unit in _INPUT_UNITS else unit
                totals[name] = totals.get(name, 0) + int(value)
    return totals, billable


def test_stripping_never_adds_to_a_bill(shared_data: Path) -> None:
    """A span that loses its markers must not be taken for a call, and a parent must not lose what tells it from one."""
    changed = []
    for case in sorted((shared_data / "spans").glob("*/*/spans.pb")):
        whole = decode_request(case.read_bytes())
        stripped = [span for view in whole for span in decode_request(redact_span(view))]
        before, after = _total(whole), _total(stripped)
        larger = {unit: value for unit, value in after[0].items() if value > before[0].get(unit, 0)}
        assert not larger, (str(case.parent), larger)
        assert after[1] <= before[1], case.parent
        if before != after:
            changed.append(f"{case.parent.parent.name}/{case.parent.name}")
    assert len(changed) <= LESS_KNOWN_MAX, changed
