"""Candidates as columns: what the native scanner makes of the spans of a batch. Owns their form and the way back.

A *template* is what spans of one kind and outcome have in common (dialect, role, model, reason ...); a span is the
number of its template and what it has for itself: ids, times, counts, who pays. Only spans with plain token counts come
in this form; every other span is a `Candidate` from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.domain.usage import (
    CACHE_READ_TOKENS,
    CACHE_WRITE_TOKENS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    REASONING_TOKENS,
    REQUESTS,
    Candidate,
    Quantity,
    RatingState,
    Role,
    UsageSource,
)

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
Bytes = NDArray[np.uint8]

COUNTED_UNITS = (INPUT_TOKENS, CACHE_READ_TOKENS, CACHE_WRITE_TOKENS, OUTPUT_TOKENS, REASONING_TOKENS)
"""Rows of `SpanColumns.counts`. Input and output are there though they be zero, the others only above zero."""

RATINGS = tuple(RatingState)
"""What the codes of `RatedColumns.rating` stand for."""


@dataclass(frozen=True, slots=True)
class Template:
    """What spans of one outcome have in common: fields of `Candidate` with the same names and meanings.

    `counted` is False where spans have no token counts at all. A call has one request in either case, a tool, link or
    explicit quantity no quantities.
    """

    dialect: str
    role: Role
    detail: int
    provider: str | None
    model: str | None
    request_model: str | None
    operation: str | None
    service_tier: str | None
    attempt: int | None
    failed: bool
    billable: bool
    reason: str
    usage_source: UsageSource
    caveats: tuple[str, ...]
    emitter: str
    traits: tuple[str, ...]
    counted: bool


@dataclass(slots=True, eq=False)
class Texts:
    """Texts of any length, one behind the other: the n-th is `pool[starts[n]:starts[n+1]]`, absent where that is empty.

    ASCII, printable, without `@`, at most 127 bytes: what `clean_id` leaves as it is.
    """

    pool: Bytes
    starts: Int32s  # [n + 1]; starts[0] is 0

    def find(self, row: int) -> str | None:
        """One text."""
        start, end = self.starts[row], self.starts[row + 1]
        return self.pool[start:end].tobytes().decode("ascii") if end > start else None

    def list_all(self) -> list[str | None]:
        """Every text, in order."""
        pool, starts = self.pool.tobytes().decode("ascii"), self.starts.tolist()
        return [pool[start:end] or None for start, end in pairwise(starts)]

    def take(self, rows: NDArray[np.intp]) -> Texts:
        """The texts of some rows, in their order."""
        starts, sizes = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        ends = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(sizes, out=ends[1:])
        places = np.repeat(starts - ends[:-1], sizes) + np.arange(ends[-1], dtype=np.int32)
        return Texts(self.pool[places], ends)

    def differ(self, other: Texts) -> NDArray[np.bool_]:
        """Where two lists of as many texts differ."""
        sizes, others = np.diff(self.starts), np.diff(other.starts)
        found: NDArray[np.bool_] = sizes != others
        same = np.flatnonzero(~found & (sizes > 0))
        if len(same):
            unequal = self.take(same).pool != other.take(same).pool
            found[same[np.repeat(np.arange(len(same)), sizes[same])[unequal]]] = True
        return found

    def spread(self, sources: Int32s) -> Texts:
        """For each entry of `sources` the text of that row; none where it is -1."""
        absent = len(self.starts) - 1  # a row past the last one, of no length
        padded = Texts(self.pool, np.append(self.starts, self.starts[-1]).astype(np.int32))
        return padded.take(np.where(sources < 0, absent, sources).astype(np.intp))


@dataclass(slots=True, eq=False)
class SpanColumns:
    """One entry a span, in the order in which the spans came. Codes point into lists that only grow; -1 is absent."""

    templates: Sequence[Template]
    names: Sequence[str]
    template: Int32s  # into templates
    request: Int32s  # number of the request in its batch
    trace_id: Bytes  # [n, 16]
    span_id: Bytes  # [n, 8]
    parent_span_id: Bytes  # [n, 8]; zeros where `has_parent` is 0
    has_parent: Bytes  # [n], 0 or 1
    started_nanos: Int64s
    ended_nanos: Int64s
    received_nanos: Int64s
    counts: Int64s  # [5, n], rows as COUNTED_UNITS: disjoint, zero where absent
    customer: Int32s  # into names, as the three below
    project: Int32s
    step: Int32s
    service: Int32s
    response_id: Texts
    run_id: Texts

    def __len__(self) -> int:
        return len(self.template)

    def take(self, rows: NDArray[np.intp]) -> SpanColumns:
        """Some spans, in the order given."""
        columns = {name: getattr(self, name)[rows] for name in _ROWS}
        return SpanColumns(
            self.templates,
            self.names,
            counts=np.ascontiguousarray(self.counts[:, rows]),
            response_id=self.response_id.take(rows),
            run_id=self.run_id.take(rows),
            **columns,
        )

    def join(self, others: Sequence[SpanColumns]) -> SpanColumns:
        """These spans, then those of others. Their templates and names are the same lists."""
        parts = [self, *others]
        assert all(part.templates is self.templates and part.names is self.names for part in others)
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ROWS}
        return SpanColumns(
            self.templates,
            self.names,
            counts=np.concatenate([part.counts for part in parts], axis=1),
            response_id=join_texts([part.response_id for part in parts]),
            run_id=join_texts([part.run_id for part in parts]),
            **columns,
        )

    def find_quantities(self, row: int) -> dict[str, Quantity]:
        """What a span counts, as `Candidate.quantities` has it."""
        return _list_quantities(self.templates[self.template[row]], self.counts[:, row].tolist())

    def build_candidate(self, row: int) -> Candidate:
        """The candidate that a row stands for."""
        template = self.templates[self.template[row]]
        return Candidate(
            trace_id=self.trace_id[row].tobytes(),
            span_id=self.span_id[row].tobytes(),
            parent_span_id=self.parent_span_id[row].tobytes() if self.has_parent[row] else b"",
            started_nanos=int(self.started_nanos[row]),
            ended_nanos=int(self.ended_nanos[row]),
            dialect=template.dialect,
            role=template.role,
            detail=template.detail,
            provider=template.provider,
            model=template.model,
            request_model=template.request_model,
            operation=template.operation,
            response_id=self.response_id.find(row),
            service_tier=template.service_tier,
            customer_id=self._find_name(self.customer[row]),
            project_id=self._find_name(self.project[row]),
            run_id=self.run_id.find(row),
            step=self._find_name(self.step[row]),
            attempt=template.attempt,
            failed=template.failed,
            billable=template.billable,
            reason=template.reason,
            usage_source=template.usage_source,
            caveats=template.caveats,
            quantities=self.find_quantities(row),
            emitter=template.emitter,
            service=self._find_name(self.service[row]),
            traits=template.traits,
        )

    def build_candidates(self, rows: NDArray[np.intp]) -> list[Candidate]:
        """The candidates of some rows, in the order given: what `build_candidate` gives for each, somewhat faster."""
        part = self if len(rows) == len(self) and (rows == np.arange(len(self))).all() else self.take(rows)
        templates, names = self.templates, [*self.names, None]  # -1 is the last
        parents = zip(_cut_ids(part.parent_span_id, 8), part.has_parent.tolist(), strict=True)
        named = ([names[code] for code in getattr(part, name).tolist()] for name in _NAMED)
        columns = (
            [templates[code] for code in part.template.tolist()],
            _cut_ids(part.trace_id, 16),
            _cut_ids(part.span_id, 8),
            [parent if given else b"" for parent, given in parents],
            part.started_nanos.tolist(),
            part.ended_nanos.tolist(),
            part.counts.T.tolist(),
            part.response_id.list_all(),
            part.run_id.list_all(),
            *named,
        )
        return [_build_candidate(*fields) for fields in zip(*columns, strict=True)]

    def _find_name(self, code: Any) -> str | None:  # Any: a numpy integer
        return self.names[code] if code >= 0 else None


def join_texts(parts: Sequence[Texts]) -> Texts:
    """All texts, in order."""
    before = np.cumsum([0, *(part.starts[-1] for part in parts)])
    starts = [part.starts[:-1] + offset for part, offset in zip(parts, before[:-1], strict=True)]
    return Texts(
        np.concatenate([part.pool[: part.starts[-1]] for part in parts]),
        np.concatenate([*starts, before[-1:]]).astype(np.int32),
    )


def _list_quantities(template: Template, counts: list[int]) -> dict[str, Quantity]:
    quantities: dict[str, Quantity] = {}
    if template.role not in (Role.CALL, Role.AGGREGATE):
        return quantities
    if template.counted:
        given, read, write, output, reasoning = counts
        quantities[INPUT_TOKENS] = given
        if read:
            quantities[CACHE_READ_TOKENS] = read
        if write:
            quantities[CACHE_WRITE_TOKENS] = write
        quantities[OUTPUT_TOKENS] = output
        if reasoning:
            quantities[REASONING_TOKENS] = reasoning
    if template.role is Role.CALL:
        quantities[REQUESTS] = 1
    return quantities


def _build_candidate(
    template: Template,
    trace_id: bytes,
    span_id: bytes,
    parent_span_id: bytes,
    started_nanos: int,
    ended_nanos: int,
    counts: list[int],
    response_id: str | None,
    run_id: str | None,
    customer: str | None,
    project: str | None,
    step: str | None,
    service: str | None,
) -> Candidate:
    return Candidate(
        trace_id,
        span_id,
        parent_span_id,
        started_nanos,
        ended_nanos,
        template.dialect,
        template.role,
        template.detail,
        template.provider,
        template.model,
        template.request_model,
        template.operation,
        response_id,
        template.service_tier,
        customer,
        project,
        run_id,
        step,
        template.attempt,
        None,
        template.failed,
        template.billable,
        template.reason,
        template.usage_source,
        template.caveats,
        _list_quantities(template, counts),
        None,
        template.emitter,
        service,
        template.traits,
    )


def _cut_ids(ids: Bytes, size: int) -> list[bytes]:
    joined = ids.tobytes()
    return [joined[at : at + size] for at in range(0, len(joined), size)]


_NAMED = ("customer", "project", "step", "service")
_ROWS = (
    *("template", "request", "trace_id", "span_id", "parent_span_id", "has_parent", "started_nanos", "ended_nanos"),
    *("received_nanos", "customer", "project", "step", "service"),
)


@dataclass(frozen=True, slots=True)
class DecidedColumns:
    """Which rows are decided by columns, and who pays for each row of the columns (meaningless where not decided)."""

    rows: NDArray[np.bool_]
    customer: Int32s  # into names, as the next two
    project: Int32s
    step: Int32s
    run_id: Texts

    def take(self, rows: NDArray[np.intp]) -> DecidedColumns:
        """Some rows, in the order given."""
        who = self.customer[rows], self.project[rows], self.step[rows]
        return DecidedColumns(self.rows[rows], *who, self.run_id.take(rows))


@dataclass(slots=True, eq=False)
class AmountColumns:
    """What rating makes of spans: the fields of `RatedColumns` with these names."""

    rating: Int32s
    price_version: Int32s
    versions: Sequence[str]
    cost_attos: Int64s
    charge_attos: Int64s
    has_cost: NDArray[np.bool_]
    has_charge: NDArray[np.bool_]
    currency: str
    has_currency: NDArray[np.bool_]
    price_bodies: dict[str, str]


@dataclass(slots=True, eq=False)
class RatedColumns:
    """Spans whose group is decided by columns, with what booking made of them. Rows as in `spans`.

    Most stand alone and are billed to whom they name themselves. In a trace whose spans have only to be told who pays,
    `customer`, `project`, `step` and `run_id` are what a span inherits; otherwise they are those of `spans`.
    """

    spans: SpanColumns
    customer: Int32s  # into spans.names, as the next two: the decision's, see above
    project: Int32s
    step: Int32s
    run_id: Texts
    event_id: Bytes  # [n, 16]
    content: Bytes  # [n, 16]: digest of the candidate
    keys: Bytes  # [m, 16]: claim keys, span by span
    key_starts: Int32s  # [n + 1]: the keys of the n-th span are keys[key_starts[n]:key_starts[n + 1]]
    rating: Int32s  # into RATINGS
    price_version: Int32s  # into versions; -1 is none
    versions: Sequence[str]
    cost_attos: Int64s  # [n, 2]: low and high word of a 128-bit integer
    charge_attos: Int64s  # [n, 2]
    has_cost: NDArray[np.bool_]
    has_charge: NDArray[np.bool_]
    currency: str  # of every span that has one
    has_currency: NDArray[np.bool_]
    price_bodies: dict[str, str] = field(default_factory=dict)  # content of the versions by id
