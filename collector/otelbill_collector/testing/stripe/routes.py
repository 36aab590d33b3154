"""Which endpoint answers which method and path, and the parameters it takes. Everything else is an unknown URL."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from otelbill_collector.testing.stripe import catalogue, events, meters, prices, summaries
from otelbill_collector.testing.stripe.call import Call, Outcome
from otelbill_collector.testing.stripe.forms import Params
from otelbill_collector.testing.stripe.store import Store

Endpoint = Callable[[Call, Store], Outcome]
_NO_PARAMS = Params()


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint and its top-level parameters."""

    method: str
    pattern: re.Pattern[str]
    params: Params
    endpoint: Endpoint


def find_route(method: str, path: str) -> tuple[Route, tuple[str, ...]] | None:
    """The route and the ids in its path."""
    for route in _ROUTES:
        match = route.pattern.fullmatch(path) if route.method == method else None
        if match is not None:
            return route, match.groups()
    return None


def _route(method: str, template: str, params: Params, endpoint: Endpoint) -> Route:
    return Route(method, re.compile("/v1" + template.replace("{id}", "([^/]+)")), params, endpoint)


_ROUTES = (
    _route("POST", "/billing/meter_events", events.CREATE, events.create_event),
    _route("POST", "/billing/meter_event_adjustments", events.CANCEL, events.cancel_event),
    _route("POST", "/billing/meters", meters.CREATE, meters.create_meter),
    _route("GET", "/billing/meters", meters.LIST, meters.list_meters),
    _route("GET", "/billing/meters/{id}", _NO_PARAMS, meters.retrieve_meter),
    _route("POST", "/billing/meters/{id}", meters.UPDATE, meters.update_meter),
    _route("POST", "/billing/meters/{id}/deactivate", _NO_PARAMS, meters.deactivate_meter),
    _route("POST", "/billing/meters/{id}/reactivate", _NO_PARAMS, meters.reactivate_meter),
    _route("GET", "/billing/meters/{id}/event_summaries", summaries.LIST, summaries.list_summaries),
    _route("POST", "/customers", catalogue.CREATE_CUSTOMER, catalogue.create_customer),
    _route("GET", "/customers", catalogue.LIST_CUSTOMERS, catalogue.list_customers),
    _route("GET", "/customers/{id}", _NO_PARAMS, catalogue.retrieve_customer),
    _route("POST", "/customers/{id}", catalogue.UPDATE_CUSTOMER, catalogue.update_customer),
    _route("POST", "/products", catalogue.CREATE_PRODUCT, catalogue.create_product),
    _route("GET", "/products", catalogue.LIST_PRODUCTS, catalogue.list_products),
    _route("GET", "/products/{id}", _NO_PARAMS, catalogue.retrieve_product),
    _route("POST", "/products/{id}", catalogue.UPDATE_PRODUCT, catalogue.update_product),
    _route("POST", "/prices", prices.CREATE, prices.create_price),
    _route("GET", "/prices", prices.LIST, prices.list_prices),
    _route("GET", "/prices/{id}", _NO_PARAMS, prices.retrieve_price),
    _route("POST", "/prices/{id}", prices.UPDATE, prices.update_price),
)
