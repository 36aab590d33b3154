"""A sidecar as its own process on a ledger of its own, asked through its API. Owns its start, also after a kill."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, urlencode

from benchmarks.processes import Watched, find_free_ports

REPOSITORY = Path(__file__).resolve().parent.parent
_OPERATION_SECONDS = 1_800
_NO_SETTINGS: Mapping[str, Any] = {}


class Sidecar:
    """A running `otelbill collector`; all ports on loopback."""

    def __init__(self, folder: Path, source: Path, settings: Mapping[str, Any]) -> None:
        self.data_dir = folder / "data"
        self.grpc_port, self.http_port, self.api_port = find_free_ports(3)
        names = {"grpc": self.grpc_port, "http": self.http_port, "api": self.api_port}
        listen = {name: f"127.0.0.1:{port}" for name, port in names.items()}
        config = folder / "otelbill.yaml"
        config.write_text(json.dumps({"listen": listen, **settings}))  # JSON is YAML
        module = ["-m", "otelbill_collector.cli", "collector"]
        self._command = [sys.executable, *module, "--config", str(config), "--data-dir", str(self.data_dir)]
        self._source = source
        self.start()

    def start(self) -> None:
        """Start it, again on its ledger if it ended, and wait until it is ready."""
        environment = {**os.environ, "PYTHONPATH": f"{self._source}:{self._source / 'collector'}"}
        self.process = Watched("the sidecar", self._command, environment, self._source)
        self.process.await_until(lambda: self._get("/readyz") is not None, "is ready", pause=0.01)

    def count_folded(self) -> int:
        """Events in the rollups."""
        return sum(int(row["events"]) for row in self.load_usage("hour"))

    def load_usage(self, by: str, **where: str) -> list[dict[str, Any]]:
        """The usage read model, grouped by these dimensions; `where` holds bounds and dimensions."""
        rows: list[dict[str, Any]] = json.loads(self._get(f"/v1/usage?{urlencode({'by': by, **where})}") or b"[]")
        return rows

    def explain(self, identifier: str) -> dict[str, Any]:
        """What is known of one identifier. Raises LookupError where nothing is."""
        answer = self._get(f"/v1/explain/{quote(identifier)}")
        if answer is None:
            raise LookupError(f"nothing is known of {identifier}")
        found: dict[str, Any] = json.loads(answer)
        return found

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
        self.process.await_idle()

    def read_cpu_seconds(self) -> float:
        """User and system time of the process, all threads."""
        return self.process.read_cpu_seconds()

    def read_memory_bytes(self) -> int:
        """Resident memory."""
        return self.process.read_memory_bytes()

    def close(self) -> None:
        """Stop it and wait for its end."""
        self.process.terminate()

    def _get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.api_port}{path}", timeout=60) as answer:
                return bytes(answer.read())
        except OSError:
            return None


@contextmanager
def run_sidecar(source: Path = REPOSITORY, settings: Mapping[str, Any] = _NO_SETTINGS) -> Iterator[Sidecar]:
    """A sidecar of the checkout in `source` on a new ledger, which is removed afterwards. `settings` join its file."""
    with TemporaryDirectory(prefix="otelbill-bench-") as folder:
        sidecar = Sidecar(Path(folder), source, settings)
        try:
            yield sidecar
        finally:
            sidecar.close()
