"""Rate cards and provider prices of a file as the domain's. Owns where in the file a problem of theirs stands."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from pydantic import ValidationError

from otelbill_collector.config.document import Document
from otelbill_collector.config.file_model import Section
from otelbill_collector.config.problems import PathParts
from otelbill_collector.config.rate_card_model import (
    AmountSection,
    ChargeSection,
    CommitmentSection,
    DiscountSection,
    FeeSection,
    MarkupSection,
    Paying,
    PriceSection,
    ProviderPriceSection,
    RateCardSection,
    Selecting,
    TierSection,
)
from otelbill_collector.domain.card_problems import CardProblem, Placed, list_overlaps
from otelbill_collector.domain.charges import Commitment, Discount, Fee, Minimum, PeriodCharge, Pricing, Tier
from otelbill_collector.domain.provider_prices import PRICED_UNITS, ProviderPrice
from otelbill_collector.domain.ratecard import (
    DEFAULT_CURRENCY,
    ChargePrice,
    InvalidRateCard,
    Markup,
    RateCard,
    Selector,
)
from otelbill_collector.domain.usage import STANDARD_UNITS

_ALIKE = 0.87  # of 1: input_token is meant to be input_tokens, image_tokens is not

SectionForm = TypeVar("SectionForm", bound=Section)
Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class _Kind(Generic[SectionForm, Entry]):
    """How the entries of one list become the domain's; `stand_in` keeps the place of an invalid one."""

    form: type[SectionForm]
    create: Callable[[SectionForm], Entry]
    stand_in: Callable[[str], Entry]

    def read(self, raw: object) -> tuple[Entry, ...]:
        """The entries of a list that has been validated."""
        assert isinstance(raw, list)
        return tuple(self.create(section) for section in raw)

    def salvage(self, raw: object) -> tuple[Entry, ...]:
        """The valid entries, each in its place, of a list that as a whole is not."""
        return tuple(self._salvage_one(index, entry) for index, entry in enumerate(_list_raw(raw)))

    def _salvage_one(self, index: int, raw: object) -> Entry:
        section = _validate(self.form, raw)
        return self.stand_in(f"[{index}]") if section is None else self.create(section)


def _list_raw(raw: object) -> list[object]:
    return raw if isinstance(raw, list) else []


def _validate(form: type[SectionForm], raw: object) -> SectionForm | None:
    try:
        return form.model_validate(raw)
    except ValidationError:
        return None


def create_rate_card(document: Document, section: RateCardSection, path: PathParts = ("rate_card",)) -> RateCard | None:
    """The card, or None after noting what contradicts what. `path` leads to the card in the document."""
    problems = len(document.problems)
    _check_entries(document, path, section.prices, section.charges)
    card = _create_card(document, path, section.currency, lambda kind, name: kind.read(getattr(section, name)))
    return card if len(document.problems) == problems else None


def check_valid_entries(document: Document, raw: object, path: PathParts = ("rate_card",)) -> None:
    """Note contradictions between the entries that are valid, of a section that as a whole is not."""
    if not isinstance(raw, dict):
        return
    prices = [_validate(PriceSection, entry) for entry in _list_raw(raw.get("prices"))]
    charges = [_validate(ChargeSection, entry) for entry in _list_raw(raw.get("charges"))]
    _check_entries(document, path, prices, charges)
    currency = raw.get("currency", DEFAULT_CURRENCY)
    _create_card(document, path, currency, lambda kind, name: kind.salvage(raw.get(name)))


def create_provider_prices(document: Document, sections: Sequence[ProviderPriceSection]) -> tuple[ProviderPrice, ...]:
    """Prices of providers; what contradicts what is noted in the document."""
    prices = tuple(_create_provider_price(section) for section in sections)
    placed = [Placed("provider_prices", index, price.unit, price.selector) for index, price in enumerate(prices)]
    for problem in list_overlaps(placed, "unit"):
        document.add_problem(problem.path, problem.message, problem.remedy)
    for index, price in enumerate(prices):
        _check_unit(document, ("provider_prices", index, "unit"), price.unit)
    return prices


def _create_card(
    document: Document,
    path: PathParts,
    currency: str,
    read: Callable[[_Kind[Section, object], str], tuple[object, ...]],
) -> RateCard | None:
    lists = {name: read(kind, section) for section, (name, kind) in _KINDS.items()}
    try:
        return RateCard(currency=currency, **lists)  # type: ignore[arg-type]  # each kind makes what its list holds
    except InvalidRateCard as error:
        for problem in error.problems:
            _add_problem(document, path, problem)
        return None


def _add_problem(document: Document, path: PathParts, problem: CardProblem) -> None:
    document.add_problem((*path, *problem.path), problem.message, problem.remedy)


def _check_entries(
    document: Document,
    path: PathParts,
    prices: Sequence[PriceSection | None],
    charges: Sequence[ChargeSection | None],
) -> None:
    """What is wrong inside single entries beyond their form; None is one whose form is wrong."""
    for index, price in enumerate(prices):
        if price is not None:
            _check_unit(document, (*path, "prices", index, "unit"), price.unit)
            _check_price(document, (*path, "prices", index), price)
    for index, charge in enumerate(charges):
        if charge is not None:
            _check_unit(document, (*path, "charges", index, "unit"), charge.unit)
            _check_charge(document, (*path, "charges", index), charge)


def _check_price(document: Document, path: PathParts, price: PriceSection) -> None:
    """Money or credits, and not both."""
    if price.price is None and price.credits is None:
        document.add_problem((*path, "price"), "is missing", "add a price, or how many credits it costs as `credits`")
    if price.price is not None and price.credits is not None:
        document.add_problem((*path, "credits"), "stands beside a price", "keep one of them")


def _check_charge(document: Document, path: PathParts, charge: ChargeSection) -> None:
    """Settings that the pricing needs, and those that it has no use for."""
    needed = {"per_unit": {"price"}, "package": {"price", "package_size"}}.get(charge.pricing, set())
    allowed = needed | {"per_unit": {"per"}, "package": {"rounding"}}.get(charge.pricing, {"tiers"})
    for name in sorted(needed - charge.model_fields_set):
        document.add_problem((*path, name), f"is missing for {charge.pricing}", "add it")
    own = {"price", "per", "package_size", "rounding", "tiers"} & charge.model_fields_set
    for name in sorted(own - allowed - {"tiers"}):  # tiers are the card's to complain about
        document.add_problem((*path, name), f"has no meaning for {charge.pricing}", "leave it out")


def _check_unit(document: Document, path: PathParts, unit: str) -> None:
    """A unit may be anything of the operator's own, but not nearly one that telemetry has."""
    known = list(dict.fromkeys([*STANDARD_UNITS, *PRICED_UNITS]))
    if unit in known:
        return
    close = difflib.get_close_matches(unit.lower().replace("-", "_"), known, n=1, cutoff=_ALIKE)
    if close:
        message = f"{unit} is no unit that telemetry has"
        document.add_problem(path, message, f"did you mean {close[0]}? Otherwise name yours more differently")


def _create_selector(section: Selecting) -> Selector:
    return Selector(
        section.customer,
        section.step,
        section.model,
        section.provider,
        section.from_,
        section.to,
        section.group,
        section.contract,
        section.service_tier,
    )


def _create_payer(section: Paying) -> Selector:
    return Selector(
        section.customer,
        from_nanos=section.from_,
        to_nanos=section.to,
        group=section.group,
        contract=section.contract,
    )


def _create_price(section: PriceSection) -> ChargePrice:
    return ChargePrice(section.unit, section.price or 0, _create_selector(section), section.credits)


def _create_markup(section: MarkupSection) -> Markup:
    return Markup(section.percent, _create_selector(section))


def _create_tier(section: TierSection) -> Tier:
    return Tier(section.up_to, section.price, section.flat)


def _create_charge(section: ChargeSection) -> PeriodCharge:
    return PeriodCharge(
        name=section.name,
        unit=section.unit,
        pricing=Pricing(section.pricing),
        selector=_create_selector(section),
        attos=section.price or 0,
        package_size=section.package_size or 1,
        rounding=section.rounding or "up",
        tiers=tuple(_create_tier(tier) for tier in section.tiers),
        included=section.included,
    )


def _create_fee(section: FeeSection) -> Fee:
    return Fee(section.name, section.amount, _create_payer(section), section.prorate)


def _create_minimum(section: AmountSection) -> Minimum:
    return Minimum(section.name, section.amount, _create_payer(section))


def _create_commitment(section: CommitmentSection) -> Commitment:
    return Commitment(section.name, section.amount, _create_payer(section))


def _create_discount(section: DiscountSection) -> Discount:
    about = replace(_create_payer(section), step=section.step, model=section.model, provider=section.provider)
    return Discount(section.name, section.percent, about)


def _create_provider_price(section: ProviderPriceSection) -> ProviderPrice:
    selector = Selector(
        model=section.model,
        provider=section.provider,
        from_nanos=section.from_,
        to_nanos=section.to,
        service_tier=section.service_tier,
    )
    return ProviderPrice(section.unit, section.price, selector)


# Lists of the file: the name of the card's field, and how its entries are made. An invalid entry keeps its place as
# one of a name, unit or model that cannot be.
_KINDS: dict[str, tuple[str, _Kind]] = {  # type: ignore[type-arg]  # kinds of different entries
    "prices": ("prices", _Kind(PriceSection, _create_price, lambda name: ChargePrice(name, 0))),
    "markup": ("markups", _Kind(MarkupSection, _create_markup, lambda name: Markup(0, Selector(model=f"*{name}")))),
    "charges": (
        "charges",
        _Kind(ChargeSection, _create_charge, lambda name: PeriodCharge(name, name, Pricing.PER_UNIT)),
    ),
    "fees": ("fees", _Kind(FeeSection, _create_fee, lambda name: Fee(name, 0))),
    "minimums": ("minimums", _Kind(AmountSection, _create_minimum, lambda name: Minimum(name, 0))),
    "commitments": ("commitments", _Kind(CommitmentSection, _create_commitment, lambda name: Commitment(name, 0))),
    "discounts": ("discounts", _Kind(DiscountSection, _create_discount, lambda name: Discount(name, 0))),
}
