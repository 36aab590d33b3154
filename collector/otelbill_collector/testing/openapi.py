"""Checks answers against an OpenAPI 3.0 document: the part of JSON Schema that such documents use, nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Schema = dict[str, Any]  # JSON Schema: its shape is only known keyword by keyword

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


class OpenApi:
    """One document."""

    def __init__(self, path: Path) -> None:
        """Load the JSON document at `path`."""
        self._document = json.loads(path.read_text())
        self._paths = [
            (re.compile(re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(template))), template)
            for template in self._document["paths"]
        ]

    def find_operation(self, method: str, path: str) -> Schema | None:
        """The operation, or None where the document has none."""
        for pattern, template in self._paths:
            if pattern.fullmatch(path):
                operation: Schema | None = self._document["paths"][template].get(method.lower())
                return operation
        return None

    def check_answer(self, method: str, path: str, status: int, body: Any) -> list[str]:
        """What is wrong with an answer, one line each; nothing for an operation that the document does not have."""
        operation = self.find_operation(method, path)
        if operation is None:
            return []
        responses = operation["responses"]
        schema = responses.get(str(status), responses["default"])["content"]["application/json"]["schema"]
        return list(self._check(schema, body, f"{method} {path} {status}"))

    def _check(self, schema: Schema, value: Any, at: str) -> Iterator[str]:
        if "$ref" in schema:
            yield from self._check(self._resolve(schema["$ref"]), value, at)
        elif value is None:
            if not schema.get("nullable"):
                yield f"{at}: null"
        elif union := schema.get("oneOf") or schema.get("anyOf"):
            if all(list(self._check(part, value, at)) for part in union):
                yield f"{at}: {value!r} matches none of {len(union)} forms"
        else:
            yield from self._check_plain(schema, value, at)

    def _check_plain(self, schema: Schema, value: Any, at: str) -> Iterator[str]:
        wanted = _TYPES.get(schema.get("type", ""))
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted != (bool,))):
            yield f"{at}: {value!r} is not {schema['type']}"
            return
        if "enum" in schema and not schema.get("x-open-enum") and value not in schema["enum"]:
            yield f"{at}: {value!r} is not one of {schema['enum']}"
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from self._check(schema.get("items", {}), item, f"{at}[{index}]")
        if isinstance(value, dict):
            yield from self._check_fields(schema, value, at)

    def _check_fields(self, schema: Schema, value: dict[str, Any], at: str) -> Iterator[str]:
        known = schema.get("properties", {})
        yield from (f"{at}.{name}: missing" for name in schema.get("required", ()) if name not in value)
        for name, item in value.items():
            rest = schema.get("additionalProperties")
            if name in known:
                yield from self._check(known[name], item, f"{at}.{name}")
            elif isinstance(rest, dict):
                yield from self._check(rest, item, f"{at}.{name}")

    def _resolve(self, reference: str) -> Schema:
        node: Schema = self._document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
        return node
