"""Of several spans that describe one call exactly one bills, and parents bill only what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from otelbill_collector.decode.claims import FOREVER_NANOS, ClaimPolicy, claim_keys, decide_group
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.residuals import subtract_explained
from otelbill_collector.domain.usage import Candidate, Decision, Role, UsageSource
from tests.unit.decode.span_kit import SECOND, T0, make_call, select

NO_USAGE: dict[str, Any] = {"gen_ai__usage__input_tokens": None, "gen_ai__usage__output_tokens": None}


def decide(*candidates: Candidate, now: int = FOREVER_NANOS) -> list[Decision]:
    return decide_group(candidates, now)


def count_billed(decisions: Sequence[Decision], unit: str = "input_tokens") -> int:
    return sum(int(d.quantities.get(unit, 0)) for d in decisions if d.billable)


def share_key(a: Candidate, b: Candidate) -> bool:
    return bool(set(claim_keys(a)) & set(claim_keys(b)))


def test_one_response_id_bills_once_across_traces() -> None:
    """Two layers in two traces with the provider's id are one group and one call; the loser names the winner."""
    one = make_call(trace="a", gen_ai__response__id="chatcmpl-abcdefgh")
    other = make_call(trace="b", scope_name="framework", gen_ai__response__id="chatcmpl-abcdefgh")
    decisions = decide(one, other)
    assert share_key(one, other)
    assert sorted(d.billable for d in decisions) == [False, True]
    loser = next(d for d in decisions if not d.billable)
    winner = one if decisions[0].billable else other
    assert (loser.reason, loser.winner_span_id) == (Reason.DUPLICATE_DESCRIPTION, winner.span_id)


def test_the_most_detailed_description_wins() -> None:
    """The span that tells cache apart keeps the claim whatever its place."""
    rough = make_call(span="outer", gen_ai__response__id="chatcmpl-abcdefgh", scope_name="framework")
    fine = make_call(
        span="inner",
        parent="outer",
        gen_ai__response__id="chatcmpl-abcdefgh",
        gen_ai__usage__cache_read__input_tokens=4,
    )
    decisions = decide(rough, fine)
    assert [d.billable for d in decisions] == [False, True]
    assert decisions[1].quantities["cache_read_tokens"] == 4


def test_nested_layers_without_ids_are_one_call() -> None:
    """A client's span directly inside a framework's span describes the same call."""
    decisions = decide(make_call(span="outer", scope_name="framework"), make_call(span="inner", parent="outer"))
    assert count_billed(decisions) == 12


def test_a_tool_between_two_calls_separates_them() -> None:
    """A model call made by a tool inside another call is a call of its own, even with equal numbers."""
    outer = make_call(span="outer", scope_name="framework", end=3)
    tool = select({"gen_ai.operation.name": "execute_tool"}, span="tool", parent="outer", scope_name="framework")
    inner = make_call(span="inner", parent="tool", start=1.5, end=2, gen_ai__usage__input_tokens=30)
    assert count_billed(decide(outer, tool, inner)) == 42


def test_two_spans_of_one_emitter_are_two_calls() -> None:
    """An instrumentation writes one span per call: equal numbers side by side are two calls."""
    assert count_billed(decide(make_call(span="one"), make_call(span="two"))) == 24


def test_different_ids_are_different_calls() -> None:
    """Nesting never merges two calls that the provider tells apart."""
    outer = make_call(span="outer", scope_name="framework", gen_ai__response__id="chatcmpl-aaaaaaaa")
    inner = make_call(span="inner", parent="outer", gen_ai__response__id="chatcmpl-bbbbbbbb")
    assert count_billed(decide(outer, inner)) == 24


def test_equal_numbers_at_the_same_time_are_twins() -> None:
    """Where a framework starts its own trace, equal model, tokens and time find the other description."""
    framework = make_call(trace="a", scope_name="framework", gen_ai__response__model="gpt-4o")
    client = make_call(trace="b", start=0.01, end=0.99)
    assert share_key(framework, client)
    assert count_billed(decide(framework, client)) == 12


@pytest.mark.parametrize(
    "changes",
    [
        {"start": 30.0, "end": 31.0},
        {"gen_ai__request__model": "gpt-4o-mini", "gen_ai__response__model": "gpt-4o-mini"},
        {"otelbill__customer__id": "globex"},
        {"resource": {"service.name": "other"}},
        {"gen_ai__usage__output_tokens": 6},
    ],
)
def test_near_twins_are_two_calls(changes: dict[str, Any]) -> None:
    """Another time, model, customer, service or count: two calls."""
    framework = make_call(trace="a", scope_name="framework", otelbill__customer__id="acme")
    client = make_call(trace="b", **{"otelbill__customer__id": "acme", **changes})
    assert count_billed(decide(framework, client)) == 24


def test_many_equal_calls_keep_their_number() -> None:
    """n calls seen by two layers stay n calls, however alike they are."""
    framework = [make_call(trace=f"f{n}", scope_name="framework", start=n / 50) for n in range(20)]
    client = [make_call(trace=f"c{n}", start=n / 50) for n in range(20)]
    assert count_billed(decide(*framework, *client), "requests") == 20


def test_a_parent_that_repeats_its_children_bills_nothing() -> None:
    """The agent span's totals are explained by its calls."""
    agent = make_call(span="agent", gen_ai__operation__name="invoke_agent", gen_ai__usage__input_tokens=24)
    calls = [make_call(span=name, parent="agent") for name in ("one", "two")]
    decisions = decide(agent, *calls)
    assert (decisions[0].billable, decisions[0].reason) == (False, Reason.AGGREGATE)
    assert count_billed(decisions) == 24


def test_a_parent_bills_what_is_left_after_the_grace_time() -> None:
    """Late children may still explain it; after the grace time the rest is billed as a residual."""
    agent = make_call(span="agent", gen_ai__operation__name="invoke_agent", gen_ai__usage__input_tokens=100)
    call = make_call(span="one", parent="agent")
    early = decide(agent, call, now=T0 + 2 * SECOND)[0]
    late = decide(agent, call)[0]
    assert (early.billable, early.reason) == (False, Reason.AWAITING_CHILDREN)
    assert early.due_nanos == agent.ended_nanos + ClaimPolicy().grace_nanos
    assert (late.billable, late.usage_source, late.due_nanos) == (True, UsageSource.RESIDUAL, None)
    assert late.quantities == {"input_tokens": 88, "requests": 1}


def test_a_late_child_takes_its_share_back() -> None:
    """The same group with one more child gives a smaller residual: the ledger books the difference."""
    agent = make_call(span="agent", gen_ai__operation__name="invoke_agent", gen_ai__usage__input_tokens=24)
    first, late = make_call(span="one", parent="agent"), make_call(span="two", parent="agent")
    assert count_billed(decide(agent, first)) == 24
    assert count_billed(decide(agent, first, late)) == 24
    assert not decide(agent, first, late)[0].billable


def test_a_parent_pays_for_children_without_usage() -> None:
    """Streams without usage below an agent that knows the sum: the sum is billed, nothing is held twice."""
    agent = make_call(span="agent", gen_ai__operation__name="invoke_agent", gen_ai__usage__input_tokens=24)
    known, silent = make_call(span="one", parent="agent"), make_call(span="two", parent="agent", **NO_USAGE)
    decisions = decide(agent, known, silent)
    assert count_billed(decisions) == 24
    assert count_billed(decisions, "requests") == 2
    assert (decisions[2].billable, decisions[2].winner_span_id) == (False, agent.span_id)


def test_nested_parents_bill_once() -> None:
    """Task, agent and turn that all repeat the same totals leave one residual when the calls are missing."""
    spans = [
        make_call(span="task", gen_ai__operation__name="workflow", end=5),
        make_call(span="agent", parent="task", gen_ai__operation__name="invoke_agent", end=4),
        make_call(span="turn", parent="agent", gen_ai__operation__name="turn", end=3),
    ]
    decisions = decide(*spans)
    assert [d.billable for d in decisions] == [False, False, True]


def test_missing_links_are_bridged_by_time() -> None:
    """A call below the application's own span, which is no candidate, still explains the agent around it."""
    agent = make_call(span="agent", gen_ai__operation__name="invoke_agent", end=5)
    call = make_call(span="call", parent="not-a-candidate", start=1, end=2)
    assert count_billed(decide(agent, call)) == 12


def test_a_call_around_several_calls_is_their_sum() -> None:
    """A wrapper that reports the total of the client calls inside it is no further call."""
    wrapper = make_call(
        span="wrapper", scope_name="wrapper", gen_ai__usage__input_tokens=24, gen_ai__usage__output_tokens=10
    )
    calls = [make_call(span=name, parent="wrapper", start=s, end=s + 0.4) for name, s in (("one", 0.0), ("two", 0.5))]
    decisions = decide(wrapper, *calls)
    assert count_billed(decisions) == 24
    assert not decisions[0].billable


def test_retries_inside_a_framework_call_bill_the_answer() -> None:
    """One failed and one good attempt below a framework's span: one call is billed, the failure keeps its reason."""
    outer = make_call(span="outer", scope_name="framework", end=3)
    failed = make_call(span="first", parent="outer", status_code=2, **NO_USAGE)
    good = make_call(span="second", parent="outer", start=2, end=3)
    decisions = decide(outer, failed, good)
    assert count_billed(decisions) == 12
    assert decisions[1].reason == Reason.FAILED_WITHOUT_USAGE


def test_internal_marks_hold_for_every_description() -> None:
    """A call marked internal on one layer is not billed through the other."""
    marked = make_call(span="outer", scope_name="framework", otelbill__billable=False)
    decisions = decide(marked, make_call(span="inner", parent="outer"))
    assert [d.billable for d in decisions] == [False, False]


def test_a_silent_frame_means_at_least_one_call() -> None:
    """A framework whose spans never show calls ran: held for a person, once, and only for its outermost span."""
    crew = {"openinference.span.kind": "CHAIN"}
    scope = "openinference.instrumentation.crewai"
    outer = select(crew, span="crew", scope_name=scope, end=3)
    inner = select({"openinference.span.kind": "AGENT"}, span="agent", parent="crew", scope_name=scope, end=2)
    decisions = decide(outer, inner)
    assert (decisions[0].billable, decisions[0].usage_source) == (True, UsageSource.UNKNOWN)
    assert not decisions[1].billable
    assert not decide(outer, inner, make_call(span="call", parent="agent"))[0].billable


def test_hidden_calls_make_an_estimate() -> None:
    """An emitter that shows the last of several provider calls is not believed once tools ran inside it."""
    scope = "opentelemetry.instrumentation.google_genai"
    call = make_call(span="call", scope_name=scope, end=3, gen_ai__operation__name="generate_content")
    tool = select({"gen_ai.operation.name": "execute_tool"}, span="tool", parent="call", scope_name=scope)
    assert decide(call, tool)[0].usage_source is UsageSource.ESTIMATED
    assert decide(call)[0].usage_source is UsageSource.REPORTED


@pytest.mark.parametrize(
    ("spans", "customer"),
    [
        ([("root", None, "acme"), ("call", "root", None)], "acme"),
        ([("root", None, "acme"), ("mid", "root", "globex"), ("call", "mid", None)], "globex"),
        ([("other", None, "acme"), ("call", "gone", None)], "acme"),
        ([("other", None, "acme"), ("more", None, "globex"), ("call", "gone", None)], None),
        ([("root", None, "acme"), ("call", "root", "initech")], "initech"),
    ],
)
def test_customers_are_inherited(spans: list[tuple[str, str | None, str | None]], customer: str | None) -> None:
    """Own value, nearest ancestor, then the trace's only customer; never a guess between two."""
    candidates = []
    for name, parent, owner in spans:
        own = {"otelbill.customer.id": owner} if owner else {}
        attributes = {**own, "gen_ai.usage.input_tokens": 1, "gen_ai.usage.output_tokens": 1} if name == "call" else own
        candidates.append(select(attributes, span=name, parent=parent))
    assert decide(*candidates)[-1].customer_id == customer


def test_layers_lend_each_other_the_customer() -> None:
    """The customer known to the losing description pays for the winning one."""
    framework = make_call(
        trace="a", scope_name="framework", gen_ai__response__id="chatcmpl-abcdefgh", otelbill__customer__id="acme"
    )
    client = make_call(trace="b", gen_ai__response__id="chatcmpl-abcdefgh", gen_ai__usage__cache_read__input_tokens=1)
    winner = next(d for d in decide(framework, client) if d.billable)
    assert winner.customer_id == "acme"


def test_dead_letters_bill_nothing_and_claim_nothing() -> None:
    """A span with a broken count neither bills nor takes the claim of a sound one."""
    broken = make_call(span="outer", scope_name="framework", gen_ai__usage__input_tokens=-1)
    decisions = decide(broken, make_call(span="inner", parent="outer"))
    assert (decisions[0].billable, decisions[0].reason) == (False, Reason.INVALID_USAGE)
    assert decisions[1].billable


def test_the_same_span_twice_bills_once() -> None:
    """A repeated candidate, even with other content, is one span."""
    call = make_call()
    assert count_billed(decide(call, call)) == 12
    assert count_billed(decide(call, replace(call, detail=call.detail + 1))) == 12


def test_short_ids_are_no_claims() -> None:
    """A timestamp in the place of an id must not merge two calls."""
    one = make_call(trace="a", gen_ai__response__id="1774963099")
    other = make_call(trace="b", scope_name="x", start=60, end=61, gen_ai__response__id="1774963099")
    assert not share_key(one, other)
    assert count_billed(decide(one, other)) == 24


@pytest.mark.parametrize(
    ("totals", "parts", "left"),
    [
        ({"input_tokens": 100, "output_tokens": 10}, [{"input_tokens": 60, "output_tokens": 10}], {"input_tokens": 40}),
        ({"input_tokens": 1114}, [{"input_tokens": 3, "cache_read_tokens": 1111}], {}),
        ({"input_tokens": 3, "cache_read_tokens": 1111}, [{"input_tokens": 1114}], {}),
        ({"input_tokens": 5}, [{"input_tokens": 9}], {}),
        (
            {"output_tokens": 9, "reasoning_tokens": 8},
            [{"output_tokens": 5}],
            {"output_tokens": 4, "reasoning_tokens": 4},
        ),
        ({"output_tokens": 5, "reasoning_tokens": 5}, [{"output_tokens": 5}], {}),
        ({"images": 3}, [{"images": 1}], {"images": 2}),
    ],
)
def test_residuals_as_an_accountant_reads_them(
    totals: dict[str, int], parts: list[dict[str, int]], left: dict[str, int]
) -> None:
    """Totals minus parts per class, never negative, and never a finer split billed again."""
    assert subtract_explained(totals, parts) == left


def test_roles_are_kept_apart() -> None:
    """An explicit quantity inside a call's trace is billed beside it."""
    explicit = select({"otelbill.meter": "pages", "otelbill.quantity": 2}, span="e", parent="call")
    assert explicit.role is Role.EXPLICIT
    decisions = decide(make_call(span="call"), explicit)
    assert [d.billable for d in decisions] == [True, True]


def test_steps_inside_a_call_repeat_it() -> None:
    """A framework that writes steps with usage below its call span has not called twice."""
    call = make_call(span="call")
    step = make_call(span="step", parent="call", gen_ai__operation__name="model_step", end=0.9)
    assert count_billed(decide(call, step)) == 12


def test_a_gateway_in_the_same_trace_is_one_call() -> None:
    """The client's span and the proxy's spans in another service describe one call, whatever ids the proxy makes up."""
    made_up = "chatcmpl-7d0c9a10-93f6-4a57-8d8e-0f3a9d1f8a11"
    client = make_call(span="client", gen_ai__response__id=made_up)
    proxy = make_call(
        span="proxy",
        parent="http",
        scope_name="litellm",
        resource={"service.name": "proxy"},
        gen_ai__response__id=made_up,
    )
    usage = "{'input_tokens': 12, 'output_tokens': 5, 'cache_read_input_tokens': 0}"
    raw = select(
        {"llm.anthropic.usage": usage, "llm.anthropic.id": "msg_0123456789", "llm.anthropic.model": "claude"},
        span="raw",
        parent="proxy",
        scope_name="litellm",
    )
    decisions = decide(client, proxy, raw)
    assert count_billed(decisions) == 12
    assert count_billed(decisions, "requests") == 1


def test_a_stream_without_usage_is_found_by_its_framework() -> None:
    """Where frameworks break traces and only they see a stream's usage, the client's silent span is not held too."""
    attributes: dict[str, Any] = {"openinference.span.kind": "LLM", "llm.model_name": "gpt-4o-mini"}
    usage: dict[str, Any] = {"llm.token_count.prompt": 12, "llm.token_count.completion": 5}
    outer = select(attributes | usage, trace="a", scope_name="@arizeai/openinference-instrumentation-langchain", end=1)
    inner = select(
        attributes, trace="b", scope_name="@arizeai/openinference-instrumentation-openai", start=0.1, end=0.9
    )
    assert share_key(outer, inner)
    decisions = decide(outer, inner)
    assert [d.billable for d in decisions] == [True, False]
    assert decide(inner)[0].billable
