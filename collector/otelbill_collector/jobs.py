"""The periodic work beside ingest: decide what is due, fold rollups and windows, send to Stripe. Owns one thread."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from otelbill_collector.domain.instants import NANOS

_log = logging.getLogger("otelbill.jobs")
_REST_NANOS_MAX = 15 * NANOS


@dataclass(frozen=True, slots=True)
class Job:
    """A name for the log, and the work: given the time, it does what is due and returns.

    After work that took long it rests `rest_factor` times as long, fifteen seconds at most: then there is more to do at
    once, which costs less for each, and ingest has the processor in between.
    """

    name: str
    run: Callable[[int], object]
    rest_factor: int = 0


class Housekeeper:
    """Runs every job once per interval. A job that fails is logged and tried again; it never stops the others."""

    def __init__(
        self, jobs: Sequence[Job], *, clock: Callable[[], int], interval_seconds: float, name: str = "otelbill-jobs"
    ) -> None:
        self._jobs = tuple(jobs)
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name)
        self._rests: dict[str, int] = {}  # until when, of those that rest

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End after the jobs in progress."""
        self._stop.set()
        self._thread.join()

    def run_once(self) -> None:
        """Run every job now, on the caller's thread, those that rest too; jobs never overlap."""
        with self._turn:
            for job in self._jobs:
                self._run_job(job)

    def run_rested(self) -> None:
        """Run every job that does not rest."""
        with self._turn:
            for job in self._jobs:
                began = self._clock()
                # A clock that was set back must not make a rest longer.
                if 0 < self._rests.get(job.name, 0) - began <= _REST_NANOS_MAX:
                    continue
                self._run_job(job)
                ended = self._clock()
                self._rests[job.name] = ended + min(_REST_NANOS_MAX, job.rest_factor * max(0, ended - began))

    def _run(self) -> None:
        while not self._stop.wait(self._interval_seconds):
            self.run_rested()

    def _run_job(self, job: Job) -> None:
        try:
            job.run(self._clock())
        except (sqlite3.OperationalError, OSError) as error:
            _log.error("job %s waits: the ledger cannot be written now: %s", job.name, error)
        except Exception:  # noqa: BLE001 logged with its traceback; nothing is marked done, so the next run repeats it
            _log.exception("job %s failed and will run again", job.name)
