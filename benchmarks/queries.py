"""Questions to a ledger with many records: month to date of one customer, explain, held, SQL. Medians in milliseconds.

Segments are written directly (made-up calls of 30 days, 2,000 a segment), then folded and compacted by the jobs of the
sidecar. In-process: what the API answers with, and what a command does after it has started.

    python -m benchmarks.queries --json
    python -m benchmarks.queries --records 5000000 --keep /tmp/ledger     # asks the same ledger again when it is there
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from otelbill_collector.domain.ids import derive_event_id, derive_record_id
from otelbill_collector.domain.instants import DAY_NANOS, parse_instant
from otelbill_collector.explanation import explain_identifier
from otelbill_collector.ledger.compaction import Compactor, list_files
from otelbill_collector.ledger.journal import chain_digest
from otelbill_collector.ledger.lineage import list_suspense, list_unsettled
from otelbill_collector.ledger.openings import fold_openings
from otelbill_collector.ledger.queries import QueryLimits, open_query
from otelbill_collector.ledger.rollups import UsageQuery, fold_rollups, load_usage
from otelbill_collector.ledger.segment_schema import SCHEMA
from otelbill_collector.ledger.sqlite import LEDGER_NAME, SqliteStore

START = parse_instant("2026-11-01")
SEGMENT_RECORDS = 2_000
CUSTOMERS, MODELS, STEPS = 1_000, 6, 5
OPEN_SHARE = 0.0005  # held, and as many without a customer
_AMOUNT = pa.decimal128(38, 18)


def main() -> None:
    """Make a ledger, or take the one that is there, and ask."""
    options = _parse_options()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.keep or scratch)
        figures: dict[str, Any] = {}
        if not (folder / LEDGER_NAME).is_file():
            figures |= make_ledger(folder, options.records)
        figures |= ask_ledger(folder, options.repeats)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<40} {value:>14,}")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=30, help="questions of each kind")
    parser.add_argument("--keep", help="folder of the ledger, which stays")
    return parser.parse_args()


def make_ledger(folder: Path, records: int) -> dict[str, Any]:
    """Write segments, fold and compact; how fast that was, and what it takes on disk."""
    store = SqliteStore(folder)
    generator = np.random.default_rng(4)
    digest, segments = bytes(32), max(1, records // SEGMENT_RECORDS)
    for first in range(1, segments + 1, 100):
        rows = []
        for segment_id in range(first, min(first + 100, segments + 1)):
            begin = START + 30 * DAY_NANOS * (segment_id - 1) // segments
            ended = begin + np.sort(generator.integers(0, 30 * DAY_NANOS // segments, SEGMENT_RECORDS))
            body = build_segment(generator, ended)
            digest = chain_digest(digest, body)
            booked = int(ended[-1])
            rows.append((segment_id, booked, int(ended[0]), int(ended[-1]), SEGMENT_RECORDS, digest, body))
        store.transact(lambda connection, rows=rows: _insert(connection, rows))  # type: ignore[misc]
    total = segments * SEGMENT_RECORDS
    compactor = Compactor(store)
    figures = {
        "records": total,
        "fold_rollups_records_per_second": _time_rate(total, lambda: _fold(store, fold_rollups)),
        "fold_openings_records_per_second": _time_rate(total, lambda: _fold(store, fold_openings)),
        "compact_records_per_second": _time_rate(total, compactor.compact_all),
        "merge_seconds": _time(lambda: _merge(compactor, store)),
    }
    compactor.sweep(0, -(2**62))
    store.close()
    return figures


def _insert(connection: Any, rows: Sequence[tuple[Any, ...]]) -> None:
    connection.executemany("INSERT INTO segment VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def _fold(store: SqliteStore, fold: Callable[[Any], int]) -> None:
    while store.transact(fold):
        pass


def _merge(compactor: Compactor, store: SqliteStore) -> None:
    """As the sidecar does until nothing is left to merge, a month later."""
    count = -1
    while count != (count := len(store.read(list_files))):
        compactor.run(START + 60 * DAY_NANOS)


def build_segment(generator: np.random.Generator, ended: np.ndarray[Any, Any]) -> bytes:
    """A segment of made-up calls that ended then: one trace each, forty to a run."""
    count = len(ended)
    traces = [generator.bytes(16) for _ in range(count)]
    spans = [generator.bytes(8) for _ in range(count)]
    events = [derive_event_id(trace, span, None) for trace, span in zip(traces, spans, strict=True)]
    customers = np.minimum(generator.zipf(1.3, count), CUSTOMERS)
    models = generator.integers(0, MODELS, count)
    chance = generator.random(count)
    tokens_in, tokens_out = generator.integers(50, 20_000, count), generator.integers(1, 2_000, count)
    held, nobody = chance < OPEN_SHARE, chance > 1 - OPEN_SHARE
    cost = [
        None if waits else int(given) * 150_000_000_000 + int(made) * 600_000_000_000
        for waits, given, made in zip(held, tokens_in, tokens_out, strict=True)
    ]
    customer_ids = [
        None if lost else f"customer-{number:04d}" for number, lost in zip(customers.tolist(), nobody, strict=True)
    ]
    columns: dict[str, Any] = {
        "event_id": events,
        "record_id": [derive_record_id(event, 0, "usage") for event in events],
        "revision": [0] * count,
        "sign": [1] * count,
        "content": [span + span for span in spans],
        "received_nanos": ended + 2_000_000_000,
        "trace_id": traces,
        "span_id": spans,
        "parent_span_id": [b""] * count,
        "started_nanos": ended - 1_500_000_000,
        "ended_nanos": ended,
        "dialect": ["gen_ai"] * count,
        "role": ["call"] * count,
        "detail": [5] * count,
        "provider": ["openai"] * count,
        "model": [f"model-{number}" for number in models],
        "request_model": [f"model-{number}" for number in models],
        "operation": ["chat"] * count,
        "response_id": [f"chatcmpl-{event[:24]}" for event in events],
        "failed": [False] * count,
        "span_customer_id": customer_ids,
        "span_billable": [True] * count,
        "span_reason": ["provider_call"] * count,
        "span_usage_source": ["unknown" if waits else "reported" for waits in held],
        "span_caveats": [[]] * count,
        "span_quantities": [
            f'{{"input_tokens": "{given}", "output_tokens": "{made}", "requests": "1"}}'
            for given, made in zip(tokens_in, tokens_out, strict=True)
        ],
        "emitter": ["opentelemetry.instrumentation.openai_v2"] * count,
        "service": ["agents"] * count,
        "traits": [[]] * count,
        "customer_id": customer_ids,
        "run_id": [f"run-{int(ended[0]) // 1_000_000:x}-{index // 40}" for index in range(count)],
        "step": [f"step-{number}" for number in generator.integers(0, STEPS, count)],
        "billable": [True] * count,
        "reason": ["provider_call"] * count,
        "usage_source": ["unknown" if waits else "reported" for waits in held],
        "caveats": [[]] * count,
        "winner_trace_id": [b""] * count,
        "winner_span_id": [b""] * count,
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "requests": [1] * count,
        "rating": ["held" if waits else "rated" for waits in held],
        "price_version": [None if waits else "0123456789abcdef" for waits in held],
        "currency": ["USD"] * count,
    }
    for name in ("cost", "charge"):
        columns[name] = pa.Array.from_buffers(
            _AMOUNT,
            count,
            [
                pa.array([amount is not None for amount in cost]).buffers()[1],
                pa.py_buffer(b"".join((amount or 0).to_bytes(16, "little", signed=True) for amount in cost)),
            ],
        )
    arrays = [
        pa.nulls(count, field.type) if field.name not in columns else _build(columns[field.name], field.type)
        for field in SCHEMA
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
    return bytes(sink.getvalue())


def _build(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, type=kind)


def ask_ledger(folder: Path, repeats: int) -> dict[str, Any]:
    """The same questions about customers and records taken at random; medians in milliseconds."""
    store = SqliteStore(folder, read_only=True)
    names = ("record_id", "event_id", "trace_id", "span_id", "response_id", "run_id")
    chosen = f"SELECT customer_id, {', '.join(names)} FROM records USING SAMPLE {repeats} ROWS"
    with open_query(store, chosen, QueryLimits(None, None)) as answer:
        samples = list(answer.rows)
    customers = [sample[0] or "customer-0001" for sample in samples]
    figures = {
        "total": store.read(
            lambda connection: connection.execute("SELECT sum(record_count) FROM segment").fetchone()[0]
        ),
        "ledger_bytes_per_record": 0,
        "files_bytes_per_record": 0,
        "files": len(store.read(list_files)),
        "load_average": os.getloadavg()[0],
    }
    files = store.read(list_files)
    figures["ledger_bytes_per_record"] = round(store.size_bytes() / figures["total"])
    figures["files_bytes_per_record"] = round(sum(row.size_bytes for row in files) / figures["total"])
    for name, customer in (("month_to_date_ms", None), ("month_to_date_largest_ms", "customer-0001")):
        figures |= _measure(
            name,
            [lambda key=customer or item: _load_month(store, key) for item in customers],  # type: ignore[misc]
        )
    for column, name in enumerate(names, start=1):
        ids = [sample[column] for sample in samples]
        figures |= _measure(
            f"explain_{name}_ms",
            [lambda key=key: store.read(lambda connection: explain_identifier(connection, key)) for key in ids],  # type: ignore[misc]
        )
    figures |= _measure("held_ms", [lambda: store.read(list_unsettled)] * 3)
    figures |= _measure("suspense_ms", [lambda: store.read(list_suspense)] * 3)
    customer = random.Random(1).choice(customers)
    for name, sql in _list_queries(customer).items():
        figures |= _measure(f"sql_{name}_ms", [lambda sql=sql: _run_query(store, sql)] * 5)  # type: ignore[misc]
    store.close()
    return figures


def _load_month(store: SqliteStore, customer: str) -> list[dict[str, Any]]:
    query = UsageQuery(("customer",), from_nanos=START, where={"customer": customer})
    rows = store.read(lambda connection: load_usage(connection, query))
    assert rows, customer
    return rows


def _list_queries(customer: str) -> dict[str, str]:
    month = "ended_at >= TIMESTAMP '2026-11-01'"
    return {
        "month_to_date": f"SELECT sum(charge) FROM usage WHERE customer_id = '{customer}' AND {month}",
        "month_by_sign": f"SELECT sum(sign * charge) FROM records WHERE customer_id = '{customer}' AND {month}",
        "hours_of_a_day": "SELECT date_trunc('hour', ended_at) h, sum(charge) FROM usage"
        " WHERE ended_at >= TIMESTAMP '2026-11-10' AND ended_at < TIMESTAMP '2026-11-11' GROUP BY h",
        "top_customers": "SELECT customer_id, sum(charge - cost) m FROM usage GROUP BY 1 ORDER BY m DESC LIMIT 10",
    }


def _run_query(store: SqliteStore, sql: str) -> None:
    with open_query(store, sql, QueryLimits(None, None)) as answer:
        assert list(answer.rows)


def _measure(name: str, questions: Sequence[Callable[[], Any]]) -> dict[str, float]:
    questions[0]()  # once for the pages that every question needs
    walls, cpus = [], []
    for question in questions:
        before = time.process_time()
        walls.append(_time(question))
        cpus.append(time.process_time() - before)
    # On a machine that others use, too, the CPU of all threads says more than the clock.
    return {name: round(statistics.median(walls) * 1e3, 1), f"{name}_cpu": round(statistics.median(cpus) * 1e3, 1)}


def _time(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _time_rate(count: int, work: Callable[[], Any]) -> int:
    return round(count / _time(work))


if __name__ == "__main__":
    main()
