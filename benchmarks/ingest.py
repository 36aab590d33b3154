"""Ingest end to end: spans a second and CPU a span, from the socket to acknowledged, deduplicated, rated, rolled up.

A sidecar process on a fresh ledger, and this process as the load. Every answer means: fsync done. CPU is the sidecar's
alone (user and system, all threads), until the rollups are folded. Medians over the runs.

    python -m benchmarks.ingest --json
    python -m benchmarks.ingest --rate 100000                # paced: latency, and the share of a core
    python -m benchmarks.ingest --base ../other-checkout     # paired with another checkout, alternating

"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.packed import GZIP_LEVEL, Packed
from benchmarks.requests import CUSTOMERS, STEPS, Load, Pool
from benchmarks.senders import Bodies, Sent, Traffic, send_load
from benchmarks.sidecars import REPOSITORY, run_sidecar

_WARM_SECONDS = 1.0
_SPARE = 1.5  # prepared requests, as a multiple of what the warm-up's rate needs


@dataclass(frozen=True, slots=True)
class Figures:
    """One run, or the medians of several."""

    spans: float
    seconds: float
    spans_per_second: float
    cpu_us_per_span: float
    cores: float  # the sidecar's CPU until all is folded, by the seconds of sending
    ack_p50_ms: float
    ack_p99_ms: float
    load_cpu_us_per_span: float  # of the load generator, which shares the machine
    memory_mb: float


def main() -> None:
    """Measure and print."""
    options = parse_options()
    load, traffic = build_load(options), build_traffic(options)
    sources = {"this": REPOSITORY} | ({"base": Path(options.base).resolve()} if options.base else {})
    runs: dict[str, list[Figures]] = {name: [] for name in sources}
    pool = Pool(load, traffic.connections)
    for _ in range(options.runs):
        for name, source in sources.items():
            runs[name].append(measure_ingest(pool, traffic, source))
    result = {name: summarise_runs(found) for name, found in runs.items()}
    conditions = {"conditions": describe_conditions(load, traffic, options.runs)}
    if options.json:
        print(json.dumps((result if options.base else result["this"]) | conditions))
        return
    print(conditions["conditions"])
    for name in sources:
        print(f"{name}: " + ", ".join(f"{key} {value:,}" for key, value in result[name].items()))


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--base", help="another checkout to measure in turn with this one")
    parser.add_argument("--rate", type=int, help="spans a second, instead of as many as are acknowledged")
    add_load_options(parser)
    return parser.parse_args(arguments)


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what is sent, and how."""
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--requests", type=int, help="most requests of a run")
    parser.add_argument("--spans", type=int, default=512, help="spans per request")
    parser.add_argument("--trace-spans", type=int, default=1, help="spans per trace")
    parser.add_argument("--http-third", action="store_true", help="every third span is a plain HTTP span")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--protocol", choices=("http", "grpc"), default="http")
    parser.add_argument("--gzip", action="store_true")


def build_load(options: argparse.Namespace) -> Load:
    """What a request holds."""
    return Load(spans=options.spans, trace_spans=options.trace_spans, http_third=options.http_third)


def build_traffic(options: argparse.Namespace) -> Traffic:
    """How it is sent."""
    rate = getattr(options, "rate", None)
    return Traffic(
        protocol=options.protocol,
        gzip=options.gzip,
        connections=options.connections,
        seconds=options.seconds,
        requests_max=options.requests,
        rate=rate / options.spans if rate else None,
    )


def measure_ingest(pool: Pool, traffic: Traffic, source: Path = REPOSITORY) -> Figures:
    """One run. Raises RuntimeError when the sidecar does not hold exactly what it acknowledged."""
    with run_sidecar(source) as sidecar:
        port = sidecar.grpc_port if traffic.protocol == "grpc" else sidecar.http_port
        bodies = warm_up(port, pool, traffic)
        sidecar.await_idle()
        before = sidecar.read_cpu_seconds()
        known = sidecar.count_folded()
        sent = send_load(port, bodies, traffic)
        sidecar.await_idle()
        cpu = sidecar.read_cpu_seconds() - before
        memory = sidecar.process.read_peak_bytes()
        stored = sidecar.count_folded() - known
    if sent.failures or stored != sent.requests * pool.load.billable:
        raise RuntimeError(f"acknowledged {sent.requests} requests, stored {stored} events; failed: {sent.failures}")
    return rate_run(sent, pool.load.spans, cpu, memory)


def warm_up(port: int, pool: Pool, traffic: Traffic) -> Bodies:
    """Send for a second, and prepare what the run will take."""
    bodies: Bodies = Packed(pool, 4 * traffic.connections) if traffic.gzip else pool
    sent = send_load(port, bodies, replace(traffic, seconds=_WARM_SECONDS, requests_max=None, rate=None))
    if sent.failures or not sent.requests:
        raise RuntimeError(f"the receiver does not answer: {sent.failures}")
    if not traffic.gzip:
        return pool
    rate = traffic.rate or sent.requests / sent.seconds
    return Packed(pool, int(_SPARE * rate * traffic.seconds) + 4 * traffic.connections)


def rate_run(sent: Sent, spans_per_request: int, cpu_seconds: float, memory_bytes: int) -> Figures:
    """The figures of a run that took so much of the receiver."""
    spans = sent.requests * spans_per_request
    latencies = sorted(sent.latencies)
    return Figures(
        spans=spans,
        seconds=sent.seconds,
        spans_per_second=spans / sent.seconds,
        cpu_us_per_span=cpu_seconds / spans * 1e6,
        cores=cpu_seconds / sent.seconds,
        ack_p50_ms=latencies[len(latencies) // 2] * 1e3,
        ack_p99_ms=latencies[int(len(latencies) * 0.99)] * 1e3,
        load_cpu_us_per_span=sent.cpu_seconds / spans * 1e6,
        memory_mb=memory_bytes / 1e6,
    )


def summarise_runs(runs: Sequence[Figures]) -> dict[str, float | list[float]]:
    """Medians; all rates beside them, and the spans of all runs together."""
    medians: dict[str, float] = {
        item.name: statistics.median(getattr(run, item.name) for run in runs) for item in fields(Figures)
    }
    medians["spans"] = sum(run.spans for run in runs)
    rounded: dict[str, float | list[float]] = {
        name: round(value) if value >= 1_000 else round(value, 2) for name, value in medians.items()
    }
    return rounded | {"spans_per_second_of_runs": [round(run.spans_per_second) for run in runs]}


def describe_conditions(load: Load, traffic: Traffic, runs: int) -> dict[str, Any]:
    """The conditions, so that a figure never stands without them."""
    rate = "as fast as they are acknowledged" if traffic.rate is None else f"{traffic.rate * load.spans:.0f} spans/s"
    return {
        "protocol": f"OTLP/{traffic.protocol} protobuf"
        + (f", gzip level {GZIP_LEVEL}, compressed before the run" if traffic.gzip else ""),
        "spans_per_request": load.spans,
        "attributes_per_span": 14,
        "spans_per_trace": load.trace_spans,
        "plain_http_spans": "a third" if load.http_third else "none",
        "customers": f"{CUSTOMERS}, Zipf; {STEPS} steps",
        "new_in_each_span": "trace, span and response id, times, token counts",
        "connections": traffic.connections,
        "sent": rate + (", late from when they were due" if traffic.rate else ""),
        "seconds": traffic.seconds,
        "runs": runs,
        "load_generator": "one thread, on the same machine",
        "acknowledged": "after fsync; deduplicated, claimed and rated; CPU includes the fold into rollups",
    }


if __name__ == "__main__":
    main()
