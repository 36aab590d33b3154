"""What changes between two sets of prices: what, for whom, from when until when. Owns the comparison.

Compares entries of equal names over time; which entry wins for an event is not asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from otelbill_collector.domain.price_list import ListedEntry
from otelbill_collector.domain.selectors import Selector


@dataclass(frozen=True, slots=True)
class PriceChange:
    """On [from_nanos, to_nanos) the entry for these names says `after` instead of `before`; None is no entry."""

    section: str
    name: str
    names: dict[str, str]
    from_nanos: int | None
    to_nanos: int | None
    before: str | None
    after: str | None


def list_changes(before: Iterable[ListedEntry], after: Iterable[ListedEntry]) -> list[PriceChange]:
    """The differences, in the order of the entries. Writing the same prices in another way is none."""
    pairs: dict[tuple[object, ...], tuple[list[ListedEntry], list[ListedEntry]]] = defaultdict(lambda: ([], []))
    for side, entries in enumerate((before, after)):
        for entry in entries:
            pairs[entry.section, entry.name, *sorted(entry.selector.identify().items())][side].append(entry)
    return [change for old, new in pairs.values() for change in _compare(old, new)]


def _compare(old: Sequence[ListedEntry], new: Sequence[ListedEntry]) -> Iterator[PriceChange]:
    first = (new or old)[0]
    edges = {edge for entry in (*old, *new) for edge in (entry.selector.from_nanos, entry.selector.to_nanos)}
    starts: list[int | None] = [None, *sorted(edge for edge in edges if edge is not None)]
    ends: list[int | None] = [*starts[1:], None]
    last: PriceChange | None = None
    for start, end in zip(starts, ends, strict=True):
        sample = start if start is not None else end - 1 if end is not None else 0
        was, says = _find_saying(old, sample), _find_saying(new, sample)
        if last is not None and (last.before, last.after) == (was, says):
            last = replace(last, to_nanos=end)
            continue
        if last is not None and last.before != last.after:
            yield last
        last = PriceChange(first.section, first.name, first.selector.list_names(), start, end, was, says)
    if last is not None and last.before != last.after:
        yield last


def _find_saying(entries: Sequence[ListedEntry], at_nanos: int) -> str | None:
    return next((entry.says for entry in entries if entry.selector.covers(at_nanos)), None)


def list_currency_change(before: str, after: str) -> list[PriceChange]:
    """The one difference that changes what every amount means."""
    return [] if before == after else [PriceChange("currency", "", Selector().list_names(), None, None, before, after)]
