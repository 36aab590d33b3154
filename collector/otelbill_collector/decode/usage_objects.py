"""Usage objects inside attributes: JSON or Python repr as providers and frameworks write them. Owns their forms.

Parsing is in memory, size-capped and strict; only counts, a tier and ids come out of it, never text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from otelbill_collector.decode.quantities import Counts, parse_count
from otelbill_collector.domain.usage import QUANTITY_MAX, Problem

JSON_BYTES_MAX = 1_048_576
REPR_LENGTH_MAX = 16_384

Tree = Mapping[str, Any]  # Any: foreign documents, every leaf is checked where it is read


class UnreadableUsageError(ValueError):
    """A usage object that is there but cannot be read strictly."""


@dataclass(slots=True)
class Usage:
    """What a usage object says. `base` is the pair (input, output) to compare with the span's own attributes."""

    counts: Counts
    base: tuple[int | None, int | None] = (None, None)
    partial: bool = False  # holds cache classes only
    service_tier: str | None = None
    response_id: str | None = None


def parse_document(text: object) -> Any:  # Any: JSON of unknown shape
    """Parsed JSON or Python literal, or None when it is neither, too large, or too deep."""
    if not isinstance(text, str) or len(text) > JSON_BYTES_MAX:
        return None
    head = text.lstrip()[:1]
    if head not in ("{", "["):
        return None
    try:
        return orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        pass
    if len(text) > REPR_LENGTH_MAX:
        return None
    try:
        return _parse_plain_repr(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _parse_plain_repr(text: str) -> Any:  # Any: JSON of unknown shape
    """A Python literal read as JSON where only quotes and constants differ: a thirtieth of what `literal_eval` takes.

    Raises JSONDecodeError for everything else that a literal may be. What it takes is what `literal_eval` makes of it,
    but for integers past 64 bits, which are no counts either way.
    """
    parts = text.split("'")
    frame = "'".join(parts[::2])
    if '"' in text or "\\" in text or any(constant in frame for constant in ("null", "true", "false")):
        raise orjson.JSONDecodeError("no plain Python literal", "", 0)
    parts[::2] = frame.replace("None", "null").replace("True", "true").replace("False", "false").split("'")
    return orjson.loads('"'.join(parts))


def read_usage(document: object) -> Usage | None:
    """Counts of a usage object in any known form; None when it has none. Raises UnreadableUsageError."""
    if not isinstance(document, dict) or not document:
        return None
    iterations = document.get("iterations")
    if isinstance(iterations, list) and iterations:
        return _read_iterations(document, iterations)
    for key, reader in _FORMS:
        if key in document:
            usage = reader(document)
            usage.service_tier = _text(document.get("service_tier"))
            if usage.base == (None, None):
                usage.base = (usage.counts.input, usage.counts.output)
            return usage
    return None


def read_iterations(document: object) -> Usage | None:
    """Sum of a list of iterations of one call (compaction, other models in its service)."""
    if not isinstance(document, list) or not document:
        return None
    return _read_iterations({}, document)


def _number(tree: Tree, *keys: str) -> int | None:
    for key in keys:
        value = tree.get(key)
        if type(value) is int and 0 <= value <= QUANTITY_MAX:  # nearly every one
            return value
        if value is not None:
            count = parse_count(value, key)
            if isinstance(count, Problem):
                raise UnreadableUsageError(f"{key}: {count.code}")
            return count
    return None


def _branch(tree: Tree, *keys: str) -> Tree:
    for key in keys:
        value = tree.get(key)
        if isinstance(value, dict):
            return value
    return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _read_openai_chat(tree: Tree) -> Usage:
    prompt = _branch(tree, "prompt_tokens_details")
    completion = _branch(tree, "completion_tokens_details")
    split = _branch(prompt, "cache_creation_token_details") or _branch(tree, "cache_creation")
    return Usage(
        Counts(
            input=_number(tree, "prompt_tokens"),
            output=_number(tree, "completion_tokens"),
            total=_number(tree, "total_tokens"),
            cache_read=_first(
                _number(prompt, "cached_tokens"), _number(tree, "cache_read_input_tokens", "prompt_cache_hit_tokens")
            ),
            cache_write=_first(
                _number(prompt, "cache_write_tokens", "cache_creation_tokens"),
                _number(tree, "cache_creation_input_tokens"),
            ),
            cache_write_5m=_number(split, "ephemeral_5m_input_tokens"),
            cache_write_1h=_number(split, "ephemeral_1h_input_tokens"),
            reasoning=_number(completion, "reasoning_tokens"),
            audio_input=_number(prompt, "audio_tokens"),
            audio_output=_number(completion, "audio_tokens"),
            units=_read_tool_units(tree),
        )
    )


def _read_input_tokens(tree: Tree) -> Usage:
    """OpenAI Responses, LangChain, OpenAI Agents (input includes cache) or Anthropic (input excludes it)."""
    details = _branch(tree, "input_tokens_details", "input_token_details")
    results = _branch(tree, "output_tokens_details", "output_token_details")
    split = _branch(tree, "cache_creation") or details
    given, output, total = _number(tree, "input_tokens"), _number(tree, "output_tokens"), _number(tree, "total_tokens")
    own_cache = any(key in tree for key in ("cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation"))
    excludes = own_cache and (total is None or total != (given or 0) + (output or 0))
    return Usage(
        Counts(
            input=given,
            output=output,
            total=total,
            cache_read=_first(
                _number(details, "cached_tokens", "cache_read"),
                _number(tree, "cache_read_input_tokens", "cached_input_tokens"),
            ),
            cache_write=_first(
                _number(details, "cache_write_tokens", "cache_creation"),
                _number(tree, "cache_creation_input_tokens", "cache_write_input_tokens"),
            ),
            cache_write_5m=_number(split, "ephemeral_5m_input_tokens"),
            cache_write_1h=_number(split, "ephemeral_1h_input_tokens"),
            reasoning=_number(results, "reasoning_tokens", "reasoning", "thinking_tokens"),
            audio_input=_number(details, "audio_tokens", "audio"),
            audio_output=_number(results, "audio_tokens", "audio"),
            includes_cache=not excludes,
            units=_read_tool_units(tree),
        )
    )


def _read_google(tree: Tree) -> Usage:
    prompt = _number(tree, "prompt_token_count", "promptTokenCount")
    tool_use = _number(tree, "tool_use_prompt_token_count", "toolUsePromptTokenCount")
    answer = _number(tree, "candidates_token_count", "candidatesTokenCount")
    thoughts = _number(tree, "thoughts_token_count", "thoughtsTokenCount")
    given = (prompt or 0) + (tool_use or 0) if prompt is not None or tool_use is not None else None
    output = (answer or 0) + (thoughts or 0) if answer is not None or thoughts is not None else None
    return Usage(
        Counts(
            input=given,
            output=output,
            cache_read=_number(tree, "cached_content_token_count", "cachedContentTokenCount"),
            reasoning=thoughts,
        )
    )


def _read_bedrock(tree: Tree) -> Usage:
    return Usage(
        Counts(
            input=_number(tree, "inputTokens"),
            output=_number(tree, "outputTokens"),
            cache_read=_number(tree, "cacheReadInputTokens", "cacheReadInputTokenCount"),
            cache_write=_number(tree, "cacheWriteInputTokens", "cacheWriteInputTokenCount"),
            includes_cache=False,
        )
    )


def _read_flat(tree: Tree) -> Usage:
    """Langfuse: `input` and `output` with parts beside them; the total tells whether the parts are inside."""
    inputs = {key: _number(tree, key) or 0 for key in tree if key == "input" or key.startswith("input_")}
    outputs = {key: _number(tree, key) or 0 for key in tree if key == "output" or key.startswith("output_")}
    inputs |= {key: _number(tree, key) or 0 for key in tree if key.startswith("cache_")}
    given, answered, total = inputs.get("input", 0), outputs.get("output", 0), _number(tree, "total")
    parts_in, parts_out = sum(inputs.values()) - given, sum(outputs.values()) - answered
    inside_in = inside_out = False
    if total is not None and total != given + parts_in + answered + parts_out:
        inside_in, inside_out = _place_parts(total, given + answered, parts_in, parts_out)
    read, write = (
        _sum_keys(inputs, "cache_read", "cached"),
        _sum_keys(inputs, "cache_creation", "cache_write", "ephemeral"),
    )
    return Usage(
        Counts(
            input=given if inside_in else given + parts_in,
            output=answered if inside_out else answered + parts_out,
            total=total,
            cache_read=read,
            cache_write=write,
            cache_write_1h=_sum_keys(inputs, "ephemeral_1h"),
            reasoning=_sum_keys(outputs, "reasoning"),
            audio_input=_sum_keys(inputs, "audio"),
            audio_output=_sum_keys(outputs, "audio"),
        )
    )


def _place_parts(total: int, base: int, parts_in: int, parts_out: int) -> tuple[bool, bool]:
    for inside_in, inside_out in ((True, True), (True, False), (False, True)):
        if total == base + (0 if inside_in else parts_in) + (0 if inside_out else parts_out):
            return inside_in, inside_out
    raise UnreadableUsageError("total does not match the parts")


def _sum_keys(parts: Mapping[str, int], *words: str) -> int | None:
    found = [amount for key, amount in parts.items() if any(word in key for word in words)]
    return sum(found) if found else None


def _read_tool_units(tree: Tree) -> dict[str, Any]:
    searches = _number(_branch(tree, "server_tool_use"), "web_search_requests")
    return {"web_search_requests": searches} if searches else {}


def _read_iterations(tree: Tree, iterations: Iterable[object]) -> Usage:
    parts = [usage.counts for item in iterations if (usage := read_usage(item)) is not None]
    if not parts:
        raise UnreadableUsageError("iterations without usage")
    summed = Counts(includes_cache=all(part.includes_cache for part in parts), units=_read_tool_units(tree))
    for name in ("input", "output", "cache_read", "cache_write", "cache_write_5m", "cache_write_1h"):
        known = [amount for part in parts if (amount := getattr(part, name)) is not None]
        setattr(summed, name, sum(known) if known else None)
    return Usage(
        summed,
        base=(_number(tree, "input_tokens"), _number(tree, "output_tokens")),
        service_tier=_text(tree.get("service_tier")),
    )


_FORMS = (
    ("prompt_tokens", _read_openai_chat),
    ("completion_tokens", _read_openai_chat),
    ("prompt_token_count", _read_google),
    ("promptTokenCount", _read_google),
    ("input_tokens", _read_input_tokens),
    ("output_tokens", _read_input_tokens),
    ("inputTokens", _read_bedrock),
    ("input", _read_flat),
    ("output", _read_flat),
)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def read_provider_metadata(document: object) -> Usage | None:
    """Vercel AI SDK: `{provider: {usage: {...}}}` is a whole usage object, without `usage` it has cache counts only."""
    if not isinstance(document, dict):
        return None
    for provider, tree in document.items():
        if not isinstance(tree, dict):
            continue
        whole = _branch(tree, "usage", "usageMetadata")
        if "input_tokens" in whole or "promptTokenCount" in whole:
            if isinstance(tree.get("iterations"), list) and tree["iterations"] and "iterations" not in whole:
                whole = {**whole, "iterations": _snake_iterations(tree["iterations"])}
            return read_usage(whole)
        counts = Counts(
            cache_read=_first(
                _number(tree, "cacheReadInputTokens", "cachedPromptTokens", "promptCacheHitTokens"),
                _number(whole, "cacheReadInputTokens"),
            ),
            cache_write=_first(
                _number(tree, "cacheCreationInputTokens", "cacheWriteInputTokens", "cacheWriteTokens"),
                _number(whole, "cacheWriteInputTokens"),
            ),
            reasoning=_number(tree, "reasoningTokens"),
            includes_cache=provider not in ("anthropic", "bedrock"),
        )
        if counts.count_known():
            return Usage(counts, partial=True)
    return None


def _snake_iterations(iterations: list[object]) -> list[object]:
    names = {
        "inputTokens": "input_tokens",
        "outputTokens": "output_tokens",
        "cacheCreationInputTokens": "cache_creation_input_tokens",
        "cacheReadInputTokens": "cache_read_input_tokens",
    }
    return [
        {names.get(key, key): value for key, value in item.items()} if isinstance(item, dict) else item
        for item in iterations
    ]


def read_response(document: object) -> Usage | None:
    """Usage and id of a recorded response or LangChain result; None when no usage object is where it belongs."""
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if not isinstance(document, dict):
        return None
    if "generations" in document:
        return _read_langchain(document)
    usage = read_usage(_branch(document, "usage", "usage_metadata", "usageMetadata"))
    if usage is not None:
        usage.response_id = _text(document.get("id")) or _text(document.get("response_id"))
    return usage


def _read_langchain(document: Tree) -> Usage | None:
    rows = document.get("generations")
    first = rows[0][0] if isinstance(rows, list) and len(rows) == 1 and isinstance(rows[0], list) and rows[0] else {}
    message = _branch(_branch(first, "message"), "kwargs", "data") if isinstance(first, dict) else {}
    summary = _branch(document, "llm_output", "llmOutput")
    metadata = _branch(message, "response_metadata")
    for tree in (metadata, summary):
        usage = read_usage(_branch(tree, "usage", "token_usage"))
        if usage is not None:
            break
    else:
        usage = read_usage(_branch(message, "usage_metadata"))
    if usage is not None:
        own = _text(message.get("id")) or ""
        made_up = own.startswith(("lc_", "run-", "run--"))
        usage.response_id = _text(metadata.get("id")) or _text(summary.get("id")) or (None if made_up else own or None)
    return usage
