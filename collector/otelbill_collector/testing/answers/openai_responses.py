"""OpenAI Responses: the request as an `Ask`, the plan as a response object and as its stream of events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from otelbill_collector.testing.answers.openai_chat import read_content
from otelbill_collector.testing.answers.plan import Ask, Json, Plan, Turn, split_pieces


def read_responses(request: Json) -> Ask:
    """The conversation, tools and output form that a Responses request asks for; hosted tools are not called."""
    tools = [tool for tool in request.get("tools") or [] if tool.get("type") == "function"]
    turns = [Turn("tools", json.dumps(tools))] if tools else []
    if request.get("instructions"):
        turns.append(Turn("system", request["instructions"]))
    given: Any = request.get("input", "")
    turns += [Turn("user", given)] if isinstance(given, str) else [_read_item(item) for item in given]
    choice = request.get("tool_choice")
    output_form = (request.get("text") or {}).get("format") or {}
    return Ask(
        model=request["model"],
        turns=tuple(turns),
        tools=tuple((tool["name"], tool.get("parameters") or {}) for tool in tools),
        tool_choice="none" if choice == "none" else choice.get("name") if isinstance(choice, dict) else None,
        tool_calls_max=1 if request.get("parallel_tool_calls") is False else 2,
        schema=output_form.get("schema"),
    )


def render_response(plan: Plan, request: Json, *, status: str = "completed") -> Json:
    """A `response` object; in progress it has neither output nor usage."""
    done = status == "completed"
    return {
        "id": plan.response_id,
        "object": "response",
        "created_at": plan.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "model": plan.model,
        "output": _render_items(plan) if done else [],
        "parallel_tool_calls": request.get("parallel_tool_calls") is not False,
        "previous_response_id": request.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": request.get("text") or {"format": {"type": "text"}},
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": request.get("tools") or [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": render_usage(plan) if done else None,
        "user": None,
        "metadata": request.get("metadata") or {},
    }


def render_usage(plan: Plan) -> Json:
    """The Responses usage object, whose input tokens include the cached ones."""
    inputs = {"cached_tokens": plan.cache_read_tokens}
    if plan.cache_write_tokens:
        inputs["cache_write_tokens"] = plan.cache_write_tokens
    return {
        "input_tokens": plan.prompt_tokens,
        "input_tokens_details": inputs,
        "output_tokens": plan.output_tokens,
        "output_tokens_details": {"reasoning_tokens": plan.reasoning_tokens},
        "total_tokens": plan.prompt_tokens + plan.output_tokens,
    }


def render_response_stream(plan: Plan, request: Json) -> Iterator[Json]:
    """The events of a streamed response, numbered; the last one, `response.completed`, carries the usage."""
    for number, event in enumerate(_iter_events(plan, request)):
        yield {**event, "sequence_number": number}


def _iter_events(plan: Plan, request: Json) -> Iterator[Json]:
    opening = render_response(plan, request, status="in_progress")
    yield {"type": "response.created", "response": opening}
    yield {"type": "response.in_progress", "response": opening}
    for index, item in enumerate(_render_items(plan)):
        yield {"type": "response.output_item.added", "output_index": index, "item": _open_item(item)}
        if item["type"] == "message":
            yield from _iter_text(item, index)
        elif item["type"] == "function_call":
            yield from _iter_arguments(item, index)
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": "response.completed", "response": render_response(plan, request)}


def _iter_text(item: Json, index: int) -> Iterator[Json]:
    part = item["content"][0]
    place = {"item_id": item["id"], "output_index": index, "content_index": 0}
    yield {"type": "response.content_part.added", **place, "part": {**part, "text": ""}}
    for piece in split_pieces(part["text"]):
        yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
    yield {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []}
    yield {"type": "response.content_part.done", **place, "part": part}


def _iter_arguments(item: Json, index: int) -> Iterator[Json]:
    place = {"item_id": item["id"], "output_index": index}
    for piece in split_pieces(item["arguments"]):
        yield {"type": "response.function_call_arguments.delta", **place, "delta": piece}
    done = {"arguments": item["arguments"], "name": item["name"]}
    yield {"type": "response.function_call_arguments.done", **place, **done}


def _render_items(plan: Plan) -> list[Json]:
    stem = plan.response_id.removeprefix("resp_")
    items: list[Json] = []
    if plan.reasoning_tokens:
        items.append({"id": f"rs_{stem}", "type": "reasoning", "summary": []})
    for n, text in enumerate(plan.texts):
        content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
        message = {"id": f"msg_{stem}{n}", "type": "message", "role": "assistant", "status": "completed"}
        items.append({**message, "content": content})
    for n, call in enumerate(plan.tool_calls):
        function = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
        items.append({"id": f"fc_{stem}{n}", "type": "function_call", "status": "completed", **function})
    return items


def _open_item(item: Json) -> Json:
    if item["type"] == "message":
        return {**item, "status": "in_progress", "content": []}
    return {**item, "status": "in_progress", "arguments": ""} if item["type"] == "function_call" else item


def _read_item(item: Json) -> Turn:
    kind = item.get("type", "message")
    if kind == "function_call_output":
        return Turn("tool", json.dumps(item.get("output")))
    if kind == "message":
        return Turn(item.get("role", "user"), read_content(item))
    return Turn("assistant", json.dumps({k: item.get(k) for k in ("name", "arguments")}))
