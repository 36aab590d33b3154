"""Usage objects of providers and frameworks are read in every form met, strictly and within limits."""

from __future__ import annotations

import ast
import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbill_collector.decode.quantities import split_counts
from otelbill_collector.decode.usage_objects import (
    REPR_LENGTH_MAX,
    UnreadableUsageError,
    parse_document,
    read_iterations,
    read_provider_metadata,
    read_response,
    read_usage,
)

FORMS = {
    "openai chat": {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "total_tokens": 107,
        "prompt_tokens_details": {"cached_tokens": 60},
    },
    "openai responses": {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 60},
        "output_tokens": 7,
        "total_tokens": 107,
    },
    "anthropic": {
        "input_tokens": 40,
        "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": 0,
        "output_tokens": 7,
    },
    "langchain": {
        "input_tokens": 100,
        "output_tokens": 7,
        "total_tokens": 107,
        "input_token_details": {"cache_read": 60},
    },
    "langfuse net": {"input": 40, "output": 7, "total": 107, "input_cached_tokens": 60},
    "langfuse gross": {"input": 100, "output": 7, "total": 107, "input_cached_tokens": 60},
    "agents": {"input_tokens": 100, "output_tokens": 7, "cached_input_tokens": 60},
    "deepseek": {"prompt_tokens": 100, "completion_tokens": 7, "prompt_cache_hit_tokens": 60},
    "google": {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 60,
        "candidatesTokenCount": 3,
        "thoughtsTokenCount": 4,
    },
    "bedrock": {"inputTokens": 40, "cacheReadInputTokens": 60, "outputTokens": 7},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_disjoint_counts(form: str) -> None:
    """One call is billed alike whoever wrote down its usage."""
    usage = read_usage(FORMS[form])
    assert usage is not None
    quantities = split_counts(usage.counts).quantities
    assert (quantities["input_tokens"], quantities["cache_read_tokens"], quantities["output_tokens"]) == (40, 60, 7)


def test_iterations_replace_the_top_level() -> None:
    """Compaction and other models inside one call are billed: the top level reports the last iteration only."""
    usage = read_usage(
        {
            "input_tokens": 229,
            "output_tokens": 5,
            "iterations": [
                {"input_tokens": 100, "output_tokens": 131, "cache_creation_input_tokens": 55096},
                {"input_tokens": 229, "output_tokens": 5, "cache_creation_input_tokens": 0},
            ],
        }
    )
    assert usage is not None
    assert split_counts(usage.counts).quantities == {
        "input_tokens": 329,
        "cache_write_tokens": 55096,
        "output_tokens": 136,
    }
    assert usage.base == (229, 5)
    assert read_iterations([]) is None


def test_python_reprs_are_read_like_json() -> None:
    """A repr with None and single quotes is data, not an error."""
    document = parse_document("{'prompt_tokens': 12, 'completion_tokens': 5, 'prompt_tokens_details': None}")
    usage = read_usage(document)
    assert usage is not None
    assert (usage.counts.input, usage.counts.output) == (12, 5)


@pytest.mark.parametrize("text", ["", "not json", "{", "[" * 100_000, "{'a': __import__('os')}", None, 7])
def test_what_is_no_document_is_none(text: object) -> None:
    """Broken, deep or executable text is never more than absent."""
    assert parse_document(text) is None


def test_long_reprs_are_not_parsed() -> None:
    """The slow parser is only offered small texts."""
    assert parse_document("{'a': '" + "x" * REPR_LENGTH_MAX + "'}") is None


@pytest.mark.parametrize(
    "document",
    [
        {"prompt_tokens": -1, "completion_tokens": 5},
        {"prompt_tokens": "many", "completion_tokens": 5},
        {"input": 5, "output": 5, "total": 1_000, "input_cached_tokens": 3},
        {"iterations": ["nothing"]},
    ],
)
def test_unreadable_usage_is_an_error_not_a_number(document: dict[str, object]) -> None:
    """A usage object that is there but makes no sense is held by its reader."""
    with pytest.raises(UnreadableUsageError):
        read_usage(document)


def test_provider_metadata_knows_cache_that_attributes_lose() -> None:
    """Whole objects are read as such; cache counts alone say that Anthropic's input excludes them."""
    whole = read_provider_metadata({"anthropic": {"usage": FORMS["anthropic"]}})
    partial = read_provider_metadata({"anthropic": {"cacheReadInputTokens": 60, "cacheCreationInputTokens": 0}})
    assert whole is not None
    assert whole.counts.cache_read == 60
    assert partial is not None
    assert partial.partial
    assert partial.counts.includes_cache is False
    assert read_provider_metadata({"openai": {}}) is None


def test_a_recorded_response_gives_id_and_usage() -> None:
    """The id of a response document is the provider's; a run id of LangChain is not."""
    plain = read_response({"id": "chatcmpl-1", "usage": FORMS["openai chat"]})
    message = {"kwargs": {"id": "run-7", "usage_metadata": FORMS["langchain"], "response_metadata": {}}}
    chain = read_response(json.loads(json.dumps({"generations": [[{"message": message}]], "llm_output": None})))
    assert plain is not None
    assert plain.response_id == "chatcmpl-1"
    assert chain is not None
    assert chain.response_id is None
    assert chain.counts.cache_read == 60


_literals = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=8,
)


@given(st.lists(_literals) | st.dictionaries(st.text("abcNone'\"\\ {", max_size=6), _literals, max_size=4))
def test_a_python_literal_is_read_as_python_reads_it(document: object) -> None:
    """The shorter way for plain reprs takes nothing for something else, quotes and escapes inside texts included."""
    whole = repr(document)
    for text in (whole, whole.replace("'", '"'), whole.replace(", ", ",'None' "), whole.replace("None", "null")):
        try:
            plain = orjson.loads(text)
        except orjson.JSONDecodeError:
            try:
                plain = ast.literal_eval(text)
            except (ValueError, SyntaxError, TypeError):
                plain = None
        found = parse_document(text)
        assert found == plain
        assert repr(found) == repr(plain)
