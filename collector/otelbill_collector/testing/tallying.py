"""A loopback server that remembers every provider call it answered, with its usage, for comparison with a bill."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from otelbill_collector.testing.loopback import LoopbackServer, Reply
from otelbill_collector.testing.usage import TalliedCall

_OPERATIONS = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/responses": "responses",
    "/embeddings": "embeddings",
    "/messages": "messages",
}


class TallyingServer(LoopbackServer):
    """A provider that remembers every call it answered."""

    def __init__(self, *, port: int = 0) -> None:
        super().__init__(port=port)
        self._guard = threading.Lock()
        self._tally: list[TalliedCall] = []

    @property
    def openai_base_url(self) -> str:
        """What `openai.OpenAI(base_url=...)` wants; the Anthropic client takes `base_url`."""
        return f"{self.base_url}/v1"

    @property
    def tally(self) -> list[TalliedCall]:
        """Every answered call so far, oldest first. Also served as JSON under `GET /_tally`."""
        with self._guard:
            return list(self._tally)

    def clear_tally(self) -> None:
        """Forget the calls so far."""
        with self._guard:
            self._tally.clear()

    def record(self, call: TalliedCall) -> None:
        """Add one answered call."""
        with self._guard:
            self._tally.append(call)

    def render_tally(self) -> Reply:
        """The tally as a JSON array."""
        return reply_json(200, [call.to_json() for call in self.tally])


def find_operation(path: str) -> str | None:
    """The provider operation that a path stands for; None for any other path."""
    return next((name for suffix, name in _OPERATIONS.items() if path.endswith(suffix)), None)


def reply_json(status: int, value: Any, headers: Mapping[str, str] | None = None) -> Reply:
    """A JSON answer."""
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})
