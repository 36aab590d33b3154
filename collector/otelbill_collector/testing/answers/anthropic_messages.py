"""Anthropic Messages: the request as an `Ask`, the plan as a message object and as its stream of events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from otelbill_collector.testing.answers.plan import Ask, Json, Plan, Turn, split_pieces

_BLANKS: dict[str, Json] = {
    "text": {"text": ""},
    "thinking": {"thinking": "", "signature": ""},
    "tool_use": {"input": {}},
}


def read_messages(request: Json) -> Ask:
    """The conversation with its cache marks, the tools and the thinking that a Messages request asks for."""
    tools = [tool for tool in request.get("tools") or [] if "input_schema" in tool]
    turns = [Turn("tools", json.dumps(tools), _find_mark(tools))] if tools else []
    if request.get("system"):
        turns.append(_read_turn("system", request["system"]))
    turns += [_read_turn(message["role"], message["content"]) for message in request.get("messages", [])]
    choice = request.get("tool_choice") or {}
    output_form = (request.get("output_config") or {}).get("format") or request.get("output_format") or {}
    return Ask(
        model=request["model"],
        turns=tuple(turns),
        tools=tuple((tool["name"], tool["input_schema"]) for tool in tools),
        tool_choice="none" if choice.get("type") == "none" else choice.get("name"),
        tool_calls_max=1 if choice.get("disable_parallel_tool_use") else 2,
        schema=output_form.get("schema"),
        thinks=(request.get("thinking") or {}).get("type") in ("enabled", "adaptive"),
    )


def render_message(plan: Plan) -> Json:
    """A `message` object."""
    return {
        **_head(plan),
        "content": _render_blocks(plan),
        "stop_reason": _stop_reason(plan),
        "stop_sequence": None,
        "usage": render_usage(plan),
    }


def render_usage(plan: Plan) -> Json:
    """The Messages usage object, whose input tokens exclude both kinds of cached tokens."""
    usage: Json = {
        "input_tokens": plan.uncached_tokens,
        "cache_creation_input_tokens": plan.cache_write_tokens,
        "cache_read_input_tokens": plan.cache_read_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": plan.cache_write_tokens - plan.cache_write_1h_tokens,
            "ephemeral_1h_input_tokens": plan.cache_write_1h_tokens,
        },
        "output_tokens": plan.output_tokens,
        "service_tier": "standard",
    }
    if plan.reasoning_tokens:
        usage["output_tokens_details"] = {"thinking_tokens": plan.reasoning_tokens}
    return usage


def render_message_stream(plan: Plan) -> Iterator[Json]:
    """The events of a streamed message: input usage comes first, the cumulative output count at the end."""
    opening = {**render_usage(plan), "output_tokens": 1}
    opening.pop("output_tokens_details", None)
    start = {**_head(plan), "content": [], "stop_reason": None, "stop_sequence": None, "usage": opening}
    yield {"type": "message_start", "message": start}
    yield {"type": "ping"}
    for index, block in enumerate(_render_blocks(plan)):
        yield from _iter_block(index, block)
    usage = {k: v for k, v in render_usage(plan).items() if k in ("output_tokens", "output_tokens_details")}
    delta = {"stop_reason": _stop_reason(plan), "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": usage}
    yield {"type": "message_stop"}


def _iter_block(index: int, block: Json) -> Iterator[Json]:
    kind = block["type"]
    blank = _BLANKS[kind]
    yield {"type": "content_block_start", "index": index, "content_block": {**block, **blank}}
    if kind == "tool_use":
        deltas = [{"type": "input_json_delta", "partial_json": p} for p in split_pieces(json.dumps(block["input"]))]
    elif kind == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": p} for p in split_pieces(block["thinking"])]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    else:
        deltas = [{"type": "text_delta", "text": p} for p in split_pieces(block["text"])]
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def _head(plan: Plan) -> Json:
    return {"id": plan.response_id, "type": "message", "role": "assistant", "model": plan.model}


def _stop_reason(plan: Plan) -> str:
    return "tool_use" if plan.tool_calls else "end_turn"


def _render_blocks(plan: Plan) -> list[Json]:
    blocks: list[Json] = []
    if plan.thinking:
        blocks.append({"type": "thinking", "thinking": plan.thinking, "signature": "demo"})
    blocks += [{"type": "text", "text": text} for text in plan.texts]
    for call in plan.tool_calls:
        name = call.id.replace("call_", "toolu_")
        blocks.append({"type": "tool_use", "id": name, "name": call.name, "input": json.loads(call.arguments)})
    return blocks


def _read_turn(role: str, content: Any) -> Turn:
    if isinstance(content, str):
        return Turn(role, content)
    kinds = {block.get("type") for block in content}
    texts = (block.get("text") or json.dumps(block.get("input") or block.get("content")) for block in content)
    return Turn("tool" if "tool_result" in kinds else role, " ".join(texts), _find_mark(content))


def _find_mark(blocks: list[Json]) -> str | None:
    marks = [block["cache_control"] for block in blocks if block.get("cache_control")]
    return str(marks[-1].get("ttl", "5m")) if marks else None
