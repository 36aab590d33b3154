"""Counts as an emitter gives them, made disjoint and checked. Owns strict number parsing and the sums between classes.

Impossible sums are never repaired: the result says they are inconsistent and the call is held.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from operator import attrgetter

from otelbill_collector.decode.privacy import clip_value
from otelbill_collector.domain.usage import (
    AUDIO_INPUT_TOKENS,
    AUDIO_OUTPUT_TOKENS,
    CACHE_READ_TOKENS,
    CACHE_WRITE_1H_TOKENS,
    CACHE_WRITE_TOKENS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    QUANTITY_MAX,
    REASONING_TOKENS,
    Problem,
    Quantities,
    Quantity,
)

_INTEGER = re.compile(r"\+?\d{1,17}(?:\.0{1,6})?", re.ASCII)
_DECIMAL = re.compile(r"\+?\d{1,17}(?:\.\d{1,12})?", re.ASCII)
_HINT_COUNT = "a token count is a whole number from 0 to 2^53; correct the instrumentation and replay the span"
_HINT_QUANTITY = (
    "otelbill.quantity is an int or a decimal string such as '12.5', from 0 to 2^53; replay the corrected span"
)


@dataclass(slots=True)
class Counts:
    """Counts of one call as reported. None means not reported; `includes_cache` None means check by the sizes."""

    input: int | None = None
    output: int | None = None
    total: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    reasoning: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None
    extra_input: int | None = None
    extra_output: int | None = None
    includes_cache: bool | None = True
    output_includes_reasoning: bool = True
    units: dict[str, Quantity] = field(default_factory=dict)

    def count_known(self) -> int:
        """How many facts are known: the measure of detail between two layers."""
        return len(_FACTS) - list_facts(self).count(None) + len(self.units)

    def has_usage(self) -> bool:
        """True when the emitter reported at least one main count above zero, or another unit."""
        return bool(self.input or self.output or self.cache_read or self.cache_write or self.units)


_FACTS = tuple(f.name for f in fields(Counts) if f.default is None)
list_facts = attrgetter(*_FACTS)
"""All facts of counts, in one order."""


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint quantities; `conflict` names the sum that cannot be, and then nothing may be priced."""

    quantities: Quantities
    conflict: str | None = None


def parse_count(value: object, name: str) -> int | Problem | None:
    """A token count: int, whole double, decimal string. None when absent or NaN; Problem when it is no count."""
    if type(value) is int and 0 <= value <= QUANTITY_MAX:  # nearly every count
        return value
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    count: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        count = value
    elif isinstance(value, float) and value.is_integer():
        count = int(value)
    elif isinstance(value, str) and value in {"NaN", "null", "None"}:
        return None
    elif isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        count = int(value.strip().split(".", 1)[0])
    if count is None:
        return Problem("not_a_count", name, clip_value(value), _HINT_COUNT)
    if not 0 <= count <= QUANTITY_MAX:
        return Problem("count_out_of_range", name, clip_value(value), _HINT_COUNT)
    return count


def parse_quantity(value: object, name: str) -> Quantity | Problem:
    """A metered quantity: int or decimal string, exact. Doubles are taken only when they are whole."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        try:
            exact = Decimal(value.strip())
        except InvalidOperation:  # pragma: no cover the pattern admits only decimals
            return Problem("not_a_quantity", name, clip_value(value), _HINT_QUANTITY)
        whole = exact == exact.to_integral_value()
        return _check_range(int(exact) if whole else exact, value, name)
    if isinstance(value, float) and value.is_integer():
        return _check_range(int(value), value, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return _check_range(value, value, name)
    return Problem("not_a_quantity", name, clip_value(value), _HINT_QUANTITY)


def _check_range(quantity: Quantity, value: object, name: str) -> Quantity | Problem:
    if 0 <= quantity <= QUANTITY_MAX:
        return quantity
    return Problem("quantity_out_of_range", name, clip_value(value), _HINT_QUANTITY)


def split_counts(counts: Counts) -> Split:
    """Disjoint quantities of the contract, or the name of the impossible sum."""
    read = counts.cache_read or 0
    write = max(counts.cache_write or 0, (counts.cache_write_5m or 0) + (counts.cache_write_1h or 0))
    cached = read + write
    given = counts.input or 0
    includes = counts.includes_cache if counts.includes_cache is not None else _seems_to_include(counts, cached)
    uncached = given - cached if includes else given
    output, reasoning = counts.output or 0, counts.reasoning or 0
    if not counts.output_includes_reasoning:
        output += reasoning
    conflict = _find_conflict(counts, uncached=uncached, output=output, reasoning=reasoning)
    quantities: dict[str, Quantity] = {
        INPUT_TOKENS: uncached + (counts.extra_input or 0),
        CACHE_READ_TOKENS: read,
        CACHE_WRITE_TOKENS: write,
        OUTPUT_TOKENS: output + (counts.extra_output or 0),
        CACHE_WRITE_1H_TOKENS: counts.cache_write_1h or 0,
        REASONING_TOKENS: reasoning,
        AUDIO_INPUT_TOKENS: counts.audio_input or 0,
        AUDIO_OUTPUT_TOKENS: counts.audio_output or 0,
        **counts.units,
    }
    if conflict is None and max(quantities.values(), default=0) > QUANTITY_MAX:
        conflict = "sum over 2^53"
    if conflict is not None:
        return Split({}, conflict)
    # A zero is kept only where the span said so: what it did not say is absent, not zero.
    said = {INPUT_TOKENS: counts.input is not None, OUTPUT_TOKENS: counts.output is not None}
    return Split({unit: amount for unit, amount in quantities.items() if amount or said.get(unit, False)})


def _seems_to_include(counts: Counts, cached: int) -> bool:
    """The sizes decide where no dialect does: cache above input, or a total that adds the cache, means it is apart."""
    given = counts.input or 0
    return cached <= given and (cached == 0 or counts.total != given + cached + (counts.output or 0))


def _find_conflict(counts: Counts, *, uncached: int, output: int, reasoning: int) -> str | None:
    if uncached < 0:
        return "cache > input"
    if reasoning > output and counts.output is not None:
        return "reasoning > output"
    if (counts.audio_input or 0) > max(counts.input or 0, uncached):
        return "audio > input"
    if (counts.audio_output or 0) > output and counts.output is not None:
        return "audio > output"
    return None


def sum_quantities(parts: list[Quantities]) -> dict[str, Quantity]:
    """Sum per unit."""
    totals: dict[str, Quantity] = {}
    for part in parts:
        for unit, amount in part.items():
            totals[unit] = totals.get(unit, 0) + amount
    return totals


def total_input(quantities: Mapping[str, Quantity]) -> Quantity:
    """All input of disjoint quantities: uncached, read from cache, written to cache."""
    get = quantities.get
    return get(INPUT_TOKENS, 0) + get(CACHE_READ_TOKENS, 0) + get(CACHE_WRITE_TOKENS, 0)
