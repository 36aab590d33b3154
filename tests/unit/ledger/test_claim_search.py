"""Look-ups through sieves: they find what a search of every run finds, after merges, failures and prunings too."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.ledger import claim_runs, claim_search, key_filters
from otelbill_collector.ledger.claim_runs import (
    append_claims,
    keep_claims,
    list_runs,
    merge_claims,
    search_run,
)
from otelbill_collector.ledger.claim_search import ClaimSearch
from otelbill_collector.ledger.sqlite import SqliteStore
from tests.claim_ledger import DAY, find_claims, make_key, open_ledger


def join(numbers: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    raw = b"".join(map(make_key, numbers))
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, 16)


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    monkeypatch.setattr(claim_search, "_SIEVED_MIN", 1)
    with closing(open_ledger()) as connection:
        yield connection


def count_sieved_runs(search: ClaimSearch) -> int:
    return len(search._sieves)


def test_sieves_of_large_runs_are_made_beside_the_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: the writer makes none that would hold a commit up; it finds what it looks for before there is one, and
    takes over those that another thread made, of runs that are still there.
    """
    monkeypatch.setattr(claim_search, "_SIEVED_MIN", 1)
    monkeypatch.setattr(claim_search, "_AT_ONCE_MAX", 5)
    search, store = ClaimSearch(10_000), SqliteStore(tmp_path)
    for segment, numbers in enumerate((range(20), range(20, 23)), start=1):
        store.transact(
            lambda c, s=segment, n=numbers: append_claims(c, s, list(map(make_key, n)), range(len(n)), {DAY})  # type: ignore[misc]
        )

    def find(number: int) -> list[tuple[int, int]]:
        return store.transact(lambda connection: search.find_of_any_day(connection, make_key(number)))

    assert find(7) == [(1, 7)]
    assert count_sieved_runs(search) == 1
    assert search.make_sieves(store) == 1
    assert search.make_sieves(store) == 0
    assert find(7) == [(1, 7)]
    assert find(21) == [(2, 1)]
    assert find(99) == []
    assert count_sieved_runs(search) == 2
    store.close()


COMMITS = st.lists(
    st.tuples(st.integers(DAY, DAY + 4), st.lists(st.integers(0, 40), min_size=1, max_size=9)), min_size=1, max_size=70
)


@pytest.mark.parametrize("native", [True, False])
@settings(max_examples=30, deadline=None)
@given(COMMITS, st.sampled_from([0, 3, 60, 10_000]), st.sampled_from([1, 4]))
def test_a_look_up_through_sieves_finds_what_a_full_search_finds(
    native: bool, commits: list[tuple[int, list[int]]], entries_max: int, sieved_min: int
) -> None:
    """Guarantee: whatever is merged meanwhile, and however many runs have a sieve, no entry is missed."""
    with closing(open_ledger()) as connection, pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim_search, "_SIEVED_MIN", sieved_min)
        patch.setattr(claim_runs, "_WAITING_RUNS_MAX", 20)
        if not native:
            patch.setattr(key_filters, "find_library", lambda: None)
        search, asked = ClaimSearch(entries_max), list(range(50))
        connection.execute("INSERT INTO claim_key VALUES (?, ?, 7, 3)", (DAY + 1, make_key(44)))
        for segment, (day, numbers) in enumerate(commits, start=1):
            append_claims(connection, segment, [make_key(number) for number in numbers], range(len(numbers)), {day})
            if segment % 7 and segment != len(commits):
                continue
            for number in asked:
                found = search.find(connection, DAY + 1, make_key(number))
                assert sorted(found) == sorted(find_claims(connection, make_key(number), DAY + 1))
            stored = [bool(find_claims(connection, make_key(number))) for number in asked]
            assert search.mark_stored(connection, join(asked)).tolist() == stored
            assert sum(run.entries for run in search._sieves) <= entries_max
            search.settle()


def test_sieves_keep_look_ups_from_runs_that_have_not_the_key(
    ledger: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: to learn that keys are stored nowhere, one run in twenty is read at most."""
    search, reads = ClaimSearch(1_000_000), []

    def count(connection: sqlite3.Connection, run_id: int, prefix: int) -> Iterator[tuple[int, int]]:
        reads.append(run_id)
        return search_run(connection, run_id, prefix)

    monkeypatch.setattr(claim_search, "search_run", count)
    for segment in range(1, 41):
        numbers = range(segment * 1_000, segment * 1_000 + 1_000)
        append_claims(ledger, segment, [make_key(number) for number in numbers], range(1_000), {DAY})
    assert not search.mark_stored(ledger, join(list(range(100_000, 100_500)))).any()
    assert len(reads) < 500 * 40 // 20


def test_a_run_that_was_never_written_leaves_no_sieve(ledger: sqlite3.Connection) -> None:
    """Guarantee: after a transaction failed its runs' numbers are given again, and what they hold then is found."""
    search = ClaimSearch(1_000)
    append_claims(ledger, 1, [make_key(1)], [0], {DAY})
    search.find(ledger, DAY, make_key(1))
    search.settle()
    ledger.execute("BEGIN")
    append_claims(ledger, 2, [make_key(2)], [0], {DAY})
    assert search.find(ledger, DAY, make_key(2)) == [(2, 0)]
    ledger.execute("ROLLBACK")
    search.forget()
    append_claims(ledger, 2, [make_key(3)], [0], {DAY})
    assert search.find(ledger, DAY, make_key(3)) == [(2, 0)]
    assert search.find(ledger, DAY, make_key(1)) == [(1, 0)]
    assert count_sieved_runs(search) == 2


def test_the_number_of_a_pruned_run_is_not_given_again(ledger: sqlite3.Connection) -> None:
    """Guarantee: a run of which nothing was kept is not taken for the one that is written next."""
    search = ClaimSearch(1_000)
    append_claims(ledger, 1, [make_key(1)], [0], {DAY})
    assert search.find(ledger, DAY, make_key(1)) == [(1, 0)]
    (run,) = list_runs(ledger)
    keep_claims(ledger, run.run_id, 1)
    append_claims(ledger, 2, [make_key(2)], [0], {DAY})
    assert search.find(ledger, DAY, make_key(2)) == [(2, 0)]
    keep_claims(ledger, run.run_id, 1)
    assert [item.run_id for item in list_runs(ledger)] != [run.run_id]
    assert search.find(ledger, DAY, make_key(1)) == []


def test_merged_runs_lose_their_sieves(ledger: sqlite3.Connection) -> None:
    """Guarantee: memory follows what is stored: a sieve for each run that there is, and no more."""
    search = ClaimSearch(1_000)
    for segment in range(1, 33):
        append_claims(ledger, segment, [make_key(segment)], [0], {DAY})
        search.find(ledger, DAY, make_key(segment))
    assert count_sieved_runs(search) == 32
    merge_claims(ledger)
    assert search.find(ledger, DAY, make_key(5)) == [(5, 0)]
    assert count_sieved_runs(search) == len(list_runs(ledger)) == 2
