"""Meter events and their cancellation: validation, deduplication by identifier, what counts and what does not."""

from __future__ import annotations

import re
from decimal import Decimal

from otelbill_collector.testing.stripe.call import Call, CustomerCheck, Outcome
from otelbill_collector.testing.stripe.errors import Json, StripeRefusal, refuse_missing
from otelbill_collector.testing.stripe.forms import Params, check_params, read_choice, read_int, read_text
from otelbill_collector.testing.stripe.meters import find_active_meter
from otelbill_collector.testing.stripe.store import Change, Store, make_id

Lane = tuple[str, str, str]  # account and mode, event name, customer
TABLE = "events"
IDENTIFIERS = "identifiers"
CREATE = Params(required=("event_name", "payload"), optional=("identifier", "timestamp"))
CANCEL = Params(required=("event_name", "type"), optional=("cancel",))

PAST_SECONDS_MAX = 35 * 24 * 3600
FUTURE_SECONDS_MAX = 5 * 60
CANCEL_SECONDS_MAX = 24 * 3600
VALUE_DIGITS_MAX = 15
_DECIMAL = re.compile(r"-?\d+(\.\d+)?", re.ASCII)


def create_event(call: Call, store: Store) -> Outcome:
    """Take one usage event, once per identifier within the dedupe window."""
    given = call.params
    event_name = read_text(given, "event_name", 100)
    identifier = read_text(given, "identifier", 100) or make_id("me", call.scope, store.count(TABLE))
    timestamp = read_int(given, "timestamp", call.now)
    payload = given["payload"]
    if not isinstance(payload, dict) or not all(isinstance(value, str) for value in payload.values()):
        raise StripeRefusal("Invalid object: payload", code="parameter_invalid_type", param="payload")
    meter = find_active_meter(call, store, event_name)
    if meter is None:
        raise StripeRefusal(f'No active meter found for event name "{event_name}".')
    assert timestamp is not None
    _check_timestamp(timestamp, call.now)
    customer = _read_customer(payload, meter)
    value = _read_value(payload, meter, whole=call.behaviour.whole_values_only)
    failure = _check_customer(call, store, customer, meter)
    _check_identifier(call, store, identifier)
    event = {
        "object": "billing.meter_event",
        "created": call.now,
        "event_name": event_name,
        "identifier": identifier,
        "livemode": call.livemode,
        "payload": payload,
        "timestamp": timestamp,
    }
    row = {
        **event,
        "scope": call.scope,
        "meter": meter["id"],
        "customer": customer,
        "value": format(value, "f"),
        "status": "failed" if failure else "counted",
        "error": failure,
        "received_at": call.now,
        "sequence": store.count(TABLE),
        "idempotency_key": call.idempotency_key,
        "request_id": call.request_id,
    }
    key = call.key(row["sequence"])
    seen = {"event": key, "received_at": call.now}
    return Outcome(event, [Change(TABLE, key, row), Change(IDENTIFIERS, call.key(identifier), seen)])


def cancel_event(call: Call, store: Store) -> Outcome:
    """Take back one event within 24 hours of its receipt. The answer says pending; the effect is immediate here."""
    read_choice(call.params, "type", ("cancel",))
    cancel = call.params.get("cancel", {})
    check_params(cancel, Params(required=("identifier",)), prefix="cancel")
    identifier = read_text(cancel, "identifier", 100)
    row = _find_event(call, store, identifier)
    if row is None or row["event_name"] != call.params["event_name"]:
        raise StripeRefusal(f"No event found with identifier {identifier}.", param="cancel[identifier]")
    if row["status"] == "cancelled":
        raise StripeRefusal(f"The event with identifier {identifier} was already cancelled.")
    if call.now - row["received_at"] > CANCEL_SECONDS_MAX:
        raise StripeRefusal(f"The event with identifier {identifier} was received more than 24 hours ago.")
    adjustment = {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": row["event_name"],
        "livemode": call.livemode,
        "status": "pending",
        "type": "cancel",
    }
    return Outcome(adjustment, [Change(TABLE, call.key(row["sequence"]), {**row, "status": "cancelled"})])


def lane_of(call: Call, store: Store) -> Lane | None:
    """The lane of an event request; None while it cannot be told."""
    event_name, payload = call.params.get("event_name"), call.params.get("payload")
    meter = find_active_meter(call, store, event_name) if isinstance(event_name, str) else None
    if meter is None or not isinstance(payload, dict):
        return None
    return call.scope, meter["event_name"], str(payload.get(meter["customer_mapping"]["event_payload_key"]))


def _find_event(call: Call, store: Store, identifier: str) -> Json | None:
    seen = store.find(IDENTIFIERS, call.key(identifier))
    return store.find(TABLE, seen["event"]) if seen else None


def _check_identifier(call: Call, store: Store, identifier: str) -> None:
    seen = store.find(IDENTIFIERS, call.key(identifier))
    if seen is not None and call.now - seen["received_at"] < call.behaviour.dedupe_seconds:
        message = f"An event already exists with identifier {identifier}."
        raise StripeRefusal(message, headers={"Stripe-Should-Retry": "false"})


def _check_timestamp(timestamp: int, now: int) -> None:
    oldest, newest = now - PAST_SECONDS_MAX, now + FUTURE_SECONDS_MAX
    if timestamp < oldest:
        message = "The event timestamp cannot be more than 35 days in past. "
        message += f"Expected a timestamp greater than or equal to {oldest}."
        raise StripeRefusal(message, param="timestamp")
    if timestamp > newest:  # the real wording is not published
        message = "The event timestamp cannot be more than 5 minutes in the future. "
        message += f"Expected a timestamp less than or equal to {newest}."
        raise StripeRefusal(message, param="timestamp")


def _read_customer(payload: Json, meter: Json) -> str:
    key = meter["customer_mapping"]["event_payload_key"]
    if not payload.get(key):
        raise StripeRefusal(f"Customer mapping key {key} not found in payload.", param="payload")
    return str(payload[key])


def _read_value(payload: Json, meter: Json, *, whole: bool) -> Decimal:
    key = meter["value_settings"]["event_payload_key"]
    if meter["default_aggregation"]["formula"] == "count" and key not in payload:
        return Decimal(1)
    text = payload.get(key)
    if not text:
        raise StripeRefusal(f"Value key {key} not found in payload.", param="payload")
    if not _DECIMAL.fullmatch(text) or (whole and "." in text):
        kind = "a whole number" if whole else "a decimal number"
        raise StripeRefusal(f"The value in the event payload must be {kind}. Received {text}.", param="payload")
    digits = text.lstrip("-").replace(".", "").lstrip("0")
    if len(digits) > VALUE_DIGITS_MAX:
        message = f"The value in the event payload can have at most {VALUE_DIGITS_MAX} digits. Received {text}."
        raise StripeRefusal(message)
    return Decimal(text)


def _check_customer(call: Call, store: Store, customer: str, meter: Json) -> str | None:
    """The code of a later failure, None when the event counts; refuses at once where so switched."""
    if call.behaviour.customer_check is CustomerCheck.OFF or store.find("customers", call.key(customer)):
        return None
    if call.behaviour.customer_check is CustomerCheck.ASYNC:
        return "meter_event_customer_not_found"
    param = f"payload[{meter['customer_mapping']['event_payload_key']}]"
    raise refuse_missing("customer", customer, param=param, status=400)
