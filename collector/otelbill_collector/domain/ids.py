"""Identifiers derived from content: the same input gives the same id on every machine and after every restart."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256

_LENGTHS = tuple(length.to_bytes(8, "big") for length in range(256))
_LOW = tuple(bytes((first & 0x7F,)) for first in range(256))  # first byte of a claim key
_HIGH = tuple(bytes((first | 0x80,)) for first in range(256))  # and of a twin key
_RECENT_MAX = 8_192  # traces and seconds whose digests are at hand


def digest_parts(kind: str, *parts: bytes | str | int) -> bytes:
    """SHA-256 over a domain-separated, length-prefixed encoding, so that no two different tuples share an input."""
    pieces = [_encode_kind(kind)]
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        pieces += (_encode_size(raw), raw)
    return sha256(b"".join(pieces)).digest()


def _encode_size(raw: bytes) -> bytes:
    size = len(raw)
    return _LENGTHS[size] if size < 256 else size.to_bytes(8, "big")


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
    return _LOW[digest[0]] + digest[1:16]


def derive_twin_key(kind: str, *parts: bytes | str | int) -> bytes:
    """The same for evidence that links spans of different emitters only; such a key can be told from the others."""
    digest = digest_parts(kind, *parts)
    return _HIGH[digest[0]] + digest[1:16]


# The functions below give what `derive_claim_key` and `derive_twin_key` give for one kind each: nearly every span asks
# for these, and most of their input is known beforehand.

_TRACE, _RESPONSE, _TWIN, _GAP = (
    f"otelbill.{kind}.v1".encode() for kind in ("claim-trace", "claim-response", "claim-twin", "claim-gap")
)
_TRACE_16 = _TRACE + _LENGTHS[16]
_RESPONSE_HEADS = tuple(_RESPONSE + length for length in _LENGTHS)


@lru_cache(maxsize=_RECENT_MAX)
def derive_trace_key(trace_id: bytes) -> bytes:
    """`derive_claim_key("claim-trace", trace_id)`: the spans of one trace come together."""
    digest = sha256((_TRACE_16 if len(trace_id) == 16 else _TRACE + _encode_size(trace_id)) + trace_id).digest()
    return _LOW[digest[0]] + digest[1:16]


def derive_response_key(claim_id: str) -> bytes:
    """`derive_claim_key("claim-response", claim_id)`."""
    raw = claim_id.encode()
    size = len(raw)
    head = _RESPONSE_HEADS[size] if size < 256 else _RESPONSE + _encode_size(raw)
    digest = sha256(head + raw).digest()
    return _LOW[digest[0]] + digest[1:16]


def derive_number_keys(input_tokens: int, output_tokens: int, buckets: Iterable[int]) -> list[bytes]:
    """`derive_twin_key("claim-twin", input_tokens, output_tokens, bucket)` for each bucket."""
    asked, answered = b"%d" % input_tokens, b"%d" % output_tokens
    head = _TWIN + _LENGTHS[len(asked)] + asked + _LENGTHS[len(answered)] + answered
    keys = []
    for bucket in buckets:
        digest = sha256(head + _encode_bucket(bucket)).digest()
        keys.append(_HIGH[digest[0]] + digest[1:16])
    return keys


@lru_cache(maxsize=_RECENT_MAX)
def derive_gap_key(family: str, bucket: int) -> bytes:
    """`derive_twin_key("claim-gap", family, bucket)`: calls of one model within the same seconds share it."""
    raw = family.encode()
    digest = sha256(_GAP + _encode_size(raw) + raw + _encode_bucket(bucket)).digest()
    return _HIGH[digest[0]] + digest[1:16]


@lru_cache(maxsize=_RECENT_MAX)
def _encode_bucket(bucket: int) -> bytes:
    raw = b"%d" % bucket
    return _LENGTHS[len(raw)] + raw


TWIN_KEYS_FROM = 0x80
"""The first byte of every twin key is at least this, that of every other claim key less."""


def is_twin_key(key: bytes) -> bool:
    """Whether a claim key links spans of different emitters only.

    A job that embeds equal chunks makes equal calls by the thousand; linking those would make one endless group.
    """
    return key[0] >= TWIN_KEYS_FROM
