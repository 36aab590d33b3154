"""SQL over the ledger: exact, complete, read-only, and shut in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.ledger.compaction import Compactor
from otelbill_collector.ledger.corrections import Wish
from otelbill_collector.ledger.lineage import list_suspense
from otelbill_collector.ledger.queries import QueryFailed, QueryLimits, open_query
from otelbill_collector.ledger.sqlite import LEDGER_NAME, SqliteStore
from otelbill_collector.ledger.views import VIEWS
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, chat
from tests.whole_ledger import dump_rows, make_ledger

NO_LIMITS = QueryLimits(None, None)


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    """Half of the records in files, half in segments; one customer's usage was assigned later."""
    opened = TestBooks(tmp_path / "led'ger")
    opened.post(*(chat(f"a{n}", tokens=(1_000_000 + n, 7), ended=T0 + n * SECOND) for n in range(20)))
    opened.post(chat("nobody", customer=None))
    Compactor(opened.store).compact_all()
    opened.post(*(chat(f"b{n}", customer="globex", ended=T0 + n * SECOND) for n in range(5)))
    (waiting,) = opened.store.read(list_suspense)
    opened.books.correct(Wish((waiting.event_id,), "ann", "her word", NOW, customer_id="initech"))
    yield opened
    opened.close()


def ask(books: TestBooks, sql: str, limits: QueryLimits = NO_LIMITS) -> list[tuple[Any, ...]]:
    with open_query(books.store, sql, limits) as answer:
        return list(answer.rows)


def test_usage_is_what_otelbill_usage_says(books: TestBooks) -> None:
    """Sums over files and segments together, to the last digit, and a corrected event counts once."""
    rows = ask(books, "SELECT customer_id, count(*), sum(input_tokens), sum(charge) FROM usage GROUP BY ALL ORDER BY 1")
    expected = [
        (row["customer"], row["events"], row["quantities"]["input_tokens"], Decimal(row["charge"]))
        for row in books.usage("customer")
    ]
    assert rows == expected
    assert [row[0] for row in rows] == ["acme", "globex", "initech"]
    netted = "SELECT customer_id, sum(sign), sum(sign * input_tokens), sum(sign * charge) FROM records GROUP BY ALL"
    found = [row for row in sorted(ask(books, netted), key=str) if row[1]]
    assert found == expected


def test_records_show_every_booking_with_its_sign(books: TestBooks) -> None:
    """A correction is three records: the booking, its reversal, the next revision; the event is one."""
    rows = ask(books, "SELECT event_id, revision, sign, customer_id FROM records ORDER BY segment_id, sign")
    assert len(rows) == 28
    assert [(revision, sign, customer) for _, revision, sign, customer in rows if customer in (None, "initech")] == [
        (0, 1, None),
        (0, -1, None),
        (1, 1, "initech"),
    ]
    assert ask(books, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(26, 26)]


def test_every_view_answers_and_says_its_columns(tmp_path: Path) -> None:
    """On a ledger with a row in every table no view is empty, and DESCRIBE lists the columns it has."""
    store = SqliteStore(make_ledger(tmp_path / "ledger").parent, read_only=True)
    for view in VIEWS:
        with open_query(store, f"SELECT * FROM {view}", NO_LIMITS) as answer:
            rows = list(answer.rows)
            assert rows, view
            columns = answer.columns
        with open_query(store, f"DESCRIBE {view}", NO_LIMITS) as answer:
            assert tuple(row[0] for row in answer.rows) == columns
    with open_query(
        store, "SELECT typeof(r.charge), typeof(p.cost) FROM rollups r, prices p LIMIT 1", NO_LIMITS
    ) as answer:
        assert list(answer.rows) == [("DECIMAL(38,18)", "DECIMAL(38,18)")]
    store.close()


def test_rollups_prices_and_letters_say_what_their_tables_say(tmp_path: Path) -> None:
    """Amounts and counts of the views of state are those of `otelbill usage` and of the ledger."""
    ledger = make_ledger(tmp_path / "ledger")
    books = TestBooks(ledger.parent)
    books.usage(fold=True)
    rows = ask(
        books,
        "SELECT customer_id, sum(events), sum(charge), sum(output_tokens) FROM rollups"
        " GROUP BY 1 HAVING sum(events) > 0",
    )
    expected = {row["customer"]: row for row in books.usage("customer")}
    assert {row[0] for row in rows} == set(expected)
    for customer, events, charge, tokens in rows:
        usage = expected[customer]
        assert (events, tokens) == (usage["events"], usage["quantities"].get("output_tokens", 0))
        assert charge == Decimal(usage["charge"] or 0)
    ((code, field),) = ask(books, "SELECT code, field FROM dead_letters")
    assert (code, field) == ("count_out_of_range", "gen_ai.usage.input_tokens")
    priced = ask(books, "SELECT DISTINCT p.unit FROM usage u JOIN prices p USING (price_version) ORDER BY 1")
    assert ("input_tokens",) in priced
    assert ask(books, "SELECT max(segment_id) FROM segments") == ask(books, "SELECT max(segment_id) FROM records")
    books.close()


SHUT = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_csv('{folder}/ledger.sqlite')",
    "SELECT * FROM glob('/**')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_parquet('https://example.org/x.parquet')",
    "SELECT * FROM sqlite_scan('{folder}/ledger.sqlite', 'segment')",
    "COPY (SELECT 1) TO '{folder}/out.csv'",
    "COPY (SELECT 1) TO '{file}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/out.csv'",
    "ATTACH '{folder}/other.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "PRAGMA enable_profiling",
    "CREATE TABLE x AS SELECT 1",
    "DROP VIEW records",
    "DELETE FROM rollups_now",
    "EXPORT DATABASE '{folder}/out'",
    "SELECT 1; SELECT 2",
    "SELECT * FROM books",
    "SELECT * FROM sql",
    "",
]


@pytest.mark.parametrize("sql", SHUT)
def test_a_query_reaches_the_views_and_nothing_else(books: TestBooks, sql: str) -> None:
    """No file, network, setting, write or Python object can be reached, and refusals say what there is."""
    file = next((books.folder / "parquet" / "records").rglob("*.parquet"))
    body, before = file.read_bytes(), sorted(map(str, books.folder.rglob("*")))
    given = sql.format(folder=str(books.folder).replace("'", "''"), file=str(file).replace("'", "''"))
    with pytest.raises(QueryFailed) as failed:
        ask(books, given)
    assert str(failed.value)
    assert sorted(map(str, books.folder.rglob("*"))) == before
    assert file.read_bytes() == body


def test_a_wrong_name_is_answered_with_the_right_ones(books: TestBooks) -> None:
    """The message names what is wrong, and the views; a wrong column comes with those that are like it."""
    with pytest.raises(QueryFailed, match=r"(?s)recrods.*views records, events, usage, rollups"):
        ask(books, "SELECT * FROM recrods")
    with pytest.raises(QueryFailed, match=r"(?s)custmer_id.*customer_id"):
        ask(books, "SELECT custmer_id FROM usage")
    with pytest.raises(QueryFailed, match=r"(?s)syntax error.*SELEC"):
        ask(books, "SELEC 1")
    with pytest.raises(QueryFailed, match="one SELECT, this is INSERT"):
        ask(books, "INSERT INTO records SELECT * FROM records")


def test_a_cut_answer_says_so(books: TestBooks) -> None:
    """The limit counts rows that are given out; exactly as many rows as the limit are all there are."""
    for limit, cut in ((25, True), (26, False), (27, False)):
        with open_query(books.store, "SELECT * FROM events", QueryLimits(limit, None)) as answer:
            assert len(list(answer.rows)) == min(limit, 26)
            assert answer.cut is cut


def test_an_endless_query_is_stopped(books: TestBooks) -> None:
    """The time limit ends a query wherever it is, and the message says that the answer is not whole."""
    endless = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE hash(a.range + b.range) = 3"
    with pytest.raises(QueryFailed, match="stopped after 1 seconds"):
        ask(books, endless, QueryLimits(None, 1))


def test_a_lost_file_is_no_short_answer(books: TestBooks) -> None:
    """Sums without a part of the usage would be wrong bills: the query fails and names the remedy."""
    next((books.folder / "parquet" / "records").rglob("*.parquet")).unlink()
    with pytest.raises(QueryFailed, match="otelbill replay"):
        ask(books, "SELECT count(*) FROM usage")
    assert ask(books, "SELECT count(*) FROM segments")


def test_a_query_changes_nothing_and_blocks_nobody(books: TestBooks) -> None:
    """While rows are read a writer commits; the answer is of the moment it began."""
    reader = SqliteStore(books.folder, read_only=True)
    with open_query(reader, "SELECT count(*) FROM events", NO_LIMITS) as answer:
        writer = threading.Thread(target=lambda: books.post(chat("meanwhile")))
        writer.start()
        writer.join(30)
        assert not writer.is_alive()
        assert list(answer.rows) == [(26,)]
    with open_query(reader, "SELECT count(*) FROM events", NO_LIMITS) as answer:
        assert list(answer.rows) == [(27,)]
    reader.close()
    books.close()
    before = dump_rows(books.folder / LEDGER_NAME)
    reader = SqliteStore(books.folder, read_only=True)
    with open_query(reader, "SELECT * FROM records", NO_LIMITS) as answer:
        assert len(list(answer.rows)) == 29
    reader.close()
    assert dump_rows(books.folder / LEDGER_NAME) == before


def test_values_of_every_kind_come_out(books: TestBooks) -> None:
    """Types that a query may make, zones and intervals among them, do not end in a traceback."""
    sql = (
        "SELECT sum(1::BIGINT) a, now() b, 1.5::DECIMAL(38,18) c, {'x': 1} d, map {'x': 1} e, INTERVAL 1 DAY f,"
        " 'x'::BLOB g, [1, 2] h, 0.1::DOUBLE i, NULL j, TIME '10:00' k, DATE '2026-01-01' l, uuid() m,"
        " TIMESTAMP_NS '2026-01-01 00:00:00.123456789' n, 5::UHUGEINT o, '1'::BIT p, 'inf'::DOUBLE q"
    )
    ((row),) = ask(books, sql)
    assert row[0] == 1
    assert isinstance(row[0], int)
    assert row[2] == Decimal("1.5")
