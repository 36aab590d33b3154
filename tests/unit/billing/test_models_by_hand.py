"""Every pricing model of the rate card, from events to the invoice of November, with its amounts worked out by hand.

Each case is read from top to bottom: what the card says, what was used, and what the invoice says of it. A line is
`what: quantity = exact amount`; the comment beside it is how a pencil comes to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.spans import TestSpan, chat
from tests.unit.billing.test_invoice_commands import NOVEMBER, Desk, searches


class Case(NamedTuple):
    """What the card says (below `rate_card`), what was used (`unit quantity ...`), and the lines and the total."""

    card: str
    used: str
    lines: list[str]
    total: str


CASES = {
    "per unit": Case(
        'prices: [{unit: pages, price: "0.40", per: 1000}]',
        "pages 2500",
        ["usage pages: 2500 = 1"],  # 2,500 x 0.0004
        "1.00",
    ),
    "package, each one that is begun": Case(
        'charges: [{name: Pages, unit: pages, pricing: package, price: "12.50", package_size: 1000, rounding: up}]',
        "pages 700  pages 600",
        ["charge Pages: packages of 1,000: 1300 = 25"],  # 1.3 packages are 2 begun; 2 x 12.50
        "25.00",
    ),
    "package, full ones only": Case(
        'charges: [{name: Pages, unit: pages, pricing: package, price: "12.50", package_size: 1000, rounding: down}]',
        "pages 1999",
        ["charge Pages: packages of 1,000: 1999 = 12.5"],  # 1.999 packages are 1 full one
        "12.50",
    ),
    "package, to the nearest": Case(
        'charges: [{name: Pages, unit: pages, pricing: package, price: "12.50", package_size: 1000,'
        " rounding: nearest}]",
        "pages 1500",
        ["charge Pages: packages of 1,000: 1500 = 25"],  # 1.5 is as near to 2 as to 1, and a half counts
        "25.00",
    ),
    "graduated": Case(
        "charges: [{name: Search, unit: pages, pricing: graduated,"
        ' tiers: [{up_to: 100, price: "0.02"}, {up_to: 500, price: "0.01", flat: "3"}, {price: "0.005"}]}]',
        "pages 80  pages 520",
        [
            "charge Search: tier 1: 0 to 100: 100 = 2",  # 100 x 0.02
            "charge Search: tier 2: 100 to 500: 400 = 7",  # 400 x 0.01 + 3
            "charge Search: tier 3: above 500: 100 = 0.5",  # 100 x 0.005
        ],
        "9.50",
    ),
    "volume": Case(
        "charges: [{name: Search, unit: pages, pricing: volume,"
        ' tiers: [{up_to: 100, price: "0.02"}, {price: "0.01", flat: "3"}]}]',
        "pages 80  pages 520",
        ["charge Search: all at tier 2: above 100: 600 = 9"],  # 600 x 0.01 + 3
        "9.00",
    ),
    "stairstep": Case(
        "charges: [{name: Search, unit: pages, pricing: stairstep,"
        ' tiers: [{up_to: 100, flat: "50"}, {up_to: 1000, flat: "80"}, {flat: "300"}]}]',
        "pages 80  pages 520",
        ["charge Search: tier 2: 100 to 1,000: 600 = 80"],  # 600 reach the step of 1,000
        "80.00",
    ),
    "included allowance, and overage": Case(
        'charges: [{name: Pages, unit: pages, pricing: per_unit, price: "0.03", included: 500}]',
        "pages 80  pages 520",
        [
            "charge Pages: included: first 500: 500 = 0",
            "charge Pages: above 500 included: 100 = 3",  # 100 x 0.03
        ],
        "3.00",
    ),
    "base fee and usage (hybrid)": Case(
        'fees: [{name: Platform, amount: "49"}]\n  prices: [{unit: pages, price: "0.03"}]',
        "pages 600",
        ["usage pages: 600 = 18", "fee Platform = 49"],  # 600 x 0.03, and 49 whatever is used
        "67.00",
    ),
    "minimum": Case(
        'minimums: [{name: Minimum, amount: "25"}]\n  prices: [{unit: pages, price: "0.03"}]',
        "pages 600",
        ["usage pages: 600 = 18", "minimum Minimum = 7"],  # 25 - 18
        "25.00",
    ),
    "commitment": Case(
        'commitments: [{name: Autumn, amount: "100", from: 2026-11-01, to: 2026-12-01}]\n'
        '  prices: [{unit: pages, price: "0.03"}]',
        "pages 600",
        ["usage pages: 600 = 18", "commitment Autumn = 82"],  # 100 - 18, in the period in which the term ends
        "100.00",
    ),
    "percentage over cost (cost-plus)": Case(
        'markup: [{percent: "20"}]',
        "chat 1000000",
        [
            # gpt-4o-mini costs 0.15 and 0.60 for a million tokens of input and output, and is charged at 0.18 and 0.72.
            "usage input_tokens: 1000000 = 0.18",
            "usage output_tokens: 1000000 = 0.72",
        ],
        "0.90",
    ),
    "discount": Case(
        'discounts: [{name: Partner, percent: "12.5"}]\n  fees: [{name: Platform, amount: "30"}]\n'
        '  prices: [{unit: pages, price: "0.03"}]',
        "pages 600",
        ["usage pages: 600 = 18", "fee Platform = 30", "discount Partner = -6"],  # 12.5 % of 18 + 30 = 48
        "42.00",
    ),
    "credits per unit": Case(
        'prices: [{unit: pages, credits: "5"}, {unit: credits, price: "0.01"}]',
        "pages 40",
        ["usage pages: 40 = 2", "credit = -1.5"],  # 40 x 5 = 200 credits, worth 2.00; 150 were granted: 150 x 0.01
        "0.50",
    ),
    "per outcome": Case(
        # The tokens behind an outcome are paid by the vendor: only what was resolved is charged.
        'prices: [{unit: tickets, price: "0.99"}, {unit: input_tokens, price: "0"}, {unit: output_tokens, price: "0"}]',
        "chat 1000000  tickets 3",
        [
            "usage input_tokens: 1000000 = 0",
            "usage output_tokens: 1000000 = 0",
            "usage tickets: 3 = 2.97",  # 3 x 0.99
        ],
        "2.97",
    ),
}


def list_spans(used: str) -> list[TestSpan]:
    """The events of a case, a minute apart."""
    words = used.split()
    return [
        chat(f"e{place}", tokens=(int(count), int(count)), ended=NOVEMBER + place)
        if unit == "chat"
        else searches(f"e{place}", int(count), NOVEMBER + place, unit=unit)
        for place, (unit, count) in enumerate(zip(words[::2], words[1::2], strict=True))
    ]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_pricing_model_by_hand(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the card says of the events is on the invoice, line by line and to the last digit."""
    desk = Desk(tmp_path, monkeypatch, f"billing: {{grace: 0s}}\nrate_card:\n  currency: USD\n  {case.card}\n")
    desk.post(*list_spans(case.used))
    if any(line.startswith("credit") for line in case.lines):
        words = ("--units", "150", "--unit", "credits", "--from", "2026-11-01", "--reason", "plan", "--operator", "ann")
        desk.run("credits", "grant", "acme", *words)
    invoice = desk.close()
    shown = []
    for line in invoice["lines"]:
        label = "" if line["kind"] == "credit" else line["label"] or line["unit"]
        quantity = "" if line["quantity"] is None else f": {line['quantity']}"
        shown.append(f"{line['kind']} {label}".strip() + f"{quantity} = {line['exact']}")
    assert sorted(shown) == sorted(case.lines)
    assert invoice["total"] == case.total
