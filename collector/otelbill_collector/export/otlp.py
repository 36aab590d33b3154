"""Every span onward to a tracing backend, with its cost on it. Owns the forwarding queue and the attribute names.

Forwarding is for people who look at traces; the bill does not depend on it. The queue is bounded: when the backend is
away for longer than the queue lasts, spans are counted as `overflow` and are missing there, never in the ledger.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx
import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otelbill_collector.decode.allowlist import filter_attribute, filter_resource, filter_text
from otelbill_collector.decode.redaction import build_any
from otelbill_collector.decode.spans import Value
from otelbill_collector.decode.wire import decode_value
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.records import UsageRecord

_log = logging.getLogger("otelbill.forward")

_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0)
_TIMEOUT_SECONDS = 10.0
_RETRYABLE = frozenset({408, 429, 502, 503, 504})

SpanKey = tuple[bytes, bytes]  # trace id, span id
Count = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """Where to, under which attribute names, and how many spans may wait."""

    endpoint: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    cost_names: tuple[str, ...] = ("otelbill",)
    queue_spans_max: int = 100_000


@dataclass(frozen=True, slots=True)
class _Parcel:
    body: bytes
    spans: int


class OtlpForwarder:
    """A bounded queue and one thread that empties it. `count` is told results: sent, overflow, rejected."""

    def __init__(self, settings: ForwardSettings, count: Count) -> None:
        self._settings = settings
        self._count = count
        self._queue: deque[_Parcel] = deque()
        self._waiting_spans = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="otelbill-forward", daemon=True)

    @property
    def waiting_spans(self) -> int:
        """Spans in the queue."""
        return self._waiting_spans

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def offer(self, body: bytes, booked: Mapping[SpanKey, UsageRecord]) -> None:
        """Queue one request's spans in their allow-listed form, those that are booked with their amounts."""
        try:
            request, spans = annotate_request(body, booked, self._settings.cost_names)
        except DecodeError:
            # The ledger decodes only what it asks for; the official schema wants every attribute whole.
            self._count("rejected", 1)
            _log.warning("a request with a broken attribute cannot be forwarded; its usage is booked")
            return
        with self._changed:
            if self._waiting_spans and self._waiting_spans + spans > self._settings.queue_spans_max:
                self._count("overflow", spans)
                return
            self._queue.append(_Parcel(request.SerializeToString(), spans))
            self._waiting_spans += spans
            self._changed.notify()

    def stop(self, drain_seconds: float = 5.0) -> None:
        """Send what waits for as long as `drain_seconds`, then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(drain_seconds)

    def _run(self) -> None:
        with httpx.Client(headers=dict(self._settings.headers), timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue or self._stopping)
                    if not self._queue:
                        return
                    parcel = self._queue[0]
                result = self._send(client, parcel)
                with self._changed:
                    self._queue.popleft()
                    self._waiting_spans -= parcel.spans
                self._count(result, parcel.spans)

    def _send(self, client: httpx.Client, parcel: _Parcel) -> str:
        attempt = 0
        while True:
            status = self._post(client, parcel.body)
            if status is not None and status < 300:
                return "sent"
            if status is not None and status not in _RETRYABLE:
                _log.error(
                    "%s answered %s to forwarded spans; they are not sent again", self._settings.endpoint, status
                )
                return "rejected"
            if attempt == 0:
                _log.warning("%s does not take forwarded spans (%s); retrying", self._settings.endpoint, status)
            if self._stopping and attempt >= 1:
                return "overflow"
            pause = _BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)]
            with self._changed:  # a stop ends the wait
                self._changed.wait_for(lambda: self._stopping, pause)
            attempt += 1

    def _post(self, client: httpx.Client, body: bytes) -> int | None:
        try:
            headers = {"content-type": "application/x-protobuf"}
            return client.post(self._settings.endpoint, content=body, headers=headers).status_code
        except httpx.HTTPError:
            return None


def annotate_request(
    body: bytes, booked: Mapping[SpanKey, UsageRecord], cost_names: Sequence[str]
) -> tuple[ExportTraceServiceRequest, int]:
    """(the request with allow-listed attributes only and amounts on booked spans, number of spans)."""
    request = ExportTraceServiceRequest.FromString(body)
    request.DiscardUnknownFields()  # what no list knows may hold anything
    count = 0
    for resource_spans in request.resource_spans:
        _keep(resource_spans.resource.attributes, filter_resource)
        resource_spans.schema_url = ""
        for scope_spans in resource_spans.scope_spans:
            del scope_spans.scope.attributes[:]
            scope_spans.scope.name = filter_text(scope_spans.scope.name, 128) or ""
            for span in scope_spans.spans:
                count += 1
                _redact(span)
                record = booked.get((span.trace_id, span.span_id))
                if record is not None:
                    span.attributes.extend(
                        KeyValue(key=key, value=build_any(value))
                        for key, value in render_amounts(record, cost_names).items()
                    )
    return request, count


def _redact(span: Span) -> None:
    _keep(span.attributes, filter_attribute)
    del span.events[:]
    for link in span.links:
        del link.attributes[:]
        link.trace_state = ""
    span.status.message = ""
    span.trace_state = ""
    span.name = filter_text(span.name, 128) or "span"


def _keep(attributes: object, keep: Callable[[str, Value], Value]) -> None:
    kept = []
    for attribute in attributes:  # type: ignore[attr-defined]  # a repeated field of KeyValue
        value = keep(attribute.key, decode_value(attribute.value.SerializeToString()))
        if value is not None:
            kept.append(KeyValue(key=attribute.key, value=build_any(value)))
    del attributes[:]  # type: ignore[attr-defined]
    attributes.extend(kept)  # type: ignore[attr-defined]


def render_amounts(record: UsageRecord, cost_names: Sequence[str]) -> dict[str, Value]:
    """The attributes that say what a span costs. Other tools' names get doubles; otelbill's own hold exact text."""
    amounts = record.amounts
    values: dict[str, Value] = {}
    if not record.decision.billable:
        return values
    cost = None if amounts.cost_attos is None else format_attos(amounts.cost_attos)
    charge = None if amounts.charge_attos is None else format_attos(amounts.charge_attos)
    if "otelbill" in cost_names:
        values |= {"otelbill.cost": cost, "otelbill.charge": charge, "otelbill.currency": amounts.currency}
        values |= {"otelbill.price.version": amounts.price_version}
    if cost is not None:
        if "gen_ai" in cost_names:
            values["gen_ai.usage.cost"] = float(cost)
        if "openinference" in cost_names:
            values["llm.cost.total"] = float(cost)
        if "langfuse" in cost_names:
            values["langfuse.observation.cost_details"] = orjson.dumps({"total": float(cost)}).decode()
    return {key: value for key, value in values.items() if value is not None}
