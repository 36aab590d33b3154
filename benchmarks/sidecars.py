"""A sidecar as its own process on a fresh ledger, with what the kernel says of its CPU time and memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
_PATIENCE_SECONDS = 120
_OPERATION_SECONDS = 1_800
_NO_SETTINGS: Mapping[str, Any] = {}
_TICKS = os.sysconf("SC_CLK_TCK")


class Sidecar:
    """A running `otelbill collector`; all ports on loopback."""

    def __init__(self, folder: Path, source: Path, settings: Mapping[str, Any]) -> None:
        self.grpc_port, self.http_port, self.api_port = _find_free_ports(3)
        names = {"grpc": self.grpc_port, "http": self.http_port, "api": self.api_port}
        listen = {name: f"127.0.0.1:{port}" for name, port in names.items()}
        config = folder / "otelbill.yaml"
        config.write_text(json.dumps({"listen": listen, **settings}))  # JSON is YAML
        command = ["otelbill_collector.cli", "collector", "--config", str(config), "--data-dir", str(folder / "data")]
        environment = {**os.environ, "PYTHONPATH": f"{source}:{source / 'collector'}"}
        self._process = subprocess.Popen([sys.executable, "-m", *command], env=environment, cwd=source)
        self._await(lambda: self._get("/readyz") is not None, "is ready")

    def count_folded(self) -> int:
        """Events in the rollups."""
        return sum(int(row["events"]) for row in self.load_usage("hour"))

    def load_usage(self, by: str) -> list[dict[str, Any]]:
        """The usage read model, grouped by these dimensions."""
        rows: list[dict[str, Any]] = json.loads(self._get(f"/v1/usage?by={by}") or b"[]")
        return rows

    def operate(self, name: str, **arguments: object) -> dict[str, Any]:
        """Run an operator's command; raises OSError where it is refused."""
        url = f"http://127.0.0.1:{self.api_port}/v1/operations/{name}"
        request = urllib.request.Request(url, json.dumps(arguments).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=_OPERATION_SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def count_accepted(self) -> int:
        """Spans that were accepted, by the sidecar's own metric."""
        for line in (self._get("/metrics") or b"").decode().splitlines():
            if line.startswith('otelbill_spans_total{result="accepted"}'):
                return int(float(line.split()[1]))
        return 0

    def await_idle(self) -> None:
        """Wait until the work behind the last answer (rollups) is done: a second without CPU time."""
        previous = -1.0

        def is_idle() -> bool:
            nonlocal previous
            before, previous = previous, self.read_cpu_seconds()
            return previous - before < 0.03

        self._await(is_idle, "is idle", pause=1.0)

    def read_cpu_seconds(self) -> float:
        """User and system time of the process, all threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def read_memory_bytes(self) -> int:
        """Resident memory."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """Stop it and wait for its end."""
        self._process.terminate()
        self._process.wait(_PATIENCE_SECONDS)

    def _get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.api_port}{path}", timeout=60) as answer:
                return bytes(answer.read())
        except OSError:
            return None

    def _await(self, find: Callable[[], bool], what: str, *, pause: float = 0.05) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not find():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"the sidecar never {what}")
            time.sleep(pause)


@contextmanager
def run_sidecar(source: Path = REPOSITORY, settings: Mapping[str, Any] = _NO_SETTINGS) -> Iterator[Sidecar]:
    """A sidecar of the checkout in `source` on a new ledger, which is removed afterwards. `settings` join its file."""
    with TemporaryDirectory(prefix="otelbill-bench-") as folder:
        sidecar = Sidecar(Path(folder), source, settings)
        try:
            yield sidecar
        finally:
            sidecar.close()


def _find_free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
