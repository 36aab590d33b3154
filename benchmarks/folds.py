"""What is derived from segments beside ingest, CPU microseconds a record: rollups, open events, Stripe, credits, files.

Segments of 8,192 calls are written directly, with the names of `benchmarks.requests` (5,000 customers of very unequal
size, 20 steps, 12 models, 7 projects) drawn anew for every call, which is dearer than requests that repeat theirs.

    python -m benchmarks.folds --records 1000000 --json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.requests import CUSTOMERS, MODELS, STEPS
from otelbill_collector.domain.instants import HOUR_NANOS, NANOS, parse_instant
from otelbill_collector.ledger.compaction import Compactor, list_files
from otelbill_collector.ledger.credit_usage import fold_credit_usage
from otelbill_collector.ledger.folding import Folder
from otelbill_collector.ledger.journal import chain_digest
from otelbill_collector.ledger.meters import Metering, prepare_meters, save_meters
from otelbill_collector.ledger.openings import prepare_openings, save_openings
from otelbill_collector.ledger.packing import pack_batch, write_packed
from otelbill_collector.ledger.rollups import prepare_fold, save_fold
from otelbill_collector.ledger.segment_schema import SCHEMA
from otelbill_collector.ledger.sqlite import SqliteStore

START = parse_instant("2026-11-02T10:20:00Z")
SEGMENT_RECORDS = 8_192
RATE = 300_000  # records a second
PROJECTS = 7
_PARETO = 1.05
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
METERING = Metering(window_nanos=HOUR_NANOS, charge_meter="llm_charge")


def main() -> None:
    """Write a ledger, fold it part by part, compact it."""
    options = _parse_options()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        together, apart = (SqliteStore(Path(scratch) / name) for name in ("together", "apart"))
        figures = {"segment_records": options.rows, "each": options.each}
        figures |= measure_folds(together, apart, options)
        figures |= measure_files(together, figures["records"])
        figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        figures["load_average"] = os.getloadavg()[0]
        together.close()
        apart.close()
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<32} {value:>14,}")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=SEGMENT_RECORDS, help="records of a segment")
    parser.add_argument("--each", type=int, default=RATE, help="records that arrive between two folds")
    parser.add_argument("--folder", help="where the scratch ledger is made")
    return parser.parse_args()


class Writer:
    """Appends made-up segments to empty ledgers, as a load of RATE would."""

    def __init__(self, stores: Sequence[SqliteStore], rows: int) -> None:
        self._stores = stores
        self._rows = rows
        self._generator = np.random.default_rng(4)
        self._digest, self._last = bytes(32), 0

    def write(self, records: int) -> int:
        """Append so many records, in whole segments; returns how many they are."""
        count = max(1, records // self._rows)
        for _ in range(count):
            self._last += 1
            now = START + self._last * self._rows * NANOS // RATE
            ended = now - self._generator.integers(0, 5 * NANOS, self._rows)
            body = build_segment(self._generator, ended)
            self._digest = chain_digest(self._digest, body)
            row = (self._last, now, int(ended.min()), int(ended.max()), self._rows, self._digest, body)
            for store in self._stores:
                store.transact(partial(_insert, row=row))
        return count * self._rows


def _insert(connection: sqlite3.Connection, row: tuple[Any, ...]) -> None:
    connection.execute("INSERT INTO segment VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def build_segment(generator: np.random.Generator, ended: np.ndarray[Any, Any]) -> bytes:
    """A segment of calls that ended then, each alone in its trace."""
    count = len(ended)
    customer = np.minimum((1 - generator.random(count)) ** (-1 / _PARETO), CUSTOMERS).astype(np.int64)
    model = _choose([*MODELS], generator.integers(0, len(MODELS), count))
    given, made = generator.integers(16_384, 20_000, count), generator.integers(128, 2_048, count)
    attos = given * 150_000_000_000 + made * 600_000_000_000
    words = np.zeros((count, 2), dtype="<i8")
    words[:, 0] = attos
    amounts = pa.Array.from_buffers(pa.decimal128(38, 18), count, [None, pa.py_buffer(words.tobytes())])
    said = [
        f'{{"cache_read_tokens": "1024", "input_tokens": "{one}", "output_tokens": "{two}", "requests": "1"}}'
        for one, two in zip(given.tolist(), made.tolist(), strict=True)
    ]
    names = {
        "customer_id": _choose([f"customer-{number:04d}" for number in range(CUSTOMERS + 1)], customer),
        "project_id": _choose([f"project-{number}" for number in range(PROJECTS)], customer % PROJECTS),
        "step": _choose([f"step-{number:02d}" for number in range(STEPS)], generator.integers(0, STEPS, count)),
        "run_id": _choose([f"run-{generator.bytes(8).hex()}" for _ in range(512)], generator.integers(0, 512, count)),
    }
    fixed = {
        "revision": 0,
        "sign": 1,
        "winner_trace_id": b"",
        "winner_span_id": b"",
        "dialect": "gen_ai",
        "role": "call",
        "detail": 5,
        "provider": "openai",
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
        "cache_read_tokens": 1_024,
        "requests": 1,
        "rating": "rated",
        "price_version": "0123456789abcdef0123456789abcdef",
        "currency": "USD",
    }
    columns = {
        "event_id": _draw_hex(generator, count, 32),
        "record_id": _draw_hex(generator, count, 32),
        "content": _draw_bytes(generator, count, 16, pa.binary(16)),
        "received_nanos": pa.array(ended + NANOS),
        "trace_id": _draw_bytes(generator, count, 16, pa.binary()),
        "span_id": _draw_bytes(generator, count, 8, pa.binary()),
        "parent_span_id": _draw_bytes(generator, count, 8, pa.binary()),
        "started_nanos": pa.array(ended - 800_000_000),
        "ended_nanos": pa.array(ended),
        "response_id": _draw_hex(generator, count, 33),
        "model": model,
        "request_model": model,
        "span_quantities": pa.array(said),
        "input_tokens": pa.array(given),
        "output_tokens": pa.array(made),
        "cost": amounts,
        "charge": amounts,
        **names,
        **{f"span_{name}": column for name, column in names.items()},
    }
    columns |= {name: pa.repeat(pa.scalar(value, type=SCHEMA.field(name).type), count) for name, value in fixed.items()}
    arrays = [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in SCHEMA]
    return write_packed([pack_batch(pa.record_batch(arrays, schema=SCHEMA))])


def _choose(values: list[str], codes: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(values).take(pa.array(codes))


def _draw_hex(generator: np.random.Generator, count: int, length: int) -> pa.Array:
    text = _HEX[generator.integers(0, 16, count * length, dtype=np.uint8)]
    ends = np.arange(0, (count + 1) * length, length, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(ends), pa.py_buffer(text.tobytes())])


def _draw_bytes(generator: np.random.Generator, count: int, length: int, kind: pa.DataType) -> pa.Array:
    body = pa.py_buffer(generator.bytes(count * length))
    if pa.types.is_fixed_size_binary(kind):
        return pa.Array.from_buffers(kind, count, [None, body])
    ends = np.arange(0, (count + 1) * length, length, dtype=np.int32)
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(ends), body])


def measure_folds(together: SqliteStore, apart: SqliteStore, options: argparse.Namespace) -> dict[str, Any]:
    """CPU a record of folds, whenever `each` records came: all from one reading as in a sidecar, and each by itself."""
    writer, records = Writer((together, apart), options.rows), 0
    folds: dict[str, Callable[[], int]] = {
        "all_but_credits": Folder(together, METERING).fold,
        "rollups": lambda: _fold(apart, prepare_fold, save_fold),
        "openings": lambda: _fold(apart, prepare_openings, save_openings),
        "stripe": lambda: _fold(
            apart,
            lambda connection: prepare_meters(connection, METERING),
            lambda connection, found: save_meters(connection, METERING, found),
        ),
        "credits": lambda: apart.transact(fold_credit_usage)[0],
    }
    spent = dict.fromkeys(folds, 0.0)
    while records < options.records:
        records += writer.write(min(options.each, options.records - records))
        for name, fold in folds.items():
            spent[name] += _measure(fold)
    return {"records": records, **{f"{name}_us": round(cpu * 1e6 / records, 3) for name, cpu in spent.items()}}


def _fold(store: SqliteStore, prepare: Callable[[Any], Any], save: Callable[[Any, Any], int]) -> int:
    found = store.read(prepare)
    return store.transact(lambda connection: save(connection, found)) if found.segments else 0


def measure_files(store: SqliteStore, records: int) -> dict[str, Any]:
    """CPU a record of compaction, and of all merges after it."""
    compactor = Compactor(store)
    late = START + 60 * 24 * HOUR_NANOS

    def merge() -> int:
        before = [row.name for row in store.read(list_files)]
        compactor.run(late)
        return before != [row.name for row in store.read(list_files)]

    def compact() -> int:
        compactor.compact_all()
        return 0

    figures: dict[str, Any] = {
        f"{name}_us": round(_measure(step) * 1e6 / records, 3)
        for name, step in (("compact", compact), ("merge", merge))
    }
    files = store.read(list_files)
    figures["files"] = len(files)
    figures["files_bytes_a_record"] = round(sum(row.size_bytes for row in files) / records)
    figures["ledger_bytes_a_record"] = round(store.size_bytes() / records)
    return figures


def _measure(step: Callable[[], int]) -> float:
    """Seconds of CPU, all threads, of repeating a step until nothing is left."""
    before = time.process_time()
    while step():
        pass
    return time.process_time() - before


if __name__ == "__main__":
    main()
