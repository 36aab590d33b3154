"""How long the draft invoice of a customer with a million events takes: `python -m benchmarks.invoices --json`.

The records are written straight into segments, as commits of `--segment` events would have; the draft is then read
as `otelbill invoice` reads it, in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from otelbill_collector.billing import build_billing_rules
from otelbill_collector.config import Config
from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.records import Amounts, UsageRecord
from otelbill_collector.domain.usage import Candidate, Decision, Role, UsageSource
from otelbill_collector.invoicing import Drafting
from otelbill_collector.ledger.journal import Placed, append_segment, save_price_versions
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.rules import RuleSet

START = parse_instant("2026-11-01")
SECOND = 10**9
MODELS = (("openai", "gpt-4o-mini"), ("openai", "gpt-4o"), ("anthropic", "claude-sonnet-4-5"))


def write_ledger(folder: Path, events: int, per_segment: int) -> None:
    """A month of one customer's calls: three models, five steps, four projects."""
    from otelbill_collector.app import build_rules

    rules = build_rules(Config())
    store = SqliteStore(folder)
    gap = 29 * 86_400 * SECOND // events
    for first in range(0, events, per_segment):
        numbers = range(first, min(events, first + per_segment))
        bodies: dict[str, str] = {}
        records = [_make_record(number, START + number * gap, rules, bodies) for number in numbers]
        placed = [Placed(record, 0, ()) for record in records]

        def write(connection: object, placed: list[Placed] = placed, bodies: dict[str, str] = bodies) -> None:
            save_price_versions(connection, bodies)  # type: ignore[arg-type]
            append_segment(connection, placed, START)  # type: ignore[arg-type]

        store.transact(write)
    store.close()


def _make_record(number: int, at_nanos: int, rules: RuleSet, bodies: dict[str, str]) -> UsageRecord:
    provider, model = MODELS[number % 3]
    key = digest_parts("benchmark", number)
    quantities = {"input_tokens": 500 + number % 4_096, "output_tokens": 20 + number % 512, "requests": 1}
    candidate = Candidate(
        trace_id=key[:16],
        span_id=key[16:24],
        parent_span_id=b"",
        started_nanos=at_nanos - SECOND,
        ended_nanos=at_nanos,
        dialect="gen_ai",
        role=Role.CALL,
        detail=1,
        provider=provider,
        model=model,
        operation="chat",
        response_id=f"resp-{key.hex()[:20]}",
        customer_id="acme",
        project_id=f"project-{number % 4}",
        step=f"step-{number % 5}",
        quantities=quantities,
        emitter="benchmark",
        service="app",
    )
    decision = Decision(
        True, "provider_call", UsageSource.REPORTED, quantities, (), "acme", candidate.project_id, None, candidate.step
    )
    amounts, found = rules.rate(candidate, decision)
    assert isinstance(amounts, Amounts)
    bodies.update(found)
    return UsageRecord(key.hex()[:32], 0, 1, key[:16], at_nanos, candidate, decision, amounts)


def measure_draft(folder: Path) -> dict[str, object]:
    """Seconds of one draft, from opening the ledger on."""
    rules = build_billing_rules(Config())
    started = time.perf_counter()
    store = SqliteStore(folder, read_only=True)
    period = rules.find_calendar("acme").parse_label("2026-11")
    draft = store.read(lambda connection: Drafting(connection, rules, "acme").draft(period))
    seconds = time.perf_counter() - started
    store.close()
    content = draft.render()
    counted = sum(line["events"] for line in content["lines"] if line["unit"] == "input_tokens")
    return {"seconds": round(seconds, 3), "lines": len(content["lines"]), "events": counted, "total": content["total"]}


def main() -> None:
    """Write the ledger once, draft in three processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--segment", type=int, default=1_024, help="events of one commit")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="a ledger that an earlier run wrote, or where to write it")
    parser.add_argument("--draft", action="store_true", help="only draft, and print the figures of that")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.draft:
        print(json.dumps(measure_draft(options.folder)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made) / "ledger"
        if not (folder / "ledger.sqlite").exists():
            write_ledger(folder, options.events, options.segment)
        command = [sys.executable, "-m", "benchmarks.invoices", "--draft", "--folder", str(folder)]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(options.runs)
        ]
    assert {run["events"] for run in runs} == {options.events}, runs
    figures = {"events": options.events, "events_per_segment": options.segment, "lines": runs[0]["lines"]}
    figures |= {"draft_seconds": sorted(run["seconds"] for run in runs)}
    print(json.dumps(figures) if options.json else f"draft of {options.events:,} events: {figures['draft_seconds']} s")


if __name__ == "__main__":
    main()
