"""How a segment's columns lie in the stored blob. Owns what that form leaves out, and how a blob says so.

A blob is one Arrow IPC stream. What its schema's metadata has under `otelbill` tells how the columns of
`segment_schema` follow from the stored ones; docs/decisions/0012-packed-segments.md says it column by column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otelbill_collector.domain.usage import STANDARD_UNITS
from otelbill_collector.ledger.segment_schema import AMOUNT, SCHEMA

FORM = 2  # 1 is the columns of `segment_schema` as they are, without a word of it in the metadata
_KEY = b"otelbill"
TOLD = "as_told"
# What the span said is stored where it is not what was decided: in rows that are not `as_told`.
DECIDED = {
    "span_customer_id": "customer_id",
    "span_project_id": "project_id",
    "span_run_id": "run_id",
    "span_step": "step",
    "span_billable": "billable",
    "span_reason": "reason",
    "span_usage_source": "usage_source",
    "span_caveats": "caveats",
}
LISTS = frozenset({"caveats", "span_caveats", "traits"})  # stored as the JSON text of the list
BYTES = frozenset({"trace_id", "span_id", "parent_span_id", "winner_trace_id", "winner_span_id"})  # null is no bytes
DERIVED = frozenset({"record_id", "corrects"})  # of event_id, revision and sign
ATTOS = {"cost": "cost_attos", "charge": "charge_attos"}  # the name where 64 bits hold every amount
ALIKE = {"charge": "cost", "request_model": "model"}  # left out where the other column says the same in every row
PACKED = (*(name for name in SCHEMA.names if name not in DERIVED), TOLD)
"""Columns of a packed batch: names and lists as dictionaries of text, digests as bytes, amounts as 64-bit attos where
those fit, and what follows from other columns null."""
_HEX = np.frombuffer(bytes(range(256)).hex().encode(), dtype="<u2")

Constant = None | bool | int | str


class UnknownForm(ValueError):
    """The segment was written by a later version."""


@dataclass(frozen=True, slots=True)
class Form:
    """What the metadata of a packed segment says: its rows, the columns with one value, and those like another."""

    rows: int
    constants: Mapping[str, Constant] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)

    def render(self) -> dict[bytes, bytes]:
        """As metadata of an Arrow schema."""
        content = {"form": FORM, "rows": self.rows, "constants": self.constants, "same": self.same}
        return {_KEY: json.dumps(content, separators=(",", ":")).encode()}


def find_form(schema: pa.Schema) -> Form | None:
    """The form of a stored schema; None for the first one, whose columns are those of `segment_schema`."""
    if not schema.metadata or _KEY not in schema.metadata:
        return None
    content = json.loads(schema.metadata[_KEY])
    if content["form"] != FORM:
        raise UnknownForm(f"the segment has form {content['form']}; this version reads forms 1 and {FORM}")
    return Form(content["rows"], content["constants"], content["same"])


def make_array(kind: pa.DataType, values: NDArray[np.generic], known: NDArray[np.bool_] | None = None) -> pa.Array:
    """An Arrow array over the memory of a numpy array; null where it is not `known`."""
    nulls, mask = 0, None
    if known is not None:
        nulls = len(known) - int(np.count_nonzero(known))
        mask = pa.py_buffer(np.packbits(known, bitorder="little")) if nulls else None
    return pa.Array.from_buffers(
        kind, len(values), [mask, pa.py_buffer(np.ascontiguousarray(values))], null_count=nulls
    )


@lru_cache(maxsize=256)
def make_scalar(value: bool | int | str | None, kind: pa.DataType) -> pa.Scalar:
    """An Arrow scalar, made once: each `pa.scalar`, which compute functions also use, looks for pandas on the disk."""
    return pa.scalar(value, kind)


def make_texts(values: Sequence[str]) -> pa.Array:
    """An Arrow array of texts, without `pa.array`: that looks for pandas on the disk each time, which costs more."""
    raw = [value.encode() for value in values]
    ends = np.zeros(len(raw) + 1, dtype=np.int32)
    np.cumsum([len(item) for item in raw], out=ends[1:])
    return pa.Array.from_buffers(pa.string(), len(raw), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(raw))])


def repeat_value(value: bool | int | str, kind: pa.DataType, rows: int) -> pa.Array:
    """An Arrow array in which every row has the value."""
    if isinstance(value, str):
        raw = value.encode()
        ends = np.arange(rows + 1, dtype=np.int32) * np.int32(len(raw))
        return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(ends), pa.py_buffer(raw * rows)])
    if isinstance(value, bool):
        bits = pa.py_buffer((b"\xff" if value else b"\0") * (rows // 8 + 1))
        return pa.Array.from_buffers(kind, rows, [None, bits])
    return make_array(kind, np.full(rows, value, dtype=f"<i{kind.bit_width // 8}"))


def render_hex(column: pa.Array) -> pa.Array:
    """Fixed-size bytes as lower-case hex text."""
    size, width = len(column), column.type.byte_width
    start = column.offset * width
    raw = (
        np.frombuffer(column.buffers()[1], dtype=np.uint8)[start : start + size * width] if size else np.empty(0, "u1")
    )
    ends = np.arange(0, (size + 1) * 2 * width, 2 * width, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), size, [None, pa.py_buffer(ends), pa.py_buffer(_HEX[raw])])


def widen_attos(column: pa.Array) -> pa.Array:
    """64-bit attos as an amount: the same integers in 128 bits."""
    words = np.empty((len(column), 2), dtype="<i8")
    words[:, 0] = column.fill_null(0).to_numpy()
    words[:, 1] = words[:, 0] >> 63  # the sign
    return make_array(AMOUNT, words, read_known(column))


def narrow_attos(column: pa.Array) -> pa.Array:
    """An amount as 64-bit attos where every one fits, otherwise as it is."""
    words = np.frombuffer(column.buffers()[1], dtype="<i8").reshape(-1, 2)[column.offset : column.offset + len(column)]
    known = read_known(column)
    fits = words[:, 0] >> 63 == words[:, 1]
    return make_array(pa.int64(), words[:, 0], known) if (fits if known is None else fits[known]).all() else column


def read_known(column: pa.Array) -> NDArray[np.bool_] | None:
    """Where a column has values; None where it has them everywhere."""
    if not column.null_count:
        return None
    known: NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    return known


def render_units(columns: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """`segments.render_quantities` of the standard units of every row, from their columns."""
    parts = []
    for unit in sorted(STANDARD_UNITS):
        column = columns[unit]
        if column.null_count < rows:
            part = pc.binary_join_element_wise(_text(f', "{unit}": "'), column.cast(pa.string()), _text('"'), _text(""))
            parts.append(part.fill_null(_text("")))
    if not parts:
        return repeat_value("{}", pa.string(), rows)
    joined = pc.binary_join_element_wise(*parts, _text(""))
    return pc.binary_join_element_wise(_text("{"), pc.utf8_slice_codeunits(joined, 2), _text("}"), _text(""))


def _text(value: str) -> pa.Scalar:
    return make_scalar(value, pa.string())
