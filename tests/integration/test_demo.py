"""`otelbill demo` and `make demo`: what a first-time user watches is true, ends by itself and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from otelbill_collector.cli import cli
from otelbill_collector.testing.demo import play as demo_play
from otelbill_collector.testing.demo.play import play
from otelbill_collector.testing.demo.programs import ProgramFailed, await_condition, start_python

DEMO_SECONDS_MAX = 60.0  # what README promises, with room for a busy machine
AGENT = "research_agent.py"


@pytest.fixture(autouse=True)
def packages(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Child programs find the packages whether or not the project is installed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (repository, repository / "collector"))))


def run_otelbill(*arguments: str) -> str:
    """Standard output of a command in this process; it must succeed."""
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def list_open_ports(folder: Path) -> list[int]:
    """Ports of the run that somebody still listens on, Stripe's included."""
    config = yaml.safe_load((folder / "otelbill.yaml").read_text())
    addresses = [*config["listen"].values(), config["stripe"]["api_base"]]
    ports = [int(address.rpartition(":")[2]) for address in addresses]
    return [port for port in ports if not _refuses(port)]


def test_demo_shows_that_provider_ledger_and_stripe_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a minute, whatever the user's own telemetry settings are; its last table compares ledger and Stripe."""
    hostile = {"OTEL_SDK_DISABLED": "true", "OTELBILL_ENABLED": "false", "OTELBILL_DATA_DIR": "/nonexistent"}
    for name, value in {**hostile, "HTTP_PROXY": "http://127.0.0.1:9", "OPENAI_API_KEY": "sk-of-the-user"}.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "a ledger"
    started = time.monotonic()
    arguments = ["-m", "otelbill_collector.cli", "demo", "--data-dir", str(folder)]
    with start_python(arguments, log=tmp_path / "demo.log", given=hostile) as program:
        program.await_success(DEMO_SECONDS_MAX)
    assert time.monotonic() - started < DEMO_SECONDS_MAX
    text = (tmp_path / "demo.log").read_text()
    assert str(folder) in text
    assert text.index("provider and ledger are equal") < text.index("ledger and Stripe are equal")
    assert text.index("Charges: the ledger and Stripe") > max(text.index(f"\n{name} ") for name in ("What", "Meter"))
    for customer in ("acme", "globex", "initech", "umbrella"):
        assert re.search(rf"^{customer} +cus_\w+ .* equal *$", text, re.MULTILINE)
    assert list_open_ports(folder) == []


@pytest.fixture(scope="module")
def finished(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One whole run: its folder and its summary."""
    folder = tmp_path_factory.mktemp("demo") / "ledger"
    log = folder.parent / "demo.log"
    path = os.pathsep.join(map(str, (repository, repository / "collector")))
    script = "import sys; sys.stderr = open(sys.argv.pop(), 'w'); from otelbill_collector.cli import main; main()"
    arguments = ["-c", script, "demo", "--json", "--data-dir", str(folder), str(folder.parent / "progress")]
    with start_python(arguments, log=log, given={"PYTHONPATH": path}) as program:
        program.await_success(DEMO_SECONDS_MAX)
    return folder, json.loads(log.read_text())


def test_summary_agrees_with_the_ledger_that_is_left(finished: tuple[Path, dict[str, Any]]) -> None:
    """Sums read afterwards from the ledger in the named folder are those that the demo printed."""
    folder, summary = finished
    assert summary["data_dir"] == str(folder)
    assert all(summary["checks"].values())
    lines = run_otelbill("usage", "--by", "customer", "--json", "--data-dir", str(folder)).splitlines()
    charges = {row["customer"]: Decimal(row["charge"]) for row in map(json.loads, lines)}
    assert charges == {item["customer"]: Decimal(item["charge"]) for item in summary["customers"]}
    assert len(charges) == 4
    assert min(charges.values()) > 0


def test_summary_agrees_with_what_stripe_took(finished: tuple[Path, dict[str, Any]]) -> None:
    """The local Stripe's own log holds each meter event once, and their values are the charges in whole millionths."""
    folder, summary = finished
    rows = [row for line in (folder / "stripe.jsonl").read_text().splitlines() for row in json.loads(line)]
    taken = {str(row["identifier"]): row for _, _, row in rows if isinstance(row, dict) and "identifier" in row}
    sent = {event["identifier"]: event["value"] for event in summary["stripe_events"]}
    assert {name: int(Decimal(row["value"])) for name, row in taken.items()} == sent
    charges = {item["customer"]: Decimal(item["charge"]) * 1_000_000 for item in summary["customers"]}
    for lane in summary["stripe"]:
        values = [event["value"] for event in summary["stripe_events"] if event["customer"] == lane["customer"]]
        assert sum(values) == int(charges[lane["customer"]])


def test_demo_has_every_kind_of_usage(finished: tuple[Path, dict[str, Any]]) -> None:
    """Cached and reasoning tokens, own units, a retried, a failed and a held call: what is not billed is named."""
    _, summary = finished
    for item in summary["customers"]:
        assert item["other"].keys() == {"vector_queries"}
        assert item["tokens"].keys() >= {"input_tokens", "cache_read_tokens", "output_tokens", "reasoning_tokens"}
        assert Decimal(item["margin"]) == Decimal(item["charge"]) - Decimal(item["cost"]) > 0
    assert {item["what"]: (item["count"], item["held"]) for item in summary["not_billed"]} == {
        "attempts refused by the provider (429)": (6, False),
        "calls that failed": (1, False),
        "steps of the agent": (56, False),
        "streams without include_usage": (1, True),
    }


def test_a_stripe_identifier_leads_back_to_the_records(finished: tuple[Path, dict[str, Any]]) -> None:
    """The command that the demo proposes works: charges of the explained records add up to the event and its carry."""
    folder, summary = finished
    event = summary["stripe_events"][0]
    found = json.loads(run_otelbill("explain", event["identifier"], "--json", "--data-dir", str(folder)))
    total = sum(Decimal(record["charge"] or 0) for record in found["records"]) * 1_000_000
    assert {record["customer_id"] for record in found["records"]} == {event["customer"]}
    assert abs(total - event["value"]) < 1  # a carry goes into the window or comes out of it


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """A script's background programs ignore Ctrl-C, and so do those they start; the demo must not inherit that here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_interrupt_stops_everything(tmp_path: Path) -> None:
    """Ctrl-C in the middle ends with status 130, one line, and no process that still listens."""
    folder = tmp_path / "ledger"
    arguments = ["-m", "otelbill_collector.cli", "demo", "--data-dir", str(folder)]
    with start_python(arguments, log=tmp_path / "demo.log", given={}) as program:
        program.await_ready(lambda: any("Stripe objects" in line for line in program.read_lines()), DEMO_SECONDS_MAX)
        assert list_open_ports(folder) != []
        program.send_signal(signal.SIGINT)
        assert await_condition(lambda: program.exit_status is not None, 30)
    assert program.exit_status == 130
    assert any(line.startswith("interrupted") for line in program.read_lines()[-2:])
    assert "Traceback" not in (tmp_path / "demo.log").read_text()
    assert list_open_ports(folder) == []


def test_usage_that_no_provider_answered_fails_the_checks(tmp_path: Path) -> None:
    """The comparison can fail: a span of a call that never happened makes the ledger differ from the provider."""
    agent = tmp_path / "agent.py"
    agent.write_text(
        "import openai, otelbill\n"
        "otelbill.configure()\n"
        "from opentelemetry import trace\n"
        "names = {'gen_ai.provider.name': 'openai', 'gen_ai.operation.name': 'chat',\n"
        "         'gen_ai.request.model': 'gpt-4o', 'gen_ai.response.model': 'gpt-4o-2024-08-06'}\n"
        "usage = {'gen_ai.usage.input_tokens': 7, 'gen_ai.usage.output_tokens': 5}\n"
        "with otelbill.customer('acme', run='r1'):\n"
        "    openai.OpenAI().chat.completions.create(model='gpt-4o', messages=[{'role': 'user', 'content': 'hi'}])\n"
        "    trace.get_tracer('opentelemetry.instrumentation.openai').start_span(\n"
        "        'chat gpt-4o', kind=trace.SpanKind.CLIENT, attributes={**names, **usage}).end()\n"
    )
    folder = tmp_path / "ledger"
    folder.mkdir()
    findings = play(folder, agent, _Silent())
    assert findings.checks == {"provider_and_ledger_equal": False, "ledger_and_stripe_equal": True}
    [books] = findings.models
    assert (books.provider_calls, books.ledger_calls) == (1, 2)


def test_an_agent_that_fails_is_quoted(tmp_path: Path) -> None:
    """The error names the log and shows its end, and nothing is left running."""
    agent = tmp_path / "agent.py"
    agent.write_text("raise SystemExit('no module named luck')")
    folder = tmp_path / "ledger"
    folder.mkdir()
    with pytest.raises(ProgramFailed, match=r"agent\.log:\n  \| no module named luck"):
        play(folder, agent, _Silent())
    assert list_open_ports(folder) == []


def test_demo_without_a_checkout_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package has no examples/: one clear sentence, and no folder is made."""
    monkeypatch.setattr(demo_play, "_CHECKOUT", tmp_path)
    folder = tmp_path / "ledger"
    result = CliRunner().invoke(cli, ["demo", "--data-dir", str(folder)])
    assert result.exit_code == 1
    assert "clone the repository" in result.output
    assert not folder.exists()


def test_demo_refuses_a_folder_with_something_in_it(tmp_path: Path) -> None:
    """Another ledger is never written over."""
    (tmp_path / "ledger.sqlite").write_text("precious")
    result = CliRunner().invoke(cli, ["demo", "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not empty" in result.output
    assert (tmp_path / "ledger.sqlite").read_text() == "precious"


def test_make_demo_runs_this_command(repository: Path) -> None:
    """`make demo` is `otelbill demo`, with nothing that only the Makefile knows."""
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (repository / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert [line.strip() for line in recipe[1].splitlines()] == ["@$(BIN)/otelbill demo"]


class _Silent:
    """A reporter for tests that look at the findings only."""

    @contextmanager
    def open_step(self, title: str) -> Iterator[_Silent]:
        yield self

    def show(self, detail: str, *, done: int = 0, total: int = 0) -> None:
        """Nothing."""


def _refuses(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        return client.connect_ex(("127.0.0.1", port)) != 0
