"""otelbill may be away, and the Collector may die: every span that an app was told is safe is billed, once.

OTELBILL_E2E_OUTAGE_SECONDS makes the outage longer than the default, for the minute that the promise is about.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from tests.e2e.conftest import Deploy
from tests.e2e.deployment import Deployment
from tests.e2e.processes import wait_for
from tests.e2e.senders import COST_OF_CALL, INPUT_TOKENS, build_calls, post_until_taken

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

OUTAGE_SECONDS = float(os.environ.get("OTELBILL_E2E_OUTAGE_SECONDS", "3"))
CUSTOMERS = ("acme", "globex", "initech")
CALLS_PER_REQUEST = 30
NOBODY = "http://127.0.0.1:9"  # the tracing backend is away all the time; billing does not care


def _send_until(deployment: Deployment, is_over: Callable[[int], bool]) -> int:
    """Requests one after the other until `is_over(requests)`; the number of spans taken."""
    requests = 0
    while not is_over(requests):
        post_until_taken(deployment.otlp_http, build_calls(CUSTOMERS, CALLS_PER_REQUEST))
        requests += 1
    return requests * CALLS_PER_REQUEST


def _load_when_complete(deployment: Deployment, sent: int) -> dict[str, dict[str, Any]]:  # Any: `otelbill usage --json`
    def find() -> dict[str, dict[str, Any]] | None:
        usage = deployment.sidecar.load_usage()
        return usage if sum(row["events"] for row in usage.values()) >= sent else None

    return wait_for(f"{sent} spans are in the ledger", 120, find)


def test_outage_loses_nothing_and_doubles_nothing(deploy: Deploy) -> None:
    """Spans sent before, during and after an outage of otelbill, with the Collector killed in it, are billed once."""
    deployment = deploy(backend=NOBODY, rated=False)
    sent = _send_until(deployment, lambda requests: requests == 5)
    assert deployment.sidecar.program.stop() == 0

    away_until = time.monotonic() + OUTAGE_SECONDS
    during = _send_until(deployment, lambda _: time.monotonic() > away_until)
    deployment.collector.kill()
    deployment.collector.start()
    during += _send_until(deployment, lambda requests: requests == 5)
    deployment.sidecar.program.start()
    sent += during + _send_until(deployment, lambda requests: requests == 5)

    usage = _load_when_complete(deployment, sent)
    assert {name: row["events"] for name, row in usage.items()} == dict.fromkeys(CUSTOMERS, sent // len(CUSTOMERS))
    for row in usage.values():
        assert int(row["quantities"]["input_tokens"]) == row["events"] * INPUT_TOKENS
        assert Decimal(row["cost"]) == row["events"] * Decimal(COST_OF_CALL)
    print(f"sent {sent} spans, {during} of them while otelbill was away for {OUTAGE_SECONDS:g} s; billed {sent}")
