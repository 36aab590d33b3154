"""Decides what the demo provider answers to a conversation: text, tool calls and token counts, all from its content.

The same request always gives the same plan. Owns the numbers; does not own any provider's JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]  # provider JSON: its shape is only known field by field

BYTES_PER_TOKEN = 4
TURN_OVERHEAD_TOKENS = 3
OPENAI_CACHE_STEP_TOKENS = 16  # small on purpose, so that short demo conversations show cached tokens
REASONING_MODELS = ("o1", "o3", "o4", "gpt-5")
CACHE_WRITING_MODELS = ("gpt-5.6",)
_TEXT = (
    "the meter counts each call once and the ledger keeps every record in order so a bill can be checked line by line "
    "against what the provider saw while late spans find their own hour and nobody pays twice"
)
_WORDS = tuple(_TEXT.split(" "))


@dataclass(frozen=True, slots=True)
class Turn:
    """One piece of a prompt. `cache` is the lifetime of a cache mark at its end ("5m", "1h") or None."""

    role: str
    text: str
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A provider request, reduced to what the plan depends on. `tools` are (name, parameter schema) pairs."""

    model: str
    turns: tuple[Turn, ...]
    tools: tuple[tuple[str, Json], ...] = ()
    tool_choice: str | None = None  # a tool's name, "none", or None for free choice
    tool_calls_max: int = 2
    schema: Json | None = None  # the answer must be JSON of this schema
    choices: int = 1
    thinks: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model asks for; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer. Token counts: `prompt_tokens` include both cached kinds, `output_tokens` include reasoning."""

    model: str
    response_id: str
    created: int
    texts: tuple[str, ...]
    tool_calls: tuple[ToolCall, ...]
    thinking: str
    prompt_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    reasoning_tokens: int
    output_tokens: int

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens that were neither read from nor written to the cache."""
        return self.prompt_tokens - self.cache_read_tokens - self.cache_write_tokens


def plan_openai(ask: Ask, *, response_id: str, created: int) -> Plan:
    """OpenAI's caching: what came before the last assistant turn is read, in whole steps, without being asked for."""
    answered = _find_last_answer(ask.turns)
    read, fresh = count_prompt_tokens(ask.turns[:answered]), count_prompt_tokens(ask.turns[answered:])
    read -= read % OPENAI_CACHE_STEP_TOKENS
    writes = ask.model.startswith(CACHE_WRITING_MODELS)
    write = fresh - fresh % OPENAI_CACHE_STEP_TOKENS if writes and not read else 0
    reasoning = 32 + _seed(ask) % 64 if ask.model.startswith(REASONING_MODELS) else 0
    return _complete(ask, response_id, created, cache=(read, write, 0), reasoning=reasoning)


def plan_anthropic(ask: Ask, *, response_id: str, created: int) -> Plan:
    """Anthropic's caching: only up to the last mark; there what precedes the last answer is read, the rest written."""
    marks = [index for index, turn in enumerate(ask.turns) if turn.cache]
    marked = ask.turns[: marks[-1] + 1] if marks else ()
    answered = _find_last_answer(ask.turns)
    read, write = count_prompt_tokens(marked[:answered]), count_prompt_tokens(marked[answered:])
    long_lived = write if marked and marked[-1].cache == "1h" else 0
    reasoning = 16 + _seed(ask) % 32 if ask.thinks else 0
    return _complete(ask, response_id, created, cache=(read, write, long_lived), reasoning=reasoning)


def count_tokens(text: str) -> int:
    """Tokens of a text by the demo's own rule: a token per four bytes, rounded up."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def count_prompt_tokens(turns: Sequence[Turn]) -> int:
    """Tokens of the turns, each with a fixed overhead."""
    return sum(count_tokens(turn.text) + TURN_OVERHEAD_TOKENS for turn in turns)


def split_pieces(text: str) -> list[str]:
    """The text as stream deltas, a word each; joined they give the text again."""
    words = text.split(" ")
    return [word + " " for word in words[:-1]] + [words[-1]]


def _complete(ask: Ask, response_id: str, created: int, *, cache: tuple[int, int, int], reasoning: int) -> Plan:
    seed = _seed(ask)
    calls = _choose_calls(ask, seed, response_id)
    texts = () if calls else tuple(_write_text(ask, seed + n) for n in range(ask.choices))
    said = sum(count_tokens(text) for text in texts)
    said += sum(count_tokens(call.name + call.arguments) for call in calls)
    read, write, write_1h = cache
    return Plan(
        model=ask.model,
        response_id=response_id,
        created=created,
        texts=texts,
        tool_calls=calls,
        thinking=_write_words(seed // 7, 12) if ask.thinks else "",
        prompt_tokens=count_prompt_tokens(ask.turns),
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=write_1h,
        reasoning_tokens=reasoning,
        output_tokens=said + reasoning,
    )


def _find_last_answer(turns: Sequence[Turn]) -> int:
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    return answers[-1] if answers else 0


def _choose_calls(ask: Ask, seed: int, response_id: str) -> tuple[ToolCall, ...]:
    answered = bool(ask.turns) and ask.turns[-1].role == "tool"
    if ask.tool_choice == "none" or answered:
        return ()
    chosen = [tool for tool in ask.tools if ask.tool_choice in (None, tool[0])]
    return tuple(
        ToolCall(f"call_{response_id[-16:]}{n}", name, json.dumps(build_sample(schema, seed)))
        for n, (name, schema) in enumerate(chosen[: ask.tool_calls_max])
    )


def _write_text(ask: Ask, seed: int) -> str:
    if ask.schema is not None:
        return json.dumps(build_sample(ask.schema, seed))
    return f"Demo answer {seed % 9000 + 1000}: {_write_words(seed, 8 + seed % 24)}."


def _write_words(seed: int, count: int) -> str:
    return " ".join(_WORDS[(seed + n) % len(_WORDS)] for n in range(count))


def build_sample(schema: Json, seed: int, definitions: Json | None = None) -> Any:
    """A value that satisfies the common part of JSON Schema (objects, arrays, scalars, enum, anyOf, local $ref)."""
    definitions = definitions if definitions is not None else schema.get("$defs", {})
    if "$ref" in schema:
        return build_sample(definitions[schema["$ref"].rpartition("/")[2]], seed, definitions)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][seed % len(schema["enum"])]
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return build_sample(schema[union][0], seed, definitions)
    if "properties" in schema:
        return {name: build_sample(part, seed, definitions) for name, part in schema["properties"].items()}
    if schema.get("type") == "array":
        return [build_sample(schema.get("items", {}), seed, definitions)]
    scalars: Json = {"integer": seed % 100, "number": seed % 100, "boolean": True, "null": None, "object": {}}
    return scalars.get(str(schema.get("type")), "demo")


def _seed(ask: Ask) -> int:
    hasher = hashlib.sha256(ask.model.encode())
    for turn in ask.turns:
        hasher.update(f"\0{turn.role}\0{turn.text}".encode())
    return int.from_bytes(hasher.digest()[:6], "big")
