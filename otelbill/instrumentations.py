"""Owns which installed instrumentations are switched on.
Does not own what they record, nor when that happens (`provider`).
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Final

from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts

from otelbill.errors import ConfigError
from otelbill.guard import Guard, report

GROUP: Final = "opentelemetry_instrumentor"

# Names under which instrumentations register. `threading` carries the frame into threads and executors.
KNOWN: Final = (
    "threading",
    "openai",
    "openai_agents",
    "anthropic",
    "bedrock",
    "cohere",
    "google_genai",
    "google_generativeai",
    "groq",
    "langchain",
    "litellm",
    "llama_index",
    "llamaindex",
    "mistralai",
    "ollama",
    "replicate",
    "together",
    "vertexai",
    "watsonx",
)

# Clients that make spans themselves from this major version on: a second instrumentation would only repeat them.
NATIVE_SINCE: Final = {"anthropic": 2, "mistralai": 1}


def instrument_installed() -> tuple[str, ...]:
    """Switch on the known instrumentations whose library is installed; those already on are left alone.

    Returns the names of those switched on.
    """
    return tuple(found.name for found in select_entry_points(entry_points(group=GROUP)) if _switch_on(found))


def select_entry_points(found: Iterable[EntryPoint]) -> list[EntryPoint]:
    """One entry point for each known library, the first of each name: two would record each call twice."""
    by_name: dict[str, EntryPoint] = {}
    for entry_point in found:
        if entry_point.name in KNOWN and not _is_native(entry_point.name):
            by_name.setdefault(entry_point.name, entry_point)
    return list(by_name.values())


def _switch_on(entry_point: EntryPoint) -> bool:
    # A missing or too new library is no fault: many environments have instrumentations for what they do not use.
    if entry_point.dist is not None and get_dist_dependency_conflicts(entry_point.dist) is not None:
        return False
    with Guard(f"instrument.{entry_point.name}"):
        instrumentor = entry_point.load()()
        if instrumentor.is_instrumented_by_opentelemetry:
            return False
        instrumentor.instrument(skip_dep_check=True)
        return True
    hint = "update it, or switch it on yourself"
    report(
        ConfigError("instrument_failed", f"instrumentation {entry_point.name} failed", hint=hint), place="instrument"
    )
    return False


def _is_native(name: str) -> bool:
    if name not in NATIVE_SINCE:
        return False
    try:
        major = version(name).split(".", maxsplit=1)[0]
    except PackageNotFoundError:
        return False
    return major.isdigit() and int(major) >= NATIVE_SINCE[name]
