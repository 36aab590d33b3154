"""The real `stripe` client against recorded replies: each one is read as the table says, and none as something else."""

from __future__ import annotations

import builtins
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from otelbill_collector.domain.instants import NANOS
from otelbill_collector.export.stripe.answers import RULES, Answer, Outcome, classify, render_table
from otelbill_collector.export.stripe.client import StripePackageMissing, open_account
from otelbill_collector.export.stripe.ports import MeterEvent, StripeCallError, StripeUnreachable
from otelbill_collector.export.stripe.steps import BACKOFF_MAX_NANOS, compute_backoff
from tests.stripe_world import make_settings

# What each recorded v1 reply means, by the name of its vector.
OUTCOMES = {
    "v1_ok": Outcome.ACCEPTED,
    "v1_503_r2": Outcome.UNKNOWN,
    "v1_503_then_ok": Outcome.UNKNOWN,
    "v1_503_unset_retries": Outcome.UNKNOWN,
    "v1_500_should_retry_false": Outcome.UNKNOWN,
    "v1_429_rate_limit": Outcome.PACE,
    "v1_429_retry_after_ignored": Outcome.PACE,
    "v1_429_lock_timeout_should_retry": Outcome.CONTENTION,
    "v1_409_then_ok": Outcome.CONTENTION,
    "v1_409_exhausted": Outcome.CONTENTION,
    "v1_reset_then_ok": Outcome.UNKNOWN,
    "v1_reset_r0": Outcome.UNKNOWN,
    "v1_duplicate_identifier": Outcome.DELIVERED,
    "v1_no_active_meter": Outcome.NO_METER,
    "v1_too_old": Outcome.TOO_OLD,
    "v1_too_many_digits": Outcome.TOO_MANY_DIGITS,
    "v1_idempotency_mismatch": Outcome.KEY_REUSED,
    "v1_401": Outcome.CREDENTIALS,
    "v1_403": Outcome.CREDENTIALS,
    "v1_404": Outcome.UNKNOWN_CUSTOMER,
    "v1_402": Outcome.REFUSED,
    "v1_html_502": Outcome.UNKNOWN,
    "v1_200_not_json": Outcome.UNKNOWN,
}
EVENT = MeterEvent("tok", "abc", "abc.2", "cus_1", "5", 1_763_600_000)


class Recorder(ThreadingHTTPServer):
    """Answers every request with `reply` (status, headers, body or None for a reset) and keeps what was asked."""

    reply: tuple[int, dict[str, str], str] | None = (200, {}, "{}")

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, str], str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Recorder
    wbufsize = -1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.server.asked.append((self.path, dict(self.headers), body))
        if self.server.reply is None:
            self.close_connection = True
            return
        status, headers, text = self.server.reply
        payload = text.encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(payload)), "Request-Id": "req_9"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    recorder = Recorder()
    thread = threading.Thread(target=recorder.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield recorder
    recorder.shutdown()
    thread.join()
    recorder.server_close()


def send(server: Recorder) -> Answer:
    settings = make_settings(api_base=server.url, meter_api_base=server.url)
    return open_account(settings).send(EVENT)


@pytest.mark.parametrize("name", sorted(OUTCOMES))
def test_recorded_replies_are_read_as_the_table_says(shared_data: Path, server: Recorder, name: str) -> None:
    """Each reply that was measured with the real client leads to exactly the outcome of its row."""
    vectors = json.loads((shared_data / "stripe" / "sdk_behaviour_16.1.0.json").read_text())["vectors"]
    vector: dict[str, Any] = next(vector for vector in vectors if vector["name"] == name)
    script = vector["server_script"][0]
    if script == "reset":
        server.reply = None
    else:
        body = script["body"]
        server.reply = (
            script["status"],
            script["headers"],
            body if isinstance(body, str) else json.dumps(body),
        )
    assert classify(send(server)) is OUTCOMES[name]
    assert len(server.asked) == 1, "retries are the exporter's, which writes them down"


def test_every_recorded_v1_reply_has_an_expected_outcome(shared_data: Path) -> None:
    """A reply added to the recordings cannot be forgotten here."""
    vectors = json.loads((shared_data / "stripe" / "sdk_behaviour_16.1.0.json").read_text())["vectors"]
    assert {vector["name"] for vector in vectors if vector["name"].startswith("v1_")} == OUTCOMES.keys()


def test_the_catalogue_of_synchronous_errors_is_covered(shared_data: Path) -> None:
    """Every answer that was ever reported is read as its suggested action demands."""
    wanted = {
        "treat_as_delivered": Outcome.DELIVERED,
        "stop_lane_config_error": Outcome.NO_METER,
        "dead_letter_split_value": Outcome.TOO_MANY_DIGITS,
        "dead_letter_mapping_error": Outcome.UNKNOWN_CUSTOMER,
        "bug_alert": Outcome.KEY_REUSED,
        "dead_letter_bug": Outcome.REFUSED,
        "retry_same_identifier": Outcome.CONTENTION,
        "backoff_retry_same_identifier": Outcome.PACE,
        "stop_all": Outcome.CREDENTIALS,
        "retry_same_identifier_rotate_idempotency_key": Outcome.UNKNOWN,
    }
    seen = set()
    for entry in json.loads((shared_data / "stripe" / "error_catalogue.json").read_text())["entries"]:
        outcome = wanted.get(entry["action"])
        if outcome is None or entry["channel"] not in ("v1_sync", "v2_sync", "any") or entry["http"] == "network":
            continue
        status = 503 if entry["http"] == "5xx" else entry["http"]
        error_type = "idempotency_error" if entry["action"] == "bug_alert" else "invalid_request_error"
        limited = "global-rate" if entry["code"] == "rate_limit" else None
        answer = Answer(status, True, error_type, entry["code"], entry["message_match"], None, limited)
        assert classify(answer) is outcome, entry["meaning"]
        seen.add(outcome)
    assert seen == set(wanted.values())


def test_what_goes_over_the_wire(server: Recorder) -> None:
    """The event is one form-encoded v1 call with text values, our identifier and our Idempotency-Key, no telemetry."""
    server.reply = (200, {}, json.dumps({"object": "billing.meter_event", "identifier": "abc"}))
    answer = send(server)
    assert (answer.status, answer.request_id) == (200, "req_9")
    ((path, headers, body),) = server.asked
    assert path == "/v1/billing/meter_events"
    assert parse_qs(body) == {
        "event_name": ["tok"],
        "identifier": ["abc"],
        "payload[stripe_customer_id]": ["cus_1"],
        "payload[value]": ["5"],
        "timestamp": ["1763600000"],
    }
    assert headers["Idempotency-Key"] == "abc.2"
    assert "X-Stripe-Client-Telemetry" not in headers


def test_failed_reads_say_what_stripe_said(server: Recorder) -> None:
    """A read that fails is an error with status, code and request id, never an empty sum."""
    server.reply = (403, {}, json.dumps({"error": {"message": "no permission", "type": "invalid_request_error"}}))
    account = open_account(make_settings(api_base=server.url, meter_api_base=server.url))
    with pytest.raises(StripeCallError, match=r"403.*no permission.*req_9"):
        account.list_hours("mtr_1", "cus_1", from_seconds=0, to_seconds=3600)


def test_an_address_that_does_not_answer_is_named_in_one_line(server: Recorder) -> None:
    """The client's own text for an outage is many lines and hides the address; ours is one, with the remedy."""
    server.reply = None
    account = open_account(make_settings(api_base=server.url, meter_api_base=server.url, timeout_seconds=1))
    with pytest.raises(StripeUnreachable) as caught:
        account.find_meter("m")
    text = str(caught.value)
    assert text.startswith(f"{server.url} does not answer")
    assert "stripe.api_base" in text
    assert "\n" not in text


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is an extra; whoever lacks it is told the command that installs it."""
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "stripe":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "stripe", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(StripePackageMissing, match=r"pip install 'otelbill\[stripe\]'"):
        open_account(make_settings())


def test_the_documented_table_is_the_table_in_force(repository: Path) -> None:
    """docs/stripe.md shows the very rows that decide, in their order."""
    assert render_table() in (repository / "docs" / "stripe.md").read_text("utf-8")
    assert {rule.outcome for rule in RULES} | {Outcome.UNKNOWN} == set(Outcome)


def test_backoff_grows_to_a_minute_and_differs_by_lane() -> None:
    """Repeated failures wait 1 s to 60 s, and lanes do not come back all at once."""
    waits = [compute_backoff("ob1.a", attempts) for attempts in range(100)]
    assert all(NANOS // 2 <= wait <= BACKOFF_MAX_NANOS for wait in waits)
    assert max(waits) > BACKOFF_MAX_NANOS // 2
    assert len({compute_backoff(f"ob1.{lane}", 3) for lane in range(50)}) == 50
