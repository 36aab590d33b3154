"""Rating booked usage again by columns: record for record what booking event by event would have written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.app import build_rules
from otelbill_collector.column_rules import build_column_rules
from otelbill_collector.config import Config
from otelbill_collector.domain.charges import PeriodCharge, Pricing
from otelbill_collector.domain.money import parse_attos
from otelbill_collector.domain.prices import parse_unit_price
from otelbill_collector.domain.ratecard import ChargePrice, Markup, RateCard, Selector
from otelbill_collector.domain.rating import Rater
from otelbill_collector.ledger import rerating
from otelbill_collector.ledger.booking import Alone
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.integrity import Checks, verify_ledger
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.repricing import Scope
from otelbill_collector.ledger.rerating import Rerating, Revisions, Written
from otelbill_collector.ledger.segments import build_record
from otelbill_collector.native.loading import find_library
from otelbill_collector.operations import Operations
from otelbill_collector.rules import RuleSet, claim_keys
from otelbill_collector.simulation import identify_prices
from tests.books import NOW, TestBooks
from tests.column_books import ColumnBooks
from tests.spans import SECOND, T0, TestSpan, chat

NOTE = "rated again by ann: typing error"
CORRECTED = RateCard(
    prices=(
        ChargePrice("input_tokens", parse_unit_price("0.10", 1_000_000)),
        ChargePrice("output_tokens", parse_unit_price("0.50", 1_000_000)),
    )
)


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def quiet(done: int, total: int) -> None:
    """Nobody looks."""


def load_records(books: TestBooks) -> list[Any]:
    """All records, in the order in which they were booked."""
    tables = books.store.read(lambda connection: list(list_tables(connection, 0)))
    return [build_record(row) for _, table in tables for row in table.to_pylist()]


def list_in_force(books: TestBooks) -> list[Any]:
    """Bookings that are not reversed."""
    records = load_records(books)
    gone = {record.corrects for record in records if record.sign < 0}
    return [record for record in records if record.sign > 0 and record.record_id not in gone]


def take_card(books: TestBooks, card: RateCard) -> Rater:
    """Open books go on with another card, as those of a sidecar that was started with it."""
    rater = Rater(card)
    rules = RuleSet(rater, grace_seconds=60)
    alone = Alone(rules.stands_alone, rules.rate_alone)
    books.books._rules = dataclasses.replace(books.books._rules, rate=rules.rate, alone=alone)
    return rater


def rerate(books: TestBooks, card: RateCard, scope: Scope | None = None, progress: Any = quiet) -> int:
    """By columns."""
    rater = take_card(books, card)
    return books.books.rerate(
        rater, scope or Scope(), operator="ann", reason="typing error", now_nanos=NOW, progress=progress
    )


def rerate_one_by_one(books: TestBooks, card: RateCard) -> None:
    """Event by event, through booking."""
    take_card(books, card)
    priced = [record for record in list_in_force(books) if record.amounts.state.value in ("rated", "unpriced")]
    inner = books.books
    inner._transact(lambda connection: inner._rebook_all(connection, priced, NOW, NOTE))


def require_sound(books: TestBooks) -> None:
    """`otelbill verify` has nothing to say: claim keys, rollups, digests."""
    report = verify_ledger(books.folder / "ledger.sqlite", Checks(claim_keys))
    assert report.findings == []


def test_a_corrected_price_is_booked_once_and_only_where_it_changes_something(books: TestBooks) -> None:
    """1,000 + 1,000 tokens at 0.10 and 0.50 a million are 0.0006; doing it again books nothing."""
    books.post(chat("a", tokens=(1_000, 1_000)), chat("b", customer="globex"))
    assert rerate(books, CORRECTED) == 2
    charges = {record.decision.customer_id: record.amounts.charge_attos for record in list_in_force(books)}
    assert charges["acme"] == parse_attos("0.0006")
    before = len(load_records(books))
    assert rerate(books, CORRECTED) == 0
    assert len(load_records(books)) == before
    require_sound(books)


def test_what_is_rated_back_stands_as_before_under_another_number(books: TestBooks) -> None:
    """There and back again are two reversals; the amounts are those of the first booking."""
    books.post(chat("a"), chat("b"))
    first = {record.event_id: record.amounts for record in list_in_force(books)}
    assert (rerate(books, CORRECTED), rerate(books, Config().rate_card)) == (2, 2)
    found = list_in_force(books)
    assert {record.event_id: record.amounts for record in found} == first
    assert {record.revision for record in found} == {2}
    require_sound(books)


def test_an_interrupted_run_is_finished_by_the_next(books: TestBooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed stays, and is not booked twice."""
    monkeypatch.setattr(rerating, "_READ_ROWS", 1)
    for name in "abcde":
        books.post(chat(name))

    def stop(done: int, total: int) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rerate(books, CORRECTED, progress=stop)
    assert sum(record.revision == 1 for record in list_in_force(books)) == 2
    books.reopen()
    assert rerate(books, CORRECTED) == 3
    assert {record.revision for record in list_in_force(books)} == {1}
    assert len(list_in_force(books)) == 5
    require_sound(books)


def test_progress_tells_segments_to_the_end(books: TestBooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for each snapshot, and the last one says that all is done."""
    monkeypatch.setattr(rerating, "_READ_ROWS", 1)
    for name in "abc":
        books.post(chat(name))
    seen: list[tuple[int, int]] = []
    rerate(books, CORRECTED, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def book_by_columns(books: TestBooks) -> ColumnBooks:
    """Books of the same ledger that take spans by columns where they can."""
    rules = build_rules(Config())
    alone = Alone(rules.stands_alone, rules.rate_alone)
    columns = build_column_rules(rules)
    found = ColumnBooks(
        books.store, claim_keys=claim_keys, decide=rules.decide, rate=rules.rate, alone=alone, columns=columns
    )
    books.books = found
    books.stages = dataclasses.replace(books.stages, books=found, scanner=None)
    return found


@pytest.mark.parametrize("way", ["in memory", "by columns", "after a restart"])
def test_a_later_span_of_the_group_sees_the_new_booking(books: TestBooks, way: str) -> None:
    """The same call, told by a better emitter: what it takes the place of is the revision, not the first booking."""
    if way == "by columns" and find_library() is None:
        pytest.skip("the native library is not built")
    columns = book_by_columns(books) if way == "by columns" else None
    books.post(chat("a", response="r1", scope="one", tokens=(77, 7)), chat("b"))
    books.post(chat("c", trace="t"), chat("d", trace="t"))
    assert columns is None or columns.by_columns
    assert rerate(books, CORRECTED) == 4
    if way == "after a restart":
        books.reopen()
        take_card(books, CORRECTED)
    twin = chat("z", response="r1", scope="two", trace="a", parent="a", tokens=(77, 7))
    books.post(twin, chat("e", trace="t", tokens=(5, 5)))
    records = load_records(books)
    reversed_ids = [record.corrects for record in records if record.sign < 0]
    assert len(set(reversed_ids)) == len(reversed_ids)
    assert sum(record.decision.billable for record in list_in_force(books)) == 5
    assert all(record.amounts.price_version for record in list_in_force(books) if record.decision.billable)
    versions = {record.amounts.price_version for record in list_in_force(books) if record.decision.billable}
    assert len(versions) == 1
    require_sound(books)


def test_what_is_booked_anew_meanwhile_is_left_alone(books: TestBooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading and writing an operator moves one of the events to another customer."""
    books.post(chat("a"), chat("b"))
    event_id = list_in_force(books)[0].event_id
    write, done = Rerating.write, []

    def interfere(self: Rerating, found: Revisions) -> Written:
        written = write(self, found)
        if not done:
            done.append(True)
            books.books.correct(Wish((event_id,), "bob", "wrong customer", NOW, customer_id="globex"))
        return written

    monkeypatch.setattr(Rerating, "write", interfere)
    assert rerate(books, CORRECTED) == 1
    records = load_records(books)
    reversed_ids = [record.corrects for record in records if record.sign < 0]
    assert len(set(reversed_ids)) == len(reversed_ids) == 2
    assert {record.decision.customer_id for record in list_in_force(books)} == {"acme", "globex"}
    require_sound(books)


def test_usage_is_right_before_much_that_was_rated_again_is_folded(
    books: TestBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where much changes, the operator is answered before the fold; who asks sees the new amounts all the same."""
    monkeypatch.setattr("otelbill_collector.operations._FOLDED_AT_ONCE_MAX", 1)
    books.post(chat("a", tokens=(1_000, 1_000)), chat("b", tokens=(1_000, 1_000)))
    books.usage(fold=True)
    rater = take_card(books, CORRECTED)
    operations = Operations(books.stages, None, lambda: NOW, rater)
    found = operations.rerate(Scope(), prices=identify_prices(rater), operator="ann", reason="typing error")
    assert found["changed"] == 2
    before = books.usage("customer", "hour")
    assert [row["charge"] for row in before] == ["0.0012"]
    assert operations.fold() > 0, "it was left to the job"
    assert books.usage("customer", "hour") == before
    require_sound(books)


def test_claim_keys_of_an_old_ledger_are_made_again(books: TestBooks) -> None:
    """Where keys stand in the table from before the runs, revisions get theirs from what their spans say."""
    books.post(chat("a"), chat("b"))
    rows = [
        (record.event_nanos // (86_400 * SECOND), key, 1, place)
        for place, record in enumerate(load_records(books))
        for key in claim_keys(record.candidate)
    ]

    def move(connection: Any) -> None:
        connection.execute("DELETE FROM claim_run")
        connection.execute("DELETE FROM claim_chunk")
        connection.executemany("INSERT INTO claim_key (day, key, segment_id, position) VALUES (?, ?, ?, ?)", rows)

    books.store.transact(move)
    books.reopen()
    assert rerate(books, CORRECTED) == 2
    require_sound(books)
    assert books.post(chat("a")).duplicate == 1


def test_only_the_scope_is_rated_again(books: TestBooks) -> None:
    """Time, customer and model; both ends of [from, to)."""
    for second in range(4):
        books.post(chat(f"s{second}", ended=T0 + second * SECOND, started=T0))
    books.post(chat("g", customer="globex", model="gpt-4o"))
    assert rerate(books, CORRECTED, Scope(T0 + SECOND, T0 + 3 * SECOND, {"customer_id": "acme"})) == 2
    assert rerate(books, CORRECTED, Scope(where={"model": "gpt-4o"})) == 1
    assert rerate(books, CORRECTED) == 2


def test_usage_that_a_period_charge_covers_is_booked_again_when_the_charge_was_corrected(books: TestBooks) -> None:
    """Its records have no money that would differ, but name the charge; another name for the version is no change."""
    span = TestSpan(
        "p", {"otelbill.meter": "pages", "otelbill.quantity": 3, "otelbill.customer.id": "acme"}, trace="pages"
    )
    wrong = RateCard(charges=(PeriodCharge("Pages", "pages", Pricing.PER_UNIT, attos=10**16),))
    right = RateCard(charges=(PeriodCharge("Pages", "pages", Pricing.PER_UNIT, attos=10**15),))
    take_card(books, wrong)
    books.post(span)
    assert rerate(books, wrong) == 0
    assert rerate(books, right) == 1
    (record,) = list_in_force(books)
    assert (record.revision, record.amounts.charge_attos) == (1, 0)
    other = RateCard(prices=(ChargePrice("pages", 0),))
    assert rerate(books, other) == 1
    assert rerate(books, RateCard(prices=(ChargePrice("pages", 0, Selector(customer_id="acme")),))) == 0


MODELS = ["gpt-4o-mini", "gpt-4o", "unknown-model", "gemini-2.5-pro", "gpt-4o-audio-preview"]
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "tokens": st.tuples(st.sampled_from([0, 1, 900, 250_000, 2**53]), st.sampled_from([0, 7, 10**6])),
            "model": st.sampled_from(MODELS),
            "customer": st.sampled_from(["acme", "globex", None]),
            "at": st.integers(0, 60),
            "cached": st.sampled_from([0, 1, 10**5]),
            "reasoning": st.sampled_from([0, 7]),
            "trace": st.sampled_from([None, "shared"]),
            "kind": st.sampled_from(["chat", "chat", "chat", "pages", "decimal", "none"]),
        }
    ),
    min_size=1,
    max_size=10,
)
CARDS = st.builds(
    lambda percent, seconds, dear, charge, per: RateCard(
        prices=(
            ChargePrice("input_tokens", 3 * 10**11, Selector(customer_id="acme", from_nanos=T0 + seconds * SECOND)),
            *((ChargePrice("output_tokens", 10**19),) if dear else ()),
            *(() if charge else (ChargePrice("pages", per * 10**14),)),
        ),
        markups=(Markup(percent * 10_000),),
        charges=(PeriodCharge("Pages", "pages", Pricing.PER_UNIT, attos=per * 10**12),) if charge else (),
    ),
    st.integers(-50, 200),
    st.integers(0, 60),
    st.booleans(),
    st.booleans(),
    st.integers(1, 2),
)


def make_span(number: int, call: dict[str, Any]) -> TestSpan:
    """A call, or a quantity of something else."""
    ended = T0 + call["at"] * SECOND
    trace = call["trace"] or f"t{number}"
    owner = {} if call["customer"] is None else {"otelbill.customer.id": call["customer"]}
    if call["kind"] in ("pages", "decimal"):
        amount = 3 if call["kind"] == "pages" else "2.5"
        given = {"otelbill.meter": "pages", "otelbill.quantity": amount, **owner}
        return TestSpan(f"n{number}", given, trace=trace, started=T0, ended=ended)
    prompt, output = call["tokens"]
    extra: dict[str, Any] = {
        "gen_ai.usage.cache_read.input_tokens": min(call["cached"], prompt),
        "gen_ai.usage.reasoning_tokens": min(call["reasoning"], output),
    }
    span = chat(f"n{number}", model=call["model"], customer=call["customer"], tokens=(prompt, output), started=T0,
                ended=ended, attributes=extra, trace=trace)  # fmt: skip
    if call["kind"] == "none":
        kept = {name: value for name, value in span.attributes.items() if "usage" not in name}
        return dataclasses.replace(span, attributes=kept)
    return span


def show(records: Sequence[Any]) -> dict[str, Any]:
    """By id, all that a record says."""
    return {record.record_id: record for record in records}


@given(calls=CALLS, first=CARDS, second=CARDS, corrected=st.integers(0, 3))
@settings(deadline=None)
def test_columns_book_what_events_one_by_one_would(
    tmp_path_factory: pytest.TempPathFactory,
    calls: list[dict[str, Any]],
    first: RateCard,
    second: RateCard,
    corrected: int,
) -> None:
    """Whatever the usage and the cards, record for record; charges by hand, shared traces, own units, decimals."""
    config = Config(rate_card=first)
    spans = [make_span(number, call) for number, call in enumerate(calls)]
    with (
        closing(TestBooks(tmp_path_factory.mktemp("columns"), config)) as columns,
        closing(TestBooks(tmp_path_factory.mktemp("events"), config)) as events,
    ):
        for books in (columns, events):
            books.post(*spans)
            billable = [r for r in list_in_force(books) if r.decision.billable and r.amounts.charge_attos is not None]
            for record in sorted(billable, key=lambda record: record.event_id)[: corrected // 2]:
                wish = Wish((record.event_id,), "bob", "agreed", NOW, charge_attos=17, currency="USD")
                books.books.correct(wish)
        rerate(columns, second)
        rerate_one_by_one(events, second)
        assert show(load_records(columns)) == show(load_records(events))
        assert rerate(columns, second) == 0
        require_sound(columns)


def test_the_default_rules_are_those_of_the_configuration() -> None:
    """What this file rates by is what a sidecar without a card rates by."""
    assert build_rules(Config())._rater.card == Config().rate_card
