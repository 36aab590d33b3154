"""Ingest end to end: spans a second and CPU a span, from the socket to acknowledged, deduplicated, rated, rolled up.

A sidecar process on a fresh ledger, and this process as the load. Every answer means: fsync done. CPU is the sidecar's
alone (user and system, all threads, from /proc), until the rollups are folded. Medians over the runs.

    python -m benchmarks.ingest --json
    python -m benchmarks.ingest --base ../other-checkout     # paired with another checkout, alternating

"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.requests import Load
from benchmarks.senders import Traffic, send_load
from benchmarks.sidecars import REPOSITORY, run_sidecar


@dataclass(frozen=True, slots=True)
class Figures:
    """One run."""

    spans: int
    spans_per_second: float
    cpu_us_per_span: float
    ack_p50_ms: float
    ack_p99_ms: float
    load_cpu_us_per_span: float  # of the load generator, which shares the machine
    memory_mb: float


def main() -> None:
    """Measure and print."""
    options = _parse_options()
    load = Load(spans=options.spans, trace_spans=options.trace_spans, http_third=options.http_third)
    traffic = Traffic(options.protocol, options.gzip, options.connections, options.seconds, options.requests)
    sources = {"this": REPOSITORY} | ({"base": Path(options.base).resolve()} if options.base else {})
    runs: dict[str, list[Figures]] = {name: [] for name in sources}
    for _ in range(options.runs):
        for name, source in sources.items():
            runs[name].append(measure_ingest(load, traffic, source))
    result = {"conditions": _describe(options), **{name: _summarise(found) for name, found in runs.items()}}
    if options.json:
        print(json.dumps(result if options.base else {**result.pop("this"), **result}))
        return
    print(result["conditions"])
    for name in sources:
        print(f"{name}: " + ", ".join(f"{key} {value:,}" for key, value in result[name].items()))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--requests", type=int, help="most requests per connection")
    parser.add_argument("--spans", type=int, default=512, help="spans per request")
    parser.add_argument("--trace-spans", type=int, default=1, help="spans per trace")
    parser.add_argument("--http-third", action="store_true", help="every third span is a plain HTTP span")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--protocol", choices=("http", "grpc"), default="http")
    parser.add_argument("--gzip", action="store_true")
    parser.add_argument("--base", help="another checkout to measure in turn with this one")
    return parser.parse_args()


def measure_ingest(load: Load, traffic: Traffic, source: Path = REPOSITORY) -> Figures:
    """One run. Raises RuntimeError when the sidecar does not hold exactly what it acknowledged."""
    with run_sidecar(source) as sidecar:
        port = sidecar.grpc_port if traffic.protocol == "grpc" else sidecar.http_port
        send_load(port, load, Traffic(traffic.protocol, traffic.gzip, traffic.connections, 10.0, 2))  # warm up
        sidecar.await_idle()
        before = sidecar.read_cpu_seconds()
        known = sidecar.count_folded()
        sent = send_load(port, load, traffic)
        sidecar.await_idle()
        cpu = sidecar.read_cpu_seconds() - before
        memory = sidecar.read_memory_bytes()
        billable = load.spans - (load.spans // 3 if load.http_third else 0)
        if sent.failures or sidecar.count_folded() - known != sent.requests * billable:
            raise RuntimeError(f"acknowledged and stored differ, or requests failed: {sent.failures[:3]}")
    spans = sent.requests * load.spans
    latencies = sorted(sent.latencies)
    return Figures(
        spans=spans,
        spans_per_second=spans / sent.seconds,
        cpu_us_per_span=cpu / spans * 1e6,
        ack_p50_ms=latencies[len(latencies) // 2] * 1e3,
        ack_p99_ms=latencies[int(len(latencies) * 0.99)] * 1e3,
        load_cpu_us_per_span=sent.cpu_seconds / spans * 1e6,
        memory_mb=memory / 1e6,
    )


def _summarise(runs: list[Figures]) -> dict[str, float]:
    names = ("spans_per_second", "cpu_us_per_span", "ack_p50_ms", "ack_p99_ms", "load_cpu_us_per_span", "memory_mb")
    medians = {name: statistics.median(getattr(run, name) for run in runs) for name in names}
    medians["spans"] = sum(run.spans for run in runs)
    return {name: round(value) if value >= 1_000 else round(value, 2) for name, value in medians.items()}


def _describe(options: argparse.Namespace) -> dict[str, Any]:
    """The conditions, so that a figure never stands without them."""
    return {
        "protocol": f"OTLP/{options.protocol} protobuf" + (", gzip" if options.gzip else ""),
        "spans_per_request": options.spans,
        "attributes_per_span": 14,
        "spans_per_trace": options.trace_spans,
        "plain_http_spans": "a third" if options.http_third else "none",
        "connections": options.connections,
        "seconds": options.seconds,
        "runs": options.runs,
        "acknowledged": "after fsync; deduplicated, claimed and rated; CPU includes the fold into rollups",
    }


if __name__ == "__main__":
    main()
