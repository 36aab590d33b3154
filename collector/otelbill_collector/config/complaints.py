"""Validation errors of the file's form as problems with a remedy. Owns their wording; knows no particular setting."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from otelbill_collector.config.document import Document
from otelbill_collector.config.problems import PathParts, render_path

_SHAPES = {
    "model_type": ("is not a section", "indent its settings below it as `name: value`"),
    "model_attributes_type": ("is not a section", "indent its settings below it as `name: value`"),
    "dict_type": ("is not a mapping", "indent its entries below it as `name: value`"),
    "list_type": ("is not a list", "write its entries as `- ...` lines or in [ ]"),
    "missing": ("is missing", "add it, or leave out the whole entry"),
}


def add_complaints(document: Document, error: ValidationError, model: type[BaseModel]) -> None:
    """Turn every validation error into a problem of the document. Never quotes what the environment contains."""
    for detail in error.errors(include_url=False, include_input=False):
        path = tuple(part for part in detail["loc"] if part != "[key]")
        if path in document.complained:
            continue  # what follows from a missing variable says nothing new
        message, remedy = _explain_error(detail, path, model)
        if path in document.secret_paths:
            message = "has a value from the environment that is not valid"
        document.add_problem(path, message, remedy)


def _explain_error(detail: ErrorDetails, path: PathParts, model: type[BaseModel]) -> tuple[str, str]:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "setting":
        return str(context["message"]), str(context["remedy"])
    if kind == "extra_forbidden":
        return "is not a setting", _suggest_name(path, model)
    if kind in ("model_type", "model_attributes_type") and len(path) == 2 and path[0] == "customers":
        # The usual short form; the value itself is not quoted, as it may come from the environment.
        return "is not a section", f"write {path[1]}: {{stripe: cus_123}}, with this customer's id at Stripe"
    if kind in _SHAPES:
        return _SHAPES[kind]
    return _explain_bound(kind, context, detail["msg"])


def _explain_bound(kind: str, context: Mapping[str, Any], message: str) -> tuple[str, str]:  # Any: as pydantic has it
    if kind == "greater_than_equal":
        return "is too small", f"the least is {context['ge']}"
    if kind == "less_than_equal":
        return "is too large", f"the most is {context['le']}"
    if kind == "literal_error":
        return "is not one of the choices", f"write {context['expected']}"
    if kind == "string_too_long":
        return "is too long", f"at most {context['max_length']} characters"
    if kind == "too_short":
        return "has too few entries", f"give at least {context['min_length']}"
    return message.lower(), "see docs/configuration.md"


def _suggest_name(path: PathParts, model: type[BaseModel]) -> str:
    names = list_names(model, path[:-1])
    close = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {render_path((*path[:-1], close[0]))}?"
    return f"known here: {', '.join(sorted(names))}"


def list_names(model: type[BaseModel], path: PathParts) -> list[str]:
    """Names of the settings directly below a path."""
    section = model
    for part in path:
        if isinstance(part, str) and (field := _find_field(section, part)) is not None:
            found = find_section(field)
            if found is None:
                return []
            section = found
    return [field.alias or name for name, field in section.model_fields.items()]


def _find_field(section: type[BaseModel], name: str) -> Any:  # Any: FieldInfo, generic in a way of no use here
    for key, field in section.model_fields.items():
        if name in (key, field.alias):
            return field
    return None


def find_section(field: Any) -> type[BaseModel] | None:  # Any: FieldInfo or a type
    """The section that a field holds: itself, optional, in a list, or as the values of a mapping."""
    annotation = getattr(field, "annotation", field)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner: Iterable[Any] = getattr(annotation, "__args__", ())
    return next((found for item in inner if (found := find_section(item)) is not None), None)
