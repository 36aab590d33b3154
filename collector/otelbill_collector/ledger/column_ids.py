"""Identifiers and content digests of spans in columns: those of `bulk_ids` and `records`, all at once. No formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.domain.bulk_ids import derive_span_events
from otelbill_collector.domain.identified_columns import IdentifiedColumns
from otelbill_collector.domain.ids import derive_record_id
from otelbill_collector.domain.records import digest_candidate, render_template
from otelbill_collector.domain.span_columns import Bytes, Int32s, Int64s, SpanColumns, Template
from otelbill_collector.domain.usage import Role
from otelbill_collector.native import keys
from otelbill_collector.native.loading import find_library

Flags = NDArray[np.bool_]
KeysOf = Callable[[SpanColumns], tuple[Bytes, Int32s]]
_NOBODY = b"None"  # what the text has for a name that is absent


def identify_columns(columns: SpanColumns, derive_keys: KeysOf) -> IdentifiedColumns:
    """Spans with their event ids, content digests and the claim keys that `derive_keys` gives them."""
    keys, key_starts = derive_keys(columns)
    return IdentifiedColumns(columns, derive_events(columns), digest_contents(columns), keys, key_starts)


def derive_events(columns: SpanColumns) -> Bytes:
    """`derive_event_id` of every span, [n, 16]."""
    if find_library() is not None:
        return keys.derive_event_ids(columns.trace_id, columns.span_id)
    return _join(
        derive_span_events(
            (trace.tobytes(), span.tobytes()) for trace, span in zip(columns.trace_id, columns.span_id, strict=True)
        )
    )


def derive_records(events: Bytes, revisions: Int64s, reversals: Flags) -> Bytes:
    """`derive_record_id` of a booking of every event, or of its reversal, [n, 16] of [n, 16]."""
    if find_library() is not None:
        return keys.derive_record_ids(
            np.ascontiguousarray(events),
            np.ascontiguousarray(revisions),
            np.ascontiguousarray(reversals).view(np.uint8),
        )
    rows = zip(events, revisions.tolist(), reversals.tolist(), strict=True)
    return _join(
        [
            bytes.fromhex(derive_record_id(event.tobytes().hex(), revision, "reversal" if reverses else "usage"))
            for event, revision, reverses in rows
        ]
    )


def digest_contents(columns: SpanColumns) -> Bytes:
    """`digest_candidate` of every span, [n, 16]. Raises ValueError for codes that point nowhere."""
    if find_library() is not None:
        return keys.digest_contents(columns, _TOLD.find(columns))
    return _join([digest_candidate(columns.build_candidate(row)) for row in range(len(columns))])


def _join(digests: Sequence[bytes]) -> Bytes:
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), 16)


class _Told:
    """The texts of the templates and names seen last: they only grow, so each is rendered once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._templates: list[Template] = []
        self._flags: Bytes = np.zeros(0, dtype=np.uint8)
        self._runs = keys.Pieces.of()
        self._names: list[str] = []
        self._reprs = keys.Pieces.of([_NOBODY])

    def find(self, columns: SpanColumns) -> keys.ToldTemplates:
        """The texts of all templates and names of the columns."""
        with self._lock:
            self._add_templates(columns.templates)
            self._add_names(columns.names)
            return keys.ToldTemplates(self._flags, self._runs, self._reprs)

    def _add_templates(self, templates: Sequence[Template]) -> None:
        if len(self._templates) > len(templates) or not all(map(is_, self._templates, templates)):
            self._forget_templates()
        fresh = templates[len(self._templates) :]
        if not fresh:
            return
        flags = [keys.IS_CALL * (item.role is Role.CALL) | keys.HAS_COUNTS * _has_counts(item) for item in fresh]
        self._flags = np.concatenate([self._flags, np.array(flags, dtype=np.uint8)])
        self._runs = self._runs.extended(run.encode() for item in fresh for run in render_template(item))
        self._templates += fresh

    def _add_names(self, names: Sequence[str]) -> None:
        if len(self._names) > len(names) or not all(map(is_, self._names, names)):
            self._forget_names()
        fresh = names[len(self._names) :]
        if fresh:
            self._reprs = self._reprs.extended(repr(name).encode() for name in fresh)
            self._names += fresh

    def _forget_templates(self) -> None:
        self._templates = []
        self._flags, self._runs = np.zeros(0, dtype=np.uint8), keys.Pieces.of()

    def _forget_names(self) -> None:
        self._names, self._reprs = [], keys.Pieces.of([_NOBODY])


def _has_counts(template: Template) -> bool:
    return template.counted and template.role in (Role.CALL, Role.AGGREGATE)


_TOLD = _Told()
