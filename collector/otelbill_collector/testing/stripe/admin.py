"""The local Stripe's own endpoints, for tests in another process: `/_oracle/*` reads, `/_admin/*` scripts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any, Protocol

from otelbill_collector.testing.loopback import Reply, Request
from otelbill_collector.testing.stripe.call import Behaviour, CustomerCheck, LaneLock
from otelbill_collector.testing.stripe.clock import SettableClock
from otelbill_collector.testing.stripe.errors import Json
from otelbill_collector.testing.stripe.faults import Fault, FaultKind, FaultScript
from otelbill_collector.testing.stripe.oracle import HourSum


class Administrable(Protocol):
    """The part of the local Stripe that these endpoints reach."""

    behaviour: Behaviour
    clock: SettableClock
    faults: FaultScript

    def list_events(self) -> list[Json]:
        """Every event taken."""

    def sum_hours(self) -> list[HourSum]:
        """Exact sums of what counted."""

    def add_customer(self, customer_id: str, *, scope: str = "self/test") -> Json:
        """Make a customer."""


def respond_admin(server: Administrable, request: Request) -> Reply:
    """Answer one of the endpoints; 404 for any other, 400 with the reason for a request it cannot read."""
    try:
        value = _run(server, request)
    except (ValueError, TypeError, KeyError) as error:
        return _reply(400, {"error": f"{type(error).__name__}: {error}"})
    return _reply(404, {"error": f"unknown: {request.method} {request.path}"}) if value is None else _reply(200, value)


def _run(server: Administrable, request: Request) -> Any:
    given = json.loads(request.read_body() or b"{}") if request.method == "POST" else {}
    match request.method, request.path:
        case "GET", "/_oracle/events":
            return server.list_events()
        case "GET", "/_oracle/sums":
            return [total.to_json() for total in server.sum_hours()]
        case "GET", "/_admin/faults":
            return server.faults.to_json()
        case "POST", "/_admin/faults":
            server.faults.add(Fault(**{**given, "kind": FaultKind(given["kind"])}))
            return server.faults.to_json()
        case "DELETE", "/_admin/faults":
            server.faults.clear()
            return server.faults.to_json()
        case (("GET" | "POST"), "/_admin/behaviour"):
            server.behaviour = change_behaviour(server.behaviour, given)
            return asdict(server.behaviour)
        case (("GET" | "POST"), "/_admin/clock"):
            return _move_clock(server, given)
        case "POST", "/_admin/customers":
            return server.add_customer(given["id"])
    return None


def change_behaviour(current: Behaviour, given: dict[str, Any]) -> Behaviour:
    """The behaviour with the named switches changed; raises TypeError or ValueError for an unknown one."""
    typed = dict(given)
    if "customer_check" in typed:
        typed["customer_check"] = CustomerCheck(typed["customer_check"])
    if "lane_lock" in typed:
        typed["lane_lock"] = LaneLock(typed["lane_lock"])
    return replace(current, **typed)


def _move_clock(server: Administrable, given: dict[str, Any]) -> dict[str, int]:
    if "now" in given:
        server.clock.set(None if given["now"] is None else int(given["now"]))
    if "advance" in given:
        server.clock.advance(int(given["advance"]))
    return {"now": server.clock.now()}


def _reply(status: int, value: Any) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})
