"""What is held in memory of claim groups is a matter of speed alone: the bill is the same with next to none of it."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from otelbill_collector.app import build_rules
from otelbill_collector.config import Config
from otelbill_collector.ledger.booking import Alone
from otelbill_collector.ledger.books import Books
from otelbill_collector.ledger.groups import GroupLimits
from otelbill_collector.rules import claim_keys
from tests.books import NOW, TestBooks
from tests.spans import SECOND, T0, TestSpan, chat

DAY = 86_400 * SECOND


def draw_spans(rng: Random) -> list[TestSpan]:
    """Calls of few traces, response ids and days, and repeats of them: groups meet across requests."""
    spans = []
    for number in range(60):
        ended = T0 + rng.randrange(4) * DAY + rng.randrange(10) * SECOND
        spans.append(
            chat(
                f"call-{number}",
                trace=f"trace-{rng.randrange(12)}",
                response=f"chatcmpl-{rng.randrange(20):08d}",
                tokens=(100 + rng.randrange(3), 7),
                scope=rng.choice(["client", "framework"]),
                started=ended - SECOND,
                ended=ended,
            )
        )
    return [*spans, *rng.sample(spans, 15)]


def bill(folder: Path, spans: list[TestSpan], limits: GroupLimits) -> tuple[object, int]:
    """Usage by every fact that matters and the number of repeats, after requests of five spans and two restarts."""
    books, duplicates = TestBooks(folder), 0
    for start in range(0, len(spans), 5):
        if start % 25 == 0:
            books.reopen()
            rules = build_rules(Config())
            alone = Alone(rules.stands_alone, rules.rate_alone)
            books.books = Books(
                books.store, claim_keys=claim_keys, decide=rules.decide, rate=rules.rate, alone=alone, limits=limits
            )
            books.stages = type(books.stages)(books.stages.select, books.books, books.stages.limits)
        duplicates += books.post(*spans[start : start + 5], now=NOW + 9 * DAY).duplicate
    usage = books.usage("customer", "model", "day", "trace", "reason")
    books.close()
    return usage, duplicates


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limits", [GroupLimits(3, 8), GroupLimits(400_000, 8), GroupLimits(3, 10**6)], ids=str)
def test_the_bill_does_not_depend_on_memory(tmp_path: Path, seed: int, limits: GroupLimits) -> None:
    """Guarantee: with keys evicted after every commit, and days that the filter forgot, all is decided as with them."""
    spans = draw_spans(Random(seed))
    assert bill(tmp_path / "small", spans, limits) == bill(tmp_path / "large", spans, GroupLimits())
