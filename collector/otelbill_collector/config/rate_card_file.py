"""Rate cards where they stand: inside otelbill.yaml, or in a file of their own. Owns how one names the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from otelbill_collector.config.complaints import add_complaints
from otelbill_collector.config.document import Document, load_document
from otelbill_collector.config.problems import ConfigError
from otelbill_collector.config.rate_card import check_valid_entries, create_rate_card
from otelbill_collector.config.rate_card_model import RateCardReference, RateCardSection
from otelbill_collector.domain.ratecard import RateCard


def read_rate_card(
    document: Document, section: RateCardReference, path: Path | None, environ: Mapping[str, str]
) -> RateCard | None:
    """The card of otelbill.yaml, or None after noting what is wrong with it, in whichever file."""
    if section.file is None:
        return create_rate_card(document, section)
    if section.model_fields_set != {"file"}:
        place = ("rate_card", "file")
        document.add_problem(place, "stands beside other settings of the card", "keep the file, or what is beside it")
    try:
        other = load_document(locate_card(path, section.file), environ)
    except ConfigError as error:
        for problem in error.problems:
            document.add_problem(("rate_card", "file"), f"{problem.file} {problem.message}", "give the path of a file")
        return None
    card = read_card_document(other)
    document.problems += other.problems
    return card


def locate_card(path: Path | None, name: str) -> Path:
    """A card's file is looked for beside the configuration that names it."""
    return path.parent / name if path else Path(name)


def read_card_document(document: Document) -> RateCard | None:
    """The card that is the whole of a file, or None after noting what is wrong with it."""
    root = {} if document.root is None else document.root
    try:
        section = RateCardSection.model_validate(root)
    except ValidationError as error:
        add_complaints(document, error, RateCardSection)
        check_valid_entries(document, root, ())
        return None
    return create_rate_card(document, section, ())
