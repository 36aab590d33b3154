"""Periodic jobs run by themselves, rest in proportion, and keep nobody waiting for long."""

from __future__ import annotations

from otelbill_collector.domain.instants import NANOS
from otelbill_collector.jobs import Housekeeper, Job


class Clock:
    """A clock that jobs move."""

    def __init__(self) -> None:
        self.now = 1_000 * NANOS

    def read(self) -> int:
        return self.now


def build(clock: Clock, *, takes_nanos: int) -> tuple[Housekeeper, list[int]]:
    """A housekeeper of one job that takes so long and rests four times that."""
    runs: list[int] = []

    def work(now_nanos: int) -> None:
        runs.append(now_nanos)
        clock.now += takes_nanos

    return Housekeeper([Job("fold", work, rest_factor=4)], clock=clock.read, interval_seconds=1.0), runs


def test_a_job_that_took_long_rests_in_proportion() -> None:
    """Guarantee: it takes a fifth of the time at most, and what is done at once costs less for each."""
    clock = Clock()
    keeper, runs = build(clock, takes_nanos=NANOS // 2)
    for _ in range(4):
        keeper.run_rested()
        clock.now += NANOS
    assert len(runs) == 2
    keeper.run_once()
    assert len(runs) == 3, "asked for, it does not rest"


def test_a_rest_ends_however_long_the_work_was_and_whatever_the_clock_does() -> None:
    """Guarantee: fifteen seconds later it runs again, at once after the clock was set back."""
    clock = Clock()
    keeper, runs = build(clock, takes_nanos=60 * NANOS)
    keeper.run_rested()
    clock.now += 14 * NANOS
    keeper.run_rested()
    assert len(runs) == 1
    clock.now += NANOS
    keeper.run_rested()
    assert len(runs) == 2
    clock.now -= 3_600 * NANOS
    keeper.run_rested()
    assert len(runs) == 3
