"""Stripe may be down, slow or killed in between: usage waits on disk, and arrives exactly once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from otelbill_collector.testing.stripe_server import Fault, FaultKind, StripeServer
from tests.otlp_requests import NANOS, encode, make_chat, now_nanos
from tests.sidecar_process import Json, Sidecar, await_value, find_free_port

_CUSTOMERS = ["acme", "globex", "initech"]
_METERS = {"input_tokens": "tokens_in", "output_tokens": "tokens_out"}
_PRICES = [
    {"unit": "input_tokens", "price": "0.0000007"},
    {"unit": "output_tokens", "price": "0.0000013"},
]
_HOUR_NANOS = 3600 * NANOS


@pytest.fixture
def stripe_port() -> int:
    return find_free_port()


@pytest.fixture
def open_stripe(tmp_path: Path, stripe_port: int) -> Iterator[Callable[[], StripeServer]]:
    """Start Stripe at its address; it remembers what it took before."""
    opened: list[StripeServer] = []

    def make() -> StripeServer:
        server = StripeServer(port=stripe_port, state=tmp_path / "stripe.log")
        for customer in _CUSTOMERS:
            server.add_customer(f"cus_{customer}")
        opened.append(server.start())
        return server

    yield make
    for server in opened:
        server.stop()


def _settings(port: int, **stripe: Json) -> dict[str, Json]:
    base = {
        "api_key": "sk_test_1234567890",
        "api_base": f"http://127.0.0.1:{port}",
        "mode": "units",
        "meters": _METERS,
        "window": "1m",
        "grace": "0s",
        "rate_per_second": 200,
    }
    return {
        "rate_card": {"prices": _PRICES},
        "customers": {name: {"stripe": f"cus_{name}"} for name in _CUSTOMERS},
        "stripe": {name: value for name, value in {**base, **stripe}.items() if value is not None},
    }


def _send(sidecar: Sidecar, batch: str, *, at: int) -> dict[str, int]:
    """Nine calls of three customers; their input tokens by Stripe customer."""
    spans, sums = [], dict.fromkeys((f"cus_{name}" for name in _CUSTOMERS), 0)
    for number in range(9):
        customer = _CUSTOMERS[number % 3]
        tokens = 1_000 + 37 * number + len(batch)
        sums[f"cus_{customer}"] += tokens
        moment = at - number * 61 * NANOS
        spans.append(make_chat(f"{batch} {number}", customer, input_tokens=tokens, output_tokens=11, at=moment))
    assert sidecar.export(encode(*spans)).status_code == 200
    return sums


def _sum_stripe(stripe: StripeServer, meter: str) -> dict[str, int]:
    sums: dict[str, int] = {}
    for row in stripe.sum_hours():
        if row.event_name == meter:
            sums[row.customer] = sums.get(row.customer, 0) + int(row.value)
    return sums


def _add(*parts: dict[str, int]) -> dict[str, int]:
    return {key: sum(part[key] for part in parts) for key in parts[0]}


def _apply(sidecar: Sidecar) -> None:
    applied = sidecar.run("stripe", "apply")
    assert applied.returncode == 0, applied.stdout + applied.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_outage_with_a_kill_in_it_loses_nothing(
    new_sidecar: Callable[..., Sidecar], open_stripe: Callable[[], StripeServer], stripe_port: int
) -> None:
    """Guarantee: with Stripe down the outbox waits, over kill -9; when it is back, everything is there exactly once."""
    sidecar = new_sidecar(_settings(stripe_port))
    stripe = open_stripe()
    _apply(sidecar)
    stripe.stop()
    sidecar.start()
    past = now_nanos() - 3 * _HOUR_NANOS
    first = _send(sidecar, "first", at=past)
    assert sidecar.run("stripe", "flush").returncode == 0
    status = sidecar.get("/v1/stripe/status").json()
    assert status["counts"]["accepted"] == 0
    assert status["counts"]["pending"] + status["counts"]["unknown"] + status["counts"]["sending"] > 0
    sidecar.restart()
    second = _send(sidecar, "second", at=past)
    sidecar.kill()
    stripe = open_stripe()
    assert stripe.list_events() == []
    sidecar.start()
    wanted = _add(first, second)
    await_value(lambda: _sum_stripe(stripe, "tokens_in") == wanted, "what waited has arrived", patience=120)
    flushed = sidecar.run("stripe", "flush", "--json")
    assert flushed.returncode == 0, flushed.stderr
    assert _sum_stripe(stripe, "tokens_in") == wanted
    assert set(_sum_stripe(stripe, "tokens_out").values()) == {2 * 3 * 11}
    reconciled = sidecar.run("reconcile")
    assert reconciled.returncode == 0, reconciled.stdout + reconciled.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lost_answers_and_kills_never_count_twice(
    new_sidecar: Callable[..., Sidecar], open_stripe: Callable[[], StripeServer], stripe_port: int
) -> None:
    """Guarantee: Stripe took the event but its answer was lost, and we were killed: the event is still counted once."""
    sidecar = new_sidecar(_settings(stripe_port))
    stripe = open_stripe()
    _apply(sidecar)
    for nth, kind in enumerate([FaultKind.RESET_AFTER_COMMIT, FaultKind.ERROR_AFTER_COMMIT, FaultKind.TRUNCATED] * 3):
        stripe.faults.add(Fault(kind, nth=nth + 1))
    past = now_nanos() - 3 * _HOUR_NANOS
    sidecar.start()
    sent = [_send(sidecar, "round 0", at=past)]
    for number in range(1, 4):
        await_value(lambda number=number: len(stripe.list_events()) >= 2 * number, "Stripe has taken something")
        sidecar.restart()
        sent.append(_send(sidecar, f"round {number}", at=past))
    wanted = _add(*sent)
    await_value(lambda: _sum_stripe(stripe, "tokens_in") == wanted, "everything has arrived", patience=150)
    sidecar.run("stripe", "flush")
    assert _sum_stripe(stripe, "tokens_in") == wanted
    assert any(fired.committed for fired in stripe.faults.fired), "no fault fired, so this run showed nothing"
    identifiers = [event["identifier"] for event in stripe.list_events()]
    assert len(identifiers) == len(set(identifiers))


def test_money_at_stripe_is_the_floor_of_the_exact_charge(
    new_sidecar: Callable[..., Sidecar], open_stripe: Callable[[], StripeServer], stripe_port: int
) -> None:
    """Guarantee: in money mode Stripe's micro-dollars are the floor of the exact total over any number of windows."""
    sidecar = new_sidecar(_settings(stripe_port, mode="money", meters=None, event_name="charges"))
    stripe = open_stripe()
    _apply(sidecar)
    sidecar.start()
    for number in range(3):
        _send(sidecar, f"money {number}", at=now_nanos() - (2 + number) * _HOUR_NANOS)
        assert sidecar.run("stripe", "flush").returncode == 0
    charges = {f"cus_{row['customer']}": Decimal(row["charge"]) for row in sidecar.usage()}
    wanted = {customer: math.floor(charge * 10**6) for customer, charge in charges.items()}
    assert all(charge * 10**6 % 1 for charge in charges.values()), "a whole number would round to itself"
    await_value(lambda: _sum_stripe(stripe, "charges") == wanted, "the charges have arrived")
    assert sidecar.run("reconcile").returncode == 0


def test_an_assignment_moves_money_at_stripe_too(
    new_sidecar: Callable[..., Sidecar], open_stripe: Callable[[], StripeServer], stripe_port: int
) -> None:
    """Guarantee: suspense is not sent; assigned, it is sent to its customer; assigned anew, it is taken back."""
    sidecar = new_sidecar(_settings(stripe_port))
    stripe = open_stripe()
    _apply(sidecar)
    sidecar.start()
    sidecar.export(encode(make_chat("whose", None, input_tokens=700, at=now_nanos() - _HOUR_NANOS)))
    sidecar.run("stripe", "flush")
    assert stripe.list_events() == []
    event = sidecar.list_json("suspense")[0]["event_id"]
    for customer, sums in (("acme", {"cus_acme": 700}), ("globex", {"cus_acme": 0, "cus_globex": 700})):
        assert sidecar.run("adjust", event, "--customer", customer, "--reason", "found out").returncode == 0
        sidecar.run("stripe", "flush")
        await_value(lambda sums=sums: _sum_stripe(stripe, "tokens_in") == sums, f"Stripe follows to {customer}")
    assert sidecar.run("reconcile").returncode == 0


def test_held_and_unpriced_usage_is_not_sent(
    new_sidecar: Callable[..., Sidecar], open_stripe: Callable[[], StripeServer], stripe_port: int
) -> None:
    """Guarantee: what has no known usage or price is not billed at Stripe, as nothing or as something."""
    settings = _settings(stripe_port, mode="money", meters=None, event_name="charges")
    del settings["rate_card"]  # so the charge is the cost, where there is one
    sidecar = new_sidecar(settings)
    stripe = open_stripe()
    _apply(sidecar)
    sidecar.start()
    at = now_nanos() - _HOUR_NANOS
    unknown = {"gen_ai__request__model": "in-house-llm", "gen_ai__response__model": "in-house-llm"}
    withheld = make_chat("withheld", "globex", input_tokens=None, output_tokens=None, at=at)
    sidecar.export(
        encode(make_chat("unpriced", "acme", at=at, **unknown), withheld, make_chat("paid", "initech", at=at))
    )
    sidecar.run("stripe", "flush")
    await_value(lambda: _sum_stripe(stripe, "charges").keys() == {"cus_initech"}, "the rated call has arrived")
    assert {event["customer"] for event in stripe.list_events()} == {"cus_initech"}
