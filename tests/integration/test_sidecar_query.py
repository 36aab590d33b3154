"""SQL beside a running sidecar: complete at any moment, while files are written, and after a stop."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.otlp_requests import encode, make_chat
from tests.sidecar_process import Json, Sidecar, await_value

_REQUESTS, _SPANS = 42, 500
_COUNT = (
    "SELECT customer_id, count(*) AS events, sum(input_tokens) AS tokens, sum(charge) AS charge FROM usage GROUP BY ALL"
)


def _ask(sidecar: Sidecar, sql: str) -> list[Json]:
    return sidecar.list_json("query", sql)


@pytest.mark.slow
def test_queries_beside_a_running_and_a_stopped_sidecar(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: each answer has all that was acknowledged, whether it is in segments, in files or in both."""
    sidecar = new_sidecar().start()
    for request in range(_REQUESTS):
        spans = (make_chat(f"{request}/{span}", "acme" if span % 3 else "globex") for span in range(_SPANS))
        assert sidecar.export(encode(*spans)).status_code == 200
        if request % 14 == 0:
            rows = _ask(sidecar, _COUNT)
            assert sum(row["events"] for row in rows) == (request + 1) * _SPANS
    folder = sidecar.data_dir / "parquet" / "records"
    await_value(
        lambda: any(folder.rglob("*.parquet")) if folder.is_dir() else None, "a burst that is over is compacted"
    )
    sidecar.export(encode(make_chat("after the files", "initech")))
    wanted = {row["customer"]: (row["events"], row["charge"]) for row in sidecar.usage()}
    assert len(wanted) == 3
    assert {row["customer_id"]: (row["events"], row["charge"]) for row in _ask(sidecar, _COUNT)} == wanted
    assert json.loads(sidecar.run("verify", "--json").stdout)["counts"]["files"] > 0
    sidecar.restart()
    assert {row["customer_id"]: (row["events"], row["charge"]) for row in _ask(sidecar, _COUNT)} == wanted
    assert sidecar.stop() == 0
    assert "derived_file" in sidecar.run("replay").stdout
    assert {row["customer_id"]: (row["events"], row["charge"]) for row in _ask(sidecar, _COUNT)} == wanted
    assert sidecar.run("verify").returncode == 0


def test_what_the_command_prints(shared_sidecar: Sidecar, tmp_path: Path) -> None:
    """Guarantee: a table, JSON or CSV; a cut answer says so; what is wrong is said without a traceback."""
    shared_sidecar.export(encode(*(make_chat(f"printed {number}", "printer") for number in range(3))))
    sql = (
        "SELECT customer_id, model, sum(charge) AS charge, max(ended_at) AS last FROM usage"
        " WHERE customer_id = 'printer' GROUP BY ALL"
    )
    (row,) = _ask(shared_sidecar, sql)
    assert isinstance(row["charge"], str)
    assert row["last"].endswith("Z")
    table = shared_sidecar.run("query", sql)
    assert all(text in table.stdout for text in ("printer", row["charge"], row["model"]))
    file = tmp_path / "question.sql"
    file.write_text(sql)
    written = shared_sidecar.run("query", f"@{file}", "--csv")
    (parsed,) = csv.DictReader(io.StringIO(written.stdout))
    assert parsed == row
    cut = shared_sidecar.run("query", "SELECT event_id FROM events", "--rows", "2", "--json")
    assert cut.returncode == 0
    assert len(cut.stdout.splitlines()) == 2
    assert "cut after 2 rows" in cut.stderr
    late = shared_sidecar.run("query", "SELECT count(*) FROM range(10000000) a, range(10000000) b", "--timeout", "1")
    assert late.returncode == 1
    assert "stopped after 1 seconds" in late.stderr
    for wrong in ("SELECT * FROM nothing", "SELEC", "DROP VIEW usage", "SELECT * FROM read_text('/etc/passwd')"):
        refused = shared_sidecar.run("query", wrong)
        assert refused.returncode == 1
        assert refused.stdout == ""
        assert "Traceback" not in refused.stderr
        assert refused.stderr.startswith("Error: ")
