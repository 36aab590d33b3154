"""28,185 real requests through the whole sidecar, with repeats and a kill: books and Stripe equal the CSV files."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from otelbill_collector.testing.stripe_server import StripeServer
from tests.otlp_requests import NANOS, encode, make_chat, now_nanos
from tests.otlp_sender import Sender, order_with_repeats
from tests.sidecar_process import Sidecar, await_value

_HOUR_NANOS = 3600 * NANOS
_DAY_NANOS = 24 * _HOUR_NANOS
_CUSTOMERS = [f"customer{number}" for number in range(7)]
_SPANS_PER_REQUEST = 150
_METERS = {"input_tokens": "tokens_in", "output_tokens": "tokens_out"}
_INPUT_PRICE, _OUTPUT_PRICE = Decimal("0.60") / 10**6, Decimal("2.40") / 10**6


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    customer: str
    at: int
    input_tokens: int
    output_tokens: int


Sums = dict[tuple[str, int], tuple[int, int, int]]


def _read_lines(folder: Path) -> list[_Line]:
    """Both files, moved by whole days so that the last request lies before now; customers by line number."""
    lines = []
    for kind in ("code", "conv"):
        with (folder / f"{kind}.csv").open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                customer = _CUSTOMERS[number % len(_CUSTOMERS)]
                counts = int(row["ContextTokens"]), int(row["GeneratedTokens"])
                lines.append(_Line(f"{kind}-{number}", customer, _read_nanos(row["TIMESTAMP"]), *counts))
    days = (now_nanos() - 60 * NANOS - max(line.at for line in lines)) // _DAY_NANOS
    return [
        _Line(line.name, line.customer, line.at + days * _DAY_NANOS, line.input_tokens, line.output_tokens)
        for line in lines
    ]


def _read_nanos(text: str) -> int:
    whole, _, fraction = text.partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * NANOS + int(fraction.ljust(9, "0"))


def _sum_lines(lines: list[_Line]) -> Sums:
    sums: Sums = defaultdict(lambda: (0, 0, 0))
    for line in lines:
        key = line.customer, line.at // _HOUR_NANOS * 3600
        events, given, generated = sums[key]
        sums[key] = events + 1, given + line.input_tokens, generated + line.output_tokens
    return dict(sums)


def _sum_ledger(sidecar: Sidecar) -> Sums:
    sums = {}
    for row in sidecar.usage("customer,hour"):
        hour = int(datetime.fromisoformat(row["hour"]).timestamp())
        counts = row["quantities"]
        sums[row["customer"], hour] = row["events"], counts["input_tokens"], counts["output_tokens"]
    return sums


def _sum_stripe(stripe: StripeServer) -> dict[tuple[str, str, int], int]:
    return {(row.event_name, row.customer, row.hour): int(row.value) for row in stripe.sum_hours()}


@pytest.fixture
def stripe() -> Iterator[StripeServer]:
    with StripeServer() as server:
        for customer in _CUSTOMERS:
            server.add_customer(f"cus_{customer}")
        yield server


@pytest.fixture
def billing(new_sidecar: Callable[..., Sidecar], stripe: StripeServer) -> Sidecar:
    prices = [
        {"unit": "input_tokens", "price": "0.60", "per": 1_000_000},
        {"unit": "output_tokens", "price": "2.40", "per": 1_000_000},
    ]
    sidecar = new_sidecar(
        {
            "rate_card": {"prices": prices},
            "customers": {name: {"stripe": f"cus_{name}"} for name in _CUSTOMERS},
            "stripe": {
                "api_key": "sk_test_1234567890",
                "api_base": stripe.base_url,
                "mode": "units",
                "meters": _METERS,
                "window": "15m",
                "rate_per_second": 500,
            },
        }
    )
    applied = sidecar.run("stripe", "apply")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    return sidecar.start()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_sums_of_the_csv_files_survive_repeats_and_a_kill(
    billing: Sidecar, stripe: StripeServer, shared_data: Path
) -> None:
    """Guarantee: each request is billed once, in its hour, to its customer, here and at Stripe, to the token."""
    lines = _read_lines(shared_data / "azure_llm_2023")
    assert len(lines) == 28_185
    spans = [
        make_chat(
            line.name, line.customer, input_tokens=line.input_tokens, output_tokens=line.output_tokens, at=line.at
        )
        for line in lines
    ]
    chance = random.Random(2023)
    chance.shuffle(spans)
    bodies = [encode(*spans[start : start + _SPANS_PER_REQUEST]) for start in range(0, len(spans), _SPANS_PER_REQUEST)]
    order = order_with_repeats(len(bodies), 0.05, chance)

    sender = Sender(billing.http_port).send_all(bodies, order, threads=4)
    await_value(lambda: sender.count() > len(order) // 2, "half of the requests are acknowledged")
    billing.restart()
    await_value(sender.is_done, "every request is acknowledged", patience=120)

    assert sender.refusals == []
    assert sender.count() == len(order) > len(bodies)
    assert sender.retries > 0, "the kill hit no request, so this run showed nothing"
    expected = _sum_lines(lines)
    assert _sum_ledger(billing) == expected
    _check_charges(billing, expected)
    _check_stripe(billing, stripe, expected)


def _check_charges(billing: Sidecar, expected: Sums) -> None:
    for row in billing.usage("customer,hour"):
        hour = int(datetime.fromisoformat(row["hour"]).timestamp())
        _, given, generated = expected[row["customer"], hour]
        assert Decimal(row["charge"]) == given * _INPUT_PRICE + generated * _OUTPUT_PRICE


def _check_stripe(billing: Sidecar, stripe: StripeServer, expected: Sums) -> None:
    flushed = billing.run("stripe", "flush", "--json")
    assert flushed.returncode == 0, flushed.stdout + flushed.stderr
    wanted = {}
    for (customer, hour), (_, given, generated) in expected.items():
        wanted["tokens_in", f"cus_{customer}", hour] = given
        wanted["tokens_out", f"cus_{customer}", hour] = generated
    await_value(lambda: sum(_sum_stripe(stripe).values()) >= sum(wanted.values()), "Stripe has every token")
    assert _sum_stripe(stripe) == wanted
    identifiers = [event["identifier"] for event in stripe.list_events()]
    assert len(identifiers) == len(set(identifiers))
    reconciled = billing.run("reconcile", "--json")
    assert reconciled.returncode == 0, reconciled.stdout + reconciled.stderr
