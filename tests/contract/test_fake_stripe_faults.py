"""The local Stripe fails as Stripe can: the real client sees what was measured, and the oracle knows what was done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stripe

from otelbill_collector.testing.loopback import Reply, Request
from otelbill_collector.testing.stripe_server import (
    Behaviour,
    CustomerCheck,
    Fault,
    FaultKind,
    LaneLock,
    SettableClock,
    StripeServer,
)

NOW = 1_795_168_800  # 2026-11-20T10:00:00Z
DAY = 24 * 3600
Connect = Callable[..., Any]


class CountingServer(StripeServer):
    """Notes the Idempotency-Key of every event request; with a latency set, holds requests until `gate` opens."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.keys: list[str | None] = []
        self.entered, self.gate = threading.Event(), threading.Event()

    def hold(self) -> None:
        """Stand where a request waits for Stripe's own work."""
        self.entered.set()
        assert self.gate.wait(10)

    def pause(self, seconds: float) -> None:
        if self.behaviour.latency_seconds:
            self.hold()
        else:
            super().pause(seconds)

    def respond(self, request: Request) -> Reply:
        if request.path == "/v1/billing/meter_events":
            self.keys.append(request.headers.get("idempotency-key"))
        return super().respond(request)


@pytest.fixture
def server() -> Iterator[CountingServer]:
    behaviour = Behaviour(customer_check=CustomerCheck.OFF)
    with CountingServer(clock=SettableClock(NOW), behaviour=behaviour) as server:
        yield server


@pytest.fixture
def http(monkeypatch: pytest.MonkeyPatch) -> Iterator[stripe.RequestsClient]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(stripe, "enable_telemetry", False)
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)  # the retry's backoff, not its number
    monkeypatch.setattr(stripe.HTTPClient, "MAX_DELAY", 0.002)
    http: Any = stripe.RequestsClient()
    yield http
    http.close()


@pytest.fixture
def connect(server: CountingServer, http: stripe.RequestsClient) -> Connect:
    def connect(key: str = "sk_test_x", **options: Any) -> Any:
        return stripe.StripeClient(key, base_addresses=server.base_addresses, http_client=http, **options)

    return connect


@pytest.fixture
def client(connect: Connect) -> Any:
    client = connect()
    _create_meter(client)
    return client


def _create_meter(client: Any) -> Any:
    params: Any = {"event_name": "tok", "display_name": "Tokens", "default_aggregation": {"formula": "sum"}}
    return client.v1.billing.meters.create(params)


def _send(client: Any, key: str | None = None, **fields: Any) -> Any:
    payload = {"stripe_customer_id": "cus_1", "value": "5"}
    params: Any = {"event_name": "tok", "identifier": "abc", "payload": payload, **fields}
    return client.v1.billing.meter_events.create(params, {"idempotency_key": key} if key else {})


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["sk_test_", "pk_test_1", "nonsense", "sk_prod_1"])
def test_malformed_keys_are_unauthorised(server: StripeServer, connect: Connect, key: str) -> None:
    """What is not a secret key is a 401."""
    with pytest.raises(stripe.AuthenticationError):
        connect(key).v1.billing.meters.list()


def test_only_named_keys_are_known(connect: Connect, http: stripe.RequestsClient) -> None:
    """Where keys are named, any other is a 401; a restricted key stands for a missing permission, 403."""
    with StripeServer(api_keys=frozenset({"sk_test_mine"})) as server:
        addresses: Any = server.base_addresses
        mine, other = (
            stripe.StripeClient(k, base_addresses=addresses, http_client=http) for k in ("sk_test_mine", "sk_test_a")
        )
        assert mine.v1.billing.meters.list().data == []
        with pytest.raises(stripe.AuthenticationError):
            other.v1.billing.meters.list()
    with pytest.raises(stripe.PermissionError):
        connect("rk_test_1").v1.billing.meters.list()


def test_every_answer_has_a_request_id(client: Any) -> None:
    """Good and bad answers carry a Request-Id of their own, for support cases and dead letters."""
    good = client.v1.billing.meters.list().last_response
    with pytest.raises(stripe.InvalidRequestError) as bad:
        client.v1.billing.meters.retrieve("mtr_none")
    assert good is not None
    assert good.request_id
    assert bad.value.request_id not in (None, good.request_id)


# --- idempotency keys -------------------------------------------------------------------------------------------------


def test_key_replays_its_answer(server: StripeServer, client: Any) -> None:
    """The same request under the same key gets the saved answer, marked as replayed, and is not done twice."""
    first, second = _send(client, "k"), _send(client, "k")
    assert first.to_dict() == second.to_dict()
    assert "Idempotent-Replayed" not in first.last_response.headers
    assert second.last_response.headers["Idempotent-Replayed"] == "true"
    assert len(server.list_events()) == 1


def test_key_with_other_parameters_is_refused(server: StripeServer, client: Any) -> None:
    """A key names one request: with other parameters it is a 400 idempotency_error."""
    _send(client, "k")
    with pytest.raises(stripe.IdempotencyError):
        _send(client, "k", identifier="def")
    assert len(server.list_events()) == 1


def test_refusals_are_not_saved(server: StripeServer, client: Any) -> None:
    """A validation failure is not kept under the key: after the fix the same request goes through."""
    (meter,) = client.v1.billing.meters.list().data
    client.v1.billing.meters.deactivate(meter.id)
    with pytest.raises(stripe.InvalidRequestError, match="No active meter"):
        _send(client, "k")
    client.v1.billing.meters.reactivate(meter.id)
    _send(client, "k")
    assert len(server.list_events()) == 1


def test_key_is_forgotten_after_a_day(server: StripeServer, client: Any) -> None:
    """After 24 hours a key is new again."""
    _send(client, "k")
    server.clock.advance(DAY)
    assert "Idempotent-Replayed" not in _send(client, "k", identifier="def").last_response.headers


def test_saved_500_is_replayed_until_the_key_changes(server: StripeServer, client: Any) -> None:
    """A 500 after the commit is what its key replays; under a new key the identifier tells that it was taken."""
    server.faults.add(Fault(FaultKind.ERROR_AFTER_COMMIT))
    for _ in range(2):
        with pytest.raises(stripe.APIError) as failed:
            _send(client, "k.0")
        assert failed.value.http_status == 500
    assert {k.lower() for k in failed.value.headers or {}} >= {"idempotent-replayed"}
    with pytest.raises(stripe.InvalidRequestError, match="already exists with identifier abc"):
        _send(client, "k.1")
    assert len(server.list_events()) == 1


# --- scripted faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error", "committed"),
    [
        (Fault(FaultKind.ERROR_BEFORE_COMMIT), stripe.APIError, False),
        (Fault(FaultKind.ERROR_BEFORE_COMMIT, status=503), stripe.APIError, False),
        (Fault(FaultKind.ERROR_AFTER_COMMIT, status=502), stripe.APIError, True),
        (Fault(FaultKind.RESET_BEFORE_READ), stripe.APIConnectionError, False),
        (Fault(FaultKind.RESET_AFTER_COMMIT), stripe.APIConnectionError, True),
        (Fault(FaultKind.RATE_LIMIT, reason="global-rate"), stripe.RateLimitError, False),
        (Fault(FaultKind.LOCK_TIMEOUT), stripe.RateLimitError, False),
        (Fault(FaultKind.GARBAGE), stripe.APIError, True),
        (Fault(FaultKind.TRUNCATED), stripe.APIConnectionError, True),
    ],
    ids=lambda value: f"{value.kind}-{value.status}" if isinstance(value, Fault) else None,
)
def test_fault_and_whether_it_committed(
    server: StripeServer, client: Any, fault: Fault, error: type[Exception], committed: bool
) -> None:
    """Each fault raises its exception once, the oracle agrees with the fault's committed flag, and life goes on."""
    server.faults.add(fault)
    with pytest.raises(error):
        _send(client)

    assert fault.commits is committed
    assert [fired.committed for fired in server.faults.fired] == [committed]
    assert len(server.list_events()) == committed
    _send(client, identifier="next")
    assert len(server.list_events()) == committed + 1


def test_delay_commits_before_the_client_gives_up(server: StripeServer, client: Any) -> None:
    """An answer later than the client's patience is an unknown outcome, though the work is done."""
    server.faults.add(Fault(FaultKind.DELAY, seconds=30))
    impatient: Any = stripe.RequestsClient(timeout=0.2)
    hasty = stripe.StripeClient("sk_test_x", base_addresses=server.base_addresses, http_client=impatient)
    with pytest.raises(stripe.APIConnectionError):
        _send(hasty)
    impatient.close()
    assert len(server.list_events()) == 1


def test_rate_limit_names_its_reason(server: StripeServer, client: Any) -> None:
    """A scripted 429 carries the code and the header that tell pace from contention."""
    server.faults.add(Fault(FaultKind.RATE_LIMIT, reason="endpoint-concurrency"))
    with pytest.raises(stripe.RateLimitError) as limited:
        _send(client)
    headers = {name.lower(): value for name, value in (limited.value.headers or {}).items()}
    assert headers["stripe-rate-limited-reason"] == "endpoint-concurrency"
    assert "stripe-should-retry" not in headers
    assert limited.value.error is not None
    assert limited.value.error.code == "rate_limit"


def test_fault_hits_the_nth_call_of_its_route(server: StripeServer, client: Any) -> None:
    """A fault counts only requests of its route, hits from the nth on as often as it says, then is spent."""
    server.faults.add(Fault(FaultKind.ERROR_BEFORE_COMMIT, nth=2, times=2))
    outcomes = []
    for n in range(5):
        client.v1.billing.meters.list()
        try:
            _send(client, identifier=f"id{n}")
            outcomes.append("ok")
        except stripe.APIError:
            outcomes.append("failed")
    assert outcomes == ["ok", "failed", "failed", "ok", "ok"]
    assert server.faults.to_json()["waiting"] == []


def test_wildcard_route(server: StripeServer, client: Any) -> None:
    """A wildcard route hits whatever comes next."""
    server.faults.add(Fault(FaultKind.ERROR_BEFORE_COMMIT, route="GET /v1/*"))
    _send(client)
    with pytest.raises(stripe.APIError):
        client.v1.billing.meters.list()


def test_rate_switch(server: StripeServer, client: Any) -> None:
    """With a limit set, more requests in one second of the clock are refused, and the next second is free again."""
    server.behaviour = Behaviour(customer_check=CustomerCheck.OFF, requests_per_second=2)
    _send(client, identifier="a")
    _send(client, identifier="b")
    with pytest.raises(stripe.RateLimitError):
        _send(client, identifier="c")
    server.clock.advance(1)
    _send(client, identifier="c")


@pytest.mark.parametrize(
    ("lock", "error"), [(LaneLock.CONFLICT, stripe.APIError), (LaneLock.LOCK_TIMEOUT, stripe.RateLimitError)]
)
def test_one_event_in_flight_per_lane(
    server: CountingServer, client: Any, lock: LaneLock, error: type[Exception]
) -> None:
    """While one event of a meter and customer is in flight a second is refused; another customer's is not."""
    relaxed = Behaviour(customer_check=CustomerCheck.OFF, lane_lock=lock)
    server.behaviour = replace(relaxed, latency_seconds=1.0)
    first = threading.Thread(target=_send, args=(client,))
    first.start()
    assert server.entered.wait(10)
    server.behaviour = relaxed
    with pytest.raises(error) as refused:
        _send(client, identifier="second")
    _send(client, identifier="third", payload={"stripe_customer_id": "cus_2", "value": "1"})
    server.gate.set()
    first.join(10)
    _send(client, identifier="fourth")

    assert isinstance(refused.value, stripe.StripeError)
    assert (refused.value.http_status, refused.value.error and refused.value.error.code) == (int(lock), "lock_timeout")
    assert [row["identifier"] for row in server.list_events()] == ["third", "abc", "fourth"]


def test_key_in_use(server: CountingServer, client: Any) -> None:
    """While the first request of a key runs, a second of that key is a 409 and does nothing."""
    server.behaviour = Behaviour(customer_check=CustomerCheck.OFF, latency_seconds=1.0)
    first = threading.Thread(target=_send, args=(client, "k"))
    first.start()
    assert server.entered.wait(10)
    with pytest.raises(stripe.APIError) as refused:
        _send(client, "k")
    server.gate.set()
    first.join(10)
    assert refused.value.http_status == 409
    assert refused.value.error is not None
    assert refused.value.error.code == "idempotency_key_in_use"
    assert len(server.list_events()) == 1


# --- measured behaviour of the client ---------------------------------------------------------------------------------

ARRANGEMENTS: dict[str, tuple[Fault | None, dict[str, Any]]] = {
    "v1_ok": (None, {}),
    "v1_503_unset_retries": (Fault(FaultKind.ERROR_BEFORE_COMMIT, status=503), {}),
    "v1_503_r2": (Fault(FaultKind.ERROR_BEFORE_COMMIT, status=503, times=3), {}),
    "v1_503_then_ok": (Fault(FaultKind.ERROR_BEFORE_COMMIT, status=503), {}),
    "v1_429_rate_limit": (Fault(FaultKind.RATE_LIMIT), {}),
    "v1_429_lock_timeout_should_retry": (Fault(FaultKind.LOCK_TIMEOUT), {}),
    "v1_409_then_ok": (Fault(FaultKind.LOCK_TIMEOUT, status=409), {}),
    "v1_reset_then_ok": (Fault(FaultKind.RESET_BEFORE_READ), {}),
    "v1_reset_r0": (Fault(FaultKind.RESET_BEFORE_READ), {}),
    "v1_duplicate_identifier": (None, {"before": "send"}),
    "v1_no_active_meter": (None, {"params": {"event_name": "other"}}),
    "v1_too_old": (None, {"params": {"timestamp": NOW - 36 * DAY}}),
    "v1_too_many_digits": (None, {"params": {"payload": {"stripe_customer_id": "c", "value": "1234567890123456"}}}),
    "v1_idempotency_mismatch": (None, {"before": "send", "params": {"identifier": "def"}, "key": "same"}),
    "v1_401": (None, {"api_key": "nonsense"}),
    "v1_403": (None, {"api_key": "rk_test_1"}),
    "v1_200_not_json": (Fault(FaultKind.GARBAGE), {}),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_client_behaves_as_measured(shared_data: Path, server: CountingServer, connect: Connect, name: str) -> None:
    """Against this server the client sends as many requests and raises as it did when it was measured."""
    content = json.loads((shared_data / "stripe/sdk_behaviour_16.1.0.json").read_text())
    vector = next(vector for vector in content["vectors"] if vector["name"] == name)
    fault, changes = ARRANGEMENTS[name]
    _create_meter(connect())
    params: Any = {**vector["params"], "timestamp": NOW}
    options: Any = {"idempotency_key": changes["key"]} if "key" in changes else {}
    if "before" in changes:
        connect().v1.billing.meter_events.create(params, options)
    server.keys.clear()
    if fault is not None:
        server.faults.add(fault)
    client = connect(changes.get("api_key", "sk_test_x"), max_network_retries=vector["max_network_retries"])

    raised: stripe.StripeError | None = None
    try:
        client.v1.billing.meter_events.create({**params, **changes.get("params", {})}, options)
    except stripe.StripeError as error:
        raised = error

    expect = vector["expect"]
    assert len(server.keys) == expect["requests"]
    assert len(set(server.keys)) == expect["distinct_idempotency_keys"]
    assert (type(raised).__name__ if raised else None) == expect["raises"]
    if raised is not None:
        got = (raised.http_status, raised.code, getattr(raised.error, "code", None))
        assert got == (expect["http_status"], expect["exc_code"], expect["error_object_code"])


# --- restart, and another process -------------------------------------------------------------------------------------


def test_state_outlives_the_server(tmp_path: Path, http: stripe.RequestsClient) -> None:
    """After a restart meters, events, identifiers and saved answers are as before; a torn last line is removed."""
    state = tmp_path / "stripe.log"
    options: Any = {
        "state": state,
        "clock": SettableClock(NOW),
        "behaviour": Behaviour(customer_check=CustomerCheck.OFF),
    }
    with StripeServer(**options) as server:
        client = stripe.StripeClient("sk_test_x", base_addresses=server.base_addresses, http_client=http)
        meter = _create_meter(client)
        _send(client, "k")
        before = server.list_events()
    with state.open("ab") as log:
        log.write(b'[["events", "self/te')
    with StripeServer(**options) as server:
        client = stripe.StripeClient("sk_test_x", base_addresses=server.base_addresses, http_client=http)
        assert server.list_events() == before
        assert client.v1.billing.meters.retrieve(meter.id).event_name == "tok"
        assert _send(client, "k").last_response.headers["Idempotent-Replayed"] == "true"
        with pytest.raises(stripe.InvalidRequestError, match="already exists"):
            _send(client, "other")
        _send(client, identifier="def")
    with StripeServer(**options) as server:
        assert len(server.list_events()) == 2


def test_program_survives_kill(tmp_path: Path, http: stripe.RequestsClient) -> None:
    """As a program: what was answered before SIGKILL is there after a restart, and faults come through HTTP."""
    state = tmp_path / "stripe.log"
    with _run_program(state) as (process, address):
        client = stripe.StripeClient(
            "sk_test_x", base_addresses={"api": address, "meter_events": address}, http_client=http
        )
        _fetch(f"{address}/_admin/clock", {"now": NOW})
        _fetch(f"{address}/_admin/customers", {"id": "cus_1"})
        _create_meter(client)
        _send(client)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with _run_program(state) as (process, address):
        client = stripe.StripeClient(
            "sk_test_x", base_addresses={"api": address, "meter_events": address}, http_client=http
        )
        assert _fetch(f"{address}/_admin/clock", {"now": NOW}) == {"now": NOW}
        with pytest.raises(stripe.InvalidRequestError, match="already exists"):
            _send(client)
        _fetch(f"{address}/_admin/faults", {"kind": "reset_after_commit"})
        with pytest.raises(stripe.APIConnectionError):
            _send(client, identifier="def")
        assert [row["identifier"] for row in _fetch(f"{address}/_oracle/events")] == ["abc", "def"]
        (total,) = _fetch(f"{address}/_oracle/sums")
        assert (total["customer"], total["hour"], total["value"], total["events"]) == ("cus_1", NOW, "10", 2)
        (fired,) = _fetch(f"{address}/_admin/faults")["fired"]
        assert fired["committed"] is True
        process.terminate()
        assert process.wait(10) == 0


def test_admin_switches_and_refuses_nonsense(server: StripeServer) -> None:
    """Behaviour and clock change over HTTP; an unknown switch, fault or endpoint is an error that says so."""
    admin = f"{server.base_url}/_admin"
    assert _fetch(f"{admin}/behaviour", {"customer_check": "async"})["customer_check"] == "async"
    assert server.behaviour.customer_check is CustomerCheck.ASYNC
    assert _fetch(f"{admin}/clock", {"advance": 60}) == {"now": NOW + 60}
    for path, body, status in (
        ("behaviour", {"colour": "red"}, 400),
        ("faults", {"kind": "earthquake"}, 400),
        ("nothing", {}, 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            _fetch(f"{admin}/{path}", body)
        refused.value.close()
        assert refused.value.code == status


class _run_program:
    """The program on a state file: (process, address); ended on leaving."""

    def __init__(self, state: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "otelbill_collector.testing.stripe_server", "--state", str(state)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def __enter__(self) -> tuple[subprocess.Popen[str], str]:
        assert self.process.stdout is not None
        return self.process, self.process.stdout.readline().split()[-1]

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


def _fetch(url: str, body: Any = None) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    data = None if body is None else json.dumps(body).encode()
    with opener.open(urllib.request.Request(url, data=data)) as answer:
        return json.load(answer)
