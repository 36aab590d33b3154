"""A trace in a real backend shows what it cost, and no prompt gets that far or onto our disk."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest

from tests.e2e.backends import FoundTrace, Jaeger, Phoenix
from tests.e2e.browser import open_browser
from tests.e2e.conftest import Deploy
from tests.e2e.deployment import Deployment
from tests.e2e.processes import wait_for
from tests.e2e.senders import (
    CANARY,
    CHARGE_OF_CALL,
    COST_OF_CALL,
    GEN_AI_SPAN,
    OPENINFERENCE_SPAN,
    ROOT_SPAN,
    send_conversation,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


def _await_spans(backend: Jaeger | Phoenix, trace_id: str) -> FoundTrace:
    def find() -> FoundTrace | None:
        found = backend.find_trace(trace_id)
        return found if found is not None and len(found.spans) == 3 else None

    return wait_for(f"{type(backend).__name__} has the three spans of {trace_id}", 60, find)


def _assert_costed(found: FoundTrace) -> None:
    for name in (GEN_AI_SPAN, OPENINFERENCE_SPAN):
        attributes = found.spans[name]
        assert attributes["otelbill.cost"] == COST_OF_CALL
        assert attributes["otelbill.charge"] == CHARGE_OF_CALL
        assert attributes["otelbill.currency"] == "USD"
        assert attributes["gen_ai.usage.cost"] == float(COST_OF_CALL)
        assert attributes["llm.cost.total"] == float(COST_OF_CALL)
        assert attributes["langfuse.observation.cost_details"] == f'{{"total":{float(COST_OF_CALL)}}}'
    assert "otelbill.cost" not in found.spans[ROOT_SPAN]


def _assert_no_content(deployment: Deployment, found: FoundTrace) -> None:
    assert CANARY not in found.text
    for folder in (deployment.sidecar.data_dir, deployment.queue_dir):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files
        assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert CANARY not in deployment.sidecar.program.read_log() + deployment.collector.read_log()


def test_jaeger_shows_the_cost(deploy: Deploy, jaeger: Jaeger) -> None:
    """Spans through Collector, otelbill and Collector again are in Jaeger once, with cost and without content."""
    deployment = deploy(backend=jaeger.otlp_endpoint, rated=True)
    found = _await_spans(jaeger, send_conversation(deployment.otlp_http, "acme"))
    _assert_costed(found)
    _assert_no_content(deployment, found)


def test_phoenix_shows_the_cost(deploy: Deploy, phoenix: Phoenix, chromium: Path, tmp_path: Path) -> None:
    """The same in Phoenix, through its API and on its page. OTELBILL_E2E_PICTURES keeps the picture of the page."""
    deployment = deploy(backend=phoenix.otlp_endpoint, rated=True)
    trace_id = send_conversation(deployment.otlp_http, "acme")
    found = _await_spans(phoenix, trace_id)
    _assert_costed(found)
    _assert_no_content(deployment, found)

    picture = tmp_path / "phoenix.png"
    text = _read_phoenix_page(phoenix.find_page(trace_id, OPENINFERENCE_SPAN), chromium, picture)
    shown = [line.strip() for line in text.splitlines() if line.strip()]
    values = dict(itertools.pairwise(shown))
    assert values["otelbill.cost"] == COST_OF_CALL
    assert values["otelbill.charge"] == CHARGE_OF_CALL
    assert values["llm.cost.total"] == COST_OF_CALL
    assert CANARY not in text
    assert picture.stat().st_size > 10_000
    if "OTELBILL_E2E_PICTURES" in os.environ:
        shutil.copy(picture, os.environ["OTELBILL_E2E_PICTURES"])


def _read_phoenix_page(url: str, chromium: Path, picture: Path) -> str:
    with open_browser(chromium, picture.parent) as page:
        page.open(url, width=1280, height=960)
        page.click("tab", "Attributes")
        wait_for("the attributes are on Phoenix' page", 30, lambda: "otelbill.price.version" in page.read_text())
        page.save_picture(picture)
        return page.read_text()


def test_plain_traces_reach_the_backend_while_otelbill_is_away(deploy: Deploy, jaeger: Jaeger) -> None:
    """With the default arrangement tracing does not depend on otelbill, and its spans carry no content either."""
    deployment = deploy(backend=jaeger.otlp_endpoint, rated=False)
    deployment.sidecar.program.stop()
    found = _await_spans(jaeger, send_conversation(deployment.otlp_http, "acme"))
    assert "otelbill.cost" not in found.spans[GEN_AI_SPAN]
    assert found.spans[GEN_AI_SPAN]["gen_ai.usage.input_tokens"] == 1000
    _assert_no_content(deployment, found)
