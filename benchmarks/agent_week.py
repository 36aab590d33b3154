"""A published week of coding agents, rated and sent on to a local Stripe: is every total exact, and how fast is it?

    python -m benchmarks.agent_week --share 1000 --json

Exit status 1 unless calls and tokens, by model too, are in the ledger as they were generated, all of it is rated, and
the ledger and Stripe are equal. `--share N` divides the week; everything is compared at any share.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from typing import Any

import numpy as np

from benchmarks.senders import Traffic, connect
from benchmarks.sidecars import Sidecar, run_sidecar
from benchmarks.week_requests import CATALOGUE, WeekRequests
from benchmarks.week_shape import CUSTOMERS, HOUR_NANOS, MODELS, Chunk, Ints, Totals, Week
from otelbill_collector.testing.stripe_server import StripeServer

_TURNS = 30  # about 480 spans a request
_KINDS = ("calls", "prompt", "cached", "completion")


def measure_week(share: int) -> dict[str, object]:
    """Send the week and compare it everywhere."""
    totals = Totals().divide(share)
    with StripeServer() as stripe:
        with run_sidecar(settings=_build_settings(stripe)) as sidecar:
            sidecar.operate("stripe-apply")
            before, started = sidecar.read_cpu_seconds(), time.monotonic()
            sums, memory = _send_week(sidecar, totals)
            sent_seconds = time.monotonic() - started
            sidecar.await_idle()
            cpu, found = sidecar.read_cpu_seconds() - before, _read_ledger(sidecar)
            sidecar.operate("stripe-flush")
            reconciled = bool(sidecar.operate("reconcile")["equal"])
            seconds = time.monotonic() - started
        events = len(stripe.list_events())
    spans = totals.turns + totals.calls + totals.tools
    generated = {kind: int(sums[kind].sum()) for kind in _KINDS}
    return {
        "share": share,
        "spans": spans,
        "seconds_to_acknowledge": round(sent_seconds, 2),
        "seconds_to_stripe": round(seconds, 2),
        "spans_per_second": round(spans / sent_seconds),
        "cpu_us_per_span": round(cpu / spans * 1e6, 1),
        "memory_mb": [round(memory[at] / 1e6) for at in (0, len(memory) // 2, -1)],
        "generator_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "totals": generated,
        "totals_as_published": generated == {kind: getattr(totals, kind) for kind in _KINDS},
        "ledger_equal": all(np.array_equal(found[kind], sums[kind]) for kind in _KINDS),
        "not_rated": int(found["not_rated"].sum()),
        "stripe_events": events,
        "stripe_equal": reconciled,
    }


def _build_settings(stripe: StripeServer) -> dict[str, Any]:
    customers = {f"customer-{number:04d}": f"cus_week{number:04d}" for number in range(CUSTOMERS)}
    for name in customers.values():
        stripe.add_customer(name)
    account = {"api_key": "sk_test_week", "api_base": stripe.base_url, "window": "1h", "rate_per_second": 10_000}
    return {"stripe": account, "customers": {name: {"stripe": found} for name, found in customers.items()}}


def _send_week(sidecar: Sidecar, totals: Totals) -> tuple[dict[str, Ints], list[int]]:
    """What was sent by model, and the resident bytes of the sidecar after each request."""
    week = Week(totals, time.time_ns() // HOUR_NANOS * HOUR_NANOS)
    requests, send = WeekRequests(), connect(sidecar.http_port, Traffic())
    sums = {kind: np.zeros(MODELS, dtype=np.int64) for kind in _KINDS}
    memory = []
    for number, first in enumerate(range(0, totals.turns, _TURNS)):
        chunk = week.make_chunk(first, min(first + _TURNS, totals.turns))
        send(memoryview(requests.encode(chunk, number)))
        _count_chunk(chunk, sums)
        memory.append(sidecar.read_memory_bytes())
    return sums, memory


def _count_chunk(chunk: Chunk, sums: dict[str, Ints]) -> None:
    model = chunk.model[chunk.call_turn]
    sums["calls"] += np.bincount(model, minlength=MODELS)
    for kind in _KINDS[1:]:
        np.add.at(sums[kind], model, getattr(chunk, kind))


def _read_ledger(sidecar: Sidecar) -> dict[str, Ints]:
    """The same from the ledger, and how many calls of each model are not rated."""
    names = {name: place for place, (_, name) in enumerate(CATALOGUE)}
    found = {kind: np.zeros(MODELS, dtype=np.int64) for kind in (*_KINDS, "not_rated")}
    for row in sidecar.load_usage("model"):
        place, used = names[row["model"]], row["quantities"]
        found["calls"][place] += row["events"]
        found["prompt"][place] += used.get("input_tokens", 0) + used.get("cache_read_tokens", 0)
        found["cached"][place] += used.get("cache_read_tokens", 0)
        found["completion"][place] += used.get("output_tokens", 0)
        found["not_rated"][place] += row["unpriced"] + row["held"]
    return found


def main() -> None:
    """Measure and print; exit status 1 when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=int, default=1, help="divide the week by this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure_week(options.share)
    print(json.dumps(figures) if options.json else "\n".join(f"{key}: {value}" for key, value in figures.items()))
    exact = figures["totals_as_published"] and figures["ledger_equal"] and figures["stripe_equal"]
    sys.exit(0 if exact and not figures["not_rated"] else 1)


if __name__ == "__main__":
    main()
