"""Every span that was sent is in exactly one count, and a span is one event however often and wherever it is sent."""

from __future__ import annotations

import random
from collections.abc import Callable

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.otlp_requests import encode, make_chat, make_id, now_nanos
from tests.sidecar_process import Sidecar


def _make_plain(seed: str) -> Span:
    """A span of a web framework: nothing to bill."""
    now = now_nanos()
    return Span(
        trace_id=make_id(f"trace {seed}", 16),
        span_id=make_id(f"span {seed}", 8),
        name="GET /",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=now,
        end_time_unix_nano=now,
    )


def test_the_counts_add_up_to_the_spans_sent(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: accepted + duplicate + dead_lettered + ignored = spans sent, whatever the mixture."""
    sidecar = new_sidecar().start()
    chance = random.Random(4)
    good = [make_chat(f"good {number}") for number in range(40)]
    bad = [make_chat(f"bad {number}", input_tokens=-1) for number in range(7)]
    plain = [_make_plain(f"plain {number}") for number in range(13)]
    sent = 0
    for _ in range(3):
        spans = [*good, *bad, *plain, *chance.sample(good, 5)]
        chance.shuffle(spans)
        assert sidecar.export(encode(*spans)).status_code == 200
        sent += len(spans)
    counts = sidecar.count_spans(sent)
    assert sum(counts.values()) == sent
    assert counts["accepted"] == 40
    assert counts["ignored"] == 3 * 13
    assert counts["dead_lettered"] + counts["duplicate"] == sent - 40 - 39
    assert sidecar.usage()[0]["events"] == 40
    assert len(sidecar.get("/v1/dead-letters").json()) == 7


def test_a_refused_request_is_counted_as_one(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: requests are counted by their answer, so a sender's failures show on the sidecar's side too."""
    sidecar = new_sidecar().start()
    sidecar.export(encode(make_chat("ok")))
    sidecar.export(b"\xff\xff\xff")
    sidecar.export(b"x", content_type="text/plain")
    samples = sidecar.metrics("otelbill_requests_total")
    assert {tuple(sorted(labels.split(","))): value for labels, value in samples.items()} == {
        ('code="200"', 'protocol="http"'): 1,
        ('code="400"', 'protocol="http"'): 1,
        ('code="415"', 'protocol="http"'): 1,
    }


def test_a_duplicate_is_known_across_a_kill_and_a_stop(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: the memory of what was billed is on disk: a retry after a restart, in other batches, is known."""
    sidecar = new_sidecar().start()
    spans = [make_chat(f"span {number}") for number in range(30)]
    sidecar.export(encode(*spans))
    sidecar.restart()
    sidecar.export(encode(*reversed(spans[:20])))
    assert sidecar.count_spans(20)["duplicate"] == 20
    assert sidecar.stop() == 0
    sidecar.start()
    sidecar.export(encode(*spans[10:], make_chat("new")))
    assert sidecar.count_spans(21) | {"rejected": 0} == {
        "accepted": 1, "duplicate": 20, "rejected": 0, "dead_lettered": 0, "ignored": 0
    }  # fmt: skip
    assert sidecar.usage()[0]["events"] == 31


def test_the_same_span_twice_in_one_request_is_billed_once(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: duplicates inside a batch are duplicates."""
    sidecar = new_sidecar().start()
    span = make_chat("twin")
    sidecar.export(encode(span, span, span))
    assert sidecar.count_spans(3)["accepted"] == 1
    assert sidecar.count_spans(3)["duplicate"] == 2
    assert sidecar.usage()[0]["quantities"]["input_tokens"] == 100


def test_a_span_with_other_content_is_a_conflict(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: one id with two contents is loud: the first stays, the second is a dead letter that says conflict."""
    sidecar = new_sidecar().start()
    at = now_nanos()
    sidecar.export(encode(make_chat("same", at=at)))
    for _ in range(2):
        sidecar.export(encode(make_chat("same", input_tokens=999, at=at), make_chat("bystander", "bystander", at=at)))
    sidecar.restart()
    sidecar.export(encode(make_chat("same", "globex", at=at)))
    letters = sidecar.get("/v1/dead-letters").json()
    assert all("conflict" in letter["code"] for letter in letters), letters
    assert len(letters) == 2, "one for the other count, one for the other customer"
    assert sidecar.quantities("acme")["input_tokens"] == 100
    assert sidecar.quantities("globex") == {}
    assert sidecar.quantities("bystander")["requests"] == 1


def test_other_prompt_content_is_no_conflict(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: content plays no part in billing, so a copy without it (a redacting Collector) is a duplicate."""
    sidecar = new_sidecar().start()
    at = now_nanos()
    sidecar.export(encode(make_chat("redacted", at=at, gen_ai__input__messages='[{"role":"user"}]')))
    sidecar.export(encode(make_chat("redacted", at=at)))
    assert sidecar.get("/v1/dead-letters").json() == []
    assert sidecar.usage()[0]["events"] == 1
