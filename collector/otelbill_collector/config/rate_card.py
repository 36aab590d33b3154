"""The section rate_card as the domain's rate card. Owns where in the file a problem of the card stands."""

from __future__ import annotations

from pydantic import ValidationError

from otelbill_collector.config.document import Document
from otelbill_collector.config.file_model import MarkupSection, PriceSection, RateCardSection, Selecting
from otelbill_collector.domain.ratecard import (
    DEFAULT_CURRENCY,
    ChargePrice,
    InvalidRateCard,
    Markup,
    RateCard,
    Selector,
)


def create_rate_card(document: Document, section: RateCardSection) -> RateCard | None:
    """The card, or None after noting what contradicts what."""
    prices = tuple(_create_price(price) for price in section.prices)
    markups = tuple(_create_markup(markup) for markup in section.markup)
    return _create_card(document, prices, markups, section.currency)


def check_valid_entries(document: Document, raw: object) -> None:
    """Note contradictions between the entries that are valid, of a section that as a whole is not."""
    if not isinstance(raw, dict):
        return
    prices, markups = raw.get("prices"), raw.get("markup")
    _create_card(
        document,
        tuple(_salvage_price(index, entry) for index, entry in enumerate(prices if isinstance(prices, list) else [])),
        tuple(
            _salvage_markup(index, entry) for index, entry in enumerate(markups if isinstance(markups, list) else [])
        ),
        raw.get("currency", DEFAULT_CURRENCY),
    )


def _create_card(
    document: Document, prices: tuple[ChargePrice, ...], markups: tuple[Markup, ...], currency: str
) -> RateCard | None:
    try:
        return RateCard(prices, markups, currency)
    except InvalidRateCard as error:
        for problem in error.problems:
            document.add_problem(("rate_card", *problem.path), problem.message, problem.remedy)
        return None


def _create_price(section: PriceSection) -> ChargePrice:
    return ChargePrice(section.unit, section.price, _create_selector(section))


def _create_markup(section: MarkupSection) -> Markup:
    return Markup(section.percent, _create_selector(section))


def _salvage_price(index: int, raw: object) -> ChargePrice:
    """An invalid entry keeps its place, as a price of a unit that cannot be."""
    try:
        return _create_price(PriceSection.model_validate(raw))
    except ValidationError:
        return ChargePrice(f"[{index}]", 0)


def _salvage_markup(index: int, raw: object) -> Markup:
    """An invalid entry keeps its place, as a markup for a model that cannot be."""
    try:
        return _create_markup(MarkupSection.model_validate(raw))
    except ValidationError:
        return Markup(0, Selector(model=f"*[{index}]"))


def _create_selector(section: Selecting) -> Selector:
    return Selector(section.customer, section.step, section.model, section.provider, section.from_, section.to)
