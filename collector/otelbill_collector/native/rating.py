"""Wraps rating.c: amounts of spans by plans. Owns the form of a plan and the table in which plans are found."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.native.loading import make_array, point_at

COUNTS = 5
SUMMED, SETTLED, ALONE = 0, 1, 2  # kinds of plans: amounts are sums; there are none; the span is rated by itself
NO_PLAN = 1  # an outcome: no plan of the span's key holds for it
TEMPLATES_MAX, PAYERS_MAX, STEPS_MAX = 2**20, 2**22, 2**16  # what a key has room for
PLAN = np.dtype(
    [
        *((name, "<i8") for name in ("first_nanos", "last_nanos", "day_first", "day_last", "above", "upto")),
        *(("cost", "<i8", COUNTS + 1), ("charge", "<i8", COUNTS + 1)),
        *((name, "<i4") for name in ("kind", "rating", "version", "next")),
    ]
)
_FREE = -1
_KEY_FIELDS = ((5, 2**5 - 1), (16, STEPS_MAX - 1), (22, PAYERS_MAX - 1))


class Key(NamedTuple):
    """What decides the prices of a span, as numbers: see rating.c."""

    template: int
    payer: int
    step: int
    units: int  # bit n is set where the n-th count is not zero


def split_key(key: int) -> Key:
    """The parts of a key."""
    parts = []
    for bits, mask in _KEY_FIELDS:
        parts.append(key & mask)
        key >>= bits
    units, step, payer = parts
    return Key(key, payer, step, units)


class PlanTable:
    """Plans by key: a key has one for every time and size of request that was met."""

    def __init__(self, library: ctypes.CDLL, slots: int = 1_024) -> None:
        self._library = library
        library.ob_rate.restype = ctypes.c_int64
        library.ob_rating_slot.restype = ctypes.c_uint64
        self._plans = np.zeros(64, dtype=PLAN)
        self._count = 0
        self._make_slots(slots)

    def __len__(self) -> int:
        return self._count

    def add(self, key: int, plan: dict[str, Any]) -> None:
        """Another plan of a key; `plan` has the fields of PLAN but `next`."""
        if self._count == len(self._plans):
            self._plans = np.concatenate([self._plans, np.zeros_like(self._plans)])
        if 2 * self._used >= len(self._keys):
            self._grow()
        slot = self._find_slot(key)
        self._used += int(self._firsts[slot] == _FREE)
        entry = self._plans[self._count]
        for name, value in plan.items():
            entry[name] = value
        entry["next"] = self._firsts[slot]
        self._keys[slot], self._firsts[slot] = key, self._count
        self._count += 1

    def rate(self, spans: Spans, facts: Facts, amounts: Amounts) -> int:
        """Fill `amounts` for every span that a plan covers; returns how many are not done."""
        rows = len(spans.template)
        pointers: list[Any] = [ctypes.c_int64(rows), *[_pass(array) for array in spans], _pass(facts.counted)]
        pointers += [ctypes.c_int64(len(facts.counted)), _pass(facts.payer_of), _pass(facts.step_of)]
        pointers += [ctypes.c_int64(len(facts.payer_of)), _pass(self._keys), _pass(self._firsts)]
        pointers += [ctypes.c_uint64(len(self._keys) - 1), _pass(self._plans), *[_pass(array) for array in amounts]]
        return int(self._library.ob_rate(*pointers))

    def _make_slots(self, size: int) -> None:
        self._keys: NDArray[np.uint64] = np.zeros(size, dtype=np.uint64)
        self._firsts: NDArray[np.int32] = np.full(size, _FREE, dtype=np.int32)
        self._used = 0

    def _find_slot(self, key: int) -> int:
        mask = len(self._keys) - 1
        slot = int(self._library.ob_rating_slot(ctypes.c_uint64(key), ctypes.c_uint64(mask)))
        while self._firsts[slot] != _FREE and int(self._keys[slot]) != key:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        held = self._firsts != _FREE
        keys, firsts = self._keys[held].tolist(), self._firsts[held].tolist()
        self._make_slots(2 * len(self._keys))
        for key, first in zip(keys, firsts, strict=True):
            slot = self._find_slot(key)
            self._keys[slot], self._firsts[slot] = key, first
        self._used = len(keys)


class Spans(NamedTuple):
    """Columns of the spans to rate; codes of customers and steps point into `Facts`, -1 is nobody."""

    template: NDArray[np.int32]
    customer: NDArray[np.int32]
    step: NDArray[np.int32]
    ended_nanos: NDArray[np.int64]
    counts: NDArray[np.int64]  # [5, n]; the first three are the input of the request


class Facts(NamedTuple):
    """What the codes stand for: whether spans of a template have counts, and the payer and step that prices know."""

    counted: NDArray[np.uint8]
    payer_of: NDArray[np.int32]  # by name; 0 is nobody in particular, -1 has no number
    step_of: NDArray[np.int32]


class Amounts(NamedTuple):
    """What rating finds, by span."""

    rating: NDArray[np.int32]
    version: NDArray[np.int32]
    cost: NDArray[np.int64]  # [n, 2]: low and high word
    charge: NDArray[np.int64]
    priced: NDArray[np.uint8]  # 1 where there are amounts
    key: NDArray[np.uint64]
    outcome: NDArray[np.uint8]  # 0 is done

    @classmethod
    def create(cls, rows: int) -> Amounts:
        """Memory for so many spans."""
        kinds = ("<i4", "<i4", "<i8", "<i8", "u1", "<u8", "u1")
        return cls(*[make_array((rows, 2) if kind == "<i8" else rows, kind) for kind in kinds])


def _pass(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(point_at(array))
