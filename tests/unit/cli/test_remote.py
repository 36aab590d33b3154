"""Operator commands reach the ledger that is there: they create none, and say what a sidecar answered."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import click
import pytest

from otelbill_collector.announcement import ADDRESS_FILE
from otelbill_collector.cli.remote import operate_ledger
from otelbill_collector.config import Config
from otelbill_collector.ledger.sqlite import SqliteStore

INSTANCE = "mine"
_ASSIGN = {"event_ids": ["e"], "customer_id": "c", "operator": "o", "reason": "r"}


@pytest.mark.parametrize("name", ["adjust", "replay-dead-letters", "reconcile", "stripe-flush"])
def test_a_command_on_a_folder_without_a_ledger_creates_none(tmp_path: Path, name: str) -> None:
    """A typing error in --data-dir must not answer from an empty ledger that it has just made."""
    folder = tmp_path / "typo"
    with pytest.raises(click.ClickException, match="no ledger in"):
        operate_ledger(Config(data_dir=folder), name, dict(_ASSIGN))
    assert not folder.exists()


def test_a_long_command_is_followed_while_the_sidecar_works(tmp_path: Path) -> None:
    """How far it has come is asked beside the answer, for as long as that takes; a poll that fails ends nothing."""
    asked = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        polls = 0

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            assert asked.wait(30)
            self._answer({"changed": 5})

        def do_GET(self) -> None:
            if self.path != "/v1/progress":
                self._answer({})
                return
            Handler.polls += 1
            if Handler.polls == 1:
                self.send_error(500)
                return
            self._answer({"rerate": [3, 7]})
            asked.set()

        def _answer(self, value: object) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    store = SqliteStore(tmp_path)
    seen: list[tuple[int, int]] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        (tmp_path / ADDRESS_FILE).write_text(json.dumps({"api": f"127.0.0.1:{server.server_address[1]}"}))
        answer = operate_ledger(Config(data_dir=tmp_path), "rerate", {}, lambda done, total: seen.append((done, total)))
        server.shutdown()
        thread.join()
    store.close()
    assert answer == {"changed": 5}
    assert seen[0] == (3, 7)


@pytest.fixture
def broken_api() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b"Internal Server Error")

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("otelbill-instance", INSTANCE)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_fault_of_the_sidecar_is_a_message(tmp_path: Path, broken_api: str) -> None:
    """An answer that is no JSON ends in one sentence with its status, not in a traceback."""
    store = SqliteStore(tmp_path)
    (tmp_path / ADDRESS_FILE).write_text(f'{{"api": "{broken_api}"}}')
    with pytest.raises(click.ClickException, match=r"answered 500.*collector's log"):
        operate_ledger(Config(data_dir=tmp_path), "adjust", dict(_ASSIGN))
    store.close()


@pytest.mark.parametrize("announced", ["another", "the same"])
def test_an_address_that_somebody_else_has_by_now_is_not_used(
    tmp_path: Path, broken_api: str, announced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After kill -9 the folder names a port where another ledger's sidecar may listen: nothing is booked there."""
    monkeypatch.setattr("tests.unit.cli.test_remote.INSTANCE", "another" if announced == "another" else "mine")
    store = SqliteStore(tmp_path)
    (tmp_path / ADDRESS_FILE).write_text(json.dumps({"api": broken_api, "pid": 1, "instance": "mine"}))
    message = r"answered 500" if announced == "the same" else r"of one that was killed.*try again"
    with pytest.raises(click.ClickException, match=message):
        operate_ledger(Config(data_dir=tmp_path), "assign-customer", dict(_ASSIGN))
    store.close()
