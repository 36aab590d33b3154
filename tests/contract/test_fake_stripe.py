"""The local Stripe answers the real client as Stripe is documented to: resources, events, summaries, prices."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import stripe

from otelbill_collector.testing.loopback import Reply, Request
from otelbill_collector.testing.openapi import OpenApi
from otelbill_collector.testing.stripe_server import Behaviour, CustomerCheck, SettableClock, StripeServer

NOW = 1_795_168_800  # 2026-11-20T10:00:00Z
HOUR = 3600
DAY = 24 * HOUR
Connect = Callable[..., Any]


class CheckedServer(StripeServer):
    """Validates every answer that a document describes."""

    def __init__(self, document: OpenApi | None, **options: Any) -> None:
        super().__init__(**options)
        self.document = document
        self.checked = 0
        self.violations: list[str] = []

    def respond(self, request: Request) -> Reply:
        reply = super().respond(request)
        if (
            self.document
            and isinstance(reply.body, bytes)
            and self.document.find_operation(request.method, request.path)
        ):
            body = json.loads(reply.body)
            self.violations += self.document.check_answer(request.method, request.path, reply.status, body)
            self.checked += 1
        return reply


@pytest.fixture(scope="module")
def document(repository: Path) -> OpenApi | None:
    """The OpenAPI subset where the shared data is present; without it the answers are only judged by the client."""
    shared = Path(os.environ.get("OTELBILL_SHARED", repository.parent / "shared"))
    path = shared / "data/stripe/stripe_subset.openapi.json"
    return OpenApi(path) if path.exists() else None


@pytest.fixture
def server(document: OpenApi | None) -> Iterator[CheckedServer]:
    with CheckedServer(document, clock=SettableClock(NOW)) as server:
        server.add_customer("cus_acme")
        yield server
    assert server.violations == []


@pytest.fixture
def connect(server: CheckedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(stripe, "enable_telemetry", False)
    http: Any = stripe.RequestsClient()

    def connect(key: str = "sk_test_x", **options: Any) -> Any:
        return stripe.StripeClient(key, base_addresses=server.base_addresses, http_client=http, **options)

    yield connect
    http.close()


@pytest.fixture
def client(connect: Connect) -> Any:
    return connect()


@pytest.fixture
def meter(client: Any) -> Any:
    return _create_meter(client)


def _create_meter(client: Any, event_name: str = "tokens", formula: str = "sum", **more: Any) -> Any:
    params: Any = {"event_name": event_name, "display_name": "Tokens", "default_aggregation": {"formula": formula}}
    return client.v1.billing.meters.create({**params, **more})


def _send(client: Any, value: str | None = "5", **fields: Any) -> Any:
    payload = {"stripe_customer_id": "cus_acme", **({} if value is None else {"value": value})}
    params: Any = {"event_name": "tokens", "payload": payload, **fields}
    return client.v1.billing.meter_events.create(params)


def _summarise(client: Any, meter: Any, start: int, end: int, window: str | None = None) -> Any:
    params: Any = {"customer": "cus_acme", "start_time": start, "end_time": end}
    if window:
        params["value_grouping_window"] = window
    return client.v1.billing.meters.event_summaries.list(meter.id, params)


def _metadata(row: Any) -> Any:
    return row.metadata.to_dict()


def _refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        call()
    return refused.value


def test_meter_life_cycle(client: Any, meter: Any) -> None:
    """A meter is created with Stripe's defaults, renamed, switched off and on, and listed by status."""
    assert (meter.status, meter.customer_mapping.event_payload_key) == ("active", "stripe_customer_id")
    assert meter.value_settings.event_payload_key == "value"
    meters = client.v1.billing.meters
    assert meters.update(meter.id, {"display_name": "New"}).display_name == "New"
    off = meters.deactivate(meter.id)
    assert (off.status, off.status_transitions.deactivated_at) == ("inactive", NOW)
    assert [item.id for item in meters.list({"status": "inactive"}).data] == [meter.id]
    assert meters.list({"status": "active"}).data == []
    assert meters.reactivate(meter.id).status == "active"
    assert meters.retrieve(meter.id).status_transitions.deactivated_at is None


def test_meter_rules(client: Any, meter: Any) -> None:
    """An event name belongs to one meter, nothing but the display name changes, and an unknown meter is a 404."""
    assert _refused(lambda: _create_meter(client)).param == "event_name"
    immutable: Any = {"event_name": "other"}
    assert _refused(lambda: client.v1.billing.meters.update(meter.id, immutable)).code == "parameter_unknown"
    assert _refused(lambda: _create_meter(client, "other", formula="median")).http_status == 400
    missing: Any = {"event_name": "other", "display_name": "x"}
    assert _refused(lambda: client.v1.billing.meters.create(missing)).param == "default_aggregation"
    unknown = _refused(lambda: client.v1.billing.meters.retrieve("mtr_none"))
    assert (unknown.http_status, unknown.code) == (404, "resource_missing")


def test_event_is_taken_once(server: StripeServer, client: Any, meter: Any) -> None:
    """A second event of an identifier is a 400 with the observed text, no code and no retry, and does not count."""
    event = _send(client, identifier="ob1.a", timestamp=NOW - 10)
    assert (event.object, event.identifier, event.created) == ("billing.meter_event", "ob1.a", NOW)
    assert event.payload.to_dict() == {"stripe_customer_id": "cus_acme", "value": "5"}

    duplicate = _refused(lambda: _send(client, "7", identifier="ob1.a"))

    assert duplicate.user_message == "An event already exists with identifier ob1.a."
    assert (duplicate.http_status, duplicate.code, duplicate.error.code) == (400, None, None)
    assert {k.lower(): v for k, v in (duplicate.headers or {}).items()}["stripe-should-retry"] == "false"
    assert [row["value"] for row in server.list_events()] == ["5"]


def test_dedupe_lasts_a_rolling_day(server: StripeServer, client: Any, meter: Any) -> None:
    """An identifier is refused until 24 hours after its receipt, and taken again from then on."""
    _send(client, identifier="ob1.a")
    server.clock.advance(DAY - 1)
    _refused(lambda: _send(client, identifier="ob1.a"))
    server.clock.advance(1)
    _send(client, identifier="ob1.a")
    assert len(server.list_events()) == 2


def test_identifiers_are_per_account_and_mode(server: StripeServer, connect: Connect, meter: Any) -> None:
    """Test mode, live mode and connected accounts share nothing: neither identifiers nor meters nor customers."""
    _send(connect(), identifier="ob1.a")
    for client, scope in ((connect("sk_live_x"), "self/live"), (connect(stripe_account="acct_1"), "acct_1/test")):
        assert "No active meter" in str(_refused(partial(_send, client, identifier="ob1.a")))
        server.add_customer("cus_acme", scope=scope)
        assert _create_meter(client).livemode is scope.endswith("live")
        _send(client, identifier="ob1.a")
    assert [total.scope for total in server.sum_hours()] == ["acct_1/test", "self/live", "self/test"]


def test_timestamp_window(client: Any, meter: Any) -> None:
    """Events are taken from 35 days ago to 5 minutes ahead; the refusal of an old one has the observed text."""
    for timestamp in (NOW - 35 * DAY, NOW + 300):
        assert _send(client, timestamp=timestamp).timestamp == timestamp
    old = _refused(lambda: _send(client, timestamp=NOW - 35 * DAY - 1))
    assert old.user_message == (
        "The event timestamp cannot be more than 35 days in past. "
        f"Expected a timestamp greater than or equal to {NOW - 35 * DAY}."
    )
    assert old.param == "timestamp"
    assert _refused(lambda: _send(client, timestamp=NOW + 301)).param == "timestamp"
    assert _send(client).timestamp == NOW


@pytest.mark.parametrize("value", ["0", "-3", "0.25", "999999999999999", "-99999999999.9999", "000000000000000001"])
def test_values_taken(server: StripeServer, client: Any, meter: Any, value: str) -> None:
    """Whole, decimal and negative values of up to 15 digits are kept exactly as they were sent."""
    _send(client, value)
    assert [Decimal(row["value"]) for row in server.list_events()] == [Decimal(value)]


@pytest.mark.parametrize("value", ["1234567890123456", "1.234567890123456", "1e3", "five", "NaN", "+1", "1."])
def test_values_refused(server: StripeServer, client: Any, meter: Any, value: str) -> None:
    """More than 15 digits, exponents and anything but a decimal number are refused and do not count."""
    refusal = _refused(lambda: _send(client, value))
    assert f"Received {value}" in str(refusal.user_message)
    assert server.list_events() == []


def test_whole_values_only_is_a_switch(server: StripeServer, client: Any, meter: Any) -> None:
    """Where an account takes whole numbers only, a fraction is refused."""
    server.behaviour = Behaviour(whole_values_only=True)
    _send(client, "3")
    _refused(lambda: _send(client, "3.5"))
    assert len(server.list_events()) == 1


def test_event_payload_checks(client: Any, meter: Any) -> None:
    """A missing meter, key or value, an unknown parameter and an over-long identifier are each refused by name."""
    unmetered = _refused(lambda: _send(client, event_name="other"))
    assert unmetered.user_message == 'No active meter found for event name "other".'
    assert "Value key value" in str(_refused(lambda: _send(client, None)))
    assert "stripe_customer_id" in str(_refused(lambda: _send(client, payload={"value": "1"})))
    assert _refused(lambda: _send(client, colour="red")).code == "parameter_unknown"
    assert _refused(lambda: _send(client, identifier="x" * 101)).param == "identifier"
    assert _refused(lambda: _send(client, timestamp="soon")).code == "parameter_invalid_integer"
    client.v1.billing.meters.deactivate(meter.id)
    assert "No active meter" in str(_refused(lambda: _send(client)))


def test_own_payload_keys(server: StripeServer, client: Any) -> None:
    """A meter's own payload keys name the customer and the value."""
    keys: Any = {
        "customer_mapping": {"type": "by_id", "event_payload_key": "who"},
        "value_settings": {"event_payload_key": "much"},
    }
    _create_meter(client, **keys)
    _send(client, payload={"who": "cus_acme", "much": "2"})
    assert [(row["customer"], row["value"]) for row in server.list_events()] == [("cus_acme", "2")]


@pytest.mark.parametrize("check", list(CustomerCheck))
def test_unknown_customer_is_a_switch(server: StripeServer, client: Any, meter: Any, check: CustomerCheck) -> None:
    """An unknown customer is refused at once, or taken and failed later without counting, or not checked at all."""
    server.behaviour = Behaviour(customer_check=check)
    payload = {"stripe_customer_id": "cus_none", "value": "1"}
    if check is CustomerCheck.SYNC:
        refusal = _refused(lambda: _send(client, payload=payload))
        assert (refusal.http_status, refusal.code) == (400, "resource_missing")
        assert server.list_events() == []
        return
    _send(client, payload=payload)
    (row,) = server.list_events()
    failed = check is CustomerCheck.ASYNC
    assert (row["status"], row["error"] == "meter_event_customer_not_found") == (
        "failed" if failed else "counted",
        failed,
    )
    assert bool(server.sum_hours()) is not failed


def test_summaries_group_and_sum(client: Any, meter: Any) -> None:
    """Summaries are half-open buckets of exactly the events inside, newest first, with a float value."""
    for timestamp, value in ((NOW - HOUR, "1"), (NOW - HOUR + 59, "0.5"), (NOW - 1, "2"), (NOW, "4")):
        _send(client, value, timestamp=timestamp)
    midnight = NOW - NOW % DAY

    whole = _summarise(client, meter, NOW - HOUR, NOW).data
    hours = _summarise(client, meter, NOW - 2 * HOUR, NOW + HOUR, "hour").data
    days = _summarise(client, meter, midnight, midnight + DAY, "day").data

    assert [(row.start_time, row.end_time, row.aggregated_value) for row in whole] == [(NOW - HOUR, NOW, 3.5)]
    assert [(row.start_time, row.aggregated_value) for row in hours] == [(NOW, 4.0), (NOW - HOUR, 3.5)]
    assert [row.aggregated_value for row in days] == [7.5]
    assert isinstance(days[0].aggregated_value, float)
    assert [row.aggregated_value for row in _summarise(client, meter, NOW - DAY, NOW - DAY + 60).data] == [0.0]


@pytest.mark.parametrize(
    ("start", "end", "window"),
    [(1, 60, None), (0, 61, None), (60, HOUR, "hour"), (HOUR, DAY, "day"), (HOUR, HOUR, "hour"), (0, 60, "minute")],
)
def test_summaries_want_aligned_bounds(client: Any, meter: Any, start: int, end: int, window: str | None) -> None:
    """Bounds off the minute, hour or UTC day, an empty range and an unknown window are refused."""
    midnight = NOW - NOW % DAY
    assert _refused(lambda: _summarise(client, meter, midnight + start, midnight + end, window)).http_status == 400


def test_summaries_page_by_cursor(client: Any, meter: Any) -> None:
    """Pages hold at most `limit` buckets and lead to each other until all were seen once."""
    for hour in range(5):
        _send(client, str(hour + 1), timestamp=NOW - hour * HOUR)
    params: Any = {"customer": "cus_acme", "start_time": NOW - 5 * HOUR, "end_time": NOW + HOUR, "limit": 2}
    first = client.v1.billing.meters.event_summaries.list(meter.id, {**params, "value_grouping_window": "hour"})

    assert (len(first.data), first.has_more) == (2, True)
    assert [row.aggregated_value for row in first.auto_paging_iter()] == [1.0, 2.0, 3.0, 4.0, 5.0]
    for limit in (0, 101):
        _refused(partial(client.v1.billing.meters.event_summaries.list, meter.id, {**params, "limit": limit}))


def test_summaries_may_lag(server: StripeServer, client: Any, meter: Any) -> None:
    """With a lag, an event is missing from summaries until it is old enough, as in Stripe's processing."""
    server.behaviour = Behaviour(summary_lag_seconds=60)
    _send(client)
    assert _summarise(client, meter, NOW, NOW + HOUR).data[0].aggregated_value == 0.0
    server.clock.advance(60)
    assert _summarise(client, meter, NOW, NOW + HOUR).data[0].aggregated_value == 5.0


@pytest.mark.parametrize(("formula", "expected"), [("sum", 9.0), ("count", 3.0), ("last", 3.0)])
def test_formulas(client: Any, formula: str, expected: float) -> None:
    """Sum adds, count counts, last takes the newest timestamp whatever the order of arrival."""
    meter = _create_meter(client, formula=formula)
    for timestamp, value in ((NOW, "3"), (NOW - 20, "2"), (NOW - 10, "4")):
        _send(client, value, timestamp=timestamp)
    assert _summarise(client, meter, NOW - HOUR, NOW + HOUR).data[0].aggregated_value == expected


def test_event_time_window_replaces(client: Any) -> None:
    """On a pre-aggregating meter the newest received event of an hour replaces the earlier ones."""
    meter = _create_meter(client, event_time_window="hour")
    for timestamp, value in ((NOW, "3"), (NOW + 10, "4"), (NOW + 5, "5"), (NOW - 1, "7")):
        _send(client, value, timestamp=timestamp)
    assert _summarise(client, meter, NOW - HOUR, NOW + HOUR).data[0].aggregated_value == 12.0


def test_cancel_within_a_day(server: StripeServer, client: Any, meter: Any) -> None:
    """One event is cancelled by its identifier within 24 hours of receipt, once, and then counts nowhere."""

    def cancel(identifier: str) -> Any:
        params: Any = {"event_name": "tokens", "type": "cancel", "cancel": {"identifier": identifier}}
        return client.v1.billing.meter_event_adjustments.create(params)

    for name, value in (("a", "1"), ("b", "2"), ("c", "4")):
        _send(client, value, identifier=name)
    answer = cancel("a")
    assert (answer.object, answer.status, answer.cancel.identifier) == (
        "billing.meter_event_adjustment",
        "pending",
        "a",
    )
    assert "already cancelled" in str(_refused(lambda: cancel("a")))
    assert "No event found" in str(_refused(lambda: cancel("z")))
    server.clock.advance(DAY)
    cancel("b")
    server.clock.advance(1)
    assert "24 hours" in str(_refused(lambda: cancel("c")))
    assert [row["status"] for row in server.list_events()] == ["cancelled", "cancelled", "counted"]
    assert [total.value for total in server.sum_hours()] == [Decimal(4)]


def test_oracle_sums_are_exact(server: StripeServer, client: Any, meter: Any) -> None:
    """The oracle adds decimals without a float's error, by meter, customer and hour."""
    for n in range(10):
        _send(client, "0.1", timestamp=NOW - n)
    _send(client, "999999999999999")
    _send(client, "0.00000000000001")
    assert _summarise(client, meter, NOW - HOUR, NOW).data[0].aggregated_value == 0.9  # the nearest float, rounded once
    early, late = server.sum_hours()
    assert (early.hour, early.value, early.events) == (NOW - HOUR, Decimal("0.9"), 9)
    assert (late.hour, late.value, late.events) == (NOW, Decimal("999999999999999.10000000000001"), 3)


def test_customers(client: Any) -> None:
    """Customers are created, named, found by e-mail and listed newest first; an unknown one is a 404."""
    customers = client.v1.customers
    made = customers.create({"name": "Ann", "email": "a@example.org", "metadata": {"otelbill": "1"}})
    assert _metadata(customers.retrieve(made.id)) == {"otelbill": "1"}
    assert _metadata(customers.update(made.id, {"metadata": {"otelbill": "", "x": "2"}})) == {"x": "2"}
    assert [row.id for row in customers.list({"email": "a@example.org"}).data] == [made.id]
    assert [row.id for row in customers.list().data] == [made.id, "cus_acme"]
    assert _refused(lambda: customers.retrieve("cus_none")).code == "resource_missing"
    assert _refused(lambda: customers.update(made.id, {"metadata": "text"})).param == "metadata"


def test_price_is_immutable_but_for_labels(client: Any, meter: Any) -> None:
    """A metered price keeps its exact decimal amount; only labels and activity change."""
    product = client.v1.products.create({"name": "AI usage"})
    metered: Any = {"interval": "month", "usage_type": "metered", "meter": meter.id}
    form: Any = {
        "currency": "usd",
        "product": product.id,
        "recurring": metered,
        "unit_amount_decimal": Decimal("0.0001"),
    }
    price = client.v1.prices.create(form)
    assert (price.unit_amount, price.unit_amount_decimal, price.type) == (None, Decimal("0.0001"), "recurring")

    changed = client.v1.prices.update(price.id, {"active": False, "nickname": "old", "metadata": {"a": "b"}})
    assert (changed.active, changed.nickname, changed.unit_amount_decimal) == (False, "old", Decimal("0.0001"))
    for name, value in (("unit_amount", 5), ("currency", "eur"), ("recurring", metered)):
        attempt: Any = {name: value}
        assert _refused(partial(client.v1.prices.update, price.id, attempt)).code == "parameter_unknown"
    recurring: Any = {"recurring": {"meter": meter.id}}
    assert [row.id for row in client.v1.prices.list(recurring).data] == [price.id]
    assert client.v1.prices.list({"active": True}).data == []


def test_lookup_key_moves_only_when_asked(client: Any) -> None:
    """A lookup key names one price; a new price takes it over only with transfer_lookup_key."""
    form: Any = {"currency": "usd", "product_data": {"name": "AI usage"}, "unit_amount": 5, "lookup_key": "k"}
    old = client.v1.prices.create(form)
    assert _refused(lambda: client.v1.prices.create(form)).param == "lookup_key"
    new = client.v1.prices.create({**form, "transfer_lookup_key": True})
    assert [row.id for row in client.v1.prices.list({"lookup_keys": ["k"]}).data] == [new.id]
    assert client.v1.prices.retrieve(old.id).lookup_key is None
    assert len(client.v1.products.list().data) == 2


def test_tiers_are_expandable(client: Any) -> None:
    """Tiers are left out unless expanded, keep their order and decimals, and exclude a transform."""
    form: Any = {
        "currency": "usd",
        "product_data": {"name": "AI usage"},
        "billing_scheme": "tiered",
        "tiers_mode": "graduated",
        "tiers": [{"up_to": 1000, "unit_amount_decimal": "0.5"}, {"up_to": "inf", "unit_amount": 1, "flat_amount": 2}],
    }
    made = client.v1.prices.create(form)
    assert not hasattr(made, "tiers")
    tiers = client.v1.prices.retrieve(made.id, {"expand": ["tiers"]}).tiers or []
    assert [(tier.up_to, tier.unit_amount_decimal) for tier in tiers] == [(1000, Decimal("0.5")), (None, Decimal(1))]
    assert client.v1.prices.list({"expand": ["data.tiers"]}).data[0].tiers == tiers
    both: Any = {**form, "transform_quantity": {"divide_by": 10, "round": "up"}}
    assert _refused(lambda: client.v1.prices.create(both)).param == "transform_quantity"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"unit_amount_decimal": "1E-7"}, "unit_amount_decimal"),
        ({"unit_amount_decimal": "0.0000000000001"}, "unit_amount_decimal"),
        ({"unit_amount_decimal": "1", "unit_amount": 1}, "unit_amount"),
        ({}, "unit_amount"),
        ({"unit_amount": 1, "product": "prod_none"}, "product"),
        ({"unit_amount": 1, "recurring": {"interval": "month", "usage_type": "metered"}}, "recurring[meter]"),
        ({"unit_amount": 1, "tiers": [{"up_to": "inf"}]}, "tiers"),
    ],
)
def test_bad_prices_are_refused(client: Any, change: Any, param: str) -> None:
    """Exponents, more than 12 decimals, two or no amounts, and dangling references are refused by parameter."""
    form: Any = {"currency": "usd", "product_data": {"name": "AI usage"}, **change}
    assert _refused(lambda: client.v1.prices.create(form)).param == param


def test_unknown_url_is_refused(client: Any) -> None:
    """What the local Stripe does not have is a 404 that says so, never a made-up answer."""
    assert "Unrecognized request URL" in str(_refused(lambda: client.v1.invoices.list()))
    assert _refused(lambda: client.v1.billing.meters.list({"colour": "red"})).code == "parameter_unknown"


def test_answers_match_the_api_description(shared_data: Path, server: CheckedServer, client: Any, meter: Any) -> None:
    """Every answer, errors included, validates against the OpenAPI subset, and the validator can tell a bad one."""
    _send(client)
    _refused(lambda: _send(client, "five"))
    _summarise(client, meter, NOW, NOW + HOUR, "hour")
    client.v1.billing.meters.list()
    assert server.checked >= 5
    assert server.violations == []
    assert server.document is not None
    broken = {**meter.to_dict(), "status": 5, "created": None}
    broken.pop("id")
    assert len(server.document.check_answer("GET", f"/v1/billing/meters/{meter.id}", 200, broken)) == 3
