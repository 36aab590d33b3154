"""The rate card: what customers are charged. Owns its entries, which of them applies first, and what makes it invalid.

Does not read files (see `config`) and does not multiply (see `rating`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, TypeVar

from otelbill_collector.domain.instants import format_instant
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.prices import Json
from otelbill_collector.domain.providers import find_provider_id

DEFAULT_CURRENCY = "USD"


class EventNames(NamedTuple):
    """What entries are matched against: the names on a usage event. A tuple, since it is the key of a hot cache."""

    provider: str | None = None
    model: str | None = None
    request_model: str | None = None
    service_tier: str | None = None
    customer_id: str | None = None
    step: str | None = None


@dataclass(frozen=True, slots=True)
class Selector:
    """For whom, what and when an entry holds. None matches everything; `model` ending in `*` matches by prefix.

    Models and providers compare without regard to case, providers also across spellings (`azure` is `az.ai.openai`).
    [from_nanos, to_nanos) is half-open; None is without end on that side.
    """

    customer_id: str | None = None
    step: str | None = None
    model: str | None = None
    provider: str | None = None
    from_nanos: int | None = None
    to_nanos: int | None = None

    def rank_match(self, names: EventNames) -> Rank | None:
        """How specific this entry is for an event, or None when it does not apply. The greatest rank wins."""
        if self.customer_id is not None and self.customer_id != names.customer_id:
            return None
        if self.step is not None and self.step != names.step:
            return None
        if self.provider is not None and _normalize(self.provider) != _normalize(names.provider):
            return None
        model = _rank_model(self.model, names)
        if model is None:
            return None
        return (self.customer_id is not None, self.step is not None, *model, self.provider is not None)

    def covers(self, at_nanos: int) -> bool:
        """True when the instant is in [from, to)."""
        after_start = self.from_nanos is None or at_nanos >= self.from_nanos
        return after_start and (self.to_nanos is None or at_nanos < self.to_nanos)

    def render(self) -> dict[str, Json]:
        """The names and the start, for a price version. No end: giving an entry an end later changes no price."""
        given = {"customer": self.customer_id, "step": self.step, "model": self.model, "provider": self.provider}
        shown: dict[str, Json] = {key: value for key, value in given.items() if value is not None}
        return shown if self.from_nanos is None else {**shown, "from": format_instant(self.from_nanos)}


# customer given, step given, model (2 exact, 1 prefix, 0 any), prefix length, response before request model, provider
Rank = tuple[bool, bool, int, int, bool, bool]


def _normalize(provider: str | None) -> str | None:
    return find_provider_id(provider) or (provider.strip().lower() if provider else None)


def _rank_model(pattern: str | None, names: EventNames) -> tuple[int, int, bool] | None:
    if pattern is None:
        return (0, 0, False)
    wanted = pattern.lower()
    for name, answered in ((names.model, True), (names.request_model, False)):
        if name is None:
            continue
        if wanted.endswith("*"):
            if name.lower().startswith(wanted[:-1]):
                return (1, len(wanted), answered)
        elif name.lower() == wanted:
            return (2, 0, answered)
    return None


@dataclass(frozen=True, slots=True)
class ChargePrice:
    """A price for one unit: `attos` of the card's currency, at most 12 decimals."""

    unit: str
    attos: int
    selector: Selector = field(default_factory=Selector)

    def render(self) -> dict[str, Json]:
        """JSON-able form, for a price version."""
        return {"price": format_attos(self.attos), **self.selector.render()}


@dataclass(frozen=True, slots=True)
class Markup:
    """Cost-plus for what no price covers: provider cost plus `percent_scaled` ten-thousandths of a percent."""

    percent_scaled: int
    selector: Selector = field(default_factory=Selector)

    def render(self) -> dict[str, Json]:
        """JSON-able form, for a price version."""
        whole, fraction = divmod(abs(self.percent_scaled), 10_000)
        sign = "-" if self.percent_scaled < 0 else ""
        text = f"{whole}.{fraction:04d}".rstrip("0").rstrip(".")
        return {"markup_percent": f"{sign}{text}", **self.selector.render()}


Entry = TypeVar("Entry", ChargePrice, Markup)


@dataclass(frozen=True, slots=True)
class CardProblem:
    """Why a rate card is invalid: where (`("prices", 2)`), what, and the remedy."""

    path: tuple[str | int, ...]
    message: str
    remedy: str


class InvalidRateCard(ValueError):
    """A rate card contradicts itself; `problems` lists everything that is wrong."""

    def __init__(self, problems: list[CardProblem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class RateCard:
    """Prices and markups of one currency. Their order has no meaning. Raises InvalidRateCard."""

    prices: tuple[ChargePrice, ...] = ()
    markups: tuple[Markup, ...] = ()
    currency: str = DEFAULT_CURRENCY

    def __post_init__(self) -> None:
        problems = list(_list_problems(self))
        if problems:
            raise InvalidRateCard(problems)

    def list_selectors(self) -> list[Selector]:
        """The selectors of all entries."""
        return [*(price.selector for price in self.prices), *(markup.selector for markup in self.markups)]


def find_entry(entries: Iterable[Entry], names: EventNames, at_nanos: int) -> Entry | None:
    """The most specific entry in force for an event, or None. Two of equal rank cannot be: the card refuses them."""
    best: Entry | None = None
    best_rank: Rank | None = None
    for entry in entries:
        if not entry.selector.covers(at_nanos):
            continue
        rank = entry.selector.rank_match(names)
        if rank is not None and (best_rank is None or rank > best_rank):
            best, best_rank = entry, rank
    return best


def _list_problems(card: RateCard) -> Iterable[CardProblem]:
    yield from _list_overlaps("prices", [(entry.unit, entry.selector) for entry in card.prices])
    yield from _list_overlaps("markup", [("", entry.selector) for entry in card.markups])
    if card.markups and card.currency != DEFAULT_CURRENCY:
        yield CardProblem(
            ("markup",),
            f"a markup needs a card in {DEFAULT_CURRENCY}, since provider prices are; this one is in {card.currency}",
            f"state prices for every unit instead, or set currency: {DEFAULT_CURRENCY}",
        )


def _list_overlaps(section: str, entries: list[tuple[str, Selector]]) -> Iterable[CardProblem]:
    """Entries of one rank that match the same event differ in nothing but time; so they must not share any time."""
    alike: dict[tuple[str | None, ...], list[int]] = defaultdict(list)
    for index, (unit, selector) in enumerate(entries):
        model = selector.model.lower() if selector.model else None
        alike[unit, selector.customer_id, selector.step, model, _normalize(selector.provider)].append(index)
        if selector.to_nanos is not None and _start(selector) >= selector.to_nanos:
            remedy = "`to` is the first instant out of force"
            yield CardProblem((section, index, "to"), "`to` is not after `from`", remedy)
    for group in alike.values():
        ordered = sorted(group, key=lambda index: (_start(entries[index][1]), index))
        for earlier, later in pairwise(ordered):
            end, start = entries[earlier][1].to_nanos, _start(entries[later][1])
            if end is None or end > start:
                yield CardProblem(
                    (section, max(earlier, later)),
                    f"overlaps {section}[{min(earlier, later)}]: the same {_describe(entries[later])} at the same time",
                    "end one with `to` where the other starts with `from`, or make one more specific",
                )


def _start(selector: Selector) -> int:
    return selector.from_nanos if selector.from_nanos is not None else -(2**100)


def _describe(entry: tuple[str, Selector]) -> str:
    unit, selector = entry
    names = [f"unit {unit}"] if unit else []
    names += [f"{key} {value}" for key, value in selector.render().items() if key != "from"]
    return ", ".join(names) or "usage"


# Without a rate card a charge is what the provider charges; a custom unit, which has no provider, stays unpriced.
AT_COST = RateCard(markups=(Markup(0),))
