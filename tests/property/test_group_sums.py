"""Sums over groups are those of adding row by row: with the native library and without it, in every form of column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.domain.usage import STANDARD_UNITS
from otelbill_collector.ledger import sums
from otelbill_collector.ledger.segments import encode_amounts
from otelbill_collector.ledger.sums import (
    SUM_COLUMNS,
    Sums,
    encode_key,
    find_largest,
    group_rows,
    number_groups,
    slice_time,
    sum_groups,
)
from otelbill_collector.native.sums import find_sums, group_keys

counts = st.none() | st.integers(-(2**63), 2**63 - 1)
amounts = st.none() | st.integers(-(10**38) + 1, 10**38 - 1)
rows = st.fixed_dictionaries(
    {
        "name": st.none() | st.sampled_from(["", "a", "b", "ß"]),
        "ended": st.integers(-(2**40), 2**62),
        "sign": st.sampled_from([1, -1]),
        "other_quantities": st.none() | st.sampled_from(['{"pages": "2"}', '{"hours": "0.25", "pages": "1"}']),
        "cost": amounts,
        "charge": amounts,
        "input_tokens": counts,
        "requests": counts,
    }
)
HOUR = 3_600 * 10**9


@contextmanager
def without_library() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums.native, "find_sums", lambda: None)
        yield


def build_table(drawn: list[dict[str, object]], *, skipped: int, parts: int, dictionaries: bool) -> pa.Table:
    """Columns in several chunks that begin somewhere inside their buffers."""
    columns = {
        name: encode_amounts([row[name] for row in drawn])  # type: ignore[misc]
        if name in ("cost", "charge")
        else pa.array([row.get(name) for row in drawn], type=kind)
        for name, kind in (
            ("name", pa.string()),
            ("ended", pa.int64()),
            ("sign", pa.int8()),
            *((unit, pa.int64()) for unit in STANDARD_UNITS),
            *(("other_quantities", pa.string()), ("cost", None), ("charge", None)),
        )
    }
    table = pa.table(columns).slice(skipped)
    length = max(1, -(-table.num_rows // parts))
    pieces = [table.slice(start, length) for start in range(0, table.num_rows, length)]
    if dictionaries:  # each chunk with a dictionary of its own
        place = table.schema.get_field_index("name")
        pieces = [
            piece.set_column(place, "name", pa.chunked_array([piece["name"].combine_chunks().dictionary_encode()]))
            for piece in pieces
        ]
    return pa.concat_tables(pieces)


def describe(found: Sums) -> object:
    quantities = {unit: value for unit, value in found.quantities.items() if value}
    return found.events, quantities, found.cost_attos, found.charge_attos, found.costless


@settings(max_examples=80, deadline=None)
@given(st.lists(rows, min_size=1, max_size=30), st.integers(0, 9), st.integers(1, 4), st.booleans())
def test_sums_are_those_of_adding_row_by_row(
    drawn: list[dict[str, object]], skipped: int, parts: int, dictionaries: bool
) -> None:
    """Guarantee: no sum overflows, rounds or misses a row, and no name is taken for another."""
    skipped = min(skipped, len(drawn) - 1)
    table = build_table(drawn, skipped=skipped, parts=parts, dictionaries=dictionaries)
    expected: dict[tuple[object, ...], Sums] = {}
    for row in table.to_pylist():
        key = (row["ended"] // HOUR * HOUR, row["name"] or "")
        expected.setdefault(key, Sums()).add_row({**row, **{unit: row[unit] for unit in STANDARD_UNITS}})

    def add() -> dict[tuple[object, ...], Sums]:
        ended = np.array(table["ended"].to_pylist(), dtype=np.int64)
        keys = [slice_time(ended, HOUR), encode_key(table["name"]).fill("")]
        return dict(sum_groups(table.select(SUM_COLUMNS), keys))

    wanted = {key: describe(found) for key, found in expected.items()}
    assert {key: describe(found) for key, found in add().items()} == wanted
    with without_library():
        assert {key: describe(found) for key, found in add().items()} == wanted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), min_size=1, max_size=200))
def test_groups_are_numbered_as_they_first_occur(drawn: list[int]) -> None:
    """Guarantee: both ways number alike, which is what lanes at Stripe are numbered by; so is the last time in each."""
    codes = np.array(drawn, dtype=np.int64)
    plain = number_groups(codes)
    order = list(dict.fromkeys(drawn))
    assert plain.of.tolist() == [order.index(value) for value in drawn]
    assert plain.firsts.tolist() == [drawn.index(value) for value in order]
    groups = group_rows([encode_key(pa.array(drawn))])
    assert (groups.of.tolist(), groups.firsts.tolist()) == (plain.of.tolist(), plain.firsts.tolist())
    values = codes[::-1].copy()
    largest = [
        max(value for value, of in zip(values.tolist(), plain.of, strict=True) if of == group)
        for group in range(len(order))
    ]
    assert find_largest(values, groups) == largest
    with without_library():
        assert find_largest(values, groups) == largest


def test_many_groups_are_as_few() -> None:
    """Guarantee: a table of groups that had to grow, several times, forgot none."""
    library = find_sums()
    if library is None:
        pytest.skip("the native library is not built")
    codes = np.random.default_rng(1).integers(0, 30_000, 100_000).astype(np.int64)
    of, firsts = group_keys(library, codes.view(np.uint64))
    plain = number_groups(codes)
    assert np.array_equal(of, plain.of)
    assert np.array_equal(firsts, plain.firsts)
