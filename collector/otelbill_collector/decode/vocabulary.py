"""The shared vocabulary of GenAI spans: spellings of facts, operations, provider names. Owns loading and checking it.

The facts themselves stand in `vocabulary.yaml`; which emitter means what by them is `dialects`' business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from otelbill_collector.domain.usage import STANDARD_UNITS, Role

_FILE = Path(__file__).with_name("vocabulary.yaml")
_ROLES = {"call": Role.CALL, "aggregate": Role.AGGREGATE, "tool": Role.TOOL, "free": Role.LINK}
_SECTIONS = {
    "counts",
    "units",
    "texts",
    "flags",
    "failure_marks",
    "free_names",
    "free_names_hold",
    "status_codes",
    "operation_keys",
    "operations",
    "operation_patterns",
    "providers",
    "not_providers",
    "hosts",
    "model_prefixes",
}

Spellings = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Operation:
    """What an operation name says about a span: its role and our own name for it. `free` costs nothing."""

    role: Role
    name: str
    free: bool = False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Spellings by fact, in order of preference, and the tables of known values."""

    counts: Spellings
    units: Spellings
    texts: Spellings
    flags: Spellings
    failure_marks: Mapping[str, str]
    free_names: re.Pattern[str]
    free_names_hold: str  # in every free name of ASCII, in any case: a name without it need not be matched
    status_codes: tuple[str, ...]
    operation_keys: tuple[str, ...]
    operations: Mapping[str, Operation]
    operation_patterns: tuple[tuple[re.Pattern[str], Operation], ...]
    providers: Mapping[str, str]
    not_providers: frozenset[str]
    hosts: tuple[tuple[str, str], ...]
    model_prefixes: tuple[tuple[str, str], ...]

    def find_operation(self, value: str) -> Operation | None:
        """The operation of a value such as `chat`, `LLM` or `ai.streamText.doStream`; None when nobody knows it."""
        known = self.operations.get(value.lower())
        if known is not None:
            return known
        for pattern, operation in self.operation_patterns:
            if pattern.fullmatch(value):
                return operation
        return None


def load_yaml(file: Path) -> Any:  # Any: the shape is checked by the caller, field by field
    """Parsed YAML of a file shipped with the package. Raises ValueError with the file's name when it is no mapping."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 safe loaders only
    if not isinstance(document, dict):
        raise ValueError(f"{file.name}: expected a mapping at the top, found {type(document).__name__}")
    return document


@cache
def load_vocabulary() -> Vocabulary:
    """The checked vocabulary. Raises ValueError naming section and entry when the file contradicts itself."""
    return parse_vocabulary(load_yaml(_FILE))


def parse_vocabulary(document: Mapping[str, Any]) -> Vocabulary:
    """A vocabulary from its parsed YAML, checked: no unknown section, no spelling with two meanings."""
    if unknown := set(document) ^ _SECTIONS:
        raise ValueError(f"vocabulary.yaml: unknown or missing sections {sorted(unknown)}")
    counts, units = _spellings(document["counts"]), _spellings(document["units"])
    _refuse_double_meaning({**counts, **units})
    _check_free_names(document["free_names"], document["free_names_hold"])
    if taken := set(units) & set(STANDARD_UNITS):
        raise ValueError(f"vocabulary.yaml: units {sorted(taken)} are standard units; give them another name")
    return Vocabulary(
        counts=counts,
        units=units,
        texts=_spellings(document["texts"]),
        flags=_spellings(document["flags"]),
        failure_marks=dict(document["failure_marks"]),
        free_names=re.compile(document["free_names"]),
        free_names_hold=document["free_names_hold"],
        status_codes=tuple(document["status_codes"]),
        operation_keys=tuple(document["operation_keys"]),
        operations=_operations(document["operations"]),
        operation_patterns=tuple(_pattern(entry) for entry in document["operation_patterns"]),
        providers=_providers(document["providers"]),
        not_providers=frozenset(document["not_providers"]),
        hosts=tuple((h["suffix"], h["provider"]) for h in document["hosts"]),
        model_prefixes=tuple((m["prefix"], m["provider"]) for m in document["model_prefixes"]),
    )


def _spellings(section: Mapping[str, list[str]]) -> Spellings:
    return {name: tuple(keys) for name, keys in section.items()}


def _refuse_double_meaning(section: Spellings) -> None:
    seen: dict[str, str] = {}
    for name, keys in section.items():
        for key in keys:
            if seen.setdefault(key, name) != name:
                raise ValueError(f"vocabulary.yaml: {key} means both {seen[key]} and {name}")


def _check_free_names(pattern: str, word: str) -> None:
    if not re.fullmatch("[a-z]{1,32}", word) or word not in pattern:
        raise ValueError(f"vocabulary.yaml: free_names_hold {word!r} is no lower-case word that free_names asks for")


def _operations(section: Mapping[str, Mapping[str, list[str]]]) -> Mapping[str, Operation]:
    found: dict[str, Operation] = {}
    for role, names in section.items():
        for name, values in names.items():
            for value in values:
                if value in found:
                    raise ValueError(f"vocabulary.yaml: operation {value} stands twice")
                found[value] = Operation(_ROLES[role], name, free=role == "free")
    return found


def _pattern(entry: Mapping[str, str]) -> tuple[re.Pattern[str], Operation]:
    return re.compile(entry["pattern"]), Operation(_ROLES[entry["role"]], entry["operation"])


def _providers(section: Mapping[str, list[str]]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for provider, names in section.items():
        for name in names:
            if name in found:
                raise ValueError(f"vocabulary.yaml: provider name {name} stands twice")
            found[name] = provider
    return found


def find_provider(vocabulary: Vocabulary, name: str | None, *, host: str | None, model: str | None) -> str | None:
    """Canonical provider. The host overrides a client's default name; the model helps only when no name is given."""
    stated = (name or "").lower()
    found = vocabulary.providers.get(stated)
    if host and (found is None or found == "openai"):
        bare = re.sub(r"^[a-z]+://", "", host.lower()).split("/", 1)[0].split(":", 1)[0]
        for suffix, provider in vocabulary.hosts:
            if bare == suffix or bare.endswith("." + suffix):
                return provider
    if found is not None:
        return found
    if stated and stated not in vocabulary.not_providers:
        head = stated.split(".", 1)[0]
        return vocabulary.providers.get(head, stated)
    bare_model = (model or "").lower().rsplit("/", 1)[-1]
    for prefix, provider in vocabulary.model_prefixes:
        if bare_model.startswith(prefix):
            return provider
    return None
