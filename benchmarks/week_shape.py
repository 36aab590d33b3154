"""The agent week in numbers: which sessions, turns, calls and tokens there are. Encodes and sends nothing.

Totals are exact by cumulative integer rounding; the noise is dealt to pairs, plus to one and minus to the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
HOUR_NANOS = 3_600 * 10**9
WEEK_HOURS = 168
MODELS = 37
CUSTOMERS = 40


@dataclass(frozen=True, slots=True)
class Totals:
    """What the week sums to; prompt tokens include the cached ones."""

    sessions: int = 301_026
    turns: int = 1_189_581
    calls: int = 9_310_255
    tools: int = 8_681_190
    prompt: int = 631_400_000_000
    cached: int = 540_950_000_000
    completion: int = 4_910_000_000

    def divide(self, share: int) -> Totals:
        """Every count divided by `share`, rounded down."""
        return Totals(*(getattr(self, name) // share for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Turns with the calls and tools beneath them; `call_turn` and `tool_turn` index the chunk's turns."""

    session: Ints
    model: Ints
    customer: Ints
    ended_nanos: Ints
    call_turn: Ints
    tool_turn: Ints
    call: Ints  # number in the week, unique
    prompt: Ints
    cached: Ints
    completion: Ints


class Week:
    """The week that ended at `end_nanos`, a full hour."""

    def __init__(self, totals: Totals, end_nanos: int) -> None:
        self.totals = totals
        self._end = end_nanos
        hours = np.arange(WEEK_HOURS) % 24
        rhythm = 1.2 + np.cos((hours - 15) / 24 * 2 * np.pi)  # busiest in the afternoon
        self._hours = np.concatenate(([0.0], np.cumsum(rhythm) / rhythm.sum()))
        sizes = 1 / np.arange(1, CUSTOMERS + 1)
        self._customers = np.cumsum(sizes) / sizes.sum()
        shares = 1 / np.arange(1, MODELS + 1)
        self._models = np.cumsum(shares) / shares.sum()

    def make_chunk(self, first: int, last: int) -> Chunk:
        """Turns `first` up to `last`, which is not included."""
        totals = self.totals
        turns = np.arange(first, last)
        bounds = _place(np.arange(first, last + 1), totals.calls, totals.turns)
        tools = np.diff(_place(np.arange(first, last + 1), totals.tools, totals.turns))
        call = np.arange(bounds[0], bounds[-1])
        swing = _deal(call, totals.calls, 40_000, 1)
        session = turns * totals.sessions // totals.turns
        model = np.searchsorted(self._models, _draw(turns, 2))
        moment = (turns + _draw(turns, 4)) / totals.turns
        hours = np.interp(moment, self._hours, np.arange(WEEK_HOURS + 1))
        return Chunk(
            session=session,
            model=np.where(turns < MODELS, turns, np.minimum(model, MODELS - 1)),
            customer=np.minimum(np.searchsorted(self._customers, _draw(session, 3)), CUSTOMERS - 1),
            ended_nanos=self._end - WEEK_HOURS * HOUR_NANOS + (hours * HOUR_NANOS).astype(np.int64),
            call_turn=np.repeat(turns - first, np.diff(bounds)),
            tool_turn=np.repeat(turns - first, tools),
            call=call,
            prompt=_share(call, totals.prompt, totals.calls) + swing,
            cached=_share(call, totals.cached, totals.calls) + swing,
            completion=_share(call, totals.completion, totals.calls) + _deal(call, totals.calls, 400, 5),
        )


def _place(index: Ints, total: int, among: int) -> Ints:
    """How much of `total` lies before each index; the inner bounds of each pair are moved, the outer ones stand."""
    exact = index * total // among
    room = max(1, total // among // 2)
    inner = (index % 2 == 1) & (index < among)
    return np.where(inner, exact + (_draw(index, 6) * (2 * room) - room).astype(np.int64), exact)


def _share(index: Ints, total: int, among: int) -> Ints:
    """Each one's part; index * total stays under 2**63 for the full week (5.9e18)."""
    return (index + 1) * total // among - index * total // among


def _deal(index: Ints, among: int, most: int, salt: int) -> Ints:
    """Noise whose sum is zero: the two of a pair get the opposite; one without a partner gets none."""
    amount = (_draw(index // 2, salt) * most).astype(np.int64)
    return np.where((index | 1) < among, np.where(index % 2 == 0, amount, -amount), 0)


def _draw(index: Ints, salt: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each index, always the same."""
    mixed = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt * 0x632BE59BD9B4E019 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53
