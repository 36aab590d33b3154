"""Prices: create, list, retrieve, update. Amounts, tiers, currency and recurrence never change once created."""

from __future__ import annotations

import re
from decimal import Decimal

from otelbill_collector.testing.stripe.call import Call, Outcome
from otelbill_collector.testing.stripe.catalogue import PAGING, PRODUCTS, build_product
from otelbill_collector.testing.stripe.errors import Json, StripeRefusal, refuse_missing
from otelbill_collector.testing.stripe.forms import (
    Params,
    check_params,
    page,
    read_choice,
    read_flag,
    read_int,
    read_metadata,
    read_text,
)
from otelbill_collector.testing.stripe.meters import TABLE as METERS
from otelbill_collector.testing.stripe.store import Change, Store, make_id

TABLE = "prices"
DECIMALS_MAX = 12
_LABELS = ("active", "metadata", "nickname", "lookup_key", "transfer_lookup_key", "tax_behavior")
CREATE = Params(
    required=("currency",),
    optional=(
        *("product", "product_data", "recurring", "billing_scheme", "unit_amount", "unit_amount_decimal"),
        *("tiers", "tiers_mode", "transform_quantity"),
        *_LABELS,
    ),
)
UPDATE = Params(optional=_LABELS)
LIST = Params(optional=("active", "currency", "lookup_keys", "product", "recurring", "type", *PAGING))
_RECURRING = Params(("interval",), ("interval_count", "usage_type", "meter"))
_TIER = Params(("up_to",), ("unit_amount", "unit_amount_decimal", "flat_amount", "flat_amount_decimal"))
_DECIMAL = re.compile(r"-?\d+(\.\d+)?", re.ASCII)


def create_price(call: Call, store: Store) -> Outcome:
    """A price of an existing product, or of one made from `product_data`."""
    given = call.params
    changes: list[Change] = []
    product = _read_product(call, store, changes)
    tiers = _read_tiers(given)
    amount = (None, None) if tiers else _read_amount(given, "unit_amount")
    if not tiers and amount[1] is None:
        raise StripeRefusal("Missing required param: unit_amount.", code="parameter_missing", param="unit_amount")
    recurring = _read_recurring(call, store)
    price = {
        "id": make_id("price", call.scope, store.count(TABLE)),
        "object": "price",
        "active": read_flag(given, "active", True),
        "billing_scheme": "tiered" if tiers else "per_unit",
        "created": call.now,
        "currency": str(given["currency"]).lower(),
        "custom_unit_amount": None,
        "livemode": call.livemode,
        "lookup_key": read_text(given, "lookup_key", 200) or None,
        "metadata": read_metadata(given, {}),
        "nickname": given.get("nickname"),
        "product": product,
        "recurring": recurring,
        "tax_behavior": given.get("tax_behavior", "unspecified"),
        "tiers": tiers,
        "tiers_mode": read_choice(given, "tiers_mode", ("graduated", "volume")),
        "transform_quantity": _read_transform(given, tiers),
        "type": "recurring" if recurring else "one_time",
        "unit_amount": amount[0],
        "unit_amount_decimal": amount[1],
    }
    changes += _take_lookup_key(call, store, price)
    return Outcome(
        _render(price, expanded=call.expands("tiers")), [*changes, Change(TABLE, call.key(price["id"]), price)]
    )


def retrieve_price(call: Call, store: Store) -> Outcome:
    """The price; its tiers only when they are expanded."""
    return Outcome(_render(_require(call, store), expanded=call.expands("tiers")))


def update_price(call: Call, store: Store) -> Outcome:
    """Change labels and activity."""
    price, given = _require(call, store), call.params
    changed = {
        **price,
        "active": read_flag(given, "active", price["active"]),
        "metadata": read_metadata(given, price["metadata"]),
        "lookup_key": read_text(given, "lookup_key", 200, price["lookup_key"] or "") or None,
        "nickname": given.get("nickname", price["nickname"]),
        "tax_behavior": given.get("tax_behavior", price["tax_behavior"]),
    }
    changes = _take_lookup_key(call, store, changed)
    body = _render(changed, expanded=call.expands("tiers"))
    return Outcome(body, [*changes, Change(TABLE, call.key(price["id"]), changed)])


def list_prices(call: Call, store: Store) -> Outcome:
    """Prices, newest first, by any of the filters."""
    given = call.params
    active = None if "active" not in given else read_flag(given, "active", True)
    recurring = given.get("recurring", {})
    rows = [
        row
        for row in store.iter_rows(TABLE, call.scope)
        if active in (None, row["active"])
        and ("lookup_keys" not in given or row["lookup_key"] in given["lookup_keys"])
        and all(given.get(name) in (None, row[name]) for name in ("currency", "product", "type"))
        and all((row["recurring"] or {}).get(name) == value for name, value in recurring.items())
    ]
    expanded = call.expands("data.tiers")
    return Outcome(page([_render(row, expanded=expanded) for row in rows[::-1]], given, call.path))


def _require(call: Call, store: Store) -> Json:
    price = store.find(TABLE, call.key(call.ids[0]))
    if price is None:
        raise refuse_missing("price", call.ids[0])
    return price


def _render(price: Json, *, expanded: bool) -> Json:
    return price if expanded else {name: value for name, value in price.items() if name != "tiers"}


def _read_product(call: Call, store: Store, changes: list[Change]) -> str:
    given = call.params
    if ("product" in given) == ("product_data" in given):
        raise StripeRefusal("You must specify one of `product` or `product_data`.", param="product")
    if "product" in given:
        if store.find(PRODUCTS, call.key(given["product"])) is None:
            raise refuse_missing("product", given["product"], param="product", status=400)
        return str(given["product"])
    check_params(
        given["product_data"], Params(("name",), ("id", "active", "metadata", "unit_label")), prefix="product_data"
    )
    product = build_product(call, store, given["product_data"])
    changes.append(Change(PRODUCTS, call.key(product["id"]), product))
    return str(product["id"])


def _read_recurring(call: Call, store: Store) -> Json | None:
    given = call.params.get("recurring")
    if given is None:
        return None
    check_params(given, _RECURRING, prefix="recurring")
    usage_type = read_choice(given, "usage_type", ("licensed", "metered"), "licensed")
    meter = given.get("meter")
    if (usage_type == "metered") != (meter is not None):
        raise StripeRefusal(
            "`recurring[meter]` goes with usage_type=metered, and only with it.", param="recurring[meter]"
        )
    if meter is not None and store.find(METERS, call.key(meter)) is None:
        raise refuse_missing("meter", meter, param="recurring[meter]", status=400)
    return {
        "interval": read_choice(given, "interval", ("day", "week", "month", "year")),
        "interval_count": read_int(given, "interval_count", 1),
        "meter": meter,
        "trial_period_days": None,
        "usage_type": usage_type,
    }


def _read_tiers(given: Json) -> list[Json] | None:
    tiers = given.get("tiers")
    if (tiers is None) != (given.get("billing_scheme", "per_unit") == "per_unit"):
        raise StripeRefusal("`tiers` goes with billing_scheme=tiered, and only with it.", param="tiers")
    if tiers is None:
        return None
    if "tiers_mode" not in given:
        raise StripeRefusal("Missing required param: tiers_mode.", code="parameter_missing", param="tiers_mode")
    return [_read_tier(tier, f"tiers[{n}]") for n, tier in enumerate(tiers)]


def _read_tier(tier: Json, prefix: str) -> Json:
    check_params(tier, _TIER, prefix=prefix)
    flat, unit = _read_amount(tier, "flat_amount"), _read_amount(tier, "unit_amount")
    return {
        "flat_amount": flat[0],
        "flat_amount_decimal": flat[1],
        "unit_amount": unit[0],
        "unit_amount_decimal": unit[1],
        "up_to": None if tier["up_to"] == "inf" else read_int(tier, "up_to"),
    }


def _read_amount(given: Json, name: str) -> tuple[int | None, str | None]:
    """Whole minor units (None when there is a fraction) and decimal text, from either form of the amount."""
    decimal = f"{name}_decimal"
    if name in given and decimal in given:
        raise StripeRefusal(f"You may only specify one of `{name}` and `{decimal}`.", param=name)
    if name in given:
        whole = read_int(given, name)
        return whole, str(whole)
    text = given.get(decimal)
    if text is None:
        return None, None
    if not _DECIMAL.fullmatch(text) or len(text.partition(".")[2]) > DECIMALS_MAX:
        message = f"Invalid decimal: {text}; at most {DECIMALS_MAX} decimal places, without exponent"
        raise StripeRefusal(message, code="parameter_invalid_decimal", param=decimal)
    value = Decimal(text)
    return (int(value) if value == value.to_integral_value() else None), text


def _read_transform(given: Json, tiers: list[Json] | None) -> Json | None:
    transform = given.get("transform_quantity")
    if transform is None:
        return None
    if tiers:
        raise StripeRefusal("`transform_quantity` cannot be combined with `tiers`.", param="transform_quantity")
    check_params(transform, Params(("divide_by", "round")), prefix="transform_quantity")
    return {
        "divide_by": read_int(transform, "divide_by"),
        "round": read_choice(transform, "round", ("up", "down")),
    }


def _take_lookup_key(call: Call, store: Store, price: Json) -> list[Change]:
    """Move the lookup key here from the price that has it, where the caller allows that."""
    others = (row for row in store.iter_rows(TABLE, call.scope) if row["id"] != price["id"])
    holder = next((row for row in others if price["lookup_key"] and row["lookup_key"] == price["lookup_key"]), None)
    if holder is None:
        return []
    if not read_flag(call.params, "transfer_lookup_key", False):
        message = f"A price (`{holder['id']}`) already uses that lookup key."
        raise StripeRefusal(message, code="resource_already_exists", param="lookup_key")
    return [Change(TABLE, call.key(holder["id"]), {**holder, "lookup_key": None})]
