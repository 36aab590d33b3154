"""What is freed goes back to the system: now and then, whatever the clock does and whichever the C library is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from otelbill_collector import free_memory
from otelbill_collector.domain.instants import NANOS
from otelbill_collector.free_memory import MemoryKeeper


def make_keeper(monkeypatch: pytest.MonkeyPatch, given_back: list[int]) -> MemoryKeeper:
    library = SimpleNamespace(mallopt=lambda *_: 1, malloc_trim=given_back.append)
    monkeypatch.setattr(free_memory.ctypes, "CDLL", lambda _: library)
    return MemoryKeeper()


def test_memory_is_given_back_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: a job that runs every second gives back every five, also after the clock was set back."""
    given_back: list[int] = []
    keeper = make_keeper(monkeypatch, given_back)
    for second in range(100, 111):
        keeper.run(second * NANOS)
    assert len(given_back) == 2
    keeper.run(5 * NANOS)
    assert len(given_back) == 3


def test_a_c_library_without_these_functions_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: where the C library has no such settings nothing fails."""
    monkeypatch.setattr(free_memory.ctypes, "CDLL", lambda _: SimpleNamespace())
    MemoryKeeper().run(100 * NANOS)


def test_the_settings_are_those_of_this_c_library() -> None:
    """Guarantee: the real job runs."""
    MemoryKeeper().run(100 * NANOS)
