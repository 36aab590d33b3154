"""Names on a span: provider, models, response id, operation, and whether it failed. Owns their reading and cleaning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from otelbill_collector.decode.dialects import Plan
from otelbill_collector.decode.privacy import clean_id, clean_name, clean_word
from otelbill_collector.decode.spans import STATUS_ERROR, SpanView
from otelbill_collector.decode.usage_objects import parse_document
from otelbill_collector.decode.vocabulary import Operation, find_provider, load_vocabulary
from otelbill_collector.domain.usage import Role

_FREE = Operation(Role.LINK, "count_tokens", free=True)


@dataclass(slots=True)
class Facts:
    """Names read from a span, cleaned. `operation_given` is true when one was named, known or not."""

    provider: str | None
    model: str | None
    request_model: str | None
    response_id: str | None
    service_tier: str | None
    operation: Operation | None
    operation_given: bool
    streaming: bool
    failed: bool


def read_facts(span: SpanView, plan: Plan) -> Facts:
    """The facts that the plan's spellings lead to."""
    texts = plan.texts
    request_model = _find_name(span, texts.get("request_model", ()))
    model = _find_name(span, texts.get("response_model", ())) or request_model or _find_asked_model(span)
    model, request_model = _restore_vendor(model, plan), _restore_vendor(request_model, plan)
    host = _find_text(span, texts.get("server", ()))
    operation, given = _find_operation(span, plan)
    return Facts(
        provider=_find_provider(_find_name(span, texts.get("provider", ())), host, model),
        model=model,
        request_model=request_model,
        response_id=_find_response_id(span, plan),
        service_tier=clean_word(_find_text(span, texts.get("service_tier", ()))),
        operation=operation,
        operation_given=given,
        streaming=any(span.attributes.get(key) is True for key in plan.flags.get("streaming", ())),
        failed=_has_failed(span, plan),
    )


@lru_cache(maxsize=4096)
def _find_provider(name: str | None, host: str | None, model: str | None) -> str | None:
    return find_provider(load_vocabulary(), name, host=host, model=model)


def _find_response_id(span: SpanView, plan: Plan) -> str | None:
    response_id = clean_id(_find_text(span, plan.texts.get("response_id", ())))
    own = plan.dialect.own_response_ids
    if own is not None and response_id is not None and own.fullmatch(response_id):
        return None
    return response_id


def _find_text(span: SpanView, keys: tuple[str, ...]) -> str | None:
    for key in keys:
        value = span.attributes.get(key)
        if isinstance(value, str) and value:
            return value
    return None


def _find_name(span: SpanView, keys: tuple[str, ...]) -> str | None:
    for key in keys:
        name = clean_name(span.attributes.get(key))
        if name:
            return name
    return None


def _restore_vendor(model: str | None, plan: Plan) -> str | None:
    for start, vendor in plan.dialect.model_vendors.items():
        if model and model.startswith(start):
            return f"{vendor}.{model}"
    return model


def _find_asked_model(span: SpanView) -> str | None:
    """The model among OpenInference's invocation parameters, where no attribute names it."""
    document = parse_document(span.attributes.get("llm.invocation_parameters"))
    return clean_name(document.get("model")) if isinstance(document, dict) else None


def is_free_name(name: str) -> bool:
    """True for the name of a span whose request costs nothing, whatever its attributes say."""
    return load_vocabulary().free_names.fullmatch(name) is not None


def _find_operation(span: SpanView, plan: Plan) -> tuple[Operation | None, bool]:
    given = False
    if is_free_name(span.name):
        return _FREE, True
    for key in plan.operation_keys:
        value = span.attributes.get(key)
        if isinstance(value, str) and value:
            given = True
            operation = load_vocabulary().find_operation(value)
            if operation is not None:
                return operation, True
    return None, given


def _has_failed(span: SpanView, plan: Plan) -> bool:
    if span.status_code == STATUS_ERROR or span.attributes.get("error.type"):
        return True
    if any(span.attributes.get(key) == mark for key, mark in plan.failure_marks):
        return True
    for key in plan.status_codes:
        code = span.attributes.get(key)
        if isinstance(code, int) and code >= 400:
            return True
    return False
