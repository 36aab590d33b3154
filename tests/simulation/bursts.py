"""Bursts of requests against a sidecar that is killed, and an auditor who knows what each must have left behind.

A burst's spans end in a time slot of their own, so that what is stored of it can be asked for by itself.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.otlp_requests import NANOS, encode, make_chat, now_nanos
from tests.otlp_sender import Sender, order_with_repeats
from tests.sidecar_process import Json, Sidecar

BATCHES, SPANS, THREADS = 24, 15, 4
REPEATED_SHARE = 0.05
SLOT_NANOS = 20 * NANOS
CUSTOMERS = [f"customer{number}" for number in range(5)]


@dataclass(slots=True)
class Burst:
    """The requests of one burst, and which of them were acknowledged."""

    number: int
    bodies: list[bytes]
    waiting: list[int]  # places in `bodies`, with repeats, in the order of sending
    acknowledged: set[int] = field(default_factory=set)

    def run_id(self, batch: int) -> str:
        """The run that all spans of a batch carry, and no other."""
        return f"run-{self.number}-{batch}"


class Auditor:
    """Makes bursts from a random source, and keeps the sums of all that it made."""

    def __init__(self, chance: random.Random, *, bursts_max: int) -> None:
        self._chance = chance
        # Slots end in the past, so that no span is one of the future.
        self._began = (now_nanos() - (bursts_max + 10) * SLOT_NANOS) // NANOS * NANOS
        self._old: list[bytes] = []
        self.hours: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0, 0])
        self.spans = 0

    def make_burst(self, number: int) -> Burst:
        """The next burst: new requests, a share of them twice, and some of any age once more."""
        start, chance = self._began + number * SLOT_NANOS, self._chance
        burst = Burst(number, [], [])
        for batch in range(BATCHES):
            spans = [self._make_span(f"{number}/{batch}/{span}", start, burst.run_id(batch)) for span in range(SPANS)]
            burst.bodies.append(encode(*spans))
        order = order_with_repeats(BATCHES, REPEATED_SHARE, chance)
        if self._old:
            burst.bodies.append(chance.choice(self._old))
            order.insert(chance.randrange(len(order)), BATCHES)
        burst.waiting = order
        self._old.append(chance.choice(burst.bodies[:BATCHES]))
        return burst

    def _make_span(self, seed: str, start: int, run: str) -> Span:
        chance = self._chance
        customer, at = chance.choice(CUSTOMERS), start + chance.randrange(SLOT_NANOS)
        given, generated = chance.randint(1, 5000), chance.randint(1, 900)
        sums = self.hours[customer, at // (3600 * NANOS)]
        for place, value in enumerate((1, given, generated)):
            sums[place] += value
        self.spans += 1
        return make_chat(seed, customer, input_tokens=given, output_tokens=generated, at=at, otelbill__run__id=run)

    def load_stored(self, sidecar: Sidecar, burst: Burst) -> dict[str, int]:
        """Events that the ledger holds of a burst, by run."""
        start = self._began + burst.number * SLOT_NANOS
        window = f"from={_format(start)}&to={_format(start + SLOT_NANOS)}"
        rows: list[Json] = sidecar.usage(f"run&{window}")
        return {row["run"]: row["events"] for row in rows if row["run"].startswith(f"run-{burst.number}-")}

    def check_survivors(self, sidecar: Sidecar, burst: Burst) -> None:
        """After a kill, before anything is sent again: all that was acknowledged is there, whole and once."""
        stored = self.load_stored(sidecar, burst)
        assert set(stored.values()) <= {SPANS}, f"burst {burst.number}: a request is stored in part or twice: {stored}"
        lost = {burst.run_id(batch) for batch in burst.acknowledged if batch < BATCHES} - set(stored)
        assert not lost, f"burst {burst.number}: acknowledged and not stored: {sorted(lost)}"

    def check_whole(self, sidecar: Sidecar, burst: Burst) -> None:
        """When every request is acknowledged: each is stored once."""
        assert self.load_stored(sidecar, burst) == {burst.run_id(batch): SPANS for batch in range(BATCHES)}
        assert sum(row["events"] for row in sidecar.usage()) == self.spans

    def check_sums(self, sidecar: Sidecar) -> None:
        """Rollups and a full recount both have exactly what was made."""
        for by in ("customer", "customer,trace"):
            found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
            for row in sidecar.usage(by):
                counts = row["quantities"]
                for place, value in enumerate((row["events"], counts["input_tokens"], counts["output_tokens"])):
                    found[row["customer"]][place] += value
            assert found == self.sum_customers(), by

    def sum_customers(self) -> dict[str, list[int]]:
        """Events, input and output tokens that each customer must have."""
        sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for (customer, _), values in self.hours.items():
            for place, value in enumerate(values):
                sums[customer][place] += value
        return sums


def start_sending(sidecar: Sidecar, burst: Burst) -> Sender:
    """Send what waits, from several connections; every request again until it is acknowledged."""
    return Sender(sidecar.http_port).send_all(burst.bodies, burst.waiting, threads=THREADS)


def stop_sending(sender: Sender, burst: Burst) -> None:
    """Note what was acknowledged; the rest waits for the next start."""
    sender.stop()
    assert sender.refusals == []
    burst.acknowledged.update(sender.acknowledged)
    burst.waiting = [batch for batch in burst.waiting if batch not in burst.acknowledged]


def _format(nanos: int) -> str:
    return f"{datetime.fromtimestamp(nanos // NANOS, UTC):%Y-%m-%dT%H:%M:%SZ}"
