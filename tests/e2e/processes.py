"""Programs under test as processes. Owns ports, readiness, logs and a clean end; knows no program by name."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import httpx

T = TypeVar("T")

STOP_SECONDS = 30.0
_PAUSE_SECONDS = 0.05


class NotReady(AssertionError):
    """Something that was awaited did not come; the text ends with what the program logged last."""


def find_free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on now, all different."""
    taken = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for item in taken:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in taken]
    finally:
        for item in taken:
            item.close()


def wait_for(what: str, seconds: float, find: Callable[[], T | None]) -> T:
    """The first result of `find` that is true; raises NotReady at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        found = find()
        if found:
            return found
        if time.monotonic() > deadline:
            raise NotReady(f"{what}: not within {seconds:g} s")
        time.sleep(_PAUSE_SECONDS)


def is_answering(url: str) -> bool:
    """Whether a GET is answered with 2xx."""
    try:
        return httpx.get(url, timeout=5.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


class Program:
    """One command that can be started again with the same arguments; everything it writes goes to `log`."""

    def __init__(
        self, arguments: Sequence[str | Path], log: Path, *, ready_url: str, env: Mapping[str, str] | None = None
    ):
        self._arguments = [str(argument) for argument in arguments]
        self._env = {**os.environ, **(env or {})}
        self._ready_url = ready_url
        self._process: subprocess.Popen[bytes] | None = None
        self.log = log

    def start(self, seconds: float = 60.0) -> None:
        """Start, and return when the program answers on its health page."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._env,
                cwd=self.log.parent,
            )
        try:
            wait_for(f"{self.log.stem} answers {self._ready_url}", seconds, self._is_ready)
        except NotReady as error:
            self.kill()
            raise NotReady(f"{error}\n{self.read_log()[-3000:]}") from None

    def _is_ready(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise NotReady(f"{self.log.stem} ended with {self._process.returncode}")
        return is_answering(self._ready_url)

    def stop(self) -> int:
        """Ask it to end and wait; its exit code. A program that does not end is killed, and that is an error."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9, as a lost machine would."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
            raise NotReady(f"{self.log.stem} did not end\n{self.read_log()[-3000:]}") from None

    def read_log(self) -> str:
        """All it wrote since the first start."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""
