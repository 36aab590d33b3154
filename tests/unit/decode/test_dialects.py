"""The dialect table is checked when it is loaded, and the most specific row wins."""

from __future__ import annotations

import re
from typing import Any

import pytest

from otelbill_collector.decode.dialects import find_rows, list_dialects, load_known_keys, match_version, parse_table
from otelbill_collector.decode.vocabulary import find_provider, load_vocabulary, parse_vocabulary

LAST = {"name": "any", "scopes": ["*"]}


def test_the_shipped_table_loads_and_ends_with_a_row_for_everybody() -> None:
    """No GenAI span is without a dialect."""
    rows = list_dialects()
    assert rows[-1].scopes == ("*",)
    assert len({row.name for row in rows}) == len(rows)
    assert find_rows("somebody.new", "9.9")[-1] is rows[-1]


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        ("opentelemetry.instrumentation.openai.v1", "traceloop-openai"),
        ("opentelemetry.instrumentation.openai_v2", "otel-openai-v2"),
        ("opentelemetry.instrumentation.openai_agents", "traceloop-openai-agents"),
        ("opentelemetry.instrumentation.genai.anthropic", "otel-genai"),
        ("opentelemetry.instrumentation.anthropic", "traceloop-anthropic"),
        ("com.anthropic.sdk.python.platform", "anthropic-sdk"),
        ("@arizeai/openinference-instrumentation-openai", "openinference"),
        ("logfire.openai_agents", "logfire-openai-agents"),
        ("logfire.anthropic", "logfire"),
    ],
)
def test_scopes_find_their_row(scope: str, name: str) -> None:
    """A scope prefix selects its own row before any wider one."""
    assert find_rows(scope, "")[0].name == name


@pytest.mark.parametrize(
    ("rule", "version", "held"),
    [
        (None, "1.0", True),
        (">=0.48,<0.55", "0.48.1", True),
        (">=0.48,<0.55", "0.55.0", False),
        (">=0.48", "", True),
        ("<2", "2.0b1", False),
        ("==1.2", "1.2.0", True),
    ],
)
def test_version_rules(rule: str | None, version: str, held: bool) -> None:
    """Version ranges are half-open where they say so, and an emitter without a version matches."""
    assert match_version(rule, version) is held


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"name": "x", "scopes": ["a"], "scoope": 1}, "x: unknown fields"),
        ({"name": "x", "scopes": ["a"], "trust": 12}, "x: trust 12"),
        ({"name": "x", "scopes": ["a"], "input_includes_cache": "maybe"}, "x: input_includes_cache"),
        ({"name": "x", "scopes": ["a"], "versions": "about 3"}, "version rule"),
        ({"name": "x", "scopes": ["a"], "faults": [{"units": ["tokens"], "then": "caveat", "why": "w"}]}, "x: fault"),
        (LAST, "stand twice"),
    ],
)
def test_a_faulty_row_is_refused_by_name(row: dict[str, Any], fault: str) -> None:
    """A typing error in the table stops the start and names the row."""
    with pytest.raises(ValueError, match=re.escape(fault)):
        parse_table({"dialects": [row, LAST]})


def test_the_last_row_must_take_everything() -> None:
    """A table that could leave a span without a dialect is refused."""
    with pytest.raises(ValueError, match="last row"):
        parse_table({"dialects": [{"name": "only", "scopes": ["a*"]}]})


def test_one_spelling_has_one_meaning() -> None:
    """The vocabulary refuses an attribute that means two counts."""
    document = {
        "counts": {"input": ["a"], "output": ["a"]},
        "units": {},
        "texts": {},
        "flags": {},
        "failure_marks": {},
        "free_names": "x",
        "free_names_hold": "x",
        "status_codes": [],
        "operation_keys": [],
        "operations": {},
        "operation_patterns": [],
        "providers": {},
        "not_providers": [],
        "hosts": [],
        "model_prefixes": [],
    }
    with pytest.raises(ValueError, match="a means both input and output"):
        parse_vocabulary(document)


@pytest.mark.parametrize(
    ("name", "host", "model", "provider"),
    [
        ("OpenAI", None, None, "openai"),
        ("openai", "https://acme.openai.azure.com/openai/", None, "azure"),
        ("openai", "https://api.deepseek.com", None, "deepseek"),
        ("anthropic", "api.anthropic.com", None, "anthropic"),
        ("gemini", None, None, "google"),
        ("google.vertex.chat", None, None, "google"),
        ("azure-openai.responses", None, None, "azure"),
        ("strands-agents", None, "claude-sonnet-4-5", "anthropic"),
        (None, None, "openai/gpt-4o", "openai"),
        ("acme-cloud", None, "gpt-4o", "acme-cloud"),
        (None, None, "house-model", None),
    ],
)
def test_provider_names_become_canonical(name: str | None, host: str | None, model: str | None, provider: str) -> None:
    """One provider has one name; a client's default name yields to the host it talks to, frames are no providers."""
    assert find_provider(load_vocabulary(), name, host=host, model=model) == provider


def test_content_attributes_are_never_known() -> None:
    """What holds prompts by convention is not among the names that rules read, except to be parsed in memory."""
    known = load_known_keys()
    for key in (
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "input.value",
        "gen_ai.prompt",
        "ai.prompt.messages",
    ):
        assert key not in known
