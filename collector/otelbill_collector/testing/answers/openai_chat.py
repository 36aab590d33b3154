"""OpenAI Chat Completions and Embeddings: the request as an `Ask`, the plan as JSON and as stream chunks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from otelbill_collector.testing.answers.plan import Ask, Json, Plan, Turn, count_tokens, split_pieces

EMBEDDING_DIMENSIONS = 8


def read_chat(request: Json) -> Ask:
    """The conversation, tools and output form that a chat request asks for."""
    tools = [tool["function"] for tool in request.get("tools") or [] if "function" in tool]
    turns = [Turn("tools", json.dumps(tools))] if tools else []
    turns += [Turn(message["role"], read_content(message)) for message in request.get("messages", [])]
    choice = request.get("tool_choice")
    named = choice["function"]["name"] if isinstance(choice, dict) else None
    return Ask(
        model=request["model"],
        turns=tuple(turns),
        tools=tuple((tool["name"], tool.get("parameters") or {}) for tool in tools),
        tool_choice="none" if choice == "none" else named,
        tool_calls_max=1 if request.get("parallel_tool_calls") is False else 2,
        schema=((request.get("response_format") or {}).get("json_schema") or {}).get("schema"),
        choices=request.get("n") or 1,
    )


def read_content(message: Json) -> str:
    """Text of a message whose content is a string, a list of parts, or absent beside tool calls."""
    content: Any = message.get("content") or ""
    if not isinstance(content, str):
        content = " ".join(part.get("text") or part.get("type", "") for part in content)
    calls = message.get("tool_calls")
    return f"{content}{json.dumps(calls)}" if calls else str(content)


def render_chat(plan: Plan) -> Json:
    """A `chat.completion` object."""
    choices = [
        {"index": n, "message": _message(text, plan), "logprobs": None, "finish_reason": _finish(plan)}
        for n, text in enumerate(plan.texts or (None,))
    ]
    return {**_head(plan, "chat.completion"), "choices": choices, "usage": render_usage(plan)}


def render_chat_stream(plan: Plan, *, include_usage: bool) -> Iterator[Json]:
    """`chat.completion.chunk` objects in order; usage comes last and alone, as the real API sends it."""
    extra: Json = {"usage": None} if include_usage else {}
    head = {**_head(plan, "chat.completion.chunk"), **extra}
    for n, text in enumerate(plan.texts or (None,)):
        for delta in _iter_deltas(text, plan):
            yield {**head, "choices": [{"index": n, "delta": delta, "logprobs": None, "finish_reason": None}]}
        yield {**head, "choices": [{"index": n, "delta": {}, "logprobs": None, "finish_reason": _finish(plan)}]}
    if include_usage:
        yield {**head, "choices": [], "usage": render_usage(plan)}


def render_usage(plan: Plan) -> Json:
    """The chat usage object, whose prompt tokens include the cached ones."""
    inputs = {"cached_tokens": plan.cache_read_tokens, "audio_tokens": 0}
    if plan.cache_write_tokens:
        inputs["cache_write_tokens"] = plan.cache_write_tokens
    return {
        "prompt_tokens": plan.prompt_tokens,
        "completion_tokens": plan.output_tokens,
        "total_tokens": plan.prompt_tokens + plan.output_tokens,
        "prompt_tokens_details": inputs,
        "completion_tokens_details": {
            "reasoning_tokens": plan.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def render_embeddings(request: Json) -> Json:
    """An embeddings answer: short unit-less vectors from the content, tokens counted by the demo's rule."""
    given = request.get("input", "")
    texts = [given] if isinstance(given, str) else list(given)
    data = [{"object": "embedding", "index": n, "embedding": _embed(text)} for n, text in enumerate(map(str, texts))]
    tokens = sum(count_tokens(str(text)) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": request["model"], "usage": usage}


def _embed(text: str) -> list[float]:
    digest = hashlib.sha256(text.encode()).digest()
    return [round(byte / 127.5 - 1, 6) for byte in digest[:EMBEDDING_DIMENSIONS]]


def _head(plan: Plan, kind: str) -> Json:
    return {
        "id": plan.response_id,
        "object": kind,
        "created": plan.created,
        "model": plan.model,
        "service_tier": "default",
        "system_fingerprint": None,
    }


def _finish(plan: Plan) -> str:
    return "tool_calls" if plan.tool_calls else "stop"


def _message(text: str | None, plan: Plan) -> Json:
    message: Json = {"role": "assistant", "content": text, "refusal": None}
    if plan.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in plan.tool_calls
        ]
    return message


def _iter_deltas(text: str | None, plan: Plan) -> Iterator[Json]:
    yield {"role": "assistant", "content": None if plan.tool_calls else "", "refusal": None}
    for piece in split_pieces(text) if text else ():
        yield {"content": piece}
    for index, call in enumerate(plan.tool_calls):
        function = {"name": call.name, "arguments": ""}
        yield {"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]}
        for piece in split_pieces(call.arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
