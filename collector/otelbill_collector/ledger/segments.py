"""Evidence segments: usage records as columns in one Arrow IPC blob. Owns the columns and their order; no SQL here.

Amounts are decimal128 with 18 decimals, so that any Arrow reader sees the exact money. Text columns compress well
because a segment repeats few customers, steps and models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from otelbill_collector.domain.money import EXACT
from otelbill_collector.domain.records import Amounts, UsageRecord
from otelbill_collector.domain.usage import (
    STANDARD_UNITS,
    Candidate,
    Decision,
    Quantities,
    Quantity,
    RatingState,
    Role,
    UsageSource,
)

Row = dict[str, Any]  # one row of an Arrow table, typed by SCHEMA

_AMOUNT = pa.decimal128(38, 18)
_TEXT, _BYTES, _INT = pa.string(), pa.binary(), pa.int64()

# column -> (type, how a record fills it)
_COLUMNS: dict[str, tuple[pa.DataType, Callable[[UsageRecord], Any]]] = {
    "event_id": (_TEXT, lambda r: r.event_id),
    "record_id": (_TEXT, lambda r: r.record_id),
    "corrects": (_TEXT, lambda r: r.corrects),
    "revision": (_INT, lambda r: r.revision),
    "sign": (pa.int8(), lambda r: r.sign),
    "content": (pa.binary(16), lambda r: r.content),
    "received_nanos": (_INT, lambda r: r.received_nanos),
    "note": (_TEXT, lambda r: r.note),
    # what the span said
    "trace_id": (_BYTES, lambda r: r.candidate.trace_id),
    "span_id": (_BYTES, lambda r: r.candidate.span_id),
    "parent_span_id": (_BYTES, lambda r: r.candidate.parent_span_id),
    "started_nanos": (_INT, lambda r: r.candidate.started_nanos),
    "ended_nanos": (_INT, lambda r: r.candidate.ended_nanos),
    "dialect": (_TEXT, lambda r: r.candidate.dialect),
    "role": (_TEXT, lambda r: r.candidate.role.value),
    "detail": (_INT, lambda r: r.candidate.detail),
    "provider": (_TEXT, lambda r: r.candidate.provider),
    "model": (_TEXT, lambda r: r.candidate.model),
    "request_model": (_TEXT, lambda r: r.candidate.request_model),
    "operation": (_TEXT, lambda r: r.candidate.operation),
    "response_id": (_TEXT, lambda r: r.candidate.response_id),
    "service_tier": (_TEXT, lambda r: r.candidate.service_tier),
    "attempt": (_INT, lambda r: r.candidate.attempt),
    "explicit_event_id": (_TEXT, lambda r: r.candidate.explicit_event_id),
    "failed": (pa.bool_(), lambda r: r.candidate.failed),
    "span_customer_id": (_TEXT, lambda r: r.candidate.customer_id),
    "span_project_id": (_TEXT, lambda r: r.candidate.project_id),
    "span_run_id": (_TEXT, lambda r: r.candidate.run_id),
    "span_step": (_TEXT, lambda r: r.candidate.step),
    "span_billable": (pa.bool_(), lambda r: r.candidate.billable),
    "span_reason": (_TEXT, lambda r: r.candidate.reason),
    "span_usage_source": (_TEXT, lambda r: r.candidate.usage_source.value),
    "span_caveats": (pa.list_(_TEXT), lambda r: list(r.candidate.caveats)),
    "span_quantities": (_TEXT, lambda r: render_quantities(r.candidate.quantities)),
    "emitter": (_TEXT, lambda r: r.candidate.emitter),
    "service": (_TEXT, lambda r: r.candidate.service),
    "traits": (pa.list_(_TEXT), lambda r: list(r.candidate.traits)),
    # what its group made of it
    "customer_id": (_TEXT, lambda r: r.decision.customer_id),
    "project_id": (_TEXT, lambda r: r.decision.project_id),
    "run_id": (_TEXT, lambda r: r.decision.run_id),
    "step": (_TEXT, lambda r: r.decision.step),
    "billable": (pa.bool_(), lambda r: r.decision.billable),
    "reason": (_TEXT, lambda r: r.decision.reason),
    "usage_source": (_TEXT, lambda r: r.decision.usage_source.value),
    "caveats": (pa.list_(_TEXT), lambda r: list(r.decision.caveats)),
    "winner_trace_id": (_BYTES, lambda r: r.decision.winner_trace_id),
    "winner_span_id": (_BYTES, lambda r: r.decision.winner_span_id),
    **{unit: (_INT, lambda r, unit=unit: r.decision.quantities.get(unit)) for unit in STANDARD_UNITS},  # type: ignore[misc]
    "other_quantities": (_TEXT, lambda r: _render_other(r.decision.quantities)),
    # what rating made of it
    "rating": (_TEXT, lambda r: r.amounts.state.value),
    "price_version": (_TEXT, lambda r: r.amounts.price_version),
    "cost": (_AMOUNT, lambda r: _to_decimal(r.amounts.cost_attos)),
    "charge": (_AMOUNT, lambda r: _to_decimal(r.amounts.charge_attos)),
    "currency": (_TEXT, lambda r: r.amounts.currency),
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in _COLUMNS.items()])
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


def encode_segment(records: Sequence[UsageRecord]) -> bytes:
    """One Arrow IPC stream with a row per record, in the order given."""
    arrays = [pa.array([fill(record) for record in records], type=kind) for kind, fill in _COLUMNS.values()]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA, options=_OPTIONS) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
    return bytes(sink.getvalue())


def decode_table(body: bytes) -> pa.Table:
    """The segment's columns."""
    return pa.ipc.open_stream(body).read_all()


def decode_records(body: bytes) -> list[UsageRecord]:
    """The segment's records, in order."""
    return [build_record(row) for row in decode_table(body).to_pylist()]


def build_record(row: Row) -> UsageRecord:
    """The record that a row was made from."""
    candidate = Candidate(
        trace_id=row["trace_id"],
        span_id=row["span_id"],
        parent_span_id=row["parent_span_id"],
        started_nanos=row["started_nanos"],
        ended_nanos=row["ended_nanos"],
        dialect=row["dialect"],
        role=Role(row["role"]),
        detail=row["detail"],
        provider=row["provider"],
        model=row["model"],
        request_model=row["request_model"],
        operation=row["operation"],
        response_id=row["response_id"],
        service_tier=row["service_tier"],
        customer_id=row["span_customer_id"],
        project_id=row["span_project_id"],
        run_id=row["span_run_id"],
        step=row["span_step"],
        attempt=row["attempt"],
        explicit_event_id=row["explicit_event_id"],
        failed=row["failed"],
        billable=row["span_billable"],
        reason=row["span_reason"],
        usage_source=UsageSource(row["span_usage_source"]),
        caveats=tuple(row["span_caveats"]),
        quantities=parse_quantities(row["span_quantities"]),
        # Segments from before these columns were kept lack them.
        emitter=row.get("emitter") or "",
        service=row.get("service"),
        traits=tuple(row.get("traits") or ()),
    )
    return UsageRecord(
        event_id=row["event_id"],
        revision=row["revision"],
        sign=row["sign"],
        content=row["content"],
        received_nanos=row["received_nanos"],
        candidate=candidate,
        decision=_build_decision(row),
        amounts=_build_amounts(row),
        note=row["note"],
    )


def _build_decision(row: Row) -> Decision:
    return Decision(
        billable=row["billable"],
        reason=row["reason"],
        usage_source=UsageSource(row["usage_source"]),
        quantities=read_quantities(row),
        caveats=tuple(row["caveats"]),
        customer_id=row["customer_id"],
        project_id=row["project_id"],
        run_id=row["run_id"],
        step=row["step"],
        winner_trace_id=row["winner_trace_id"],
        winner_span_id=row["winner_span_id"],
    )


def _build_amounts(row: Row) -> Amounts:
    return Amounts(
        state=RatingState(row["rating"]),
        price_version=row["price_version"],
        cost_attos=to_attos(row["cost"]),
        charge_attos=to_attos(row["charge"]),
        currency=row["currency"],
    )


def read_quantities(row: Mapping[str, Any]) -> dict[str, Quantity]:
    """Billed quantities of a row: the standard units' columns and the others."""
    quantities: dict[str, Quantity] = {unit: row[unit] for unit in STANDARD_UNITS if row[unit] is not None}
    if row["other_quantities"] is not None:
        quantities.update(parse_quantities(row["other_quantities"]))
    return quantities


def render_quantities(quantities: Quantities) -> str:
    """JSON object unit -> decimal text, keys sorted: the same quantities give the same text."""
    return json.dumps({unit: format_quantity(value) for unit, value in sorted(quantities.items())})


def parse_quantities(text: str) -> dict[str, Quantity]:
    """The inverse of render_quantities; whole numbers come back as integers."""
    return {unit: parse_quantity(value) for unit, value in json.loads(text).items()}


def format_quantity(value: Quantity) -> str:
    """Decimal text of a quantity, without exponent."""
    return str(value) if isinstance(value, int) else format(value, "f")


def parse_quantity(text: str) -> Quantity:
    """The quantity of such a text; an integer where it has no fraction."""
    return Decimal(text) if "." in text else int(text)


def _render_other(quantities: Quantities) -> str | None:
    other = {unit: value for unit, value in quantities.items() if unit not in STANDARD_UNITS}
    return render_quantities(other) if other else None


def _to_decimal(attos: int | None) -> Decimal | None:
    return None if attos is None else EXACT.scaleb(Decimal(attos), -18)


def to_attos(amount: Decimal | None) -> int | None:
    """Attos of an amount column's value."""
    return None if amount is None else int(EXACT.scaleb(amount, 18))


def add_quantities(total: dict[str, Quantity], quantities: Mapping[str, Quantity], sign: int) -> None:
    """Add sign x quantities to a running total, in place and exactly."""
    for unit, value in quantities.items():
        signed = value if sign > 0 else -value
        before = total.get(unit, 0)
        if isinstance(before, int) and isinstance(signed, int):
            total[unit] = before + signed
        else:
            total[unit] = EXACT.add(Decimal(before), Decimal(signed))
