"""Spans booked by columns leave what they leave one by one, whatever is forgotten, repeated or comes later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from otelbill_collector.app import build_rules
from otelbill_collector.column_rules import build_column_rules
from otelbill_collector.config import Config
from otelbill_collector.domain.span_columns import Bytes
from otelbill_collector.domain.usage import RatingState
from otelbill_collector.ledger.booking import Alone
from otelbill_collector.ledger.books import Books
from otelbill_collector.ledger.groups import GroupLimits
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.members import ColumnSingles
from otelbill_collector.ledger.segments import add_quantities
from otelbill_collector.ledger.sums import Sums
from otelbill_collector.ledger.twin_keys import TwinKeys
from otelbill_collector.native.links import KeyTable, Pointers, find_company, walk_chains
from otelbill_collector.native.loading import find_library
from otelbill_collector.pipeline import Stages
from otelbill_collector.rules import claim_keys
from tests.books import NOW, TestBooks
from tests.column_books import ColumnBooks
from tests.spans import SECOND, T0, TestSpan, chat

pytestmark = pytest.mark.skipif(find_library() is None, reason="the native library is not built")
DAY = 86_400 * SECOND
Row = dict[str, object]


class ComparedBooks(TestBooks):
    """Open books of one way of booking, with bounds of memory."""

    def __init__(self, folder: Path, kind: type[Books], limits: GroupLimits) -> None:
        self.kind, self.memory = kind, limits
        super().__init__(folder)

    def reopen(self) -> None:
        """As in TestBooks."""
        super().reopen()
        rules = build_rules(Config())
        by_columns = self.kind is ColumnBooks
        self.books = self.kind(
            self.store,
            claim_keys=claim_keys,
            decide=rules.decide,
            rate=rules.rate,
            alone=Alone(rules.stands_alone, rules.rate_alone) if by_columns else None,
            columns=build_column_rules(rules) if by_columns else None,
            limits=self.memory,
        )
        self.stages = Stages(self.stages.select, self.books, self.stages.limits)


@contextmanager
def open_both(folder: Path, limits: GroupLimits) -> Iterator[tuple[ComparedBooks, ComparedBooks]]:
    """Books by columns under the limits, and books that look at every span's group with all in memory."""
    columns = ComparedBooks(folder / "columns", ColumnBooks, limits)
    singly = ComparedBooks(folder / "singly", Books, GroupLimits())
    yield columns, singly
    columns.close()
    singly.close()


def draw_spans(rng: Random, prefix: str, count: int) -> list[TestSpan]:
    """Calls of their own and of shared traces, ids and numbers, parents, tools, and some with a form of their own."""
    spans = []
    for number in range(count):
        name = f"{prefix}-{number}"
        ended = T0 + rng.choice([0, 0, 0, 1, 2, 5]) * DAY + rng.randrange(40) * SECOND
        changes: dict[str, object] = {"started": ended - SECOND, "ended": ended}
        attributes: dict[str, object] = {"otelbill.step": rng.choice(["plan", "write"])}
        kind = rng.randrange(10)
        if kind < 3:
            trace = rng.randrange(8)
            changes |= {"trace": f"shared-{trace}", "started": T0, "ended": T0 + number * SECOND}
            changes["parent"] = rng.choice([None, f"{prefix}-{rng.randrange(count)}"])
            changes["customer"] = rng.choice([None, "acme", "globex"])
        elif kind == 3:
            changes["response"] = f"resp-shared-{rng.randrange(4)}"
        elif kind == 4:
            attributes["gen_ai.operation.name"] = "execute_tool"
        elif kind == 5:
            changes |= {"model": "model-without-a-price", "scope": rng.choice(["one", "other"])}
        elif kind == 6:
            attributes["gen_ai.response.id"] = "short"
            changes |= {"scope": rng.choice(["one", "other"]), "started": T0, "ended": T0 + SECOND}
        elif kind == 7:
            attributes["otelbill.event.id"] = f"event-{rng.randrange(30)}"
        tokens = (100 + rng.randrange(4), rng.randrange(300))
        spans.append(chat(name, tokens=tokens, attributes=attributes, **changes))  # type: ignore[arg-type]
    return spans


def list_rows(books: TestBooks) -> dict[object, Row]:
    """Every column of every record, by record."""
    rows: list[Row] = books.store.read(
        lambda connection: [row for _, table in list_tables(connection, 0) for row in table.to_pylist()]
    )
    assert len({row["record_id"] for row in rows}) == len(rows)
    return {row["record_id"]: row for row in rows}


def count_claims(books: TestBooks) -> int:
    (count,) = books.store.read(lambda connection: connection.execute("SELECT sum(entries) FROM claim_run").fetchone())
    return int(count)


LIMITS = [GroupLimits(), GroupLimits(3), GroupLimits(150), GroupLimits(3, 8), GroupLimits(400_000, 60)]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_columns_leave_what_spans_leave_one_by_one(tmp_path: Path, seed: int, limits: GroupLimits) -> None:
    """Guarantee: with repeats, restarts, company that comes later and whatever memory, every field of every record and
    the claim keys are those of the way that looks at every group with all in memory.
    """
    rng = Random(seed)
    spans = draw_spans(rng, f"seed-{seed}", 150)
    spans += rng.sample(spans, 30)
    with open_both(tmp_path, limits) as (columns, singly):
        taken, start = 0, 0
        while start < len(spans):
            batch = spans[start : start + rng.choice([1, 7, 40])]
            start += len(batch)
            assert columns.post(*batch, now=NOW + 9 * DAY) == singly.post(*batch, now=NOW + 9 * DAY)
            if rng.random() < 0.1:
                taken += columns.books.by_columns  # type: ignore[attr-defined]
                columns.reopen()
                singly.reopen()
            assert columns.books.group_keys <= 5 * limits.keys_max  # four times as many of spans in columns
        taken += columns.books.by_columns  # type: ignore[attr-defined]
        assert list_rows(columns) == list_rows(singly)
        assert count_claims(columns) == count_claims(singly)
        assert taken > 10 or limits.known_keys_max == 8


@pytest.mark.parametrize("seed", range(4))
def test_a_transaction_that_fails_leaves_nothing_in_memory(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: what was booked by columns in a transaction that is undone is booked when it is sent again."""
    rng = Random(seed)
    spans = draw_spans(rng, f"seed-{seed}", 60)
    with open_both(tmp_path, GroupLimits()) as (columns, singly):
        for start in range(0, len(spans), 20):
            batch = spans[start : start + 20]
            with monkeypatch.context() as patch:
                patch.setattr("otelbill_collector.ledger.booking.append_segment", _fail)
                with pytest.raises(OSError, match="full"):
                    columns.post(*batch, now=NOW + 9 * DAY)
            assert columns.books.group_keys == 0
            assert columns.post(*batch, now=NOW + 9 * DAY) == singly.post(*batch, now=NOW + 9 * DAY)
        assert list_rows(columns) == list_rows(singly)


def _fail(*_: object) -> None:
    raise OSError("the disk is full")


@pytest.mark.parametrize("restart", [False, True])
def test_a_better_description_of_a_call_booked_by_columns_takes_its_claim(tmp_path: Path, restart: bool) -> None:
    """Guarantee: a row of a batch takes part in its group like any other span, in memory or read from the ledger."""
    with open_both(tmp_path, GroupLimits()) as (books, _):
        others = [chat(name, response=f"chatcmpl-{name}-2345678") for name in ("x", "y")]
        books.post(chat("inner", response="chatcmpl-12345678", scope="framework"), *others)
        assert books.books.by_columns == 3  # type: ignore[attr-defined]
        if restart:
            books.reopen()
        assert books.post(chat("outer", response="chatcmpl-12345678", scope="client")).accepted == 1
        assert books.totals()["events"] == 3
        assert books.post(others[0]).duplicate == 1
        assert books.post(chat("y", response="chatcmpl-z-2345678")).dead_lettered == 1


def test_equal_calls_of_one_emitter_go_by_columns_after_a_restart(tmp_path: Path) -> None:
    """Guarantee: the ledger says whose equal calls are where memory does not; another emitter's is linked still."""

    def call(name: str, scope: str = "one") -> TestSpan:
        return chat(name, trace=name, scope=scope, tokens=(321, 12), attributes={"gen_ai.response.id": "short"})

    with open_both(tmp_path, GroupLimits()) as both:
        for books in both:
            books.post(call("a"), call("b"))
            books.reopen()
            books.post(call("c"))
            books.post(call("d"))
            assert books is both[1] or books.books.by_columns == 2  # type: ignore[attr-defined]
            books.reopen()
            books.post(call("e"), call("other", scope="two"))
        assert both[0].books.by_columns == 0, "two emitters at once are left to the rules"  # type: ignore[attr-defined]
        assert list_rows(both[0]) == list_rows(both[1])
        assert both[0].totals()["events"] == 5
        both[0].reopen()
        both[0].post(call("f"))
        assert both[0].books.by_columns == 0, "now spans of both are stored"  # type: ignore[attr-defined]


def test_sums_of_columns_are_the_sums_of_their_records(tmp_path: Path) -> None:
    """Guarantee: metrics count every quantity and amount once, exactly, by the step that was decided."""
    rng = Random(5)
    with open_both(tmp_path, GroupLimits()) as (books, _):
        kept: list[ColumnSingles] = []
        add = books.books._index.add_columns

        def keep(singles: ColumnSingles, seen: NDArray[np.bool_]) -> None:
            kept.append(singles)
            add(singles, seen)

        books.books._index.add_columns = keep  # type: ignore[method-assign]
        books.post(*draw_spans(rng, "sums", 120), now=NOW + 9 * DAY)
        (singles,) = kept
        expected: dict[object, Sums] = {}
        for record in singles.list_records():
            if record.amounts.state is RatingState.RATED:
                labels = (record.candidate.provider, record.candidate.model, record.amounts.currency)
                sums = expected.setdefault((record.decision.step, *labels), Sums())
                sums.events += 1
                add_quantities(sums.quantities, record.decision.quantities, 1)
                sums.cost_attos += record.amounts.cost_attos or 0
                sums.charge_attos += record.amounts.charge_attos or 0
        for sums in expected.values():
            sums.quantities = {unit: total for unit, total in sums.quantities.items() if total}
        assert singles.sum_rated() == expected
        assert len(expected) > 1


def make_keys(numbers: list[int]) -> Bytes:
    return np.frombuffer(b"".join(number.to_bytes(16, "big") for number in numbers), dtype=np.uint8).reshape(-1, 16)


@pytest.mark.parametrize("seed", range(5))
def test_a_table_of_keys_is_a_dictionary(seed: int) -> None:
    """Guarantee: after any additions, removals, growth and change of generations a key leads to all its places in all
    batches, the last first, and to nothing else.
    """
    rng = Random(seed)
    tables = [KeyTable(4), KeyTable(4)]
    held: list[dict[int, list[int]]] = [{}, {}]  # by generation: key to the pointers of its spans
    befores: dict[int, Pointers] = {}
    for batch in range(1, 40):
        numbers = [rng.randrange(3_000) for _ in range(rng.randrange(80))]
        ones = np.ones(len(numbers), dtype=np.int32)
        met = np.array([number in held[0] or number in held[1] for number in numbers], dtype=np.bool_)
        befores[batch] = tables[0].add(make_keys(numbers), batch, ones, met, tables[1])
        for place, number in enumerate(numbers):
            held[0].setdefault(number, held[1].pop(number, [])).append(batch << 32 | place)
        asked = [rng.randrange(3_000) for _ in range(200)]
        for table, known in zip(tables, held, strict=True):
            marks = np.zeros(len(asked), dtype=np.bool_)
            table.mark(make_keys(asked), marks)
            assert marks.tolist() == [number in known for number in asked]
        for number in rng.sample(range(3_000), 40):
            for table, known in zip(tables, held, strict=True):
                found = table.take(number.to_bytes(16, "big"))
                assert (found is None) == (number not in known)
                if found is not None:
                    assert list(walk_back(found[0] << 32 | found[1], befores)) == known.pop(number)[::-1]
        if rng.random() < 0.2:
            tables, held = [tables[1].cleared(tables[0]), tables[0]], [{}, held[0]]


def walk_back(pointer: int, befores: dict[int, Pointers]) -> Iterator[int]:
    """The pointers of a chain, the last first."""
    while pointer:
        yield pointer
        pointer = int(befores[pointer >> 32][pointer & 0xFFFFFFFF])


@pytest.mark.parametrize("forgotten", [False, True])
def test_chains_are_walked_over_batches(forgotten: bool) -> None:
    """Guarantee: the spans of a trace are found in all batches, or it is said that one of them is forgotten."""
    table, older = KeyTable(4), KeyTable(4)
    ones = np.ones(3, dtype=np.int32)
    new = np.zeros(3, dtype=np.bool_)
    befores = [
        table.add(make_keys(numbers), batch, ones, new, older) for batch, numbers in ((7, [1, 2, 1]), (9, [3, 1, 3]))
    ]
    addresses = np.array([befores[0].ctypes.data, 0, befores[1].ctypes.data], dtype=np.uint64)
    addresses[0] *= np.uint64(not forgotten)
    last = np.array([9 << 32 | 1, 9 << 32 | 2], dtype=np.uint64)
    walk = walk_chains(last, 7, addresses, 10)
    assert walk is not None
    assert walk.whole.tolist() == [not forgotten, True]
    found = [*zip(walk.chain.tolist(), walk.batch.tolist(), walk.place.tolist(), strict=True)]
    assert [item for item in found if walk.whole[item[0]]] == (
        [(1, 9, 2), (1, 9, 0)] if forgotten else [(0, 9, 1), (0, 7, 2), (0, 7, 0), (1, 9, 2), (1, 9, 0)]
    )
    assert walk_chains(last, 7, addresses, 1) is None


def test_a_key_whose_spans_are_not_held_any_more_has_no_whole_chain() -> None:
    """Guarantee: of a key that was seen before, some of whose spans are forgotten, nobody is given only the rest."""
    table = KeyTable(4)
    before = table.add(make_keys([5]), 3, np.ones(1, dtype=np.int32), np.ones(1, dtype=np.bool_), KeyTable(4))
    walk = walk_chains(np.array([3 << 32], dtype=np.uint64), 3, np.array([before.ctypes.data], dtype=np.uint64), 9)
    assert walk is not None
    assert walk.whole.tolist() == [False]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_known_of_a_twin_key_is_true_of_all_its_spans(seed: int) -> None:
    """Guarantee: a twin key is passed for one emitter's only where every span that ever had it was that emitter's,
    however much was forgotten in between.
    """
    rng = Random(seed)
    twins, spans = TwinKeys(400), dict[int, set[int]]()
    for _ in range(60):
        numbers = rng.sample(range(2_000), 40)
        emitters = [rng.choice([1, 1, 1, 2]) for _ in numbers]
        keys, of_keys = make_keys([1 << 127 | number << 64 for number in numbers]), np.array(emitters, dtype=np.int32)
        seen = np.array([number in spans for number in numbers], dtype=np.bool_)
        met = seen.copy()
        twins.meet(keys, np.arange(len(numbers) + 1, dtype=np.int32), of_keys, met)
        for number, emitter, was, still in zip(numbers, emitters, seen, met, strict=True):
            assert still == was or spans[number] == {emitter}
        twins.note(keys, of_keys, seen)
        for number, emitter in zip(numbers, emitters, strict=True):
            spans.setdefault(number, set()).add(emitter)


@pytest.mark.parametrize("seed", range(20))
def test_company_is_found_wherever_it_is(seed: int) -> None:
    """Guarantee: a span is passed for its whole group only when no key of it, or of another span of its trace, is met
    elsewhere, and nothing is shared but the key of a trace, and twin keys among spans of one emitter.
    """
    rng = Random(seed)
    choices = [*range(100, 130), *(1 << 127 | number for number in range(30))]
    spans = [[rng.randrange(60), *rng.sample(choices, rng.randrange(3))] for _ in range(rng.randrange(50))]
    emitters = [rng.choice([1, 1, 1, 2]) for _ in spans]
    others = rng.sample(range(160), rng.randrange(4))
    met = set(rng.sample(range(160), rng.randrange(4)))
    late = [rng.random() < 0.05 for _ in spans]
    listed = [number for span in spans for number in span]
    starts = np.cumsum([0, *map(len, spans)]).astype(np.int32)
    company = np.array(late, dtype=np.bool_)
    marks = np.array([number in met for number in listed], dtype=np.bool_)
    given = make_keys(listed), starts, np.array(emitters, dtype=np.int32), marks
    find_company(*given, make_keys(others).tobytes(), company)

    def is_shared(number: int) -> bool:
        of = [emitter for span, emitter in zip(spans, emitters, strict=True) if number in span]
        return len(of) > 1 if number < 1 << 127 else len(set(of)) > 1

    own = [
        is_late or any(number in met or number in others for number in span) or any(map(is_shared, span[1:]))
        for span, is_late in zip(spans, late, strict=True)
    ]
    traces = {span[0] for span, has in zip(spans, own, strict=True) if has}
    assert company.tolist() == [span[0] in traces for span in spans]
