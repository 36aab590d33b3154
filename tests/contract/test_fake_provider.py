"""The demo provider is good enough for the real clients, and its tally is what the clients were told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from otelbill_collector.testing.provider import FAULT_HEADER, ProviderServer
from otelbill_collector.testing.usage import normalise_anthropic, normalise_openai

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": WEATHER}}
    for name in ("look_up", "forecast")
]
QUESTION: list[Any] = [{"role": "user", "content": "How is usage counted?"}]
FOLLOW_UP: list[Any] = [
    {"role": "system", "content": "You answer questions about metering. " * 8},
    *QUESTION,
    {"role": "assistant", "content": "Once per call."},
    {"role": "user", "content": "And retries?"},
]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProviderServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ProviderServer() as server:
        yield server


@pytest.fixture
def openai_client(provider: ProviderServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="sk-test", base_url=provider.openai_base_url, max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(provider: ProviderServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key="sk-ant-test", base_url=provider.base_url, max_retries=0) as client:
        yield client


def test_chat_usage_equals_tally(provider: ProviderServer, openai_client: openai.OpenAI) -> None:
    """A plain chat answer parses, and the tally holds the same disjoint quantities, cached tokens included."""
    answer = openai_client.chat.completions.create(model="gpt-4o-mini", messages=FOLLOW_UP)

    assert answer.choices[0].message.content
    assert answer.model == "gpt-4o-mini-2024-07-18"
    assert answer.usage is not None
    (call,) = provider.tally
    assert (call.provider, call.operation, call.model, call.status) == ("openai", "chat", answer.model, 200)
    assert call.response_id == answer.id
    assert call.quantities == normalise_openai(answer.usage.model_dump())
    assert call.quantities["cache_read_tokens"] > 0


def test_equal_requests_differ_only_in_id(provider: ProviderServer, openai_client: openai.OpenAI) -> None:
    """The same request gives the same text and usage, but never the same response id, for an id names one call."""
    first, second = (openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION) for _ in range(2))

    assert first.choices == second.choices
    assert first.usage == second.usage
    assert first.id != second.id


def test_reasoning_models_count_reasoning(provider: ProviderServer, openai_client: openai.OpenAI) -> None:
    """Reasoning tokens are a non-empty subset of the output tokens of reasoning models, and absent elsewhere."""
    for model, reasons in (("o3-mini", True), ("gpt-5-mini", True), ("gpt-4o", False)):
        openai_client.chat.completions.create(model=model, messages=QUESTION)
        counted = provider.tally[-1].quantities
        assert (0 < counted.get("reasoning_tokens", 0) < counted["output_tokens"]) is reasons


@pytest.mark.parametrize("include_usage", [True, False])
def test_chat_stream_reports_usage_only_on_request(
    provider: ProviderServer, openai_client: openai.OpenAI, include_usage: bool
) -> None:
    """A stream carries usage only with include_usage; the tally knows the truth either way and says which it was."""
    options: Any = {"stream_options": {"include_usage": True}} if include_usage else {}
    chunks = list(openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True, **options))
    plain = openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION)

    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == plain.choices[0].message.content
    streamed, unstreamed = provider.tally
    assert streamed.quantities == unstreamed.quantities
    assert (streamed.reported, streamed.streamed) == (include_usage, True)
    reported = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [normalise_openai(usage.model_dump()) for usage in reported] == [streamed.quantities] * include_usage


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("parallel", "calls"), [(True, 2), (False, 1)])
def test_tools_are_called_then_answered(
    provider: ProviderServer, openai_client: openai.OpenAI, stream: bool, parallel: bool, calls: int
) -> None:
    """With tools the first answer asks for calls, in parallel unless forbidden; after their results comes text."""
    form: Any = {"model": "gpt-4o", "tools": TOOLS, "parallel_tool_calls": parallel}
    answer: Any
    if stream:
        with openai_client.chat.completions.stream(messages=QUESTION, **form) as events:
            answer = events.get_final_completion()
    else:
        answer = openai_client.chat.completions.create(messages=QUESTION, **form)
    asked = answer.choices[0].message.tool_calls or []

    assert answer.choices[0].finish_reason == "tool_calls"
    assert [set(json.loads(call.function.arguments)) for call in asked] == [{"city", "days"}] * calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in asked]
    messages: Any = [*QUESTION, {"role": "assistant", "tool_calls": [c.model_dump() for c in asked]}, *results]
    final = openai_client.chat.completions.create(messages=messages, **form)
    assert final.choices[0].finish_reason == "stop"
    assert len(provider.tally) == 2


def test_structured_output_follows_its_schema(openai_client: openai.OpenAI) -> None:
    """A JSON schema in the request shapes the answer, so that structured-output clients work."""
    form: Any = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}}
    answer = openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, response_format=form, n=2)

    assert [set(json.loads(choice.message.content or "")) for choice in answer.choices] == [{"city", "days"}] * 2


def test_responses_plain_and_stream_agree(provider: ProviderServer, openai_client: openai.OpenAI) -> None:
    """A Responses answer and its stream give the same text and the usage of the tally."""
    form: Any = {"model": "gpt-5-mini", "input": "How is usage counted?", "instructions": "Be brief."}
    plain = openai_client.responses.create(**form)
    with openai_client.responses.stream(**form) as events:
        streamed = events.get_final_response()

    assert plain.output_text
    assert plain.output_text == streamed.output_text
    for response, call in zip((plain, streamed), provider.tally, strict=True):
        assert response.usage is not None
        assert (call.operation, call.response_id) == ("responses", response.id)
        assert call.quantities == normalise_openai(response.usage.model_dump())
        assert call.quantities["reasoning_tokens"] > 0


@pytest.mark.parametrize("stream", [True, False])
def test_responses_call_tools(provider: ProviderServer, openai_client: openai.OpenAI, stream: bool) -> None:
    """Function tools of the Responses API are called and, given their output, answered."""
    tools: Any = [{"type": "function", "name": "look_up", "parameters": WEATHER, "strict": False}]
    form: Any = {"model": "gpt-4o", "tools": tools}
    asked: Any
    if stream:
        with openai_client.responses.stream(input="Weather?", **form) as events:
            asked = events.get_final_response()
    else:
        asked = openai_client.responses.create(input="Weather?", **form)
    (call,) = [item for item in asked.output if item.type == "function_call"]

    assert set(json.loads(call.arguments)) == {"city", "days"}
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    request = {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
    given: Any = [{"role": "user", "content": "Weather?"}, request, output]
    assert openai_client.responses.create(input=given, **form).output_text


def test_gpt56_writes_then_reads_cache(provider: ProviderServer, openai_client: openai.OpenAI) -> None:
    """The model family that charges for cache writes writes on the first turn and reads on the next."""
    for messages in (FOLLOW_UP[:2], FOLLOW_UP):
        openai_client.chat.completions.create(model="gpt-5.6", messages=messages)
    first, second = (call.quantities for call in provider.tally)

    assert first["cache_write_tokens"] > 0
    assert "cache_read_tokens" not in first
    assert second["cache_read_tokens"] > 0
    assert "cache_write_tokens" not in second


def test_embeddings_count_input_only(provider: ProviderServer, openai_client: openai.OpenAI) -> None:
    """Embeddings give a vector per input and charge input tokens alone; they have no response id."""
    answer = openai_client.embeddings.create(model="text-embedding-3-small", input=["one", "two words"])

    assert [item.index for item in answer.data] == [0, 1]
    (call,) = provider.tally
    assert call.quantities == {"input_tokens": answer.usage.prompt_tokens}
    assert call.response_id is None


def test_messages_plain_and_stream_agree(provider: ProviderServer, anthropic_client: anthropic.Anthropic) -> None:
    """An Anthropic answer and its stream give the same text and the usage of the tally."""
    form: Any = {"model": "claude-sonnet-4-6", "max_tokens": 100, "messages": QUESTION}
    plain = anthropic_client.messages.create(**form)
    with anthropic_client.messages.stream(**form) as events:
        streamed = events.get_final_message()

    answers: Any = (plain, streamed)
    texts = [[block.text for block in message.content if block.type == "text"] for message in answers]
    assert texts[0] == texts[1] != []
    for message, call in zip((plain, streamed), provider.tally, strict=True):
        assert (call.provider, call.response_id) == ("anthropic", message.id)
        assert call.quantities == normalise_anthropic(message.usage.model_dump())


@pytest.mark.parametrize(("ttl", "long_lived"), [("5m", False), ("1h", True)])
def test_marked_prompt_is_written_then_read(
    provider: ProviderServer, anthropic_client: anthropic.Anthropic, ttl: Any, long_lived: bool
) -> None:
    """A cache mark writes the prompt on the first turn and reads it on the next; the 1 h share is told apart."""
    mark: Any = {"type": "ephemeral", "ttl": ttl}
    system: Any = [{"type": "text", "text": "You answer about metering. " * 20, "cache_control": mark}]
    form: Any = {"model": "claude-haiku-4-5", "max_tokens": 100, "system": system}
    anthropic_client.messages.create(messages=QUESTION, **form)
    later = anthropic_client.messages.create(messages=FOLLOW_UP[1:], **form)
    first, second = (call.quantities for call in provider.tally)

    assert first["cache_write_tokens"] > 100
    assert ("cache_write_1h_tokens" in first) is long_lived
    assert "cache_read_tokens" not in first
    assert second["cache_read_tokens"] == first["cache_write_tokens"]
    assert second == normalise_anthropic(later.usage.model_dump())


@pytest.mark.parametrize("stream", [True, False])
def test_messages_think_and_call_tools(
    provider: ProviderServer, anthropic_client: anthropic.Anthropic, stream: bool
) -> None:
    """Thinking and parallel tool use come back as blocks the real client can send again with the results."""
    tools: Any = [{"name": name, "input_schema": WEATHER} for name in ("look_up", "forecast")]
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    form: Any = {"model": "claude-sonnet-4-6", "max_tokens": 2000, "tools": tools, "thinking": thinking}
    asked: Any
    if stream:
        with anthropic_client.messages.stream(messages=QUESTION, **form) as events:
            asked = events.get_final_message()
    else:
        asked = anthropic_client.messages.create(messages=QUESTION, **form)

    assert [block.type for block in asked.content] == ["thinking", "tool_use", "tool_use"]
    assert provider.tally[0].quantities["reasoning_tokens"] > 0
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
        for block in asked.content
        if block.type == "tool_use"
    ]
    said = [block.model_dump(exclude_none=True) for block in asked.content]
    answered: Any = [{"role": "assistant", "content": said}, {"role": "user", "content": results}]
    final = anthropic_client.messages.create(messages=[*QUESTION, *answered], **form)
    assert final.stop_reason == "end_turn"


def test_rate_limit_once_succeeds_on_retry(provider: ProviderServer) -> None:
    """The 429-once fault refuses a call one time; the client's own retry of it is answered, and both are tallied."""
    with openai.OpenAI(api_key="k", base_url=provider.openai_base_url, max_retries=1) as client:
        for _ in range(2):
            assert client.chat.completions.create(model="gpt-4o#rate-limit-once", messages=QUESTION).usage

    assert [call.status for call in provider.tally] == [429, 200, 429, 200]
    assert {call.model for call in provider.tally if call.status == 200} == {"gpt-4o-2024-08-06"}


@pytest.mark.parametrize(
    ("fault", "status"), [("rate-limit", 429), ("server-error", 500), ("unauthorized", 401), ("nonsense", 400)]
)
def test_refusals_reach_both_clients(
    provider: ProviderServer,
    openai_client: openai.OpenAI,
    anthropic_client: anthropic.Anthropic,
    fault: str,
    status: int,
) -> None:
    """A scripted refusal arrives with its status in both clients and charges nothing."""
    headers = {FAULT_HEADER: fault}
    claude: Any = {"model": "claude-haiku-4-5", "max_tokens": 9}
    with pytest.raises(openai.APIStatusError) as openai_error:
        openai_client.chat.completions.create(model="gpt-4o", messages=QUESTION, extra_headers=headers)
    with pytest.raises(anthropic.APIStatusError) as anthropic_error:
        anthropic_client.messages.create(messages=QUESTION, extra_headers=headers, **claude)

    assert (openai_error.value.status_code, anthropic_error.value.status_code) == (status, status)
    assert not any(call.quantities for call in provider.tally)


def test_unknown_model_is_not_found(provider: ProviderServer, openai_client: openai.OpenAI) -> None:
    """A model nobody sells is a 404 that charges nothing."""
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        openai_client.chat.completions.create(model="no-such-model", messages=QUESTION)

    assert [(call.status, dict(call.quantities)) for call in provider.tally] == [(404, {})]


def test_cut_stream_is_charged_but_unreported(provider: ProviderServer, anthropic_client: anthropic.Anthropic) -> None:
    """A stream that breaks was still a call the provider charges: tallied with its true usage, marked unreported."""
    received: list[str] = []
    stream = anthropic_client.messages.create(
        model="claude-haiku-4-5#cut-stream", max_tokens=99, messages=QUESTION, stream=True
    )
    with stream, suppress(httpx2.HTTPError, anthropic.APIConnectionError):
        received.extend(event.type for event in stream)

    assert "message_stop" not in received
    (call,) = provider.tally
    assert call.quantities["output_tokens"] > 0
    assert not call.reported


def test_slow_stream_ends_when_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping the server does not wait for a stream that nobody finishes reading."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ProviderServer().start()
    with openai.OpenAI(api_key="k", base_url=server.openai_base_url, max_retries=0) as client:
        stream = client.chat.completions.create(model="gpt-4o#slow-stream", messages=QUESTION, stream=True)
        with stream:
            assert next(iter(stream)).choices
            server.stop()
    assert len(server.tally) == 1


def test_program_prints_address_and_serves_tally() -> None:
    """As a program it prints where it listens, serves answers and the tally, and ends on SIGTERM with status 0."""
    environment = {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "otelbill_collector.testing.provider"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        body = json.dumps({"model": "text-embedding-3-small", "input": "one"}).encode()
        with opener.open(f"{address}/v1/embeddings", data=body) as answer:
            assert answer.status == 200
        with opener.open(f"{address}/_tally") as answer:
            (call,) = json.load(answer)
        process.terminate()
        assert process.wait(10) == 0
    assert (call["operation"], call["status"], call["quantities"]) == ("embeddings", 200, {"input_tokens": 1})
