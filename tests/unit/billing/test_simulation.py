"""Other cards over whole billing periods: what `simulate` says is what invoices under that card come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.domain.instants import DAY_NANOS, parse_instant
from tests.spans import chat
from tests.unit.billing.test_invoice_commands import NOVEMBER, Desk, searches

OCTOBER = parse_instant("2026-10-10")
CARD = """
customers:
  acme: {time_zone: Europe/Berlin, group: large}
  bolt: {}
billing: {grace: 2d}
rate_card:
  currency: USD
  prices:
    - {unit: input_tokens, price: "2.00", per: 1000000}
    - {unit: output_tokens, price: "10.00", per: 1000000}
  charges:
    - name: Searches
      unit: searches
      pricing: graduated
      included: 100
      tiers:
        - {up_to: 1000, price: "0.01"}
        - {price: "0.005"}
  fees:
    - {name: Platform, amount: "20"}
"""
OTHER = """
customers:
  acme: {time_zone: Europe/Berlin, group: large}
  bolt: {}
billing: {grace: 2d}
rate_card:
  currency: USD
  prices:
    - {unit: input_tokens, price: "3.00", per: 1000000}
    - {unit: output_tokens, price: "9.00", per: 1000000}
  charges:
    - {name: Searches, unit: searches, pricing: package, price: "2", package_size: 500}
  fees:
    - {name: Platform, amount: "10"}
    - {name: Support, amount: "31", prorate: true, from: 2026-10-16}
  discounts:
    - {name: Large, percent: "10", group: large}
    - {name: Mini, percent: "50", model: "gpt-4o-mini"}
  minimums:
    - {name: Minimum, amount: "40"}
  commitments:
    - {name: Autumn, amount: "200", customer: acme, from: 2026-10-01, to: 2026-11-30}
"""


def post(desk: Desk) -> None:
    """Two months of two customers; of each some by event and some by period."""
    for start, name in ((OCTOBER, "o"), (NOVEMBER, "n")):
        for number in range(4):
            customer = "acme" if number % 2 else "bolt"
            model = "gpt-4o-mini" if number < 2 else "gpt-4o"
            tokens = (100_000 * (number + 1), 7_001 * number)
            desk.post(chat(f"{name}{number}", customer=customer, model=model, tokens=tokens, ended=start + number))
        desk.post(searches(f"{name}s", 1_250, start), searches(f"{name}t", 40, start + DAY_NANOS, "bolt"))


def sum_invoices(desk: Desk, customer: str) -> dict[str, Any]:
    """The exact totals of October and November."""
    return {label: desk.read("invoice", customer, "--period", label)["exact_total"] for label in ("2026-10", "2026-11")}


def simulate(desk: Desk, folder: Path, card: str, *words: str) -> dict[str, Any]:
    """Rows of customers by name."""
    file = folder / "other.yaml"
    file.write_text(card)
    answer = desk.read("simulate", "--rate-card", str(file), *words)
    return {row["customer"]: row for row in answer["customers"]} | {"total": answer["total"]}


def test_a_period_under_two_cards_worked_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bolt's November: 100,000 + 300,000 input tokens, 14,002 output tokens, 40 searches.

    As booked: 0.4 x 2.00 + 0.014002 x 10.00 = 0.94002; 40 of 100 included searches are 0; the fee is 20: 20.94002.
    The other card: 0.4 x 3.00 + 0.014002 x 9.00 = 1.326018; one package 2; fees 10 + 31 = 41; half of gpt-4o-mini's
    0.3 off is -0.15; that is 44.176018, above the minimum of 40. Beside events: 2 + 41 - 0.15 = 42.85.
    """
    desk = Desk(tmp_path, monkeypatch, CARD)
    post(desk)
    found = simulate(desk, tmp_path, OTHER, "--from", "2026-11-01", "--to", "2026-12-01")["bolt"]
    assert (found["charge_booked"], found["by_period_booked"]) == ("20.94002", "20")
    assert (found["charge"], found["by_period"], found["periods"]) == ("44.176018", "42.85", 1)
    assert found["difference"] == "23.235998"


def test_both_sides_are_what_invoices_come_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last digit: tiers, packages, fees by time, discounts on everything and on a model, minimum, commitment."""
    for name in ("booked", "other"):
        (tmp_path / name).mkdir()
    desk = Desk(tmp_path / "booked", monkeypatch, CARD)
    other = Desk(tmp_path / "other", monkeypatch, OTHER)
    for item in (desk, other):
        post(item)
        for customer in ("acme", "bolt"):
            item.close("2026-10", customer)
    found = simulate(desk, tmp_path, OTHER)
    for customer in ("acme", "bolt"):
        for side, name in ((desk, "charge_booked"), (other, "charge")):
            exact = sum_invoices(side, customer)
            assert add(*exact.values()) == add(found[customer][name]), (customer, name)
    assert add(found["total"]["charge"]) == add(found["acme"]["charge"], found["bolt"]["charge"])


def add(*amounts: str) -> Any:
    """The sum of decimals or fractions."""
    return sum(map(Fraction, amounts), Fraction(0))


def test_a_part_of_a_period_or_of_its_usage_is_priced_by_event_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tier says nothing of half a month, nor of one model."""
    desk = Desk(tmp_path, monkeypatch, CARD)
    post(desk)
    for words in (("--from", "2026-11-02"), ("--to", "2026-11-29", "--from", "2026-11-01"), ("--model", "gpt-4o")):
        found = simulate(desk, tmp_path, OTHER, *words)["total"]
        assert (found["periods"], found["by_period_booked"], found["by_period"]) == (0, "0", "0")


def test_rating_again_tells_how_far_it_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments done and segments in all, up to the last; a bar on a terminal is drawn from it."""
    desk = Desk(tmp_path, monkeypatch, CARD)
    post(desk)
    desk.file.write_text(CARD.replace('"0.01"', '"0.02"'))
    seen: list[tuple[str, int, int]] = []

    @contextmanager
    def show() -> Iterator[Callable[[str, int, int], None]]:
        yield lambda step, done, total: seen.append((step, done, total))

    monkeypatch.setattr("otelbill_collector.cli.repricing.show_progress", show)
    desk.read("rerate", "--from", "2026-09-01", "--reason", "typing error", "--operator", "ann")
    assert seen
    assert {(step, total == seen[0][2]) for step, _, total in seen} == {("rate again", True)}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == seen[-1][2]


def test_the_dry_run_of_a_corrected_charge_is_what_rating_again_books(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fees of a closed period stay on both sides, as `rerate` leaves them; its tiers change by what is adjusted."""
    desk = Desk(tmp_path, monkeypatch, CARD)
    post(desk)
    closed = desk.close("2026-10", "acme")
    desk.file.write_text(CARD.replace('"0.01"', '"0.02"').replace('"20"', '"70"'))
    span = ("--from", "2026-09-30T22:00:00Z", "--to", "2026-10-31T23:00:00Z", "--customer", "acme")
    (row,) = desk.read("rerate", *span, "--dry-run")["customers"]
    assert (row["difference"], row["changed"], row["by_period_booked"]) == ("10", 1, "30.75")
    desk.read("rerate", *span, "--reason", "typing error", "--operator", "ann")
    lines = desk.read("invoice", "acme", "--period", "2026-11")["lines"]
    adjusted = [line["exact"] for line in lines if line["adjustment"]]
    assert add(*adjusted) == 10
    assert add(closed["exact_total"]) + 10 == add(row["charge"])


def test_a_customer_without_usage_is_billed_its_fees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As closing all does: who is configured owes the fees and the minimum of every month."""
    desk = Desk(tmp_path, monkeypatch, CARD + "  # nothing else\n")
    desk.post(searches("s", 1))
    found = simulate(desk, tmp_path, OTHER, "--from", "2026-11-01", "--to", "2026-12-01")["bolt"]
    assert (found["events"], found["charge_booked"], found["charge"]) == (0, "20", "41")
