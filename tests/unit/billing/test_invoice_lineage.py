"""From an invoice line to its events and back: nothing on an invoice is without its records."""

from __future__ import annotations

import pytest

from otelbill_collector.domain.instants import parse_instant
from tests.spans import chat, trace_id
from tests.unit.billing.test_invoice_commands import NOVEMBER, Desk, desk, searches

__all__ = ["desk"]


def test_a_line_leads_to_its_records_price_span_and_back(desk: Desk) -> None:
    """Invoice -> line -> records -> price version; and from the trace of an event to the lines that count it."""
    desk.post(*[chat(f"c{n}", tokens=(300, 30), ended=NOVEMBER + n) for n in range(3)], searches("s", 300))
    desk.post(chat("other", customer="bolt", ended=NOVEMBER))
    invoice = desk.close()
    found = desk.read("explain", invoice["invoice_id"])
    assert [line["records"] for line in found["invoice_lines"]] == [3, 3, 1, 1, 0]
    line = invoice["lines"][0]
    explained = desk.read("explain", line["line_id"])
    assert [row["trace_id"] for row in explained["records"]] == [trace_id(f"c{n}").hex() for n in range(3)]
    (version,) = explained["price_versions"]
    assert version["price_version"] == line["price_version"]
    assert version["content"]["prices"][line["unit"]]["charge"] == line["unit_price"]
    assert sum(row["quantities"][line["unit"]] for row in explained["records"]) == int(line["quantity"])
    back = desk.read("explain", trace_id("c1").hex())
    assert [item["line_id"] for item in back["invoice_lines"]] == [item["line_id"] for item in invoice["lines"][:2]]
    assert desk.read("explain", trace_id("other").hex())["invoice_lines"] == []


def test_a_line_of_a_period_charge_leads_to_what_it_counts(desk: Desk) -> None:
    """The version of the charge stands in the answer, with its tiers."""
    desk.post(chat("c", ended=NOVEMBER), searches("s1", 300), searches("s2", 20))
    line = desk.close()["lines"][2]
    explained = desk.read("explain", line["line_id"])
    assert [row["quantities"] for row in explained["records"]] == [{"searches": 300}, {"searches": 20}]
    charges = [item["content"]["charge"]["name"] for item in explained["price_versions"] if "charge" in item["content"]]
    assert charges == ["Searches"]
    assert "up to 1000: 0.01 each" in desk.run("explain", line["line_id"]).output


def test_an_adjustment_leads_to_what_came_since(desk: Desk) -> None:
    """The records of an adjustment are those booked after the invoice before it."""
    desk.post(searches("s1", 300))
    desk.close()
    desk.post(searches("late", 7))
    desk.now = parse_instant("2027-01-05")
    adjusted = [line for line in desk.close("2026-12")["lines"] if line["adjustment"]]
    (row,) = desk.read("explain", adjusted[0]["line_id"])["records"]
    assert row["trace_id"] == trace_id("late").hex()
    (placed,) = desk.read("explain", trace_id("late").hex())["invoice_lines"]
    assert placed["line_id"] == adjusted[0]["line_id"]


@pytest.mark.parametrize("name", ["inv1.000000000000000000000000", "line1.000000000000000000000000"])
def test_an_unknown_invoice_or_line_is_an_error(desk: Desk, name: str) -> None:
    """Nothing is explained that is not there."""
    assert "otelbill invoices" in desk.run("explain", name, fails=True).output
