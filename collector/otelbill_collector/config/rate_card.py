"""The section rate_card as the domain's rate card. Owns where in the file a problem of the card stands."""

from __future__ import annotations

from otelbill_collector.config.document import Document
from otelbill_collector.config.file_model import RateCardSection, Selecting
from otelbill_collector.domain.ratecard import ChargePrice, InvalidRateCard, Markup, RateCard, Selector


def create_rate_card(document: Document, section: RateCardSection) -> RateCard | None:
    """The card, or None after noting what contradicts what."""
    prices = tuple(ChargePrice(price.unit, price.price, _create_selector(price)) for price in section.prices)
    markups = tuple(Markup(markup.percent, _create_selector(markup)) for markup in section.markup)
    try:
        return RateCard(prices, markups, section.currency)
    except InvalidRateCard as error:
        for problem in error.problems:
            document.add_problem(("rate_card", *problem.path), problem.message, problem.remedy)
        return None


def _create_selector(section: Selecting) -> Selector:
    return Selector(section.customer, section.step, section.model, section.provider, section.from_, section.to)
