"""The sidecar's Prometheus metrics. Owns their names and labels; a customer is never a label.

Money and counts are exact in the ledger; a metric is a double, good for graphs and alerts and not for bills.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from otelbill_collector.domain.money import ATTOS_PER_UNIT
from otelbill_collector.domain.records import Answer, Receipt, UsageRecord
from otelbill_collector.domain.usage import Quantity, RatingState
from otelbill_collector.ledger.booking import Booking
from otelbill_collector.ledger.members import ColumnSingles, sum_rated
from otelbill_collector.ledger.sums import Sums

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter that nobody reads

_LABELS = ("step", "provider", "model")
# Steps and models come from outside: past this many combinations the rest is counted together as "other".
_SERIES_MAX = 2_000
_WAITING_SPANS_MAX = 100_000
_Totals = dict[tuple[Counter, tuple[str, ...]], Quantity]
BOUNDS = ("inflight_bytes", "sender_share", "body_seconds", "waiting_calls", "connections", "head_bytes")


@dataclass(frozen=True, slots=True)
class Levels:
    """What is read at each scrape: levels that others own."""

    inflight_bytes: int
    inflight_bytes_max: int
    connections: int
    connections_max: int
    waiting_calls: int
    waiting_calls_max: int
    dead_letters: int
    ledger_bytes: int
    ledger_free_bytes: int
    forward_queue_spans: int
    group_keys: int
    known_keys: int
    stripe_intents: Mapping[str, int]
    stripe_oldest_pending_seconds: float
    events: Mapping[str, int]


class SidecarMetrics:
    """Counters fed by the pipeline, and levels read at scrape time."""

    def __init__(self, load_levels: Callable[[], Levels]) -> None:
        self.registry = CollectorRegistry()
        self._series: set[tuple[str, ...]] = set()
        self.spans = Counter("otelbill_spans", "Spans by what became of them", ["result"], registry=self.registry)
        self.requests = Counter(
            "otelbill_requests", "Requests by protocol and answer", ["protocol", "code"], registry=self.registry
        )
        self.refusals = Counter(
            "otelbill_refusals", "Requests and connections refused at a bound", ["bound"], registry=self.registry
        )
        self.cost = Counter("otelbill_cost", "Provider cost booked", [*_LABELS, "currency"], registry=self.registry)
        self.charge = Counter(
            "otelbill_charge", "Customer charge booked", [*_LABELS, "currency"], registry=self.registry
        )
        self.usage = Counter("otelbill_usage", "Quantities booked", [*_LABELS, "unit"], registry=self.registry)
        self.reversed_charge = Counter(
            "otelbill_reversed_charge",
            "Customer charge taken back by reversals",
            [*_LABELS, "currency"],
            registry=self.registry,
        )
        self.commit_seconds = Histogram(
            "otelbill_commit_seconds",
            "Time to decode, book and fsync one batch",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            registry=self.registry,
        )
        self.forwarded = Counter(
            "otelbill_forward_spans", "Spans forwarded to the tracing backend", ["result"], registry=self.registry
        )
        info = Gauge("otelbill_build_info", "Version of the sidecar", ["version"], registry=self.registry)
        info.labels(_find_version()).set(1)
        for result in ("accepted", "duplicate", "rejected", "dead_lettered", "ignored"):
            self.spans.labels(result)
        for result in ("sent", "overflow", "rejected"):
            self.forwarded.labels(result)
        for bound in BOUNDS:
            self.refusals.labels(bound)
        self._lock = threading.Lock()
        self._waiting: list[ColumnSingles] = []  # booked, and not counted yet
        self._children: dict[tuple[Counter, tuple[str, ...]], Counter] = {}
        self.registry.register(_LevelCollector(load_levels))

    def count_request(self, protocol: str, code: str) -> None:
        """One answered request."""
        self.requests.labels(protocol, code).inc()

    def count_refusal(self, bound: str) -> None:
        """One request or connection that was told to come again because a bound was reached."""
        self.refusals.labels(bound).inc()

    def count_answers(self, answers: Iterable[Answer]) -> None:
        """What became of the spans of one batch."""
        for answer in answers:
            if isinstance(answer, Receipt):
                for result in ("accepted", "duplicate", "dead_lettered", "ignored"):
                    self.spans.labels(result).inc(getattr(answer, result))
            else:
                self.spans.labels("rejected").inc()

    def count_booking(self, booking: Booking) -> None:
        """Amounts and quantities of booked records, by step and model. Summed first: a counter is dear to touch."""
        sums: _Totals = defaultdict(int)
        for record in booking.decided:
            self._add_record(record, sums)
        if booking.singles is not None:
            self._add_rated(booking.singles.sum_rated(), sums)
        if booking.columns is not None:
            with self._lock:
                self._waiting.append(booking.columns)
                is_full = sum(map(len, self._waiting)) >= _WAITING_SPANS_MAX
            if is_full:
                self._sum_waiting(sums)
        self._count(sums)

    def _sum_waiting(self, sums: _Totals) -> None:
        """Add up what was booked by columns since the last time: many commits at once cost little more than one."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, batches in groupby(waiting, key=lambda batch: id(batch.rated.spans.names)):
            self._add_rated(sum_rated(list(batches)), sums)

    def _add_rated(self, rated: Mapping[tuple[str | None, ...], Sums], sums: _Totals) -> None:
        for (*names, currency), found in rated.items():
            labels = self._bound_labels(tuple([name or "" for name in names]))
            self._add_sums(labels, currency or "", found, sums)

    def _count(self, sums: _Totals) -> None:
        for (counter, values), total in sums.items():
            child = self._children.get((counter, values))
            if child is None:  # to look one up by its labels is dear; they are bounded as the series are
                child = self._children[counter, values] = counter.labels(*values)
            child.inc(float(total) if counter is self.usage else float(total / ATTOS_PER_UNIT))

    def _add_record(self, record: UsageRecord, sums: _Totals) -> None:
        if record.amounts.state is not RatingState.RATED:
            return
        labels = self._bound_labels(
            (record.decision.step or "", record.candidate.provider or "", record.candidate.model or "")
        )
        amounts, currency = record.amounts, record.amounts.currency or ""
        if record.sign < 0:
            sums[self.reversed_charge, (*labels, currency)] += amounts.charge_attos or 0
            return
        found = Sums(1, dict(record.decision.quantities), amounts.cost_attos or 0, amounts.charge_attos or 0)
        self._add_sums(labels, currency, found, sums)

    def _add_sums(self, labels: tuple[str, ...], currency: str, found: Sums, sums: _Totals) -> None:
        sums[self.cost, (*labels, "USD")] += found.cost_attos
        sums[self.charge, (*labels, currency)] += found.charge_attos
        for unit, quantity in found.quantities.items():
            if quantity:
                sums[self.usage, (*labels, unit)] += quantity

    def _bound_labels(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        if labels not in self._series:
            if len(self._series) >= _SERIES_MAX:
                return ("other",) * len(labels)
            self._series.add(labels)
        return labels

    def render(self) -> bytes:
        """The exposition text of one scrape."""
        sums: _Totals = defaultdict(int)
        self._sum_waiting(sums)
        self._count(sums)
        return generate_latest(self.registry)


class _LevelCollector(Collector):
    def __init__(self, load_levels: Callable[[], Levels]) -> None:
        self._load_levels = load_levels

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # names depend on nothing but `collect`; the ledger must not be read at registration

    def collect(self) -> Iterator[GaugeMetricFamily]:
        levels = self._load_levels()
        yield GaugeMetricFamily("otelbill_inflight_bytes", "Bytes under way", value=levels.inflight_bytes)
        yield GaugeMetricFamily("otelbill_inflight_bytes_max", "Bound of those", value=levels.inflight_bytes_max)
        yield GaugeMetricFamily("otelbill_connections", "Open OTLP/HTTP connections", value=levels.connections)
        yield GaugeMetricFamily("otelbill_connections_max", "Bound of those", value=levels.connections_max)
        yield GaugeMetricFamily("otelbill_waiting_calls", "gRPC calls not yet read", value=levels.waiting_calls)
        yield GaugeMetricFamily("otelbill_waiting_calls_max", "Bound of those", value=levels.waiting_calls_max)
        yield GaugeMetricFamily("otelbill_dead_letters", "Dead letters that wait", value=levels.dead_letters)
        yield GaugeMetricFamily("otelbill_ledger_bytes", "Bytes of the ledger on disk", value=levels.ledger_bytes)
        yield GaugeMetricFamily(
            "otelbill_ledger_free_bytes", "Of those, free for reuse", value=levels.ledger_free_bytes
        )
        yield GaugeMetricFamily("otelbill_group_keys", "Claim keys held in memory", value=levels.group_keys)
        yield GaugeMetricFamily("otelbill_known_keys", "Stored claim keys remembered", value=levels.known_keys)
        yield GaugeMetricFamily(
            "otelbill_forward_queue_spans", "Spans that wait to be forwarded", value=levels.forward_queue_spans
        )
        yield GaugeMetricFamily(
            "otelbill_stripe_oldest_pending_seconds",
            "Age of the oldest intent that is not delivered",
            value=levels.stripe_oldest_pending_seconds,
        )
        intents = GaugeMetricFamily("otelbill_stripe_intents", "Stripe intents by state", labels=["state"])
        for state, count in sorted(levels.stripe_intents.items()):
            intents.add_metric([state], count)
        yield intents
        events = GaugeMetricFamily("otelbill_events", "Events in the ledger by rating state", labels=["state"])
        for state, count in sorted(levels.events.items()):
            events.add_metric([state], count)
        yield events


def _find_version() -> str:
    try:
        return version("otelbill")
    except PackageNotFoundError:
        return "unknown"
