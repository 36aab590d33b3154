"""The real clients and instrumentations against recordings: the ledger's tokens equal the provider's own usage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sidecar_process import REPOSITORY, Json, Sidecar, await_value

pytest.importorskip("opentelemetry.instrumentation.openai")
pytest.importorskip("opentelemetry.instrumentation.anthropic")

_CLASSES = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")
# No instrumentation makes a span for images, nor for the two turns, an answer made by hand that lacks required fields.
# Compaction and advisor work is in no span attribute that stands for it.
_LEFT_OUT = {
    "image_generation",
    "responses_stateful_two_turns",
    "advisor",
    "compaction_cache",
    "compaction_cache_stream",
}
# What no instrumentation tells apart: OpenAI's cache writes arrive inside the input.
_WRITES_IN_INPUT = {"openai.chat_cache_write_gpt56", "openai.responses_cache_write_gpt56"}


def _list_names() -> list[str]:
    root = Path(os.environ.get("OTELBILL_SHARED", REPOSITORY.parent / "shared")) / "data" / "recordings"
    paths = [path for provider in ("openai", "anthropic") for path in sorted((root / provider).glob("*.json"))]
    return [f"{path.parent.name}.{path.stem}" for path in paths if path.stem not in _LEFT_OUT]


_NAMES = _list_names() or ["no recordings"]


class _Outcome:
    """What the app's process printed and what the ledger holds after it, by customer."""

    def __init__(self, calls: dict[str, list[Json]], faults: Json, usage: dict[str, Json], held: list[Json]) -> None:
        self.calls, self.faults, self.usage, self.held = calls, faults, usage, held


@pytest.fixture(scope="module")
def outcome(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Outcome]:
    """One app process calls every recording in its own name; the ledger is read when its claims are settled."""
    folder = tmp_path_factory.mktemp("recordings")
    sidecar = Sidecar(folder, {"claims": {"grace_seconds": 1}}).start()
    try:
        paths = [str(shared_data / "recordings" / name.replace(".", "/", 1)) + ".json" for name in _NAMES]
        app = [sys.executable, str(REPOSITORY / "tests/contract/recordings_app.py"), sidecar.traces_url, *paths]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        environment["PYTHONPATH"] = f"{REPOSITORY}:{REPOSITORY / 'collector'}"
        done = subprocess.run(app, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        calls = {line["customer"]: line["calls"] for line in lines if "customer" in line}
        expected = sum(call["status"] == 200 for made in calls.values() for call in made)
        await_value(lambda: sum(row["events"] for row in sidecar.usage()) >= expected, "every call is booked")
        usage = {row["customer"]: row for row in sidecar.usage()}
        yield _Outcome(calls, lines[-1]["faults"], usage, sidecar.get("/v1/held").json())
    finally:
        sidecar.close()


def _sum_stated(calls: list[Json]) -> dict[str, int]:
    return {unit: sum(call["quantities"].get(unit, 0) for call in calls if call["reported"]) for unit in _CLASSES}


@pytest.mark.parametrize("name", _NAMES)
def test_the_ledger_equals_the_usage_in_the_answers(outcome: _Outcome, name: str) -> None:
    """Guarantee: each call is billed once, with the tokens of each class that the provider's answer states."""
    calls = [call for call in outcome.calls[name] if call["status"] == 200]
    row = outcome.usage.get(name)
    if not calls:
        assert row is None or row["charge"] in {None, "0"}, "a refused call was charged"
        assert row is None or not any(row["quantities"].get(unit) for unit in _CLASSES)
        return
    assert row is not None, "no usage at all"
    assert row["events"] == len(calls), "billed more or less than once"
    booked = {unit: row["quantities"].get(unit, 0) for unit in _CLASSES}
    stated = _sum_stated(calls)
    if name in _WRITES_IN_INPUT:
        stated = {
            **stated,
            "input_tokens": stated["input_tokens"] + stated["cache_write_tokens"],
            "cache_write_tokens": 0,
        }
    assert booked == stated
    assert row["held"] == sum(not call["reported"] for call in calls)


def test_a_stream_whose_usage_was_withheld_is_held(outcome: _Outcome) -> None:
    """Guarantee: without include_usage nobody on our side knows the tokens: the calls are held, not billed as zero."""
    assert [call["reported"] for call in outcome.calls["withheld"]] == [False] * 3
    row = outcome.usage["withheld"]
    assert (row["events"], row["held"], row["charge"]) == (3, 3, None)
    assert not any(row["quantities"].get(unit) for unit in _CLASSES)
    assert sum(record["customer_id"] == "withheld" for record in outcome.held) == 3


def test_nothing_went_wrong_in_the_app(outcome: _Outcome) -> None:
    """Guarantee: metering real clients makes no fault of its own, and nobody's usage is in suspense."""
    assert outcome.faults == {}
    assert set(outcome.usage) <= set(outcome.calls)
