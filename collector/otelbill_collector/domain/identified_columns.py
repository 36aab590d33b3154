"""Spans in columns with what follows from each alone: ids, digest, claim keys. Owns no formula of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.domain.span_columns import Bytes, Int32s, SpanColumns


@dataclass(frozen=True, slots=True, eq=False)
class IdentifiedColumns:
    """Spans with what follows from each alone, so that it is derived before their turn to be booked."""

    spans: SpanColumns
    event_id: Bytes  # [n, 16]
    content: Bytes  # [n, 16]: digest of the candidate
    keys: Bytes  # [m, 16]: claim keys, span by span
    key_starts: Int32s  # [n + 1]: the keys of the n-th span are keys[key_starts[n]:key_starts[n + 1]]

    def __len__(self) -> int:
        return len(self.spans)

    def take(self, rows: NDArray[np.intp]) -> IdentifiedColumns:
        """Some spans, in their order: `rows` ascend."""
        sizes = np.diff(self.key_starts)
        chosen = np.zeros(len(sizes), dtype=np.bool_)
        chosen[rows] = True
        starts = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(sizes[rows], out=starts[1:])
        ids = self.event_id[rows], self.content[rows]
        return IdentifiedColumns(self.spans.take(rows), *ids, self.keys[np.repeat(chosen, sizes)], starts)

    def goes_with(self, other: IdentifiedColumns) -> bool:
        """Whether codes mean the same in both."""
        return self.spans.templates is other.spans.templates and self.spans.names is other.spans.names


def join_identified(parts: Sequence[IdentifiedColumns]) -> IdentifiedColumns:
    """The spans of parts that go with each other, in their order."""
    first, *others = parts
    if not others:
        return first
    before = np.cumsum([0, *(len(part.keys) for part in parts)])
    starts = [part.key_starts[:-1] + base for part, base in zip(parts, before.tolist(), strict=False)]
    return IdentifiedColumns(
        first.spans.join([part.spans for part in others]),
        np.concatenate([part.event_id for part in parts]),
        np.concatenate([part.content for part in parts]),
        np.concatenate([part.keys for part in parts]),
        np.concatenate([*starts, before[-1:]], dtype=np.int32),
    )
