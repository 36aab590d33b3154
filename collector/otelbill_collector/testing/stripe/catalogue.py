"""Customers and products, as far as meters and prices need them."""

from __future__ import annotations

from collections.abc import Callable

from otelbill_collector.testing.stripe.call import Call, Outcome
from otelbill_collector.testing.stripe.errors import Json, StripeRefusal, refuse_missing
from otelbill_collector.testing.stripe.forms import Params, page, read_flag, read_metadata, read_text
from otelbill_collector.testing.stripe.store import Change, Store, make_id

CUSTOMERS = "customers"
PRODUCTS = "products"
PAGING = ("limit", "starting_after", "ending_before")
CREATE_CUSTOMER = Params(optional=("id", "name", "email", "description", "phone", "metadata"))
UPDATE_CUSTOMER = Params(optional=("name", "email", "description", "phone", "metadata"))
LIST_CUSTOMERS = Params(optional=("email", *PAGING))
CREATE_PRODUCT = Params(required=("name",), optional=("id", "active", "description", "metadata", "unit_label"))
UPDATE_PRODUCT = Params(optional=("name", "active", "description", "metadata", "unit_label"))
LIST_PRODUCTS = Params(optional=("active", "ids", *PAGING))


def create_customer(call: Call, store: Store) -> Outcome:
    """A customer; like Stripe it takes an own `id`, so that tests can name their customers."""
    given = call.params
    customer: Json = {
        "id": read_text(given, "id", 255) or make_id("cus", call.scope, store.count(CUSTOMERS)),
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": call.now,
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "livemode": call.livemode,
        "metadata": read_metadata(given, {}),
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
        **{name: given.get(name) or None for name in ("name", "email", "description", "phone")},
    }
    return _insert(call, store, CUSTOMERS, customer)


def update_customer(call: Call, store: Store) -> Outcome:
    """Change a customer's own fields."""
    customer = _require(call, store, CUSTOMERS, "customer")
    fields: Json = {
        name: call.params[name] for name in ("name", "email", "description", "phone") if name in call.params
    }
    changed = {**customer, **fields, "metadata": read_metadata(call.params, customer["metadata"])}
    return Outcome(changed, [Change(CUSTOMERS, call.key(customer["id"]), changed)])


def retrieve_customer(call: Call, store: Store) -> Outcome:
    """The customer."""
    return Outcome(_require(call, store, CUSTOMERS, "customer"))


def list_customers(call: Call, store: Store) -> Outcome:
    """Customers, newest first, optionally of one e-mail address."""
    email = call.params.get("email")
    return _list(call, store, CUSTOMERS, lambda row: email in (None, row["email"]))


def create_product(call: Call, store: Store) -> Outcome:
    """A service product."""
    return _insert(call, store, PRODUCTS, build_product(call, store, call.params))


def build_product(call: Call, store: Store, given: Json) -> Json:
    """A product from its own parameters or from a price's `product_data`."""
    return {
        "id": read_text(given, "id", 255) or make_id("prod", call.scope, store.count(PRODUCTS)),
        "object": "product",
        "active": read_flag(given, "active", True),
        "created": call.now,
        "default_price": None,
        "description": given.get("description"),
        "images": [],
        "livemode": call.livemode,
        "marketing_features": [],
        "metadata": read_metadata(given, {}),
        "name": read_text(given, "name", 250),
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": None,
        "tax_code": None,
        "type": "service",
        "unit_label": given.get("unit_label"),
        "updated": call.now,
        "url": None,
    }


def update_product(call: Call, store: Store) -> Outcome:
    """Change a product's own fields."""
    product = _require(call, store, PRODUCTS, "product")
    fields: Json = {name: call.params[name] for name in ("name", "description", "unit_label") if name in call.params}
    active = read_flag(call.params, "active", product["active"])
    metadata = read_metadata(call.params, product["metadata"])
    changed = {**product, **fields, "active": active, "metadata": metadata, "updated": call.now}
    return Outcome(changed, [Change(PRODUCTS, call.key(product["id"]), changed)])


def retrieve_product(call: Call, store: Store) -> Outcome:
    """The product."""
    return Outcome(_require(call, store, PRODUCTS, "product"))


def list_products(call: Call, store: Store) -> Outcome:
    """Products, newest first, optionally by ids or activity."""
    ids, active = call.params.get("ids"), call.params.get("active")
    wanted = None if active is None else read_flag(call.params, "active", True)

    def matches(row: Json) -> bool:
        return (ids is None or row["id"] in ids) and wanted in (None, row["active"])

    return _list(call, store, PRODUCTS, matches)


def _list(call: Call, store: Store, table: str, keep: Callable[[Json], bool]) -> Outcome:
    rows = [row for row in store.iter_rows(table, call.scope) if keep(row)]
    return Outcome(page(rows[::-1], call.params, call.path))


def _insert(call: Call, store: Store, table: str, row: Json) -> Outcome:
    if store.find(table, call.key(row["id"])):
        message = f"{row['object'].capitalize()} already exists: {row['id']}"
        raise StripeRefusal(message, code="resource_already_exists", param="id")
    return Outcome(row, [Change(table, call.key(row["id"]), row)])


def _require(call: Call, store: Store, table: str, kind: str) -> Json:
    row = store.find(table, call.key(call.ids[0]))
    if row is None:
        raise refuse_missing(kind, call.ids[0])
    return row
