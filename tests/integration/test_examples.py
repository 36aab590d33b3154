"""Every file of examples/ bills the right customers and steps, and exactly the tokens that the provider counted."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from otelbill_collector.cli import cli
from otelbill_collector.testing.demo.findings import TOKEN_UNITS
from otelbill_collector.testing.demo.programs import (
    Program,
    await_condition,
    build_environment,
    find_free_ports,
    start_python,
)
from otelbill_collector.testing.demo.sidecar import Ports, SidecarProcess, find_ports
from otelbill_collector.testing.provider import ProviderServer

PROGRAM_SECONDS = 60.0
SETTLE_SECONDS = 15.0
_CONFIG = """
listen: {{grpc: "127.0.0.1:{ports.grpc}", http: "127.0.0.1:{ports.http}", api: "127.0.0.1:{ports.api}"}}
rate_card:
  prices:
    - {{unit: pages_printed, price: "0.05"}}
  markup:
    - {{percent: "20"}}
"""
Calls = Counter[tuple[str | None, str | None]]


class Stage:
    """A provider and a real sidecar with an empty ledger, for one example."""

    def __init__(self, provider: ProviderServer, sidecar: SidecarProcess, folder: Path, examples: Path) -> None:
        self.provider = provider
        self.folder = folder
        self.examples = examples
        self.environment = {
            "OPENAI_BASE_URL": provider.openai_base_url,
            "OPENAI_API_KEY": "any",
            "OTELBILL_ENDPOINT": sidecar.endpoint,
        }

    def run(self, name: str) -> list[str]:
        """Run an example to its end as its text says; returns the lines it printed."""
        with self.start(name) as program:
            program.await_success(PROGRAM_SECONDS)
        return program.read_lines()

    def start(self, name: str, **given: str) -> Program:
        """An example as a program, to be used in a with block."""
        environment = {**self.environment, **given}
        return start_python([str(self.examples / name)], log=self.folder / f"{name}.log", given=environment)

    def read_usage(self, by: str) -> list[dict[str, Any]]:
        """`otelbill usage --by BY --json`."""
        options = ["usage", "--by", by, "--json", "--data-dir", str(self.folder)]
        result = CliRunner().invoke(cli, options, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    def require_calls(self, expected: Mapping[tuple[str | None, str | None], int]) -> None:
        """The ledger has exactly these model calls by (customer, step), with the tokens the provider counted."""
        await_condition(lambda: self._count_calls().total() >= sum(expected.values()), SETTLE_SECONDS)
        assert self._count_calls() == Counter(expected)
        answered = [call for call in self.provider.tally if call.status == 200]
        assert len(answered) == sum(expected.values())
        counted = {unit: sum(call.quantities.get(unit, 0) for call in answered) for unit in TOKEN_UNITS}
        rows = self.read_usage("customer,step,model")
        assert {unit: sum(row["quantities"].get(unit, 0) for row in rows) for unit in TOKEN_UNITS} == counted
        assert counted["input_tokens"] > 0
        assert counted["output_tokens"] > 0

    def _count_calls(self) -> Calls:
        calls: Calls = Counter()
        for row in self.read_usage("customer,step,model"):
            if row["model"] is not None:
                calls[row["customer"], row["step"]] += row["events"]
        return calls


@pytest.fixture
def stage(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    # The programs must find the packages whether or not the project is installed.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (repository, repository / "collector"))))
    ports: Ports = find_ports()
    folder = tmp_path / "ledger"
    folder.mkdir()
    config = tmp_path / "otelbill.yaml"
    config.write_text(_CONFIG.format(ports=ports))
    with ProviderServer() as provider, SidecarProcess(config, ports, folder) as sidecar:
        yield Stage(provider, sidecar, folder, repository / "examples")


def test_sync_example_bills_each_customer_and_own_usage(stage: Stage) -> None:
    """A decorator and a block name who pays, and a unit that is not a token is charged by the rate card."""
    assert len(stage.run("sync_app.py")) == 3
    stage.require_calls({("acme", "summarise"): 2, ("globex", "summarise"): 1})
    [pages] = [row for row in stage.read_usage("customer,project,model") if row["model"] is None]
    assert (pages["customer"], pages["quantities"], pages["charge"]) == ("globex", {"pages_printed": 2}, "0.1")
    assert {row["customer"]: row["project"] for row in stage.read_usage("customer,project")} == {
        "acme": "newsletter",
        "globex": None,
    }


def test_async_example_keeps_interleaved_customers_apart(stage: Stage) -> None:
    """Streams that run at once in one event loop are billed to their own customers, with their final usage."""
    assert len(stage.run("async_app.py")) == 3
    stage.require_calls({(customer, "chat"): 1 for customer in ("acme", "globex", "initech")})
    asked = {call.quantities["input_tokens"] for call in stage.provider.tally}
    assert {row["quantities"]["input_tokens"] for row in stage.read_usage("customer")} == asked


def test_threads_example_carries_the_customer_into_the_pool(stage: Stage) -> None:
    """Work of two customers in one shared pool is billed to the one that handed it in."""
    assert len(stage.run("threads.py")) == 4
    stage.require_calls({("acme", "translate"): 3, ("globex", "translate"): 1})


def test_fastapi_example_bills_requests_that_run_at_once(stage: Stage) -> None:
    """Worker threads and streamed bodies are usage of the request's customer, and SIGTERM at once loses none of it."""
    [port] = find_free_ports(1)
    paths = [
        (customer, f"/{path}?question=question {n} of {customer}")
        for customer in ("acme", "globex")
        for path in ("answer", "stream")
        for n in range(3)
    ]
    with (
        stage.start("fastapi_app.py", PORT=str(port)) as program,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
        ThreadPoolExecutor(6) as pool,
    ):
        program.await_ready(lambda: _answers(client), PROGRAM_SECONDS)
        answers = list(pool.map(lambda item: client.get(item[1], headers={"x-customer": item[0]}), paths))
    assert [answer.status_code for answer in answers] == [200] * len(paths), program.read_lines()
    stage.require_calls({(customer, step): 3 for customer in ("acme", "globex") for step in ("answer", "stream")})


def test_zero_code_example_needs_no_set_up(stage: Stage, tmp_path: Path, repository: Path) -> None:
    """`opentelemetry-instrument` alone meters a program; a call of nobody is kept in suspense with its tokens."""
    given = {**stage.environment, **dict.fromkeys(("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"), "none")}
    given["OTEL_LOGS_EXPORTER"] = "none"
    given["PYTHONPATH"] = os.pathsep.join([os.environ["PYTHONPATH"], str(_find_entry_points(tmp_path, repository))])
    command = [str(Path(sys.executable).parent / "opentelemetry-instrument"), sys.executable]
    command.append(str(stage.examples / "zero_code.py"))
    environment = build_environment(os.environ, given)
    with Program(command, log=stage.folder / "zero_code.log", environment=environment) as program:
        program.await_success(PROGRAM_SECONDS)
    stage.require_calls({("acme", None): 2, (None, None): 1})


def test_every_example_is_listed_and_tested(repository: Path) -> None:
    """A file in examples/ that no test runs, or that the list leaves out, could be broken without anybody noticing."""
    names = {path.name for path in (repository / "examples").glob("*.py")}
    listed = (repository / "examples" / "README.md").read_text()
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert len(names) >= 6
    assert not [name for name in names if f"[{name}]({name})" not in listed]
    assert not [name for name in names if f'"{name}"' not in tests]


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/openapi.json", headers={"x-customer": "nobody"}).status_code == 200
    except httpx.TransportError:
        return False


def _find_entry_points(tmp_path: Path, repository: Path) -> Path:
    """A folder whose metadata announces the package as an installation does; empty where it is installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    try:
        importlib.metadata.distribution("otelbill")
    except importlib.metadata.PackageNotFoundError:
        groups = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["entry-points"]
        metadata = folder / "otelbill-0.1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: otelbill\nVersion: 0.1.0\n")
        lines = [
            line for name, rows in groups.items() for line in (f"[{name}]", *(f"{k} = {v}" for k, v in rows.items()))
        ]
        (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder
