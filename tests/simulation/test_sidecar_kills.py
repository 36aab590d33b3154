"""kill -9 at random instants under load, twenty times: what was acknowledged is stored, once, and every sum agrees."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import pytest

from otelbill_collector.testing.stripe_server import StripeServer
from tests.otlp_requests import NANOS, encode, make_chat, now_nanos
from tests.otlp_sender import Sender, order_with_repeats
from tests.sidecar_process import Json, Sidecar, await_value

_ROUNDS = 20
_BATCHES, _SPANS, _THREADS = 40, 25, 4
_CUSTOMERS = [f"customer{number}" for number in range(5)]
_RUNS = [f"run-{number}" for number in range(4)]
_HOUR_NANOS = 3600 * NANOS


@pytest.fixture
def stripe() -> Iterator[StripeServer]:
    with StripeServer() as server:
        for customer in _CUSTOMERS:
            server.add_customer(f"cus_{customer}")
        yield server


@pytest.fixture
def billing(new_sidecar: Callable[..., Sidecar], stripe: StripeServer) -> Sidecar:
    sidecar = new_sidecar(
        {
            "rate_card": {
                "prices": [{"unit": unit, "price": "0.0000007"} for unit in ("input_tokens", "output_tokens")]
            },
            "customers": {name: {"stripe": f"cus_{name}"} for name in _CUSTOMERS},
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
    )
    assert sidecar.run("stripe", "apply").returncode == 0
    return sidecar.start()


def _make_batches(number: int, *, before: int, chance: random.Random) -> list[bytes]:
    """The batches of a round; ids and counts depend on the seed only, times on the clock."""
    return [
        encode(
            *(
                make_chat(
                    f"{number}/{batch}/{span}",
                    chance.choice(_CUSTOMERS),
                    input_tokens=chance.randint(1, 5000),
                    output_tokens=chance.randint(1, 900),
                    at=before - chance.randrange(6 * _HOUR_NANOS),
                    otelbill__run__id=chance.choice(_RUNS),
                )
                for span in range(_SPANS)
            )
        )
        for batch in range(_BATCHES)
    ]


def _sum_rows(rows: list[Json], *keys: str) -> dict[tuple[str, ...], tuple[int, int, int]]:
    sums: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for row in rows:
        key = tuple(row[name] for name in keys)
        events, given, generated = sums.get(key, (0, 0, 0))
        counts = row["quantities"]
        sums[key] = events + row["events"], given + counts["input_tokens"], generated + counts["output_tokens"]
    return sums


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_lose_nothing_and_double_nothing(billing: Sidecar, stripe: StripeServer) -> None:
    """Guarantee: acknowledged = stored = unique; rollups equal a full recount; Stripe has the same sums."""
    chance = random.Random(20)
    before = now_nanos() - 60 * NANOS
    retries = 0
    for number in range(_ROUNDS):
        bodies = _make_batches(number, before=before, chance=chance)
        sender = Sender(billing.http_port).send_all(bodies, order_with_repeats(_BATCHES, 0.2, chance), threads=_THREADS)
        goal = chance.randrange(1, _BATCHES)
        await_value(lambda sender=sender, goal=goal: sender.count() >= goal, "requests are acknowledged")
        threading.Event().wait(chance.random() / 50)  # somewhere inside the commits that follow
        billing.restart()
        await_value(sender.is_done, "every request is acknowledged", patience=120)
        assert sender.refusals == []
        retries += sender.retries
        stored = sum(row["events"] for row in billing.usage())
        assert stored == (number + 1) * _BATCHES * _SPANS
    assert retries > 0, "no kill hit a request, so this run showed nothing"
    _check_recount(billing)
    _check_stripe(billing, stripe)


def _check_recount(billing: Sidecar) -> None:
    rollups = _sum_rows(billing.usage("customer,hour"), "customer")
    assert _sum_rows(billing.usage("customer,run"), "customer") == rollups
    assert _sum_rows(billing.usage("customer,trace"), "customer") == rollups
    assert len(billing.usage("trace")) == _ROUNDS * _BATCHES * _SPANS, "each call has a trace of its own"
    by_command = _sum_rows(billing.list_json("usage", "--by", "customer,hour"), "customer")
    assert by_command == rollups


def _check_stripe(billing: Sidecar, stripe: StripeServer) -> None:
    wanted = {}
    for (customer, hour), (_, given, generated) in _sum_rows(
        billing.usage("customer,hour"), "customer", "hour"
    ).items():
        wanted["tokens_in", f"cus_{customer}", hour] = given
        wanted["tokens_out", f"cus_{customer}", hour] = generated

    def sum_stripe() -> dict[tuple[str, str, str], int]:
        from datetime import UTC, datetime

        sums = {}
        for row in stripe.sum_hours():
            hour = datetime.fromtimestamp(row.hour, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            sums[row.event_name, row.customer, hour] = int(row.value)
        return sums

    assert billing.run("stripe", "flush").returncode == 0
    await_value(lambda: sum(sum_stripe().values()) == sum(wanted.values()), "Stripe has every token")
    assert sum_stripe() == wanted
    assert billing.run("reconcile").returncode == 0
