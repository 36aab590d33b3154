"""kill -9 at random instants under load, also during start-up and on a full disk: acknowledged = stored = unique.

OTELBILL_KILLS sets how many kills (50), OTELBILL_SEED which random instants and requests.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from otelbill_collector.testing.stripe_server import StripeServer
from tests.otlp_sender import Sender
from tests.sidecar_process import Sidecar, await_value
from tests.simulation.bursts import BATCHES, CUSTOMERS, Auditor, start_sending, stop_sending
from tests.simulation.disks import Disk, LimitedFiles, MountedDisk

KILLS = int(os.environ.get("OTELBILL_KILLS", "50"))
SEED = int(os.environ.get("OTELBILL_SEED", "20"))
DISK_KILLS = max(6, KILLS // 8)
_START_SECONDS = 1.0  # about what a start takes: kills during start-up fall within
_PRICES = {"prices": [{"unit": unit, "price": "0.0000007"} for unit in ("input_tokens", "output_tokens")]}


@pytest.fixture
def stripe() -> Iterator[StripeServer]:
    with StripeServer() as server:
        for customer in CUSTOMERS:
            server.add_customer(f"cus_{customer}")
        yield server


@pytest.fixture
def billing(new_sidecar: Callable[..., Sidecar], stripe: StripeServer) -> Sidecar:
    settings = {
        "rate_card": _PRICES,
        "customers": {name: {"stripe": f"cus_{name}"} for name in CUSTOMERS},
        "stripe": {
            "api_key": "sk_test_1234567890",
            "api_base": stripe.base_url,
            "mode": "units",
            "meters": {"input_tokens": "tokens_in", "output_tokens": "tokens_out"},
            "window": "15m",
            "grace": "0s",
            "rate_per_second": 500,
        },
    }
    sidecar = new_sidecar(settings)
    assert sidecar.run("stripe", "apply").returncode == 0
    return sidecar.start()


@pytest.mark.slow
@pytest.mark.timeout(120 + 20 * KILLS)
def test_kills_at_random_instants_lose_nothing_and_double_nothing(billing: Sidecar, stripe: StripeServer) -> None:
    """Guarantee: whatever the instant, acknowledged = stored = unique; rollups, recount and Stripe agree."""
    chance = random.Random(SEED)
    auditor = Auditor(chance, bursts_max=KILLS)
    kills = number = retries = 0
    while kills < KILLS:
        burst = auditor.make_burst(number)
        sender = start_sending(billing, burst)
        _await_instant(sender, chance)
        billing.kill()
        stop_sending(sender, burst)
        kills += 1 + _kill_while_it_starts(billing, chance)
        billing.start()
        auditor.check_survivors(billing, burst)
        rest = start_sending(billing, burst)
        await_value(rest.is_done, "every request is acknowledged", patience=120)
        stop_sending(rest, burst)
        auditor.check_whole(billing, burst)
        retries += sender.retries
        number += 1
    assert retries > 0, "no kill hit a request, so this run showed nothing"
    auditor.check_sums(billing)
    _check_stripe(billing, stripe, auditor)
    billing.stop()
    verified = billing.run("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def _await_instant(sender: Sender, chance: random.Random) -> None:
    """Somewhere in the burst: after a random number of acknowledgements, and a random while more."""
    goal, tick = chance.randrange(BATCHES), threading.Event()
    while sender.count() < goal and not sender.is_done():
        tick.wait(0.0005)
    tick.wait(chance.random() / 40)


def _kill_while_it_starts(sidecar: Sidecar, chance: random.Random) -> int:
    """Every sixth time: start and kill before it is ready, or just as it is. Returns the number of kills."""
    if chance.random() > 1 / 6:
        return 0
    sidecar.launch()
    threading.Event().wait(chance.random() * _START_SECONDS)
    sidecar.kill()
    return 1


def _check_stripe(billing: Sidecar, stripe: StripeServer, auditor: Auditor) -> None:
    wanted = {}
    for (customer, hour), (_, given, generated) in auditor.hours.items():
        start = f"{datetime.fromtimestamp(hour * 3600, UTC):%Y-%m-%dT%H:%M:%SZ}"
        wanted["tokens_in", f"cus_{customer}", start] = given
        wanted["tokens_out", f"cus_{customer}", start] = generated

    def sum_stripe() -> dict[tuple[str, str, str], int]:
        rows = stripe.sum_hours()
        starts = [f"{datetime.fromtimestamp(row.hour, UTC):%Y-%m-%dT%H:%M:%SZ}" for row in rows]
        return {(row.event_name, row.customer, start): int(row.value) for row, start in zip(rows, starts, strict=True)}

    assert billing.run("stripe", "flush").returncode == 0
    await_value(lambda: sum(sum_stripe().values()) == sum(wanted.values()), "Stripe has every token")
    assert sum_stripe() == wanted
    assert billing.run("reconcile").returncode == 0


@pytest.fixture(params=["file system", "file size"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "file size":
        yield LimitedFiles()
        return
    mounted = MountedDisk(tmp_path / "disk", mebibytes=24 + 2 * DISK_KILLS)
    yield mounted
    mounted.unmount()


@pytest.mark.slow
@pytest.mark.timeout(120 + 20 * DISK_KILLS)
def test_a_disk_that_fills_and_empties_under_kills_loses_nothing(
    new_sidecar: Callable[..., Sidecar], disk: Disk, tmp_path: Path
) -> None:
    """Guarantee: refused while full, never half stored; killed when full or not, all that was acknowledged is there."""
    chance = random.Random(SEED)
    auditor = Auditor(chance, bursts_max=DISK_KILLS)
    folder = tmp_path / "disk"
    sidecar = new_sidecar({"rate_card": _PRICES}, data_dir=folder / "ledger" if folder.exists() else None).start()
    refused = 0
    for number in range(DISK_KILLS):
        burst = auditor.make_burst(number)
        sender = start_sending(sidecar, burst)
        _await_instant(sender, chance)
        disk.fill(sidecar, leave=chance.randrange(60_000))
        before = sender.retries
        _await_refusal(sender)
        refused += sender.retries - before
        if chance.random() < 0.5:
            disk.empty(sidecar)
            _await_instant(sender, chance)
        sidecar.kill()
        stop_sending(sender, burst)
        _empty_for_start(disk, sidecar)
        sidecar.start()
        auditor.check_survivors(sidecar, burst)
        rest = start_sending(sidecar, burst)
        await_value(rest.is_done, "every request is acknowledged", patience=120)
        stop_sending(rest, burst)
        auditor.check_whole(sidecar, burst)
    assert refused > 0, "the disk was never full, so this run showed nothing"
    auditor.check_sums(sidecar)
    sidecar.stop()
    verified = sidecar.run("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def _await_refusal(sender: Sender) -> None:
    before = sender.retries
    await_value(lambda: sender.retries > before or sender.is_done(), "it is full, or all was sent before it was")


def _empty_for_start(disk: Disk, sidecar: Sidecar) -> None:
    """A limit ends with its process; a file system stays full."""
    if isinstance(disk, MountedDisk):
        disk.empty(sidecar)
