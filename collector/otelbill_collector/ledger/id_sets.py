"""Sets of ids of 16 bytes, in 16 bytes each, that are asked about many at a time. Owns no meaning of any id."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ids = NDArray[np.uint64]  # rows of two words
Flags = NDArray[np.bool_]


def pack_ids(body: bytes) -> Ids:
    """Ids that stand one behind the other."""
    return np.frombuffer(body, dtype="<u8").reshape(-1, 2)


def view_ids(raw: NDArray[np.uint8]) -> Ids:
    """Ids as [n, 16]."""
    return np.ascontiguousarray(raw).view("<u8")


def read_ids(column: pa.ChunkedArray | pa.Array) -> Ids:
    """Ids that are 32 hexadecimal characters each."""
    return pack_ids(bytes.fromhex("".join(column.to_pylist())))


class IdSet:
    """Ids in sorted arrays of which each is twice the next, so that an id is sorted a few times only."""

    def __init__(self, ids: Ids | None = None) -> None:
        self._arrays: list[Ids] = []
        if ids is not None:
            self.add(ids)

    def __len__(self) -> int:
        return sum(map(len, self._arrays))

    def add(self, ids: Ids) -> None:
        """Add some that are not there."""
        if not len(ids):
            return
        while self._arrays and len(self._arrays[-1]) <= len(ids):
            ids = np.concatenate([self._arrays.pop(), ids])
        self._arrays.append(ids[np.argsort(ids[:, 0], kind="stable")])

    def match(self, ids: Ids) -> Flags:
        """Which of the ids are in the set."""
        order = np.argsort(ids[:, 0])  # neighbours are found in memory that was just looked at
        ids = ids[order]
        found = np.zeros(len(ids), dtype=np.bool_)
        for known in self._arrays:
            place = np.searchsorted(known[:, 0], ids[:, 0], side="left")
            open_ = np.flatnonzero((place < len(known)) & ~found)
            while len(open_):  # more than once only where two ids have an equal first half
                at = place[open_]
                same = known[at, 0] == ids[open_, 0]
                found[open_] |= same & (known[at, 1] == ids[open_, 1])
                place[open_] += 1
                open_ = open_[same & ~found[open_] & (place[open_] < len(known))]
        matches = np.empty(len(ids), dtype=np.bool_)
        matches[order] = found
        return matches
