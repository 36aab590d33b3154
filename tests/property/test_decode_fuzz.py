"""No attribute, however strange, makes selection fail, invent a quantity or let text through."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.decode.claims import FOREVER_NANOS, claim_keys, decide_group
from otelbill_collector.decode.dialects import list_dialects, load_known_keys
from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.spans import Value
from otelbill_collector.decode.usage_objects import UnreadableUsageError, parse_document, read_response, read_usage
from otelbill_collector.domain.usage import QUANTITY_MAX, TOKEN_UNITS
from tests.unit.decode.span_kit import make_span

CANARY = "CANARY secret\nprompt"
SCOPES = sorted({scope.replace("*", "x") for row in list_dialects() for scope in row.scopes})
KEYS = [*sorted(load_known_keys()), "llm.openai.usage", "llm.None.model", "output.images.0.image.url", "custom"]
JSON_TEXTS = st.recursive(
    st.none() | st.integers(-5, 2**60) | st.text(max_size=5) | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "usage",
                    "input",
                    "output",
                    "prompt_tokens",
                    "input_tokens",
                    "iterations",
                    "anthropic",
                    "id",
                    "generations",
                    "total",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
VALUES: st.SearchStrategy[Value] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 200),
    st.sampled_from([2**53, 2**53 + 1, 2**63, -(2**63)]),
    st.floats(),
    st.just(CANARY),
    st.text(max_size=12),
    st.sampled_from(["chat", "LLM", "12", "-3", "openai", "invoke_agent", "ai.x.doGenerate", "generation"]),
    st.tuples(st.text(max_size=3)),
    JSON_TEXTS.map(str),
)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=10),
    st.sampled_from(SCOPES),
    st.sampled_from([0, 1, 2, 7]),
)
def test_any_attributes_are_survived(attributes: dict[str, Value], scope: str, status: int) -> None:
    """Whatever a span carries, it becomes nothing, a candidate with sound quantities, or a dead letter."""
    candidate = select_span(make_span(attributes, scope_name=scope, status_code=status))
    if candidate is None:
        return
    for unit, amount in candidate.quantities.items():
        assert 0 <= amount <= QUANTITY_MAX, unit
        assert not isinstance(amount, float)
    assert "CANARY" not in repr(candidate)
    if candidate.problem is not None:
        assert not candidate.billable
        assert candidate.problem.field
        assert candidate.problem.hint
    decisions = decide_group([candidate], FOREVER_NANOS)
    assert len(decisions) == 1
    assert all(len(key) == 16 for key in claim_keys(candidate))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES.filter(lambda v: not isinstance(v, int | str)), max_size=8))
def test_no_count_comes_from_nothing(attributes: dict[str, Value]) -> None:
    """Token quantities exist only where a number stood on the span."""
    candidate = select_span(make_span(attributes))
    numbers = [v for v in attributes.values() if isinstance(v, float) and math.isfinite(v)]
    if candidate is not None and not numbers:
        assert not any(candidate.quantities.get(unit) for unit in TOKEN_UNITS)


@settings(max_examples=200, deadline=None)
@given(JSON_TEXTS)
def test_foreign_documents_are_read_or_refused(document: object) -> None:
    """A usage object of any shape gives counts that are none or natural numbers, or one named error."""
    parse_document(str(document))
    for reader in (read_usage, read_response):
        try:
            usage = reader(document)
        except UnreadableUsageError:
            continue
        if usage is not None:
            for value in (usage.counts.input, usage.counts.output, usage.counts.cache_read):
                assert value is None or value >= 0
