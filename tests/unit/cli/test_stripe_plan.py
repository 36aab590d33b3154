"""`otelbill stripe plan` says what of a rate card Stripe will never hear of."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from otelbill_collector.cli import cli
from otelbill_collector.cli import stripe as module

PRICES = "rate_card: {prices: [{unit: pages, price: 1}]"
WITH_FEES = PRICES + ", fees: [{name: Base, amount: 1}], discounts: [{name: Off, percent: 1}]"


@pytest.mark.parametrize(("card", "told"), [(PRICES, None), (WITH_FEES, "the rate card's fees, discounts:")])
def test_what_stripe_is_not_told_is_said(
    card: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sets Stripe up learns there, and not from a wrong bill, that its meters have events only."""
    monkeypatch.setattr(module, "operate_ledger", lambda *_: {"items": [], "pending": False})
    (tmp_path / "otelbill.yaml").write_text(card + "}\n", encoding="utf-8")
    options = ["--config", str(tmp_path / "otelbill.yaml"), "--data-dir", str(tmp_path)]
    shown = CliRunner().invoke(cli, ["stripe", "plan", *options], catch_exceptions=False).stdout
    assert ("Stripe is not told" in shown) is (told is not None)
    assert told is None or told in shown
