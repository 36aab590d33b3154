"""What a committed batch is reported as: only what was taken is forwarded, and one odd request costs no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from otelbill_collector.app import Sidecar
from otelbill_collector.config import Address, Config, Forward, Limits, Listen
from otelbill_collector.pipeline import Request
from tests.sidecar_process import find_free_port
from tests.spans import T0, TestSpan, build_request, chat

# A span whose attribute is cut off inside: the ledger reads what it needs, the official schema reads none of it.
_CUT = build_request([TestSpan("cut", {"k": "abc"})]).replace(b"\x0a\x03abc", b"\x0a\x09abc")


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    ports = [Address("127.0.0.1", find_free_port()) for _ in range(3)]
    made = Sidecar(
        Config(
            data_dir=tmp_path / "data",
            listen=Listen(*ports),
            limits=Limits(spans_per_request=2),
            forward=Forward(endpoint="http://127.0.0.1:1/v1/traces"),
        ),
        clock=lambda: T0 + 3_600 * 10**9,
    )
    yield made
    made._close_sockets()
    made._store.close()


def test_what_was_rejected_is_not_forwarded_and_its_neighbours_are(sidecar: Sidecar) -> None:
    """A sender whose request is refused sends its spans again, in smaller batches: they must not show twice."""
    good = build_request([chat("a"), chat("b")])
    too_many = build_request([chat("c"), chat("d"), chat("e")])
    requests = [Request(body, T0) for body in (b"\xff\xff", too_many, good)]
    sidecar._observe(requests, sidecar._carry(requests))
    assert sidecar._forwarder is not None
    assert sidecar._forwarder.waiting_spans == 2


def test_a_request_that_cannot_be_rewritten_costs_only_itself(
    sidecar: Sidecar, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted as rejected; the rest of its batch goes on to the backend."""
    requests = [Request(body, T0) for body in (_CUT, build_request([chat("a")]))]
    carried = sidecar._carry(requests)
    assert [type(answer).__name__ for answer in carried.answers] == ["Receipt", "Receipt"]
    sidecar._observe(requests, carried)
    assert sidecar._forwarder is not None
    assert sidecar._forwarder.waiting_spans == 1
    assert b'otelbill_forward_spans_total{result="rejected"} 1.0' in sidecar._metrics.render()
    assert "cannot be forwarded" in caplog.text
