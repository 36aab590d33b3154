"""Encoded attribute values to what is kept of them, each seen value once. Owns these memories and their bound.

What a value is cleaned to is said by `privacy`, what is a count by the contract; nothing here decides.
"""

from __future__ import annotations

from typing import TypeVar

from otelbill_collector.decode.facts import is_free_name
from otelbill_collector.decode.privacy import clean_id
from otelbill_collector.decode.wire import decode_value
from otelbill_collector.domain.usage import QUANTITY_MAX

VALUES_MAX = 65_536  # in each memory; a full one is emptied
VALUE_BYTES_MAX = 512  # a longer value hardly comes twice

_Key = TypeVar("_Key", bytes, str)
_Kept = TypeVar("_Kept")


class _Numbers(dict[bytes, int | None]):
    """Encoded value to count; None for all that is no plain integer from 0 to 2^53."""

    def __missing__(self, raw: bytes) -> int | None:
        value = decode_value(raw)
        number = value if type(value) is int and 0 <= value <= QUANTITY_MAX else None
        return _keep(self, raw, number)


class _Texts(dict[bytes, str | None]):
    """Encoded value to the id that is kept of it: a customer, project or step stands on many spans."""

    def __missing__(self, raw: bytes) -> str | None:
        return _keep(self, raw, clean_id(decode_value(raw)))


class _FreeNames(dict[str, bool]):
    """Span name to whether it names a request that costs nothing."""

    def __missing__(self, name: str) -> bool:
        return _keep(self, name, is_free_name(name))


def _keep(memory: dict[_Key, _Kept], key: _Key, value: _Kept) -> _Kept:
    if len(memory) >= VALUES_MAX:
        memory.clear()
    if len(key) <= VALUE_BYTES_MAX:
        memory[key] = value
    return value


NUMBERS, TEXTS, FREE_NAMES = _Numbers(), _Texts(), _FreeNames()


def forget_values() -> None:
    """Empty all memories."""
    for memory in (NUMBERS, TEXTS, FREE_NAMES):
        memory.clear()


def read_id(raw: bytes) -> str | None:
    """An id that hardly any other span has: what `clean_id` makes of it, faster where there is nothing to clean."""
    return read_plain_id(raw) or clean_id(decode_value(raw))


def read_plain_id(raw: bytes) -> str | None:
    """The text of a short encoded one that `clean_id` leaves as it is; None says nothing."""
    size = len(raw) - 2
    if 0 < size < 0x80 and raw[1] == size and raw[0] == 0x0A and raw.isascii():
        text = raw[2:].decode()
        if text.isprintable() and "@" not in text and " " not in text:
            return text
    return None
