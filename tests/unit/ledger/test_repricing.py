"""Booked usage under other prices: summed by columns, the amounts are those of each event rated by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.config import Config
from otelbill_collector.domain.money import parse_attos
from otelbill_collector.domain.prices import parse_unit_price
from otelbill_collector.domain.ratecard import ChargePrice, Markup, RateCard, Selector
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.usage import RatingState
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.repricing import Repriced, Scope, sum_repriced
from otelbill_collector.ledger.segments import build_record
from otelbill_collector.rules import RuleSet
from otelbill_collector.simulation import (
    Simulated,
    render_simulation,
    simulate,
    split_by_use,
)
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, TestSpan, chat

CHEAPER = RateCard(
    prices=(
        ChargePrice("input_tokens", parse_unit_price("0.10", 1_000_000)),
        ChargePrice("output_tokens", parse_unit_price("0.50", 1_000_000), Selector(to_nanos=T0 + 30 * SECOND)),
        ChargePrice("output_tokens", parse_unit_price("0.40", 1_000_000), Selector(from_nanos=T0 + 30 * SECOND)),
        ChargePrice("pages", parse_unit_price("0.002")),
    )
)


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def quiet(done: int, total: int) -> None:
    """Nobody looks."""


def sums(books: TestBooks, rater: Rater, scope: Scope | None = None) -> dict[str | None, Repriced]:
    """Simulate."""
    return books.store.read(lambda connection: simulate(connection, rater, scope or Scope(), quiet)).events


def rerate(books: TestBooks, rater: Rater, scope: Scope | None = None) -> int:
    """Rate again with other rules, as a sidecar started with another card would."""
    rules = RuleSet(rater, grace_seconds=60)
    changed = books.books
    changed._rules = dataclasses.replace(changed._rules, rate=rules.rate)
    return changed.rerate(rater, scope or Scope(), operator="ann", reason="typing error", now_nanos=NOW, progress=quiet)


def test_a_simulation_shows_both_cards_side_by_side(books: TestBooks) -> None:
    """100 + 20 tokens at cost (0.15 and 0.60 a million) are 0.000027; at 0.10 and 0.50 they are 0.00001 + 0.00001."""
    books.post(chat("a", ended=T0 + SECOND))
    found = sums(books, Rater(CHEAPER))["acme"]
    assert (found.booked_charge_attos, found.charge_attos) == (parse_attos("0.000027"), parse_attos("0.00002"))
    assert found.booked_cost_attos == found.cost_attos == parse_attos("0.000027")
    assert (found.events, found.changed, found.uncharged) == (1, 1, 0)
    shown = render_simulation(Simulated(sums(books, Rater(CHEAPER))), "USD")
    assert shown["total"]["difference"] == "-0.000007"
    assert shown["total"]["margin"] == "-0.000007"
    assert len(list(books.store.read(lambda connection: list(list_tables(connection, 0))))) == 1


def test_each_event_meets_the_price_of_its_own_time(books: TestBooks) -> None:
    """The second price is in force from its first instant on."""
    for name, ended in (("a", T0 + 30 * SECOND - 1), ("b", T0 + 30 * SECOND)):
        books.post(chat(name, tokens=(0, 1_000_000), ended=ended, started=T0))
    first = sums(books, Rater(CHEAPER), Scope(None, T0 + 30 * SECOND))["acme"].charge_attos
    second = sums(books, Rater(CHEAPER), Scope(T0 + 30 * SECOND, None))["acme"].charge_attos
    assert (first, second) == (parse_attos("0.5"), parse_attos("0.4"))


def test_rating_again_by_the_same_card_changes_nothing(books: TestBooks) -> None:
    """Nothing is booked, and the simulation says that nothing would be."""
    books.post(
        chat("a"), chat("b", customer="globex"), TestSpan("p", {"otelbill.meter": "pages", "otelbill.quantity": 3})
    )
    assert sum(found.changed for found in sums(books, Rater()).values()) == 0
    before = len(_records(books))
    assert rerate(books, Rater()) == 0
    assert len(_records(books)) == before


def test_a_corrected_price_is_booked_as_reversal_and_revision(books: TestBooks) -> None:
    """What the dry run says is what is booked; doing it again books nothing."""
    books.post(chat("a"), chat("b", customer="globex"), chat("c", model="unknown-model", customer="initech"))
    expected = sums(books, Rater(CHEAPER))
    assert rerate(books, Rater(CHEAPER)) == 3
    after = sums(books, Rater(CHEAPER))
    for customer, found in expected.items():
        assert after[customer].booked_charge_attos == found.charge_attos
        assert (after[customer].changed, after[customer].events) == (0, 1)
    notes = {record.note for record in _records(books) if record.sign < 0}
    assert notes == {"rated again by ann: typing error"}
    assert rerate(books, Rater(CHEAPER)) == 0
    assert {record.amounts.state for record in _records(books) if record.revision} == {RatingState.RATED}


def test_only_the_scope_is_rated_again(books: TestBooks) -> None:
    """A customer, a time."""
    books.post(chat("a"), chat("b", customer="globex"))
    assert rerate(books, Rater(CHEAPER), Scope(where={"customer_id": "globex"})) == 1
    assert rerate(books, Rater(CHEAPER), Scope(to_nanos=T0)) == 0


def test_a_charge_given_by_hand_stays_under_any_card(books: TestBooks) -> None:
    """It was agreed with the customer; a price list does not undo that."""
    books.post(chat("a"))
    event_id = _records(books)[0].event_id
    books.books.correct(Wish((event_id,), "ann", "agreed", NOW, charge_attos=parse_attos("1"), currency="USD"))
    found = sums(books, Rater(CHEAPER))["acme"]
    assert (found.booked_charge_attos, found.charge_attos, found.changed) == (parse_attos("1"), parse_attos("1"), 0)
    assert rerate(books, Rater(CHEAPER)) == 0


def test_light_median_and_heavy_users_are_quarters_by_cost() -> None:
    """Of eight customers the two cheapest are light and the two dearest heavy; nobody is not a customer."""
    found: dict[str | None, Repriced] = {f"c{cost}": Repriced(cost_attos=cost) for cost in range(8)}
    assert split_by_use({**found, None: Repriced(cost_attos=99)}) == {
        "light": ["c0", "c1"],
        "median": ["c2", "c3", "c4", "c5"],
        "heavy": ["c6", "c7"],
    }


CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "tokens": st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
            "model": st.sampled_from(["gpt-4o-mini", "gpt-4o", "unknown-model", "gemini-2.5-pro"]),
            "customer": st.sampled_from(["acme", "globex", None]),
            "at": st.integers(0, 60),
            "cached": st.integers(0, 10**5),
        }
    ),
    min_size=1,
    max_size=12,
)


@given(calls=CALLS, percent=st.integers(-50, 200), seconds=st.integers(0, 60))
@settings(deadline=None)
def test_sums_by_columns_are_the_sums_of_events(
    tmp_path_factory: pytest.TempPathFactory, calls: list[dict[str, Any]], percent: int, seconds: int
) -> None:
    """Whatever the card and the usage, to the last digit; size tiers, caches, unpriced models and own units too."""
    card = RateCard(
        prices=(
            ChargePrice("input_tokens", 3 * 10**11, Selector(customer_id="acme", from_nanos=T0 + seconds * SECOND)),
            ChargePrice("pages", 7 * 10**14),
        ),
        markups=(Markup(percent * 10_000),),
    )
    rater = Rater(card)
    with closing(TestBooks(tmp_path_factory.mktemp("books"))) as books:
        for number, call in enumerate(calls):
            prompt, output = call["tokens"]
            extra = {"gen_ai.usage.cache_read.input_tokens": min(call["cached"], prompt)}
            ended = T0 + call["at"] * SECOND
            books.post(
                chat(f"n{number}", model=call["model"], customer=call["customer"], tokens=(prompt, output), started=T0,
                     ended=ended, attributes=extra)
            )  # fmt: skip
        books.post(TestSpan("p", {"otelbill.meter": "pages", "otelbill.quantity": 3, "otelbill.customer.id": "acme"}))
        by_columns = books.store.read(lambda connection: sum_repriced(connection, rater, Scope(), quiet).sums)
        one_by_one: dict[str | None, list[int]] = {}
        for record in _records(books):
            if record.amounts.state in (RatingState.RATED, RatingState.UNPRICED):
                rated = RuleSet(rater, grace_seconds=60).rate_lines(record.candidate, record.decision)
                row = one_by_one.setdefault(record.decision.customer_id, [0, 0, 0, 0])
                amounts = (1, rated.charge_attos or 0, rated.cost_attos or 0, int(rated.charge_attos is None))
                one_by_one[record.decision.customer_id] = [
                    a + record.sign * b for a, b in zip(row, amounts, strict=True)
                ]
        assert {
            customer: [found.events, found.charge_attos, found.cost_attos, found.uncharged]
            for customer, found in by_columns.items()
        } == one_by_one


def _records(books: TestBooks) -> list[Any]:
    tables = books.store.read(lambda connection: list(list_tables(connection, 0)))
    return [build_record(row) for _, table in tables for row in table.to_pylist()]


def test_the_default_configuration_charges_what_providers_charge() -> None:
    """The raters of this file and of a configuration without a card are the same."""
    assert Config().rate_card == Rater().card
