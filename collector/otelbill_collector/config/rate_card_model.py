"""The form of a rate card and of provider prices: every setting with its type, default and meaning.

Owns single values; what contradicts what is the domain's (see `rate_card`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictBool, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from otelbill_collector.config.file_model import (
    Count,
    Currency,
    DecimalText,
    Moment,
    Per,
    Section,
    Text,
    Unit,
    UnitCount,
)
from otelbill_collector.domain.prices import InvalidPrice, parse_percent, parse_unit_credits, parse_unit_price

Name = Annotated[Text, Field(max_length=100)]


class Paying(Section):
    """For which customers and when an entry holds."""

    customer: Text | None = Field(default=None, description="Only for this customer.")
    contract: Text | None = Field(default=None, description="Only under this contract (`customers.*.contract`).")
    group: Text | None = Field(default=None, description="Only for customers of this group (`customers.*.group`).")
    from_: Moment | None = Field(
        default=None, alias="from", description="First instant in force. A date is midnight UTC."
    )
    to: Moment | None = Field(default=None, description="First instant no longer in force.")


class Using(Paying):
    """For which customers, for what usage and when an entry holds."""

    step: Text | None = Field(default=None, description="Only for this step.")
    model: Text | None = Field(default=None, description="Only for this model; `*` stands for any characters.")
    provider: Text | None = Field(
        default=None, description="Only for this provider, in any spelling (`azure` is `az.ai.openai`)."
    )


class Selecting(Using):
    """The same down to the service tier."""

    service_tier: Text | None = Field(default=None, description="Only for this service tier, such as `batch`.")


def _parse_amount(parse: Callable[[], int]) -> int:
    """A price problem as one of the file, with its remedy."""
    try:
        return parse()
    except InvalidPrice as error:
        context = {"message": str(error), "remedy": error.remedy}
        raise PydanticCustomError("setting", "{message}", context) from None


def _parse_reduction(value: str | int) -> int:
    percent = parse_percent(value)
    if not 0 <= percent <= 1_000_000:
        raise InvalidPrice(f"percent {value} is not between 0 and 100", 'write 15 percent off as "15"')
    return percent


def _parse_price(value: str | int, per: int = 1) -> int:
    return _parse_amount(lambda: parse_unit_price(value, per))


class PriceSection(Selecting):
    """A price of one unit; after validation `price` holds attos, `credits` millionths of credits for one unit."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["price"]}, {"required": ["credits"]}]})

    unit: Unit = Field(description="Unit that is priced, such as `input_tokens` or one of your own.")
    per: Per = Field(default=1, description="How many units the price is for.")
    price: DecimalText | None = Field(default=None, description="Price of `per` units, in quotes.")
    credits: DecimalText | None = Field(
        default=None,
        description="Instead of a price: how many credits `per` units cost, in quotes. The price of the unit `credits`"
        " says what one is worth.",
    )

    @field_validator("price")
    @classmethod
    def _parse_price(cls, value: str | int | None, info: ValidationInfo) -> int | None:
        return None if value is None else _parse_price(value, info.data.get("per", 1))

    @field_validator("credits")
    @classmethod
    def _parse_credits(cls, value: str | int | None, info: ValidationInfo) -> int | None:
        return None if value is None else _parse_amount(lambda: parse_unit_credits(value, info.data.get("per", 1)))


class MarkupSection(Selecting):
    """Cost-plus for what no price covers; `percent` holds ten-thousandths of a percent after validation."""

    percent: DecimalText = Field(description="Percent added to the provider's cost, in quotes.")

    @field_validator("percent")
    @classmethod
    def _parse_percent(cls, value: str | int) -> int:
        return _parse_amount(lambda: parse_percent(value))


class TierSection(Section):
    """One tier of a charge; amounts are attos after validation."""

    up_to: Count | None = Field(default=None, description="Last unit of the tier; the last tier has none.")
    per: Per = Field(default=1, description="How many units the price is for.")
    price: DecimalText = Field(default="0", description="Price of `per` units, in quotes.")
    flat: DecimalText = Field(default="0", description="Amount for the tier as such, in quotes.")

    @field_validator("price")
    @classmethod
    def _parse_price(cls, value: str | int, info: ValidationInfo) -> int:
        return _parse_price(value, info.data.get("per", 1))

    @field_validator("flat")
    @classmethod
    def _parse_flat(cls, value: str | int) -> int:
        return _parse_price(value)


class ChargeSection(Selecting):
    """A price of one unit over a customer's whole billing period; `price` is attos after validation."""

    name: Name = Field(description="What the charge is called on invoices; versions of one charge share it.")
    unit: Unit = Field(description="Unit whose usage is counted.")
    pricing: Literal["per_unit", "package", "graduated", "volume", "stairstep"] = Field(
        description="How the quantity becomes an amount: `per_unit`, `package`, `graduated`, `volume`, `stairstep`."
    )
    per: Per = Field(default=1, description="With `per_unit`: how many units the price is for.")
    price: DecimalText | None = Field(
        default=None, description="With `per_unit`: price of `per` units. With `package`: price of one package."
    )
    package_size: Count | None = Field(default=None, description="With `package`: units in a package.")
    rounding: Literal["up", "down", "nearest"] | None = Field(
        default=None,
        description="With `package`: how packages that are not full count: `up` (without this too), `down`, `nearest`.",
    )
    tiers: list[TierSection] = Field(
        default=[], description="With `graduated`, `volume`, `stairstep`: tiers, ascending."
    )
    included: UnitCount = Field(default=0, description="Units of a period that are free; they come off first.")

    @field_validator("price")
    @classmethod
    def _parse_price(cls, value: str | int | None, info: ValidationInfo) -> int | None:
        return None if value is None else _parse_price(value, info.data.get("per", 1))


class AmountSection(Paying):
    """A named amount of money; attos after validation."""

    name: Name = Field(description="What it is called on invoices; of one name only the most specific entry applies.")
    amount: DecimalText = Field(description="Amount in the card's currency, in quotes.")

    @field_validator("amount")
    @classmethod
    def _parse_amount(cls, value: str | int) -> int:
        return _parse_price(value)


class FeeSection(AmountSection):
    """An amount for every period, used or not."""

    prorate: StrictBool = Field(
        default=False, description="Whether a period in force in part pays by time; otherwise it pays the whole fee."
    )


class CommitmentSection(AmountSection):
    """A promise to spend at least this in the whole term from `from` to `to`."""

    from_: Moment = Field(alias="from", description="First instant in force. A date is midnight UTC.")
    to: Moment = Field(description="First instant no longer in force.")


class DiscountSection(Using):
    """A percentage off usage and fees; ten-thousandths of a percent after validation."""

    name: Name = Field(description="What it is called on invoices; of one name only the most specific entry applies.")
    percent: DecimalText = Field(description="Percent taken off, in quotes.")

    @field_validator("percent")
    @classmethod
    def _parse_percent(cls, value: str | int) -> int:
        return _parse_amount(lambda: _parse_reduction(value))


class RateCardSection(Section):
    """What customers are charged."""

    currency: Currency = Field(default="USD", description="Currency of the charges. Markups need USD.")
    prices: list[PriceSection] = Field(
        default=[], description="Prices by unit; the most specific one in force applies."
    )
    markup: list[MarkupSection] = Field(
        default=[], description="Markups on provider cost for units that no price covers."
    )
    charges: list[ChargeSection] = Field(default=[], description="Prices that count a customer's whole billing period.")
    fees: list[FeeSection] = Field(default=[], description="Amounts for every billing period, used or not.")
    minimums: list[AmountSection] = Field(default=[], description="The least that a billing period comes to.")
    commitments: list[CommitmentSection] = Field(default=[], description="The least that a whole term comes to.")
    discounts: list[DiscountSection] = Field(default=[], description="Percentages off usage and fees.")


class RateCardReference(RateCardSection):
    """A rate card in otelbill.yaml: written there, or in a file of its own."""

    file: Text | None = Field(
        default=None, description="File with the rate card, beside this one; instead of everything else here."
    )


class ProviderPriceSection(Section):
    """What a provider charges, over what the price data says; `price` holds attos for one unit after validation."""

    provider: Text | None = Field(
        default=None, description="Provider, in any spelling; without it any that serves the model."
    )
    model: Text = Field(description="Model; `*` stands for any characters.")
    service_tier: Text | None = Field(default=None, description="Service tier; without it the standard one.")
    unit: Unit = Field(description="Unit that is priced, such as `input_tokens`.")
    per: Per = Field(default=1, description="How many units the price is for.")
    price: DecimalText = Field(description="Price of `per` units in USD, in quotes.")
    from_: Moment | None = Field(
        default=None, alias="from", description="First instant in force. A date is midnight UTC."
    )
    to: Moment | None = Field(default=None, description="First instant no longer in force.")

    @field_validator("price")
    @classmethod
    def _parse_price(cls, value: str | int, info: ValidationInfo) -> int:
        return _parse_price(value, info.data.get("per", 1))
