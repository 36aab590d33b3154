"""A running sidecar forgets by policy: what is old and settled goes beside ingest, and is told to who asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from otelbill_collector.config import Config
from tests.otlp_requests import encode, make_chat
from tests.retention_world import Desk, make_call
from tests.sidecar_process import Sidecar, await_value
from tests.spans import build_request


def test_a_sidecar_with_a_policy_removes_what_is_old_and_settled(
    new_sidecar: Callable[..., Sidecar], tmp_path: Path
) -> None:
    """Guarantee: sums stay, records go, retries of what is gone are kept as dead letters, and new spans are taken."""
    desk = Desk(tmp_path / "ledger", Config())
    desk.fill()
    desk.books.close()
    settings: dict[str, Any] = {"retention": {"evidence": "36d", "closed_only": False}}
    sidecar = new_sidecar(settings, data_dir=tmp_path / "ledger").start()
    before = sidecar.usage("customer,day")

    def find_done() -> bool:
        answer = json.loads(sidecar.run("retention", "plan", "--json").stdout)
        return bool(answer["pruned"]) and all(item["finished"] for item in answer["pruned"])

    await_value(find_done, "evidence is pruned")
    assert sidecar.usage("customer,day") == before
    assert sidecar.metrics("otelbill_ledger_free_bytes")[""] > 0
    sidecar.export(build_request([make_call("acme", "2026-01")]))
    sidecar.export(encode(make_chat("today")))
    assert sidecar.metrics("otelbill_dead_letters")[""] == 1
    refused = sidecar.get("/v1/usage?by=trace")
    assert refused.status_code == 409
    assert "was pruned on" in refused.json()["error"]
    assert "by policy 36d (otelbill collector)" in refused.json()["error"]
    done = sidecar.run("retention", "apply", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sidecar.run("retention", "shrink").returncode != 0, "a running sidecar's file is not written anew"
    assert sidecar.run("verify").returncode == 0
    assert sidecar.stop() == 0
    assert sidecar.run("retention", "shrink").returncode == 0
    sidecar.start()
    assert len(sidecar.usage("customer,day")) == len(before) + 1
    assert sidecar.run("verify").returncode == 0
