"""Claims of spans in columns: which traces can be decided by columns, and what is decided. Owns no rule of its own.

What is decided here is what `claims.decide_group` gives for a group in which nothing is weighed but who pays: calls of
one emitter, none inside another, nothing with totals or hidden calls. Groups of another shape are left to it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.decode.reasons import Reason
from otelbill_collector.domain.span_columns import DecidedColumns, Int32s, SpanColumns, Template
from otelbill_collector.domain.usage import Role
from otelbill_collector.native.apart import Payers, TemplateFacts, decide_apart
from otelbill_collector.native.loading import find_library

_ROLES = {Role.CALL: 0, Role.AGGREGATE: 1}
_OTHER_ROLE = 2
_WEIGHED, _INTERNAL, _LETS_THROUGH = 1, 2, 4
_WEIGHED_TRAITS = frozenset({"implies_call", "last_call_only"})
_NO_FACTS = TemplateFacts(np.empty(0, np.uint8), np.empty(0, np.uint8), np.empty(0, np.int32))


class ColumnClaims:
    """Decides groups of columns. Remembers what it needs of the templates, whose list only grows."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._templates: Sequence[Template] = ()
        self._facts = _NO_FACTS
        self._emitters: dict[str, int] = {}

    def decide(self, columns: SpanColumns, settled: NDArray[np.bool_]) -> DecidedColumns:
        """Decide the traces all of whose rows are `settled`: the columns hold every member of their groups, and they
        share no claim key but that of their trace with anybody.
        """
        rows, starts = _sort_traces(columns)
        payers, runs = _list_payers(columns)
        apart = decide_apart(
            self._library,
            starts,
            rows,
            self._read_facts(columns.templates),
            templates=columns.template,
            span_ids=columns.span_id,
            parent_ids=columns.parent_span_id,
            has_parent=columns.has_parent,
            settled=settled.view(np.uint8),
            payers=payers,
        )
        decided = np.empty(len(columns), dtype=np.bool_)
        decided[rows] = np.repeat(apart, np.diff(starts)).astype(np.bool_)
        same = bool((payers.run == runs).all())
        run_id = columns.run_id if same else columns.run_id.spread(payers.run)
        return DecidedColumns(decided, payers.customer, payers.project, payers.step, run_id)

    def _read_facts(self, templates: Sequence[Template]) -> TemplateFacts:
        if templates is not self._templates:
            self._templates, self._facts = templates, _NO_FACTS
        known = len(self._facts.role)
        if known < len(templates):
            fresh = [self._describe(template) for template in templates[known:]]
            role, flags, emitter = (np.array(values, dtype=np.int32) for values in zip(*fresh, strict=True))
            before = self._facts
            self._facts = TemplateFacts(
                np.concatenate([before.role, role.astype(np.uint8)]),
                np.concatenate([before.flags, flags.astype(np.uint8)]),
                np.concatenate([before.emitter, emitter]).astype(np.int32),
            )
        return self._facts

    def _describe(self, template: Template) -> tuple[int, int, int]:
        totals = template.role is Role.AGGREGATE and template.counted
        weighed = totals or not _WEIGHED_TRAITS.isdisjoint(template.traits)
        flags = _WEIGHED * weighed
        flags |= _INTERNAL * (template.reason == Reason.INTERNAL)
        flags |= _LETS_THROUGH * (template.reason == Reason.DUPLICATE_DESCRIPTION)
        return (
            _ROLES.get(template.role, _OTHER_ROLE),
            flags,
            self._emitters.setdefault(template.emitter, len(self._emitters)),
        )


def create_column_claims() -> ColumnClaims | None:
    """None where there is no native library."""
    library = find_library()
    return None if library is None else ColumnClaims(library)


def _list_payers(columns: SpanColumns) -> tuple[Payers, Int32s]:
    """What the spans say of who pays; a run is the number of the row that names it."""
    starts = columns.run_id.starts
    runs = np.where(starts[1:] > starts[:-1], np.arange(len(columns), dtype=np.int32), np.int32(-1)).astype(np.int32)
    return Payers(columns.customer.copy(), columns.project.copy(), columns.step.copy(), runs.copy()), runs


def _sort_traces(columns: SpanColumns) -> tuple[Int32s, NDArray[np.int64]]:
    """The rows with those of one trace together, and where each trace begins (and the last one ends)."""
    if not len(columns):
        return np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64)
    words = np.ascontiguousarray(columns.trace_id).view("<u8").reshape(-1, 2)
    order = np.lexsort((words[:, 1], words[:, 0]))
    ordered = words[order]
    changes = np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1
    return order.astype(np.int32), np.concatenate(([0], changes, [len(columns)])).astype(np.int64)
