"""Credits on invoices: usage first, then what no event carries; late usage and late grants move them by difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otelbill_collector.domain.instants import DAY_NANOS, parse_instant
from tests.spans import chat
from tests.unit.billing.test_invoice_archive import check, export, unpack
from tests.unit.billing.test_invoice_commands import CARD, DECEMBER, NOVEMBER, Desk, desk, searches

__all__ = ["desk"]


def grant(desk: Desk, amount: str, start: str = "2026-11-01") -> None:
    """Give acme credit in EUR."""
    words = ("--amount", amount, "--currency", "EUR", "--from", start, "--reason", "welcome", "--operator", "ann")
    desk.run("credits", "grant", "acme", *words)


def list_credits(invoice: dict[str, object]) -> list[str]:
    """Amounts of credit lines, with the period of adjustments."""
    lines = invoice["lines"]
    assert isinstance(lines, list)
    return [
        (f"{line['period']} " if line["adjustment"] else "") + line["amount"]
        for line in lines
        if line["kind"] == "credit"
    ]


def test_credits_pay_for_usage_and_for_what_no_event_carries(desk: Desk) -> None:
    """2.70 of usage, 11.00 of searches and a fee of 20.00 are 33.70; a grant of 25.00 leaves 8.70."""
    desk.post(*[chat(f"c{n}", tokens=(300_000, 30_000), ended=NOVEMBER + n) for n in range(3)], searches("s", 1_300))
    grant(desk, "25")
    draft = desk.read("invoice", "acme", "--period", "2026-11")
    assert (list_credits(draft), draft["total"]) == (["-25.00"], "8.70")
    assert desk.close()["lines"] == draft["lines"]


def test_credits_are_spent_once(desk: Desk) -> None:
    """What November burned, December cannot; a voided invoice gives it back."""
    grant(desk, "30")
    desk.post(searches("s", 100))
    first = desk.close()
    assert (list_credits(first), first["total"]) == (["-20.00"], "0.00")
    desk.run("invoices", "void", first["invoice_id"], "--reason", "again", "--operator", "ann")
    again = desk.close()
    assert (list_credits(again), again["total"]) == (["-20.00"], "0.00")
    desk.now = parse_instant("2027-01-05")
    desk.post(searches("d", 10, DECEMBER))
    december = desk.close("2026-12")
    assert (list_credits(december), december["total"]) == (["-10.00"], "10.00")


def test_late_usage_takes_credit_in_its_own_period(desk: Desk) -> None:
    """A late search of November burns what November left, as an adjustment."""
    grant(desk, "21")
    desk.post(searches("s", 100))
    assert list_credits(desk.close()) == ["-20.00"]
    desk.post(searches("late", 50))
    desk.now = parse_instant("2027-01-05")
    december = desk.close("2026-12")
    assert list_credits(december) == ["-0.50", "2026-11 -0.50"]
    assert december["total"] == "19.50"


def test_a_grant_from_the_past_pays_for_the_past(desk: Desk) -> None:
    """Given after the closing, in force before it: the next invoice credits the earlier period."""
    desk.post(searches("s", 100))
    assert desk.close()["total"] == "20.00"
    grant(desk, "5")
    desk.now = parse_instant("2027-01-05")
    december = desk.close("2026-12")
    assert (list_credits(december), december["total"]) == (["2026-11 -5.00"], "15.00")


HALF_OFF = (
    CARD.partition("  charges:")[0]
    + """
  discounts:
    - {name: Partner, percent: "50"}
"""
)
# grants of acme (amount), usage of 3 x 1.00 in November: what the invoice says
DISCOUNTED = {
    # 3.00 less half is 1.50, and no credit pays more than that: 8.50 of 10 are left.
    "10": ["usage 3.00", "discount -1.50", "credit -1.50", "total 0.00", "left 8.5"],
    # 1.00 pays two thirds of 1.50: 0.50 remains.
    "1": ["usage 3.00", "discount -1.50", "credit -1.00", "total 0.50", "left 0"],
}


@pytest.mark.parametrize(("granted", "wanted"), DISCOUNTED.items())
def test_credits_never_pay_more_than_a_discount_leaves(
    granted: str, wanted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A discount on usage is known when the period is closed, and gives credits back what they paid too much."""
    desk = Desk(tmp_path, monkeypatch, HALF_OFF)
    desk.post(*[chat(f"c{n}", tokens=(0, 100_000), ended=NOVEMBER + n * DAY_NANOS) for n in range(3)])
    grant(desk, granted)
    invoice = desk.close()
    found = [f"{line['kind']} {line['amount']}" for line in invoice["lines"]]
    (balance,) = desk.read("credits", "balance", "acme")["balances"]
    assert [*found, f"total {invoice['total']}", f"left {balance['left']}"] == wanted
    desk.run("verify")


def test_a_discount_reaches_back_to_the_last_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.00 on the 10th, 11th and 12th, half off: 1.50 less is to be paid, the 12th not at all, the 11th to one half.

    So a balance between the two, asked for afterwards, is 10 - 1.00 - 0.50.
    """
    desk = Desk(tmp_path, monkeypatch, HALF_OFF)
    desk.post(*[chat(f"c{n}", tokens=(0, 100_000), ended=NOVEMBER + n * DAY_NANOS) for n in range(3)])
    grant(desk, "10")
    desk.close()
    days = {"2026-11-10": "10", "2026-11-11": "9", "2026-11-12": "8.5", "2026-11-13": "8.5", "2026-12-05": "8.5"}
    found = {day: desk.read("credits", "balance", "acme", "--at", day)["balances"][0]["left"] for day in days}
    assert found == days


def test_discounts_together_take_off_no_more_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 % and 30 % of 3.00 would be 3.30: the second one takes the 0.60 that the first one left."""
    card = HALF_OFF.replace('percent: "50"}', 'percent: "80"}\n    - {name: Special, percent: "30"}')
    desk = Desk(tmp_path, monkeypatch, card)
    desk.post(chat("c", tokens=(0, 300_000), ended=NOVEMBER))
    invoice = desk.close()
    lines = [(line["label"], line["amount"], line["arithmetic"]) for line in invoice["lines"]]
    assert lines[1:] == [
        ("Partner", "-2.40", "80 % of 3"),
        ("Special", "-0.60", "30 % of 3, at most the 0.6 that is left"),
    ]
    assert invoice["total"] == "0.00"


PROMISED = (
    CARD.partition("  charges:")[0]
    + """
  commitments:
    - {name: Promise, amount: "20", from: 2026-10-31T23:00:00Z, to: 2026-12-31T23:00:00Z}
"""
)


def test_a_lower_charge_of_one_period_takes_nothing_back_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.00 in November; in December 17.00 are missing of the 20.00 promised. 5.00 of December come late: 12.00 are.

    In January usage of December is 5.00 more, the commitment 5.00 less, and credits pay the same 20.00 as before.
    """
    desk = Desk(tmp_path, monkeypatch, PROMISED)
    desk.post(*[chat(f"c{n}", tokens=(0, 100_000), ended=NOVEMBER + n * DAY_NANOS) for n in range(3)])
    grant(desk, "100")
    assert desk.close()["total"] == "0.00"
    desk.now = parse_instant("2027-01-05")
    assert list_credits(desk.close("2026-12")) == ["-17.00"]
    desk.post(chat("late", tokens=(0, 500_000), ended=DECEMBER))
    desk.now = parse_instant("2027-02-05")
    january = desk.close("2027-01")
    assert sorted((line["kind"], line["amount"]) for line in january["lines"]) == [
        ("commitment", "-5.00"),
        ("usage", "5.00"),
    ]
    (balance,) = desk.read("credits", "balance", "acme", "--at", "2027-02-05")["balances"]
    assert balance["left"] == "80"


IN_CREDITS = """
billing: {grace: 0s}
rate_card:
  prices:
    - {unit: images, credits: "5"}
    - {unit: images, credits: "4", customer: acme, from: 2026-11-10T12:00:00Z}
    - {unit: output_tokens, credits: "3", per: 1000}
    - {unit: input_tokens, price: "0"}
    - {unit: credits, price: "0.01"}
"""


def test_units_that_cost_credits_burn_grants_of_credits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 images at 5 credits, 10 at 4 and 20,000 tokens at 3 for 1,000 are 150 + 40 + 60 = 250 credits, 2.50.

    A grant of 200 credits pays 2.00 of it; 0.50 is invoiced. Every number is in credits and in money.
    """
    desk = Desk(tmp_path, monkeypatch, IN_CREDITS)
    desk.post(searches("i", 30, unit="images"), searches("j", 10, NOVEMBER + DAY_NANOS, unit="images"))
    desk.post(chat("c", tokens=(7, 20_000), ended=NOVEMBER + 2 * DAY_NANOS))
    words = ("--units", "200", "--unit", "credits", "--from", "2026-11-01", "--reason", "plan", "--operator", "ann")
    grant_id = json.loads(desk.run("credits", "grant", "acme", *words, "--json").stdout)["grant_id"]
    invoice = desk.close()
    assert {line["arithmetic"] for line in invoice["lines"]} == {
        "30 x 5 credits = 150 credits; x 0.01 = 1.5",
        "10 x 4 credits = 40 credits; x 0.01 = 0.4",
        "20,000 x 0.003 credits = 60 credits; x 0.01 = 0.6",
        "7 x 0 = 0",
        "200 credits of the grant, worth 2",
    }
    assert invoice["total"] == "0.50"
    statement = desk.read("credits", "statement", "acme", "--from", "2026-11-01", "--to", "2026-12-01")
    consumed = [(item["amount"], item["asset"], item["charge"]) for item in statement["consumption"]]
    assert consumed == [("200", "credits", "-2")]
    (state,) = desk.read("credits", "balance", "acme")["grants"]
    assert (state["left"], state["consumed"], state["grant_id"]) == ("0", "200", grant_id)
    desk.run("verify")
    folder = unpack(export(desk, 0, tmp_path / "0.tar"), tmp_path / "unpacked")
    assert (check(folder).returncode, "taken as they are" in check(folder).stdout) == (0, False)
    (folder / "credits.json").write_text((folder / "credits.json").read_text().replace('"200"', '"190"'))
    assert f"credit of 2026-11-01T00:00:00Z from {grant_id}: is -2, should be -19/10" in check(folder).stdout
