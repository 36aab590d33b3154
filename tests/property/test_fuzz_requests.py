"""No request, however broken, crashes the path, bills what nobody reported, or leaves a span unaccounted for."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otelbill_collector.decode.dialects import list_dialects
from otelbill_collector.domain.records import Receipt, Rejection
from tests.books import TestBooks
from tests.corpus import RECORDED_NANOS, Case, load_cases
from tests.fuzzing import VALUES, check_request, list_mutation_keys, mutate
from tests.spans import SECOND, T0, TestSpan, build_request

MUTANTS = int(os.environ.get("OTELBILL_FUZZ_REQUESTS", "20000"))
SEED = int(os.environ.get("OTELBILL_FUZZ_SEED", "1"))
PARTS = 8
BOOKED = 600
KEYS = list_mutation_keys()


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> list[Case]:
    return load_cases(shared_data)


def test_the_oracle_accepts_every_recording(cases: Sequence[Case]) -> None:
    """What is checked on broken requests holds for the whole ones, and they do bill."""
    assert sum(check_request(case.body) for case in cases) > len(cases)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_requests_neither_crash_nor_invent_usage(cases: Sequence[Case], part: int) -> None:
    """Byte flips, swapped and retyped attributes, huge and negative numbers, broken parents."""
    decided = 0  # a failure names the seed of its mutant
    for number in range(part, MUTANTS, PARTS):
        seed = f"{SEED}-{number}"
        chance = random.Random(seed)
        body = mutate(chance.choice(cases).body, chance, KEYS)
        try:
            decided += check_request(body)
        except Exception as error:
            raise AssertionError(f"mutant {seed}: {type(error).__name__}: {error}"[:4_000]) from error
    assert decided > MUTANTS // PARTS


def test_mutated_requests_balance_in_the_ledger(tmp_path: Path, cases: Sequence[Case]) -> None:
    """Through the whole path: each span is ignored, accepted, repeated or kept as a dead letter, and sums agree."""
    books = TestBooks(tmp_path / "ledger")
    chance = random.Random(f"{SEED}-ledger")
    bodies = [mutate(chance.choice(cases).body, chance, KEYS) for _ in range(BOOKED)]
    accepted = rejected = 0
    for start in range(0, BOOKED, 30):
        answers = books.carry(bodies[start : start + 30], now=RECORDED_NANOS + 30 * 86_400 * SECOND)
        assert len(answers) == len(bodies[start : start + 30])
        for answer in answers:  # a Receipt balances by construction
            accepted += answer.accepted if isinstance(answer, Receipt) else 0
            rejected += isinstance(answer, Rejection)
    assert accepted > BOOKED // 2
    assert 0 < rejected < BOOKED // 4
    for row in books.usage("customer", "model", fold=True):
        assert all(float(amount) >= 0 for amount in row["quantities"].values()), row
    books.close()


_scopes = st.sampled_from(sorted({scope.rstrip("*") for dialect in list_dialects() for scope in dialect.scopes}))
_numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 10_000) | st.floats()
_values: st.SearchStrategy[Any] = _numbers | st.booleans() | st.text(max_size=40) | st.sampled_from(VALUES)
_attributes = st.dictionaries(st.sampled_from(KEYS), _values, max_size=14)


@st.composite
def _spans(draw: st.DrawFn) -> list[TestSpan]:
    names = [str(number) for number in range(draw(st.integers(1, 6)))]
    return [
        TestSpan(
            name,
            draw(_attributes),
            trace=draw(st.sampled_from(("one", "two"))),
            parent=draw(st.none() | st.sampled_from(names)),
            started=T0 + draw(st.integers(0, 3)) * SECOND,
            ended=T0 + draw(st.integers(0, 5)) * SECOND,
            scope=draw(_scopes),
            status=draw(st.integers(0, 2)),
        )
        for name in names
    ]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_spans())
def test_any_combination_of_known_attributes_is_read_without_fault(spans: list[TestSpan]) -> None:
    """Any value under any name that a rule reads, in any tree of any emitter's spans."""
    check_request(build_request(spans))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    """Nothing but MalformedRequest leaves the decoder."""
    check_request(body)
