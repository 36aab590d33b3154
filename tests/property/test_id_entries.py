"""Entries of ids are those of the formula, with the native library and without it, whatever an id looks like."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.ledger import identifiers
from otelbill_collector.ledger.identifiers import INDEXED, make_entries

MASK = 2**64 - 1


def mix(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def make_entry(value: bytes, segment_id: int) -> int:
    """The formula, in whole numbers."""
    state = mix(len(value))
    used = value[:256]
    for place in range(0, len(used), 8):
        state = mix(state ^ int.from_bytes(used[place : place + 8], "little"))
    return state >> 32 << 32 | segment_id


ids = st.none() | st.binary(max_size=20) | st.binary(min_size=250, max_size=300)
names = st.none() | st.text(max_size=12) | st.text("0123456789abcdef", min_size=32, max_size=32)
rows = st.tuples(names, names, ids, ids, names, names)


@settings(max_examples=100, deadline=None)
@given(st.lists(rows, max_size=20), st.integers(0, 5), st.booleans())
def test_entries_are_those_of_the_formula(
    drawn: list[tuple[str | bytes | None, ...]], skipped: int, fixed: bool
) -> None:
    """Guarantee: an id that is in a segment is found by whoever computes its entry, in files of any version."""
    columns = {
        name: pa.array(
            [row[place] for row in drawn], type=pa.binary() if name in ("trace_id", "span_id") else pa.string()
        )
        for place, name in enumerate(INDEXED)
    }
    if fixed:
        traces = [None if row[2] is None else row[2][:16].ljust(16, b"-") for row in drawn]  # type: ignore[arg-type]
        columns["trace_id"] = pa.array(traces, type=pa.binary(16))
        columns["run_id"] = columns["run_id"].dictionary_encode()
    table = pa.table(columns).slice(skipped)
    values = [value for row in table.to_pylist() for value in row.values() if value]
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    expected = sorted({make_entry(value, 7) for value in raw})
    assert make_entries([(7, table)]).tolist() == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identifiers.native, "find_ids", lambda: None)
        assert make_entries([(7, table)]).tolist() == expected


def test_nothing_has_no_entries() -> None:
    """Guarantee: a step without an id makes an empty file, not a fault."""
    table = pa.table({name: pa.array([None, ""], type=pa.string()) for name in INDEXED})
    assert make_entries([(1, table)]).dtype == np.uint64
    assert not len(make_entries([(1, table)]))
    assert not len(make_entries([]))
