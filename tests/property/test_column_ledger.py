"""A ledger booked by columns holds what a ledger booked span by span holds, whatever comes and however it is cut."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.domain.records import Answer, UsageRecord
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.segments import build_record
from otelbill_collector.pipeline import Request, book_batch, join_batches, read_batch
from tests.books import NOW, TestBooks
from tests.corpus import build_body, load_cases, parse_sent
from tests.spans import SECOND, T0, TestSpan, build_request, chat

CUSTOMERS = ("acme", "globex", None)


def list_records(books: TestBooks) -> list[UsageRecord]:
    """Every record of the ledger, in an order that does not depend on how it was booked."""

    def read(connection: Any) -> list[UsageRecord]:  # Any: the store's connection
        return [build_record(row) for _, table in list_tables(connection, 0) for row in table.to_pylist()]

    return sorted(books.store.read(read), key=lambda record: (record.event_id, record.revision, record.sign))


def make_trace(chance: random.Random, number: int) -> list[TestSpan]:
    """A turn of an agent: calls and tools under a frame, sometimes of two emitters, nested, or with totals."""
    trace = f"trace-{number}"
    customer = chance.choice(CUSTOMERS)
    started = T0 + number * 20 * SECOND
    frame = {"otelbill.step": "turn", "otelbill.run.id": f"run-{number}"}
    if customer is not None:
        frame["otelbill.customer.id"] = customer
    if chance.random() < 0.1:
        frame |= {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.usage.input_tokens": 900,
            "gen_ai.usage.output_tokens": 90,
        }  # type: ignore[dict-item]
    spans = [TestSpan(f"{trace}-root", frame, trace=trace, started=started, ended=started + 9 * SECOND)]
    for index in range(chance.randint(0, 5)):
        name = f"{trace}-{index}"
        parent = chance.choice([spans[0].name, spans[-1].name, None, "gone"])
        place: dict[str, Any] = {
            "trace": trace,
            "parent": parent,
            "started": started + index * SECOND,
            "ended": started + (index + 1) * SECOND,
        }
        if chance.random() < 0.3:
            spans.append(
                TestSpan(name, {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}, **place)
            )
            continue
        scope = "tests" if chance.random() < 0.9 else "framework"
        spans.append(
            chat(
                name,
                customer=customer if chance.random() < 0.7 else None,
                tokens=(chance.choice([0, 10, chance.randint(11, 9_999)]), chance.choice([1, chance.randint(2, 999)])),
                model=chance.choice(["gpt-4o-mini", "gpt-4o", "model-nobody-knows"]),
                scope=scope,
                **place,
            )
        )
    return spans


def make_requests(chance: random.Random, *, shuffled: bool) -> Iterator[bytes]:
    """Traces cut into requests, with spans that are sent twice: at once, or much later."""
    spans = [span for number in range(chance.randint(80, 160)) for span in make_trace(chance, number)]
    if shuffled:
        chance.shuffle(spans)
    spans += chance.sample(spans, len(spans) // 10)
    position = 0
    while position < len(spans):
        size = chance.choice([1, 5, 40] if shuffled else [20, 40])
        yield build_request(spans[position : position + size])
        position += size


class CountedBooks(TestBooks):
    """Books that count the spans booked by columns."""

    in_columns = 0
    batches = 0

    def carry(self, bodies: Sequence[bytes], now: int = NOW) -> tuple[Answer, ...]:
        requests = [Request(body, now) for body in bodies]
        self.batches += 1
        cut = self.batches % (len(requests) + 1)  # what is read apart is booked together
        parts = [read_batch(part, self.stages) for part in (requests[:cut], requests[cut:]) if part]
        (batch,) = join_batches(parts)
        carried = book_batch(batch, self.stages, now)
        if carried.posted is not None and carried.posted.booking.columns is not None:
            self.in_columns += len(carried.posted.booking.columns)
        return carried.answers


def carry_both(folder: Path, bodies: list[bytes], chance: random.Random) -> tuple[CountedBooks, TestBooks]:
    """The same batches into a ledger by columns and into one span by span; answers must be equal."""
    by_columns, singly = CountedBooks(folder / "columns"), TestBooks(folder / "singly", columns=False)
    while bodies:
        size = chance.randint(1, 4)
        batch, bodies = bodies[:size], bodies[size:]
        now = NOW + chance.choice([0, 400 * SECOND])
        assert by_columns.carry(batch, now) == singly.carry(batch, now)
        if chance.random() < 0.05:
            by_columns.reopen()
            singly.reopen()
    return by_columns, singly


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_ledger_by_columns_is_the_ledger_span_by_span(tmp_path: Path, seed: int, shuffled: bool) -> None:
    """Answers, records and usage are the same, with repeats, late spans, restarts and traces over several requests."""
    chance = random.Random(seed)
    by_columns, singly = carry_both(tmp_path, list(make_requests(chance, shuffled=shuffled)), chance)
    assert list_records(by_columns) == list_records(singly)
    assert shuffled or by_columns.in_columns > 20, "traces that come whole go by columns, once their kinds are known"
    for fold in (False, True):
        usage = [books.usage("customer", "step", "model", "hour", fold=fold) for books in (by_columns, singly)]
        assert usage[0] == usage[1]
    by_columns.close()
    singly.close()


@pytest.mark.parametrize("seed", range(2))
def test_recorded_spans_by_columns_are_booked_as_span_by_span(tmp_path: Path, shared_data: Path, seed: int) -> None:
    """The same of everything recorded, sent in two halves so that the second is known from the first."""
    chance = random.Random(seed)
    sent = [item for case in load_cases(shared_data) for item in parse_sent(case.body)]
    chance.shuffle(sent)
    bodies = [build_body(sent[start : start + 25]) for start in range(0, len(sent), 25)]
    by_columns, singly = carry_both(tmp_path, bodies, chance)
    assert list_records(by_columns) == list_records(singly)
    by_columns.close()
    singly.close()


@pytest.mark.parametrize("scope", ["tests", "framework"])
def test_equal_calls_of_one_emitter_go_by_columns_whichever_way_the_first_came(tmp_path: Path, scope: str) -> None:
    """The first call of a kind is read by the rules; later ones with the same numbers at the same time are no company
    of it where the emitter is the same, and are where it is not.
    """
    books = CountedBooks(tmp_path)
    kind = chat("kind", tokens=(7, 3), response="none", scope="framework")
    twins = [chat(f"twin-{number}", response="none", scope="tests") for number in range(4)]  # too short for an id
    for span in (kind, *twins, chat("last", response="none", scope=scope)):
        books.carry([build_request([span])])
    assert books.in_columns == (4 if scope == "tests" else 3)
    books.close()
