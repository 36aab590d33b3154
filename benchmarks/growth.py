"""A ledger that fills up: CPU a span at the beginning and at the end, memory, bytes, a kill, and what questions cost.

Spans are sent as fast as they are acknowledged until so many are stored. Then the sidecar is killed with SIGKILL and
started again, must hold exactly what it acknowledged, and is asked. Event times are those of sending or over `--days`.

    python -m benchmarks.growth --records 50000000 --json
    python -m benchmarks.growth --records 200000 --days 30

"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.ingest import add_load_options, build_load, build_traffic, describe_conditions
from benchmarks.progress import Progress
from benchmarks.requests import Load, Pool
from benchmarks.senders import Traffic, send_load
from benchmarks.sidecars import Sidecar, run_sidecar

_EARLY = 1_000_000  # stored spans where the first measure is taken; a fifth of all where that is less
_LEGS = 25
_FOREVER = 86_400.0
_DAY_NANOS = 86_400 * 10**9
_QUESTIONS = 20
_QUIET_SECONDS = 7.0  # after so long without anything new the sidecar has begun with what it puts off: Parquet, ids


@dataclass(frozen=True, slots=True)
class Point:
    """How it went while `stored` spans became that many."""

    stored: int
    spans_per_second: float
    cpu_us_per_span: float
    memory_mb: float
    disk_bytes_per_span: float


class Source:
    """Requests whose event times run over the days, and some identifiers of what was taken."""

    def __init__(self, load: Load, connections: int, records: int, days: float) -> None:
        self.taken = 0
        self.samples: list[tuple[str, str]] = []  # (trace id, customer)
        self.begin_nanos = time.time_ns() - int(days * _DAY_NANOS)
        self._load = load
        self._length = int(days * _DAY_NANOS)
        self._records = records
        self._every = max(1, records // load.spans // _QUESTIONS)
        self._pool = Pool(load, connections, clock=self._tell_time)

    def take(self, connection: int) -> memoryview:
        """The connection's next request."""
        body = self._pool.take(connection)
        if self.taken % self._every == 0:
            self.samples.append(_read_sample(body))
        self.taken += 1
        return body

    def _tell_time(self) -> int:
        if not self._length:
            return time.time_ns()
        return self.begin_nanos + self._length * min(self.taken * self._load.spans, self._records) // self._records


def _read_sample(body: memoryview) -> tuple[str, str]:
    span = ExportTraceServiceRequest.FromString(bytes(body)).resource_spans[0].scope_spans[0].spans[0]
    attributes = {pair.key: pair.value.string_value for pair in span.attributes}
    return span.trace_id.hex(), attributes["otelbill.customer.id"]


class Growth:
    """A sidecar, what it has acknowledged, and the points on the way."""

    def __init__(self, sidecar: Sidecar, source: Source, load: Load, traffic: Traffic, records: int) -> None:
        self.stored = 0
        self.points: list[Point] = []
        self._sidecar, self._source, self._load, self._traffic = sidecar, source, load, traffic
        self._progress = Progress(records, "spans")

    def fill(self, spans: int, *, settled: bool = False) -> Point:
        """Send so many more; `settled`: with nothing left to do before and after, so that all the CPU is theirs."""
        if settled:
            self._await_settled()
        requests, each = max(1, spans // self._load.spans), self._load.spans
        port = self._sidecar.grpc_port if self._traffic.protocol == "grpc" else self._sidecar.http_port
        before, begun = self._sidecar.read_cpu_seconds(), self.stored
        limit = Traffic(self._traffic.protocol, False, self._traffic.connections, _FOREVER, requests)
        sent = send_load(port, self._source, limit, lambda done: self._progress.show(begun + done * each))
        if sent.failures:
            raise RuntimeError(f"after {begun + sent.requests * each:,} spans: {sent.failures}")
        if settled:
            self._await_settled()
        count = sent.requests * each
        self.stored += count
        point = Point(
            stored=self.stored,
            spans_per_second=round(count / sent.seconds),
            cpu_us_per_span=round((self._sidecar.read_cpu_seconds() - before) / count * 1e6, 3),
            memory_mb=round(self._sidecar.read_memory_bytes() / 1e6, 1),
            disk_bytes_per_span=round(sum(measure_folder(self._sidecar.data_dir).values()) / self.stored, 1),
        )
        self.points.append(point)
        self._progress.show(self.stored)
        return point

    def _await_settled(self) -> None:
        """Wait until nothing is left to do, also of what waits for a pause."""
        self._sidecar.await_idle()
        time.sleep(_QUIET_SECONDS)
        self._sidecar.await_idle()


def measure_folder(folder: Path) -> dict[str, int]:
    """Bytes of what stands in a data folder, by the first name below it."""
    sizes: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).parts[0]
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    return sizes


def measure_growth(load: Load, traffic: Traffic, records: int, days: float) -> dict[str, Any]:
    """Fill, kill, start, ask. Raises RuntimeError when the ledger does not hold exactly what was acknowledged."""
    source = Source(load, traffic.connections, records, days)
    early, leg = min(_EARLY, records // 5), max(load.spans, records // _LEGS)
    with run_sidecar() as sidecar:
        growth = Growth(sidecar, source, load, traffic, records)
        growth.fill(early)
        first = growth.fill(leg, settled=True)
        while growth.stored < records - 2 * leg:
            growth.fill(leg)
        last = growth.fill(records - growth.stored, settled=True)
        peak, sizes = sidecar.process.read_peak_bytes(), measure_folder(sidecar.data_dir)
        sidecar.process.kill()
        started = time.monotonic()
        sidecar.start()
        ready = time.monotonic() - started
        events = sidecar.count_folded()
        if events * load.spans != growth.stored * load.billable:
            raise RuntimeError(f"{growth.stored} spans acknowledged, {events} events stored after the kill")
        sidecar.await_idle()
        questions = ask_sidecar(sidecar, source)
        again = sidecar.process.read_peak_bytes()
    return {
        "records": growth.stored,
        "stored_equals_acknowledged": True,
        "cpu_us_per_span_early": first.cpu_us_per_span,
        "cpu_us_per_span_late": last.cpu_us_per_span,
        "cpu_ratio": round(last.cpu_us_per_span / first.cpu_us_per_span, 3),
        "early_at": first.stored,
        "spans_per_second_early": first.spans_per_second,
        "spans_per_second_late": last.spans_per_second,
        "memory_peak_mb": round(peak / 1e6),
        "memory_peak_after_restart_mb": round(again / 1e6),
        "bytes_per_span": round(sum(sizes.values()) / growth.stored, 1),
        "bytes_per_span_by_name": {name: round(size / growth.stored, 1) for name, size in sorted(sizes.items())},
        "ready_after_kill_seconds": round(ready, 2),
        **questions,
        "points": [asdict(point) for point in growth.points],
    }


def ask_sidecar(sidecar: Sidecar, source: Source) -> dict[str, float]:
    """Questions to its API about what was sampled on the way; medians, by the clock here and the CPU there."""
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    since = min(month, datetime.fromtimestamp(source.begin_nanos / 1e9 - 60, UTC)).isoformat()
    samples = source.samples[:_QUESTIONS]
    records = [_find_record_id(sidecar.explain(trace)) for trace, _ in samples]

    def load_month(customer: str) -> None:
        rows = sidecar.load_usage("customer", customer=customer, **{"from": since})
        if len(rows) != 1:
            raise RuntimeError(f"no usage of {customer}")

    return {
        **_measure(sidecar, "month_to_date", load_month, [customer for _, customer in samples]),
        **_measure(sidecar, "month_to_date_largest", load_month, ["customer-0001"] * len(samples)),
        **_measure(sidecar, "explain_record", sidecar.explain, records),
        **_measure(sidecar, "explain_trace", sidecar.explain, [trace for trace, _ in samples]),
    }


def _find_record_id(found: Any) -> str:
    """The first record id anywhere in an explanation."""
    waiting = [found]
    while waiting:
        item = waiting.pop(0)
        if isinstance(item, dict):
            if isinstance(item.get("record_id"), str):
                return str(item["record_id"])
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    raise RuntimeError("an explanation names no record")


def _measure(sidecar: Sidecar, name: str, ask: Callable[[str], Any], of: Sequence[str]) -> dict[str, float]:
    walls, cpus = [], []
    for item in of:
        before, started = sidecar.read_cpu_seconds(), time.monotonic()
        ask(item)
        walls.append(time.monotonic() - started)
        cpus.append(sidecar.read_cpu_seconds() - before)
    return {
        f"{name}_ms": round(statistics.median(walls) * 1e3, 1),
        f"{name}_cpu_ms": round(statistics.median(cpus) * 1e3, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--records", type=int, default=50_000_000, help="spans to store")
    parser.add_argument("--days", type=float, default=0.0, help="days that event times run over; 0: those of sending")
    add_load_options(parser)
    options = parser.parse_args()
    load, traffic = build_load(options), build_traffic(options)
    result = measure_growth(load, traffic, options.records, options.days)
    conditions = describe_conditions(load, traffic, 1)
    conditions["event_times"] = f"over {options.days:g} days" if options.days else "of sending, up to 5 s before"
    conditions["seconds"] = "until all are stored"
    result["conditions"] = conditions
    if options.json:
        print(json.dumps(result))
        return
    del result["points"]
    print("\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
