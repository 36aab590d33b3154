"""Claim keys in sorted runs and the filter before them: nothing that was written is ever missed."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.ledger import claim_runs, key_filters
from otelbill_collector.ledger.claim_runs import (
    append_claims,
    list_recent_runs,
    merge_claims,
    merge_waiting,
    read_prefixes,
)
from otelbill_collector.ledger.known_keys import KnownKeys
from otelbill_collector.ledger.sqlite import SqliteStore
from otelbill_collector.native.links import sort_entries
from otelbill_collector.native.loading import find_library
from tests.claim_ledger import DAY, find_claims, make_key, open_ledger


@pytest.fixture
def ledger() -> Iterator[sqlite3.Connection]:
    with closing(open_ledger()) as connection:
        yield connection


COMMITS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=1, max_size=70)


@settings(max_examples=60, deadline=None)
@given(COMMITS, st.sampled_from([2, 5, 4_096]), st.sampled_from([20, 1 << 20]), st.sampled_from([0, 16, 64]))
def test_every_place_of_a_key_is_found_after_any_merges(
    commits: list[list[int]], chunk: int, cap: int, waiting: int
) -> None:
    """Guarantee: whatever the sizes of commits, chunks and runs, a key leads to all its places and to no other's."""
    wanted: dict[int, set[tuple[int, int]]] = defaultdict(set)
    with closing(open_ledger()) as connection, pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim_runs, "_CHUNK_ENTRIES", chunk)
        patch.setattr(claim_runs, "_RUN_ENTRIES_MAX", cap)
        patch.setattr(claim_runs, "_WAITING_RUNS_MAX", waiting)
        for segment, numbers in enumerate(commits, start=1):
            keys = [make_key(number) for number in numbers]
            append_claims(connection, segment, keys, list(range(len(keys))), {DAY})
            for position, number in enumerate(numbers):
                wanted[number].add((segment, position))
        for number in range(13):
            found = find_claims(connection, make_key(number), DAY)
            assert len(found) == len(set(found))
            assert set(found) == wanted[number]


def test_runs_stay_few(ledger: sqlite3.Connection) -> None:
    """Guarantee: a thousand small commits leave a few runs, so that a look-up does not grow with their number."""
    for segment in range(1, 1_001):
        append_claims(ledger, segment, [make_key(segment)], [0], {DAY})
    (runs,) = ledger.execute("SELECT count(*) FROM claim_run").fetchone()
    assert runs <= 64 + 2 * 16
    assert find_claims(ledger, make_key(77), DAY) == [(77, 0)]


def test_keys_are_looked_for_in_the_days_around(ledger: sqlite3.Connection) -> None:
    """Guarantee: a run of the day before or after is searched, one of two days away is not."""
    for segment, day in enumerate((DAY - 2, DAY - 1, DAY, DAY + 1, DAY + 2), start=1):
        append_claims(ledger, segment, [make_key(1)], [0], {day})
    assert sorted(find_claims(ledger, make_key(1), DAY)) == [(2, 0), (3, 0), (4, 0)]


def test_keys_written_before_there_were_runs_are_found(ledger: sqlite3.Connection) -> None:
    """Guarantee: a ledger of an older version keeps its groups."""
    ledger.execute("INSERT INTO claim_key VALUES (?, ?, 7, 3)", (DAY, make_key(1)))
    append_claims(ledger, 8, [make_key(1)], [0], {DAY})
    assert sorted(find_claims(ledger, make_key(1), DAY + 1)) == [(7, 3), (8, 0)]
    days = list(list_recent_runs(ledger, 1_000))
    assert days[-1] == (DAY, None), "its days must not be taken for known"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**9), max_size=300), st.integers(1, 60_000))
def test_the_filter_never_denies_a_key_of_a_covered_day(numbers: list[int], keys_max: int) -> None:
    """Guarantee: a stored span is never taken for absent, whatever the bound; a full filter gives up whole days."""
    known = KnownKeys(keys_max)
    keys = [make_key(number) for number in numbers]
    for day in range(DAY, DAY + 3):
        known.add(read_prefixes(keys), day)
        if known.covered_from <= day:
            assert known.find(read_prefixes(keys)) == list(range(len(keys)))
    assert known.covers(DAY + 10)


def test_a_full_filter_forgets_the_oldest_days() -> None:
    """Guarantee: memory is bounded; days that are no longer covered say so, and are asked in the ledger."""
    known = KnownKeys(100_000)
    for day in range(DAY, DAY + 20):
        known.add(read_prefixes([make_key(day * 20_000 + number) for number in range(20_000)]), day)
    assert known.size() <= 100_000
    assert DAY < known.covered_from <= DAY + 19
    assert not known.covers(known.covered_from)
    assert known.covers(known.covered_from + 1)


def test_most_new_keys_need_no_query() -> None:
    """Guarantee: of keys that are not stored, fewer than one in fifty is looked for."""
    known = KnownKeys(1_000_000)
    known.add(read_prefixes([make_key(number) for number in range(30_000)]), DAY)
    found = known.find(read_prefixes([make_key(number) for number in range(30_000, 40_000)]))
    assert len(found) < 200


def test_keys_that_come_in_order_are_told_apart_as_well() -> None:
    """Guarantee: a filter that is filled from sorted runs, as at a start, takes no more strangers for known."""
    known = KnownKeys(10_000_000)
    known.expect(100_000)
    for start in range(0, 100_000, 20_000):
        known.add(np.sort(read_prefixes([make_key(number) for number in range(start, start + 20_000)])), DAY)
    found = known.find(read_prefixes([make_key(number) for number in range(200_000, 220_000)]))
    assert len(found) < 20


@pytest.mark.skipif(find_library() is None, reason="the native library is not built")
@pytest.mark.parametrize("keys_max", [1, 700, 1 << 16])
def test_the_filter_has_the_same_bits_with_and_without_the_library(
    keys_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: what one way added the other finds, bit for bit, whatever the distance between keys."""
    keys = [make_key(number) for number in range(5_000)]
    asked = read_prefixes([make_key(number) for number in range(4_000, 9_000)])
    native, plain = key_filters.KeyFilter(keys_max, 20), key_filters.KeyFilter(keys_max, 20)
    native.add(read_prefixes(keys))
    found = [np.zeros(len(asked), dtype=np.bool_) for _ in range(3)]
    native.mark(asked, found[0])
    native.mark(np.ascontiguousarray(asked), found[1])
    monkeypatch.setattr(key_filters, "find_library", lambda: None)
    plain.add(read_prefixes(keys))
    plain.mark(asked, found[2])
    assert (native.bits == plain.bits).all()
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


@pytest.mark.skipif(find_library() is None, reason="the native library is not built")
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), max_size=200))
def test_entries_are_ordered_by_key_and_then_as_they_came(drawn: list[int]) -> None:
    """Guarantee: negative, equal and extreme keys stand where a search looks for them."""
    entries = claim_runs.make_entries(
        7, [key.to_bytes(8, "little", signed=True) * 2 for key in drawn], range(len(drawn))
    )
    expected = claim_runs._sort_runs(entries)
    sort_entries(entries)
    assert (entries == expected).all()


def test_keys_in_one_array_are_the_same_keys() -> None:
    """Guarantee: a run written from columns is the run written key by key."""
    keys = [make_key(number) for number in range(5_000)]
    array = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16)
    runs = []
    for given_keys in (keys, array):
        with closing(open_ledger()) as connection:
            append_claims(connection, 3, given_keys, np.arange(len(keys)), {DAY})
            runs.append(connection.execute("SELECT first_key, last_key, body FROM claim_chunk").fetchall())
    assert runs[0] == runs[1]


def list_runs(connection: sqlite3.Connection) -> list[object]:
    """All runs with their chunks, by what is in them."""
    columns = "level, day_min, day_max, entries, first_key, last_key, body"
    return sorted(connection.execute(f"SELECT {columns} FROM claim_chunk JOIN claim_run USING (run_id)"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(0, 2**32), st.sampled_from([40, 1 << 20]))
def test_runs_do_not_depend_on_when_they_are_merged(sizes: list[int], seed: int, cap: int) -> None:
    """Guarantee: merged after every commit, now and then or at the end, the same runs come out."""
    rng, found = Random(seed), []
    for chance in (0, 3, 10):
        with closing(open_ledger()) as connection, pytest.MonkeyPatch.context() as patch:
            patch.setattr(claim_runs, "_RUN_ENTRIES_MAX", cap)
            for segment, size in enumerate(sizes, start=1):
                keys = [make_key(segment * 100 + number) for number in range(size)]
                append_claims(connection, segment, keys, list(range(size)), {DAY + segment % 3})
                if rng.randrange(10) < chance:
                    merge_claims(connection)
            merge_claims(connection)
            found.append(list_runs(connection))
    assert found[0] == found[1] == found[2]


def test_merges_beside_commits_leave_every_key_findable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: commits that come while runs are merged, and a merge that is cut off, lose and double nothing."""
    store = SqliteStore(tmp_path)
    committed = 0

    def commit(_: sqlite3.Connection | None = None) -> None:
        nonlocal committed
        committed += 1
        segment = committed
        keys = [make_key(segment * 10 + number) for number in range(3)]
        store.transact(lambda connection: append_claims(connection, segment, keys, [0, 1, 2], {DAY}))

    for _ in range(40):
        commit()
    prepare, save = claim_runs._prepare_merge, claim_runs._save_merge

    def prepare_slowly(connection: sqlite3.Connection) -> object:
        merge = prepare(connection)
        if merge is not None:
            commit()  # the snapshot is older than this
        return merge

    def fail_late(connection: sqlite3.Connection, merge: claim_runs.Merge) -> bool:
        save(connection, merge)
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(claim_runs, "_save_merge", fail_late)
        with pytest.raises(OSError, match="full"):
            merge_waiting(store)
    check_all_found(store, committed)
    monkeypatch.setattr(claim_runs, "_prepare_merge", prepare_slowly)
    assert merge_waiting(store) == 2
    check_all_found(store, committed)
    assert store.read(prepare) is None
    store.close()


def check_all_found(store: SqliteStore, committed: int) -> None:
    for segment in range(1, committed + 1):
        for number in range(3):
            key = make_key(segment * 10 + number)
            assert store.read(partial(find_claims, day=DAY, key=key)) == [(segment, number)]


def test_a_merge_whose_runs_are_gone_changes_nothing(ledger: sqlite3.Connection) -> None:
    """Guarantee: what was ordered on a snapshot takes the place of just those runs or of none."""
    for segment in range(1, 17):
        append_claims(ledger, segment, [make_key(segment)], [0], {DAY})
    merge = claim_runs._prepare_merge(ledger)
    assert merge is not None
    merge_claims(ledger)
    before = list_runs(ledger)
    assert not claim_runs._save_merge(ledger, merge)
    assert list_runs(ledger) == before
