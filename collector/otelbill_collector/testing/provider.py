"""A local LLM provider that the real `openai` and `anthropic` clients talk to, with generated answers and faults.

Owns paths, scripted faults and what is tallied; the answers come from `answers`, recorded ones from `replay`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from otelbill_collector.testing.answers import anthropic_messages, openai_chat, openai_responses
from otelbill_collector.testing.answers.plan import Ask, Json, Plan, plan_anthropic, plan_openai
from otelbill_collector.testing.loopback import Reply, Request, serve_until_signal
from otelbill_collector.testing.replay import ReplayServer
from otelbill_collector.testing.tallying import TallyingServer, find_operation, reply_json
from otelbill_collector.testing.usage import TalliedCall, normalise_openai

FAULT_HEADER = "x-otelbill-fault"
STREAM_PAUSE_SECONDS = 0.02
SLOW_SECONDS = 0.2
_MODEL_FAMILIES = ("gpt-", "o1", "o3", "o4", "chatgpt-", "text-embedding-", "claude-")
# The dated names that the real APIs answer with when a request names the alias.
_DATED_MODELS = {
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
}
_PROVIDERS = {"chat": "openai", "responses": "openai", "embeddings": "openai", "messages": "anthropic"}


class Fault(StrEnum):
    """What a request may ask to go wrong, in the header above or as a suffix of its model (`gpt-4o#server-error`)."""

    RATE_LIMIT_ONCE = "rate-limit-once"  # 429, and the same request sent again succeeds
    RATE_LIMIT = "rate-limit"
    SERVER_ERROR = "server-error"
    UNAUTHORIZED = "unauthorized"
    SLOW = "slow"  # a pause before the answer
    SLOW_STREAM = "slow-stream"  # a pause before every chunk
    CUT_STREAM = "cut-stream"  # the connection ends in the middle of the stream, before any final usage


_REFUSALS = {
    Fault.RATE_LIMIT_ONCE: (429, "rate_limit_error", "rate_limit_exceeded", "Rate limit reached; try again soon."),
    Fault.RATE_LIMIT: (429, "rate_limit_error", "rate_limit_exceeded", "Rate limit reached; try again soon."),
    Fault.SERVER_ERROR: (500, "server_error", None, "The demo provider failed on purpose."),
    Fault.UNAUTHORIZED: (401, "authentication_error", "invalid_api_key", "The API key is not valid."),
}


@dataclass(frozen=True, slots=True)
class _Call:
    """A request for an answer, parsed."""

    provider: str
    operation: str
    model: str
    body: Json
    fault: Fault | None
    digest: str

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


class ProviderServer(TallyingServer):
    """Generates answers from the request alone, so that the same calls give the same bill every time."""

    def __init__(self, *, port: int = 0, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives the Unix seconds stamped on answers."""
        super().__init__(port=port)
        self._clock = clock
        self._sightings: dict[str, int] = {}
        self._refused_once: set[str] = set()

    def respond(self, request: Request) -> Reply:
        """Answer an API call, or the tally."""
        if (request.method, request.path) == ("GET", "/_tally"):
            return self.render_tally()
        operation = find_operation(request.path)
        if request.method != "POST" or operation not in _PROVIDERS:
            return _reply_error(404, f"no such path: {request.method} {request.path}")
        try:
            call = _parse_call(request, operation)
        except (ValueError, KeyError) as error:
            return _reply_error(400, f"unreadable request, it needs JSON with a model and a known fault: {error!r}")
        refusal = self._find_refusal(call)
        if refusal is not None:
            return self._refuse(call, refusal)
        if call.fault is Fault.SLOW:
            self.pause(SLOW_SECONDS)
        return self._answer(call)

    def _find_refusal(self, call: _Call) -> tuple[int, str, str | None, str] | None:
        if not call.model.startswith(_MODEL_FAMILIES):
            return 404, "not_found_error", "model_not_found", f"The model `{call.model}` does not exist."
        if call.fault is Fault.RATE_LIMIT_ONCE:
            with self._guard:
                if call.digest in self._refused_once:
                    self._refused_once.remove(call.digest)
                    return None
                self._refused_once.add(call.digest)
        return _REFUSALS.get(call.fault) if call.fault else None

    def _refuse(self, call: _Call, refusal: tuple[int, str, str | None, str]) -> Reply:
        status, kind, code, message = refusal
        self.record(TalliedCall(call.provider, call.operation, call.model, None, status, reported=False))
        # The real clients honour this header; it keeps their retry within a test's patience.
        headers = {"retry-after-ms": "10"} if status == 429 else {}
        error: Json = {"type": kind, "message": message}
        if call.provider == "anthropic":
            return reply_json(status, {"type": "error", "error": error}, headers)
        return reply_json(status, {"error": {**error, "param": None, "code": code}}, headers)

    def _answer(self, call: _Call) -> Reply:
        model = _DATED_MODELS.get(call.model, call.model)
        if call.operation == "embeddings":
            answer = openai_chat.render_embeddings({**call.body, "model": model})
            self.record(_tally_call(call, model, None, normalise_openai(answer["usage"])))
            return reply_json(200, answer)
        if call.operation == "messages":
            return self._answer_messages(call, model)
        responses = call.operation == "responses"
        ask = (openai_responses.read_responses if responses else openai_chat.read_chat)(call.body)
        plan = self._plan(call, replace(ask, model=model), "resp_demo" if responses else "chatcmpl-demo", plan_openai)
        if responses:
            self.record(_tally_call(call, model, plan.response_id, _count_quantities(plan)))
            answer = openai_responses.render_response(plan, call.body)
            events = openai_responses.render_response_stream(plan, call.body)
            return self._stream(call, map(_named_event, events)) if call.streamed else reply_json(200, answer)
        wanted = bool((call.body.get("stream_options") or {}).get("include_usage"))
        reported = wanted or not call.streamed
        self.record(_tally_call(call, model, plan.response_id, _count_quantities(plan), reported=reported))
        if not call.streamed:
            return reply_json(200, openai_chat.render_chat(plan))
        chunks = [_plain_event(chunk) for chunk in openai_chat.render_chat_stream(plan, include_usage=wanted)]
        return self._stream(call, [*chunks, b"data: [DONE]\n\n"])

    def _answer_messages(self, call: _Call, model: str) -> Reply:
        ask = replace(anthropic_messages.read_messages(call.body), model=model)
        plan = self._plan(call, ask, "msg_demo", plan_anthropic)
        self.record(_tally_call(call, model, plan.response_id, _count_quantities(plan)))
        if not call.streamed:
            return reply_json(200, anthropic_messages.render_message(plan))
        return self._stream(call, map(_named_event, anthropic_messages.render_message_stream(plan)))

    def _plan(self, call: _Call, ask: Ask, prefix: str, make: Callable[..., Plan]) -> Plan:
        with self._guard:
            # Equal requests get equal answers but never an equal id: an id names one call, and a bill counts it once.
            sighting = self._sightings[call.digest] = self._sightings.get(call.digest, 0) + 1
        name = hashlib.sha256(f"{call.digest}/{sighting}".encode()).hexdigest()[:24]
        plan: Plan = make(ask, response_id=prefix + name, created=int(self._clock()))
        return plan

    def _stream(self, call: _Call, events: Iterable[bytes]) -> Reply:
        chunks = list(events)
        cut = call.fault is Fault.CUT_STREAM
        if cut:
            chunks = chunks[: max(1, len(chunks) // 2)]
        pause = STREAM_PAUSE_SECONDS if call.fault is Fault.SLOW_STREAM else 0.0
        return Reply(200, self._pace(chunks, pause), {"Content-Type": "text/event-stream; charset=utf-8"}, cut=cut)

    def _pace(self, chunks: list[bytes], pause: float) -> Iterator[bytes]:
        for chunk in chunks:
            if pause:
                self.pause(pause)
            yield chunk


def _tally_call(
    call: _Call, model: str, response_id: str | None, quantities: Mapping[str, int], *, reported: bool = True
) -> TalliedCall:
    reported = reported and call.fault is not Fault.CUT_STREAM
    return TalliedCall(
        call.provider, call.operation, model, response_id, 200, quantities, reported=reported, streamed=call.streamed
    )


def _count_quantities(plan: Plan) -> dict[str, int]:
    counts = {
        "input_tokens": plan.uncached_tokens,
        "cache_read_tokens": plan.cache_read_tokens,
        "cache_write_tokens": plan.cache_write_tokens,
        "cache_write_1h_tokens": plan.cache_write_1h_tokens,
        "output_tokens": plan.output_tokens,
        "reasoning_tokens": plan.reasoning_tokens,
    }
    return {unit: count for unit, count in counts.items() if count}


def _parse_call(request: Request, operation: str) -> _Call:
    raw = request.read_body()
    body = json.loads(raw)
    model, _, suffix = str(body["model"]).partition("#")
    wanted = request.headers.get(FAULT_HEADER) or suffix
    digest = hashlib.sha256(raw).hexdigest()
    fault = Fault(wanted) if wanted else None
    return _Call(_PROVIDERS[operation], operation, model, {**body, "model": model}, fault, digest)


def _reply_error(status: int, message: str) -> Reply:
    return reply_json(status, {"error": {"message": message, "type": "invalid_request_error"}})


def _plain_event(event: Json) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()


def _named_event(event: Json) -> bytes:
    return f"event: {event['type']}\n".encode() + _plain_event(event)


def main(arguments: list[str] | None = None) -> None:
    """Run the demo provider, or a recording, until SIGTERM; prints its address first."""
    parser = argparse.ArgumentParser(prog="python -m otelbill_collector.testing.provider", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 picks a free one")
    parser.add_argument("--replay", type=Path, help="answer from this recording instead of generating")
    chosen = parser.parse_args(arguments)
    server = ReplayServer(chosen.replay, port=chosen.port) if chosen.replay else ProviderServer(port=chosen.port)
    serve_until_signal(server, "provider")


__all__ = ["FAULT_HEADER", "Fault", "ProviderServer", "ReplayServer", "TalliedCall", "main"]

if __name__ == "__main__":
    main()
