"""The front page says what waits, keeps sums exact, and shows no markup of a customer's name."""

from __future__ import annotations

import re
from typing import Any

from otelbill_collector.web.front import FrontPage, render_front

NO_STRIPE: dict[str, Any] = {"counts": {}, "lanes": [], "stops": [], "oldest_waiting_at": None}


def build_row(customer: str | None, **given: Any) -> dict[str, Any]:
    return {
        "customer": customer,
        "events": 3,
        "quantities": {"requests": 2, "input_tokens": 1000, "output_tokens": 500, "vector_queries": "1.5"},
        "cost": "0.100000000000000001",
        "charge": "1234.3",
        "currency": "USD",
        "unpriced": 0,
        "held": 0,
        **given,
    }


def list_cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(<td>.*?)</tr>", page)
    return [re.sub(r"<[^>]+>", "|", row).strip("|").split("||") for row in rows]


def test_a_customer_is_one_line_with_calls_tokens_cost_charge_and_margin() -> None:
    """Margin is the charge less the cost, to the last digit."""
    page = render_front(FrontPage([build_row("acme")], 0, NO_STRIPE))

    assert list_cells(page)[0][:7] == [
        *("acme", "2", "1,500", "0.100000000000000001", "1,234.3", "1,234.199999999999999999", "USD")
    ]


def test_what_waits_for_somebody_is_counted_and_linked() -> None:
    """Unpriced, held, suspense and dead letters each stand out with their number and lead to the list."""
    rows = [build_row("acme", unpriced=2, charge=None), build_row(None, held=1)]
    page = render_front(FrontPage(rows, 7, NO_STRIPE))

    tiles = re.findall(r'<a class="tile wait" href="([^"]+)"><b>(\d+)</b> ([\w ]+)<', page)
    assert tiles == [
        ("v1/held", "2", "unpriced"),
        ("v1/held", "1", "held"),
        ("v1/suspense", "3", "in suspense"),
        ("v1/dead-letters", "7", "dead letters"),
    ]
    assert "nobody (suspense)" in page


def test_an_amount_that_is_not_known_is_no_zero() -> None:
    """Without a charge there is neither an amount nor a margin."""
    cells = list_cells(render_front(FrontPage([build_row("acme", charge=None, cost=None)], 0, NO_STRIPE)))

    assert cells[0][3:6] == ["\u2013"] * 3


def test_names_and_messages_are_text() -> None:
    """A customer or an answer of Stripe cannot put markup on the page."""
    stop = {"scope": "lane", "name": "1", "code": "refused", "message": "<script>alert(2)</script>"}
    stripe = {"counts": {"pending": 1}, "lanes": [{}], "stops": [stop], "oldest_waiting_at": "2026-11-21T02:11:54.2Z"}
    page = render_front(FrontPage([build_row("<script>alert(1)</script>")], 0, stripe))

    assert "<script" not in page
    assert "0 delivered, 1 waiting, 0 need a person; the oldest waits since 2026-11-21T02:11:54Z" in page


def test_an_empty_ledger_says_where_to_send() -> None:
    """The first visit is an instruction and not an empty table."""
    page = render_front(FrontPage([], 0, NO_STRIPE))

    assert "Nothing yet. Send OTLP to 4327 (gRPC) or 4328 (HTTP)." in page
    assert "tile wait" not in page
