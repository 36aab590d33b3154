"""What a file says of prices, be it an otelbill.yaml or a rate card of its own. Owns telling the two apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from otelbill_collector.config.document import Document, load_document
from otelbill_collector.config.loading import load_config
from otelbill_collector.config.problems import ConfigError, ConfigProblem, PathParts, render_path, sort_problems
from otelbill_collector.config.rate_card_file import locate_card, read_card_document
from otelbill_collector.config.rate_card_model import RateCardSection
from otelbill_collector.domain.card_gaps import list_gaps
from otelbill_collector.domain.price_overrides import ProviderPrice
from otelbill_collector.domain.provider_prices import PRICED_UNITS
from otelbill_collector.domain.ratecard import AT_COST, RateCard
from otelbill_collector.domain.selectors import Membership


@dataclass(frozen=True, slots=True)
class PriceFile:
    """Prices to charge and to pay, who belongs to which group, and what is allowed but looks like a mistake.

    A rate card in a file of its own (`is_card`) says nothing of provider prices and groups.
    """

    card: RateCard = AT_COST
    members: Mapping[str, Membership] = field(default_factory=dict)
    provider_prices: tuple[ProviderPrice, ...] = ()
    warnings: tuple[ConfigProblem, ...] = ()
    is_card: bool = False


def load_price_file(path: Path, environ: Mapping[str, str]) -> PriceFile:
    """The prices of a file. Raises ConfigError with everything that is wrong with it."""
    document = load_document(path, environ)
    if not is_card(document):
        config = load_config(path, environ)
        place, prefix = _find_card(document, path, environ)
        warnings = _list_warnings(place, prefix, config.rate_card)
        return PriceFile(config.rate_card, config.list_members(), config.provider_prices, warnings)
    card = read_card_document(document)
    if card is None or document.problems:
        raise ConfigError(sort_problems(document.problems, document.file))
    return PriceFile(card, warnings=_list_warnings(document, (), card), is_card=True)


def is_card(document: Document) -> bool:
    """A card has settings of a rate card at its top, and otelbill.yaml has none of those there."""
    names = {spec.alias or name for name, spec in RateCardSection.model_fields.items()}
    return isinstance(document.root, dict) and not names.isdisjoint(document.root)


def _find_card(document: Document, path: Path, environ: Mapping[str, str]) -> tuple[Document, PathParts]:
    """The document that has the card of a configuration, and the path to it there."""
    section = document.root.get("rate_card") if isinstance(document.root, dict) else None
    name = section.get("file") if isinstance(section, dict) else None
    return (load_document(locate_card(path, str(name)), environ), ()) if name else (document, ("rate_card",))


def _list_warnings(document: Document, prefix: PathParts, card: RateCard) -> tuple[ConfigProblem, ...]:
    found = []
    for gap in list_gaps(card, PRICED_UNITS):
        path = (*prefix, *gap.path)
        found.append(ConfigProblem(document.file, document.find_line(path), render_path(path), gap.message, gap.remedy))
    return tuple(found)
