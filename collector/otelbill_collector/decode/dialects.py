"""Which emitter wrote a span and how it means its numbers. Owns the dialect table, its check at start-up, and matching.

Matching is memoised per (scope, version) and per set of known attribute names, so that a span costs two look-ups.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from otelbill_collector.decode.vocabulary import Vocabulary, load_vocabulary, load_yaml
from otelbill_collector.domain.usage import TOKEN_UNITS

_FILE = Path(__file__).with_name("dialect_table.yaml")
_IMAGES = "output.images."
_PLANS_MAX = 4096  # shapes seen in one process; content-heavy emitters vary only in names that are not known
_EFFECTS = {"caveat", "estimated", "unknown", "drop"}
_CONDITIONS = {
    "provider",
    "model",
    "operation",
    "streaming",
    "missing",
    "zero",
    "present",
    "absent",
    "input_min",
    "uncached_min",
    "total_min",
    "ended_unset",
    "beta",
    "other_provider",
    "output_has",
}
ATTRIBUTION_KEYS = (
    "otelbill.customer.id",
    "otelbill.project.id",
    "otelbill.run.id",
    "otelbill.step",
    "otelbill.attempt",
    "otelbill.billable",
    "otelbill.event.id",
    "otelbill.meter",
    "otelbill.quantity",
    "otelbill.unit",
    "otelbill.reason",
)
# Read when a rule asks for them; alone they do not make a span a GenAI span.
_HELPERS = (
    "anthropic.beta",
    "gen_ai.tool.definitions",
    "llm.tools.0.tool.json_schema",
    "llm.invocation_parameters",
    "logfire.span_type",
    "output.value",
    "output.mime_type",
    "hidden_params",
    "metadata",
    "usage",
    "error.type",
)
_WEAK = re.compile(r"[a-z_]+|server\..*|http\..*|output\..*|error\..*|logfire\..*")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something an emitter is known to get wrong: the units concerned, the condition, and what follows."""

    units: tuple[str, ...]
    then: str
    why: str
    when: Mapping[str, Any] = field(default_factory=dict)  # Any: tests differ in type, checked by name at load


@dataclass(frozen=True, slots=True)
class UsageObject:
    """An attribute that holds a whole usage object as JSON or Python repr. `at` names a member of it."""

    attribute: str
    trust: str  # full | matching | iterations
    at: str | None = None
    form: str = "auto"
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """One row of the table. See the head of `dialect_table.yaml` for the meaning of every field."""

    name: str
    scopes: tuple[str, ...]
    seen: str = ""
    versions: str | None = None
    markers: tuple[str, ...] = ()
    trust: int = 5
    twin: bool = False
    traces_apart: bool = False
    input_includes_cache: Mapping[str, str] = field(default_factory=dict)
    output_includes_reasoning: bool = True
    output_from_total: bool = False
    last_call_only: bool = False
    implies_call: bool = False
    stream_usage_in_log_span: bool = False
    own_response_ids: re.Pattern[str] | None = None
    own_response_id_length: int = 0
    mirror_prefix: str | None = None
    model_vendors: Mapping[str, str] = field(default_factory=dict)
    usage_objects: tuple[UsageObject, ...] = ()
    faults: tuple[Fault, ...] = ()

    def find_cache_rule(self, provider: str | None) -> str:
        """`yes`, `no` or `checked`: does the input count of this emitter include cached tokens?"""
        rules = self.input_includes_cache
        return rules.get(provider or "", rules.get("other", "yes"))


@dataclass(frozen=True, slots=True)
class Plan:
    """What to read from spans of one shape: the dialect, and the spellings present for each fact, best first."""

    dialect: Dialect
    counts: tuple[tuple[str, tuple[str, ...]], ...]
    units: tuple[tuple[str, tuple[str, ...]], ...]
    texts: Mapping[str, tuple[str, ...]]
    flags: Mapping[str, tuple[str, ...]]
    status_codes: tuple[str, ...]
    failure_marks: tuple[tuple[str, str], ...]
    operation_keys: tuple[str, ...]
    usage_objects: tuple[UsageObject, ...]
    attribution: bool
    explicit: bool
    genai: bool
    aggregated: bool
    output_images: int
    hidden_params: bool  # holds whether the answer came from a cache


@cache
def load_table() -> tuple[Dialect, ...]:
    """The checked table. Raises ValueError naming the row and the field."""
    return parse_table(load_yaml(_FILE))


def list_dialects() -> tuple[Dialect, ...]:
    """Every known dialect, most specific first, for display."""
    return load_table()


def parse_table(document: Mapping[str, Any]) -> tuple[Dialect, ...]:
    """Rows from parsed YAML; the last must take every GenAI span."""
    rows = tuple(_parse_row(entry) for entry in document["dialects"])
    names = [row.name for row in rows]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"dialect_table.yaml: {sorted(doubled)} stand twice")
    if rows[-1].scopes != ("*",) or rows[-1].markers or rows[-1].versions:
        raise ValueError("dialect_table.yaml: the last row must match every scope")
    return rows


def _parse_row(entry: Mapping[str, Any]) -> Dialect:
    name = entry.get("name", "?")
    if unknown := set(entry) - set(Dialect.__dataclass_fields__):
        raise ValueError(f"dialect_table.yaml: {name}: unknown fields {sorted(unknown)}")
    fields = dict(entry)
    fields["scopes"] = tuple(fields["scopes"])
    fields["markers"] = tuple(fields.get("markers", ()))
    fields["input_includes_cache"] = _parse_cache_rule(name, fields.get("input_includes_cache", True))
    fields["usage_objects"] = tuple(UsageObject(**item) for item in fields.get("usage_objects", ()))
    fields["faults"] = tuple(_parse_fault(name, item) for item in fields.get("faults", ()))
    if "own_response_ids" in fields:
        fields["own_response_ids"] = re.compile(fields["own_response_ids"])
        if not fields.get("own_response_id_length"):
            raise ValueError(f"dialect_table.yaml: {name}: own_response_ids without own_response_id_length")
    row = Dialect(**fields)
    if not 0 <= row.trust <= 9:
        raise ValueError(f"dialect_table.yaml: {name}: trust {row.trust} is not 0-9")
    match_version(row.versions, "1.0")
    return row


def _parse_cache_rule(name: str, rule: object) -> Mapping[str, str]:
    rules = rule if isinstance(rule, dict) else {"other": rule}
    words = {True: "yes", False: "no", "checked": "checked"}
    try:
        return {str(provider): words[value] for provider, value in rules.items()}
    except KeyError as error:
        raise ValueError(f"dialect_table.yaml: {name}: input_includes_cache {error} is not yes, no, checked") from None


def _parse_fault(name: str, entry: Mapping[str, Any]) -> Fault:
    fault = Fault(tuple(entry["units"]), entry["then"], entry["why"], dict(entry.get("when", {})))
    if fault.then not in _EFFECTS or set(fault.when) - _CONDITIONS or set(fault.units) - set(TOKEN_UNITS):
        raise ValueError(f"dialect_table.yaml: {name}: fault {entry} has an unknown unit, condition or effect")
    return fault


def match_version(rule: str | None, version: str) -> bool:
    """True when `version` satisfies a rule such as `>=0.48,<0.55`. An unknown version satisfies every rule."""
    if not rule:
        return True
    for part in rule.split(","):
        parsed = re.fullmatch(r"\s*(>=|<=|<|>|==)\s*([\d.]+)\s*", part)
        if parsed is None:
            raise ValueError(f"dialect_table.yaml: version rule {rule!r} is not like '>=0.48,<0.55'")
        if version and not _compare(_numbers(version), parsed[1], _numbers(parsed[2])):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])


def _compare(left: tuple[int, ...], sign: str, right: tuple[int, ...]) -> bool:
    width = max(len(left), len(right))
    a, b = left + (0,) * (width - len(left)), right + (0,) * (width - len(right))
    return {">=": a >= b, "<=": a <= b, "<": a < b, ">": a > b, "==": a == b}[sign]


@lru_cache(maxsize=1024)
def find_rows(scope_name: str, scope_version: str) -> tuple[Dialect, ...]:
    """Rows whose scope and version fit, in table order; their markers are still to be tested."""
    return tuple(
        row
        for row in load_table()
        if any(fnmatch.fnmatchcase(scope_name, pattern) for pattern in row.scopes)
        and match_version(row.versions, scope_version)
    )


@cache
def load_known_keys() -> frozenset[str]:
    """Every attribute name that any rule reads. Names outside this set never influence a plan."""
    vocabulary = load_vocabulary()
    keys: set[str] = {*vocabulary.status_codes, *vocabulary.operation_keys, *ATTRIBUTION_KEYS, *_HELPERS}
    keys.update(vocabulary.failure_marks)
    for section in (vocabulary.counts, vocabulary.units, vocabulary.texts, vocabulary.flags):
        keys.update(key for spellings in section.values() for key in spellings)
    for row in load_table():
        keys.update(row.markers)
        keys.update(item.attribute for item in row.usage_objects)
        for fault in row.faults:
            keys.update(fault.when.get("present", ()), fault.when.get("absent", ()))
    return frozenset(keys)


def find_shape(names: Iterable[str]) -> frozenset[str]:
    """The attribute names of a span that any rule looks at: known ones, and those of images, which are counted."""
    listed = tuple(names)
    images = [name for name in listed if name.startswith(_IMAGES)]
    return load_known_keys().intersection(listed).union(images)


@lru_cache(maxsize=_PLANS_MAX)
def find_plan(scope_name: str, scope_version: str, shape: frozenset[str]) -> Plan | None:
    """The plan for spans of a scope and `find_shape`; None when they are no business of ours."""
    attribution = any(key in shape for key in ATTRIBUTION_KEYS)
    genai = any(key not in ATTRIBUTION_KEYS and not _WEAK.fullmatch(key) for key in shape)
    if not attribution and not genai:
        return None
    rows = find_rows(scope_name, scope_version)
    dialect = next(row for row in rows if not row.markers or any(marker in shape for marker in row.markers))
    return _compile_plan(dialect, shape, load_vocabulary(), attribution=attribution, genai=genai)


def _compile_plan(
    dialect: Dialect, shape: frozenset[str], vocabulary: Vocabulary, *, attribution: bool, genai: bool
) -> Plan:
    def present(section: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        found = {name: tuple(key for key in keys if key in shape) for name, keys in section.items()}
        return {name: keys for name, keys in found.items() if keys}

    counts = present(vocabulary.counts)
    return Plan(
        dialect=dialect,
        counts=tuple(counts.items()),
        units=tuple(present(vocabulary.units).items()),
        texts=present(vocabulary.texts),
        flags=present(vocabulary.flags),
        status_codes=_within(vocabulary.status_codes, shape),
        failure_marks=tuple((key, mark) for key, mark in vocabulary.failure_marks.items() if key in shape),
        operation_keys=_within(vocabulary.operation_keys, shape),
        usage_objects=tuple(item for item in dialect.usage_objects if item.attribute in shape),
        attribution=attribution,
        explicit="otelbill.meter" in shape or "otelbill.quantity" in shape,
        genai=genai,
        aggregated=any(key.startswith("gen_ai.aggregated_usage.") for keys in counts.values() for key in keys),
        hidden_params=dialect.mirror_prefix is not None and "hidden_params" in shape,
        output_images=len({name.split(".", 3)[2] for name in shape if name.startswith(_IMAGES)}),
    )


def _within(keys: Sequence[str], shape: frozenset[str]) -> tuple[str, ...]:
    return tuple(key for key in keys if key in shape)
