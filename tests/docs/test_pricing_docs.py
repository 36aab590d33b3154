"""What docs/pricing.md works out by hand is what the code charges."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otelbill_collector.config import load_config
from otelbill_collector.domain.charges import Part, Pricing, price_parts
from otelbill_collector.domain.money import format_attos

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
