"""What is booked of a stream is the sum of what its parts would be alone, however they are cut, mixed and repeated."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.app import build_rules
from otelbill_collector.config import Config
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.records import Receipt, UsageRecord
from otelbill_collector.domain.usage import Role
from otelbill_collector.explanation import render_quantity_map
from otelbill_collector.ledger.deadletters import list_dead_letters
from otelbill_collector.ledger.journal import list_tables
from otelbill_collector.ledger.segments import build_record
from otelbill_collector.offline import rate_spans, read_spans
from otelbill_collector.pipeline import Limits
from tests.books import TestBooks
from tests.corpus import RECORDED_NANOS, Case, Sent, build_body, load_cases, parse_sent, spread_cases
from tests.spans import SECOND

SEEDS = int(os.environ.get("OTELBILL_SEEDS", "5"))
REPEATED_SHARE = 0.1
REQUEST_SPANS_MAX = 50
# Event times of the corpus are spread over days; the clock of a run is either before all of them or after.
LIMITS = Limits(spans_max=10_000, attributes_max=1_024, future_nanos=10**9 * SECOND)
LATER = RECORDED_NANOS + 10**7 * SECOND

Row = dict[str, Any]


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> list[Case]:
    return spread_cases(load_cases(shared_data))


@pytest.fixture(scope="module")
def alone(cases: Sequence[Case]) -> dict[str, Row]:
    """What each case's events are when the case is rated by itself; dead letters left out."""
    rules = build_rules(Config())
    rows = [row for case in cases for row in rate_spans(read_spans(case.body), rules)]
    return {row["event_id"]: row for row in rows if not row["reason"].startswith("dead_letter:")}


def test_renaming_keeps_what_a_case_costs(shared_data: Path, cases: Sequence[Case]) -> None:
    """The copies hold exactly what the recordings do: the renaming hides no evidence from the claims.

    Money is left out of this comparison, because some prices depend on the hour of the day.
    """
    for before, after in zip(load_cases(shared_data), cases, strict=True):
        one, other = _sum(_rate(before.body)), _sum(_rate(after.body))
        money = {key for key in (*one, *other) if key[1] in ("cost", "charge")}
        assert {k: one[k] for k in one.keys() - money} == {k: other[k] for k in other.keys() - money}, before.name


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_shuffled_stream_is_billed_as_its_cases_alone(
    tmp_path: Path, cases: Sequence[Case], alone: dict[str, Row], seed: int
) -> None:
    """Shuffled span by span, cut anywhere, a tenth sent twice, restarted in between: every event is the same."""
    chance = random.Random(seed)
    sent = [item for case in cases for item in parse_sent(case.body)]
    books = TestBooks(tmp_path / "ledger", limits=LIMITS)
    _carry(books, list(_cut(_mix(sent, chance), chance)), chance)
    while books.books.post_due(LATER).records:
        pass
    booked = _list_in_force(books)
    assert {key: _compare(row) for key, row in booked.items()} == {key: _compare(row) for key, row in alone.items()}
    assert _sum(booked.values()) == _sum(alone.values())
    _check_rollups(books, alone.values())
    assert len(books.store.read(list_dead_letters)) == _count_dead(cases)
    books.close()


def _mix(sent: Sequence[Sent], chance: random.Random) -> list[Sent]:
    stream = [*sent, *chance.sample(list(sent), int(len(sent) * REPEATED_SHARE))]
    chance.shuffle(stream)
    return stream


def _cut(stream: Sequence[Sent], chance: random.Random) -> Iterator[bytes]:
    start = 0
    while start < len(stream):
        end = start + chance.randint(1, REQUEST_SPANS_MAX)
        yield build_body(stream[start:end])
        start = end


def _carry(books: TestBooks, bodies: list[bytes], chance: random.Random) -> None:
    """Carry the requests, one to four in a commit; the clock may stand before or after every grace."""
    restart = chance.randrange(len(bodies))
    while bodies:
        batch = [bodies.pop(0) for _ in range(min(len(bodies), chance.randint(1, 4)))]
        for answer in books.carry(batch, now=chance.choice((RECORDED_NANOS, LATER))):
            assert isinstance(answer, Receipt)
        if len(bodies) <= restart:
            restart = -1
            books.reopen()


def _list_in_force(books: TestBooks) -> dict[str, Row]:
    def read(connection: Any) -> list[UsageRecord]:  # Any: the store's connection
        return [build_record(row) for _, table in list_tables(connection, 0) for row in table.to_pylist()]

    signs: Counter[tuple[str, int]] = Counter()
    found: dict[tuple[str, int], UsageRecord] = {}
    for record in books.store.read(read):
        signs[record.event_id, record.revision] += record.sign
        found[record.event_id, record.revision] = record
    kept = [found[key] for key, sign in signs.items() if sign]
    assert max(signs.values()) == 1
    assert min(signs.values()) >= 0
    assert len({record.event_id for record in kept}) == len(kept)
    shown = [item for item in kept if item.decision.billable or item.candidate.role is not Role.LINK]
    return {record.event_id: _render(record) for record in shown}


def _render(record: UsageRecord) -> Row:
    amounts = record.amounts
    return {
        "billable": record.decision.billable,
        "reason": record.decision.reason,
        "usage_source": record.decision.usage_source.value,
        "caveats": list(record.decision.caveats),
        "quantities": render_quantity_map(record.decision.quantities),
        "rating": amounts.state.value,
        "cost": None if amounts.cost_attos is None else format_attos(amounts.cost_attos),
        "charge": None if amounts.charge_attos is None else format_attos(amounts.charge_attos),
    }


def _compare(row: Row) -> Row:
    names = ("billable", "reason", "usage_source", "caveats", "quantities", "rating", "cost", "charge")
    return {name: row[name] for name in names}


def _sum(rows: Iterable[Row]) -> dict[tuple[str, str], Decimal]:
    """Events, money and every unit, per state of what is billable."""
    sums: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if not row["billable"]:
            continue
        amounts = {"events": 1, "cost": row["cost"] or 0, "charge": row["charge"] or 0, **row["quantities"]}
        for name, amount in amounts.items():
            sums[row["rating"], name] += Decimal(amount)  # type: ignore[assignment]  # a Counter of decimals
    return {key: Decimal(value) for key, value in sums.items() if value}


def _check_rollups(books: TestBooks, alone: Iterable[Row]) -> None:
    """The read model's units and money are those of the events that are settled and held."""
    rows = books.usage("customer", fold=True)
    expected: Counter[str] = Counter()
    for row in alone:
        if row["billable"]:
            for unit, amount in row["quantities"].items():
                expected[unit] += Decimal(amount)  # type: ignore[assignment]  # a Counter of decimals
    found: Counter[str] = Counter()
    for row in rows:
        for unit, amount in row["quantities"].items():
            found[unit] += Decimal(amount)  # type: ignore[assignment]
    assert found == +expected


def _count_dead(cases: Sequence[Case]) -> int:
    rules = build_rules(Config())
    rows = [row for case in cases for row in rate_spans(read_spans(case.body), rules)]
    return sum(row["reason"].startswith("dead_letter:") for row in rows)


def test_the_comparison_sees_a_planted_difference(cases: Sequence[Case]) -> None:
    """Two descriptions of one call, moved a minute apart in traces of their own, cost more: the sums would show it."""
    mixed = next(case for case in cases if any(row["reason"] == "duplicate_description" for row in _rate(case.body)))
    sent = parse_sent(mixed.body)
    for number, item in enumerate(sent):
        item.span.trace_id, item.span.parent_span_id = bytes([number + 1]) * 16, b""
        item.span.start_time_unix_nano += number * 60 * SECOND
        item.span.end_time_unix_nano += number * 60 * SECOND
        kept = [pair for pair in item.span.attributes if pair.key != "gen_ai.response.id"]
        del item.span.attributes[:]
        item.span.attributes.extend(kept)
    assert _sum(_rate(build_body(sent))) != _sum(_rate(mixed.body))


def _rate(body: bytes) -> list[Row]:
    return rate_spans(read_spans(body), build_rules(Config()))
