"""Traces decided by columns are decided as their group is, span by span."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbill_collector.decode.claims import FOREVER_NANOS, decide_group
from otelbill_collector.decode.column_claims import ColumnClaims, create_column_claims
from otelbill_collector.domain.usage import Candidate, Decision
from tests.property.test_claims_exits import draw_tree
from tests.span_columns import build_columns, fits_columns
from tests.unit.decode.span_kit import make_call, select


@pytest.fixture(scope="module")
def claims() -> ColumnClaims:
    found = create_column_claims()
    assert found is not None, "build the native library: python -m otelbill_collector.native.build"
    return found


def decide_by_columns(
    claims: ColumnClaims, spans: list[Candidate], chosen: list[bool] | None = None
) -> list[Decision | None]:
    """What the columns say of each span; None where they leave it to the general rule."""
    columns = build_columns(spans)
    mask = np.array([True] * len(spans) if chosen is None else chosen, dtype=np.bool_)
    decided = claims.decide(columns, mask)
    found: list[Decision | None] = []
    for row, span in enumerate(spans):
        if not decided.rows[row]:
            found.append(None)
            continue
        customer, project, step = (
            columns.names[code[row]] if code[row] >= 0 else None
            for code in (decided.customer, decided.project, decided.step)
        )
        found.append(
            Decision(
                billable=span.billable,
                reason=span.reason,
                usage_source=span.usage_source,
                quantities=columns.find_quantities(row),
                caveats=span.caveats,
                customer_id=customer,
                project_id=project,
                run_id=decided.run_id.find(row),
                step=step,
            )
        )
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(draw_tree(), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_a_trace_decided_by_columns_is_decided_as_its_group(
    claims: ColumnClaims, trees: list[list[Candidate]], rng: random.Random
) -> None:
    """Columns decide exactly what the general rule decides, whatever order spans come in, or leave it to that rule."""
    trees = [[span for span in tree if fits_columns(span)] for tree in trees]
    spans: list[Candidate] = []
    for number, tree in enumerate(trees):
        for span in tree:
            span.trace_id = bytes([number + 1]) * 16
            spans.append(span)
    rng.shuffle(spans)
    found = decide_by_columns(claims, spans)
    for number in range(len(trees)):
        rows = [row for row, span in enumerate(spans) if span.trace_id[0] == number + 1]
        told = [found[row] for row in rows]
        assert len({decision is None for decision in told}) <= 1, "a trace is decided as a whole or not at all"
        if told and told[0] is not None:
            assert told == decide_group([spans[row] for row in rows], FOREVER_NANOS)


def test_a_turn_with_calls_and_tools_inherits_who_pays(claims: ColumnClaims) -> None:
    """The usual agent turn is decided by columns: its calls and tools are paid by whom its first span names."""
    root = select(
        {"otelbill.customer.id": "acme", "otelbill.step": "turn", "otelbill.run.id": "r-1"}, span="root", end=9.0
    )
    call = make_call(span="call", parent="root", gen_ai__response__id="chatcmpl-0000000001")
    other = make_call(span="other", parent="root", gen_ai__response__id="chatcmpl-0000000002", otelbill__step="own")
    tool = select({"gen_ai.operation.name": "execute_tool"}, span="tool", parent="call")
    spans = [call, tool, other, root]
    found = decide_by_columns(claims, spans)
    assert found == decide_group(spans, FOREVER_NANOS)
    assert [decision and (decision.customer_id, decision.step, decision.run_id) for decision in found] == [
        ("acme", "turn", "r-1"),
        ("acme", "turn", "r-1"),
        ("acme", "own", "r-1"),
        ("acme", "turn", "r-1"),
    ]


@pytest.mark.parametrize(
    ("name", "spans"),
    [
        ("a call inside a call", [make_call(span="a"), make_call(span="b", parent="a")]),
        ("calls of two emitters", [make_call(span="a"), make_call(span="b", scope_name="framework")]),
        ("totals", [make_call(span="a", gen_ai__operation__name="invoke_agent"), make_call(span="b", parent="a")]),
        ("one id twice", [make_call(span="a"), make_call(span="a")]),
        ("its own ancestor", [select({"otelbill.step": "x"}, span=s, parent=p) for s, p in (("a", "b"), ("b", "a"))]),
    ],
)
def test_what_has_to_be_weighed_is_left_to_the_rules(claims: ColumnClaims, name: str, spans: list[Candidate]) -> None:
    """Whatever may be one call described twice, or holds totals, is never decided by columns."""
    assert decide_by_columns(claims, spans) == [None] * len(spans), name


def test_only_the_chosen_rows_are_decided(claims: ColumnClaims) -> None:
    """A trace of which something is known already is not looked at."""
    spans = [make_call(span="a", trace="t1"), make_call(span="b", trace="t2")]
    assert [decision is None for decision in decide_by_columns(claims, spans, [False, True])] == [True, False]
    assert decide_by_columns(claims, spans, [False, False]) == [None, None]
