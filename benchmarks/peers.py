"""Receivers side by side: otelbill, the OpenTelemetry Collector that writes a file, rotel that stores nothing.

In one run, by the same generator, on the same cores, in turn; medians over the runs. otelbill answers after the fsync
of spans that are deduplicated, claimed and rated. The Collector answers when they are in its file's buffer, not synced.

    python -m benchmarks.peers --json

"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.ingest import (
    Figures,
    add_load_options,
    build_load,
    build_traffic,
    describe_conditions,
    measure_ingest,
    rate_run,
    summarise_runs,
    warm_up,
)
from benchmarks.processes import Watched, find_free_ports
from benchmarks.programs import OTELCOL, OTELCOL_VERSION, ROTEL, ROTEL_VERSION
from benchmarks.requests import Pool
from benchmarks.senders import Traffic, send_load
from tests.e2e.programs.build import ProgramMissing, Recipe, require_recipe

_DOES = {
    "otelbill": "deduplicates, claims, rates, rolls up; fsync before the answer",
    "otelcol-file": f"Collector {OTELCOL_VERSION}: file exporter writes OTLP protobuf, no batching; no fsync",
    "rotel-blackhole": f"rotel {ROTEL_VERSION}: decodes and batches; stores nothing",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """A running receiver; `count_stored` says how many requests it has kept, None where it keeps none."""

    process: Watched
    ports: dict[str, int]
    count_stored: Callable[[], int] | None


def main() -> None:
    """Measure and print."""
    options = _parse_options()
    load, traffic = build_load(options), build_traffic(options)
    measures, missing = _list_measures(options.only)
    pool = Pool(load, traffic.connections)
    runs: dict[str, list[Figures]] = {name: [] for name in measures}
    for _ in range(options.runs):
        for name, measure in measures.items():
            runs[name].append(measure(pool, traffic))
    found: dict[str, Any] = {name: summarise_runs(items) | {"does": _DOES[name]} for name, items in runs.items()}
    conditions = describe_conditions(load, traffic, options.runs) | {"acknowledged": "as each of them does"}
    result = {"peers": found, "missing": missing, "conditions": conditions}
    print(json.dumps(result) if options.json else _render(result))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--only", choices=tuple(_DOES), action="append", help="leave the others out")
    add_load_options(parser)
    return parser.parse_args()


Measure = Callable[[Pool, Traffic], Figures]


def _list_measures(only: list[str] | None) -> tuple[dict[str, Measure], dict[str, str]]:
    """What can be measured here, and why the others cannot; programs are built before anything is measured."""
    measures: dict[str, Measure] = {}
    missing = {}
    starts: dict[str, tuple[Recipe, Callable[[Path, Path], Peer]]] = {
        "otelcol-file": (OTELCOL, _start_otelcol),
        "rotel-blackhole": (ROTEL, _start_rotel),
    }
    for name in only or _DOES:
        if name not in starts:
            measures[name] = measure_ingest
            continue
        recipe, start = starts[name]
        try:
            measures[name] = _bind(require_recipe(recipe), start)
        except ProgramMissing as reason:
            missing[name] = str(reason)
    return measures, missing


def _bind(program: Path, start: Callable[[Path, Path], Peer]) -> Measure:
    return lambda pool, traffic: measure_peer(lambda folder: start(program, folder), pool, traffic)


def measure_peer(start: Callable[[Path], Peer], pool: Pool, traffic: Traffic) -> Figures:
    """One run. Raises RuntimeError when a receiver that stores holds other than what it acknowledged."""
    with _run_peer(start) as peer:
        port = peer.ports[traffic.protocol]
        bodies = warm_up(port, pool, traffic)
        peer.process.await_idle()
        before, known = peer.process.read_cpu_seconds(), peer.count_stored() if peer.count_stored else 0
        sent = send_load(port, bodies, traffic)
        peer.process.await_idle()
        cpu, memory = peer.process.read_cpu_seconds() - before, peer.process.read_peak_bytes()
        stored = peer.count_stored() - known if peer.count_stored else sent.requests
    if sent.failures or stored != sent.requests:
        raise RuntimeError(f"{peer.process.name}: {sent.requests} acknowledged, {stored} stored; {sent.failures}")
    return rate_run(sent, pool.load.spans, cpu, memory)


@contextmanager
def _run_peer(start: Callable[[Path], Peer]) -> Iterator[Peer]:
    with TemporaryDirectory(prefix="otelbill-peer-") as folder:
        peer = start(Path(folder))
        try:
            for port in peer.ports.values():
                peer.process.await_port(port)
            yield peer
        finally:
            peer.process.terminate()


def _start_otelcol(program: Path, folder: Path) -> Peer:
    ports = dict(zip(("grpc", "http"), find_free_ports(2), strict=True))
    written = folder / "spans.pb"
    config = {
        "receivers": {"otlp": {"protocols": {name: {"endpoint": f"127.0.0.1:{port}"} for name, port in ports.items()}}},
        "exporters": {"file": {"path": str(written), "format": "proto"}},
        "service": {
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "error"}},
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
        },
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    process = Watched("otelcol", [str(program), "--config", f"file:{path}"], os.environ, folder)
    return Peer(process, ports, lambda: count_messages(written))


def count_messages(path: Path) -> int:
    """Requests in the Collector's file: each is a length of four bytes and so many bytes."""
    count = 0
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        while (head := file.read(4)) and len(head) == 4:
            if file.seek(int.from_bytes(head, "big"), os.SEEK_CUR) <= size:
                count += 1
    return count


def _start_rotel(program: Path, folder: Path) -> Peer:
    ports = dict(zip(("grpc", "http"), find_free_ports(2), strict=True))
    endpoints = [f"--otlp-{name}-endpoint=127.0.0.1:{port}" for name, port in ports.items()]
    process = Watched("rotel", [str(program), "start", "--exporter", "blackhole", *endpoints], os.environ, folder)
    return Peer(process, ports, None)


def _render(result: dict[str, Any]) -> str:
    lines = [f"{'':<16}{'spans/s':>10}{'CPU us/span':>13}{'cores':>7}{'p99 ms':>8}{'MB':>7}"]
    for name, row in result["peers"].items():
        lines.append(
            f"{name:<16}{row['spans_per_second']:>10,}{row['cpu_us_per_span']:>13}{row['cores']:>7}"
            f"{row['ack_p99_ms']:>8}{row['memory_mb']:>7}  {row['does']}"
        )
    lines += [f"{name}: not measured, {reason}" for name, reason in result["missing"].items()]
    return "\n".join([*lines, str(result["conditions"])])


if __name__ == "__main__":
    main()
