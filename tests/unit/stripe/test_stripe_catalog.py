"""Plan and apply: what a bill needs is created once, and nothing that exists is touched."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from otelbill_collector.export.stripe.catalog import (
    CatalogConflict,
    Change,
    apply_catalog,
    find_micro_price,
    plan_catalog,
)
from otelbill_collector.export.stripe.settings import MeteringMode
from tests.stripe_world import MemoryStripe, make_settings


def changes(books: MemoryStripe, **settings: object) -> list[tuple[str, Change]]:
    plan = plan_catalog(books, make_settings(**settings), units=("input_tokens", "output_tokens"))
    return [(item.kind, item.change) for item in plan.items]


def test_apply_creates_what_is_absent_and_then_has_nothing_to_do() -> None:
    """A first apply makes the meter and its price; a second one changes nothing."""
    books = MemoryStripe(meters=[])
    assert changes(books) == [("meter", Change.CREATE), ("price", Change.CREATE)]
    assert books.meters == [], "a plan creates nothing"
    assert apply_catalog(books, make_settings()).pending
    assert changes(books) == [("meter", Change.UNCHANGED), ("price", Change.UNCHANGED)]
    assert not apply_catalog(books, make_settings()).pending
    assert (len(books.meters), len(books.prices)) == (1, 1)
    assert books.prices[0].unit_amount == Decimal("0.0001")
    assert books.prices[0].meter_id == books.meters[0].meter_id


def test_units_mode_needs_a_meter_for_each_unit_and_no_price() -> None:
    """Raw units get a meter each; what they cost is Stripe's business then."""
    books = MemoryStripe(meters=[])
    apply_catalog(
        books,
        make_settings(mode=MeteringMode.UNITS, meters={"output_tokens": "out"}),
        units=("input_tokens", "output_tokens"),
    )
    assert [meter.event_name for meter in books.meters] == ["otelbill_input_tokens", "out"]
    assert books.prices == []


@pytest.mark.parametrize("flaw", [{"active": False}, {"formula": "last"}, {"value_key": "v"}])
def test_a_meter_that_cannot_work_is_a_conflict_and_stops_apply(flaw: dict[str, object]) -> None:
    """Meters cannot be changed, so a wrong one is reported and nothing at all is created."""
    books = MemoryStripe()
    books.meters[0] = replace(books.meters[0], **flaw)  # type: ignore[arg-type]
    assert changes(books)[0] == ("meter", Change.CONFLICT)
    with pytest.raises(CatalogConflict, match="otelbill_charge_usd_micro"):
        apply_catalog(books, make_settings())
    assert books.prices == []


def test_a_price_of_another_amount_is_a_conflict() -> None:
    """Prices never change at Stripe; a wrong one under our lookup key needs a person."""
    books = MemoryStripe()
    apply_catalog(books, make_settings())
    books.prices[0] = replace(books.prices[0], unit_amount=Decimal("0.001"))
    assert changes(books)[1] == ("price", Change.CONFLICT)


@pytest.mark.parametrize(("currency", "price"), [("usd", "0.0001"), ("jpy", "0.000001"), ("kwd", "0.001")])
def test_a_micro_unit_costs_a_millionth_in_every_currency(currency: str, price: str) -> None:
    """Minor units differ by currency; the bill must not."""
    assert find_micro_price(currency) == Decimal(price)
