"""What a sender gets back over OTLP/HTTP for whatever it may send, and that a refused request leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.otlp_requests import encode, make_chat, make_id, make_request, now_nanos
from tests.sidecar_process import Json, Sidecar, await_value

_JSON = "application/json"


def _make_json(seed: str, customer: str, **span: Any) -> Json:
    """A request in OTLP/JSON: hex ids, 64-bit numbers as text; `span` replaces fields of its span."""
    at = str(now_nanos())
    values = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini"}
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in values.items()]
    attributes.append({"key": "otelbill.customer.id", "value": {"stringValue": customer}})
    attributes.append({"key": "gen_ai.usage.input_tokens", "value": {"intValue": "11"}})
    attributes.append({"key": "gen_ai.usage.output_tokens", "value": {"intValue": 3}})
    made = {
        "traceId": make_id(f"trace {seed}", 16).hex(),
        "spanId": make_id(f"span {seed}", 8).hex(),
        "name": "chat",
        "kind": 3,
        "startTimeUnixNano": at,
        "endTimeUnixNano": at,
        "attributes": attributes,
        **span,
    }
    return {"resourceSpans": [{"scopeSpans": [{"scope": {"name": "js"}, "spans": [made]}]}]}


def _count_everything(sidecar: Sidecar) -> tuple[int, int]:
    """Events in the ledger and dead letters: what a refused request must not change."""
    return sum(row["events"] for row in sidecar.usage()), len(sidecar.get("/v1/dead-letters").json())


def _post_raw(sidecar: Sidecar, head: str, body: bytes = b"", *, leave: bool = False) -> bytes:
    """Send bytes as they are and read the first part of the answer; with `leave` the client's side ends first."""
    with socket.create_connection(("127.0.0.1", sidecar.http_port), timeout=20) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        if leave:
            connection.shutdown(socket.SHUT_WR)
        return connection.recv(65536)


def test_an_accepted_request_is_answered_in_its_own_encoding(shared_sidecar: Sidecar) -> None:
    """Guarantee: 200 with an ExportTraceServiceResponse in the encoding of the request, and the usage is there."""
    binary = shared_sidecar.export(encode(make_chat("plain", "http-binary")))
    text = shared_sidecar.export(json.dumps(_make_json("json", "http-json")).encode(), content_type=_JSON)
    assert (binary.status_code, binary.headers["content-type"]) == (200, "application/x-protobuf")
    assert not ExportTraceServiceResponse.FromString(binary.content).HasField("partial_success")
    assert (text.status_code, text.headers["content-type"]) == (200, "application/json")
    json_format.Parse(text.content, ExportTraceServiceResponse())
    assert shared_sidecar.quantities("http-binary")["input_tokens"] == 100
    assert shared_sidecar.quantities("http-json") == {"input_tokens": 11, "output_tokens": 3, "requests": 1}


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_parameters_and_case_of_the_content_type_do_not_matter(shared_sidecar: Sidecar, content_type: str) -> None:
    """Guarantee: a content type is compared as HTTP says: without case and without parameters."""
    body = json.dumps(_make_json(content_type, "http-" + content_type[-3:])).encode()
    assert shared_sidecar.export(body, content_type=content_type).status_code == 200


def test_a_gzip_body_counts_as_much_as_a_plain_one(shared_sidecar: Sidecar) -> None:
    """Guarantee: compression is transparent, and the same span in another encoding is the same span."""
    body = encode(make_chat("gzip", "http-gzip"))
    assert shared_sidecar.export(gzip.compress(body), content_encoding="gzip").status_code == 200
    assert shared_sidecar.export(body).status_code == 200
    assert shared_sidecar.usage("customer", customer="http-gzip")[0]["events"] == 1


def test_an_empty_request_is_a_success(shared_sidecar: Sidecar) -> None:
    """Guarantee: zero spans are nothing to complain about; collectors send such probes."""
    assert shared_sidecar.export(b"").status_code == 200
    assert shared_sidecar.export(b"{}", content_type=_JSON).status_code == 200


_BOMB = gzip.compress(b"\0" * (80 << 20))
_GOOD = encode(make_chat("never", "http-never"))

_REFUSED: dict[str, tuple[bytes, dict[str, str], int]] = {
    "malformed protobuf": (b"\xff\xff\xff\xff not protobuf", {}, 400),
    "truncated protobuf": (_GOOD[:-3], {}, 400),
    "JSON sent as protobuf": (b'{"resourceSpans": []}', {}, 400),
    "text/plain": (_GOOD, {"content_type": "text/plain"}, 415),
    "no content type": (_GOOD, {"content_type": ""}, 415),
    "oversized": (b"\0" * ((1 << 20) + 1), {}, 413),
    "gzip bomb": (_BOMB, {"content_encoding": "gzip"}, 413),
    "truncated gzip": (gzip.compress(_GOOD)[:-6], {"content_encoding": "gzip"}, 400),
    "gzip with rubbish after it": (gzip.compress(_GOOD) + b"rubbish", {"content_encoding": "gzip"}, 400),
    "not gzip at all": (_GOOD, {"content_encoding": "gzip"}, 400),
    "unknown encoding": (_GOOD, {"content_encoding": "br"}, 415),
    "cut JSON": (b'{"resourceSpans": [', {"content_type": _JSON}, 400),
    "JSON that is a list": (b"[1, 2]", {"content_type": _JSON}, 400),
    "JSON of the wrong shape": (b'{"resourceSpans": 7}', {"content_type": _JSON}, 400),
    "JSON with an odd id": (
        json.dumps(_make_json("x", "http-never", traceId="zz")).encode(),
        {"content_type": _JSON},
        400,
    ),
    "JSON not in UTF-8": (b'{"resourceSpans": "\xff"}', {"content_type": _JSON}, 400),
    "JSON as deep as a well": (b'{"a":' * 100_000, {"content_type": _JSON}, 400),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_a_broken_request_is_refused_clearly_and_stores_nothing(shared_sidecar: Sidecar, case: str) -> None:
    """Guarantee: what cannot be read gets the status that says why, a Status with a reason, and no trace."""
    body, options, status = _REFUSED[case]
    before = _count_everything(shared_sidecar)
    answer = shared_sidecar.export(body, **options)
    assert answer.status_code == status, answer.text
    _check_reason(answer)
    assert _count_everything(shared_sidecar) == before


def _check_reason(answer: httpx.Response) -> None:
    if answer.headers["content-type"].startswith("application/json"):
        message = answer.json()["message"]
    else:
        message = Status.FromString(answer.content).message
    assert len(message) > 10, "an answer without a reason helps nobody"


@pytest.mark.parametrize("field", ["startTimeUnixNano", "endTimeUnixNano"])
@pytest.mark.parametrize("value", [str(2**64), -1, 1.5, "soon"])
def test_a_time_that_json_cannot_hold_never_becomes_another_time(
    shared_sidecar: Sidecar, field: str, value: object
) -> None:
    """Guarantee: a number outside its type is refused, and never wraps round into a plausible time."""
    before = _count_everything(shared_sidecar)
    body = json.dumps(_make_json(f"{field} {value}", "http-never", **{field: value})).encode()
    assert shared_sidecar.export(body, content_type=_JSON).status_code == 400
    assert _count_everything(shared_sidecar) == before


@pytest.mark.parametrize("value", [2**63, str(2**63), -(2**63) - 1, "12x", 1.5])
def test_a_json_count_beyond_64_bits_is_refused_or_kept_as_a_dead_letter(
    shared_sidecar: Sidecar, value: object
) -> None:
    """Guarantee: a count no int64 can hold is never billed as another number."""
    customer = "http-2-63"
    body = _make_json(f"big {value}", customer)
    span = body["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span["attributes"].append({"key": "gen_ai.usage.cache_read.input_tokens", "value": {"intValue": value}})
    before = len(shared_sidecar.get("/v1/dead-letters").json())
    answer = shared_sidecar.export(json.dumps(body).encode(), content_type=_JSON)
    letters = len(shared_sidecar.get("/v1/dead-letters").json()) - before
    assert (answer.status_code, letters) in {(400, 0), (200, 1)}
    assert shared_sidecar.quantities(customer) == {}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/traces", 404),
        ("POST", "/", 404),
        ("POST", "/v1/traces/", 404),
        ("GET", "/v1/traces", 405),
        ("PUT", "/v1/traces", 405),
        ("DELETE", "/v1/traces", 405),
    ],
)
def test_other_paths_and_methods_are_refused(shared_sidecar: Sidecar, method: str, path: str, status: int) -> None:
    """Guarantee: 404 for a path and 405 with Allow for a method that OTLP does not have."""
    url = f"http://127.0.0.1:{shared_sidecar.http_port}{path}"
    before = _count_everything(shared_sidecar)
    headers = {"content-type": "application/x-protobuf"}
    answer = httpx.request(method, url, content=_GOOD, headers=headers, trust_env=False)
    assert _count_everything(shared_sidecar) == before
    assert answer.status_code == status
    if status == 405:
        assert answer.headers["allow"] == "POST"


def test_a_body_larger_than_announced_room_is_refused_before_it_is_sent(shared_sidecar: Sidecar) -> None:
    """Guarantee: the announced length is enough to refuse; the sidecar does not wait for gigabytes."""
    head = "POST /v1/traces HTTP/1.1\nhost: x\ncontent-type: application/x-protobuf\ncontent-length: 99999999999"
    assert b" 413 " in _post_raw(shared_sidecar, head).splitlines()[0]


def test_a_chunked_body_is_bounded_as_well(shared_sidecar: Sidecar) -> None:
    """Guarantee: without an announced length the limit holds all the same; below it the request counts."""
    head = "POST /v1/traces HTTP/1.1\nhost: x\ncontent-type: application/x-protobuf\ntransfer-encoding: chunked"
    body = encode(make_chat("chunked", "http-chunked"))
    assert b" 200 " in _post_raw(shared_sidecar, head, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)).splitlines()[0]
    chunk = b"10000\r\n" + b"\0" * 0x10000 + b"\r\n"
    try:
        answer = _post_raw(shared_sidecar, head, chunk * 32 + b"0\r\n\r\n")
    except ConnectionError:  # it may hang up while the rest is still being sent
        answer = b""
    assert answer == b"" or b" 413 " in answer.splitlines()[0]
    assert shared_sidecar.quantities("http-chunked")["requests"] == 1


def test_garbage_instead_of_http_does_not_disturb_others(shared_sidecar: Sidecar) -> None:
    """Guarantee: a port scanner's bytes end that connection only."""
    for rubbish in (b"\x16\x03\x01\x02\x00\x01", b"\0" * 500, b"GET\r\n\r\n", b"POST /v1/traces HTTP/9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", shared_sidecar.http_port), timeout=20) as connection:
            connection.sendall(rubbish)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(4096)[:12] in {b"", b"HTTP/1.1 400"}
    assert shared_sidecar.export(encode(make_chat("after rubbish", "http-after"))).status_code == 200


def test_a_client_that_leaves_in_the_middle_stores_nothing(shared_sidecar: Sidecar) -> None:
    """Guarantee: half a body is no request."""
    body = encode(make_chat("half", "http-half"))
    head = f"POST /v1/traces HTTP/1.1\nhost: x\ncontent-type: application/x-protobuf\ncontent-length: {len(body)}"
    _post_raw(shared_sidecar, head, body[:-5], leave=True)
    assert shared_sidecar.export(body).status_code == 200
    assert shared_sidecar.usage("customer", customer="http-half")[0]["events"] == 1


def test_every_member_of_a_gzip_body_counts(shared_sidecar: Sidecar) -> None:
    """Guarantee: gzip allows several members in one body; acknowledging the first and losing the others is theft."""
    first, second = (encode(make_chat(f"member {number}", f"http-member-{number}")) for number in (1, 2))
    body = gzip.compress(first) + gzip.compress(second)
    assert shared_sidecar.export(body, content_encoding="gzip").status_code == 200
    assert shared_sidecar.quantities("http-member-1")["requests"] == 1
    assert shared_sidecar.quantities("http-member-2")["requests"] == 1


def test_many_small_bombs_in_one_gzip_body_are_one_bomb(shared_sidecar: Sidecar) -> None:
    """Guarantee: the limit after decompression is on the body, not on each of its members."""
    body = gzip.compress(b"\0" * (40 << 20)) * 2
    assert shared_sidecar.export(body, content_encoding="gzip").status_code == 413


def test_a_deflate_body_is_read_or_refused_but_never_misread(shared_sidecar: Sidecar) -> None:
    """Guarantee: an encoding is either understood or named in the refusal."""
    body = zlib.compress(encode(make_chat("deflate", "http-deflate")))
    answer = shared_sidecar.export(body, content_encoding="deflate")
    booked = shared_sidecar.quantities("http-deflate")
    assert (answer.status_code, booked.get("requests")) in {(200, 1), (415, None)}


@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/logs"])
def test_signals_without_usage_are_taken_and_set_aside(shared_sidecar: Sidecar, path: str) -> None:
    """Guarantee: an app may point its whole OTLP export here; what is no trace is never booked as one."""
    before = _count_everything(shared_sidecar)
    url = f"http://127.0.0.1:{shared_sidecar.http_port}{path}"
    headers = {"content-type": "application/x-protobuf"}
    assert httpx.post(url, content=_GOOD, headers=headers, trust_env=False).status_code == 200
    assert _count_everything(shared_sidecar) == before


def test_a_request_of_more_spans_than_allowed_is_refused_whole(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: limits are on the request, with a permanent status that names limit and remedy."""
    sidecar = new_sidecar({"limits": {"spans_per_request": 10}}).start()
    spans = [make_chat(f"span {number}", "many") for number in range(11)]
    answer = sidecar.export(make_request(spans).SerializeToString())
    assert answer.status_code in {400, 413}
    assert "limit is 10" in Status.FromString(answer.content).message
    assert sidecar.usage() == []
    assert sidecar.export(make_request(spans[:10]).SerializeToString()).status_code == 200
    assert sidecar.usage()[0]["events"] == 10


def test_without_the_token_nothing_is_taken(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: 401 without or with a wrong token, on the API too; health stays open; no token is in the log."""
    sidecar = new_sidecar({"tokens": ["a-long-secret-1", "a-long-secret-2"]}).start()
    body = encode(make_chat("token", "acme"))
    for header in ("", "Bearer wrong", "Bearer", "Basic a-long-secret-1", "a-long-secret-1", "Bearer a-long-secret-1x"):
        assert sidecar.export(body, authorization=header).status_code == 401
    for path in ("/v1/usage", "/v1/dead-letters", "/v1/held", "/v1/stripe/status"):
        assert httpx.get(sidecar.api_url + path, trust_env=False).status_code == 401
    assert httpx.post(sidecar.api_url + "/v1/operations/adjust", json={}, trust_env=False).status_code == 401
    assert httpx.get(sidecar.api_url + "/readyz", trust_env=False).status_code == 200
    assert sidecar.usage() == []
    for token in ("a-long-secret-1", "a-long-secret-2"):
        assert sidecar.export(body, authorization=f"Bearer {token}").status_code == 200
    assert sidecar.usage()[0]["events"] == 1
    assert "a-long-secret" not in sidecar.read_log()


def test_a_span_of_a_million_attributes_gets_a_bounded_answer(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: one absurd span is dead-lettered or refused in bounded time, and its batch's neighbour is billed."""
    sidecar = new_sidecar().start()
    monster = make_chat("monster", "monster")
    for number in range(600_000):
        monster.attributes.add(key=f"a{number}").value.int_value = number
    answer = sidecar.export(encode(monster, make_chat("neighbour", "neighbour")))
    assert answer.status_code in {200, 400, 413}
    assert sidecar.quantities("monster") == {}
    if answer.status_code == 200:
        letters = sidecar.get("/v1/dead-letters").json()
        assert [letter["span_id"] for letter in letters] == [monster.span_id.hex()]
        assert sidecar.quantities("neighbour")["requests"] == 1


def test_values_nested_a_thousand_deep_do_not_break_the_batch(shared_sidecar: Sidecar) -> None:
    """Guarantee: depth costs no stack; the span's own usage is billed or the request refused, its neighbour kept."""
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue

    value = AnyValue(string_value="bottom")
    for _ in range(40):  # two messages a level; protobuf's own parser reads a hundred
        value = AnyValue(array_value=ArrayValue(values=[value]))
    deep = make_chat("deep", "http-deep", gen_ai__input__messages=value)
    assert shared_sidecar.export(encode(deep, make_chat("by deep", "http-by-deep"))).status_code == 200
    assert shared_sidecar.quantities("http-by-deep")["requests"] == 1
    deeper = b"\x0a\x01x"
    for _ in range(5_000):
        inner = b"\x0a" + _varint(len(deeper)) + deeper
        deeper = b"\x2a" + _varint(len(inner)) + inner
    attribute = b"\x0a\x01a" + b"\x12" + _varint(len(deeper)) + deeper
    span = make_chat("deeper", "http-deeper").SerializeToString() + b"\x4a" + _varint(len(attribute)) + attribute
    scoped = b"\x12" + _varint(len(span)) + span
    resource = b"\x12" + _varint(len(scoped)) + scoped
    answer = shared_sidecar.export(b"\x0a" + _varint(len(resource)) + resource)
    assert answer.status_code in {200, 400}
    assert await_value(lambda: shared_sidecar.get("/healthz").status_code == 200, "it lives")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def test_overload_is_answered_with_a_time_to_come_back(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: beyond the bytes in flight a sender is told 429 or 503 with Retry-After, and a retry loses nothing."""
    limits = {"body_bytes": 60_000, "decompressed_bytes": 60_000, "inflight_bytes": 60_000, "commit_linger_ms": 200}
    sidecar = new_sidecar({"limits": limits}).start()
    bodies = [encode(*(make_chat(f"{batch}/{number}", "load") for number in range(100))) for batch in range(8)]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(sidecar.export, bodies))
    refused = [index for index, answer in enumerate(answers) if answer.status_code != 200]
    assert refused, "eight requests at once fit into the room of one, so this run showed nothing"
    assert {answers[index].status_code for index in refused} <= {429, 503}
    assert all(float(answers[index].headers["retry-after"]) >= 0 for index in refused)
    for index in refused:
        await_value(lambda index=index: sidecar.export(bodies[index]).status_code == 200, "a retry is taken")
    assert sidecar.usage()[0]["events"] == 800
    assert sidecar.count_spans(800)["accepted"] == 800
