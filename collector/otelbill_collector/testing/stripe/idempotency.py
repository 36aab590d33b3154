"""Stripe's v1 idempotency layer: a key's first saved answer is replayed for 24 hours, even when it is a 500."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from otelbill_collector.testing.stripe.errors import Json, StripeRefusal
from otelbill_collector.testing.stripe.store import Change, Store

TABLE = "idempotency"
KEPT_SECONDS = 24 * 3600
KEY_LENGTH_MAX = 255


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and JSON body of an answer; `replayed` marks a saved one."""

    status: int
    body: Any
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request under an Idempotency-Key: the row it is saved in and what it asked for."""

    row: str
    fingerprint: str

    def find_saved(self, store: Store, now: int) -> Answer | None:
        """The saved answer; refuses the key when its first request was another one."""
        saved = store.find(TABLE, self.row)
        if saved is None or now - saved["created"] >= KEPT_SECONDS:
            return None
        if saved["fingerprint"] != self.fingerprint:
            message = (
                "Keys for idempotent requests can only be used with the same parameters they were first used with."
            )
            raise StripeRefusal(message, kind="idempotency_error")
        return Answer(saved["status"], saved["body"], replayed=True)

    def save(self, answer: Answer, now: int) -> Change:
        """The change that keeps this answer."""
        row: Json = {"fingerprint": self.fingerprint, "status": answer.status, "body": answer.body, "created": now}
        return Change(TABLE, self.row, row)


def key_request(key: str | None, *, scope: str, route: str, body: bytes) -> KeyedRequest | None:
    """None without a key. Refuses a key that is too long."""
    if key is None:
        return None
    if len(key) > KEY_LENGTH_MAX:
        raise StripeRefusal(f"The Idempotency-Key can be at most {KEY_LENGTH_MAX} characters long.")
    fingerprint = hashlib.sha256(route.encode() + b"\0" + body).hexdigest()
    return KeyedRequest(f"{scope}/{key}", fingerprint)
