"""What is read back from a segment is what was booked: claims are decided again from it after a restart."""

from __future__ import annotations

from dataclasses import fields, replace
from decimal import Decimal

import pyarrow as pa

from otelbill_collector.domain.records import Amounts, UsageRecord
from otelbill_collector.domain.usage import Candidate, Decision, RatingState, Role, UsageSource
from otelbill_collector.ledger.segment_schema import NAMES, SCHEMA
from otelbill_collector.ledger.segments import decode_records, decode_table, encode_segment

CANDIDATE = Candidate(
    trace_id=b"t" * 16,
    span_id=b"s" * 8,
    parent_span_id=b"p" * 8,
    started_nanos=1,
    ended_nanos=2,
    dialect="a dialect",
    role=Role.AGGREGATE,
    detail=7,
    provider="openai",
    model="model",
    request_model="asked",
    operation="chat",
    response_id="resp",
    service_tier="flex",
    customer_id="customer",
    project_id="project",
    run_id="run",
    step="step",
    attempt=3,
    explicit_event_id="event",
    failed=True,
    billable=False,
    reason="internal",
    usage_source=UsageSource.ESTIMATED,
    caveats=("input_tokens",),
    quantities={"input_tokens": 1, "pages": Decimal("0.5")},
    emitter="scope",
    service="shop",
    traits=("twin",),
)
DECISION = Decision(
    billable=True,
    reason="aggregate",
    usage_source=UsageSource.RESIDUAL,
    quantities={"output_tokens": 2, "pages": Decimal("0.5")},
    caveats=("output_tokens",),
    customer_id="a",
    project_id="b",
    run_id="c",
    step="d",
    winner_trace_id=b"w" * 16,
    winner_span_id=b"v" * 8,
)
RECORD = UsageRecord(
    event_id="e" * 32,
    revision=1,
    sign=1,
    content=b"c" * 16,
    received_nanos=3,
    candidate=CANDIDATE,
    decision=DECISION,
    amounts=Amounts(RatingState.RATED, "v", 10**18, 2 * 10**18, "USD"),
    note="why",
)


def test_every_field_survives_the_segment() -> None:
    """The example differs from every default, so that a field that is not stored cannot come back by chance."""
    assert decode_records(encode_segment([RECORD])) == [RECORD]
    for value, transient in ((CANDIDATE, {"problem"}), (DECISION, {"due_nanos"}), (RECORD, set())):
        for spec in fields(value):
            if spec.name not in transient:
                assert getattr(value, spec.name) != spec.default, f"give {spec.name} a value of its own"


def test_absent_values_stay_absent() -> None:
    """None is not the empty text, and a record without a price has none."""
    bare = replace(
        RECORD,
        candidate=Candidate(b"t" * 16, b"s" * 8, b"", 1, 2, "d", Role.CALL, 0),
        decision=Decision(False, "structure", UsageSource.UNKNOWN, {}),
        amounts=Amounts(RatingState.NOT_BILLABLE),
        note=None,
    )
    assert decode_records(encode_segment([bare])) == [bare]


def test_names_can_be_read_as_dictionaries() -> None:
    """Whoever groups by a column gets codes instead of texts; they stand for the same texts."""
    body = encode_segment([RECORD, replace(RECORD, note=None), RECORD])
    plain, coded = decode_table(body), decode_table(body, dictionaries=True)
    for name in SCHEMA.names:
        assert pa.types.is_dictionary(coded.schema.field(name).type) == (name in NAMES), name
    assert coded.cast(SCHEMA) == plain
    chosen = decode_table(body, ["sign", "model"], dictionaries=True)
    assert chosen.column_names == ["sign", "model"]
    assert chosen["model"].to_pylist() == ["model"] * 3
