"""What docs/pricing.md works out by hand is what the code charges."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest

from otelbill_collector.config import load_config
from otelbill_collector.domain.charges import Part, Pricing, price_parts
from otelbill_collector.domain.credits import Demand, Place, burn
from otelbill_collector.domain.grants import Grant, Measure
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.quantities import MICROS, to_micros
from otelbill_collector.domain.rating import Rater

PAGE = Path(__file__).resolve().parents[2] / "docs/pricing.md"
SECTION = re.compile(r"^### ([^\n]+)\n+```yaml\n(.*?)```(.*?)(?=^##)", re.DOTALL | re.MULTILINE)
EXAMPLES = SECTION.findall(PAGE.read_text(encoding="utf-8"))


def test_every_pricing_model_is_worked_through() -> None:
    """The page has an example with a table for each model."""
    shown = {pricing for pricing in Pricing if any(f"pricing: {pricing}" in text for _, text, _ in EXAMPLES)}
    assert shown == set(Pricing)


@pytest.mark.parametrize(("title", "text", "rest"), EXAMPLES, ids=[title for title, _, _ in EXAMPLES])
def test_amounts_worked_out_by_hand(tmp_path: Path, title: str, text: str, rest: str) -> None:
    """Each row of a model's table: the example's charge makes this amount of this quantity."""
    path = tmp_path / "otelbill.yaml"
    path.write_text(text, encoding="utf-8")
    (charge,) = load_config(path, {}).rate_card.charges
    rows = re.findall(r"^\| ([0-9,]+) \| [^|]+ \| ([0-9.]+) \|$", rest, re.MULTILINE)
    assert len(rows) >= 4, title
    for quantity, amount in rows:
        lines = price_parts([Part(charge, int(quantity.replace(",", "")))])
        assert format_attos(sum(line.amount_attos for line in lines)) == amount, (title, quantity)


CREDIT_ROWS = re.findall(
    r"^\| ([0-9,]+) (\w+) \| [^|]+ = ([0-9,]+) \| ([0-9,]+) \| (?:[^|]+ = )?([0-9.]+) \|$",
    PAGE.read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize(("quantity", "unit", "credits", "left", "amount"), CREDIT_ROWS)
def test_credits_worked_out_by_hand(
    tmp_path: Path, quantity: str, unit: str, credits: str, left: str, amount: str
) -> None:
    """Each row of the table: what usage costs in credits, what is left of a grant of 1,000, what remains to be paid."""
    text = PAGE.read_text(encoding="utf-8").partition("**Credits per unit.**")[2]
    (tmp_path / "otelbill.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    rater = Rater(load_config(tmp_path / "otelbill.yaml", {}).rate_card)
    count = int(quantity.replace(",", ""))
    rated = rater.rate({unit: count}, 0)
    price = rated.version.read_body()["prices"][unit]["credits"] if rated.version else {}  # type: ignore[index, call-overload]
    each = to_micros(Decimal(price["each"]))
    assert each * count == int(credits.replace(",", "")) * MICROS
    grant = Grant("acme", Measure.UNITS, "credits", 1_000 * MICROS, 0, "plan", "ann", 0)
    demand = Demand(
        Place(0, "", "", "", unit),
        "USD",
        rated.lines[0].charge_price_attos or 0,
        count * MICROS,
        rated.charge_attos or 0,
        each,
    )
    burned = burn([grant], (), [demand], 1)
    assert burned.left[grant.grant_id] == int(left.replace(",", "")) * MICROS
    assert format_attos(sum(item.charge_attos for item in burned.overage)) == amount


def test_the_table_of_credits_is_found() -> None:
    """The rows that the test above reads."""
    assert len(CREDIT_ROWS) == 5
