"""The fold into Stripe's windows adds columns, and leaves what adding record by record would leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from otelbill_collector.domain.instants import HOUR_NANOS
from otelbill_collector.domain.usage import RatingState
from otelbill_collector.domain.windows import MeterDelta
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.journal import find_last_segment, list_tables
from otelbill_collector.ledger.meters import Metering, fold_meters, prepare_meters, save_meters
from otelbill_collector.ledger.outbox import accumulate
from otelbill_collector.ledger.segments import build_record
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, TestSpan, chat

METERING = Metering(
    window_nanos=HOUR_NANOS // 4,
    charge_meter="charge",
    unit_meters={"input_tokens": "in", "output_tokens": "out", "pages": "pages"},
    since_nanos=T0 + 30 * SECOND,
)


def fill(books: TestBooks, rng: Random) -> None:
    """Calls of few customers over two hours, tokens of zero, pages with fractions, nobody's calls, and corrections."""
    for batch in range(6):
        spans = []
        for number in range(15):
            ended = T0 + rng.randrange(7_200) * SECOND
            name = f"{batch}-{number}"
            times = {"started": ended - SECOND, "ended": ended}
            customer = rng.choice(["acme", "globex", "initech", None])
            if number % 5 == 0:
                pages = {"otelbill.meter": "pages", "otelbill.quantity": rng.choice(["1.5", "2"])}
                attributes: dict[str, Any] = {**pages, "otelbill.customer.id": customer or "acme"}
                spans.append(TestSpan(name, attributes, trace=name, **times))
            else:
                tokens = (rng.randrange(3) * 1_000, rng.randrange(500))
                model = rng.choice(["gpt-4o-mini", "gpt-4o", "nobody-knows"])
                spans.append(chat(name, customer=customer, tokens=tokens, model=model, **times))
        books.post(*spans)
    events = {record.event_id: record for record in list_records(books)}
    rated = [event for event, record in events.items() if record.amounts.state is RatingState.RATED]
    for event in rng.sample(rated, 5):
        books.books.correct(Wish((event,), "ann", "why", NOW, customer_id="umbrella"))


def list_records(books: TestBooks) -> list[Any]:
    return books.store.read(
        lambda connection: [build_record(row) for _, table in list_tables(connection, 0) for row in table.to_pylist()]
    )


def list_deltas(books: TestBooks) -> Iterator[MeterDelta]:
    """What each record says to each meter, one after another."""
    for record in list_records(books):
        customer, event_nanos = record.decision.customer_id, record.event_nanos
        if record.amounts.state is not RatingState.RATED or not customer or event_nanos < METERING.since_nanos:
            continue
        said = {"customer_id": customer, "event_nanos": event_nanos}
        if record.amounts.charge_attos:
            yield MeterDelta.of_charge(meter="charge", attos=record.sign * record.amounts.charge_attos, **said)
        quantities = record.decision.quantities
        for unit in [name for name in METERING.unit_meters if quantities.get(name)]:
            meter = METERING.unit_meters[unit]
            yield MeterDelta.of_quantity(meter=meter, quantity=record.sign * quantities[unit], **said)


def dump(books: TestBooks) -> list[list[Any]]:
    return [
        books.store.read(lambda connection, table=table: connection.execute(f"SELECT * FROM {table}").fetchall())
        for table in ("stripe_lane", "stripe_window")
    ]


@pytest.mark.parametrize("seed", range(3))
def test_windows_are_those_of_adding_record_by_record(tmp_path: Path, seed: int) -> None:
    """Guarantee: lanes, their numbers, amounts and last event times are the same to the last digit."""
    columns, records = TestBooks(tmp_path / "columns"), TestBooks(tmp_path / "records")
    for books in (columns, records):
        fill(books, Random(seed))
    assert columns.store.transact(lambda connection: fold_meters(connection, METERING)) > 6
    deltas = list(list_deltas(records))
    records.store.transact(lambda connection: accumulate(connection, deltas, METERING.window_nanos))
    assert dump(columns) == dump(records)
    assert len(dump(columns)[1]) > 20
    for books in (columns, records):
        books.close()


def test_a_fold_prepared_too_early_writes_nothing(tmp_path: Path) -> None:
    """Guarantee: of two folds of the same segments one counts."""
    books = TestBooks(tmp_path)
    fill(books, Random(9))
    folds = [books.store.read(lambda connection: prepare_meters(connection, METERING)) for _ in range(2)]
    books.store.transact(lambda connection: save_meters(connection, METERING, folds[0]))
    before = dump(books)
    books.store.transact(lambda connection: save_meters(connection, METERING, folds[1]))
    assert dump(books) == before
    assert folds[0].mark == books.store.read(find_last_segment)
    books.close()
