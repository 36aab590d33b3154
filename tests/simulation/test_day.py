"""A day of simulated time: varying load, clocks that step, spans up to 35 days late, repeats of any age, restarts.

OTELBILL_SEEDS names the days to simulate ("1,2" unless set). Time is an argument everywhere, so a day takes seconds.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from otelbill_collector.domain.records import Receipt
from otelbill_collector.ledger.deadletters import count_dead_letters
from otelbill_collector.operations import Operations
from tests.books import TestBooks
from tests.spans import SECOND, T0, TestSpan, build_request, chat

SEEDS = [int(text) for text in os.environ.get("OTELBILL_SEEDS", "1,2").split(",")]
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86_400 * SECOND
TICK = 5 * MINUTE
LATE_MAX = 35 * DAY
_CUSTOMERS = ["acme", "globex", "initech"]
# By the hour: a quiet night, office hours, and an agent fleet at two in the morning.
_LOAD = [2, 1, 40, 3, 1, 1, 2, 4, 8, 12, 14, 12, 10, 12, 14, 12, 10, 8, 6, 4, 4, 3, 3, 2]


@dataclass
class Day:
    """What was sent, what waits to be sent, and what must be in the books at the end."""

    chance: random.Random
    sent: list[bytes] = field(default_factory=list)
    late: list[tuple[int, TestSpan]] = field(default_factory=list)  # (when it is sent, span)
    wanted: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0]))
    spans: int = 0

    def make_call(self, customer: str, at: int, **place: Any) -> TestSpan:
        """One provider call that ended at `at`, noted in the sums of its customer."""
        tokens = (self.chance.randint(1, 9_000), self.chance.randint(1, 900))
        for column, value in enumerate((1, *tokens)):
            self.wanted[customer][column] += value
        self.spans += 1
        name = f"call-{self.spans}"
        return chat(name, customer=customer, tokens=tokens, started=at - SECOND, ended=at, **{"trace": name, **place})

    def make_session(self, customer: str, at: int) -> list[TestSpan]:
        """An agent that reports the sum of its calls, which is to be billed once."""
        name = f"agent-{self.spans}"
        calls = [self.make_call(customer, at, trace=name, parent=name) for _ in range(self.chance.randint(1, 4))]
        sums = {
            unit: sum(int(call.attributes[unit]) for call in calls)
            for unit in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
        }
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "openai",
            "otelbill.customer.id": customer,
            **sums,
        }
        return [*calls, TestSpan(name, attributes, trace=name, started=at - 2 * SECOND, ended=at + SECOND)]

    def make_requests(self, now: int) -> list[bytes]:
        """What arrives in one tick: new spans, late ones whose time has come, and repeats of any age."""
        chance, load = self.chance, _LOAD[(now - T0) % DAY // HOUR]
        spans: list[TestSpan] = []
        for _ in range(chance.randint(0, 2 * load)):
            customer, ended = chance.choice(_CUSTOMERS), now - MINUTE - chance.randrange(TICK)
            in_session = chance.random() < 0.15
            for span in self.make_session(customer, ended) if in_session else [self.make_call(customer, ended)]:
                if chance.random() < 0.1:  # its sender was offline for hours
                    self.late.append((now + chance.randrange(8 * HOUR), span))
                else:
                    spans.append(span)
        if chance.random() < 0.3:  # or for weeks
            spans.append(self.make_call(chance.choice(_CUSTOMERS), now - chance.randrange(LATE_MAX)))
        spans.extend(self.take_late(now))
        chance.shuffle(spans)
        requests = []
        while spans:
            size = chance.randint(1, 30)
            requests.append(build_request(spans[:size]))
            spans = spans[size:]
        repeats = [chance.choice(self.sent) for _ in range(1 + len(requests) // 4)] if self.sent else []
        self.sent.extend(requests)
        return [*requests, *repeats]

    def take_late(self, now: int) -> list[TestSpan]:
        """Spans whose senders are back."""
        due = [span for at, span in self.late if at <= now]
        self.late = [item for item in self.late if item[0] > now]
        return due


class SteppingClock:
    """The receiver's clock: it steps forth and back against true time a few times a day."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.offset = 0
        self.steps = 0

    def read(self, true: int) -> int:
        """What it shows at a true instant."""
        if self._chance.random() < 1 / 30:
            self.offset = self._chance.choice([0, 0, -2 * HOUR, -3 * MINUTE, 10 * MINUTE, 2 * HOUR, -26 * HOUR])
            self.steps += 1
        return true + self.offset


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_day_with_stepping_clocks_loses_nothing_and_books_nothing_twice(books: TestBooks, seed: int) -> None:
    """Guarantee: when the day is over, each customer has exactly the calls and tokens that were made for it."""
    chance = random.Random(seed)
    day, clock = Day(chance), SteppingClock(chance)
    counts: dict[str, int] = defaultdict(int)
    now = T0
    while now < T0 + DAY or day.late:
        now += TICK
        shown = clock.read(now)
        requests = day.make_requests(now) if now < T0 + DAY else [build_request(day.take_late(now))]
        _carry(books, requests, shown, counts)
        if chance.random() < 0.3:
            _operate(books, shown).decide_due()
        if chance.random() < 0.2:
            books.usage(fold=True)
        if chance.random() < 0.02:
            books.reopen()
    _settle(books, now + DAY)
    assert clock.steps > 2
    assert counts["duplicate"] > 100
    assert counts["dead_lettered"] > 0, "no clock was so wrong that a span seemed to be of the future"
    _check_books(books, day)
    books.reopen()
    _check_books(books, day)


def _operate(books: TestBooks, now: int) -> Operations:
    return Operations(books.stages, None, lambda: now)


def _carry(books: TestBooks, requests: list[bytes], shown: int, counts: dict[str, int]) -> None:
    for answer in books.carry(requests, shown):
        assert isinstance(answer, Receipt)
        for name in ("accepted", "duplicate", "dead_lettered", "ignored"):
            counts[name] += getattr(answer, name)


def _settle(books: TestBooks, now: int) -> None:
    """The clock is right again: what seemed to be of the future is replayed, and every group is decided."""
    operations = _operate(books, now)
    assert operations.replay_dead_letters()["still_dead"] == 0
    while operations.decide_due():
        continue
    assert books.store.read(count_dead_letters) == 0


def _check_books(books: TestBooks, day: Day) -> None:
    """The rollups, and a recount of all that was ever booked."""
    for by in (("customer",), ("customer", "trace")):
        found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for row in books.usage(*by, fold=True):
            counts = row["quantities"]
            for column, unit in enumerate(("requests", "input_tokens", "output_tokens")):
                found[row["customer"]][column] += counts.get(unit, 0)
        assert found == day.wanted, by
