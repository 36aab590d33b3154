"""Identifiers derived from content: the same input gives the same id on every machine and after every restart."""

from __future__ import annotations

import hashlib
from functools import lru_cache

_LENGTHS = tuple(length.to_bytes(8, "big") for length in range(256))


def digest_parts(kind: str, *parts: bytes | str | int) -> bytes:
    """SHA-256 over a domain-separated, length-prefixed encoding, so that no two different tuples share an input."""
    pieces = [_encode_kind(kind)]
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        size = len(raw)
        pieces += (_LENGTHS[size] if size < 256 else size.to_bytes(8, "big"), raw)
    return hashlib.sha256(b"".join(pieces)).digest()


@lru_cache(maxsize=64)
def _encode_kind(kind: str) -> bytes:
    return f"otelbill.{kind}.v1".encode()


def derive_event_id(trace_id: bytes, span_id: bytes, explicit_id: str | None) -> str:
    """32 hex characters. An explicit `otelbill.event.id` names the event; otherwise the span does."""
    if explicit_id:
        return digest_parts("event", explicit_id).hex()[:32]
    return digest_parts("span-event", trace_id, span_id).hex()[:32]


def derive_record_id(event_id: str, revision: int, kind: str) -> str:
    """32 hex characters for the n-th booking of an event; `kind` is usage or reversal."""
    return digest_parts("record", event_id, revision, kind).hex()[:32]


def derive_claim_key(kind: str, *parts: bytes | str | int) -> bytes:
    """16 bytes under which the members of a claim group find each other."""
    digest = digest_parts(kind, *parts)
    return bytes((digest[0] & 0x7F,)) + digest[1:16]


def derive_twin_key(kind: str, *parts: bytes | str | int) -> bytes:
    """The same for evidence that links spans of different emitters only; such a key can be told from the others."""
    digest = digest_parts(kind, *parts)
    return bytes((digest[0] | 0x80,)) + digest[1:16]


def is_twin_key(key: bytes) -> bool:
    """Whether a claim key links spans of different emitters only.

    A job that embeds equal chunks makes equal calls by the thousand; linking those would make one endless group of them.
    """
    return key[0] >= 0x80
