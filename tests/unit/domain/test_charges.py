"""Period charges as an accountant works them out: every amount below was computed by hand, beside its row."""

from __future__ import annotations

from decimal import Decimal

import pytest

from otelbill_collector.domain.charges import ChargeLine, Part, PeriodCharge, Pricing, Tier, price_parts
from otelbill_collector.domain.money import InexactAmount, format_attos, parse_attos
from otelbill_collector.domain.selectors import Selector
from otelbill_collector.domain.usage import Quantity

DOLLAR = parse_attos("1")
CENT = DOLLAR // 100


def price(charge: PeriodCharge, *quantities: Quantity) -> list[tuple[str, str, str]]:
    """The lines of a period: label, quantity, amount."""
    return show(price_parts([Part(charge, quantity) for quantity in quantities]))


def show(lines: list[ChargeLine]) -> list[tuple[str, str, str]]:
    return [(line.label, str(line.quantity), format_attos(line.amount_attos)) for line in lines]


def total(lines: list[tuple[str, str, str]]) -> Decimal:
    return sum((Decimal(amount) for _, _, amount in lines), Decimal(0))


# 0.0004 for each call.
CALLS = PeriodCharge("Calls", "requests", Pricing.PER_UNIT, attos=parse_attos("0.0004"))
# The same, the first 1,000 free.
CALLS_AFTER = PeriodCharge("Calls", "requests", Pricing.PER_UNIT, attos=parse_attos("0.0004"), included=1_000)


@pytest.mark.parametrize(
    ("charge", "quantity", "lines"),
    [
        (CALLS, 0, []),
        (CALLS, 1, [("each", "1", "0.0004")]),
        (CALLS, 2_500, [("each", "2500", "1")]),  # 2,500 x 0.0004 = 1
        (CALLS, Decimal("2.5"), [("each", "2.5", "0.001")]),  # 2.5 x 0.0004 = 0.001
        (CALLS_AFTER, 999, [("included: first 1,000", "999", "0")]),
        (CALLS_AFTER, 1_000, [("included: first 1,000", "1000", "0")]),
        # 1,001 - 1,000 = 1 of overage
        (CALLS_AFTER, 1_001, [("included: first 1,000", "1000", "0"), ("above 1,000 included", "1", "0.0004")]),
        # 3,500 - 1,000 = 2,500; x 0.0004 = 1
        (CALLS_AFTER, 3_500, [("included: first 1,000", "1000", "0"), ("above 1,000 included", "2500", "1")]),
    ],
)
def test_per_unit(charge: PeriodCharge, quantity: Quantity, lines: list[tuple[str, str, str]]) -> None:
    """Each unit has one price; what is included comes off first and stays visible."""
    assert price(charge, quantity) == lines


def packages(rounding: str, included: int = 0) -> PeriodCharge:
    """12.50 for each 1,000 pages."""
    return PeriodCharge(
        "Pages",
        "pages",
        Pricing.PACKAGE,
        attos=1250 * CENT,
        package_size=1_000,
        rounding=rounding,  # type: ignore[arg-type]
        included=included,
    )


@pytest.mark.parametrize(
    ("quantity", "up", "down", "nearest"),
    [
        # up: a package that is begun is paid; down: only full ones; nearest: a half counts as a whole
        (1, "12.5", "0", "0"),
        (499, "12.5", "0", "0"),
        (500, "12.5", "0", "12.5"),
        (999, "12.5", "0", "12.5"),
        (1_000, "12.5", "12.5", "12.5"),
        (1_001, "25", "12.5", "12.5"),
        (1_500, "25", "12.5", "25"),  # 1.5 packages
        (7_300, "100", "87.5", "87.5"),  # 7.3 packages: 8, 7, 7
        (Decimal("1000.5"), "25", "12.5", "12.5"),
    ],
)
def test_package(quantity: Quantity, up: str, down: str, nearest: str) -> None:
    """Packages are counted over the whole period, rounded by the rule of the charge."""
    for rounding, amount in (("up", up), ("down", down), ("nearest", nearest)):
        assert price(packages(rounding), quantity) == [("packages of 1,000", str(quantity), amount)]


def test_package_after_what_is_included() -> None:
    """2,500 pages of which 1,000 are included: 1,500 are 2 begun packages, 2 x 12.50 = 25."""
    assert price(packages("up", included=1_000), 2_500) == [
        ("included: first 1,000", "1000", "0"),
        ("packages of 1,000", "1500", "25"),
    ]


# 2.00 per 1,000 up to 10,000; 1.50 per 1,000 up to 100,000; 1.00 per 1,000 beyond.
TIERS = (
    Tier(10_000, attos=parse_attos("0.002")),
    Tier(100_000, attos=parse_attos("0.0015")),
    Tier(None, attos=parse_attos("0.001")),
)
GRADUATED = PeriodCharge("Search", "queries", Pricing.GRADUATED, tiers=TIERS)
VOLUME = PeriodCharge("Search", "queries", Pricing.VOLUME, tiers=TIERS)


@pytest.mark.parametrize(
    ("quantity", "lines"),
    [
        (1, [("tier 1: 0 to 10,000", "1", "0.002")]),
        (10_000, [("tier 1: 0 to 10,000", "10000", "20")]),  # 10,000 x 0.002 = 20: unit 10,000 is of tier 1
        (10_001, [("tier 1: 0 to 10,000", "10000", "20"), ("tier 2: 10,000 to 100,000", "1", "0.0015")]),
        # 20 + 90,000 x 0.0015 = 20 + 135 = 155
        (100_000, [("tier 1: 0 to 10,000", "10000", "20"), ("tier 2: 10,000 to 100,000", "90000", "135")]),
        # 20 + 135 + 50,000 x 0.001 = 205
        (
            150_000,
            [
                ("tier 1: 0 to 10,000", "10000", "20"),
                ("tier 2: 10,000 to 100,000", "90000", "135"),
                ("tier 3: above 100,000", "50000", "50"),
            ],
        ),
    ],
)
def test_graduated(quantity: int, lines: list[tuple[str, str, str]]) -> None:
    """Each unit has the price of the tier it falls in; a tier reaches up to and including its `up_to`."""
    assert price(GRADUATED, quantity) == lines


@pytest.mark.parametrize(
    ("quantity", "label", "amount"),
    [
        (10_000, "all at tier 1: 0 to 10,000", "20"),  # 10,000 x 0.002
        (10_001, "all at tier 2: 10,000 to 100,000", "15.0015"),  # 10,001 x 0.0015: less than for 10,000
        (100_000, "all at tier 2: 10,000 to 100,000", "150"),
        (100_001, "all at tier 3: above 100,000", "100.001"),
        (150_000, "all at tier 3: above 100,000", "150"),
    ],
)
def test_volume(quantity: int, label: str, amount: str) -> None:
    """All units have the price of the tier that the period reaches, so that one unit more can cost less in all."""
    assert price(VOLUME, quantity) == [(label, str(quantity), amount)]


# 50 for up to 1,000 documents, 80 for up to 5,000, 300 for more.
STAIRS = PeriodCharge(
    "Documents",
    "documents",
    Pricing.STAIRSTEP,
    tiers=(
        Tier(1_000, flat_attos=50 * DOLLAR),
        Tier(5_000, flat_attos=80 * DOLLAR),
        Tier(None, flat_attos=300 * DOLLAR),
    ),
)


@pytest.mark.parametrize(
    ("quantity", "label", "amount"),
    [
        (1, "tier 1: 0 to 1,000", "50"),
        (1_000, "tier 1: 0 to 1,000", "50"),
        (1_001, "tier 2: 1,000 to 5,000", "80"),
        (5_000, "tier 2: 1,000 to 5,000", "80"),
        (5_001, "tier 3: above 5,000", "300"),
        (9_999_999, "tier 3: above 5,000", "300"),
    ],
)
def test_stairstep(quantity: int, label: str, amount: str) -> None:
    """One amount for the tier that the period reaches, whatever part of it is used."""
    assert price(STAIRS, quantity) == [(label, str(quantity), amount)]


# A fee of 5 with the first unit of tier 1 and of 8 with the first of tier 2.
FLAT_TIERS = (Tier(100, attos=CENT, flat_attos=5 * DOLLAR), Tier(None, attos=CENT // 2, flat_attos=8 * DOLLAR))


@pytest.mark.parametrize(
    ("pricing", "quantity", "amount"),
    [
        (Pricing.GRADUATED, 100, "6"),  # 5 + 100 x 0.01
        (Pricing.GRADUATED, 101, "14.005"),  # 5 + 100 x 0.01 + 8 + 1 x 0.005
        (Pricing.VOLUME, 100, "6"),  # 5 + 100 x 0.01
        (Pricing.VOLUME, 101, "8.505"),  # 8 + 101 x 0.005
    ],
)
def test_flat_amounts_of_tiers(pricing: Pricing, quantity: int, amount: str) -> None:
    """Graduated tiers add their flat amount when they are entered; volume has that of its one tier."""
    charge = PeriodCharge("Search", "queries", pricing, tiers=FLAT_TIERS)
    assert total(price(charge, quantity)) == Decimal(amount)


def test_tiers_begin_after_what_is_included() -> None:
    """13,000 queries, 2,000 included: 11,000 count, 10,000 x 0.002 + 1,000 x 0.0015 = 21.50."""
    charge = PeriodCharge("Search", "queries", Pricing.GRADUATED, tiers=TIERS, included=2_000)
    assert price(charge, 13_000) == [
        ("included: first 2,000", "2000", "0"),
        ("tier 1: 0 to 10,000", "10000", "20"),
        ("tier 2: 10,000 to 100,000", "1000", "1.5"),
    ]


def test_a_change_of_price_inside_a_graduated_tier() -> None:
    """8,000 at old prices, then 4,000 at new ones: the new ones go on at position 8,000.

    Old: 8,000 x 0.002 = 16. New tier 1 (0.004): 2,000 x 0.004 = 8. New tier 2 (0.003): 2,000 x 0.003 = 6.
    """
    new = PeriodCharge(
        "Search",
        "queries",
        Pricing.GRADUATED,
        Selector(from_nanos=10),
        tiers=(Tier(10_000, parse_attos("0.004")), Tier(None, parse_attos("0.003"))),
    )
    lines = price_parts([Part(GRADUATED, 8_000), Part(new, 4_000)])
    assert show(lines) == [
        ("tier 1: 0 to 10,000", "8000", "16"),
        ("tier 1: 0 to 10,000", "2000", "8"),
        ("tier 2: above 10,000", "2000", "6"),
    ]
    assert [line.version_id for line in lines] == [GRADUATED.version.version_id, *[new.version.version_id] * 2]


def test_a_change_of_price_of_a_volume_charge() -> None:
    """6,000 + 6,000 reach tier 2 together: 6,000 x 0.0015 = 9 old, 6,000 x 0.0012 = 7.20 new."""
    new = PeriodCharge(
        "Search",
        "queries",
        Pricing.VOLUME,
        tiers=(Tier(10_000, parse_attos("0.0018")), Tier(None, parse_attos("0.0012"))),
    )
    lines = show(price_parts([Part(VOLUME, 6_000), Part(new, 6_000)]))
    assert [amount for _, _, amount in lines] == ["9", "7.2"]


def test_a_change_of_price_of_a_stairstep_charge() -> None:
    """800 + 1,200 documents reach the second step: 800/2,000 of 80 = 32 old, 1,200/2,000 of 120 = 72 new."""
    new = PeriodCharge(
        "Documents", "documents", Pricing.STAIRSTEP, tiers=(Tier(1_000, 0, 60 * DOLLAR), Tier(None, 0, 120 * DOLLAR))
    )
    lines = show(price_parts([Part(STAIRS, 800), Part(new, 1_200)]))
    assert [amount for _, _, amount in lines] == ["32", "72"]


def test_a_change_of_price_of_packages() -> None:
    """1,500 pages, then 600 at 20 a package: 2 begun packages at 12.50 = 25; 2,100 are 3, so one more at 20."""
    new = PeriodCharge("Pages", "pages", Pricing.PACKAGE, attos=20 * DOLLAR, package_size=1_000)
    lines = show(price_parts([Part(packages("up"), 1_500), Part(new, 600)]))
    assert [amount for _, _, amount in lines] == ["25", "20"]


def test_lines_spell_out_their_arithmetic() -> None:
    """Whoever disputes a line can work it out again from its own text."""
    texts = [line.arithmetic for line in price_parts([Part(GRADUATED, 10_500)])]
    assert texts == ["10,000 x 0.002 = 20", "500 x 0.0015 = 0.75"]
    assert price_parts([Part(packages("up"), 7_300)])[0].arithmetic == "7,300 / 1,000 = 8, rounded up; 8 x 12.5 = 100"
    assert price_parts([Part(STAIRS, 1_001)])[0].arithmetic == "1,001 in the period = 80"
    assert price_parts([Part(CALLS_AFTER, 600)])[0].arithmetic == "600 of 1,000 included"


def test_what_cannot_be_priced_is_refused() -> None:
    """A period below zero, a quantity too fine and parts of two charges are mistakes of the caller, not amounts."""
    with pytest.raises(ValueError, match="less than zero"):
        price(CALLS, -1)
    with pytest.raises(InexactAmount, match="6 decimals"):
        price(CALLS, Decimal("0.0000001"))
    with pytest.raises(ValueError, match="one name"):
        price_parts([Part(CALLS, 1), Part(STAIRS, 1)])


def test_the_version_states_what_makes_amounts() -> None:
    """Equal terms have an equal id on every machine; another price, tier, allowance or currency has another."""
    body = GRADUATED.version.read_body()
    assert body["currency"] == "USD"
    ids = {charge.version.version_id for charge in (CALLS, CALLS_AFTER, GRADUATED, VOLUME, STAIRS, packages("down"))}
    assert len(ids) == 6
    assert packages("up").version.version_id != packages("down").version.version_id
    ended = PeriodCharge("Calls", "requests", Pricing.PER_UNIT, Selector(to_nanos=5), attos=CALLS.attos)
    assert ended.version == CALLS.version
