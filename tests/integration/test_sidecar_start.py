"""When the sidecar may not start: it says all that is wrong, each with place and remedy, and touches nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.otlp_requests import encode, make_chat
from tests.otlp_sender import Sender
from tests.sidecar_process import PATIENCE_SECONDS, Sidecar, await_value, run_command

_FLAWED = """\
lisen:
  grpc: 127.0.0.1:4327
limits:
  body_bytes: a lot
  attribute_count: 5
stripe:
  api_key: ${OTELBILL_TEST_KEY_THAT_IS_NOT_SET}
rate_card:
  prices:
    - {unit: input_tokens, price: 0.60, per: 1000000}
    - {unit: output_tokens, price: "2.40", per: 0}
    - {unit: output_tokens, price: "-1"}
    - {price: "1"}
    - {unit: input_tokens, price: "1", from: 2026-02-30}
  markup:
    - {percent: "twenty"}
"""
_FLAWS = [
    "lisen",
    "limits.body_bytes",
    "limits.attribute_count",
    "stripe.api_key",
    "rate_card.prices[0].price",
    "rate_card.prices[1].per",
    "rate_card.prices[2].price",
    "rate_card.prices[3].unit",
    "rate_card.prices[4].from",
    "rate_card.markup[0].percent",
]


def _launch_to_its_end(sidecar: Sidecar) -> tuple[int, str]:
    status = sidecar.launch().wait(PATIENCE_SECONDS)
    return status, sidecar.read_log()


@pytest.mark.parametrize("command", ["collector", "check-config"])
def test_every_flaw_of_the_file_is_told_at_once(tmp_path: Path, command: str) -> None:
    """Guarantee: unknown keys, wrong values and a malformed rate card are listed together, and no ledger is made."""
    config = tmp_path / "otelbill.yaml"
    config.write_text(_FLAWED)
    done = run_command(command, "--config", str(config), "--data-dir", str(tmp_path / "data"))
    output = done.stdout + done.stderr
    assert done.returncode not in {0, None}
    assert [flaw for flaw in _FLAWS if flaw not in output] == []
    assert "Traceback" not in output
    assert not (tmp_path / "data").exists()
    lines = output.splitlines()
    for flaw in _FLAWS:
        place = next(index for index, line in enumerate(lines) if flaw in line)
        assert str(config) in lines[place], "the file is named with each flaw"
        assert lines[place + 1].strip().startswith("->"), f"{flaw} has no remedy"


def test_overlapping_prices_are_a_flaw(tmp_path: Path) -> None:
    """Guarantee: two prices in force at once would make the bill depend on their order, so the file is refused."""
    config = tmp_path / "otelbill.yaml"
    config.write_text(
        'rate_card:\n  prices:\n    - {unit: input_tokens, price: "1"}\n'
        '    - {unit: input_tokens, price: "2", from: 2026-01-01}\n'
    )
    done = run_command("check-config", "--config", str(config))
    assert done.returncode != 0
    assert "rate_card.prices[1]" in done.stdout + done.stderr


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "\0", "a: 1\na: 2\n"])
def test_a_file_that_is_no_configuration_is_refused_without_a_traceback(tmp_path: Path, text: str) -> None:
    """Guarantee: even unreadable YAML gets one message with the file and a remedy."""
    config = tmp_path / "otelbill.yaml"
    config.write_text(text)
    done = run_command("check-config", "--config", str(config))
    assert done.returncode != 0
    assert str(config) in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """Guarantee: a mistyped --config never means the defaults."""
    done = run_command("collector", "--config", str(tmp_path / "absent.yaml"), "--data-dir", str(tmp_path / "data"))
    assert done.returncode != 0
    assert "absent.yaml" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("which", ["grpc", "http", "api"])
def test_a_port_in_use_is_named(new_sidecar: Callable[..., Sidecar], which: str) -> None:
    """Guarantee: the message names the setting or address; the process ends instead of half listening."""
    sidecar = new_sidecar()
    port = {"grpc": sidecar.grpc_port, "http": sidecar.http_port, "api": sidecar.api_port}[which]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        status, log = _launch_to_its_end(sidecar)
    assert status != 0
    assert f"127.0.0.1:{port}" in log
    assert "Traceback" not in log


def test_a_ledger_folder_that_cannot_be_written_is_named(new_sidecar: Callable[..., Sidecar], tmp_path: Path) -> None:
    """Guarantee: without a place for the ledger nothing is taken; the message names the folder."""
    (tmp_path / "file").write_text("not a folder")
    sidecar = new_sidecar(data_dir=tmp_path / "file" / "ledger")
    status, log = _launch_to_its_end(sidecar)
    assert status != 0
    assert str(tmp_path / "file") in log
    assert "Traceback" not in log


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs a folder no one can write, /proc has one")
def test_a_read_only_folder_is_named(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: a folder that is there but refuses files is found at the start, not at the first span."""
    status, log = _launch_to_its_end(new_sidecar(data_dir=Path("/proc/sys")))
    assert status != 0
    assert "/proc/sys" in log
    assert "Traceback" not in log


def test_a_file_that_is_no_ledger_is_left_as_it_is(new_sidecar: Callable[..., Sidecar], tmp_path: Path) -> None:
    """Guarantee: a damaged or foreign file is never overwritten by an empty ledger."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "ledger.sqlite").write_bytes(b"this is no database " * 500)
    status, log = _launch_to_its_end(new_sidecar(data_dir=folder))
    assert status != 0
    assert str(folder) in log
    assert "not a database" in log
    assert "Traceback" not in log
    assert (folder / "ledger.sqlite").read_bytes().startswith(b"this is no database")


def test_a_second_sidecar_on_the_same_folder_is_refused(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: two writers would bill twice; the second ends with a reason, the first goes on."""
    first = new_sidecar(name="first").start()
    second = new_sidecar(name="second", data_dir=first.data_dir)
    status, log = _launch_to_its_end(second)
    assert status != 0
    assert str(first.data_dir) in log
    assert "Traceback" not in log
    assert first.export(encode(make_chat("after the second"))).status_code == 200
    assert first.usage()[0]["events"] == 1


def test_a_killed_sidecar_leaves_no_lock_behind(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: after kill -9 the same folder opens at once, with everything acknowledged in it."""
    sidecar = new_sidecar().start()
    sidecar.export(encode(make_chat("before")))
    sidecar.restart()
    assert sidecar.usage()[0]["events"] == 1


def test_sigterm_drains_and_ends_with_zero(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: what was acknowledged before SIGTERM or during it is in the ledger; status 0, and quick."""
    sidecar = new_sidecar().start()
    bodies = [encode(*(make_chat(f"{batch}/{number}") for number in range(50))) for batch in range(200)]
    sender = Sender(sidecar.http_port).send_all(bodies, range(len(bodies)), threads=4)
    await_value(lambda: sender.count() > 20, "requests flow")
    began = time.monotonic()
    assert sidecar.stop() == 0
    seconds = time.monotonic() - began
    sender.stop()
    assert 0 < sender.count() < len(bodies), "the stop came too late to show anything"
    assert sender.refusals == []
    assert seconds < 15
    sidecar.start()
    stored = sidecar.usage()[0]["events"]
    acknowledged = len(set(sender.acknowledged)) * 50
    # A request may be stored without its answer having arrived; four were under way.
    assert acknowledged <= stored <= acknowledged + 4 * 50
    assert "Traceback" not in sidecar.read_log()


def test_sigterm_while_idle_is_quick_with_stripe_down(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: an unreachable Stripe does not hold up the end; the outbox waits on disk."""
    stripe = {"api_key": "sk_test_1234567890", "api_base": "http://127.0.0.1:9"}
    sidecar = new_sidecar({"stripe": stripe, "customers": {"acme": {"stripe": "cus_acme"}}}).start()
    sidecar.export(encode(make_chat("waits")))
    began = time.monotonic()
    assert sidecar.stop() == 0
    assert time.monotonic() - began < 15


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
def test_the_ledger_is_not_readable_by_everybody(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: who pays how much is nobody else's business on a shared machine."""
    sidecar = new_sidecar().start()
    sidecar.export(encode(make_chat("private")))
    exposed = [path.name for path in sidecar.data_dir.iterdir() if path.stat().st_mode & 0o077]
    assert sidecar.data_dir.stat().st_mode & 0o077 == 0 or exposed == []
