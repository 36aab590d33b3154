"""Usage without customer or without price: kept, shown and settled later, with every correction visible."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest

from tests.otlp_requests import encode, make_chat
from tests.sidecar_process import Json, Sidecar, await_value

_PRICES = {
    "rate_card": {
        "prices": [
            {"unit": "input_tokens", "price": "1", "per": 1000},
            {"unit": "output_tokens", "price": "2", "per": 1000},
        ]
    }
}


def _render_totals(rows: list[Json]) -> dict[str | None, tuple[int, int, Decimal]]:
    """Events, input tokens and charge by customer; customers whose books are even are left out."""
    totals = {
        row["customer"]: (row["events"], row["quantities"].get("input_tokens", 0), Decimal(row["charge"] or 0))
        for row in rows
    }
    return {customer: total for customer, total in totals.items() if total != (0, 0, 0)}


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_usage_without_a_customer_can_be_assigned(new_sidecar: Callable[..., Sidecar], running: bool) -> None:
    """Guarantee: suspense is kept whole, listed and assignable; totals move, the correction stays visible."""
    sidecar = new_sidecar(_PRICES).start()
    nobody = make_chat("nobody", None)
    sidecar.export(encode(nobody, make_chat("lost", None), make_chat("known", "acme")))
    assert _render_totals(sidecar.usage()) == {
        None: (2, 200, Decimal("0.28")),
        "acme": (1, 100, Decimal("0.14")),
    }
    listed = sidecar.list_json("suspense")
    assert len(listed) == 2
    event = next(row for row in listed if row["span_id"] == nobody.span_id.hex())
    assert (event["customer_id"], event["quantities"]["input_tokens"]) == (None, 100)

    if not running:
        assert sidecar.stop() == 0
    adjusted = sidecar.run("adjust", event["event_id"], "--customer", "globex", "--reason", "forgot customer()")
    assert adjusted.returncode == 0, adjusted.stderr
    expected = {None: (1, 100, Decimal("0.14")), "acme": (1, 100, Decimal("0.14")), "globex": (1, 100, Decimal("0.14"))}
    assert _render_totals(sidecar.list_json("usage")) == expected
    assert [row["span_id"] for row in sidecar.list_json("suspense")] != [nobody.span_id.hex()]
    assert len(sidecar.list_json("suspense")) == 1
    explained = sidecar.run("explain", event["event_id"], "--json").stdout
    assert "forgot customer()" in explained
    if not running:
        sidecar.start()
    sidecar.export(encode(nobody))
    sidecar.restart()
    assert _render_totals(sidecar.usage()) == expected, "a late retry or a restart took the correction back"


def test_an_assignment_may_be_corrected_again(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: nothing is edited: each assignment reverses the one before, and the sums stay whole."""
    sidecar = new_sidecar(_PRICES).start()
    sidecar.export(encode(make_chat("moving", None)))
    event = sidecar.list_json("suspense")[0]["event_id"]
    for customer in ("first", "second"):
        done = sidecar.run("adjust", event, "--customer", customer, "--reason", f"belongs to {customer}")
        assert done.returncode == 0, done.stderr
    assert _render_totals(sidecar.usage()) == {"second": (1, 100, Decimal("0.14"))}
    explained = sidecar.run("explain", event, "--json").stdout
    assert "belongs to first" in explained
    assert "belongs to second" in explained


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_an_unknown_event_cannot_be_assigned(new_sidecar: Callable[..., Sidecar], running: bool) -> None:
    """Guarantee: a mistyped id changes nothing and says so."""
    sidecar = new_sidecar(_PRICES).start()
    sidecar.export(encode(make_chat("known")))
    if not running:
        sidecar.stop()
    done = sidecar.run("adjust", "ab" * 16, "--customer", "acme", "--reason", "typo")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "ab" * 16 in done.stderr
    assert _render_totals(sidecar.list_json("usage")) == {"acme": (1, 100, Decimal("0.14"))}


def test_a_blank_customer_is_no_customer(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: an empty or blank id bills nobody by that name: it is suspense or a dead letter."""
    sidecar = new_sidecar(_PRICES).start()
    sidecar.export(encode(make_chat("empty", ""), make_chat("blank", "   "), make_chat("fine")))
    customers = {row["customer"] for row in sidecar.usage()}
    assert customers <= {None, "acme"}
    kept = sum(row["events"] for row in sidecar.usage() if row["customer"] is None)
    assert kept + len(sidecar.get("/v1/dead-letters").json()) == 2


def test_usage_without_a_price_is_unpriced_and_shown(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: what has no price has no charge, not a charge of zero, and is listed as such."""
    sidecar = new_sidecar().start()
    unknown = {"gen_ai__request__model": "in-house-llm", "gen_ai__response__model": "in-house-llm"}
    sidecar.export(encode(make_chat("unpriced", "acme", **unknown), make_chat("priced", "globex")))
    rows = {row["customer"]: row for row in sidecar.usage()}
    assert rows["acme"]["charge"] is None
    assert (rows["acme"]["unpriced"], rows["globex"]["unpriced"]) == (1, 0)
    assert rows["acme"]["quantities"]["input_tokens"] == 100
    assert Decimal(rows["globex"]["charge"]) > 0
    held = sidecar.list_json("held")
    assert [(row["customer_id"], row["rating"], row["charge"]) for row in held] == [("acme", "unpriced", None)]
    await_value(lambda: sidecar.metrics("otelbill_events")['state="unpriced"'] == 1, "it shows in the metrics")


def test_a_stream_without_usage_is_held_not_free(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: a call whose usage did not reach us is a call: counted, held, never billed as nothing."""
    sidecar = new_sidecar(_PRICES).start()
    sidecar.export(encode(make_chat("withheld", input_tokens=None, output_tokens=None)))
    row = sidecar.usage()[0]
    assert (row["events"], row["held"], row["charge"]) == (1, 1, None)
    held = sidecar.list_json("held")
    assert [(row["rating"], row["usage_source"]) for row in held] == [("held", "unknown")]
    await_value(lambda: sidecar.metrics("otelbill_events")['state="held"'] == 1, "held usage shows in the metrics")


def test_a_custom_unit_is_priced_exactly(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: units of one's own, decimal quantities included, are multiplied exactly."""
    prices = {"rate_card": {"prices": [{"unit": "gpu_seconds", "price": "0.000300000001"}]}}
    sidecar = new_sidecar(prices).start()
    spans = []
    for number in range(3):
        span = make_chat(f"gpu {number}", input_tokens=None, output_tokens=None)
        del span.attributes[:]
        own = {"otelbill.meter": "gpu_seconds", "otelbill.quantity": "0.1", "otelbill.unit": "second"}
        for name, value in {**own, "otelbill.customer.id": "acme"}.items():
            span.attributes.add(key=name).value.string_value = value
        spans.append(span)
    sidecar.export(encode(*spans))
    row = sidecar.usage()[0]
    assert row["events"] == 3
    assert Decimal(str(row["quantities"]["gpu_seconds"])) == Decimal("0.3")
    assert Decimal(row["charge"]) == Decimal("0.0000900000003")
