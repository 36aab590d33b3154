"""What it costs to find out, of spans in columns, who they are and whether others belong to them: CPU ns a span.

    python -m benchmarks.links --json
    python -m benchmarks.links --twins --json     # spans of emitters whose calls others describe too: more keys

Identifiers, claim keys, content digests, the look-up, keeping the keys in memory and in the filter, and the runs on
disk with their merges; each by itself, in batches of equal size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from otelbill_collector.decode.column_keys import derive_keys
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.domain.identified_columns import IdentifiedColumns
from otelbill_collector.domain.usage import INPUT_TOKENS, OUTPUT_TOKENS, REQUESTS, Candidate, Role
from otelbill_collector.ledger.claim_runs import append_claims, merge_waiting
from otelbill_collector.ledger.column_ids import derive_events, digest_contents
from otelbill_collector.ledger.groups import GroupIndex
from otelbill_collector.ledger.members import ColumnSingles
from otelbill_collector.ledger.sqlite import SqliteStore
from tests.span_columns import build_columns
from tests.spans import T0

_DAY = T0 // (86_400 * 10**9)


def make_candidates(count: int, seed: int, *, twins: bool) -> list[Candidate]:
    """Calls of their own with ids as providers make them."""
    rng = Random(seed)
    candidates = []
    for _ in range(count):
        started = T0 + rng.randrange(10**12)
        candidate = Candidate(
            rng.randbytes(16), rng.randbytes(8), rng.randbytes(8), started, started + rng.randrange(10**9),
            "gen_ai", Role.CALL, 3, provider="openai", model="gpt-4o-mini-2024-07-18", request_model="gpt-4o-mini",
            operation="chat", response_id=f"chatcmpl-{rng.randbytes(12).hex()}",
            customer_id=f"customer-{rng.randrange(99)}", project_id="web", run_id=f"run-{rng.randrange(10**6)}",
            step="plan", reason=Reason.PROVIDER_CALL,
            emitter="opentelemetry.instrumentation.openai_v2", service="app", traits=("twin",) if twins else (),
            quantities={INPUT_TOKENS: rng.randrange(5_000), OUTPUT_TOKENS: rng.randrange(900), REQUESTS: 1},
        )  # fmt: skip
        candidates.append(candidate)
    return candidates


def measure(*, spans: int, batches: int, twins: bool) -> dict[str, Any]:
    """CPU ns a span of each step, summed over the batches, and keys a span."""
    index, spent, keys_made = GroupIndex(lambda _: ()), defaultdict[str, int](int), 0

    def clock(step: str, since: int) -> int:
        now = time.process_time_ns()
        spent[step] += now - since
        return time.process_time_ns()

    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder))
        for batch in range(1, batches + 1):
            columns = build_columns(make_candidates(spans, batch, twins=twins))
            now = time.process_time_ns()
            events = derive_events(columns)
            now = clock("ids", now)
            contents = digest_contents(columns)
            now = clock("content digests", now)
            identified = IdentifiedColumns(columns, events, contents, *derive_keys(columns))
            now = clock("claim keys", now)
            meeting = store.read(lambda c, i=identified: index.expect_columns(c, i, []))  # type: ignore[misc]
            clock("look-up", now)
            rows = np.flatnonzero(~meeting.company)
            seen = meeting.seen[np.repeat(~meeting.company, np.diff(identified.key_starts))]
            alone = identified.take(rows)
            keys, starts = alone.keys, alone.key_starts
            keys_made += len(keys)
            now = time.process_time_ns()
            index.add_columns(ColumnSingles(alone), seen)  # type: ignore[arg-type]
            now = clock("table in memory", now)
            index.settle()
            now = clock("filter", now)
            positions = np.repeat(np.arange(len(rows)), np.diff(starts))
            store.transact(lambda c, b=batch, k=keys, p=positions: append_claims(c, b, k, p, {_DAY}))  # type: ignore[misc]
            clock("runs, commit", now)
        now = time.process_time_ns()
        merge_waiting(store)
        clock("runs, merges", now)
        store.close()
    total = spans * batches
    figures = {step: round(nanos / total) for step, nanos in spent.items()}
    return {"ns_a_span": figures, "sum": sum(figures.values()), "keys_a_span": round(keys_made / total, 2)}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=20_000, help="of a batch (default 20000)")
    parser.add_argument("--batches", type=int, default=32, help="batches, a commit each (default 32)")
    parser.add_argument("--twins", action="store_true", help="spans that have keys of equal numbers too")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    found = measure(spans=options.spans, batches=options.batches, twins=options.twins)
    if options.json:
        print(json.dumps(found))
        return
    for step, nanos in found["ns_a_span"].items():
        print(f"{step:20}{nanos:8} ns")
    print(f"{'sum':20}{found['sum']:8} ns, {found['keys_a_span']} keys a span")


if __name__ == "__main__":
    main()
