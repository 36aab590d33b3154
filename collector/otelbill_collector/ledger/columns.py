"""The columns of spans that stand alone, for their segment: the same bytes of content as their records, row by row.

Owns the short ways there. `segments` owns the columns' names and types, and the way from a record to its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from otelbill_collector.domain.bulk_ids import derive_first_records
from otelbill_collector.domain.usage import STANDARD_UNITS, Quantities
from otelbill_collector.ledger.members import Singles
from otelbill_collector.ledger.segment_schema import OF_CANDIDATE, SCHEMA
from otelbill_collector.ledger.segments import build_form, encode_amounts, render_other, render_quantities

_PARTS = tuple((name, attribute) for name, (_, attribute) in OF_CANDIDATE.items() if attribute != "quantities")
_read_candidate = attrgetter(*(attribute for _, attribute in _PARTS))
# What a span bills that stands alone is what it says itself.
_OWN = {
    "customer_id": "span_customer_id",
    "project_id": "span_project_id",
    "run_id": "span_run_id",
    "step": "span_step",
    "billable": "span_billable",
    "reason": "span_reason",
    "usage_source": "span_usage_source",
    "caveats": "span_caveats",
}
_RATED = ("rating", "price_version", "cost", "charge", "currency")
_HEX_CHARACTERS = 32


def encode_singles(singles: Singles) -> pa.RecordBatch:
    """One row per span, in their order."""
    count = len(singles)
    columns: dict[str, pa.Array] = {
        "event_id": _encode_hex(singles.events),
        "record_id": _encode_hex(derive_first_records(singles.events)),
        "revision": _repeat(0, count, "revision"),
        "sign": _repeat(1, count, "sign"),
        "content": pa.array(singles.contents, type=pa.binary(16)),
        "received_nanos": pa.array(singles.received, type=pa.int64()),
        "winner_trace_id": _repeat(b"", count, "winner_trace_id"),
        "winner_span_id": _repeat(b"", count, "winner_span_id"),
    }
    values = zip(*map(_read_candidate, singles.candidates), strict=True)
    for (name, _), column in zip(_PARTS, values, strict=True):
        columns[name] = pa.array(column, type=SCHEMA.field(name).type)
    columns |= {name: columns[own] for name, own in _OWN.items()}
    columns |= _encode_quantities([candidate.quantities for candidate in singles.candidates])
    for name, column in zip(_RATED, zip(*singles.amounts, strict=True), strict=True):
        amounts = name in ("cost", "charge")
        columns[name] = _encode_attos(column) if amounts else pa.array(column, type=pa.string())
    arrays = [columns[item.name] if item.name in columns else pa.nulls(count, item.type) for item in SCHEMA]
    return pa.record_batch(arrays, schema=SCHEMA)


def _repeat(value: Any, count: int, name: str) -> pa.Array:
    return pa.repeat(pa.scalar(value, type=SCHEMA.field(name).type), count)


def _encode_hex(digests: Sequence[bytes]) -> pa.Array:
    """16-byte digests as text of 32 characters."""
    ends = np.arange(0, (len(digests) + 1) * _HEX_CHARACTERS, _HEX_CHARACTERS, dtype=np.int32)
    text = b"".join(digests).hex().encode()
    return pa.Array.from_buffers(pa.string(), len(digests), [None, pa.py_buffer(ends), pa.py_buffer(text)])


def _encode_quantities(quantities: Sequence[Quantities]) -> dict[str, pa.Array]:
    """Columns of the units that occur, and the text of what the spans said."""
    used: set[str] = set().union(*quantities)
    columns = {
        unit: pa.array([item.get(unit) for item in quantities], type=pa.int64())
        for unit in STANDARD_UNITS
        if unit in used
    }
    kinds = set(map(type, chain.from_iterable([item.values() for item in quantities])))
    texts = _render_whole(quantities) if kinds <= {int} else [render_quantities(item) for item in quantities]
    if not used.issubset(STANDARD_UNITS):
        columns["other_quantities"] = pa.array([render_other(item) for item in quantities], type=pa.string())
    columns["span_quantities"] = pa.array(texts, type=pa.string())
    return columns


def _render_whole(quantities: Sequence[Quantities]) -> list[str]:
    """`render_quantities` of whole numbers: spans that count the same units share a template of the text."""
    texts = []
    for item in quantities:
        form, read = build_form(tuple(item))
        texts.append(form % read(item))
    return texts


def _encode_attos(attos: Sequence[int | None]) -> pa.Array:
    """`segments.encode_amounts`, by way of 64-bit integers where the amounts are so small."""
    try:
        low = pa.array(attos, type=pa.int64())
    except (OverflowError, pa.ArrowInvalid):
        return encode_amounts(attos)
    words = np.zeros((len(attos), 2), dtype="<i8")
    words[:, 0] = low.fill_null(0).to_numpy()
    words[:, 1] = words[:, 0] >> 63  # the sign
    known = low.is_valid().buffers()[1] if low.null_count else None
    buffers = [known, pa.py_buffer(words)]
    return pa.Array.from_buffers(SCHEMA.field("cost").type, len(attos), buffers, low.null_count)
