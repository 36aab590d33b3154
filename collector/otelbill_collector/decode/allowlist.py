"""What of a span may be kept on disk or sent on: the app's own allow-list, and counts that are broken but must show.

Everything else stays in the request's memory and is gone with it: prompts, completions, tool arguments, headers.
"""

from __future__ import annotations

import re

from otelbill.allow_list import find_resource_rule, find_rule, pass_count
from otelbill_collector.decode.spans import Value

_EMAIL = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]+")
_COUNT_TEXT = re.compile(r"[\w.+-]{1,40}", re.ASCII)
HIDDEN = "<text>"


def filter_attribute(key: str, value: Value) -> Value:
    """The value as it may be kept, or None."""
    rule = find_rule(key)
    if rule is None:
        return None
    if rule is pass_count:
        return _filter_count(value)
    return rule(value)


def filter_resource(key: str, value: Value) -> Value:
    """The same for resource attributes."""
    rule = find_resource_rule(key)
    return None if rule is None else rule(value)


def filter_text(text: str, limit: int) -> str | None:
    """A name as it may be kept: short, printable, not a mail address."""
    if len(text) > limit or not text.isprintable() or _EMAIL.search(text):
        return None
    return text


def _filter_count(value: Value) -> Value:
    """A broken count must stay visible, or its replayed dead letter would be a span without usage; prose must not."""
    if isinstance(value, str):
        return value if _COUNT_TEXT.fullmatch(value) else HIDDEN
    return None if isinstance(value, tuple) else value
