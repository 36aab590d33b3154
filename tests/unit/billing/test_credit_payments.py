"""Credits on an invoice: they pay its usage first and then what no event carries, and follow what was invoiced."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from otelbill_collector.config import Config
from otelbill_collector.credit_payments import pay_by_credits, save_invoiced_charges
from otelbill_collector.crediting import CreditDesk, CreditTerms
from otelbill_collector.domain.invoices import Entry, LineKind
from otelbill_collector.domain.money import ATTOS_PER_UNIT, parse_attos
from otelbill_collector.domain.periods import Period
from otelbill_collector.domain.ratecard import ChargePrice, RateCard
from tests.books import NOW, TestBooks
from tests.spans import T0, chat

PERIOD = Period("2026-01", T0, T0 + 31 * 86_400 * 10**9)
CENT = RateCard((ChargePrice("input_tokens", parse_attos("0.01")),))


def charge(kind: LineKind, dollars: str) -> Entry:
    return Entry(kind, Fraction(dollars) * ATTOS_PER_UNIT, label=kind.value)


# $10 granted, $4 of usage; (other charges of the period, what credits pay)
CASES = [
    ("usage only", [], 4),
    ("a fee that fits", [charge(LineKind.FEE, "3")], 7),
    ("a fee that does not", [charge(LineKind.FEE, "8")], 10),
    ("a fee less a discount: 5 - 2 = 3", [charge(LineKind.FEE, "5"), charge(LineKind.DISCOUNT, "-2")], 7),
    ("usage lines are no second time", [charge(LineKind.USAGE, "4")], 4),
    ("a third of a dollar is cut to whole attos", [charge(LineKind.CHARGE, "1/3")], None),
]


@pytest.mark.parametrize(("case", "charges", "paid"), CASES, ids=[row[0] for row in CASES])
def test_credits_pay_usage_and_then_charges(tmp_path: Path, case: str, charges: list[Entry], paid: int | None) -> None:
    """The draft, and the same period once its charges are saved, have the same credits; never more than granted."""
    books = TestBooks(tmp_path, Config(rate_card=CENT))
    assert books.store.read(lambda connection: pay_by_credits(connection, "acme", PERIOD, charges)) == []
    CreditDesk(books.store, CreditTerms(), lambda: NOW).give(
        {"customer_id": "acme", "amount": "10", "start": "2026-01-01", "reason": "order", "operator": "ann"}
    )
    books.post(chat("a", tokens=(400, 0), ended=T0))
    draft = books.store.read(lambda connection: pay_by_credits(connection, "acme", PERIOD, charges))
    expected = 4 * ATTOS_PER_UNIT + ATTOS_PER_UNIT // 3 if paid is None else paid * ATTOS_PER_UNIT
    assert [entry.amount for entry in draft] == [-expected], case
    assert draft[0].kind is LineKind.CREDIT
    assert draft[0].label.startswith("Promotional credit ")
    books.store.transact(
        lambda connection: save_invoiced_charges(
            connection, "acme", PERIOD, charges, currency="USD", invoice_id="inv1", booked_nanos=NOW
        )
    )
    assert books.store.read(lambda connection: pay_by_credits(connection, "acme", PERIOD, [])) == draft
    books.close()
