"""The rate card: what customers are charged. Owns its entries, which of them applies first, and what makes it invalid.

Does not read files (see `config`) and does not multiply (see `rating`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from otelbill_collector.domain.card_problems import (
    CardProblem,
    InvalidRateCard,
    Placed,
    list_charge_problems,
    list_overlaps,
)
from otelbill_collector.domain.charges import Commitment, Discount, Fee, Minimum, PeriodCharge
from otelbill_collector.domain.money import ATTOS_PER_UNIT, format_attos
from otelbill_collector.domain.prices import Json, render_percent
from otelbill_collector.domain.quantities import MICROS, format_micros
from otelbill_collector.domain.selectors import EventNames, Rank, Selector

__all__ = [
    "AT_COST",
    "CREDITS",
    "DEFAULT_CURRENCY",
    "CardProblem",
    "ChargePrice",
    "EventNames",
    "InvalidRateCard",
    "Markup",
    "RateCard",
    "Selector",
    "find_charge",
    "find_entry",
    "find_named",
]

DEFAULT_CURRENCY = "USD"
CREDITS = "credits"  # the unit of what is granted in advance and burned at so many for one of another unit
ATTOS_PER_MICRO = ATTOS_PER_UNIT // MICROS


@dataclass(frozen=True, slots=True)
class ChargePrice:
    """A price for one unit: `attos` of the card's currency, at most 12 decimals; or `credits_micros`, millionths of
    credits, whose own price in force says what it comes to.
    """

    unit: str
    attos: int
    selector: Selector = field(default_factory=Selector)
    credits_micros: int | None = None

    def render(self) -> dict[str, Json]:
        """JSON-able form, for a price version."""
        if self.credits_micros is not None:
            return {"credits": format_micros(self.credits_micros), **self.selector.render()}
        return {"price": format_attos(self.attos), **self.selector.render()}


@dataclass(frozen=True, slots=True)
class Markup:
    """Cost-plus for what no price covers: provider cost plus `percent_scaled` ten-thousandths of a percent."""

    percent_scaled: int
    selector: Selector = field(default_factory=Selector)

    def render(self) -> dict[str, Json]:
        """JSON-able form, for a price version."""
        return {"markup_percent": render_percent(self.percent_scaled), **self.selector.render()}


class Selecting(Protocol):
    """Anything that a selector says when to apply."""

    @property
    def selector(self) -> Selector:
        """For whom, what and when."""
        ...


class Named(Selecting, Protocol):
    """An entry whose name tells which others it takes the place of."""

    @property
    def name(self) -> str:
        """What it is called on an invoice."""
        ...


Entry = TypeVar("Entry", bound=Selecting)
NamedEntry = TypeVar("NamedEntry", bound=Named)


@dataclass(frozen=True, slots=True)
class RateCard:
    """What customers are charged, in one currency. The order of entries has no meaning. Raises InvalidRateCard.

    `prices` and `markups` rate events; `charges`, `fees`, `minimums`, `commitments` and `discounts` make invoices.
    """

    prices: tuple[ChargePrice, ...] = ()
    markups: tuple[Markup, ...] = ()
    currency: str = DEFAULT_CURRENCY
    charges: tuple[PeriodCharge, ...] = ()
    fees: tuple[Fee, ...] = ()
    minimums: tuple[Minimum, ...] = ()
    commitments: tuple[Commitment, ...] = ()
    discounts: tuple[Discount, ...] = ()
    _by_unit: dict[str, list[ChargePrice | PeriodCharge]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        charges = tuple(replace(charge, currency=self.currency) for charge in self.charges)
        object.__setattr__(self, "charges", charges)
        entries: list[ChargePrice | PeriodCharge] = [*self.prices, *charges]
        for entry in entries:
            self._by_unit.setdefault(entry.unit, []).append(entry)
        problems = list(_list_problems(self))
        if problems:
            raise InvalidRateCard(problems)

    def list_selectors(self) -> list[Selector]:
        """The selectors of everything that decides about an event."""
        return [entry.selector for section in (self.prices, self.markups, self.charges) for entry in section]

    def list_unit_entries(self, unit: str) -> Sequence[ChargePrice | PeriodCharge]:
        """What may price a unit: by event or by period."""
        return self._by_unit.get(unit, ())


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


def find_charge(card: RateCard, unit: str, names: EventNames, at_nanos: int) -> PeriodCharge | None:
    """The period charge that covers a unit of an event, or None: nothing does, or a price by event is as specific."""
    found = find_entry(card.list_unit_entries(unit), names, at_nanos)
    return found if isinstance(found, PeriodCharge) else None


def find_named(entries: Sequence[NamedEntry], names: EventNames, at_nanos: int) -> list[NamedEntry]:
    """Of fees, minimums, commitments or discounts: for each name the most specific one in force, in order of name."""
    wanted = sorted({entry.name for entry in entries})
    found = (find_entry([entry for entry in entries if entry.name == name], names, at_nanos) for name in wanted)
    return [entry for entry in found if entry is not None]


def _list_problems(card: RateCard) -> Iterable[CardProblem]:
    prices = [Placed("prices", number, entry.unit, entry.selector) for number, entry in enumerate(card.prices)]
    charges = [Placed("charges", number, entry.unit, entry.selector) for number, entry in enumerate(card.charges)]
    yield from list_overlaps([*prices, *charges], "unit")
    yield from list_overlaps([Placed("markup", n, "", entry.selector) for n, entry in enumerate(card.markups)], "usage")
    yield from list_charge_problems(card.charges)
    yield from _list_credit_problems(card)
    named: tuple[tuple[str, Sequence[Named]], ...] = (
        ("fees", card.fees),
        ("minimums", card.minimums),
        ("commitments", card.commitments),
        ("discounts", card.discounts),
    )
    for section, entries in named:
        placed = [Placed(section, number, entry.name, entry.selector) for number, entry in enumerate(entries)]
        yield from list_overlaps(placed, "name")
    if card.markups and card.currency != DEFAULT_CURRENCY:
        yield CardProblem(
            ("markup",),
            f"a markup needs a card in {DEFAULT_CURRENCY}, since provider prices are; this one is in {card.currency}",
            f"state prices for every unit instead, or set currency: {DEFAULT_CURRENCY}",
        )


def _list_credit_problems(card: RateCard) -> Iterable[CardProblem]:
    """Credits must have a price in money, by event, of which the products with any number of them are exact."""
    costing = [number for number, entry in enumerate(card.prices) if entry.credits_micros is not None]
    worth = [(number, entry) for number, entry in enumerate(card.prices) if entry.unit == CREDITS]
    for number in costing:
        if card.prices[number].unit == CREDITS:
            yield CardProblem(("prices", number, "credits"), "a credit cannot cost credits", "give it a price in money")
        elif not worth:
            yield CardProblem(
                ("prices", number, "credits"),
                "says what it costs in credits, and nothing says what a credit is worth",
                f'add a price of the unit {CREDITS}, such as {{unit: {CREDITS}, price: "0.01"}}',
            )
    for number, entry in worth if costing else ():
        if entry.attos % ATTOS_PER_MICRO:
            message = f"a credit at {format_attos(entry.attos)} has more than 6 decimals"
            yield CardProblem(("prices", number, "price"), message, "use a price with fewer decimals, or more credits")
    for number, charge in enumerate(card.charges if costing else ()):
        if charge.unit == CREDITS:
            remedy = f"give {CREDITS} a price in `prices`, and a customer's allowance as a grant of credits"
            yield CardProblem(("charges", number, "unit"), "credits that units cost are priced by event", remedy)


# Without a rate card a charge is what the provider charges; a custom unit, which has no provider, stays unpriced.
AT_COST = RateCard(markups=(Markup(0),))
