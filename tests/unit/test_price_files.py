"""A file of prices is taken whole, or refused with everything that is wrong with it, each with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otelbill_collector.config import ConfigError, load_config
from otelbill_collector.config.price_file import load_price_file
from otelbill_collector.config.schema import render_card_schema
from otelbill_collector.domain.charges import Commitment, Discount, Fee, Minimum, PeriodCharge, Pricing, Tier
from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.domain.money import parse_attos
from otelbill_collector.domain.ratecard import ChargePrice, RateCard, Selector
from otelbill_collector.domain.selectors import Membership

CARD = """\
currency: USD
prices:
  - {unit: outcomes, price: "0.79", group: enterprise, service_tier: batch, model: "*-mini"}
charges:
  - name: Search
    unit: queries
    pricing: graduated
    included: 1000
    tiers: [{up_to: 10000, price: "2", per: 1000, flat: "5"}, {price: "1", per: 1000}]
  - {name: Pages, unit: pages, pricing: package, price: "12.50", package_size: 1000, rounding: nearest, contract: c-17}
  - {name: Calls, unit: requests, pricing: per_unit, price: "0.40", per: 1000}
fees: [{name: Platform, amount: "49", prorate: true}]
minimums: [{name: Minimum, amount: "100", customer: acme}]
commitments: [{name: Year, amount: 12000, customer: acme, from: 2026-01-01, to: 2027-01-01}]
discounts: [{name: Partner, percent: "12.5", model: "gpt*"}]
"""

BAD = """\
currency: USX
prices:
  - {unit: input_token, price: "1"}
  - {unit: output_tokens, price: -1}
  - {unit: output_tokens, price: 0.60}
  - {unit: b, price: 1}
  - {unit: b, price: 2}
  - {unit: c, price: 2, from: 2026-02-01, to: 2026-01-01}
charges:
  - {name: A, unit: b, pricing: per_unit, price: 1}
  - {name: B, unit: d, pricing: graduated, tiers: [{price: 1}, {up_to: 5}]}
  - {name: C, unit: e, pricing: package, price: 1}
  - {name: D, unit: f, pricing: volume, price: 1, tiers: [{up_to: 5}, {up_to: 5}, {price: 9}]}
  - {name: E, unit: g, pricing: stairstep}
fees:
  - {name: F, amount: "-3"}
commitments:
  - {name: G, amount: "3"}
discounts:
  - {name: H, percent: "101"}
colour: red
"""


def write(folder: Path, text: str, name: str = "rates.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_kind_of_entry_is_read(tmp_path: Path) -> None:
    """What is written is what the card says, down to the last digit of a price for one unit."""
    search = PeriodCharge(
        "Search",
        "queries",
        Pricing.GRADUATED,
        tiers=(Tier(10_000, parse_attos("0.002"), parse_attos(5)), Tier(None, parse_attos("0.001"))),
        included=1_000,
    )
    pages = PeriodCharge(
        "Pages",
        "pages",
        Pricing.PACKAGE,
        Selector(contract="c-17"),
        parse_attos("12.5"),
        package_size=1_000,
        rounding="nearest",
    )
    year = Selector("acme", from_nanos=parse_instant("2026-01-01"), to_nanos=parse_instant("2027-01-01"))
    assert load_price_file(write(tmp_path, CARD), {}).card == RateCard(
        prices=(
            ChargePrice(
                "outcomes", parse_attos("0.79"), Selector(group="enterprise", service_tier="batch", model="*-mini")
            ),
        ),
        charges=(search, pages, PeriodCharge("Calls", "requests", Pricing.PER_UNIT, attos=parse_attos("0.0004"))),
        fees=(Fee("Platform", parse_attos(49), prorate=True),),
        minimums=(Minimum("Minimum", parse_attos(100), Selector("acme")),),
        commitments=(Commitment("Year", parse_attos(12_000), year),),
        discounts=(Discount("Partner", 125_000, Selector(model="gpt*")),),
    )


def test_all_problems_at_once(tmp_path: Path) -> None:
    """Gaps of form, contradictions, prices that cannot be and units nearly right are told together, by line."""
    path = write(tmp_path, BAD)
    with pytest.raises(ConfigError) as caught:
        load_price_file(path, {})
    found = [(problem.line, problem.path, problem.message) for problem in caught.value.problems]
    expected = [
        (1, "currency", "is not a currency of ISO 4217"),
        (3, "prices[0].unit", "input_token is no unit that telemetry has"),
        (4, "prices[1].price", "price -1 is outside"),
        (5, "prices[2].price", "is a floating-point number"),
        (7, "prices[4]", "overlaps prices[3]"),
        (8, "prices[5].to", "`to` is not after `from`"),
        (10, "charges[0]", "overlaps prices[4]"),
        (11, "charges[1].tiers[0]", "never ends"),
        (11, "charges[1].tiers[1].up_to", "is the last tier and ends"),
        (12, "charges[2].package_size", "is missing for package"),
        (13, "charges[3].price", "has no meaning for volume"),
        (13, "charges[3].tiers[1].up_to", "has already ended"),
        (14, "charges[4].tiers", "is missing for stairstep"),
        (16, "fees[0].amount", "price -3 is outside"),
        (18, "commitments[0].from", "is missing"),
        (18, "commitments[0].to", "is missing"),
        (20, "discounts[0].percent", "is not between 0 and 100"),
        (21, "colour", "is not a setting"),
    ]
    for line, place, message in expected:
        assert any(
            found_line == line and found_place == place and message in text for found_line, found_place, text in found
        ), place
    assert len(found) == len(expected), found
    assert {problem.file for problem in caught.value.problems} == {str(path)}
    unit = next(problem for problem in caught.value.problems if problem.path == "prices[0].unit")
    assert "did you mean input_tokens?" in unit.remedy


def test_a_price_in_credits_is_read(tmp_path: Path) -> None:
    """3 credits for 1,000 tokens are 0.003 for one; what a credit is worth is a price like any other."""
    text = """\
prices:
  - {unit: output_tokens, credits: "3", per: 1000, customer: acme}
  - {unit: credits, price: "0.01"}
"""
    card = load_price_file(write(tmp_path, text), {}).card
    assert card.prices == (
        ChargePrice("output_tokens", 0, Selector("acme"), credits_micros=3_000),
        ChargePrice("credits", parse_attos("0.01")),
    )


CREDIT = '  - {unit: credits, price: "0.01"}\n'
BAD_CREDITS = [
    ('  - {unit: images, credits: "5"}\n', "prices[0].credits", "nothing says what a credit is worth"),
    ('  - {unit: images, credits: "5", price: "1"}\n' + CREDIT, "prices[0].credits", "stands beside a price"),
    ("  - {unit: images}\n" + CREDIT, "prices[0].price", "is missing"),
    ('  - {unit: images, credits: "-5"}\n' + CREDIT, "prices[0].credits", "is outside"),
    ("  - {unit: images, credits: 0.5}\n" + CREDIT, "prices[0].credits", "is a floating-point number"),
    ('  - {unit: images, credits: "1", per: 10000000}\n' + CREDIT, "prices[0].credits", "more than 6 decimals"),
    ('  - {unit: credits, credits: "5"}\n', "prices[0].credits", "a credit cannot cost credits"),
    (
        '  - {unit: images, credits: "5"}\n  - {unit: credits, price: "1", per: 10000000}\n',
        "prices[1].price",
        "has more than 6 decimals",
    ),
    (
        '  - {unit: images, credits: "5"}\n' + CREDIT.replace("}", ", step: s}")
        + "charges: [{name: C, unit: credits, pricing: per_unit, price: 1}]\n",
        "charges[0].unit",
        "are priced by event",
    ),
    ('  - {unit: images, credits: "5"}\n  - {unit: images, price: "5"}\n' + CREDIT, "prices[1]", "overlaps prices[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "place", "message"), BAD_CREDITS)
def test_prices_in_credits_that_cannot_be(tmp_path: Path, text: str, place: str, message: str) -> None:
    """Each mistake stands at its own line, with what to write instead."""
    with pytest.raises(ConfigError) as caught:
        load_price_file(write(tmp_path, "prices:\n" + text), {})
    (problem,) = caught.value.problems
    assert (problem.path, bool(problem.line), bool(problem.remedy)) == (place, True, True)
    assert message in problem.message


@pytest.mark.parametrize("unit", ["image_tokens", "outcomes", "total_tokens", "seconds", "web_search_requests"])
def test_units_of_ones_own_are_taken(tmp_path: Path, unit: str) -> None:
    """Only what is nearly a unit of telemetry is taken for a typing error."""
    load_price_file(write(tmp_path, f'prices: [{{unit: {unit}, price: "1"}}]'), {})


@pytest.mark.parametrize("unit", ["input_token", "Output_Tokens", "cached_read_tokens", "request", "web-searches"])
def test_units_that_are_nearly_right_are_refused(tmp_path: Path, unit: str) -> None:
    """Such a price would never apply, and the usage it is meant for would stay unpriced."""
    with pytest.raises(ConfigError, match="did you mean"):
        load_price_file(write(tmp_path, f'prices: [{{unit: {unit}, price: "1"}}]'), {})


GAP = """\
prices:
  - {unit: pages, price: "1", to: 2026-01-01}
  - {unit: pages, price: "2", from: 2026-03-01}
"""


@pytest.mark.parametrize(
    ("more", "warned"),
    [
        ("", True),
        ("  - {unit: pages, price: 3, customer: acme}\n", True),  # only for one customer
        ("  - {unit: pages, price: 3, step: s, from: 2026-01-01}\n", True),
        ("markup: [{percent: 0}]\n", True),  # pages have no provider cost
        ("charges: [{name: P, unit: pages, pricing: per_unit, price: 1, from: 2026-01-01, to: 2026-03-01}]\n", False),
        ("charges: [{name: P, unit: pages, pricing: per_unit, price: 1, from: 2026-01-01, to: 2026-02-28}]\n", True),
    ],
)
def test_gaps_are_warned_of(tmp_path: Path, more: str, warned: bool) -> None:
    """A time for which a unit that had a price has none is allowed, and shown with the line that ends it."""
    found = load_price_file(write(tmp_path, GAP + more), {})
    assert [(warning.line, warning.path) for warning in found.warnings] == [(3, "prices[1].from")] * warned
    if warned:
        assert "to 2026-03-01T00:00:00Z" in found.warnings[0].message


def test_a_less_specific_entry_fills_a_gap(tmp_path: Path) -> None:
    """A customer's own price may pause where the price for everybody, or for a wider pattern, goes on."""
    text = GAP.replace("unit: pages", "unit: output_tokens, model: gpt-4o-mini, customer: acme")
    assert load_price_file(write(tmp_path, text), {}).warnings
    for more in (
        'prices: [{unit: output_tokens, price: 9, model: "gpt-4*"}',
        "prices: [{unit: output_tokens, price: 9}",
    ):
        card = more + ", " + ", ".join(line.strip("- ") for line in text.splitlines()[1:]) + "]"
        assert not load_price_file(write(tmp_path, card), {}).warnings
    assert not load_price_file(write(tmp_path, text + "markup: [{percent: 0}]\n"), {}).warnings


def test_a_configuration_may_name_a_card(tmp_path: Path) -> None:
    """The card beside it is read with it, and what is wrong there is told with that file's lines."""
    write(tmp_path, CARD)
    path = write(tmp_path, "rate_card: {file: rates.yaml}\ncustomers: {acme: {group: enterprise}}\n", "otelbill.yaml")
    config = load_config(path, {})
    assert config.rate_card == load_price_file(tmp_path / "rates.yaml", {}).card
    assert config.list_members() == {"acme": Membership("enterprise")}
    bad = write(tmp_path, BAD)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert {problem.file for problem in caught.value.problems} == {str(bad)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate_card: {file: nowhere.yaml}", "cannot be read"),
        ("rate_card: {file: rates.yaml, currency: USD}", "stands beside other settings"),
    ],
)
def test_a_card_that_cannot_be_taken_from_its_file(tmp_path: Path, text: str, message: str) -> None:
    """A missing file, or a card in two places, is refused at the line that names the file."""
    write(tmp_path, CARD)
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text, "otelbill.yaml"), {})
    (problem,) = caught.value.problems
    assert (problem.line, problem.path) == (1, "rate_card.file")
    assert message in problem.message


def test_provider_prices_are_read_and_checked(tmp_path: Path) -> None:
    """They stand in the configuration; two for the same call at the same time are refused."""
    entry = '  - {provider: openai, model: "gpt*", unit: input_tokens, price: "1", per: 1000000, from: 2026-12-01}\n'
    config = load_config(write(tmp_path, "provider_prices:\n" + entry), {})
    (price,) = config.provider_prices
    assert (price.attos, price.selector.model) == (10**12, "gpt*")
    with pytest.raises(ConfigError, match=r"overlaps provider_prices\[0\]"):
        load_config(write(tmp_path, "provider_prices:\n" + entry + entry), {})


def test_the_schema_of_a_card_is_current(repository: Path) -> None:
    """docs/rate-card.schema.json is what the code accepts. Write render_card_schema() there after a change."""
    text = (repository / "docs/rate-card.schema.json").read_text(encoding="utf-8")
    assert text == render_card_schema()
    assert set(json.loads(text)["properties"]) >= {"prices", "charges", "fees", "discounts"}
