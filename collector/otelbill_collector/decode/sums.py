"""The counts of a span whose kind is known: its sums, and the signature by which its outcome is found. Owns `Sums`.

`split_counts` is what sums mean; `_split_plain` is the same for the usual counts, in a twentieth of the time.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from otelbill_collector.decode.counting import count_all_input, count_uncached, read_counts
from otelbill_collector.decode.privacy import clean_id, clean_word
from otelbill_collector.decode.quantities import Counts, list_facts, split_counts
from otelbill_collector.decode.shapes import Kind, Raw, Shape
from otelbill_collector.decode.values import NUMBERS, read_plain_id
from otelbill_collector.decode.wire import AttributeView, decode_value
from otelbill_collector.domain.usage import (
    CACHE_READ_TOKENS,
    CACHE_WRITE_TOKENS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    REASONING_TOKENS,
    Quantity,
)

Sums = tuple[tuple[object, ...], dict[str, Quantity], Counts | None, str | None]
"""Signature, disjoint quantities, the counts behind them where they are not plain, response id."""


def sum_counts(kind: Kind, shape: Shape, values: Raw, attributes: Any) -> Sums | None:
    """Signature, quantities, counts behind them where they are not plain, response id. None: a count is broken."""
    response_id = _read_response_id(shape, values) if shape.responses else None
    if kind.bare:
        return (response_id is None,), {}, None, response_id
    if kind.plain is not None:
        plain = _split_plain(kind, shape, values, response_id)
        if plain is not None:
            return plain
    return _split_any(kind, shape, attributes, response_id)


def _split_plain(kind: Kind, shape: Shape, values: Raw, response_id: str | None) -> Sums | None:
    """`split_counts` for the usual counts. None where one of them is no plain integer or a sum cannot be."""
    at_input, at_output, at_total, at_read, at_write, at_reasoning = kind.plain  # type: ignore[misc]  # the caller asks
    given, output = NUMBERS[values[at_input]], NUMBERS[values[at_output]]
    total = NUMBERS[values[at_total]] if at_total else 0
    read = NUMBERS[values[at_read]] if at_read else 0
    write = NUMBERS[values[at_write]] if at_write else 0
    reasoning = NUMBERS[values[at_reasoning]] if at_reasoning else 0
    if given is None or output is None or total is None or read is None or write is None or reasoning is None:
        return None
    cached, includes = read + write, kind.includes
    if includes is None:  # the sizes decide, see `quantities`
        includes = cached <= given and (cached == 0 or not at_total or total != given + cached + output)
    uncached = given - cached if includes else given
    if uncached < 0 or reasoning > output:
        return None
    quantities: dict[str, Quantity] = {INPUT_TOKENS: uncached}
    if read:
        quantities[CACHE_READ_TOKENS] = read
    if write:
        quantities[CACHE_WRITE_TOKENS] = write
    quantities[OUTPUT_TOKENS] = output
    if reasoning:
        quantities[REASONING_TOKENS] = reasoning
    if not shape.graded:
        signature = (response_id is None, given > 0, output > 0, total > 0, read > 0, write > 0, reasoning > 0)
        return signature, quantities, None, response_id
    whole = given + cached if kind.includes is False else given
    grades = (
        bisect_right(shape.steps, given),
        bisect_right(shape.steps, whole),
        bisect_right(shape.steps, whole - cached),
    )
    graded = (response_id is None, grades, output > 0, total > 0, read > 0, write > 0, reasoning > 0)
    return graded, quantities, None, response_id


def _split_any(kind: Kind, shape: Shape, attributes: Any, response_id: str | None) -> Sums | None:
    """The same by the rules' own reading: usage objects, odd types, impossible sums. None when a count is broken."""
    plan = shape.plan
    assert plan is not None  # a shape without a plan has no kinds
    reading = read_counts(AttributeView(attributes), plan, kind.provider, aggregate=kind.aggregate)
    if reading.problem is not None:
        return None
    counts, split = reading.counts, split_counts(reading.counts)
    response_id = response_id or clean_id(reading.response_id)
    signature = (
        response_id is None,
        clean_word(reading.service_tier),
        split.conflict is None and reading.conflict is None,
        *[None if count is None else count > 0 for count in list_facts(counts)],
        len(counts.units),
        bisect_right(shape.steps, counts.input or 0),
        bisect_right(shape.steps, count_all_input(counts)),
        bisect_right(shape.steps, count_uncached(counts)),
    )
    return signature, dict(split.quantities), counts, response_id


def _read_response_id(shape: Shape, values: Raw) -> str | None:
    """The first text among the spellings, as `facts` reads it."""
    found: str | None = None
    for place in shape.responses:
        found = read_plain_id(values[place])
        if found is None:
            text = decode_value(values[place])
            if not isinstance(text, str) or not text:
                continue
            found = clean_id(text)
        break
    made_up = shape.made_up
    return None if made_up is not None and found is not None and made_up.fullmatch(found) else found
