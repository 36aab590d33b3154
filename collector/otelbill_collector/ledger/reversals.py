"""Which bookings were reversed, for whoever reads segments from the newest to the oldest: 16 bytes each. Owns that set.

A reversal stands in a later segment than what it reverses, or later in the same one, so that a reader who has added all
segments from there on knows of every row whether it is in force.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from otelbill_collector.ledger.segments import decode_table

Ids = NDArray[np.uint64]  # rows of two words
Flags = NDArray[np.bool_]
_ID_BYTES = 16


def read_ids(column: pa.ChunkedArray | pa.Array) -> Ids:
    """Record ids, which are 32 hexadecimal characters each, as two words each."""
    text = "".join(column.to_pylist())
    return np.frombuffer(bytes.fromhex(text), dtype="<u8").reshape(-1, 2)


def list_reversed(body: bytes, signs: pa.ChunkedArray | None = None) -> pa.ChunkedArray | None:
    """Ids of the records that a segment reverses, None where it reverses none. `signs` are its, if already read."""
    signs = decode_table(body, ("sign",))["sign"] if signs is None else signs
    if not len(signs) or pc.min(signs).as_py() > 0:
        return None
    table = decode_table(body, ("sign", "corrects"))
    return table.filter(pc.less(table["sign"], 0))["corrects"]


class Reversed:
    """Ids of reversed records, in sorted arrays that double in size, so that each id is sorted a few times only."""

    def __init__(self) -> None:
        self._arrays: list[Ids] = []

    def __len__(self) -> int:
        return sum(map(len, self._arrays))

    def add(self, ids: Ids) -> None:
        """Add some; each is reversed once."""
        if not len(ids):
            return
        while self._arrays and len(self._arrays[-1]) <= len(ids):
            ids = np.concatenate([self._arrays.pop(), ids])
        self._arrays.append(ids[np.argsort(ids[:, 0], kind="stable")])

    def match(self, ids: Ids) -> Flags:
        """Which of the ids are in the set."""
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
        return found
