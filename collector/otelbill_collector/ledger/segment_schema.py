"""The columns of a segment as readers see them: their names, types and order, and what of a record fills each.

How they lie in the stored blob is said by `packed`; how records become columns, by `segments`.
"""

from __future__ import annotations

import pyarrow as pa

from otelbill_collector.domain.usage import STANDARD_UNITS

AMOUNT = pa.decimal128(38, 18)
_TEXT, _BYTES, _INT = pa.string(), pa.binary(), pa.int64()
Spec = dict[str, tuple[pa.DataType, str]]

# What of a record fills which column: column -> (type, attribute of the part). In three parts and the amounts.
OF_RECORD: Spec = {
    "event_id": (_TEXT, "event_id"),
    "record_id": (_TEXT, "record_id"),
    "corrects": (_TEXT, "corrects"),
    "revision": (_INT, "revision"),
    "sign": (pa.int8(), "sign"),
    "content": (pa.binary(16), "content"),
    "received_nanos": (_INT, "received_nanos"),
    "note": (_TEXT, "note"),
}
OF_CANDIDATE: Spec = {  # what the span said
    "trace_id": (_BYTES, "trace_id"),
    "span_id": (_BYTES, "span_id"),
    "parent_span_id": (_BYTES, "parent_span_id"),
    "started_nanos": (_INT, "started_nanos"),
    "ended_nanos": (_INT, "ended_nanos"),
    "dialect": (_TEXT, "dialect"),
    "role": (_TEXT, "role"),
    "detail": (_INT, "detail"),
    "provider": (_TEXT, "provider"),
    "model": (_TEXT, "model"),
    "request_model": (_TEXT, "request_model"),
    "operation": (_TEXT, "operation"),
    "response_id": (_TEXT, "response_id"),
    "service_tier": (_TEXT, "service_tier"),
    "attempt": (_INT, "attempt"),
    "explicit_event_id": (_TEXT, "explicit_event_id"),
    "failed": (pa.bool_(), "failed"),
    "span_customer_id": (_TEXT, "customer_id"),
    "span_project_id": (_TEXT, "project_id"),
    "span_run_id": (_TEXT, "run_id"),
    "span_step": (_TEXT, "step"),
    "span_billable": (pa.bool_(), "billable"),
    "span_reason": (_TEXT, "reason"),
    "span_usage_source": (_TEXT, "usage_source"),
    "span_caveats": (pa.list_(_TEXT), "caveats"),
    "span_quantities": (_TEXT, "quantities"),
    "emitter": (_TEXT, "emitter"),
    "service": (_TEXT, "service"),
    "traits": (pa.list_(_TEXT), "traits"),
}
OF_DECISION: Spec = {  # what its group made of it
    "customer_id": (_TEXT, "customer_id"),
    "project_id": (_TEXT, "project_id"),
    "run_id": (_TEXT, "run_id"),
    "step": (_TEXT, "step"),
    "billable": (pa.bool_(), "billable"),
    "reason": (_TEXT, "reason"),
    "usage_source": (_TEXT, "usage_source"),
    "caveats": (pa.list_(_TEXT), "caveats"),
    "winner_trace_id": (_BYTES, "winner_trace_id"),
    "winner_span_id": (_BYTES, "winner_span_id"),
}
OF_QUANTITIES: Spec = {**{unit: (_INT, unit) for unit in STANDARD_UNITS}, "other_quantities": (_TEXT, "")}
OF_AMOUNTS: Spec = {  # what rating made of it
    "rating": (_TEXT, "state"),
    "price_version": (_TEXT, "price_version"),
    "cost": (AMOUNT, "cost_attos"),
    "charge": (AMOUNT, "charge_attos"),
    "currency": (_TEXT, "currency"),
}
_SPECS = (OF_RECORD, OF_CANDIDATE, OF_DECISION, OF_QUANTITIES, OF_AMOUNTS)
SCHEMA = pa.schema([(name, kind) for spec in _SPECS for name, (kind, _) in spec.items()])
NAMES = frozenset(  # text columns in which a segment repeats few values
    (
        *("note", "dialect", "role", "provider", "model", "request_model", "operation", "service_tier"),
        *("explicit_event_id", "span_customer_id", "span_project_id", "span_step", "span_reason", "span_usage_source"),
        *("emitter", "service", "customer_id", "project_id", "step", "reason", "usage_source", "other_quantities"),
        *("rating", "price_version", "currency"),
    )
)
