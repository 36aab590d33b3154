"""Credits in the ledger: they follow booked usage exactly, whatever arrives late, twice or is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.config import Config
from otelbill_collector.crediting import (
    CreditDesk,
    CreditTerms,
    render_balance,
    render_credits,
    render_history,
    render_statement,
)
from otelbill_collector.domain.charges import PeriodCharge, Pricing
from otelbill_collector.domain.credits import Demand, Place
from otelbill_collector.domain.grants import SLICE_NANOS, InvalidGrant
from otelbill_collector.domain.instants import format_instant
from otelbill_collector.domain.money import format_attos, parse_attos
from otelbill_collector.domain.ratecard import ChargePrice, RateCard
from otelbill_collector.domain.records import UsageRecord
from otelbill_collector.domain.transfers import sum_accounts
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.credit_usage import fold_credit_usage
from otelbill_collector.ledger.credits import (
    UnknownGrant,
    find_charge_time,
    list_credit_lines,
    list_posted,
    mark_changed,
    prepare_posting,
    save_period_charges,
    save_posting,
)
from otelbill_collector.ledger.lineage import list_trace
from tests.books import TestBooks
from tests.spans import SECOND, T0, TestSpan, chat, trace_id
from tests.whole_ledger import verify

QUARTER = SLICE_NANOS
# 1 cent for an input token, 2 for an output token, 5 dollars for a report.
CARD = RateCard(
    (
        ChargePrice("input_tokens", parse_attos("0.01")),
        ChargePrice("output_tokens", parse_attos("0.02")),
        ChargePrice("reasoning_tokens", parse_attos("0.05")),
        ChargePrice("reports", parse_attos("5")),
    )
)
TERMS = CreditTerms(units=frozenset({"output_tokens", "input_tokens", "reports"}))


class Desk:
    """Books and credits of a test, with a clock."""

    def __init__(self, folder: Path) -> None:
        self.books = TestBooks(folder, replace(Config(), rate_card=CARD))
        self.now = T0 + 24 * QUARTER
        self.credits = CreditDesk(self.books.store, TERMS, lambda: self.now)

    def give(self, amount: str = "10.00", **given: Any) -> str:
        arguments = {"customer_id": "acme", "operator": "ann", "reason": "welcome", "start": "2026-01-01", **given}
        if "units" not in arguments:
            arguments["amount"] = amount
        answer: str = self.credits.give(arguments)["grant_id"]
        return answer

    def use(self, name: str, cents: int, *, after: int = 0, **changes: Any) -> None:
        """A call of so many input tokens, at a cent each, some quarters of an hour after the beginning of the year."""
        self.books.post(chat(name, tokens=(cents, 0), ended=T0 + after * QUARTER + SECOND, **changes), now=self.now)

    def left(self, at: int | None = None) -> str:
        """What acme has in dollars."""
        balances = self.read(render_balance, "acme", self.now if at is None else at)["balances"]
        return next((row["left"] for row in balances if row["asset"] == "USD"), "none")

    def read(self, work: Any, *arguments: Any) -> Any:
        return self.books.store.read(lambda connection: work(connection, *arguments))

    def find(self, name: str) -> UsageRecord:
        """The booking of a call."""
        (record,) = self.read(list_trace, [trace_id(name)])
        assert isinstance(record, UsageRecord)
        return record

    def accounts(self) -> dict[str, str]:
        """Balances of all accounts in dollars, those that are even left out."""
        sums: dict[str, int] = {}
        for (account, _), value in sum_accounts(self.read(list_posted)).items():
            name = account.partition(":")[0]
            sums[name] = sums.get(name, 0) + value
        return {name: format_attos(value) for name, value in sums.items() if value}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "ledger")
    yield made
    made.books.close()
    assert verify(made.books.store.path).findings == []


def test_usage_burns_a_grant_and_the_rest_is_overage(desk: Desk) -> None:
    """$10 granted; $4 and $9 are used: 4 + 6 = 10 are consumed, 3 are overage, and the accounts say the same."""
    desk.give()
    desk.use("a", 400)
    desk.use("b", 900, after=1)
    assert desk.left(T0 + QUARTER) == "6"
    assert desk.left() == "0"
    assert desk.credits.post_due() > 0
    assert desk.accounts() == {"issued": "-10", "consumed": "10"}
    statement = desk.read(render_statement, "acme", T0, T0 + 4 * QUARTER)
    assert [row["charge"] for row in statement["consumption"]] == ["-10"]
    assert [(row["unit"], row["quantity"], row["charge"]) for row in statement["overage"]] == [
        ("input_tokens", "1300", "3")  # no grant of units paid for any of them
    ]


def test_a_customer_whose_credits_trip_a_fault_holds_up_no_other(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are posted; the fault is logged with its customer, who stays due until it is mended."""
    desk.give(customer_id="aaa")
    desk.give()
    desk.use("a", 400, customer="aaa")
    desk.use("b", 300)

    def prepare(connection: Any, customer_id: str, now_nanos: int) -> Any:
        if customer_id == "aaa":
            raise ZeroDivisionError("planted")
        return prepare_posting(connection, customer_id, now_nanos)

    with monkeypatch.context() as patched:
        patched.setattr("otelbill_collector.crediting.prepare_posting", prepare)
        assert desk.credits.post_due() > 0
    assert "credits of 'aaa' cannot be posted" in caplog.text
    assert desk.accounts() == {"issued": "-20", "grant": "17", "consumed": "3"}
    assert desk.credits.post_due() > 0
    assert desk.accounts() == {"issued": "-20", "grant": "13", "consumed": "7"}


def test_posting_again_writes_nothing(desk: Desk) -> None:
    """What is posted is the difference, so that no restart and no repeated job doubles anything."""
    desk.give()
    desk.use("a", 400)
    desk.credits.post_due()
    before = desk.read(list_posted)
    desk.books.reopen()
    desk.credits = CreditDesk(desk.books.store, TERMS, lambda: desk.now)
    assert desk.credits.post_due() == 0
    assert desk.read(list_posted) == before


def test_a_posting_that_was_overtaken_is_not_written(desk: Desk) -> None:
    """What was worked out on a snapshot is written only while nothing it was made from has changed."""
    desk.give()
    desk.use("a", 400)
    desk.books.store.transact(fold_credit_usage)
    desk.books.store.transact(lambda connection: mark_changed(connection, ["acme"]))
    stale = desk.read(prepare_posting, "acme", desk.now)
    assert [item.key.kind.value for item in stale.transfers] == ["burn"]
    desk.give("3", reason="more")
    assert desk.books.store.transact(lambda connection: save_posting(connection, stale)) is False
    assert desk.accounts() == {"issued": "-13", "grant": "9", "consumed": "4"}


def test_duplicates_change_nothing(desk: Desk) -> None:
    """A span that is sent again burns nothing again."""
    desk.give()
    for _ in range(3):
        desk.use("a", 400)
        desk.credits.post_due()
    assert desk.accounts() == {"issued": "-10", "grant": "6", "consumed": "4"}


def test_late_usage_moves_credits_by_transfers_that_name_what_they_correct(desk: Desk) -> None:
    """$8 at noon burn 8 of 10. Then $5 of an hour before arrive: 5 are paid first, and noon gets 5 instead of 8. When
    the late event is voided, everything is as before.
    """
    desk.give()
    desk.use("noon", 800, after=8)
    desk.credits.post_due()
    before = desk.accounts()
    desk.use("late", 500, after=4)
    desk.credits.post_due()
    rows = desk.read(render_history, "acme", desk.now)
    burns = [(row["at"][11:16], row["amount"], row["from_account"][:5], row["corrects"]) for row in rows[1:]]
    # The first transfer is the grant; 2 is noon's 8; then the late 5, and 3 come back from noon, which names 2.
    assert sorted(burns[1:]) == [("01:00", "5", "grant", None), ("02:00", "3", "consu", 2)]
    event = desk.find("late")
    desk.books.books.correct(Wish((event.event_id,), "ann", "test traffic", desk.now, void=True))
    desk.credits.post_due()
    assert desk.accounts() == before
    assert desk.left() == "2"


def test_order_and_batches_of_arrival_change_nothing(tmp_path: Path) -> None:
    """The same events one by one, with a posting after each, or all at once and backwards: the same accounts."""
    found = []
    for number, order in enumerate(([0, 1, 2, 3, 4], [4, 3, 2, 1, 0])):
        desk = Desk(tmp_path / str(number))
        desk.give("7.50", expires="2026-01-01T00:45:00Z", rollover_until="2026-01-02", rollover_percent="50")
        desk.give("3", priority=-1, model="gpt-4o*")
        for item in order:
            desk.use(f"e{item}", 100 + item, after=item)
            if number == 0:
                desk.credits.post_due()
        desk.credits.post_due()
        found.append((sum_accounts(desk.read(list_posted)), desk.left()))
        desk.books.close()
    assert {key: value for key, value in found[0][0].items() if value} == {
        key: value for key, value in found[1][0].items() if value
    }
    assert found[0][1] == found[1][1]


def test_units_are_counted_as_they_are_priced(desk: Desk) -> None:
    """100 output tokens, 30 of them reasoning at its own price: 70 x 0.02 = 1.40 are output, 30 x 0.05 = 1.50 are not.
    A grant of 50 output tokens pays 50 x 0.02 = 1.00; one of 3 reports pays 2 reports, 10 dollars.
    """
    desk.give(units="50", unit="output_tokens")
    desk.give(units="3", unit="reports")
    desk.books.post(
        chat("r", tokens=(0, 100), ended=T0, attributes={"gen_ai.usage.reasoning.output_tokens": 30}),
        report("paper", "2"),
    )
    statement = desk.read(render_statement, "acme", T0, T0 + QUARTER)
    assert sorted((row["asset"], row["amount"], row["charge"]) for row in statement["consumption"]) == [
        ("output_tokens", "50", "-1"),
        ("reports", "2", "-10"),
    ]
    assert [(row["unit"], row["quantity"], row["charge"]) for row in statement["overage"]] == [
        ("output_tokens", "20", "0.4"),
        ("reasoning_tokens", "30", "1.5"),
    ]
    charged = sum(parse_attos(row["charge"]) for row in statement["overage"]) + parse_attos("11")
    assert format_attos(charged) == desk.books.totals(desk.books.usage())["charge"] == "12.9"


def report(name: str, quantity: str) -> TestSpan:
    """Usage of a unit of the customer's own."""
    attributes = {
        "otelbill.customer.id": "acme",
        "otelbill.meter": "reports",
        "otelbill.unit": "reports",
        "otelbill.quantity": quantity,
    }
    return TestSpan(name, attributes, trace=name, ended=T0)


def test_a_charge_that_an_operator_lowers_gives_credit_back(desk: Desk) -> None:
    """$8 burn 8 of 10; the charge is corrected to $3, so 5 come back and 7 are left."""
    desk.give()
    desk.use("a", 800)
    desk.credits.post_due()
    event = desk.find("a")
    wish = Wish((event.event_id,), "ann", "agreed", desk.now, charge_attos=parse_attos("3"), currency="USD")
    desk.books.books.correct(wish)
    desk.credits.post_due()
    assert desk.accounts() == {"issued": "-10", "grant": "7", "consumed": "3"}


def test_balances_at_instants_are_those_of_then(desk: Desk) -> None:
    """From 00:30 to 01:00, $10; used $4 at 00:15 (too early) and $4 at 00:45."""
    desk.give(start="2026-01-01T00:30:00Z", expires="2026-01-01T01:00:00Z")
    desk.use("early", 400, after=1)
    desk.use("inside", 400, after=3)
    shown = {format_instant(T0 + n * QUARTER)[11:16]: desk.left(T0 + n * QUARTER) for n in range(6)}
    assert shown == {"00:00": "none", "00:15": "none", "00:30": "10", "00:45": "10", "01:00": "none", "01:15": "none"}
    assert desk.left(T0 + 3 * QUARTER + 1) == "6"  # a quarter of an hour that has begun counts
    desk.credits.post_due()
    assert desk.accounts() == {"issued": "-10", "consumed": "4", "expired": "6"}


def test_time_alone_posts_an_expiry_once(desk: Desk) -> None:
    """A grant that nobody uses expires when its time has come, not before and not twice."""
    desk.now = T0
    desk.give(expires="2026-01-01T01:00:00Z", rollover_until="2026-01-01T02:00:00Z", rollover_max="4")
    for now, expected in (
        (T0 + 3 * QUARTER, {"issued": "-10", "grant": "10"}),
        (T0 + 4 * QUARTER, {"issued": "-10", "grant": "4", "expired": "6"}),
        (T0 + 5 * QUARTER, {"issued": "-10", "grant": "4", "expired": "6"}),
        (T0 + 8 * QUARTER, {"issued": "-10", "expired": "10"}),
        (T0, {"issued": "-10", "expired": "10"}),  # a clock that goes back brings nothing back
    ):
        desk.now = now
        desk.credits.post_due()
        assert desk.accounts() == expected, format_instant(now)


def test_a_void_takes_what_is_left(desk: Desk) -> None:
    """$4 of $10 are used before, $4 after the void: 4 are consumed, 6 void."""
    grant_id = desk.give()
    desk.use("before", 400)
    desk.now = T0 + 2 * QUARTER
    desk.credits.void(grant_id=grant_id, reason="cancelled", operator="bob")
    desk.use("after", 400, after=3)
    desk.now = T0 + 24 * QUARTER
    desk.credits.post_due()
    assert desk.accounts() == {"issued": "-10", "consumed": "4", "voided": "6"}
    (row,) = desk.read(render_credits, None, desk.now)
    assert (row["state"], row["void"]["operator"], row["voided"]) == ("void", "bob", "6")


def test_charges_of_a_period_are_paid_by_what_usage_left(desk: Desk) -> None:
    """$10 granted, $4 of usage: a fee of $8 gets the 6 that are left, and 2 are overage; as a draft and once saved."""
    desk.give()
    desk.use("a", 400)
    fee = Demand(Place(find_charge_time(T0 + 4 * QUARTER), "", "", "", ""), "USD", charge_attos=parse_attos("8"))
    bounds = ("acme", T0, T0 + 4 * QUARTER)
    draft = desk.books.store.read(lambda connection: list_credit_lines(connection, *bounds, charges=[fee]))
    assert [format_attos(line.charge_attos) for line in draft.lines] == ["-10"]
    assert format_attos(draft.overage_attos) == "2"
    desk.books.store.transact(
        lambda connection: save_period_charges(connection, "acme", [fee], origin="inv-1", booked_nanos=desk.now)
    )
    assert desk.books.store.read(lambda connection: list_credit_lines(connection, *bounds)) == draft
    desk.credits.post_due()
    assert desk.accounts() == {"issued": "-10", "consumed": "10"}


def test_without_grants_everything_is_overage_and_nothing_is_folded(desk: Desk) -> None:
    """Who never grants anything pays nothing for credits, neither in time nor in bytes."""
    desk.use("a", 400)
    assert desk.credits.post_due() == 0
    found = desk.read(list_credit_lines, "acme", T0, T0 + QUARTER)
    assert (found.lines, format_attos(found.overage_attos)) == ((), "4")
    assert desk.read(lambda connection: connection.execute("SELECT count(*) FROM credit_usage").fetchone()) == (0,)


def test_folding_in_any_batches_gives_the_same_rows(desk: Desk) -> None:
    """A row per quarter of an hour, unit and price: a reversal leaves none behind."""
    desk.use("a", 400)
    desk.use("b", 5, after=1, customer="globex")
    desk.books.store.transact(fold_credit_usage)
    rows = "SELECT customer_id, unit, price_attos, quantity_micros, charge_attos FROM credit_usage"
    first = desk.read(lambda connection: connection.execute(rows).fetchall())
    cent = str(parse_attos("0.01"))
    assert first == [
        ("acme", "input_tokens", cent, "400000000", str(parse_attos("4"))),
        ("globex", "input_tokens", cent, "5000000", str(parse_attos("0.05"))),
    ]
    event = desk.find("a")
    desk.books.books.correct(Wish((event.event_id,), "ann", "moved", desk.now, customer_id="globex"))
    desk.books.store.transact(fold_credit_usage)
    moved = desk.read(lambda connection: connection.execute(rows).fetchall())
    assert [row[0] for row in moved] == ["globex", "globex"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"expires": "2025-12-31"}, "expires: 2025-12-31T00:00:00Z is not after the start, 2026-01-01T00:00:00Z"),
    ({"amount": "0"}, "amount: 0 is not more than zero"),
    ({"amount": "-5"}, "amount: '-5' is not an exact amount above zero"),
    ({"amount": "1e3"}, "amount: '1e3' is not an exact amount"),
    ({"amount": 10.5}, "amount: '10.5' is not a text"),
    ({"amount": "NaN"}, "amount: 'NaN'"),
    ({"amount": "0.0000000000000000001"}, "at most 18 decimals"),
    ({"units": "1", "unit": "reports"}, "give either an amount of money, or units"),
    ({"currency": "EUR"}, "currency: 'EUR' is not the rate card's; give USD"),
    ({"amount": None, "units": "5", "unit": "pages"}, "unit: 'pages' is neither a unit of usage nor priced"),
    ({"amount": None, "units": "5"}, "unit: name the unit"),
    ({"amount": None, "units": "5.0000001", "unit": "reports"}, "units: .* at most 6 decimals"),
    ({"start": "yesterday"}, "start: 'yesterday' is not an RFC 3339 time"),
    ({"start": "2026-01-01T00:07:00Z"}, "from: .* is not on a quarter of an hour"),
    ({"origin": "gift"}, "origin: 'gift'"),
    ({"priority": "high"}, "priority: 'high'"),
    ({"rollover_percent": "50"}, "rollover_until: say when"),
    ({"expires": "2026-02-01", "rollover_until": "2026-03-01", "rollover_percent": "101"}, "rollover-percent"),
    ({"expires": "2026-02-01", "rollover_until": "2026-03-01", "rollover_percent": "1/2"}, "rollover_percent: '1/2'"),
    ({"reason": " "}, "reason: ' ' is not a text, or empty"),
    ({"operator": None}, "operator: give a non-empty text"),
]


@pytest.mark.parametrize(("given", "problem"), REFUSED, ids=[str(row[0]) for row in REFUSED])
def test_a_bad_grant_is_refused_and_nothing_is_written(desk: Desk, given: dict[str, Any], problem: str) -> None:
    """The message names the field, the value and what to give instead."""
    with pytest.raises(InvalidGrant, match=problem):
        desk.credits.give(
            {"customer_id": "acme", "operator": "ann", "reason": "r", "start": "2026-01-01", "amount": "10", **given}
        )
    assert desk.read(render_credits, None, desk.now) == []
    assert desk.read(list_posted) == []


def test_what_was_done_before_is_refused(desk: Desk) -> None:
    """The same grant twice, a void of nothing, a second void, a void of what has expired: nothing is written."""
    grant_id = desk.give()
    with pytest.raises(InvalidGrant, match=f"granted before, as {grant_id}"):
        desk.give()
    with pytest.raises(UnknownGrant, match="credits list"):
        desk.credits.void(grant_id="nope", reason="r", operator="o")
    desk.credits.void(grant_id=grant_id, reason="r", operator="o")
    with pytest.raises(InvalidGrant, match="is void already"):
        desk.credits.void(grant_id=grant_id, reason="r", operator="o")
    old = desk.give(expires="2026-01-01T00:30:00Z")
    with pytest.raises(InvalidGrant, match="expired at 2026-01-01T00:30:00Z"):
        desk.credits.void(grant_id=old, reason="r", operator="o")
    assert desk.read(lambda connection: connection.execute("SELECT count(*) FROM credit_void").fetchone()) == (1,)


def test_what_rolled_over_can_be_voided(desk: Desk) -> None:
    """The rest of a grant is a grant: it is listed, has an id, and can be taken back."""
    desk.give(expires="2026-01-01T00:30:00Z", rollover_until="2026-02-01")
    rest = next(row for row in desk.read(render_credits, "acme", desk.now) if row["rolled_over_from"])
    answer = desk.credits.void(grant_id=rest["grant_id"], reason="left us", operator="ann")
    assert (answer["state"], answer["voided"]) == ("void", "10")
    assert desk.accounts() == {"issued": "-10", "voided": "10"}


def test_what_a_period_charge_covers_has_no_price_by_event(tmp_path: Path) -> None:
    """Input tokens are in a package of the period, so an event's charge is its 20 output tokens x 0.02 = 0.40. Money
    pays that; granted input tokens are counted down, and worth nothing.
    """
    desk = Desk(tmp_path / "ledger")
    charge = PeriodCharge("tokens", "input_tokens", Pricing.PACKAGE, attos=parse_attos("1"), package_size=1_000)
    card = RateCard((ChargePrice("output_tokens", parse_attos("0.02")),), charges=(charge,))
    desk.books.close()
    desk.books = TestBooks(tmp_path / "ledger", replace(Config(), rate_card=card))
    desk.credits = CreditDesk(desk.books.store, TERMS, lambda: desk.now)
    desk.give()
    desk.give(units="70", unit="input_tokens")
    desk.books.post(chat("a", tokens=(100, 20), ended=T0))
    statement = desk.read(render_statement, "acme", T0, T0 + QUARTER)
    assert sorted((row["asset"], row["amount"], row["charge"]) for row in statement["consumption"]) == [
        ("USD", "0.4", "-0.4"),
        ("input_tokens", "70", "0"),
    ]
    desk.books.close()
