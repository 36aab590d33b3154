"""Spans that stand alone go a short way through booking, which leaves what the long way would have left."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.app import build_rules
from otelbill_collector.config import Config
from otelbill_collector.domain.bulk_ids import derive_first_records, derive_span_events
from otelbill_collector.domain.ids import derive_event_id, derive_record_id
from otelbill_collector.domain.usage import STANDARD_UNITS
from otelbill_collector.ledger.books import Books
from otelbill_collector.ledger.columns import encode_singles
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.members import Singles
from otelbill_collector.ledger.segments import decode_table, encode_segment, parse_quantities
from otelbill_collector.ledger.sums import Sums, sum_groups
from otelbill_collector.pipeline import Request, Stages, carry_batch
from otelbill_collector.rules import claim_keys
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, TestSpan, build_request, chat

Row = dict[str, object]


def take_the_long_way(books: TestBooks) -> None:
    """From now on every span is booked as if it might have company."""
    rules = build_rules(Config())
    books.books = Books(books.store, claim_keys=claim_keys, decide=rules.decide, rate=rules.rate)
    books.stages = Stages(books.stages.select, books.books, books.stages.limits)


def draw_spans(rng: Random, prefix: str) -> list[TestSpan]:
    """Mostly calls of their own; some share a trace, an id or numbers; some are tools, without usage or a price."""
    spans = []
    for number in range(40):
        name = f"{prefix}-{number}"
        changes: dict[str, object] = {"started": T0 + number * SECOND, "ended": T0 + (number + 1) * SECOND}
        attributes: dict[str, object] = {"otelbill.step": rng.choice(["plan", "write"])}
        kind = rng.randrange(8)
        if kind == 0:
            changes["trace"] = f"shared-{rng.randrange(4)}"
        elif kind == 1:
            changes["response"] = f"resp-shared-{rng.randrange(4)}"
        elif kind == 2:
            attributes["gen_ai.operation.name"] = "execute_tool"
        elif kind == 3:
            changes["model"] = "model-without-a-price"
        elif kind == 4:
            attributes["gen_ai.usage.cache_read.input_tokens"] = rng.randrange(50)
        tokens = (100 + rng.randrange(5_000), rng.randrange(300))
        spans.append(chat(name, tokens=tokens, attributes=attributes, **changes))  # type: ignore[arg-type]
    return spans


def list_rows(books: TestBooks) -> dict[object, Row]:
    """Every column of every record but the ids of segments, by record."""
    rows: list[Row] = books.store.read(
        lambda connection: [row for _, table in list_tables(connection, 0) for row in table.to_pylist()]
    )
    assert len({row["record_id"] for row in rows}) == len(rows)
    return {row["record_id"]: row for row in rows}


def list_claims(books: TestBooks) -> int:
    """How many claim keys lead to records."""
    (count,) = books.store.read(lambda connection: connection.execute("SELECT sum(entries) FROM claim_run").fetchone())
    return int(count)


@pytest.mark.parametrize("seed", range(6))
def test_the_short_way_books_what_the_long_way_books(tmp_path: Path, seed: int) -> None:
    """Guarantee: whatever arrives, repeated and cut into requests as it may be, every field of every record, the
    claim keys and the sums are those of the way that looks at every group.
    """
    rng = Random(seed)
    spans = [*draw_spans(rng, "one"), *draw_spans(rng, "two")]
    spans += rng.sample(spans, 20)
    short, long = TestBooks(tmp_path / "short"), TestBooks(tmp_path / "long")
    take_the_long_way(long)
    for start in range(0, len(spans), 20):
        batch = spans[start : start + 20]
        assert short.post(*batch) == long.post(*batch)
        if start == 40:
            for books in (short, long):
                books.reopen()
            take_the_long_way(long)
    assert list_rows(short) == list_rows(long)
    assert list_claims(short) == list_claims(long)
    dimensions = ("customer", "step", "model", "hour", "trace", "reason")
    assert short.usage(*dimensions) == long.usage(*dimensions) == short.usage(*dimensions, fold=True)
    for books in (short, long):
        books.close()


def test_spans_that_stand_alone_do_go_the_short_way(tmp_path: Path) -> None:
    """Calls in traces of their own are booked together in columns; those that share a trace are not."""
    books = TestBooks(tmp_path)
    spans = [chat(name, tokens=(100 + place, 20)) for place, name in enumerate("ab")]
    spans += [chat(name, tokens=(200 + place, 20), trace="t") for place, name in enumerate("cd")]
    posted = carry_batch([Request(build_request(spans), NOW)], books.stages, NOW).posted
    assert posted is not None
    assert posted.booking.singles is not None
    assert len(posted.booking.singles) == 2
    assert len(posted.booking.decided) == 2
    books.close()


@pytest.mark.parametrize("restart", [False, True])
def test_company_that_comes_later_is_seen(tmp_path: Path, restart: bool) -> None:
    """A better description of a call that stood alone takes the claim: a reversal, and the call is billed once."""
    books = TestBooks(tmp_path)
    books.post(chat("inner", response="chatcmpl-12345678", scope="framework"))
    if restart:
        books.reopen()
    receipt = books.post(chat("outer", response="chatcmpl-12345678", scope="client"))
    assert receipt.accepted == 1
    assert books.totals()["events"] == 1
    books.close()


def test_a_repeat_in_memory_is_a_duplicate_and_other_content_a_conflict(tmp_path: Path) -> None:
    """What is held as a row of a batch is compared like any other span."""
    books = TestBooks(tmp_path)
    books.post(chat("a"), chat("b", tokens=(7, 9)))
    receipt = books.post(chat("a"), chat("b", tokens=(101, 20)))
    assert (receipt.duplicate, receipt.dead_lettered) == (1, 1)
    assert books.post(chat("c"), chat("c")).duplicate == 1
    books.close()


def test_an_instruction_given_before_the_span_comes_back_holds(tmp_path: Path) -> None:
    """A span that an operator assigned is looked at even where it stands alone."""
    books = TestBooks(tmp_path)
    books.post(chat("a", customer=None))
    (row,) = list_rows(books).values()
    books.books.correct(Wish((str(row["event_id"]),), "ann", "why", NOW, customer_id="globex"))
    assert books.totals()["customer"] == "globex"
    books.close()


def test_columns_hold_what_records_hold(tmp_path: Path) -> None:
    """The rows of a batch in columns are the rows of its records, type for type."""
    books = TestBooks(tmp_path)
    spans = [chat(f"s-{number}", tokens=(number, 7)) for number in range(20)]
    posted = carry_batch([Request(build_request(spans), NOW)], books.stages, NOW).posted
    assert posted is not None
    assert posted.booking.singles is not None
    singles = posted.booking.singles
    records = list(singles.list_records())
    assert pa.table(encode_singles(singles)) == decode_table(encode_segment(records))
    huge = [(state, version, 10**30, None, currency) for state, version, *_, currency in singles.amounts]
    large = Singles(
        singles.candidates, singles.contents, singles.received, singles.keys, singles.events, huge, singles.price_bodies
    )
    assert pa.table(encode_singles(large)) == decode_table(encode_segment(list(large.list_records())))
    books.close()


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8)), max_size=5))
def test_ids_in_bulk_are_the_ids(spans: list[tuple[bytes, bytes]]) -> None:
    """An event keeps its id whichever way it was booked."""
    events = [event.hex() for event in derive_span_events(spans)]
    assert events == [derive_event_id(trace, span, None) for trace, span in spans]
    records = [record.hex() for record in derive_first_records(bytes.fromhex(event) for event in events)]
    assert records == [derive_record_id(event, 0, "usage") for event in events]


counts = st.none() | st.integers(-(2**63), 2**63 - 1)
amounts = st.none() | st.integers(-(10**38) + 1, 10**38 - 1)
rows = st.fixed_dictionaries(
    {
        "group": st.sampled_from("abc"),
        "day": st.integers(0, 2),
        "sign": st.sampled_from([1, -1]),
        "other_quantities": st.none() | st.sampled_from(['{"pages": "2"}', '{"hours": "0.25", "pages": "1"}']),
        "cost": amounts,
        "charge": amounts,
        **dict.fromkeys(STANDARD_UNITS, counts),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, max_size=30))
def test_sums_of_columns_are_the_sums_of_rows(drawn: list[dict[str, object]]) -> None:
    """Guarantee: no sum overflows or rounds, however large the numbers and whichever are absent."""
    amount = pa.decimal128(38, 18)
    schema = pa.schema(
        [
            ("group", pa.string()),
            ("day", pa.int64()),
            ("sign", pa.int8()),
            *[(unit, pa.int64()) for unit in STANDARD_UNITS],
            ("other_quantities", pa.string()),
            ("cost", amount),
            ("charge", amount),
        ]
    )
    table = pa.table([_build_column(drawn, item) for item in schema], schema=schema)
    found = dict(sum_groups(table, [table["group"].chunk(0), table["day"].chunk(0)]))
    expected: dict[tuple[object, ...], Sums] = {}
    for row in table.to_pylist():
        expected.setdefault((row["group"], row["day"]), Sums()).add_row(row)
    assert found.keys() == expected.keys()
    for key, sums in expected.items():
        assert _describe(found[key]) == _describe(sums)


def _build_column(drawn: Iterable[dict[str, object]], item: pa.Field) -> pa.ChunkedArray:
    values = [row[item.name] for row in drawn]
    if pa.types.is_decimal(item.type):
        raw = b"".join([int(value or 0).to_bytes(16, "little", signed=True) for value in values])  # type: ignore[call-overload]
        known = pa.array([value is not None for value in values], type=pa.bool_())
        array = pa.Array.from_buffers(item.type, len(values), [known.buffers()[1], pa.py_buffer(raw)])
        return pa.chunked_array([array])
    return pa.chunked_array([pa.array(values, type=item.type)])


def _describe(sums: Sums) -> object:
    quantities = {unit: value for unit, value in sums.quantities.items() if value}
    return sums.events, quantities, sums.cost_attos, sums.charge_attos, sums.costless


def test_texts_of_quantities_are_equal(tmp_path: Path) -> None:
    """What a span said is kept as the same text, fractions and units with odd names included."""
    books = TestBooks(tmp_path)
    odd = 'a "100%" unit'
    attributes = {"otelbill.meter": odd, "otelbill.quantity": "1.50", "otelbill.unit": odd}
    books.post(chat("a"), TestSpan("b", attributes, trace="b"))
    texts = [str(row["span_quantities"]) for row in list_rows(books).values()]
    assert any(len(parse_quantities(text)) > 1 for text in texts)
    books.close()
