"""The API answers reads, refuses strangers and cross-site posts, and tells what is wrong with a query."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from otelbill_collector.app import build_operate
from otelbill_collector.config import Address, Config, Listen
from otelbill_collector.domain.records import DeadLetter
from otelbill_collector.explanation import NothingFound, explain_identifier, render_record
from otelbill_collector.ledger.books import UnknownEvent
from otelbill_collector.ledger.deadletters import save_dead_letter
from otelbill_collector.ledger.lineage import list_suspense
from otelbill_collector.ledger.rollups import load_usage
from otelbill_collector.listeners import list_api_hosts
from otelbill_collector.operations import NoStripe, Operations
from otelbill_collector.web.api import ApiHandlers, build_api
from tests.books import NOW, TestBooks
from tests.spans import chat

TOKEN = "secret-token"


@pytest.fixture
def books(tmp_path: Path) -> Iterator[TestBooks]:
    opened = TestBooks(tmp_path / "ledger")
    yield opened
    opened.close()


def _client(books: TestBooks, token: str | None = None) -> TestClient:
    return TestClient(_build_application(books, token))


def _build_application(books: TestBooks, token: str | None = None, hosts: tuple[str, ...] = ("*",)) -> Starlette:
    operations = Operations(books.stages, None, lambda: NOW)

    def read(work: Any, *arguments: Any) -> Any:
        return books.store.read(lambda connection: work(connection, *arguments))

    handlers = ApiHandlers(
        is_ready=lambda: True,
        render_metrics=lambda: b"up 1\n",
        is_authorised=lambda header: token is None or header == f"Bearer {token}",
        load_usage=lambda query: read(load_usage, query),
        explain=lambda identifier: read(explain_identifier, identifier),
        list_dead_letters=list,
        list_held=list,
        list_suspense=lambda: [render_record(record) for record in read(list_suspense)],
        stripe_status=lambda: {"counts": {}, "lanes": [], "stops": [], "oldest_waiting_at": None},
        show_progress=lambda: {"rerate": operations.progress},
        operate=build_operate(operations),
        not_found=(NothingFound, UnknownEvent),
        refused=(NoStripe,),
    )
    return build_api(handlers, hosts=hosts)


def test_nothing_is_in_progress_where_nothing_is_rated_again(books: TestBooks) -> None:
    """Who follows a long command is told when there is none."""
    assert _client(books).get("/v1/progress").json() == {"rerate": None}


def test_usage_is_answered_by_dimension_and_filter(books: TestBooks) -> None:
    """The API speaks the command line's contract."""
    books.post(chat("a"), chat("b", customer="globex"))
    client = _client(books)
    rows = client.get("/v1/usage", params={"by": "customer,model", "from": "2026-01-01"}).json()
    assert [(row["customer"], row["events"]) for row in rows] == [("acme", 1), ("globex", 1)]
    assert [row["customer"] for row in client.get("/v1/usage?by=customer&customer=globex").json()] == ["globex"]


@pytest.mark.parametrize("query", ["by=costumer", "from=yesterday", "to=12", "colour=red"])
def test_a_query_that_cannot_be_answered_says_why(books: TestBooks, query: str) -> None:
    """A typing error is a 400 that names it, not an empty answer."""
    answer = _client(books).get(f"/v1/usage?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_explain_walks_from_any_id_and_knows_what_it_does_not_know(books: TestBooks) -> None:
    """A response id leads to its record and price; an unknown id is a 404 that says which ids there are."""
    books.post(chat("a"))
    client = _client(books)
    found = client.get("/v1/explain/resp-a").json()
    (record,) = found["records"]
    assert record["charge"] == "0.000027"
    assert found["price_versions"][0]["content"]
    missing = client.get("/v1/explain/nothing-like-it")
    assert missing.status_code == 404
    assert "trace or span id" in missing.json()["error"]


def test_an_operation_is_json_only(books: TestBooks) -> None:
    """A form posted by a page of another origin must not change the ledger."""
    books.post(chat("a", customer=None))
    client = _client(books)
    body = orjson.dumps({"event_ids": ["x"], "customer_id": "acme", "operator": "ann", "reason": "why"})
    plain = client.post("/v1/operations/adjust", content=body, headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    unknown = client.post("/v1/operations/adjust", content=body, headers={"content-type": "application/json"})
    assert unknown.status_code == 404
    (event,) = (item["event_id"] for item in client.get("/v1/explain/resp-a").json()["records"])
    good = client.post(
        "/v1/operations/adjust",
        json={"event_ids": [event], "customer_id": "acme", "operator": "ann", "reason": "why"},
    )
    assert good.status_code == 200
    assert books.totals()["customer"] == "acme"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 400), (b'{"event_ids": []}', 400), (b'{"event_ids": [5], "customer_id": "a"}', 400)],
)
def test_a_broken_operation_is_refused(books: TestBooks, body: bytes, status: int) -> None:
    """The field that is wrong is named; nothing is written."""
    answer = _client(books).post("/v1/operations/adjust", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status


def test_stripe_operations_without_stripe_say_what_to_configure(books: TestBooks) -> None:
    """No account is not an internal error."""
    answer = _client(books).post("/v1/operations/stripe-flush", json={})
    assert answer.status_code == 409
    assert "stripe" in answer.json()["error"]
    assert _client(books).post("/v1/operations/no-such-thing", json={}).status_code == 404


def test_tokens_protect_what_tells_of_customers(books: TestBooks) -> None:
    """With tokens configured every page but health and metrics wants one; metrics never name a customer."""
    books.post(chat("a"))
    client = _client(books, TOKEN)
    for path in ("/", "/v1/usage", "/v1/explain/resp-a", "/v1/dead-letters", "/v1/held", "/v1/stripe/status"):
        assert client.get(path).status_code == 401, path
        assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200, path
    assert client.post("/v1/operations/stripe-flush", json={}).status_code == 401
    for path in ("/healthz", "/readyz", "/metrics"):
        assert client.get(path).status_code == 200, path


def test_a_page_of_another_name_cannot_reach_the_api(books: TestBooks) -> None:
    """A name that was made to point at the loopback address is refused, for reading as well as for operations."""
    client = TestClient(_client(books).app, base_url="http://rebound.example")
    guarded = TestClient(_build_application(books, hosts=("127.0.0.1", "localhost")), base_url="http://rebound.example")
    assert client.get("/v1/usage").status_code == 200
    assert guarded.get("/v1/usage").status_code == 400
    assert guarded.post("/v1/operations/stripe-flush", json={}).status_code == 400
    local = TestClient(_build_application(books, hosts=("127.0.0.1", "localhost")), base_url="http://127.0.0.1:4329")
    assert local.get("/v1/usage").status_code == 200


def test_the_api_answers_to_its_own_name_where_nothing_else_protects_it() -> None:
    """Loopback without tokens: its own names. With tokens, or on another address: any name, the token decides."""
    assert list_api_hosts(Config()) == ("127.0.0.1", "localhost")
    assert list_api_hosts(Config(tokens=("secret",))) == ("*",)
    assert list_api_hosts(Config(listen=Listen(api=Address("0.0.0.0", 4329)))) == ("*",)


def test_the_front_page_escapes_names(books: TestBooks) -> None:
    """A customer id is text, never markup."""
    books.post(chat("a", customer="<b>acme</b>"))
    page = _client(books).get("/").text
    assert "<b>acme" not in page


def test_suspense_is_listed_event_by_event(books: TestBooks) -> None:
    """What belongs to nobody is listed by the event id that assigns it; what has a customer is not."""
    books.post(chat("a"), chat("b", customer=None))
    (row,) = _client(books).get("/v1/suspense").json()
    assert (row["customer_id"], row["billable"]) == (None, True)


def test_a_dead_letters_id_is_explained(books: TestBooks) -> None:
    """The id that `dead-letters list` shows leads to the letter with its reason and remedy."""
    letter = DeadLetter("letter-1", 1, "quantity_negative", "x", "-1", "mend it", b"t" * 16, b"s" * 8, b"")
    books.store.transact(lambda connection: save_dead_letter(connection, letter))
    found = _client(books).get("/v1/explain/letter-1").json()
    assert [(item["code"], item["hint"]) for item in found["dead_letters"]] == [("quantity_negative", "mend it")]
    assert found["records"] == []
