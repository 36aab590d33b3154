"""Times for which a rate card forgets a price. Owns what a gap is; a gap is allowed, and looks like a mistake."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from itertools import pairwise

from otelbill_collector.domain.card_problems import CardProblem, Placed, start_at
from otelbill_collector.domain.instants import format_instant
from otelbill_collector.domain.ratecard import RateCard
from otelbill_collector.domain.selectors import Selector, matches_pattern


def list_gaps(card: RateCard, cost_units: Collection[str]) -> Iterator[CardProblem]:
    """Between two entries of equal names, times at which neither they nor anything less specific is in force.

    `cost_units` are those whose provider cost may be known, so that a markup can price them.
    """
    prices = [Placed("prices", number, entry.unit, entry.selector) for number, entry in enumerate(card.prices)]
    charges = [Placed("charges", number, entry.unit, entry.selector) for number, entry in enumerate(card.charges)]
    entries = [*prices, *charges]
    alike: dict[tuple[object, ...], list[Placed]] = defaultdict(list)
    for entry in entries:
        alike[entry.key, *sorted(entry.selector.identify().items())].append(entry)
    for group in alike.values():
        ordered = sorted(group, key=lambda entry: start_at(entry.selector))
        for earlier, later in pairwise(ordered):
            end, start = earlier.selector.to_nanos, later.selector.from_nanos
            if end is None or start is None or end >= start:
                continue
            others = [entry.selector for entry in entries if entry.key == later.key]
            others += [markup.selector for markup in card.markups] if later.key in cost_units else []
            fallbacks = [other for other in others if is_wider(other, later.selector)]
            if not _fill(fallbacks, end, start):
                yield CardProblem(
                    (later.section, later.position, "from"),
                    f"leaves unit {later.key} without a price from {format_instant(end)} to {format_instant(start)}",
                    f"start here where {earlier.section}[{earlier.position}] ends, or state a price for that time",
                )


def is_wider(one: Selector, other: Selector) -> bool:
    """True when whatever the other matches, this one matches as well, time apart."""
    names, wanted = one.identify(), other.identify()
    model = names.pop("model", None)
    if model is not None and not ("model" in wanted and matches_pattern(model, wanted["model"])):
        return False
    return all(wanted.get(key) == value for key, value in names.items())


def _fill(selectors: list[Selector], start: int, end: int) -> bool:
    """True when together they are in force on all of [start, end)."""
    reached = start
    for selector in sorted(selectors, key=start_at):
        if start_at(selector) <= reached:
            reached = end if selector.to_nanos is None else max(reached, selector.to_nanos)
    return reached >= end
