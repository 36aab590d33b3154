"""Billing meters: create, list, retrieve, rename, deactivate, reactivate. An event name belongs to one meter."""

from __future__ import annotations

from otelbill_collector.testing.stripe.call import Call, Outcome
from otelbill_collector.testing.stripe.errors import Json, StripeRefusal, refuse_missing
from otelbill_collector.testing.stripe.forms import Params, check_params, page, read_choice, read_text
from otelbill_collector.testing.stripe.store import Change, Store, make_id

TABLE = "meters"
FORMULAS = ("sum", "count", "last")
CREATE = Params(
    required=("default_aggregation", "display_name", "event_name"),
    optional=("customer_mapping", "event_time_window", "value_settings"),
)
UPDATE = Params(optional=("display_name",))
LIST = Params(optional=("status", "limit", "starting_after", "ending_before"))


def create_meter(call: Call, store: Store) -> Outcome:
    """An active meter with Stripe's default payload keys where none are given."""
    given = call.params
    check_params(given["default_aggregation"], Params(("formula",)), prefix="default_aggregation")
    mapping = given.get("customer_mapping", {"type": "by_id", "event_payload_key": "stripe_customer_id"})
    check_params(mapping, Params(("event_payload_key", "type")), prefix="customer_mapping")
    settings = given.get("value_settings", {"event_payload_key": "value"})
    check_params(settings, Params(("event_payload_key",)), prefix="value_settings")
    event_name = read_text(given, "event_name", 100)
    if any(meter["event_name"] == event_name for meter in store.iter_rows(TABLE, call.scope)):
        message = f"A meter with event name {event_name} already exists."
        raise StripeRefusal(message, code="resource_already_exists", param="event_name")
    meter: Json = {
        "id": make_id("mtr_live" if call.livemode else "mtr_test", call.scope, store.count(TABLE)),
        "object": "billing.meter",
        "created": call.now,
        "customer_mapping": {"type": read_choice(mapping, "type", ("by_id",)), **_read_key(mapping)},
        "default_aggregation": {"formula": read_choice(given["default_aggregation"], "formula", FORMULAS)},
        "display_name": read_text(given, "display_name", 250),
        "event_name": event_name,
        "event_time_window": read_choice(given, "event_time_window", ("hour", "day")),
        "livemode": call.livemode,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": call.now,
        "value_settings": _read_key(settings),
    }
    return Outcome(meter, [Change(TABLE, call.key(meter["id"]), meter)])


def retrieve_meter(call: Call, store: Store) -> Outcome:
    """The meter."""
    return Outcome(require_meter(call, store))


def list_meters(call: Call, store: Store) -> Outcome:
    """Meters, newest first, optionally of one status."""
    status = read_choice(call.params, "status", ("active", "inactive"))
    rows = [meter for meter in store.iter_rows(TABLE, call.scope) if status in (None, meter["status"])]
    return Outcome(page(rows[::-1], call.params, call.path))


def update_meter(call: Call, store: Store) -> Outcome:
    """Rename; nothing else about a meter can change."""
    meter = require_meter(call, store)
    return _change(call, meter, display_name=read_text(call.params, "display_name", 250, meter["display_name"]))


def deactivate_meter(call: Call, store: Store) -> Outcome:
    """Stop taking events."""
    meter = require_meter(call, store)
    if meter["status"] == "inactive":
        raise StripeRefusal("This meter is already inactive.")
    return _change(call, meter, status="inactive", status_transitions={"deactivated_at": call.now})


def reactivate_meter(call: Call, store: Store) -> Outcome:
    """Take events again."""
    meter = require_meter(call, store)
    if meter["status"] == "active":
        raise StripeRefusal("This meter is already active.")
    return _change(call, meter, status="active", status_transitions={"deactivated_at": None})


def require_meter(call: Call, store: Store) -> Json:
    """The meter that the path names."""
    meter = store.find(TABLE, call.key(call.ids[0]))
    if meter is None:
        raise refuse_missing("meter", call.ids[0])
    return meter


def find_active_meter(call: Call, store: Store, event_name: str) -> Json | None:
    """The meter that takes events of this name now."""
    rows = store.iter_rows(TABLE, call.scope)
    return next((row for row in rows if row["event_name"] == event_name and row["status"] == "active"), None)


def _change(call: Call, meter: Json, **fields: object) -> Outcome:
    changed = {**meter, **fields, "updated": call.now}
    return Outcome(changed, [Change(TABLE, call.key(meter["id"]), changed)])


def _read_key(given: Json) -> Json:
    return {"event_payload_key": read_text(given, "event_payload_key", 100)}
