"""A local Stripe for the real `stripe` client: v1 billing meters and what they need, with faults and an oracle.

Owns the order in which a request is answered; the rules of each resource are in the modules of `stripe`. Knows only
what Stripe documents or what was observed; what is unknown is a switch in `Behaviour`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otelbill_collector.testing.loopback import ConnectionReset, LoopbackServer, Reply, Request, serve_until_signal
from otelbill_collector.testing.stripe import oracle
from otelbill_collector.testing.stripe.admin import respond_admin
from otelbill_collector.testing.stripe.auth import read_scope
from otelbill_collector.testing.stripe.call import Behaviour, Call, CustomerCheck, LaneLock, Outcome
from otelbill_collector.testing.stripe.catalogue import create_customer
from otelbill_collector.testing.stripe.clock import SettableClock
from otelbill_collector.testing.stripe.errors import Json, StripeRefusal
from otelbill_collector.testing.stripe.events import Lane, lane_of
from otelbill_collector.testing.stripe.faults import Fault, FaultKind, FaultScript, FiredFault
from otelbill_collector.testing.stripe.forms import check_params, parse_form
from otelbill_collector.testing.stripe.gates import Gates, refuse_locked, refuse_rate
from otelbill_collector.testing.stripe.idempotency import Answer, KeyedRequest, key_request
from otelbill_collector.testing.stripe.oracle import HourSum
from otelbill_collector.testing.stripe.routes import Route, find_route
from otelbill_collector.testing.stripe.store import Store

_FORM = "application/x-www-form-urlencoded"


@dataclass(slots=True)
class _Progress:
    """What became of one request, for the record of the fault that hit it."""

    committed: bool = False


class StripeServer(LoopbackServer):
    """`with StripeServer() as server: StripeClient("sk_test_x", base_addresses=server.base_addresses)`."""

    def __init__(
        self,
        *,
        port: int = 0,
        state: Path | None = None,
        clock: SettableClock | None = None,
        behaviour: Behaviour | None = None,
        api_keys: frozenset[str] | None = None,
    ) -> None:
        """`state` is a log file that outlives the process; `api_keys` None accepts every well-formed secret key."""
        super().__init__(port=port)
        self.clock = clock or SettableClock()
        self.behaviour = behaviour or Behaviour()
        self.faults = FaultScript()
        self._store = Store(state)
        self._api_keys = api_keys
        self._guard = threading.RLock()
        self._gates = Gates()
        self._requests = itertools.count(1)

    @property
    def base_addresses(self) -> Any:  # the client's own TypedDict, which is not imported here
        """What `stripe.StripeClient(base_addresses=...)` wants: a dict of text."""
        return {"api": self.base_url, "meter_events": self.base_url}

    def stop(self) -> None:
        """Stop serving and close the state file."""
        super().stop()
        with self._guard:
            self._store.close()

    def list_events(self) -> list[Json]:
        """Oracle: every event taken, in order of receipt, with `status` counted, cancelled or failed."""
        with self._guard:
            return oracle.list_events(self._store)

    def sum_hours(self) -> list[HourSum]:
        """Oracle: exact sums of counted events by account and mode, meter, customer and UTC hour."""
        with self._guard:
            return oracle.sum_hours(self._store)

    def add_customer(self, customer_id: str, *, scope: str = "self/test") -> Json:
        """Make a customer of this id in an account and mode; one that exists is left as it is."""
        with self._guard:
            existing = self._store.find("customers", f"{scope}/{customer_id}")
            if existing is not None:
                return existing
            call = Call(
                scope, scope.endswith("/live"), "", (), {"id": customer_id}, self.clock.now(), "", None, self.behaviour
            )
            outcome = create_customer(call, self._store)
            self._store.commit(outcome.changes)
            return outcome.body

    def respond(self, request: Request) -> Reply:
        """Answer one API request, or one of the server's own endpoints."""
        if request.path.startswith("/_"):
            return respond_admin(self, request)
        request_id = f"req_{next(self._requests):014d}"
        fault = self.faults.take(request.method, request.path)
        progress = _Progress()
        try:
            if fault is not None and fault.kind is FaultKind.RESET_BEFORE_READ:
                raise ConnectionReset
            reply = self._reply(request, request_id, fault, progress)
        finally:
            if fault is not None:
                self.faults.record(fault, request_id, committed=progress.committed)
        return self._disturb(reply, fault) if fault else reply

    def _reply(self, request: Request, request_id: str, fault: Fault | None, progress: _Progress) -> Reply:
        headers = {"Content-Type": "application/json", "Request-Id": request_id}
        for name in ("idempotency-key", "stripe-version"):
            if name in request.headers:
                headers[name] = request.headers[name]
        try:
            answer = self._answer(request, request_id, fault, progress)
        except StripeRefusal as refusal:
            return Reply(refusal.status, json.dumps(refusal.body).encode(), {**headers, **refusal.headers})
        if answer.replayed:
            headers["Idempotent-Replayed"] = "true"
        return Reply(answer.status, json.dumps(answer.body).encode(), headers)

    def _answer(self, request: Request, request_id: str, fault: Fault | None, progress: _Progress) -> Answer:
        body = request.read_body()
        scope = read_scope(request.headers, self._api_keys)
        self._gates.check_rate(self.clock.now(), self.behaviour.requests_per_second)
        if fault is not None:
            _refuse_by_fault(fault)
        found = find_route(request.method, request.path)
        if found is None:
            raise StripeRefusal(f"Unrecognized request URL ({request.method}: {request.path}).", status=404)
        route, ids = found
        if body and not request.headers.get("content-type", "").startswith(_FORM):
            raise StripeRefusal(f"Invalid content type: v1 requests take {_FORM}.")
        params = parse_form(request.query if request.method == "GET" else body.decode(errors="replace"))
        key = request.headers.get("idempotency-key") if request.method == "POST" else None
        call = Call(
            scope=scope,
            livemode=scope.endswith("/live"),
            path=request.path,
            ids=ids,
            params=params,
            now=self.clock.now(),
            request_id=request_id,
            idempotency_key=key,
            behaviour=self.behaviour,
        )
        keyed = key_request(key, scope=scope, route=f"{request.method} {request.path}", body=body)
        with self._gates.hold_key(keyed), self._gates.hold_lane(self._find_lane(call), call.behaviour.lane_lock):
            self.pause(call.behaviour.latency_seconds)
            with self._guard:
                return self._run(call, route, keyed, fault, progress)

    def _run(
        self, call: Call, route: Route, keyed: KeyedRequest | None, fault: Fault | None, progress: _Progress
    ) -> Answer:
        """Replay, or validate, execute and commit together with the answer that its key keeps."""
        saved = keyed.find_saved(self._store, call.now) if keyed else None
        if saved is not None:
            return saved
        check_params(call.params, route.params)
        if fault is not None and fault.kind is FaultKind.ERROR_BEFORE_COMMIT:
            outcome, answer = Outcome({}), _fail(fault)
            kept = answer if fault.is_saved else None
        else:
            outcome = route.endpoint(call, self._store)
            kept = answer = Answer(200, outcome.body)
            if fault is not None and fault.kind is FaultKind.ERROR_AFTER_COMMIT:
                answer = _fail(fault)
                kept = answer if fault.is_saved else kept
        changes = [*outcome.changes, *([keyed.save(kept, call.now)] if keyed and kept else [])]
        if changes:
            self._store.commit(changes)
        progress.committed = bool(outcome.changes)
        return answer

    def _find_lane(self, call: Call) -> Lane | None:
        with self._guard:
            return lane_of(call, self._store) if call.path.endswith("/meter_events") else None

    def _disturb(self, reply: Reply, fault: Fault) -> Reply:
        match fault.kind:
            case FaultKind.RESET_AFTER_COMMIT:
                raise ConnectionReset
            case FaultKind.DELAY:
                self.pause(fault.seconds)
            case FaultKind.GARBAGE:
                return Reply(200, b"<html>not what you asked for</html>", {"Content-Type": "text/html"})
            case FaultKind.TRUNCATED:
                return Reply(reply.status, reply.body, reply.headers, cut=True)
        return reply


def _refuse_by_fault(fault: Fault) -> None:
    if fault.kind is FaultKind.RATE_LIMIT:
        raise refuse_rate(fault.reason, fault.answer_status)
    if fault.kind is FaultKind.LOCK_TIMEOUT:
        raise refuse_locked(fault.answer_status)


def _fail(fault: Fault) -> Answer:
    error = {"message": "The local Stripe failed on purpose.", "type": "api_error"}
    return Answer(fault.answer_status, {"error": error})


def main(arguments: list[str] | None = None) -> None:
    """Run the local Stripe until SIGTERM; prints its address first."""
    parser = argparse.ArgumentParser(
        prog="python -m otelbill_collector.testing.stripe_server", description=main.__doc__
    )
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 picks a free one")
    parser.add_argument("--state", type=Path, help="log file that keeps everything over a restart")
    parser.add_argument(
        "--customers",
        choices=[check.value for check in CustomerCheck],
        default=CustomerCheck.SYNC.value,
        help="when an unknown customer of an event is noticed",
    )
    chosen = parser.parse_args(arguments)
    behaviour = Behaviour(customer_check=CustomerCheck(chosen.customers))
    serve_until_signal(StripeServer(port=chosen.port, state=chosen.state, behaviour=behaviour), "stripe")


__all__ = [
    "Behaviour",
    "CustomerCheck",
    "Fault",
    "FaultKind",
    "FiredFault",
    "HourSum",
    "LaneLock",
    "SettableClock",
    "StripeServer",
    "main",
]

if __name__ == "__main__":
    main()
