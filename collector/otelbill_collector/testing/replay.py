"""A local provider that answers with recorded interactions and tallies the usage they state. Generates nothing."""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from otelbill_collector.testing.answers.plan import Json
from otelbill_collector.testing.loopback import Reply, Request
from otelbill_collector.testing.tallying import TallyingServer, find_operation, reply_json
from otelbill_collector.testing.usage import (
    TalliedCall,
    normalise_anthropic,
    normalise_openai,
    read_answer,
    sum_hidden_iterations,
)


class ReplayServer(TallyingServer):
    """Answers with recorded interactions, in order per path: status, headers and body as they were recorded.

    A path without an interaction left answers 404, and nothing is tallied for it.
    """

    def __init__(self, recording: Path, *, port: int = 0) -> None:
        """Load a recording: JSON with `provider` and `interactions[]` of request (path) and response."""
        super().__init__(port=port)
        content = json.loads(recording.read_text())
        self.provider = str(content["provider"])
        self._waiting: dict[str, deque[Json]] = {}
        for interaction in content["interactions"]:
            self._waiting.setdefault(interaction["request"]["path"], deque()).append(interaction["response"])

    @property
    def remaining(self) -> int:
        """Interactions that nobody asked for yet."""
        with self._guard:
            return sum(map(len, self._waiting.values()))

    def respond(self, request: Request) -> Reply:
        """The next recorded answer of this path."""
        if (request.method, request.path) == ("GET", "/_tally"):
            return self.render_tally()
        with self._guard:
            waiting = self._waiting.get(request.path)
            recorded = waiting.popleft() if waiting else None
        if recorded is None:
            return reply_json(404, {"error": {"message": f"the recording has nothing left for {request.path}"}})
        encoded = recorded["encoding"] == "base64"
        body = base64.b64decode(recorded["body"]) if encoded else recorded["body"].encode()
        streamed = "event-stream" in recorded["headers"].get("content-type", "")
        self.record(_tally_recorded(self.provider, request.path, recorded["status"], body, streamed=streamed))
        return Reply(recorded["status"], _iter_sse(body) if streamed else body, recorded["headers"])


def _tally_recorded(provider: str, path: str, status: int, body: bytes, *, streamed: bool) -> TalliedCall:
    stated = read_answer(body, streamed=streamed)
    usage = stated.usage or {}
    messages = path.endswith("/messages")
    return TalliedCall(
        provider=provider,
        operation=find_operation(path) or path,
        model=stated.model or "",
        response_id=stated.response_id,
        status=status,
        quantities=normalise_anthropic(usage) if messages else normalise_openai(usage),
        reported=stated.usage is not None,
        streamed=streamed,
        iteration_quantities=sum_hidden_iterations(usage),
    )


def _iter_sse(body: bytes) -> Iterator[bytes]:
    while body:
        event, mark, body = body.partition(b"\n\n")
        yield event + mark
