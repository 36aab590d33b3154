"""The path of one token count through the sidecar, top to bottom. Owns the order of the stages and nothing else.

wire bytes -> spans -> candidates -> bookings -> receipt. A batch is all requests that arrived during the last commit;
it is read, which asks no ledger, while the one before it is booked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from otelbill_collector.decode.redaction import redact_span
from otelbill_collector.decode.scanner import Scanner
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.decode.wire import MalformedRequest, decode_request
from otelbill_collector.domain.identified_columns import IdentifiedColumns, join_identified
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
    """What the path runs through: selection, the open books, the limits; `scanner` reads what the rules have read
    before, into columns. It is for one thread alone: others go without.
    """

    select: Callable[[SpanView], Candidate | None]
    books: Books
    limits: Limits
    scanner: Scanner | None = None


@dataclass(frozen=True, slots=True)
class Selected:
    """What selection made of one request: spans in columns, and others as candidates and letters in their order."""

    spans: int
    received_nanos: int
    candidates: tuple[tuple[SpanView, Candidate], ...]
    letters: tuple[DeadLetter, ...]
    in_columns: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests, what was read of each, and the spans in columns of all of them."""

    requests: Sequence[Request]
    items: Sequence[Selected | Rejection]
    columns: IdentifiedColumns | None = None


@dataclass(frozen=True, slots=True)
class Carried:
    """The answers in the order of the requests, and what was written."""

    answers: tuple[Answer, ...]
    posted: Posted | None
    spans: tuple[int, ...] = ()  # candidates of each request

    def list_members(self) -> Iterator[tuple[Member, ...]]:
        """Per request the booked spans, for forwarding them with their cost. Made when asked for."""
        if self.posted is None:
            yield from ((),) * len(self.spans)
            return
        booking = self.posted.booking
        members = iter(booking.list_members())
        heads = [list(islice(members, count)) for count in self.spans]
        for request, member in zip(booking.rest_requests, members, strict=True):
            heads[request].append(member)
        if booking.columns is not None:
            for row, request in enumerate(booking.columns.list_requests()):
                heads[request].append(booking.columns.find_member(row))
        yield from map(tuple, heads)


def carry_batch(requests: Sequence[Request], stages: Stages, now_nanos: int) -> Carried:
    """Carry requests from wire bytes to the ledger in one transaction. Senders are answered when this has returned."""
    return book_batch(read_batch(requests, stages), stages, now_nanos)


def read_batch(requests: Sequence[Request], stages: Stages) -> Batch:
    """What the requests say. Asks no ledger: the next batch may be read while one is booked."""
    return _scan(requests, stages) if stages.scanner else _read(requests, stages)


def join_batches(batches: Sequence[Batch]) -> list[Batch]:
    """The same requests in as few batches as may be: columns go together while codes mean the same in them."""
    joined: list[list[Batch]] = []
    last: IdentifiedColumns | None = None
    for batch in batches:
        if not joined or (last is not None and batch.columns is not None and not last.goes_with(batch.columns)):
            joined.append([])
        joined[-1].append(batch)
        last = batch.columns or last
    return list(map(_join, joined))


def _join(batches: Sequence[Batch]) -> Batch:
    parts: list[IdentifiedColumns] = []
    before = 0
    for batch in batches:
        if batch.columns is not None:
            if before:
                batch.columns.spans.request += before  # the number of its request in the whole
            parts.append(batch.columns)
        before += len(batch.requests)
    requests = [request for batch in batches for request in batch.requests]
    items = [item for batch in batches for item in batch.items]
    return Batch(requests, items, join_identified(parts) if parts else None)


def book_batch(batch: Batch, stages: Stages, now_nanos: int) -> Carried:
    """Book what was read in one transaction. Senders are answered when this has returned."""
    taken = [item for item in batch.items if isinstance(item, Selected)]  # of the others the senders are told
    arrivals = [(candidate, item.received_nanos) for item in taken for _, candidate in item.candidates]
    letters = [letter for item in taken for letter in item.letters]
    posted = None
    if arrivals or letters or batch.columns:
        posted = stages.books.post(arrivals, letters, now_nanos, batch.columns)  # durable from here on
    return _write_receipts(batch, posted, stages)


def _read(requests: Sequence[Request], stages: Stages) -> Batch:
    """All spans one by one, by the rules and what is remembered of them."""
    return Batch(requests, [_read_request(request, stages) for request in requests])


def _scan(requests: Sequence[Request], stages: Stages) -> Batch:
    """Spans like earlier ones in columns; what is left is read as above, and known from then on."""
    scanner, limits = stages.scanner, stages.limits
    assert scanner is not None  # who calls asked
    scanned = scanner.scan(
        [request.body for request in requests],
        [request.received_nanos for request in requests],
        spans_max=limits.spans_max,
        attributes_max=limits.attributes_max,
        earliest_nanos=EARLIEST_NANOS,
        future_nanos=limits.future_nanos,
    )
    rows = np.bincount(scanned.columns.request, minlength=len(requests)).tolist()
    whole = frozenset(scanned.whole)
    rest: dict[int, Sequence[SpanView]] = {}
    items: list[Selected | Rejection] = []
    for number, request in enumerate(requests):
        if number in whole:
            items.append(_read_request(request, stages))
            continue
        views = rest[number] = decode_request(scanned.rest[number]) if number in scanned.rest else ()
        item = _select(views, request, stages)
        items.append(replace(item, spans=int(scanned.spans[number]), in_columns=rows[number]))
    scanner.learn(scanned, rest)
    return Batch(requests, items, stages.books.identify(scanned.columns) if len(scanned.columns) else None)


def _read_request(request: Request, stages: Stages) -> Selected | Rejection:
    try:
        spans = decode_request(request.body, stages.limits.spans_max)
    except MalformedRequest as error:
        return Rejection(str(error))
    return _select(spans, request, stages)


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


def _write_receipts(batch: Batch, posted: Posted | None, stages: Stages) -> Carried:
    """One answer per request, from the outcomes in order. What was not booked becomes dead letters of its own."""
    answers: list[Answer] = []
    kept = iter(posted.kept if posted else ())
    buried: list[DeadLetter] = []
    outcomes = _deal_outcomes(batch, posted)
    for request, item, (told, rest) in zip(batch.requests, batch.items, outcomes, strict=True):
        if isinstance(item, Rejection):
            answers.append(item)
            continue
        refused = [(view, outcome) for (view, _), outcome in zip(item.candidates, told, strict=True)
                   if outcome in _BURIED]  # fmt: skip
        refused += _find_views(request, [pair for pair in rest if pair[1] in _BURIED], stages)
        buried.extend(bury_span(view, _BURIED[outcome], item.received_nanos) for view, outcome in refused)
        new_letters = sum(islice(kept, len(item.letters)))
        answers.append(_count_receipt(item, [*told, *(outcome for _, outcome in rest)], new_letters))
    if buried:
        stages.books.post((), buried, buried[0].received_nanos)
    spans = tuple([0 if isinstance(item, Rejection) else len(item.candidates) for item in batch.items])
    return Carried(tuple(answers), posted, spans)


Told = tuple[list[Outcome], list[tuple[Candidate, Outcome]]]
"""Outcomes of a request's candidates, in order, and of its spans in columns that were booked one by one."""


def _deal_outcomes(batch: Batch, posted: Posted | None) -> list[Told]:
    outcomes = iter(posted.booking.outcomes if posted else ())
    found: list[Told] = [
        (list(islice(outcomes, 0 if isinstance(item, Rejection) else len(item.candidates))), []) for item in batch.items
    ]
    if posted is not None and posted.booking.rest_requests:
        rest = zip(posted.booking.rest_requests, posted.booking.rest, outcomes, strict=True)
        for request, candidate, outcome in rest:
            found[request][1].append((candidate, outcome))
    return found


def _find_views(
    request: Request, wanted: Sequence[tuple[Candidate, Outcome]], stages: Stages
) -> Iterator[tuple[SpanView, Outcome]]:
    """The spans of a request that candidates from columns were made of: asked for where one has to be kept whole."""
    for view in decode_request(request.body) if wanted else ():
        found = stages.select(view)
        for candidate, outcome in wanted:
            if candidate == found:
                yield view, outcome
                break


def _count_receipt(item: Selected, outcomes: Sequence[Outcome], new_letters: int) -> Receipt:
    """`outcomes` are those of spans booked one by one; all others in columns are accepted."""
    buried = sum(map(outcomes.count, _BURIED))
    by_columns = item.in_columns + len(item.candidates) - len(outcomes)
    return Receipt(
        spans=item.spans,
        ignored=item.spans - item.in_columns - len(item.candidates) - len(item.letters),
        accepted=outcomes.count(Outcome.ACCEPTED) + by_columns,
        duplicate=outcomes.count(Outcome.DUPLICATE) + len(item.letters) - new_letters,
        dead_lettered=buried + new_letters,
    )
