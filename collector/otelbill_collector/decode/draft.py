"""A candidate while its span is being read. Owns nothing but the mutable form: frozen values are costly to vary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from otelbill_collector.decode.dialects import Dialect
from otelbill_collector.decode.privacy import clean_id, clean_scope
from otelbill_collector.decode.reasons import Reason
from otelbill_collector.decode.spans import STATUS_ERROR, SpanView, Value
from otelbill_collector.domain.usage import Candidate, Problem, Quantity, Role, UsageSource


@dataclass(slots=True)
class Draft:
    """The fields of `Candidate` that reading a span settles one after the other."""

    dialect: Dialect
    failed: bool
    role: Role = Role.LINK
    aggregate: bool = False  # what its names say it is, whatever its counts are
    detail: int = 0
    provider: str | None = None
    model: str | None = None
    request_model: str | None = None
    operation: str | None = None
    response_id: str | None = None
    service_tier: str | None = None
    customer_id: str | None = None
    project_id: str | None = None
    run_id: str | None = None
    step: str | None = None
    attempt: int | None = None
    explicit_event_id: str | None = None
    billable: bool = False
    reason: Reason = Reason.STRUCTURE
    marked: Reason | None = None  # the span itself says that it is not billable
    usage_source: UsageSource = UsageSource.REPORTED
    caveats: tuple[str, ...] = ()
    quantities: dict[str, Quantity] = field(default_factory=dict)
    problem: Problem | None = None
    traits: tuple[str, ...] = ()


def start_draft(span: SpanView, dialect: Dialect) -> Draft:
    """A link of its dialect: what every span is until more is known."""
    return Draft(dialect=dialect, failed=span.status_code == STATUS_ERROR)


def finish_draft(draft: Draft, span: SpanView) -> Candidate:
    """The candidate."""
    return Candidate(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        started_nanos=span.started_nanos,
        ended_nanos=span.ended_nanos,
        dialect=draft.dialect.name,
        role=draft.role,
        detail=draft.detail,
        provider=draft.provider,
        model=draft.model,
        request_model=draft.request_model,
        operation=draft.operation,
        response_id=draft.response_id,
        service_tier=draft.service_tier,
        customer_id=draft.customer_id,
        project_id=draft.project_id,
        run_id=draft.run_id,
        step=draft.step,
        attempt=draft.attempt,
        explicit_event_id=draft.explicit_event_id,
        failed=draft.failed,
        billable=draft.billable,
        reason=draft.reason,
        usage_source=draft.usage_source,
        caveats=draft.caveats,
        quantities=draft.quantities,
        problem=draft.problem,
        emitter=clean_scope(span.scope_name),
        service=find_service(span.resource),
        traits=draft.traits,
    )


def find_service(resource: Mapping[str, Value]) -> str | None:
    """`service.name` where somebody set one."""
    name = resource.get("service.name")
    return None if isinstance(name, str) and name.startswith("unknown_service") else clean_id(name)
