"""The JSON Schemas of otelbill.yaml and of a rate card, and the list of settings, all derived from the file's form.

For editors and the docs; the sidecar itself does not need it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from otelbill_collector.config.complaints import find_section
from otelbill_collector.config.config_file import ConfigFile
from otelbill_collector.config.rate_card_model import RateCardSection


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its path (`rate_card.prices[].price`, `customers.*.stripe`), default as YAML text, and meaning."""

    path: str
    default: str
    meaning: str


def create_schema() -> dict[str, Any]:  # Any: JSON
    """JSON Schema (2020-12) of the file."""
    schema = ConfigFile.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "otelbill.yaml"}


def render_schema() -> str:
    """The text of docs/otelbill.schema.json."""
    return json.dumps(create_schema(), indent=2, sort_keys=True) + "\n"


def render_card_schema() -> str:
    """The text of docs/rate-card.schema.json."""
    schema = RateCardSection.model_json_schema(by_alias=True)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "otelbill rate card"}
    return json.dumps({**schema, **head}, indent=2, sort_keys=True) + "\n"


def list_settings() -> list[Setting]:
    """Every setting that holds a value, in the order of the file."""
    return list(_walk(ConfigFile, ""))


def _walk(section: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        inner = find_section(field)
        if inner is None:
            yield Setting(path, _render_default(field), field.description or "")
        else:
            text = str(field.annotation)
            mark = "[]" if text.startswith("list[") else ".*" if text.startswith("dict[") else ""
            yield from _walk(inner, f"{path}{mark}.")


def _render_default(field: Any) -> str:  # Any: FieldInfo
    if field.is_required():
        return "required"
    default = field.default
    if default is None:
        return "none"
    return default if isinstance(default, str) else json.dumps(default)
