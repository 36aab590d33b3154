"""Filters over claim keys: a few bits for each, which never deny a key that was added. Owns their form, bit for bit.

The native library sets and asks the same bits as the code here does without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.native.links import add_to_filter, find_in_filter, find_in_filters
from otelbill_collector.native.loading import find_library

_PROBES = 7
_LINE_BITS = 512  # all probes of a key lie in one cache line
_SLICE_BITS = 9  # of a hash, which choose a bit of the line
_CHUNK_KEYS = 1 << 13  # at a time, so that their lines stay in the cache from one probe to the next
_BIT = np.left_shift(np.uint8(1), np.arange(8, dtype=np.uint8))
_MIX = np.uint64(0x9E3779B97F4A7C15)
_THREE, _SEVEN, _HALF = np.uint64(3), np.uint64(7), np.uint64(32)

Hashes = NDArray[np.uint64]
Prefixes = NDArray[np.int64]
"""First eight bytes of claim keys."""


class KeyFilter:
    """A Bloom filter with room for `keys_max` keys. Claim keys are digests, so their own bits serve as hashes."""

    def __init__(self, keys_max: int, bits_per_key: int) -> None:
        lines = keys_max * bits_per_key // _LINE_BITS + 1
        self.line_count, self._lines = lines, np.uint64(lines)
        self.bits: NDArray[np.uint8] = np.zeros(lines * _LINE_BITS >> 3, dtype=np.uint8)

    def add(self, prefixes: Prefixes) -> None:
        """Take keys in."""
        if find_library() is not None:
            add_to_filter(self.bits, self.line_count, prefixes)
            return
        hashes = prefixes.astype(np.uint64)
        for start in range(0, len(hashes), _CHUNK_KEYS):
            line, mixed = self._locate(hashes[start : start + _CHUNK_KEYS])
            for probe in range(_PROBES):
                self._set_bits(_choose_bit(line, mixed, probe))

    def _set_bits(self, place: Hashes) -> None:
        """Of two bits in one byte an assignment keeps one; those that are missing afterwards are set again."""
        while len(place):
            cell, bit = place >> _THREE, _BIT[place & _SEVEN]
            self.bits[cell] |= bit
            place = place[(self.bits[cell] & bit) == 0]

    def mark(self, prefixes: Prefixes, marks: NDArray[np.bool_]) -> None:
        """Set the marks of those that may have been added. Most others are told by the first probe or two."""
        if find_library() is not None:
            find_in_filter(self.bits, self.line_count, prefixes, marks)
            return
        hashes = prefixes.astype(np.uint64)
        found = np.arange(len(hashes))
        line, mixed = self._locate(hashes)
        for probe in range(_PROBES):
            place = _choose_bit(line, mixed, probe)
            hit = (self.bits[place >> _THREE] & _BIT[place & _SEVEN]) != 0
            found, line, mixed = found[hit], line[hit], mixed[hit]
            if not len(found):
                break
        marks[found] = True

    def _locate(self, hashes: Hashes) -> tuple[Hashes, Hashes]:
        """(first bit of the line, hash that chooses within it) of each: the upper halves, stretched over the lines."""
        return ((hashes >> _HALF) * self._lines >> _HALF) * np.uint64(_LINE_BITS), hashes * _MIX


def _choose_bit(line: Hashes, mixed: Hashes, probe: int) -> Hashes:
    return line + (mixed >> np.uint64(64 - _SLICE_BITS * (probe + 1)) & np.uint64(_LINE_BITS - 1))


def mark_in_each(filters: Sequence[KeyFilter], prefixes: Prefixes) -> NDArray[np.bool_]:
    """For each filter and key whether it may have been added, [filters, keys]."""
    marks = np.zeros((len(filters), len(prefixes)), dtype=np.bool_)
    if find_library() is not None:
        find_in_filters([(item.bits, item.line_count) for item in filters], prefixes, marks)
        return marks
    for item, row in zip(filters, marks, strict=True):
        item.mark(prefixes, row)
    return marks
