"""A span becomes the candidate it is: call, parent with totals, tool, explicit quantity, link, or nothing."""

from __future__ import annotations

from decimal import Decimal

import pytest

from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.select import select_span
from otelbill_collector.decode.spans import Value
from otelbill_collector.domain.usage import Candidate, Role, UsageSource
from tests.unit.decode.span_kit import list_chat_attributes, make_call, make_span, select


def test_a_plain_http_span_is_no_candidate() -> None:
    """Spans without anything of GenAI or billing stay out of the ledger."""
    http: dict[str, Value] = {
        "http.request.method": "POST",
        "server.address": "api.openai.com",
        "usage": "x",
        "error.type": "500",
    }
    assert select_span(make_span(http)) is None
    assert select_span(make_span({})) is None


def test_a_chat_call_is_a_call_with_disjoint_quantities() -> None:
    """The commonest span of all: conventions, cache inside input."""
    call = make_call(gen_ai__usage__cache_read__input_tokens=4, gen_ai__response__id="chatcmpl-0123456789")
    assert (call.role, call.billable, call.reason) == (Role.CALL, True, Reason.PROVIDER_CALL)
    assert call.quantities == {"input_tokens": 8, "cache_read_tokens": 4, "output_tokens": 5, "requests": 1}
    assert (call.provider, call.model, call.request_model) == ("openai", "gpt-4o-2024-08-06", "gpt-4o")
    assert call.service == "shop"


SPELLINGS: dict[str, dict[str, Value]] = {
    "conventions 1.26": {
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.usage.prompt_tokens": 12,
        "gen_ai.usage.completion_tokens": 5,
    },
    "mixed names": {
        "gen_ai.provider.name": "mistral_ai",
        "gen_ai.request.model": "mistral-small",
        "gen_ai.usage.prompt_tokens": 12,
        "gen_ai.usage.output_tokens": 5,
    },
    "aliases on one span": {
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.prompt_tokens": 12,
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.completion_tokens": 5,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.total_tokens": 17,
    },
    "doubles": {
        "llm.request.type": "chat",
        "gen_ai.system": "Cohere",
        "gen_ai.usage.prompt_tokens": 12.0,
        "gen_ai.usage.completion_tokens": 5.0,
    },
    "OpenInference": {
        "openinference.span.kind": "LLM",
        "llm.model_name": "gpt-4o",
        "llm.token_count.prompt": 12,
        "llm.token_count.completion": 5,
    },
    "Vercel AI SDK 6": {
        "ai.operationId": "ai.streamText.doStream",
        "ai.model.provider": "openai.chat",
        "ai.usage.inputTokens": 12,
        "ai.usage.outputTokens": 5,
    },
    "Vercel AI SDK 4": {
        "ai.operationId": "ai.generateText.doGenerate",
        "ai.usage.promptTokens": 12,
        "ai.usage.completionTokens": 5,
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_convention_works_for_unknown_scopes(spelling: str) -> None:
    """An emitter nobody has met is billed by the conventions it follows."""
    call = select(SPELLINGS[spelling], scope_name="brand.new.emitter")
    assert call.role is Role.CALL
    assert call.billable
    assert call.quantities == {"input_tokens": 12, "output_tokens": 5, "requests": 1}


@pytest.mark.parametrize("operation", ["invoke_agent", "workflow", "agent_step", "execute_tool", "turn"])
def test_structure_is_a_link_and_with_totals_a_parent(operation: str) -> None:
    """Agents, chains and tools never bill as calls of their own."""
    link = select({"gen_ai.operation.name": operation})
    parent = make_call(gen_ai__operation__name=operation)
    assert (link.role, link.billable) == (Role.LINK, False)
    assert (parent.role, parent.billable) == (Role.AGGREGATE, False)


def test_an_unknown_operation_is_not_silently_billed_as_a_call() -> None:
    """With usage it is treated as a parent (what its descendants do not explain); without, it says so."""
    assert make_call(gen_ai__operation__name="ponder").role is Role.AGGREGATE
    silent = select({"gen_ai.operation.name": "ponder"})
    assert (silent.role, silent.reason) == (Role.LINK, Reason.UNKNOWN_OPERATION)


def test_free_requests_cost_nothing() -> None:
    """Counting tokens reports tokens and is not billed."""
    free = make_call(name="anthropic.messages.count_tokens")
    assert (free.billable, free.reason) == (False, Reason.FREE_OPERATION)


@pytest.mark.parametrize("missing", ["gen_ai__usage__input_tokens", "gen_ai__usage__output_tokens"])
def test_a_call_with_half_its_usage_is_held(missing: str) -> None:
    """An abandoned stream may report input alone: billable, never priced from half the truth."""
    call = make_call(**{missing: None})
    assert (call.billable, call.usage_source) == (True, UsageSource.UNKNOWN)


def test_usage_that_never_came_is_unknown_not_zero() -> None:
    """No counts, NaN counts and zero counts of a successful call are all unknown."""
    nothing = make_call(gen_ai__usage__input_tokens=None, gen_ai__usage__output_tokens=None)
    nan = make_call(gen_ai__usage__input_tokens=float("nan"), gen_ai__usage__output_tokens=float("nan"))
    zero = make_call(gen_ai__usage__input_tokens=0, gen_ai__usage__output_tokens=0)
    for call in (nothing, nan, zero):
        assert (call.billable, call.reason) == (True, Reason.NO_USAGE_REPORTED)
        assert call.usage_source is UsageSource.UNKNOWN


def test_embeddings_need_no_output() -> None:
    """An embedding call is complete without output tokens."""
    call = make_call(gen_ai__operation__name="embeddings", gen_ai__usage__output_tokens=None)
    assert call.usage_source is UsageSource.REPORTED


@pytest.mark.parametrize(
    "changes",
    [{"status_code": 2}, {"error__type": "RateLimitError"}, {"http__response__status_code": 529}],
)
def test_failed_calls_without_usage_are_not_billable(changes: dict[str, Value]) -> None:
    """A refused or failed request is kept with its reason."""
    call = make_call(gen_ai__usage__input_tokens=None, gen_ai__usage__output_tokens=None, **changes)
    assert (call.billable, call.reason, call.failed) == (False, Reason.FAILED_WITHOUT_USAGE, True)


def test_failed_calls_with_usage_are_billable() -> None:
    """The provider charges what it reported, whatever the client thought of the answer."""
    assert make_call(status_code=2).billable


@pytest.mark.parametrize("value", [-5, "lots", 2**63, True, 1.5])
def test_a_broken_count_is_a_dead_letter(value: Value) -> None:
    """A plain count that is no count cannot be processed by rule: field, value and remedy are kept."""
    call = make_call(gen_ai__usage__input_tokens=value)
    assert call.problem is not None
    assert call.problem.field == "gen_ai.usage.input_tokens"
    assert not call.billable


def test_contradicting_counts_are_held() -> None:
    """More cached than read at an emitter whose input includes the cache is held with its reason."""
    call = make_call(scope_name="pydantic-ai", gen_ai__usage__cache_read__input_tokens=13)
    assert (call.reason, call.usage_source) == (Reason.INCONSISTENT_USAGE, UsageSource.UNKNOWN)
    assert call.quantities == {"requests": 1}


def test_internal_calls_are_not_billable() -> None:
    """`otelbill.billable=false` wins over usage; a known reason is kept."""
    assert make_call(otelbill__billable=False).reason == Reason.INTERNAL
    cached = make_call(otelbill__billable=False, otelbill__reason="app_cache_hit")
    assert (cached.billable, cached.reason) == (False, Reason.APP_CACHE_HIT)


def test_cache_hits_of_the_application_are_not_billable() -> None:
    """A gateway's own cache answers without the provider."""
    answered = list_chat_attributes() | {"hidden_params": '{"cache_hit": true}'}
    assert select(answered, scope_name="litellm").reason == Reason.APP_CACHE_HIT


def test_explicit_quantities_are_exact() -> None:
    """`record_usage` spans carry one quantity under the meter's name."""
    span: dict[str, Value] = {"otelbill.meter": "vector_queries", "otelbill.quantity": "2.5", "otelbill.unit": "query"}
    found = select(span)
    assert (found.role, found.billable, found.reason) == (Role.EXPLICIT, True, Reason.EXPLICIT_USAGE)
    assert found.quantities == {"vector_queries": Decimal("2.5")}


def test_tools_may_carry_a_metered_quantity() -> None:
    """A tool span with a meter is tool usage."""
    found = select({"gen_ai.operation.name": "execute_tool", "otelbill.meter": "lookups", "otelbill.quantity": 3})
    assert (found.role, found.reason, found.quantities) == (Role.TOOL, Reason.TOOL_USAGE, {"lookups": 3})


@pytest.mark.parametrize(
    ("meter", "quantity", "code"),
    [
        ("input_tokens", 5, "reserved_meter"),
        ("requests", 5, "reserved_meter"),
        ("a b", 5, "no_meter"),
        (None, 5, "no_meter"),
        ("seats", None, "not_a_quantity"),
        ("seats", -1, "quantity_out_of_range"),
        ("seats", 0.1, "not_a_quantity"),
    ],
)
def test_unusable_meters_are_dead_letters(meter: Value, quantity: Value, code: str) -> None:
    """A meter that would collide with token units, or a quantity that is not exact, is never booked."""
    attributes = {"otelbill.meter": meter, "otelbill.quantity": quantity}
    found = select({name: value for name, value in attributes.items() if value is not None})
    assert found.problem is not None
    assert found.problem.code == code
    assert not found.billable


def test_a_meter_on_a_call_adds_its_unit() -> None:
    """A custom unit beside tokens is kept with the call; it never overwrites a reported count."""
    call = make_call(otelbill__meter="input_tokens", otelbill__quantity=999)
    beside = make_call(otelbill__meter="web_pages", otelbill__quantity=2)
    assert call.quantities["input_tokens"] == 12
    assert beside.quantities["web_pages"] == 2


def test_units_that_change_the_price_are_kept() -> None:
    """Service tier, searches, images and audio are on the candidate when the span has them."""
    call = make_call(
        openai__response__service_tier="flex",
        gen_ai__usage__web_search_requests=2,
        gen_ai__usage__audio__input_tokens=4,
    )
    image = select({"gen_ai.operation.name": "image_generation", "gen_ai.request.image.count": 3})
    assert call.service_tier == "flex"
    assert (call.quantities["web_search_requests"], call.quantities["audio_input_tokens"]) == (2, 4)
    assert (image.quantities, image.usage_source) == ({"images": 3, "requests": 1}, UsageSource.REPORTED)


def test_model_text_cannot_forge_usage() -> None:
    """An answer that looks like a provider's response changes nothing unless it repeats the span's own counts."""
    forged = '{"id": "chatcmpl-victim0001", "usage": {"prompt_tokens": 0, "completion_tokens": 0}}'
    attributes: dict[str, Value] = {
        "openinference.span.kind": "LLM",
        "llm.token_count.prompt": 12,
        "llm.token_count.completion": 5,
        "output.value": forged,
        "output.mime_type": "application/json",
    }
    call = select(attributes, scope_name="openinference.instrumentation.openai")
    assert call.quantities["input_tokens"] == 12
    assert call.response_id is None


def _texts(candidate: Candidate) -> str:
    return repr(candidate)


def test_no_text_beyond_names_and_ids_is_kept() -> None:
    """E-mail addresses, long or multi-line texts never reach a candidate, wherever they stand."""
    mail, prose = "ada@example.com", "line one\nline two"
    call = make_call(
        otelbill__customer__id=mail,
        otelbill__project__id=prose,
        otelbill__step="s" * 500,
        gen_ai__request__model=mail,
        gen_ai__response__model=prose,
        gen_ai__provider__name="p" * 400,
        gen_ai__response__id=mail,
        gen_ai__input__messages="CANARY",
        scope_name=mail,
    )
    text = _texts(call)
    for secret in (mail, "ada", "line one", "CANARY", "s" * 129, "p" * 129):
        assert secret not in text
    assert call.customer_id is not None
    assert call.customer_id.startswith("digest:")
    assert call.customer_id == make_call(otelbill__customer__id=mail).customer_id


def test_attribution_alone_makes_a_link() -> None:
    """A frame span of the application is kept so that its descendants inherit from it."""
    link = select({"otelbill.customer.id": "acme", "otelbill.step": "summarise", "otelbill.attempt": 2})
    assert (link.role, link.customer_id, link.step, link.attempt) == (Role.LINK, "acme", "summarise", 2)
    assert not link.billable


def test_values_are_asked_for_by_name_only() -> None:
    """Selection never decodes all attributes: the kit's attributes raise when somebody does."""
    attributes = list_chat_attributes() | {f"gen_ai.prompt.{n}.content": "x" for n in range(50)}
    assert select(attributes).billable


def test_cut_vendors_are_put_back() -> None:
    """An emitter that cuts the vendor off Bedrock model names would leave them without a price."""
    call = make_call(scope_name="opentelemetry.instrumentation.bedrock", gen_ai__response__model="nova-micro-v1:0")
    assert call.model == "amazon.nova-micro-v1:0"
