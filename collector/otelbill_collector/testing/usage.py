"""Reads the usage that a provider's answer states (JSON or an event stream) into disjoint quantities.

Owns the truth a bill is compared with, so it shares no code with the sidecar's own decoding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]  # provider JSON: its shape is only known field by field


@dataclass(frozen=True, slots=True)
class TalliedCall:
    """One answered call. `quantities` hold token counts by unit, disjoint as in the sidecar; a zero is left out.

    `reported` is false when the usage never reached the caller (a stream without usage, an error, a cut stream);
    `quantities` then still hold what the provider would charge where that is known. `iteration_quantities` is the work
    of compaction and advisor iterations that Anthropic's top-level usage leaves out.
    """

    provider: str
    operation: str
    model: str
    response_id: str | None
    status: int
    quantities: Mapping[str, int] = field(default_factory=dict)
    reported: bool = True
    streamed: bool = False
    iteration_quantities: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> Json:
        """The same as a JSON object."""
        return {
            "provider": self.provider,
            "operation": self.operation,
            "model": self.model,
            "response_id": self.response_id,
            "status": self.status,
            "quantities": dict(self.quantities),
            "reported": self.reported,
            "streamed": self.streamed,
            "iteration_quantities": dict(self.iteration_quantities),
        }


@dataclass(frozen=True, slots=True)
class StatedUsage:
    """What a body says about itself; `usage` is the provider's object, None when the body has none."""

    model: str | None
    response_id: str | None
    usage: Json | None


def normalise_openai(usage: Json) -> dict[str, int]:
    """Quantities of a chat, completion, embedding or Responses usage object, whose input includes cached tokens."""
    inputs = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    outputs = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    cache_read = inputs.get("cached_tokens") or 0
    cache_write = inputs.get("cache_write_tokens") or 0
    total_in = usage.get("prompt_tokens", usage.get("input_tokens")) or 0
    return _drop_zeros(
        input_tokens=total_in - cache_read - cache_write,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        output_tokens=usage.get("completion_tokens", usage.get("output_tokens")) or 0,
        reasoning_tokens=outputs.get("reasoning_tokens") or 0,
        audio_input_tokens=inputs.get("audio_tokens") or 0,
        audio_output_tokens=outputs.get("audio_tokens") or 0,
    )


def normalise_anthropic(usage: Json) -> dict[str, int]:
    """Quantities of a Messages usage object, whose input excludes both kinds of cached tokens."""
    creation = usage.get("cache_creation") or {}
    return _drop_zeros(
        input_tokens=usage.get("input_tokens") or 0,
        cache_read_tokens=usage.get("cache_read_input_tokens") or 0,
        cache_write_tokens=usage.get("cache_creation_input_tokens") or 0,
        cache_write_1h_tokens=creation.get("ephemeral_1h_input_tokens") or 0,
        output_tokens=usage.get("output_tokens") or 0,
        reasoning_tokens=(usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0,
    )


def sum_hidden_iterations(usage: Json) -> dict[str, int]:
    """Quantities of the iterations that Anthropic's top-level usage does not contain."""
    total: dict[str, int] = {}
    for iteration in usage.get("iterations") or []:
        if iteration.get("type") != "message":
            for unit, count in normalise_anthropic(iteration).items():
                total[unit] = total.get(unit, 0) + count
    return total


def read_answer(body: bytes, *, streamed: bool) -> StatedUsage:
    """Model, response id and final usage of a provider's answer. A body that is not JSON states nothing."""
    model: str | None = None
    response_id: str | None = None
    usage: Json = {}
    for event in _iter_events(body) if streamed else _load_one(body):
        holder = event.get("message") or event.get("response") or event
        if isinstance(holder, dict):
            model = holder.get("model") or model
            response_id = response_id or holder.get("id")
            # Anthropic's message_delta repeats only the fields that changed, so later ones overwrite earlier ones.
            usage.update({k: v for k, v in (holder.get("usage") or event.get("usage") or {}).items() if v is not None})
    return StatedUsage(model, response_id, usage or None)


def _load_one(body: bytes) -> Iterator[Json]:
    try:
        value = json.loads(body)
    except ValueError:
        return
    if isinstance(value, dict) and "error" not in {k for k, v in value.items() if v}:
        yield value


def _iter_events(body: bytes) -> Iterator[Json]:
    for line in body.splitlines():
        name, _, data = line.partition(b":")
        if name == b"data" and (data := data.strip()) not in (b"", b"[DONE]"):
            value = json.loads(data)
            if isinstance(value, dict):
                yield value


def _drop_zeros(**counts: int) -> dict[str, int]:
    return {unit: count for unit, count in counts.items() if count}
