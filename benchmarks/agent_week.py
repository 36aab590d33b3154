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
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.senders import Traffic, send_load
from benchmarks.sidecars import Sidecar, run_sidecar
from benchmarks.week_requests import CATALOGUE, WeekRequests
from benchmarks.week_shape import CUSTOMERS, HOUR_NANOS, MODELS, Chunk, Ints, Totals, Week
from otelbill_collector.testing.stripe_server import StripeServer

_TURNS = 30  # about 480 spans a request
_CHUNK_TURNS = 16 * _TURNS  # generated at once, for what a call costs
_CONNECTIONS = 16
_FOREVER = 86_400.0
_KINDS = ("calls", "prompt", "cached", "completion")


def measure_week(share: int) -> dict[str, object]:
    """Send the week and compare it everywhere."""
    totals = Totals().divide(share)
    with StripeServer() as stripe:
        with run_sidecar(settings=_build_settings(stripe)) as sidecar:
            sidecar.operate("stripe-apply")
            before, started = sidecar.read_cpu_seconds(), time.monotonic()
            sums, memory, load_cpu = _send_week(sidecar, totals)
            sent_seconds = time.monotonic() - started
            sidecar.await_idle()
            cpu, idle_seconds = sidecar.read_cpu_seconds() - before, time.monotonic() - started
            found = _read_ledger(sidecar)
            compared = time.monotonic()
            sidecar.operate("stripe-flush")
            flushed = time.monotonic()
            reconciled = bool(sidecar.operate("reconcile")["equal"])
            seconds = time.monotonic() - started
            peak = sidecar.process.read_peak_bytes()
        events = len(stripe.list_events())
    spans = totals.turns + totals.calls + totals.tools
    generated = {kind: int(sums[kind].sum()) for kind in _KINDS}
    return {
        "share": share,
        "spans": spans,
        "seconds_to_acknowledge": round(sent_seconds, 2),
        "seconds_until_idle": round(idle_seconds, 2),  # rollups and files made; a second of it is waiting to be sure
        "seconds_of_stripe_flush": round(flushed - compared, 2),
        "seconds_to_stripe": round(seconds, 2),
        "spans_per_second": round(spans / sent_seconds),
        "cpu_us_per_span": round(cpu / spans * 1e6, 1),
        "load_cpu_us_per_span": round(load_cpu / spans * 1e6, 2),
        "memory_mb": [round(memory[len(memory) * part // 5] / 1e6) for part in range(5)] + [round(memory[-1] / 1e6)],
        "memory_peak_mb": round(peak / 1e6),
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


class _Requests:
    """The week as requests, and what they sum to by model."""

    def __init__(self, totals: Totals) -> None:
        self.sums = {kind: np.zeros(MODELS, dtype=np.int64) for kind in _KINDS}
        self.count = 0
        self._bodies = self._make(totals)

    def take(self, _: int) -> bytes | None:
        """The next; None at the end of the week."""
        return next(self._bodies, None)

    def _make(self, totals: Totals) -> Iterator[bytes]:
        week, requests = Week(totals, time.time_ns() // HOUR_NANOS * HOUR_NANOS), WeekRequests()
        for number, first in enumerate(range(0, totals.turns, _CHUNK_TURNS)):
            chunk = week.make_chunk(first, min(first + _CHUNK_TURNS, totals.turns))
            _count_chunk(chunk, self.sums)
            for body in requests.encode(chunk, number, _TURNS):
                self.count += 1
                yield body


def _send_week(sidecar: Sidecar, totals: Totals) -> tuple[dict[str, Ints], list[int], float]:
    """What was sent by model, the resident bytes of the sidecar meanwhile, and the generator's CPU."""
    requests, memory = _Requests(totals), [sidecar.read_memory_bytes()]
    traffic = Traffic(connections=_CONNECTIONS, seconds=_FOREVER)
    sent = send_load(sidecar.http_port, requests, traffic, lambda _: memory.append(sidecar.read_memory_bytes()))
    if sent.failures or sent.requests != requests.count:
        raise RuntimeError(f"{sent.requests} of {requests.count} requests were acknowledged: {sent.failures}")
    return requests.sums, memory, sent.cpu_seconds


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
