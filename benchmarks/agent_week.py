"""A published week of coding agents into a sidecar: spans a second, CPU and memory, and whether calls arrived exactly.

    python -m benchmarks.agent_week --share 1000 --json

Compares calls in the ledger by its rollups; tokens and Stripe's sums are not compared here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from benchmarks.senders import Traffic, _connect
from benchmarks.sidecars import Sidecar, run_sidecar
from benchmarks.week_requests import WeekRequests
from benchmarks.week_shape import HOUR_NANOS, Totals, Week

_TURNS = 30  # about 480 spans a request


def measure_week(share: int) -> dict[str, object]:
    """Send the week; `calls_equal` says whether the ledger holds each call once."""
    totals = Totals().divide(share)
    with run_sidecar() as sidecar:
        before, started = sidecar.read_cpu_seconds(), time.monotonic()
        memory = _send_week(sidecar, totals)
        seconds = time.monotonic() - started
        sidecar.await_idle()
        cpu, events = sidecar.read_cpu_seconds() - before, sidecar.count_folded()
    spans = totals.turns + totals.calls + totals.tools
    return {
        "share": share,
        "spans": spans,
        "seconds": round(seconds, 2),
        "spans_per_second": round(spans / seconds),
        "cpu_us_per_span": round(cpu / spans * 1e6, 1),
        "memory_mb": [round(memory[at] / 1e6) for at in (0, len(memory) // 2, -1)],
        "calls": totals.calls,
        "events": events,
        "calls_equal": events == totals.calls,
    }


def _send_week(sidecar: Sidecar, totals: Totals) -> list[int]:
    """Resident bytes of the sidecar after each request."""
    week = Week(totals, time.time_ns() // HOUR_NANOS * HOUR_NANOS)
    requests, send = WeekRequests(), _connect(sidecar.http_port, Traffic())
    memory = []
    for number, first in enumerate(range(0, totals.turns, _TURNS)):
        chunk = week.make_chunk(first, min(first + _TURNS, totals.turns))
        send(memoryview(requests.encode(chunk, number)))
        memory.append(sidecar.read_memory_bytes())
    return memory


def main() -> None:
    """Measure and print; exit status 1 when calls differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=int, default=1, help="divide the week by this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure_week(options.share)
    print(json.dumps(figures) if options.json else "\n".join(f"{key}: {value}" for key, value in figures.items()))
    sys.exit(0 if figures["calls_equal"] else 1)


if __name__ == "__main__":
    main()
