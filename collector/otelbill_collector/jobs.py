"""The periodic work beside ingest: decide what is due, fold rollups and windows, send to Stripe. Owns one thread."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_log = logging.getLogger("otelbill.jobs")


@dataclass(frozen=True, slots=True)
class Job:
    """A name for the log, and the work: given the time, it does what is due and returns."""

    name: str
    run: Callable[[int], object]


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

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End after the jobs in progress."""
        self._stop.set()
        self._thread.join()

    def run_once(self) -> None:
        """Run every job now, on the caller's thread; jobs never overlap."""
        with self._turn:
            for job in self._jobs:
                self._run_job(job)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_seconds):
            self.run_once()

    def _run_job(self, job: Job) -> None:
        try:
            job.run(self._clock())
        except (sqlite3.OperationalError, OSError) as error:
            _log.error("job %s waits: the ledger cannot be written now: %s", job.name, error)
        except Exception:  # noqa: BLE001 logged with its traceback; nothing is marked done, so the next run repeats it
            _log.exception("job %s failed and will run again", job.name)
