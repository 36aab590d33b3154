"""Rating a large ledger again: `simulate`, and `rerate` where nothing, a part and everything changes.

    python -m benchmarks.repricing --records 10000000 --json
    python -m benchmarks.repricing --records 1000000 --keep /tmp/ledger     # measures a copy of the same ledger again

The ledger has what commits of `--segment` calls of 30 days would have written: 1,000 customers of very unequal size,
six models, five steps, claim keys; every amount is that of the card. Each measurement is a process of its own, as a
command would be; the writing ones follow one another on one ledger: first nothing changes, then one model's price (a
sixth of the records), then all. Wall and CPU seconds of the run, and of the fold of the rollups after it; the largest
resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from otelbill_collector.domain.bulk_ids import derive_span_events
from otelbill_collector.domain.ids import derive_response_key, derive_trace_key
from otelbill_collector.domain.instants import DAY_NANOS, parse_instant
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.ratecard import Markup, RateCard, Selector
from otelbill_collector.domain.rating import Rater
from otelbill_collector.ledger.books import Books
from otelbill_collector.ledger.claim_runs import append_claims
from otelbill_collector.ledger.journal import Encoded, append_encoded, save_price_versions
from otelbill_collector.ledger.repricing import Scope
from otelbill_collector.ledger.rollups import prepare_fold, save_fold
from otelbill_collector.ledger.segment_schema import SCHEMA
from otelbill_collector.ledger.segments import encode_batch, fit_columns
from otelbill_collector.ledger.sqlite import LEDGER_NAME, SqliteStore
from otelbill_collector.rules import RuleSet, claim_keys
from otelbill_collector.simulation import simulate

START = parse_instant("2026-11-01")
NOW = parse_instant("2026-12-01")
CUSTOMERS, STEPS = 1_000, 5
MODELS = (
    ("openai", "gpt-4o-mini"),
    ("openai", "gpt-4o"),
    ("openai", "gpt-4.1"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-haiku-4-5"),
    ("mistral", "mistral-small-latest"),
)
CARDS = {
    "none": RateCard(markups=(Markup(200_000),)),
    "share": RateCard(markups=(Markup(200_000), Markup(300_000, Selector(model="gpt-4o-mini")))),
    "all": RateCard(markups=(Markup(250_000),)),
}
STAGES = (("simulate", "all"), ("rerate_dry", "none"), ("rerate", "none"), ("rerate", "share"), ("rerate", "all"))
SEGMENTS_AT_ONCE = 50


def main() -> None:
    """Make a ledger, or copy the one that is there, and measure each stage in its own process."""
    options = _parse_options()
    if options.stage:
        print(json.dumps(run_stage(options.folder, *options.stage.split(":"))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.keep or scratch) / "made"
        figures: dict[str, Any] = {"records": options.records, "load_average": os.getloadavg()[0]}
        if not (folder / LEDGER_NAME).is_file():
            figures |= make_ledger(folder, options.records, options.segment)
        work = Path(scratch) / "work"
        work.mkdir()
        subprocess.run(["cp", "--reflink=auto", str(folder / LEDGER_NAME), str(work)], check=True)
        for stage, card in STAGES:
            figures |= _measure(work, stage, card)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<36} {value:>16,}" if not isinstance(value, str) else f"{name:<36} {value:>16}")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--segment", type=int, default=2_000, help="records of one commit")
    parser.add_argument("--keep", help="folder of the ledger as it was made, which stays")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(folder: Path, stage: str, card: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.repricing", "--stage", f"{stage}:{card}", "--folder", str(folder)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {f"{stage}_{card}_{name}": value for name, value in found.items()}


def show_progress(name: str) -> Callable[[int, int], None]:
    """A line on standard error that moves, twice a second."""
    shown = 0.0

    def show(done: int, total: int) -> None:
        nonlocal shown
        if done >= total or time.monotonic() > shown + 0.5:
            shown = time.monotonic()
            print(f"\r{name} {done:,} of {total:,}", end="" if done < total else "\n", file=sys.stderr, flush=True)

    return show


# --- What is measured ---------------------------------------------------------------------------------------------


def run_stage(folder: Path, stage: str, card: str) -> dict[str, Any]:
    """One measurement, in this process."""
    rater = Rater(CARDS[card])
    progress = show_progress(f"{stage} {card}")
    if stage != "rerate":
        store = SqliteStore(folder, read_only=True)
        figures = _time(lambda: store.read(lambda connection: _simulate(connection, rater, progress)))
    else:
        store = SqliteStore(folder)
        rules = RuleSet(rater, grace_seconds=60)
        books = Books(store, claim_keys=claim_keys, decide=rules.decide, rate=rules.rate)
        run = {"operator": "benchmark", "reason": "benchmark", "now_nanos": NOW, "progress": progress}
        figures = _time(lambda: {"changed": books.rerate(rater, Scope(), **run)})  # type: ignore[arg-type]
        fold = _time(lambda: {"segments": _fold(store)})
        figures |= {f"fold_{name}": value for name, value in fold.items()}
    store.close()
    return {**figures, "rss_mb": _read_peak_mb()}


def _read_peak_mb() -> int:
    """The largest resident set of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def _simulate(connection: Any, rater: Rater, progress: Callable[[int, int], None]) -> dict[str, Any]:
    sums = simulate(connection, rater, Scope(), progress).events.values()
    charge = sum(found.charge_attos for found in sums)
    return {"changed": sum(found.changed for found in sums), "charge": format_attos(charge)}


def _fold(store: SqliteStore) -> int:
    segments = 0
    while (found := store.read(prepare_fold)).segments:
        store.transact(lambda connection, found=found: save_fold(connection, found))  # type: ignore[misc]
        segments += found.segments
    return segments


def _time(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    started, cpu = time.perf_counter(), time.process_time()
    found = work()
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        **found,
    }


# --- The ledger ---------------------------------------------------------------------------------------------------


def make_ledger(folder: Path, records: int, per_segment: int) -> dict[str, Any]:
    """Write the segments, fold them; what the ledger takes on disk."""
    generator = np.random.default_rng(5)
    prices, bodies = _load_prices(Rater(CARDS["none"]))
    progress = show_progress("make")
    store = SqliteStore(folder)
    store.transact(lambda connection: save_price_versions(connection, bodies))
    segments = max(1, records // per_segment)
    for first in range(0, segments, SEGMENTS_AT_ONCE):
        made = [
            _build_segment(generator, prices, per_segment, number, segments)
            for number in range(first, min(first + SEGMENTS_AT_ONCE, segments))
        ]
        store.transact(lambda connection, made=made: _append(connection, made))  # type: ignore[misc]
        progress(min(first + SEGMENTS_AT_ONCE, segments), segments)
    _fold(store)
    size = store.size_bytes()
    store.close()
    return {"segments": segments, "ledger_bytes_per_record": size // (segments * per_segment)}


def _append(connection: Any, made: Sequence[tuple[Encoded, list[bytes]]]) -> None:
    for encoded, keys in made:
        segment_id = append_encoded(connection, encoded, encoded.ended_max)
        positions = np.repeat(np.arange(encoded.records), 2)
        days = {encoded.ended_min // DAY_NANOS, encoded.ended_max // DAY_NANOS}
        append_claims(connection, segment_id, keys, positions, days)


def _load_prices(rater: Rater) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """For each model (cost, charge) of an input and an output token, and the id of their price version."""
    found, bodies = [], {}
    for provider, model in MODELS:
        names = (provider, model, model, None)
        one, two = (
            rater.sum_plain({"input_tokens": asked, "output_tokens": answered, "requests": 1}, START, names, None, None)
            for asked, answered in ((1, 1), (2, 1))
        )
        assert one is not None, model
        assert two is not None, model
        asked = (two[0] - one[0], two[1] - one[1])
        found.append({
            "input": asked, "output": (one[0] - asked[0], one[1] - asked[1]), "version": one[2].version_id
        })  # fmt: skip
        bodies[one[2].version_id] = one[2].body
    return found, bodies


def _build_segment(
    generator: np.random.Generator, prices: Sequence[dict[str, Any]], count: int, number: int, segments: int
) -> tuple[Encoded, list[bytes]]:
    """A commit of calls that stand alone, and their claim keys."""
    begin = START + 30 * DAY_NANOS * number // segments
    ended = begin + np.sort(generator.integers(0, 30 * DAY_NANOS // segments, count))
    raw = generator.bytes(24 * count)
    traces = [raw[24 * row : 24 * row + 16] for row in range(count)]
    spans = [raw[24 * row + 16 : 24 * row + 24] for row in range(count)]
    events = [event.hex().encode() for event in derive_span_events(zip(traces, spans, strict=True))]
    responses = [f"chatcmpl-{event[:24].decode()}" for event in events]
    models = generator.integers(0, len(MODELS), count)
    asked, answered = generator.integers(50, 20_000, count), generator.integers(1, 2_000, count)
    customer = _choose(np.minimum(generator.zipf(1.3, count), CUSTOMERS) - 1, _CUSTOMER_NAMES)
    step = _choose(generator.integers(0, STEPS, count), [f"step-{item}" for item in range(STEPS)])
    said = [f'{{"input_tokens": "{one}", "output_tokens": "{two}", "requests": "1"}}'
            for one, two in zip(asked.tolist(), answered.tolist(), strict=True)]  # fmt: skip
    model = _choose(models, [name for _, name in MODELS])
    amounts = [
        sum(np.array([price[unit][side] for price in prices])[models] * tokens
            for unit, tokens in (("input", asked), ("output", answered)))
        for side in (0, 1)
    ]  # fmt: skip
    columns: dict[str, Any] = {
        "event_id": [event.decode() for event in events],
        "content": [span + span for span in spans],
        "received_nanos": ended + 2_000_000_000,
        "trace_id": traces,
        "span_id": spans,
        "started_nanos": ended - 1_500_000_000,
        "ended_nanos": ended,
        "provider": _choose(models, [provider for provider, _ in MODELS]),
        "model": model,
        "request_model": model,
        "response_id": responses,
        "span_customer_id": customer,
        "span_step": step,
        "span_quantities": said,
        "customer_id": customer,
        "step": step,
        "input_tokens": asked,
        "output_tokens": answered,
        "price_version": _choose(models, [price["version"] for price in prices]),
        "cost": _encode_amounts(amounts[0]),
        "charge": _encode_amounts(amounts[1]),
    }
    body = encode_batch(_build_batch(columns, count))
    keys = [key for trace, response in zip(traces, responses, strict=True)
            for key in (derive_trace_key(trace), derive_response_key(response))]  # fmt: skip
    return Encoded(body, int(ended[0]), int(ended[-1]), count), keys


_CUSTOMER_NAMES = [f"customer-{number:04d}" for number in range(CUSTOMERS)]
_SAME = {
    "revision": 0,
    "sign": 1,
    "parent_span_id": b"",
    "dialect": "gen_ai",
    "role": "call",
    "detail": 5,
    "operation": "chat",
    "failed": False,
    "span_billable": True,
    "span_reason": "provider_call",
    "span_usage_source": "reported",
    "span_caveats": [],
    "emitter": "opentelemetry.instrumentation.openai_v2",
    "service": "agents",
    "traits": [],
    "billable": True,
    "reason": "provider_call",
    "usage_source": "reported",
    "caveats": [],
    "winner_trace_id": b"",
    "winner_span_id": b"",
    "requests": 1,
    "rating": "rated",
    "currency": "USD",
}


def _choose(numbers: Any, values: Sequence[str]) -> pa.Array:
    return pa.array(values, type=pa.string()).take(pa.array(numbers))


def _encode_amounts(attos: Any) -> pa.Array:
    words = np.zeros((len(attos), 2), dtype=np.int64)
    words[:, 0] = attos
    return pa.Array.from_buffers(SCHEMA.field("cost").type, len(attos), [None, pa.py_buffer(words)])


def _build_batch(columns: dict[str, Any], count: int) -> pa.RecordBatch:
    arrays = {
        item.name: pa.array(columns[item.name])
        if item.name in columns
        else pa.array([_SAME[item.name]] * count, type=item.type)
        if item.name in _SAME
        else pa.nulls(count, item.type)
        for item in SCHEMA
    }
    return fit_columns(pa.table(arrays)).combine_chunks().to_batches()[0]


if __name__ == "__main__":
    main()
