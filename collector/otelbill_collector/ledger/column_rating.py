"""Rating by columns: what a card and a price book make of many booked rows at once, the same as of each by itself.

Rows that meet one tariff and have the same units share a `Form`: its state, its price version, its prices for one unit.
What a form cannot say (own units beside others, parts larger than their wholes, zero quantities) is rated row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.prices import PriceVersion, Timeline
from otelbill_collector.domain.ratecard import EventNames
from otelbill_collector.domain.rating import Rated, Rater
from otelbill_collector.domain.tariffs import PARENTS, Levels, Tariff
from otelbill_collector.domain.usage import (
    AUDIO_OUTPUT_TOKENS,
    CACHE_READ_TOKENS,
    CACHE_WRITE_TOKENS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    REASONING_TOKENS,
    STANDARD_UNITS,
    RatingState,
)
from otelbill_collector.ledger.amount_columns import QUANTITY_LIMIT, Amounts, encode_attos, multiply_prices
from otelbill_collector.ledger.packed import make_array, make_texts
from otelbill_collector.ledger.segments import parse_quantities, read_quantities
from otelbill_collector.ledger.sums import Groups, Key, encode_key, group_rows, read_integers

Int64s = NDArray[np.int64]
Flags = NDArray[np.bool_]

NAMES = ("provider", "model", "request_model", "service_tier", "customer_id", "step")
RATING_COLUMNS = ("ended_nanos", *NAMES, *STANDARD_UNITS, "other_quantities")
_FORMS_MAX = _OWN_MAX = 65_536  # combinations of tariff and units, or text of own units, that are remembered
_BITS = {unit: bit for bit, unit in enumerate(STANDARD_UNITS)}


class Form(NamedTuple):
    """How rows are rated: an amount is the constant plus quantity x price of each unit; None is not known."""

    state: RatingState
    version: PriceVersion | None
    prices: Mapping[str, tuple[int, int]]  # unit -> (cost, charge) for one
    cost_attos: int | None
    charge_attos: int | None

    @property
    def version_id(self) -> str | None:
        """The id of the price version, None where no price was used."""
        return self.version.version_id if self.version else None


@dataclass(frozen=True, slots=True)
class RatedRows:
    """What rating makes of the rows of a table: for each the number of its form, and its amounts."""

    form: Int64s
    forms: Sequence[Form]
    cost: Amounts
    charge: Amounts

    def choose_texts(self, texts: Sequence[str | None], rows: Int64s) -> pa.DictionaryArray:
        """A text for each form, as a column of some rows."""
        places = {text: place for place, text in enumerate(dict.fromkeys(text for text in texts if text is not None))}
        of_form = [-1 if text is None else places[text] for text in texts]
        codes = np.array(of_form, dtype=np.int32)[self.form[rows]]
        known = codes >= 0
        return pa.DictionaryArray.from_arrays(
            make_array(pa.int32(), codes, None if known.all() else known), make_texts(list(places))
        )


class ColumnRater:
    """Rates tables that have RATING_COLUMNS. Remembers forms: a further batch costs little more than its rows."""

    def __init__(self, rater: Rater) -> None:
        self.rater = rater
        # A tariff stands beside its form: while it does, no other has its number.
        self._forms: dict[tuple[int, int], tuple[Tariff, Form | None]] = {}
        self._own: dict[tuple[int, str], tuple[Tariff, Form]] = {}

    def rate(self, table: pa.Table) -> RatedRows:
        """The amounts of every row, at its event time."""
        rows = _Rows(table)
        tariff, tariffs = _find_tariffs(rows, self.rater)
        parts = _take_parts(rows, tariff, tariffs)
        mask = np.zeros(rows.count, dtype=np.int64)
        for unit, values in parts.items():
            mask |= (values != 0).astype(np.int64) << _BITS[unit]
        groups = group_rows([Key(tariff, range(len(tariffs))), Key(mask, range(1 << len(STANDARD_UNITS)))])
        pairs = zip(tariff[groups.firsts].tolist(), mask[groups.firsts].tolist(), strict=True)
        found = [self._find_form(tariffs[number], bits) for number, bits in pairs]
        forms = [_UNKNOWN if form is None else form for form in found]
        code = groups.of.astype(np.int64)
        odd = rows.odd | np.array([form is None for form in found], dtype=np.bool_)[code]
        form = self._rate_odd(rows, odd, tariff, tariffs, code, forms)
        cost, charge = (_multiply(forms, form, parts, side) for side in (0, 1))
        return RatedRows(form, forms, cost, charge)

    def _find_form(self, tariff: Tariff, mask: int) -> Form | None:
        """The form of rows with these units, None where each must be looked at."""
        key = (id(tariff), mask)
        if key not in self._forms:
            if len(self._forms) >= _FORMS_MAX:
                self._forms.clear()
            self._forms[key] = (tariff, _create_form(self.rater, tariff, mask))
        return self._forms[key][1]

    def _rate_odd(
        self, rows: _Rows, odd: Flags, tariff: Int64s, tariffs: Sequence[Tariff], code: Int64s, forms: list[Form]
    ) -> Int64s:
        """The forms of all rows, after those have got one of their own that share none."""
        places = np.flatnonzero(odd)
        if not len(places):
            return code
        form = code.copy()
        known: dict[tuple[int, str], int] = {}
        alone = rows.own_only[places].tolist()
        numbers = tariff[places].tolist()
        table = rows.table.take(pa.array(places))
        texts = table["other_quantities"].to_pylist()
        apart = iter(table.filter(pa.array([not one for one in alone])).to_pylist())
        for place, is_alone, number, text in zip(places.tolist(), alone, numbers, texts, strict=True):
            if not is_alone:
                form[place] = len(forms)
                forms.append(_create_constant(_rate_row(self.rater, next(apart))))
                continue
            if (number, text) not in known:
                known[number, text] = len(forms)
                forms.append(self._find_own(tariffs[number], text))
            form[place] = known[number, text]
        return form

    def _find_own(self, tariff: Tariff, text: str) -> Form:
        key = (id(tariff), text)
        if key not in self._own:
            if len(self._own) >= _OWN_MAX:
                self._own.clear()
            self._own[key] = (tariff, _create_constant(self.rater.rate_sums(tariff, parse_quantities(text))))
        return self._own[key][1]


_UNKNOWN = Form(RatingState.UNPRICED, None, {}, None, None)  # stands for rows that get a form of their own


def _rate_row(rater: Rater, row: dict[str, Any]) -> Rated:
    return rater.rate(read_quantities(row), row["ended_nanos"], **{name: row[name] for name in NAMES})


def _create_constant(rated: Rated) -> Form:
    return Form(rated.state, rated.version, {}, rated.cost_attos, rated.charge_attos)


def _create_form(rater: Rater, tariff: Tariff, mask: int) -> Form | None:
    """From the rating of one of each part; what it says of prices holds for any quantities above zero."""
    sample = {unit: 1 for unit, bit in _BITS.items() if mask >> bit & 1}
    for part in tariff.splits:
        if part in sample:  # rating takes it out of its whole; of which one is to be left if there is any
            sample[PARENTS[part]] = sample.get(PARENTS[part], 0) + 1
    rated = rater.rate_sums(tariff, sample)
    prices = {line.unit: (line.cost_price_attos or 0, line.charge_price_attos or 0) for line in rated.lines}
    if not rated.lines or any(min(pair) < 0 for pair in prices.values()):
        return None
    cost = None if rated.cost_attos is None else 0
    charge = None if rated.charge_attos is None else 0
    return Form(rated.state, rated.version, prices, cost, charge)


def _multiply(forms: Sequence[Form], form: Int64s, parts: Mapping[str, Int64s], side: int) -> Amounts:
    constants = encode_attos([(item.cost_attos, item.charge_attos)[side] for item in forms])
    prices = {unit: [item.prices[unit][side] if unit in item.prices else 0 for item in forms] for unit in parts}
    known = constants.known[form]
    words = multiply_prices(prices, parts, form, constants.words)
    return Amounts(words if known.all() else np.where(known[:, None], words, 0), known)


class _Rows:
    """A table's columns as arrays. `units` has those that any row counts; `odd` rows are to be rated by themselves."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.count = table.num_rows
        self.ended = read_integers(table["ended_nanos"])
        units = {unit: read_integers(table[unit]) for unit in STANDARD_UNITS if table[unit].null_count < self.count}
        self.units = {unit: values for unit, values in units.items() if values.any()}
        own: Flags = pc.is_valid(table["other_quantities"]).combine_chunks().to_numpy(zero_copy_only=False)
        self.odd = own | self._find_odd()
        # Own units and nothing else: rows of equal texts are rated once.
        plain = np.zeros(self.count, dtype=np.bool_)
        for unit in STANDARD_UNITS:
            if table[unit].null_count < self.count:
                plain |= pc.is_valid(table[unit]).combine_chunks().to_numpy(zero_copy_only=False)
        self.own_only = own & ~plain

    def get(self, unit: str) -> Int64s:
        """The quantities of a unit, zeros where no row has any."""
        return self.units.get(unit, np.zeros(self.count, dtype=np.int64))

    def _find_odd(self) -> Flags:
        odd = np.zeros(self.count, dtype=np.bool_)
        for part, whole in PARENTS.items():
            if part in self.units:
                odd |= self.units[part] > self.get(whole)
        if REASONING_TOKENS in self.units and AUDIO_OUTPUT_TOKENS in self.units:  # both are taken from one whole
            odd |= self.units[REASONING_TOKENS] + self.units[AUDIO_OUTPUT_TOKENS] > self.get(OUTPUT_TOKENS)
        for values in self.units.values():
            if values.min() < 0 or values.max() >= QUANTITY_LIMIT:
                odd |= (values < 0) | (values >= QUANTITY_LIMIT)
        return odd


def _take_parts(rows: _Rows, tariff: Int64s, tariffs: Sequence[Tariff]) -> dict[str, Int64s]:
    """Quantities as they are priced: a part with a price of its own comes off its whole, one without is in it."""
    parts = dict(rows.units)
    for part, whole in PARENTS.items():
        if part in rows.units:
            split = np.array([part in item.splits for item in tariffs], dtype=np.bool_)[tariff]
            parts[part] = np.where(split, rows.units[part], 0)
            if whole in parts:
                parts[whole] = parts[whole] - parts[part]
    return parts


def _find_tariffs(rows: _Rows, rater: Rater) -> tuple[Int64s, list[Tariff]]:
    """For each row the number of its tariff, and the tariffs."""
    if not rows.count:
        return np.zeros(0, dtype=np.int64), []
    names, combinations = _group_names(rows.table, rater)
    since, until = int(rows.ended.min()), int(rows.ended.max())
    tariffs: list[Tariff] = []
    simple: Int64s = np.zeros(len(combinations), dtype=np.int64)
    others: dict[int, Timeline[Levels]] = {}
    for number, combination in enumerate(combinations):
        route = rater.find_route(combination)
        levels = _find_only(route, since, until)
        if levels is None:
            others[number] = route
        else:
            simple[number] = len(tariffs)
            tariffs.append(levels.tariffs[0])
    tariff = simple[names.of]
    total = partial(_add_input, rows)
    for number, chosen in _list_rows(names, list(others)):
        _assign_tariffs(rows.ended, total, chosen, others[number], tariffs, tariff)
    return tariff, tariffs


def _find_only(route: Timeline[Levels], since: int, until: int) -> Levels | None:
    """The prices of a route if all events between two instants have the same, whatever their size."""
    place = np.searchsorted(np.array(route.starts, dtype=np.int64), [since, until], side="right")
    day = route.days[int(place[0])]
    if place[0] != place[1] or len(day) > 1 or day[0].thresholds:
        return None
    return day[0]


def _group_names(table: pa.Table, rater: Rater) -> tuple[Groups, list[EventNames]]:
    """Rows by their combination of names that prices tell apart, and the combinations."""
    keys = [encode_key(table[name]) for name in NAMES]
    for place in (NAMES.index("customer_id"), NAMES.index("step")):
        keys[place] = _merge_values(keys[place], NAMES[place], rater)
    groups = group_rows(keys)
    columns = [[key.values[code] for code in key.codes[groups.firsts].tolist()] for key in keys]
    return groups, [EventNames(*names) for names in zip(*columns, strict=True)]


def _merge_values(key: Key, name: str, rater: Rater) -> Key:
    """One value for all that mean the same to the card, which tells few customers and steps from others."""
    kinds: dict[EventNames, int] = {}
    kept: list[str | None] = []
    places = np.zeros(len(key.values), dtype=np.int64)
    for number, value in enumerate(key.values):
        kind = rater.complete_names(EventNames(**{name: value}))
        if kind not in kinds:
            kinds[kind] = len(kept)
            kept.append(value)
        places[number] = kinds[kind]
    return Key(places[key.codes], kept)


def _list_rows(groups: Groups, wanted: Sequence[int]) -> Iterator[tuple[int, Int64s]]:
    """For each wanted group its rows, all found in one pass."""
    chosen = np.zeros(len(groups.firsts), dtype=np.bool_)
    chosen[list(wanted)] = True
    rows = np.flatnonzero(chosen[groups.of])
    order = rows[np.argsort(groups.of[rows], kind="stable")]
    ordered = groups.of[order]
    for number in wanted:
        start, end = np.searchsorted(ordered, number, "left"), np.searchsorted(ordered, number, "right")
        yield number, order[start:end]


def _add_input(rows: _Rows, chosen: Int64s) -> Int64s:
    """The size of requests: input tokens, cached ones included."""
    return sum(
        (
            rows.units[unit][chosen]
            for unit in (INPUT_TOKENS, CACHE_READ_TOKENS, CACHE_WRITE_TOKENS)
            if unit in rows.units
        ),
        start=np.zeros(len(chosen), dtype=np.int64),
    )


def _assign_tariffs(
    ended: Int64s, total: Any, rows: Int64s, route: Timeline[Levels], tariffs: list[Tariff], tariff: Int64s
) -> None:
    """Number the tariffs that rows of one combination of names meet. Any: a function from rows to their sizes."""
    for chosen, levels in _list_slices(ended, rows, route):
        if not levels.thresholds:
            tariff[chosen] = len(tariffs)
            tariffs.append(levels.tariffs[0])
            continue
        level = np.searchsorted(np.array(levels.thresholds, dtype=np.int64), total(chosen), side="left")
        for number in np.unique(level).tolist():
            tariff[chosen[level == number]] = len(tariffs)
            tariffs.append(levels.tariffs[number])


def _list_slices(ended: Int64s, rows: Int64s, route: Timeline[Levels]) -> Iterator[tuple[Int64s, Levels]]:
    """The rows by the interval, and the part of the day, in which they ended."""
    times = ended[rows]
    places = np.searchsorted(np.array(route.starts, dtype=np.int64), times, side="right")
    hours = np.searchsorted(np.array(route.day_starts, dtype=np.int64), times % DAY_NANOS, side="right") - 1
    for place in np.unique(places).tolist():
        day = route.days[place]
        for hour, levels in enumerate(day):
            chosen = rows[(places == place) & ((hours == hour) | (len(day) == 1))]
            if len(chosen):
                yield chosen, levels
