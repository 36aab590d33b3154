"""A sidecar as its own process: start, kill, restart, its log, its API and its command line. Owns no assertions.

The tests that use it know only what an operator knows: configuration, OTLP, HTTP and the `otelbill` command.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
# Patience, not expectation: other programs may share the machine.
PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.03
_METRIC = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")

Json = Any  # values of JSON documents, as the API and the command print them


def find_free_port() -> int:
    """A TCP port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_value(find: Callable[[], Any], what: str, *, patience: float = PATIENCE_SECONDS) -> Any:
    """Poll until `find` gives something true, and return it; fails with `what` at the deadline."""
    deadline = time.monotonic() + patience
    ticker = threading.Event()
    while True:
        value = find()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"within {patience:.0f} s: {what}; last seen: {value!r}", pytrace=True)
        ticker.wait(_POLL_SECONDS)


def run_command(
    *arguments: str, input_text: str | None = None, patience: float = PATIENCE_SECONDS * 2
) -> subprocess.CompletedProcess[str]:
    """Run `otelbill ...` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "otelbill_collector.cli", *arguments],
        env=build_environment(),
        cwd=REPOSITORY,
        input=input_text,
        capture_output=True,
        text=True,
        timeout=patience,
        check=False,
    )


class Sidecar:
    """One data folder, one configuration file and the process on them; ports stay the same over restarts."""

    def __init__(self, folder: Path, settings: Mapping[str, Json], *, data_dir: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir or folder / "data"
        self.config = folder / "otelbill.yaml"
        self.log = folder / "log"
        self.grpc_port, self.http_port, self.api_port = (find_free_port() for _ in range(3))
        listen = {
            "grpc": f"127.0.0.1:{self.grpc_port}",
            "http": f"127.0.0.1:{self.http_port}",
            "api": f"127.0.0.1:{self.api_port}",
        }
        self.token = next(iter(settings.get("tokens", [])), None)
        self.write_config({"listen": listen, **settings})
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(trust_env=False, timeout=PATIENCE_SECONDS)

    @property
    def traces_url(self) -> str:
        """Where OTLP over HTTP is taken."""
        return f"http://127.0.0.1:{self.http_port}/v1/traces"

    @property
    def api_url(self) -> str:
        """Base of the API, without a slash at the end."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def pid(self) -> int:
        """Process id of the running sidecar."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def _place(self) -> list[str]:
        return ["--config", str(self.config), "--data-dir", str(self.data_dir)]

    def write_config(self, settings: Mapping[str, Json]) -> None:
        """Replace the configuration file; in force from the next start on."""
        self.settings = dict(settings)
        self.config.write_text(yaml.safe_dump(self.settings))

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "otelbill_collector.cli", "collector", *self._place],
                env=build_environment(),
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self._process

    def start(self) -> Sidecar:
        """Start the process and wait until it says that it is ready."""
        self.launch()
        self.await_ready()
        return self

    def await_ready(self) -> None:
        """Wait for /readyz; fails with the log when the process ends instead."""

        def is_ready() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                pytest.fail(f"the sidecar ended with {self._process.returncode}:\n{self.read_log()}")
            try:
                return self._client.get(f"{self.api_url}/readyz").status_code == 200
            except httpx.TransportError:
                return False

        await_value(is_ready, "the sidecar is ready")

    def kill(self) -> None:
        """SIGKILL, as the kernel's out-of-memory killer would."""
        self._signal(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        return self._signal(signal.SIGTERM)

    def restart(self) -> Sidecar:
        """SIGKILL and a new start on the same folder."""
        self.kill()
        return self.start()

    def close(self) -> None:
        """End the process, whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        self._client.close()

    def read_log(self) -> str:
        """Everything the process wrote, over all its starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def export(self, body: bytes, *, content_type: str = "application/x-protobuf", **headers: str) -> httpx.Response:
        """POST one export request; `headers` in Python spelling (`content_encoding="gzip"`)."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token and "authorization" not in named:
            named["authorization"] = f"Bearer {self.token}"
        return self._client.post(self.traces_url, content=body, headers={"content-type": content_type, **named})

    def get(self, path: str) -> httpx.Response:
        """GET from the API."""
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        return self._client.get(f"{self.api_url}{path}", headers=headers)

    def usage(self, by: str = "customer", **where: str) -> list[Json]:
        """Groups of `otelbill usage`, asked over the API; kept to those whose keys equal `where`."""
        answer = self.get(f"/v1/usage?by={by}")
        assert answer.status_code == 200, answer.text
        return [row for row in answer.json() if all(row.get(key) == value for key, value in where.items())]

    def quantities(self, customer: str | None) -> dict[str, Json]:
        """Quantities of one customer; empty when it has none."""
        rows = [row for row in self.usage() if row["customer"] == customer]
        return dict(rows[0]["quantities"]) if rows else {}

    def metrics(self, name: str) -> dict[str, float]:
        """Samples of one metric by their labels as text (`result="accepted"`)."""
        lines = self.get("/metrics").text.splitlines()
        found = [match for match in map(_METRIC.match, lines) if match and match["name"] == name]
        return {match["labels"] or "": float(match["value"]) for match in found}

    def count_spans(self, total: int = 0) -> dict[str, int]:
        """What became of the spans since this process started: result -> count, once they add up to `total`.

        Senders are answered first and metrics are counted right after, so a test must wait for them.
        """

        def count() -> dict[str, int] | None:
            samples = self.metrics("otelbill_spans_total")
            counts = {labels.split('"')[1]: int(value) for labels, value in samples.items()}
            return counts if sum(counts.values()) >= total else None

        return dict(await_value(count, f"{total} spans are counted"))

    def run(self, *arguments: str, patience: float = PATIENCE_SECONDS * 2) -> subprocess.CompletedProcess[str]:
        """Run an `otelbill` command on this ledger and configuration."""
        return run_command(*arguments, *self._place, patience=patience)

    def list_json(self, *arguments: str) -> list[Json]:
        """Run a command with --json and return its values: one per line, or one document."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return [value for line in done.stdout.splitlines() if line for value in _flatten(json.loads(line))]

    def _signal(self, number: signal.Signals) -> int:
        assert self._process is not None, "not started"
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_SECONDS)


def _flatten(value: Json) -> list[Json]:
    return value if isinstance(value, list) else [value]


def build_environment() -> dict[str, str]:
    """The environment of a child that finds this checkout and no settings of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL", "COVERAGE"))}
    return {**kept, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'collector'}"}


@pytest.fixture
def new_sidecar(tmp_path: Path) -> Iterator[Callable[..., Sidecar]]:
    """Factory of sidecars, not started: `new_sidecar({"tokens": [...]}, name="second")`. All end with the test."""
    made: list[Sidecar] = []

    def make(settings: Mapping[str, Json] | None = None, *, name: str = "one", data_dir: Path | None = None) -> Sidecar:
        made.append(Sidecar(tmp_path / name, settings or {}, data_dir=data_dir))
        return made[-1]

    yield make
    for sidecar in made:
        sidecar.close()


@pytest.fixture(scope="module")
def shared_sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One running sidecar for a module whose tests keep apart by customer and trace."""
    sidecar = Sidecar(
        tmp_path_factory.mktemp("sidecar"), {"limits": {"body_bytes": 1 << 20}, "claims": {"grace_seconds": 1}}
    )
    sidecar.start()
    yield sidecar
    sidecar.close()
