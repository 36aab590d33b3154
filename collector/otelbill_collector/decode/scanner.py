"""Requests to columns: what the native scanner is told of the rules, and what is made of its answers.

The scanner recognises bytes it has seen before and knows no rule. It is told only what `recall` has kept of a span that
the rules have read, so that it says of a span what `recall` would; every other span is left to the rules.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import cast

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.decode.quantities import Counts, list_facts, split_counts
from otelbill_collector.decode.recall import OUTCOME_FIELDS
from otelbill_collector.decode.shapes import MEMORY, OWN_KEYS, SUMMED_FACTS, Ground, Kind, Raw, Shape
from otelbill_collector.decode.spans import SpanView
from otelbill_collector.decode.sums import Sums, sum_counts
from otelbill_collector.decode.values import FREE_NAMES, TEXTS, VALUE_BYTES_MAX
from otelbill_collector.decode.vocabulary import load_vocabulary
from otelbill_collector.decode.weight import ATTRIBUTES_PER_SPAN, EVENTS_PER_SPAN, walk_fields
from otelbill_collector.decode.wire import WireSpan
from otelbill_collector.domain.span_columns import SpanColumns, Template, Texts
from otelbill_collector.native import scan as native
from otelbill_collector.native.loading import find_library

ENTRIES_MAX = 1_000_000  # of the scanner's memory; a full one is emptied
BYTES_MAX = 128 * 1_048_576  # likewise
_RESOURCE_BYTES_MAX = 16_384  # a longer resource, scope or list of names is not worth its place
_STEPS_MAX = 250
_LATEST_MAX = 2**64 - 1
_INCLUDES = {False: native.INCLUDES_NO, True: native.INCLUDES_YES, None: native.INCLUDES_CHECKED}
_ATTRIBUTES, _KEY = 9, 1  # field numbers
_ANY_SIGNATURE = 4 + len(list_facts(Counts())) + 1  # of `sums._split_any`, before what steps are passed

Record = tuple[int, ...]
"""A span left to the rules, see `native.scan.Raw.rest`."""


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a scan made of requests. Every span of a request is in one of four places.

    In `columns`, in `rest`, among the `ignored`, or in a request that is `whole`. Places of spans (`numbers`,
    `rest_numbers`) count from 0 in each request.
    """

    columns: SpanColumns
    numbers: NDArray[np.int32]  # the place of each row's span in its request
    spans: NDArray[np.int64]  # of each request; 0 where it is in `whole`
    ignored: NDArray[np.int64]  # of each request: spans that say nothing of usage
    rest: dict[int, bytes]  # by number of the request: one of the spans that the rules must read, in their order
    rest_numbers: dict[int, tuple[int, ...]]
    whole: tuple[int, ...]  # requests that only the parser can read, or refuse
    bodies: Sequence[bytes] = field(repr=False)
    records: Mapping[int, Sequence[Record]] = field(repr=False)


class _Full(Exception):
    """The native scanner has no more room: it forgets, and learns again."""


class Scanner:
    """Reads requests into columns, and learns from what the rules say of the spans it left to them.

    One per sidecar, for one thread at a time: a scan fills memory of the scanner that the next one overwrites. After it
    has forgotten, `names` and `templates` are new lists: codes belong to the list they came with.
    """

    def __init__(self, *, entries_max: int = ENTRIES_MAX, bytes_max: int = BYTES_MAX) -> None:
        library = find_library()
        word = load_vocabulary().free_names_hold.encode()
        self._native = (
            native.NativeScanner(library, word, entries_max=entries_max, bytes_max=bytes_max) if library else None
        )
        self._start()

    def _start(self) -> None:
        self.templates: list[Template] = []
        self.names: list[str] = []
        self._template_numbers: dict[Template, int] = {}
        self._name_codes: dict[str, int] = {}
        self._layouts: dict[tuple[int, tuple[bytes, ...]], tuple[int, Shape, int]] = {}

    def forget(self) -> None:
        """Forget everything; the rules answer until it is learned again."""
        if self._native is not None:
            self._native.forget()
        self._start()

    def scan(
        self,
        bodies: Sequence[bytes],
        received_nanos: Sequence[int],
        *,
        spans_max: int,
        attributes_max: int,
        earliest_nanos: int,
        future_nanos: int,
    ) -> Scanned:
        """Requests in columns, as far as they are known. Spans whose ids or times cannot be are left to the rules."""
        if self._native is None:
            return self._leave_all(bodies)
        bounds = native.Bounds(
            earliest_nanos=earliest_nanos,
            spans_max=spans_max,
            attributes_max=attributes_max,
            events_max=spans_max * EVENTS_PER_SPAN,
            all_attributes_max=spans_max * ATTRIBUTES_PER_SPAN,
            scopes_max=2 * spans_max,
        )
        latest = [min(max(received + future_nanos, 0), _LATEST_MAX) for received in received_nanos]
        raw = self._native.scan(bodies, received_nanos, latest, bounds)
        records = {number: list(group) for number, group in groupby(map(tuple, raw.rest.tolist()), key=_find_request)}
        return Scanned(
            columns=self._build_columns(raw),
            numbers=raw.rows["number"],
            spans=np.maximum(raw.spans, 0),
            ignored=raw.ignored,
            rest={number: build_rest(bodies[number], found) for number, found in records.items()},
            rest_numbers={number: tuple([record[1] for record in found]) for number, found in records.items()},
            whole=tuple(np.flatnonzero(raw.spans < 0).tolist()),
            bodies=bodies,
            records=records,
        )

    def _build_columns(self, raw: native.Raw) -> SpanColumns:
        rows = {name: column for name, column in raw.rows.items() if name != "number"}
        return SpanColumns(
            self.templates, self.names, response_id=Texts(*raw.response_id), run_id=Texts(*raw.run_id), **rows
        )

    def _leave_all(self, bodies: Sequence[bytes]) -> Scanned:
        count = len(bodies)
        none = np.zeros(count, dtype=np.int64)
        raw = native.Raw(none, none, *native.make_columns(0)[0])
        columns, numbers = self._build_columns(raw), raw.rows["number"]
        return Scanned(columns, numbers, none, none, {}, {}, tuple(range(count)), bodies, {})

    def learn(self, scanned: Scanned, views: Mapping[int, Sequence[SpanView]]) -> None:
        """Learn from spans of `rest`, by number of the request, after `select_span` has read them."""
        if self._native is None:
            return
        try:
            for number, found in views.items():
                body = scanned.bodies[number]
                for record, view in zip(scanned.records.get(number, ()), found, strict=True):
                    if record[2] and type(view) is WireSpan and view.scope.memory is not None:
                        with MEMORY.learning:
                            _Lesson(self, self._native, body, record, view).learn()
        except _Full:
            self.forget()

    def code_name(self, name: str | None) -> int:
        """The place of a name in `names`; -1 is none."""
        if name is None:
            return -1
        code = self._name_codes.get(name)
        if code is None:
            code = self._name_codes[name] = len(self.names)
            self.names.append(name)
        return code

    def number_template(self, template: Template) -> int:
        """The place of a template in `templates`."""
        number = self._template_numbers.get(template)
        if number is None:
            number = self._template_numbers[template] = len(self.templates)
            self.templates.append(template)
        return number

    def tell_layout(self, root: int, names: tuple[bytes, ...], shape: Shape) -> int:
        """The number of a layout. A shape that tells kinds apart by more than before gets a new one, without kinds."""
        assert self._native is not None  # who tells has one
        told = self._layouts.get((root, names))
        if told is not None and told[1] is shape and told[2] == len(shape.noted):
            return told[0]
        layout, noted, steps = describe_layout(shape, names)
        number = _require(self._native.add_layout(root, names, layout, noted, steps))
        self._layouts[root, names] = number, shape, len(shape.noted)
        return number


def _find_request(record: Record) -> int:
    return record[0]


def _require(number: int) -> int:
    if number < 0:
        raise _Full
    return number


@dataclass(slots=True)
class _Lesson:
    """One span that the scanner did not know, and what there is to tell of it."""

    scanner: Scanner
    native: native.NativeScanner
    body: bytes
    record: Record
    view: WireSpan

    def learn(self) -> None:
        """Tell the scanner what memory has of this span. Raises _Full."""
        ground: Ground = self.view.scope.memory
        span, resource, scope = (
            self.body[start : start + size] for start, size in zip(self.record[3::2], self.record[4::2], strict=True)
        )
        names = list_names(span)
        if max(len(resource), len(scope), sum(map(len, names))) > _RESOURCE_BYTES_MAX:
            return
        if len(names) > native.POSITIONS_MAX:
            return
        self._keep(native.RESOURCE, 0, resource, self.scanner.code_name(ground.service))
        attributes = self.view.message.attributes
        shape = MEMORY.find_shape(ground, tuple(attributes))
        layout = self.scanner.tell_layout(_require(self.native.add_scope(scope)), names, shape)
        if shape.read is not None and len(names) == len(attributes):
            self._learn_kind(layout, shape, shape.read(attributes))

    def _learn_kind(self, layout: int, shape: Shape, values: Raw) -> None:
        message = self.view.message
        noted = values[shape.fixed :]
        kind = MEMORY.kinds.get((shape, message.status.code, FREE_NAMES[message.name], noted))
        if kind is None or FREE_NAMES[message.name]:
            return
        readable = kind.bare or (not kind.read_whole and bool(shape.list_counts()))
        key = struct.pack("<I", message.status.code) + b"".join(struct.pack("<I", len(raw)) + raw for raw in noted)
        if len(key) > native.KIND_BYTES_MAX:
            return
        number = _require(
            self.native.add_kind(layout, key, readable=readable, includes=_INCLUDES[kind.includes], bare=kind.bare)
        )
        if readable:
            self._learn_outcome(number, kind, shape, values)
        for key_name, place in zip(OWN_KEYS, shape.own, strict=True):
            if key_name in _NAMED and place is not None and len(values[place]) <= VALUE_BYTES_MAX:
                self._keep(native.NAME, 0, values[place], self.scanner.code_name(TEXTS[values[place]]))

    def _learn_outcome(self, number: int, kind: Kind, shape: Shape, values: Raw) -> None:
        sums = sum_counts(kind, shape, values, self.view.message.attributes)
        if sums is None or (sums[2] is not None and (kind.plain is not None or split_counts(sums[2]).conflict)):
            return  # the scanner leaves sums that cannot be to the rules
        outcome = kind.outcomes.get(sums[0])
        if outcome is not None:
            signature = sign(sums, bare=kind.bare, graded=shape.graded)
            template = Template(**dict(zip(OUTCOME_FIELDS, outcome, strict=True)), counted=not kind.bare)
            self._keep(native.OUTCOME, number, struct.pack("<Q", signature), self.scanner.number_template(template))

    def _keep(self, table: int, number: int, key: bytes, value: int) -> None:
        if not self.native.keep(table, number, key, value):
            raise _Full


_CUSTOMER, _PROJECT, _RUN, _STEP, _EVENT = OWN_KEYS
_NAMED = (_CUSTOMER, _PROJECT, _STEP)


def describe_layout(shape: Shape, names: Sequence[bytes]) -> tuple[native.Layout, list[int], list[int]]:
    """What stands where in spans with these names in wire order; the places that tell kinds apart; the steps."""
    layout = native.Layout(state=native.RULES)
    if shape.read is None:
        layout.state = native.IGNORED if shape.ignored and len(set(names)) == len(names) else native.RULES
        return layout, [], []
    places = {name.decode(): place for place, name in enumerate(names)}
    if len(places) < len(names) or _EVENT in places or len(shape.steps) > _STEPS_MAX:
        return layout, [], []
    layout.state = native.READ
    layout.graded = int(shape.graded if shape.plain is not None else len(shape.steps) > 1)
    layout.own_id_size = shape.plan.dialect.own_response_id_length if shape.plan is not None else 0
    counts = [-1 if name is None else places[name] for name in shape.list_counts()]
    layout.counts[:] = counts or [-1] * len(layout.counts)
    layout.texts[:] = [places.get(name, -1) for name in _NAMED]
    layout.run = places.get(_RUN, -1)
    layout.response = places[shape.list_copied()[shape.responses.start]] if shape.responses else -1
    return layout, [places[name] for name in shape.noted], shape.steps


def sign(sums: Sums, *, bare: bool, graded: bool) -> int:
    """The signature of sums as one number, as `split_counts` of `scan.c` makes it: a bit for each count above zero, and
    what steps the sizes have passed.
    """
    signature, _, counts, response_id = sums
    number = int(response_id is None)
    if bare:
        return number
    grades: Sequence[int] = ()
    if counts is not None:
        above = [bool(getattr(counts, fact)) for fact in SUMMED_FACTS]
        grades = cast(Sequence[int], signature[_ANY_SIGNATURE:])
    elif graded:
        grades = cast(Sequence[int], signature[1])
        above = [grades[0] > 0, *map(bool, signature[2:])]  # the first step is one
    else:
        above = [*map(bool, signature[1:])]
    for place, bit in enumerate(above, start=1):
        number |= bit << place
    for place, grade in enumerate(grades, start=2):
        number |= grade << 8 * place
    return number


def list_names(span: bytes) -> tuple[bytes, ...]:
    """The attribute names of an encoded span, in its order. The span is one that the scanner has read."""
    pairs = [span[at:end] for number, at, end in walk_fields(span, 0, len(span)) if number == _ATTRIBUTES]
    return tuple(
        [pair[at:end] for pair in pairs for number, at, end in walk_fields(pair, 0, len(pair)) if number == _KEY]
    )


def build_rest(body: bytes, records: Sequence[Record]) -> bytes:
    """One export request of spans of another, each under its own resource and scope."""
    resources: list[bytes] = []
    scopes: list[bytes] = []
    spans: list[bytes] = []
    last_resource = last_scope = (-1, -1)
    for _, _, _, start, size, resource_start, resource_size, scope_start, scope_size in records:
        resource, scope = (resource_start, resource_size), (scope_start, scope_size)
        if resource != last_resource or scope != last_scope:
            _close(spans, scopes)
            if resource != last_resource:
                _close(scopes, resources, b"\x0a")
                scopes += (_write_head(b"\x0a", resource_size), body[resource_start : resource_start + resource_size])
            spans += (_write_head(b"\x0a", scope_size), body[scope_start : scope_start + scope_size])
            last_resource, last_scope = resource, scope
        spans += (_write_head(b"\x12", size), body[start : start + size])
    _close(spans, scopes)
    _close(scopes, resources, b"\x0a")
    return b"".join(resources)


def _close(parts: list[bytes], into: list[bytes], tag: bytes = b"\x12") -> None:
    """Put a message that is complete into the one around it."""
    if parts:
        content = b"".join(parts)
        into += (_write_head(tag, len(content)), content)
        parts.clear()


def _write_head(tag: bytes, size: int) -> bytes:
    if size < 0x80:
        return tag + bytes((size,))
    if size < 0x4000:
        return tag + bytes((size & 0x7F | 0x80, size >> 7))
    head = bytearray(tag)
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head)
