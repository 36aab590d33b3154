"""Owns the table of attributes that may leave the process, and the form each value must have.
Does not own spans; `content` applies the table to them.

A name that is not here does not pass, so an instrumentation that invents a new place for prompts cannot leak them.
Names cover semantic conventions 1.26 to 1.41 and the dialects of OpenLLMetry, OpenInference, OpenLIT, Vercel AI,
Langfuse, LangSmith, LiteLLM, pydantic-ai and the Anthropic client.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

AttributeValue = str | bool | int | float | tuple[str, ...]
Rule = Callable[[object], AttributeValue | None]

IDENTIFIER_MAX_CHARS: Final = 256
LABEL_MAX_CHARS: Final = 128
NESTED_MAX_CHARS: Final = 16_384
NESTED_MAX_DEPTH: Final = 6

EMAIL: Final = re.compile(r"[^\s@<>\"']+@[^\s@<>\"']+\.[A-Za-z]{2,}")
_USAGE_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,63}")
_NUMBER_TEXT = re.compile(r"[+-]?[0-9.]{1,40}([eE][+-]?[0-9]{1,3})?", re.ASCII)
_INT64 = range(-(2**63), 2**63)


def pass_number(value: object) -> AttributeValue | None:
    """A number that OTLP can hold. One that it cannot would make the whole batch unsendable."""
    if isinstance(value, bool):
        return None
    return value if isinstance(value, float) or (isinstance(value, int) and value in _INT64) else None


def pass_count(value: object) -> AttributeValue | None:
    """A number, or the text of one: some emitters write counts as text, and the sidecar must see a broken one."""
    if isinstance(value, str):
        return value if _NUMBER_TEXT.fullmatch(value) else None
    return pass_number(value)


def pass_flag(value: object) -> AttributeValue | None:
    """True or false, also as text."""
    if isinstance(value, bool):
        return value
    return value if isinstance(value, str) and value.lower() in {"true", "false"} else None


def pass_identifier(value: object) -> AttributeValue | None:
    """One printable word: an id, a model, an operation. Sentences have spaces, so no sentence passes."""
    if not isinstance(value, str) or not 0 < len(value) <= IDENTIFIER_MAX_CHARS:
        return None
    return value if value.isprintable() and " " not in value else None


def pass_label(value: object) -> AttributeValue | None:
    """A short printable text, for fields that the caller of this package fills itself."""
    if not isinstance(value, str) or not 0 < len(value) <= LABEL_MAX_CHARS:
        return None
    return value if value.isprintable() else None


def pass_quantity(value: object) -> AttributeValue | None:
    """A number, or a decimal as text."""
    return pass_identifier(value) if isinstance(value, str) else pass_number(value)


def pass_identifiers(value: object) -> AttributeValue | None:
    """One or several identifiers."""
    if isinstance(value, list | tuple):
        return tuple(item for item in value[:16] if isinstance(item, str) and pass_identifier(item) is not None)
    return pass_identifier(value)


def pass_person(value: object) -> AttributeValue | None:
    """An identifier of a user or session, unless it is an e-mail address."""
    return None if isinstance(value, str) and EMAIL.search(value) else pass_identifier(value)


def pass_origin(value: object) -> AttributeValue | None:
    """Scheme, host and port of a URL; path, query and credentials stay here."""
    if not isinstance(value, str) or len(value) > NESTED_MAX_CHARS:
        return None
    try:
        parts = urlsplit(value)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return None
    return pass_identifier(f"{parts.scheme}://{parts.hostname}{port}") if parts.scheme and parts.hostname else None


def pass_nested_numbers(value: object) -> AttributeValue | None:
    """The numbers of a JSON object (or of a Python one written out), as JSON; every text in it stays here."""
    if not isinstance(value, str) or len(value) > NESTED_MAX_CHARS:
        return None
    numbers = _select_numbers(_parse_object(value), NESTED_MAX_DEPTH)
    return json.dumps(numbers, separators=(",", ":")) if isinstance(numbers, dict) and numbers else None


def _parse_object(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _select_numbers(value: object, depth: int) -> object:
    """`value` with nothing but numbers left, `None` where nothing is."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if depth == 0:
        return None
    if isinstance(value, list):
        return [kept for item in value[:64] if (kept := _select_numbers(item, depth - 1)) is not None] or None
    if not isinstance(value, dict):
        return None
    kept_items = ((key, _select_numbers(item, depth - 1)) for key, item in value.items() if _is_usage_key(key))
    return {key: kept for key, kept in kept_items if kept is not None} or None


def _is_usage_key(key: object) -> bool:
    return isinstance(key, str) and _USAGE_KEY.fullmatch(key) is not None


_BY_RULE: tuple[tuple[Rule, str], ...] = (
    (
        pass_label,
        """otelbill.customer.id otelbill.project.id otelbill.run.id otelbill.step otelbill.meter otelbill.unit
        otelbill.event.id otelbill.reason""",
    ),
    (pass_quantity, "otelbill.quantity"),
    (pass_number, "otelbill.attempt http.response.status_code http.status_code http.request.resend_count server.port"),
    (
        pass_number,
        """ai.settings.maxRetries gen_ai.embeddings.dimension.count llm.request.max_tokens retry_attempts
        pydantic_ai.cache.established_tokens mistral_ai.request.total_tokens operation.cost""",
    ),
    (
        pass_flag,
        """otelbill.billable gen_ai.is_streaming gen_ai.request.stream gen_ai.request.is_stream llm.is_streaming
        gen_ai.cache_hit llm.cache_hit litellm.cache_hit metadata.cache_hit langfuse.internal.is_app_root""",
    ),
    (
        pass_identifier,
        """otelbill.schema.version error.type error.code server.address http.request.method http.method
        gen_ai.operation.name gen_ai.provider.name gen_ai.system gen_ai.request.model gen_ai.response.model
        gen_ai.response.id gen_ai.request.type gen_ai.output.type gen_ai.token.type
        gen_ai.request.service_tier gen_ai.response.service_tier gen_ai.openai.request.service_tier
        gen_ai.openai.response.service_tier openai.request.service_tier openai.response.service_tier
        anthropic.response.service_tier llm.response.service_tier openai.api.type anthropic.request.id
        anthropic.message.stop_reason gen_ai.request.image.size gen_ai.request.image_size gen_ai.request.image_quality
        llm.model_name llm.request.model_name llm.response.model_name llm.provider llm.system llm.request.type
        llm.response.id llm.finish_reason embedding.model_name openinference.span.kind traceloop.span.kind
        ai.operationId ai.model.id ai.model.provider ai.response.id ai.response.model ai.response.finishReason
        langfuse.observation.type langfuse.observation.model.name langfuse.observation.level
        langfuse.observation.completion_start_time langsmith.span.kind langsmith.metadata.ls_model_name
        langsmith.metadata.ls_provider langsmith.metadata.ls_model_type litellm.call_id litellm.provider.model
        logfire.span_type sdk_span_type type response_id error.llm_provider
        rpc.system rpc.service rpc.method cloud.region""",
    ),
    (pass_identifiers, "gen_ai.response.finish_reasons gen_ai.response.finish_reason anthropic.beta"),
    (
        pass_person,
        """user.id session.id enduser.id gen_ai.user gen_ai.request.user llm.user gen_ai.conversation.id
        traceloop.association.properties.customer traceloop.association.properties.customer_id
        traceloop.association.properties.user_id traceloop.association.properties.session_id
        metadata.user_api_key_user_id metadata.user_api_key_team_id metadata.user_api_key_org_id
        metadata.user_api_key_end_user_id""",
    ),
    (pass_origin, "gen_ai.openai.api_base llm.openai.api_base"),
    (
        pass_nested_numbers,
        """gen_ai.usage.raw langfuse.observation.usage_details langsmith.metadata.usage_metadata
        ai.response.providerMetadata metadata.usage_object llm.openai.usage llm.anthropic.usage llm.None.usage usage""",
    ),
)

_EXACT: Final[dict[str, Rule]] = {name: rule for rule, names in _BY_RULE for name in names.split()}

# Below these prefixes numbers pass, and nothing else: usage counters are added there with every model generation.
_NUMBER_PREFIXES: Final = (
    "gen_ai.usage.",
    "gen_ai.aggregated_usage.",
    "gen_ai.cost.",
    "gen_ai.request.",
    "gen_ai.response.",
    "gen_ai.client.",
    "gen_ai.server.",
    "llm.token_count.",
    "llm.usage.",
    "llm.cost.",
    "ai.usage.",
    "ai.response.",
    "anthropic.usage.",
    "openai.usage.",
)

_RESOURCE_NAMES: Final = """service.name service.namespace service.version service.instance.id deployment.environment
    deployment.environment.name telemetry.sdk.name telemetry.sdk.language telemetry.sdk.version telemetry.distro.name
    telemetry.distro.version telemetry.auto.version cloud.provider cloud.region"""
_RESOURCE: Final[dict[str, Rule]] = dict.fromkeys(_RESOURCE_NAMES.split(), pass_label)


def find_rule(name: str) -> Rule | None:
    """The form in which the span attribute `name` may leave, or `None` if it may not."""
    rule = _EXACT.get(name)
    if rule is None and name.startswith(_NUMBER_PREFIXES):
        return pass_count
    return rule


def find_resource_rule(name: str) -> Rule | None:
    """The form in which the resource attribute `name` may leave, or `None` if it may not."""
    return _RESOURCE.get(name)


def list_names() -> tuple[str, ...]:
    """Every exact name and every prefix (with `*`) of the table, sorted."""
    return tuple(sorted([*_EXACT, *(f"{prefix}* (numbers)" for prefix in _NUMBER_PREFIXES)]))
