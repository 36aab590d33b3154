"""Stripe's v1 request parameters: nested form fields into dicts and lists, and the checks each endpoint names.

Every value stays the text that was sent; reading it as a number or a flag is asked for by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from otelbill_collector.testing.stripe.errors import Json, StripeRefusal

_BRACKETS = re.compile(r"\[([^\]]*)\]")
PAGE_DEFAULT = 10
PAGE_MAX = 100


@dataclass(frozen=True, slots=True)
class Params:
    """The names an endpoint takes at one level; `expand` is always allowed at the top."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def parse_form(text: str) -> Json:
    """`a[b]=1`, `a[0][b]=1` and `a[]=1` as nested values; lists come from numeric or empty brackets."""
    tree: Json = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        head, _, rest = name.partition("[")
        _place(tree, [head, *_BRACKETS.findall(f"[{rest}" if rest else "")], value)
    return {name: _close(value) for name, value in tree.items()}


def check_params(given: Any, params: Params, *, prefix: str = "") -> None:
    """Refuse unknown and missing names, as Stripe does, naming the parameter."""
    if not isinstance(given, Mapping):
        raise StripeRefusal(f"Invalid object: {prefix}", param=prefix, code="parameter_invalid_type")
    for name in given:
        if name not in (*params.required, *params.optional, *(() if prefix else ("expand",))):
            full = _qualify(name, prefix)
            raise StripeRefusal(f"Received unknown parameter: {full}", code="parameter_unknown", param=full)
    for name in params.required:
        if given.get(name) in (None, ""):
            full = _qualify(name, prefix)
            raise StripeRefusal(f"Missing required param: {full}.", code="parameter_missing", param=full)


def read_int(given: Json, name: str, default: int | None = None) -> int | None:
    """A whole number, or the default when absent."""
    if name not in given:
        return default
    try:
        return int(str(given[name]))
    except ValueError:
        raise StripeRefusal(f"Invalid integer: {given[name]}", code="parameter_invalid_integer", param=name) from None


def require_int(given: Json, name: str) -> int:
    """A whole number that `check_params` has found present."""
    value = read_int(given, name)
    assert value is not None
    return value


def read_flag(given: Json, name: str, default: bool) -> bool:
    """`true` or `false`."""
    text = str(given.get(name, default)).lower()
    if text not in ("true", "false"):
        raise StripeRefusal(f"Invalid boolean: {text}", code="parameter_invalid_boolean", param=name)
    return text == "true"


def read_text(given: Json, name: str, length_max: int, default: str = "") -> str:
    """A text of at most `length_max` characters."""
    text = given.get(name, default)
    if not isinstance(text, str):
        raise StripeRefusal(f"Invalid string: {name}", code="parameter_invalid_type", param=name)
    if len(text) > length_max:
        message = f"Invalid string: {text[:20]}...{text[-8:]}; must be at most {length_max} characters"
        raise StripeRefusal(message, code="parameter_invalid_string", param=name)
    return text


def read_choice(given: Json, name: str, choices: tuple[str, ...], default: str | None = None) -> str | None:
    """One of the choices, or the default when absent."""
    value = given.get(name, default)
    if value is not None and value not in choices:
        raise StripeRefusal(f"Invalid {name}: must be one of {', '.join(choices)}", param=name)
    return value


def read_metadata(given: Json, current: Mapping[str, str]) -> dict[str, str]:
    """Metadata merged into the current one; an empty value removes its key, an empty text removes all."""
    wanted = given.get("metadata", {})
    if wanted == "":
        return {}
    if not isinstance(wanted, dict):
        raise StripeRefusal("Invalid object: metadata", code="parameter_invalid_type", param="metadata")
    merged = {**current, **wanted}
    return {name: str(value) for name, value in merged.items() if value != ""}


def page(objects: list[Json], given: Json, url: str) -> Json:
    """One page of a list that is already in its order, by `limit`, `starting_after` and `ending_before`."""
    limit = read_int(given, "limit", PAGE_DEFAULT) or 0
    if not 1 <= limit <= PAGE_MAX:
        raise StripeRefusal(f"Invalid limit: must be between 1 and {PAGE_MAX}", param="limit")
    ids = [item["id"] for item in objects]
    start, stop = 0, len(objects)
    if after := given.get("starting_after"):
        start = _find_cursor(ids, after, "starting_after") + 1
    if before := given.get("ending_before"):
        stop = _find_cursor(ids, before, "ending_before")
        start = max(0, stop - limit)
        return {"object": "list", "url": url, "has_more": start > 0, "data": objects[start:stop]}
    end = min(start + limit, stop)
    return {"object": "list", "url": url, "has_more": end < stop, "data": objects[start:end]}


def _find_cursor(ids: list[str], cursor: str, param: str) -> int:
    if cursor not in ids:
        raise StripeRefusal(f"No such object: '{cursor}'", code="resource_missing", param=param)
    return ids.index(cursor)


def _qualify(name: str, prefix: str) -> str:
    return f"{prefix}[{name}]" if prefix else name


def _place(tree: Json, path: list[str], value: str) -> None:
    *parents, last = path
    for step in parents:
        key = step or str(len(tree))
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise StripeRefusal(f"Invalid object: {parents[0]}", param=parents[0], code="parameter_invalid_type")
    tree[last or str(len(tree))] = value


def _close(value: Any) -> Any:
    """Dicts whose keys are 0..n-1 are lists."""
    if not isinstance(value, dict):
        return value
    closed = {name: _close(part) for name, part in value.items()}
    if closed and list(closed) == [str(n) for n in range(len(closed))]:
        return list(closed.values())
    return closed
