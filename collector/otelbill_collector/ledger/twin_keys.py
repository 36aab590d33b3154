"""Which emitters have twin keys, remembered for longer than the spans that have them. Owns this memory and its bound.

Twin keys link spans of different emitters only. Equal calls of one emitter are common (chunks of one size, answers of
one token), and would each be looked up in the ledger when the earlier ones are not held any more. An entry is made for
a key that was never seen before, and hears of every span from then on; so what it says is true of all spans of the key.
Of a key without an entry nothing is known. Two generations: when the younger is full the older is forgotten.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.domain.span_columns import Bytes, Int32s
from otelbill_collector.native.links import TwinTable


class TwinKeys:
    """Emitters by twin key, for at most `keys_max` keys. Not thread-safe."""

    def __init__(self, keys_max: int) -> None:
        self._half = max(1, keys_max >> 1)
        self._tables = (TwinTable(), TwinTable())

    def meet(self, keys: Bytes, key_starts: Int32s, emitters: Int32s, met: NDArray[np.bool_]) -> None:
        """Unmark twin keys that are `met` and that spans of no other emitter have. `emitters` are by span."""
        for table in self._tables:
            if len(table):
                table.meet(keys, key_starts, emitters, met)

    def note(self, keys: Bytes, emitters: Int32s, met: NDArray[np.bool_]) -> None:
        """Note new spans by their keys; those that are not `met` have no spans yet. `emitters` are by key."""
        younger, older = self._tables
        if len(older):
            older.note(keys, emitters, np.ones(len(keys), dtype=np.bool_), most=0)
        younger.note(keys, emitters, met, most=self._half)
        if len(younger) >= self._half:
            self._tables = (younger.emptied(), younger)

    def forget(self) -> None:
        """Forget everything."""
        self._tables = (TwinTable(), TwinTable())
