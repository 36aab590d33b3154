"""A process under load as the kernel sees it: CPU time, memory, when it has nothing left to do. Asks it nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PATIENCE_SECONDS = 600.0
_KILL_SECONDS = 60.0
_IDLE_SHARE = 0.05  # periodic jobs that find nothing to do are not work
_CPUCLOCK_SCHED = 2  # linux/posix-timers.h: user and system time of a process, by its scheduler, in nanoseconds


class Watched:
    """A running process."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
        self.name = name
        self._process = subprocess.Popen(command, env=dict(environment), cwd=cwd, stdout=subprocess.DEVNULL)
        self._clock = ~self._process.pid << 3 | _CPUCLOCK_SCHED

    def read_cpu_seconds(self) -> float:
        """User and system time, all threads, also those that ended."""
        return time.clock_gettime(self._clock)

    def read_memory_bytes(self) -> int:
        """Resident memory."""
        return self._read_status("VmRSS")

    def read_peak_bytes(self) -> int:
        """The most that was resident at any time."""
        return self._read_status("VmHWM")

    def _read_status(self, name: str) -> int:
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"the kernel does not tell {name}")

    def await_idle(self) -> None:
        """Wait until the work behind the last answer is done: a second nearly without CPU time."""
        previous = -1.0

        def is_idle() -> bool:
            nonlocal previous
            before, previous = previous, self.read_cpu_seconds()
            return previous - before < _IDLE_SHARE

        self.await_until(is_idle, "is idle", pause=1.0)

    def await_port(self, port: int) -> None:
        """Wait until somebody listens."""

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        self.await_until(listens, f"listens on {port}")

    def await_until(self, find: Callable[[], bool], what: str, *, pause: float = 0.05) -> None:
        """Look again and again. Raises RuntimeError when it takes too long or the process has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not find():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"{self.name} never {what}")
            time.sleep(pause)

    def terminate(self) -> None:
        """SIGTERM, and wait for the end."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_SECONDS)
        finally:
            self._process.kill()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(_KILL_SECONDS)


def find_free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
