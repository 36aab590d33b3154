"""Credits as an operator sees them: commands on a running or stopped sidecar, kills in between, books that balance."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal

import pytest

from otelbill_collector.domain.grants import SLICE_NANOS
from otelbill_collector.domain.instants import DAY_NANOS, format_instant
from tests.otlp_requests import encode, make_chat, now_nanos
from tests.sidecar_process import Json, Sidecar, await_value

_PRICES = {  # 100 input and 20 output tokens are $0.14
    "rate_card": {
        "prices": [
            {"unit": "input_tokens", "price": "1", "per": 1000},
            {"unit": "output_tokens", "price": "2", "per": 1000},
        ]
    }
}


def _sum_accounts(rows: list[Json]) -> dict[str, Decimal]:
    """Balances by the first word of the account, those that are even left out."""
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for row in rows:
        sums[row["from_account"].partition(":")[0]] -= Decimal(row["amount"])
        sums[row["to_account"].partition(":")[0]] += Decimal(row["amount"])
    return {account: total for account, total in sums.items() if total}


def _load(sidecar: Sidecar, *arguments: str) -> Json:
    """The one document that a credits command prints with --json."""
    done = sidecar.run("credits", *arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def _find_left(sidecar: Sidecar, *at: str) -> str:
    answer = _load(sidecar, "balance", "acme", *at)
    return next((row["left"] for row in answer["balances"] if row["asset"] == "USD"), "none")


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_credits_are_granted_burned_and_voided(new_sidecar: Callable[..., Sidecar], running: bool) -> None:
    """Guarantee: every command works on a running sidecar and on a closed ledger, and a kill or a resend moves nothing.

    $1.00 from two days ago on; two calls of $0.14 an hour apart yesterday: 1.00 - 0.28 = 0.72 are left, and are void.
    """
    sidecar = new_sidecar(_PRICES).start()
    first = now_nanos() - DAY_NANOS
    calls = encode(make_chat("one", at=first), make_chat("two", at=first + 4 * SLICE_NANOS))
    sidecar.export(calls)
    if not running:
        assert sidecar.stop() == 0
    since = format_instant(first - DAY_NANOS)[:10]
    terms = ["--amount", "1.00", "--currency", "USD", "--paid", "--from", since, "--reason", "order 4711"]
    grant = _load(sidecar, "grant", "acme", *terms, "--operator", "ann")
    assert (grant["amount"], grant["origin"], grant["operator"]) == ("1", "paid", "ann")
    again = sidecar.run("credits", "grant", "acme", *terms)
    assert again.returncode == 1
    assert "the same was granted before" in again.stderr

    assert _find_left(sidecar) == "0.72"
    between = format_instant((first // SLICE_NANOS + 2) * SLICE_NANOS)
    assert _find_left(sidecar, "--at", between) == "0.86"
    if not running:
        sidecar.start()
    sidecar.export(calls)
    sidecar.restart()
    sidecar.export(calls)
    consumed = {"issued": Decimal(-1), "grant": Decimal("0.72"), "consumed": Decimal("0.28")}
    await_value(lambda: _sum_accounts(sidecar.list_json("credits", "history", "acme")) == consumed, "burns are posted")

    if not running:
        assert sidecar.stop() == 0
    void = _load(sidecar, "void", grant["grant_id"], "--reason", "cancelled")
    assert (void["state"], void["voided"], void["consumed"]) == ("void", "0.72", "0.28")
    history = sidecar.list_json("credits", "history", "acme")
    assert [(row["kind"], row["reason"]) for row in history] == [
        ("grant", "order 4711"),
        ("burn", "order 4711"),
        ("burn", "order 4711"),
        ("burn", "order 4711"),
        ("burn", "order 4711"),
        ("void", "cancelled"),
    ]
    assert _sum_accounts(history) == {"issued": Decimal(-1), "consumed": Decimal("0.28"), "voided": Decimal("0.72")}
    bounds = ("--from", since, "--to", format_instant(now_nanos() + DAY_NANOS)[:10])
    statement = _load(sidecar, "statement", "acme", *bounds)
    assert [row["charge"] for row in statement["consumption"]] == ["-0.28"]
    assert all(row["charge"] == "0" for row in statement["overage"])
    verified = sidecar.run("verify")
    assert verified.returncode == 0, verified.stdout


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_what_cannot_be_is_refused_and_leaves_nothing(new_sidecar: Callable[..., Sidecar], running: bool) -> None:
    """Guarantee: a wrong command ends with the field, the value and the remedy, and no grant is there."""
    sidecar = new_sidecar(_PRICES).start()
    sidecar.export(encode(make_chat("one")))
    if not running:
        assert sidecar.stop() == 0
    money = ("--amount", "5", "--reason", "r")
    for arguments, problem in (
        (("grant", "acme", *money, "--from", "2026-11-02", "--expires", "2026-11-01"), "is not after the start"),
        (("grant", "acme", "--amount", "0", "--reason", "r"), "is not more than zero"),
        (("grant", "acme", "--amount", "1e2", "--reason", "r"), "is not an exact amount"),
        (("grant", "acme", *money, "--currency", "EUR"), "give USD"),
        (("grant", "acme", "--units", "5", "--unit", "pages", "--reason", "r"), "'pages' is neither a unit"),
        (("void", "nothing", "--reason", "r"), "there is no grant 'nothing'"),
    ):
        done = sidecar.run("credits", *arguments)
        assert done.returncode == 1, done.stdout
        assert problem in done.stderr
    assert sidecar.list_json("credits", "list") == []
    assert sidecar.run("credits", "list").stdout.strip() == "credits: none"


def test_tables_show_what_json_shows(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: what a person reads names grants, amounts, usage and reasons."""
    sidecar = new_sidecar(_PRICES).start()
    terms = ("--units", "15", "--unit", "output_tokens", "--model", "gpt-4o*", "--reason", "pilot")
    granted = sidecar.run("credits", "grant", "acme", *terms)
    assert "granted 15 output_tokens to acme" in granted.stdout, granted.stderr
    sidecar.export(encode(make_chat("one")))
    await_value(lambda: "consumed:acme" in sidecar.run("credits", "history", "acme").stdout, "the burn is posted")
    listed = sidecar.run("credits", "list", "acme").stdout
    assert "used up" in listed
    assert "model gpt-4o*" in listed
    assert "0 output_tokens" in sidecar.run("credits", "balance", "acme").stdout
    day = format_instant(now_nanos())[:10]
    statement = sidecar.run("credits", "statement", "acme", "--from", day, "--to", "2099-01-01").stdout
    assert "-0.03" in statement  # 15 tokens at $0.002
