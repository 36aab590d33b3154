"""A program as customers write them: the real clients, `otelbill.configure()`, one customer per recording.

Run by `test_recordings.py` in its own process; prints what the provider answered, one JSON object per customer.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import anthropic
import openai

import otelbill
from otelbill_collector.testing.provider import ProviderServer, ReplayServer

_ASK: Any = [{"role": "user", "content": "hello"}]
_OPENAI_MODEL, _ANTHROPIC_MODEL = "gpt-4o-mini", "claude-haiku-4-5"


def _list_served(recording: Path) -> list[tuple[str, bool]]:
    """(path, streamed) of the interactions that the provider's own client can ask for."""
    served = []
    for interaction in json.loads(recording.read_text())["interactions"]:
        path, response = interaction["request"]["path"], interaction["response"]
        if path.startswith("/v1/"):
            served.append((path, "event-stream" in response["headers"].get("content-type", "")))
    return served


def _ask(clients: tuple[openai.OpenAI, anthropic.Anthropic], path: str, *, streamed: bool, usage: bool = True) -> None:
    """One call as the documentation of the client shows it; a stream is read to its end."""
    chat, messages = clients
    options: Any = {"stream": True} if streamed else {}
    if streamed and usage and path in {"/v1/chat/completions", "/v1/completions"}:
        options["stream_options"] = {"include_usage": True}
    match path:
        case "/v1/messages":
            form: Any = {"model": _ANTHROPIC_MODEL, "max_tokens": 9, "messages": _ASK, **options}
            answer: Any = messages.messages.create(**form)
        case "/v1/chat/completions":
            answer = chat.chat.completions.create(model=_OPENAI_MODEL, messages=_ASK, **options)
        case "/v1/completions":
            answer = chat.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello", **options)
        case "/v1/responses":
            answer = chat.responses.create(model=_OPENAI_MODEL, input="hello", **options)
        case "/v1/embeddings":
            answer = chat.embeddings.create(model="text-embedding-ada-002", input="hello")
        case _:
            raise ValueError(f"no client call for {path}")
    if streamed:
        for _ in answer:
            pass


def _open_clients(address: str) -> tuple[openai.OpenAI, anthropic.Anthropic]:
    return (
        openai.OpenAI(api_key="k", base_url=f"{address}/v1", max_retries=0),
        anthropic.Anthropic(api_key="k", base_url=address, max_retries=0),
    )


def _replay(recording: Path, customer: str) -> None:
    with ReplayServer(recording) as server:
        clients = _open_clients(server.base_url)
        with otelbill.customer(customer):
            for path, streamed in _list_served(recording):
                try:
                    _ask(clients, path, streamed=streamed)
                except (openai.APIStatusError, anthropic.APIStatusError):
                    continue
        _report(customer, server)


def _generate(customer: str) -> None:
    """Streams whose usage the client did not ask for: the provider counts, the client never hears of it."""
    with ProviderServer() as server:
        clients = _open_clients(server.base_url)
        with otelbill.customer(customer):
            for _ in range(3):
                _ask(clients, "/v1/chat/completions", streamed=True, usage=False)
        _report(customer, server)


def _report(customer: str, server: Any) -> None:  # Any: both servers tally
    for client_calls in [[call.to_json() for call in server.tally]]:
        sys.stdout.write(json.dumps({"customer": customer, "calls": client_calls}) + "\n")


def main() -> None:
    """Arguments: address of the sidecar's OTLP listener, recordings to replay."""
    endpoint, *recordings = sys.argv[1:]
    os.environ["NO_PROXY"] = "127.0.0.1"
    otelbill.configure(endpoint=endpoint, strict=True)
    for name in recordings:
        path = Path(name)
        _replay(path, f"{path.parent.name}.{path.stem}")
    _generate("withheld")
    assert otelbill.flush(30), "spans wait that nobody took"
    found = otelbill.status()
    sys.stdout.write(json.dumps({"faults": found.faults}) + "\n")


if __name__ == "__main__":
    main()
