"""An operator's life with a ledger: verify and back up while it runs, refuse what is damaged, restore, replay."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

from tests.otlp_requests import encode, make_chat
from tests.otlp_sender import Sender
from tests.sidecar_process import PATIENCE_SECONDS, Sidecar, await_value, run_command
from tests.whole_ledger import tamper


def test_a_damaged_segment_stops_the_start_and_a_restore_ends_the_trouble(
    new_sidecar: Callable[..., Sidecar], tmp_path: Path
) -> None:
    """Guarantee: a changed body is found before a span is taken; segment and way back are named, and the way works."""
    backup = tmp_path / "backup.sqlite"
    sidecar = new_sidecar().start()
    for number in range(3):
        sidecar.export(encode(make_chat(f"before {number}")))
    assert sidecar.run("backup", str(backup)).returncode == 0
    assert sidecar.stop() == 0
    tamper(sidecar.data_dir / "ledger.sqlite", "UPDATE segment SET body = zeroblob(length(body)) WHERE segment_id = 2")
    assert sidecar.launch().wait(PATIENCE_SECONDS) != 0
    log = sidecar.read_log()
    assert "segment 2" in log
    assert "otelbill restore" in log
    assert "Traceback" not in log
    assert sidecar.run("verify").returncode == 1
    done = sidecar.run("restore", str(backup))
    assert done.returncode != 0
    assert "--replace" in done.stderr
    done = sidecar.run("restore", str(backup), "--replace")
    assert done.returncode == 0, done.stderr
    assert "before-" in done.stdout
    sidecar.start()
    assert sidecar.usage()[0]["events"] == 3
    assert sidecar.run("verify").returncode == 0


def test_verify_and_backup_beside_a_running_sidecar_under_load(
    new_sidecar: Callable[..., Sidecar], tmp_path: Path
) -> None:
    """Guarantee: both may run at any time; a backup holds what was acknowledged before it began, and is whole."""
    sidecar = new_sidecar().start()
    bodies = [encode(*(make_chat(f"{batch}/{number}") for number in range(20))) for batch in range(600)]
    sender = Sender(sidecar.http_port).send_all(bodies, range(len(bodies)), threads=2)
    await_value(lambda: sender.count() > 20, "requests flow")
    acknowledged = len(set(sender.acknowledged)) * 20
    done = sidecar.run("backup", str(tmp_path / "b.sqlite"), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = sidecar.run("verify", "--json")
    assert json.loads(report.stdout)["findings"] == []
    assert report.returncode == 0
    sender.stop()
    assert sender.refusals == []
    restored = run_command("restore", str(tmp_path / "b.sqlite"), "--data-dir", str(tmp_path / "restored"))
    assert restored.returncode == 0, restored.stderr
    usage = run_command("usage", "--by", "customer", "--data-dir", str(tmp_path / "restored"), "--json")
    events = sum(json.loads(line)["events"] for line in usage.stdout.splitlines())
    assert acknowledged <= events <= sum(row["events"] for row in sidecar.usage())
    assert events % 20 == 0


def test_replay_needs_a_stopped_sidecar_and_repairs_rollups(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: the tables a running sidecar uses are not exchanged under it; afterwards usage is what it was."""
    sidecar = new_sidecar().start()
    sidecar.export(encode(make_chat("one")))
    usage = sidecar.usage()
    refused = sidecar.run("replay")
    assert refused.returncode != 0
    assert "stop" in refused.stderr
    sidecar.stop()
    assert "equal" in sidecar.run("replay").stdout
    tamper(sidecar.data_dir / "ledger.sqlite", "UPDATE rollup SET events = 99")
    assert "otelbill replay" in sidecar.run("verify").stdout
    assert "corrected" in sidecar.run("replay").stdout
    assert sidecar.run("verify").returncode == 0
    sidecar.start()
    assert sidecar.usage() == usage


def test_a_ledger_page_that_cannot_be_read_stops_the_start(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: what SQLite itself cannot read ends in a message with the remedy, not in a traceback."""
    sidecar = new_sidecar().start()
    sidecar.export(encode(*(make_chat(f"{number}") for number in range(50))))
    sidecar.stop()
    ledger = sidecar.data_dir / "ledger.sqlite"
    connection = sqlite3.connect(ledger)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'segment'").fetchone()
    connection.close()
    with ledger.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    assert sidecar.launch().wait(PATIENCE_SECONDS) != 0
    log = sidecar.read_log()
    assert "malformed" in log
    assert "restore" in log
    assert "Traceback" not in log
