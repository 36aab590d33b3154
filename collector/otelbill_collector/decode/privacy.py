"""Gate for every text that may leave a span: length, control characters, e-mail shape. Owns what is let through.

Rule: nothing e-mail shaped and nothing unbounded reaches a candidate. Names that only describe (model, operation) are
left out when they fail; ids that must stay comparable (customer, response id) are replaced by a digest of themselves.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

TEXT_LENGTH_MAX = 128
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[A-Za-z]{2,}")
_NAME = re.compile(r"[\w][\w.:/@+\-]{0,127}")
_SCOPE = re.compile(r"@?[\w][\w.:/@+\-]{0,95}")
_WORD = re.compile(r"[A-Za-z][\w.\-]{0,63}")


def is_email_shaped(text: str) -> bool:
    """True when an e-mail address stands anywhere in the text."""
    return "@" in text and _EMAIL.search(text) is not None


def clean_name(value: object) -> str | None:
    """Model or provider name: one word of at most 128 characters without spaces, or None."""
    return _clean_name(value) if isinstance(value, str) and len(value) <= TEXT_LENGTH_MAX else None


@lru_cache(maxsize=4096)
def _clean_name(value: str) -> str | None:
    text = value.strip()
    return text if _NAME.fullmatch(text) and not is_email_shaped(text) else None


@lru_cache(maxsize=1024)
def clean_scope(value: str) -> str:
    """Instrumentation scope for comparison: as it is when it is a plain name, otherwise a digest of it."""
    if value and _SCOPE.fullmatch(value) and not is_email_shaped(value):
        return value
    return f"digest:{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}" if value else ""


def clean_word(value: object) -> str | None:
    """Operation, tier or meter: a plain identifier of at most 64 characters, or None."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def clean_id(value: object) -> str | None:
    """An id that must stay comparable. Over-long, unprintable or e-mail shaped ids become `digest:<32 hex>`.

    The digest is stable, so the same customer stays one customer without the address being stored.
    """
    if isinstance(value, str):
        return _clean_id(value) if len(value) <= TEXT_LENGTH_MAX else _clean_any_id(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return _clean_any_id(str(value))
    return None


def _clean_any_id(value: str) -> str | None:
    text = value.strip()
    if not text:
        return None
    if len(text) > TEXT_LENGTH_MAX or not text.isprintable() or is_email_shaped(text):
        return f"digest:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
    return text


_clean_id = lru_cache(maxsize=32_768)(_clean_any_id)  # customers, steps and runs stand on many spans


def clip_value(value: object) -> str:
    """A value for an error report: numbers as they are, texts only by type and length (they may hold content)."""
    if isinstance(value, str):
        short = len(value) <= 32 and re.fullmatch(r"[\w.+\- ]*", value) is not None and not is_email_shaped(value)
        return repr(value) if short and any(c.isdigit() for c in value) else f"text of {len(value)} characters"
    if isinstance(value, bool | int | float) or value is None:
        return repr(value)[:40]
    return f"{type(value).__name__}"
