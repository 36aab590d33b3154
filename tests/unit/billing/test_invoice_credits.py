"""Credits on invoices: usage first, then what no event carries; late usage and late grants move them by difference."""

from __future__ import annotations

from otelbill_collector.domain.instants import parse_instant
from tests.spans import chat
from tests.unit.billing.test_invoice_commands import DECEMBER, NOVEMBER, Desk, desk, searches

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
