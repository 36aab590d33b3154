"""The path of one token count through the sidecar, top to bottom. Owns the order of the stages and nothing else.

wire bytes -> spans -> candidates -> bookings -> receipt. A batch is all requests that arrived during the last commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from otelbill_collector.decode.redaction import redact_span
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.decode.wire import MalformedRequest, decode_request
from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.records import Answer, DeadLetter, Receipt, Rejection
from otelbill_collector.domain.usage import Candidate, Problem
from otelbill_collector.ledger.booking import Outcome
from otelbill_collector.ledger.books import Books, Posted
from otelbill_collector.ledger.members import Member

EARLIEST_NANOS = 631_152_000 * 10**9  # 1990-01-01: an older event time is a broken clock, and would choose a price

INSTANT_MAX_NANOS = 2**63 - 1  # the wire has 64 bits without sign, the ledger's columns have one


@dataclass(frozen=True, slots=True)
class Request:
    """One ExportTraceServiceRequest in protobuf, and when it had been received."""

    body: bytes
    received_nanos: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request. `future_nanos`: how far ahead of the receiver's clock an event time may be."""

    spans_max: int
    attributes_max: int
    future_nanos: int


@dataclass(frozen=True, slots=True)
class Stages:
    """What the path runs through: selection, the open books, the limits."""

    select: Callable[[SpanView], Candidate | None]
    books: Books
    limits: Limits


@dataclass(frozen=True, slots=True)
class Selected:
    """What selection made of one request. Candidates and letters keep the order of their spans."""

    spans: int
    received_nanos: int
    candidates: tuple[tuple[SpanView, Candidate], ...]
    letters: tuple[DeadLetter, ...]


@dataclass(frozen=True, slots=True)
class Carried:
    """The answers in the order of the requests, and what was written."""

    answers: tuple[Answer, ...]
    posted: Posted | None
    spans: tuple[int, ...] = ()  # candidates of each request

    def list_members(self) -> Iterator[tuple[Member, ...]]:
        """Per request the booked spans, for forwarding them with their cost. Made when asked for."""
        members = iter(self.posted.booking.list_members() if self.posted is not None else ())
        for count in self.spans:
            yield tuple(islice(members, count))


def carry_batch(requests: Sequence[Request], stages: Stages, now_nanos: int) -> Carried:
    """Carry requests from wire bytes to the ledger in one transaction. Senders are answered when this has returned."""
    decoded = [_decode(request, stages.limits) for request in requests]  # malformed: its sender is told, others go on
    selected = [item if isinstance(item, Rejection) else _select(item, request, stages)
                for item, request in zip(decoded, requests, strict=True)]  # fmt: skip
    arrivals = [(candidate, item.received_nanos) for item in selected if isinstance(item, Selected)
                for _, candidate in item.candidates]  # fmt: skip
    letters = [letter for item in selected if isinstance(item, Selected) for letter in item.letters]
    posted = stages.books.post(arrivals, letters, now_nanos) if arrivals or letters else None  # durable from here on
    return _write_receipts(selected, posted, stages)


def _decode(request: Request, limits: Limits) -> list[SpanView] | Rejection:
    try:
        return decode_request(request.body, limits.spans_max)
    except MalformedRequest as error:
        return Rejection(str(error))


def _select(spans: Sequence[SpanView], request: Request, stages: Stages) -> Selected:
    candidates: list[tuple[SpanView, Candidate]] = []
    letters: list[DeadLetter] = []
    for span in spans:
        found = _select_span(span, request, stages)
        if isinstance(found, Problem):
            letters.append(bury_span(span, found, request.received_nanos))
        elif found is not None:
            candidates.append((span, found))
    return Selected(len(spans), request.received_nanos, tuple(candidates), tuple(letters))


def _select_span(span: SpanView, request: Request, stages: Stages) -> Candidate | Problem | None:
    """A candidate, a problem, or None for a span that says nothing of usage."""
    limit = stages.limits.attributes_max
    if span.count_attributes() > limit:
        return Problem(
            "too_many_attributes", "attributes", str(span.count_attributes()), f"send at most {limit} a span"
        )
    try:
        candidate = stages.select(span)
    except Exception as error:  # noqa: BLE001 a fault of ours must not lose a span: it is kept, with the fault's name
        return Problem("internal_error", "span", type(error).__name__, "upgrade otelbill, then replay the dead letter")
    if candidate is None:
        return None
    return (
        candidate.problem or _check_identity(candidate) or _check_time(candidate, request, stages.limits) or candidate
    )


def _check_identity(span: Candidate) -> Problem | None:
    for name, value, size in (("trace_id", span.trace_id, 16), ("span_id", span.span_id, 8)):
        if len(value) != size or not any(value):
            hint = f"OTLP wants {size} bytes that are not all zero"
            return Problem(f"invalid_{name}", name, value[:32].hex(), hint)
    if len(span.parent_span_id) not in (0, 8):
        hint = "OTLP wants 8 bytes, or none for a root span"
        return Problem("invalid_parent_span_id", "parent_span_id", span.parent_span_id[:32].hex(), hint)
    return None


def _check_time(span: Candidate, request: Request, limits: Limits) -> Problem | None:
    ended = span.ended_nanos
    if span.started_nanos > INSTANT_MAX_NANOS:
        hint = "set the clock of the sender: no instant is that late"
        return Problem("start_time_out_of_range", "start_time_unix_nano", str(span.started_nanos), hint)
    if ended < EARLIEST_NANOS:
        hint = "set the clock of the sender: the event time chooses the price"
        return Problem(
            "event_time_missing" if ended == 0 else "event_time_too_old", "end_time_unix_nano", str(ended), hint
        )
    if ended > request.received_nanos + limits.future_nanos:
        hint = f"more than {limits.future_nanos // 10**9} s ahead of the receiver; check the sender's clock"
        return Problem("event_time_in_future", "end_time_unix_nano", str(ended), hint)
    return None


def bury_span(span: SpanView, problem: Problem, received_nanos: int) -> DeadLetter:
    """The dead letter of a span: its allow-listed form with the reason. The same span and fault give the same id."""
    body = redact_span(span)
    return DeadLetter(
        letter_id=digest_parts("dead-letter", problem.code, problem.field, body).hex()[:32],
        received_nanos=received_nanos,
        code=problem.code,
        field=problem.field,
        value=problem.value,
        hint=problem.hint,
        trace_id=span.trace_id[:17],
        span_id=span.span_id[:9],
        body=body,
    )


_CONFLICT = Problem(
    "conflicting_replay",
    "span_id",
    "",
    "another span with the same id and other content is booked; two senders share an id, or one changed a sent span",
)
PRUNED = Problem(
    "evidence_pruned",
    "end_time_unix_nano",
    "",
    "evidence of its time, trace or event id was pruned by retention, so whether it is booked cannot be told; "
    "if it is not, send it as a new event of today",
)
_BURIED = {Outcome.CONFLICT: _CONFLICT, Outcome.PRUNED: PRUNED}


def _write_receipts(selected: Sequence[Selected | Rejection], posted: Posted | None, stages: Stages) -> Carried:
    """One answer per request, from the outcomes in order. What was not booked becomes dead letters of its own."""
    answers: list[Answer] = []
    outcomes = iter(posted.booking.outcomes if posted else ())
    kept = iter(posted.kept if posted else ())
    buried: list[DeadLetter] = []
    for item in selected:
        if isinstance(item, Rejection):
            answers.append(item)
            continue
        results = list(islice(outcomes, len(item.candidates)))
        if not _BURIED.keys().isdisjoint(results):
            buried.extend(
                bury_span(span, _BURIED[outcome], item.received_nanos)
                for (span, _), outcome in zip(item.candidates, results, strict=True)
                if outcome in _BURIED
            )
        new_letters = sum(islice(kept, len(item.letters)))
        answers.append(_count_receipt(item, results, new_letters))
    if buried:
        stages.books.post((), buried, buried[0].received_nanos)
    spans = tuple([0 if isinstance(item, Rejection) else len(item.candidates) for item in selected])
    return Carried(tuple(answers), posted, spans)


def _count_receipt(item: Selected, outcomes: Sequence[Outcome], new_letters: int) -> Receipt:
    buried = sum(map(outcomes.count, _BURIED))
    return Receipt(
        spans=item.spans,
        ignored=item.spans - len(item.candidates) - len(item.letters),
        accepted=outcomes.count(Outcome.ACCEPTED),
        duplicate=outcomes.count(Outcome.DUPLICATE) + len(item.letters) - new_letters,
        dead_lettered=buried + new_letters,
    )
