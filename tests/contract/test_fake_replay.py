"""Recorded answers pass unchanged through the real clients, and the tally equals the usage that was recorded."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from otelbill_collector.testing.provider import ReplayServer, TalliedCall

ASK: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def _list_recordings(shared_data: Path, provider: str) -> list[Path]:
    recordings = sorted((shared_data / "recordings" / provider).glob("*.json"))
    assert recordings
    return recordings


def _iter_served(recording: Path) -> Iterator[tuple[str, int, bool]]:
    """(path, status, streamed) of the interactions that this provider's client can ask for."""
    for interaction in json.loads(recording.read_text())["interactions"]:
        path, response = interaction["request"]["path"], interaction["response"]
        if path.startswith("/v1/"):
            yield path, response["status"], "event-stream" in response["headers"].get("content-type", "")


def _ask_openai(client: openai.OpenAI, path: str, streamed: bool) -> dict[str, Any]:
    """Usage as the client parsed it; empty when it got none."""
    if path == "/v1/embeddings":
        return client.embeddings.create(model="m", input="x").usage.model_dump()
    if path == "/v1/images/generations":
        assert client.images.generate(model="m", prompt="x").data
        return {}
    calls: dict[str, Any] = {
        "/v1/chat/completions": lambda **form: client.chat.completions.create(model="m", messages=ASK, **form),
        "/v1/responses": lambda **form: client.responses.create(model="m", input="x", **form),
        "/v1/completions": lambda **form: client.completions.create(model="m", prompt="x", **form),
    }
    answer = calls[path](stream=streamed)
    if not streamed:
        return dict(answer.usage.model_dump()) if answer.usage else {}
    usage: dict[str, Any] = {}
    for event in answer:
        holder = getattr(event, "response", event)
        if getattr(holder, "usage", None):
            usage = holder.usage.model_dump()
    return usage


def _ask_anthropic(client: anthropic.Anthropic, streamed: bool) -> dict[str, Any]:
    form: Any = {"model": "m", "max_tokens": 9, "messages": ASK}
    if not streamed:
        return dict(client.beta.messages.create(**form).usage.model_dump())
    with client.beta.messages.stream(**form) as events:
        return events.get_final_message().usage.model_dump()


def _total_tokens(call: TalliedCall) -> tuple[int, int]:
    """All prompt tokens, cached or not, and all output tokens."""
    counts = call.quantities
    prompt = ("input_tokens", "cache_read_tokens", "cache_write_tokens")
    return sum(counts.get(unit, 0) for unit in prompt), counts.get("output_tokens", 0)


def _check_openai(client: openai.OpenAI, server: ReplayServer, served: tuple[str, int, bool]) -> bool:
    """Compare one answer with its tally; true when it carried usage."""
    path, status, streamed = served
    if status >= 400:
        with pytest.raises(openai.APIStatusError) as refused:
            _ask_openai(client, path, streamed)
        assert refused.value.status_code == status
        assert not server.tally[-1].reported
        return False
    usage = _ask_openai(client, path, streamed)
    call = server.tally[-1]
    assert call.reported is bool(usage)
    inputs = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    outputs = usage.get("completion_tokens", usage.get("output_tokens", 0))
    assert _total_tokens(call) == (inputs, outputs)
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    assert call.quantities.get("cache_read_tokens", 0) == (details.get("cached_tokens") or 0)
    return call.reported


def test_openai_recordings_replay(shared_data: Path) -> None:
    """Every OpenAI recording (chat, stream, tools, Responses, embeddings, cache, errors) parses and is tallied."""
    reported = 0
    for recording in _list_recordings(shared_data, "openai"):
        with (
            ReplayServer(recording) as server,
            openai.OpenAI(api_key="k", base_url=server.openai_base_url, max_retries=0) as client,
        ):
            reported += sum(_check_openai(client, server, served) for served in _iter_served(recording))
    assert reported > 40


def test_anthropic_recordings_replay(shared_data: Path) -> None:
    """Every Anthropic recording (messages, stream, tools, thinking, cache, compaction, errors) parses, is tallied."""
    reported = 0
    for recording in _list_recordings(shared_data, "anthropic"):
        with (
            ReplayServer(recording) as server,
            anthropic.Anthropic(api_key="k", base_url=server.base_url, max_retries=0) as client,
        ):
            for _, status, streamed in _iter_served(recording):
                if status >= 400:
                    with pytest.raises(anthropic.APIStatusError) as refused:
                        _ask_anthropic(client, streamed)
                    assert refused.value.status_code == status
                    continue
                usage = _ask_anthropic(client, streamed)
                counts = server.tally[-1].quantities
                assert counts.get("input_tokens", 0) == usage["input_tokens"], recording.name
                assert counts.get("output_tokens", 0) == usage["output_tokens"], recording.name
                assert counts.get("cache_read_tokens", 0) == (usage["cache_read_input_tokens"] or 0), recording.name
                assert counts.get("cache_write_tokens", 0) == (usage["cache_creation_input_tokens"] or 0)
                reported += 1
            assert server.remaining == 0
    assert reported > 20


@pytest.mark.parametrize(
    ("case", "quantities"),
    [
        ("openai/chat_cached", {"input_tokens": 90, "cache_read_tokens": 1280, "output_tokens": 155}),
        ("openai/chat_cache_write_gpt56", {"input_tokens": 8, "cache_read_tokens": 4012, "output_tokens": 4}),
        ("openai/chat_audio_in", {"input_tokens": 64, "audio_input_tokens": 44, "output_tokens": 9}),
        ("openai/responses_stream_reasoning", {"input_tokens": 53, "output_tokens": 469, "reasoning_tokens": 448}),
        ("openai/embeddings_batch", {"input_tokens": 24}),
        ("anthropic/messages_stream", {"input_tokens": 17, "output_tokens": 171}),
        (
            "anthropic/cache_write_then_read_stream",
            {"input_tokens": 4, "cache_read_tokens": 1165, "output_tokens": 221},
        ),
        (
            "anthropic/cache_write_1h_derived",
            {
                "input_tokens": 3,
                "cache_read_tokens": 1111,
                "cache_write_tokens": 418,
                "cache_write_1h_tokens": 300,
                "output_tokens": 33,
            },
        ),
    ],
)
def test_quantities_are_disjoint(shared_data: Path, case: str, quantities: dict[str, int]) -> None:
    """The last answer of a recording is tallied in disjoint units, with these counts read off the recording by hand."""
    with ReplayServer(shared_data / "recordings" / f"{case}.json") as server:
        while server.remaining:
            _fetch(f"{server.base_url}{_guess_path(case)}")
        assert server.tally[-1].quantities == quantities


def test_compaction_is_told_apart(shared_data: Path) -> None:
    """Work that Anthropic's top-level usage leaves out is tallied beside it, neither lost nor mixed in."""
    with ReplayServer(shared_data / "recordings/anthropic/compaction_cache_stream.json") as server:
        _fetch(f"{server.base_url}/v1/messages")
        (call,) = server.tally
    assert call.quantities == {"input_tokens": 181, "output_tokens": 8}
    assert call.iteration_quantities == {"input_tokens": 100, "cache_read_tokens": 55096, "output_tokens": 83}


def test_bytes_and_headers_are_verbatim(tmp_path: Path) -> None:
    """Status, headers and body come back as recorded, base64 bodies decoded, and an exhausted path answers 404."""
    body = bytes(range(256))
    response = {
        "status": 200,
        "headers": {"content-type": "application/octet-stream", "x-request-id": "req_1"},
        "encoding": "base64",
        "body": base64.b64encode(body).decode(),
    }
    recording = {"provider": "p", "interactions": [{"request": {"path": "/v1/other"}, "response": response}]}
    path = tmp_path / "recording.json"
    path.write_text(json.dumps(recording))
    with ReplayServer(path) as server:
        assert _fetch(f"{server.base_url}/v1/other") == (body, "req_1")
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            _fetch(f"{server.base_url}/v1/other")
        refused.value.close()
        assert [call.operation for call in server.tally] == ["/v1/other"]


def _guess_path(case: str) -> str:
    kinds = {
        "openai/chat": "/v1/chat/completions",
        "openai/responses": "/v1/responses",
        "openai/embeddings": "/v1/embeddings",
        "anthropic/": "/v1/messages",
    }
    return next(path for kind, path in kinds.items() if case.startswith(kind))


def _fetch(url: str) -> tuple[bytes, str | None]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data=b"{}")) as answer:
        return answer.read(), answer.headers.get("x-request-id")
