"""Segments leave out what is derived, constant or alike, and give back every column as if nothing had been left out."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from random import Random

import numpy as np
import pyarrow as pa
import pytest

from otelbill_collector.domain.alone import build_own_decision
from otelbill_collector.domain.ids import derive_record_id
from otelbill_collector.domain.records import Amounts, UsageRecord, digest_candidate, identify_candidate
from otelbill_collector.domain.span_columns import RATINGS, RatedColumns
from otelbill_collector.domain.usage import Candidate, Decision, RatingState, Role, UsageSource
from otelbill_collector.domain.usage import replace as change
from otelbill_collector.ledger.packed import FORM, UnknownForm, find_form
from otelbill_collector.ledger.packing import drop_unused, join_packed, write_packed
from otelbill_collector.ledger.segment_schema import NAMES, SCHEMA
from otelbill_collector.ledger.segments import (
    RECORD_COLUMNS,
    decode_packed,
    decode_records,
    decode_table,
    encode_records,
    encode_segment,
    read_bookings,
)
from otelbill_collector.ledger.span_batches import encode_columns
from tests.span_columns import build_columns, build_texts

T0 = 1_780_000_000 * 10**9
HUGE = 10**38 - 1


def draw_candidate(rng: Random) -> Candidate:
    """A span with plain counts: a call or a tool, with much or little of itself."""
    call = rng.random() < 0.8
    quantities: dict[str, int] = {}
    if call:
        if rng.random() < 0.9:
            quantities = {"input_tokens": rng.randrange(3) * rng.randrange(2**40), "output_tokens": rng.randrange(900)}
            quantities |= {unit: 1 + rng.randrange(99) for unit in ("cache_read_tokens",) if rng.random() < 0.5}
            quantities |= {unit: 1 + rng.randrange(99) for unit in ("cache_write_tokens",) if rng.random() < 0.2}
            quantities |= {unit: 1 + rng.randrange(99) for unit in ("reasoning_tokens",) if rng.random() < 0.2}
        quantities["requests"] = 1
    ended = T0 + rng.randrange(10**12)
    return Candidate(
        trace_id=rng.randbytes(16),
        span_id=rng.randbytes(8),
        parent_span_id=rng.choice([b"", rng.randbytes(8)]),
        started_nanos=ended - rng.randrange(10**10),
        ended_nanos=ended,
        dialect=rng.choice(["otel", "other"]),
        role=Role.CALL if call else Role.TOOL,
        detail=rng.randrange(3),
        provider=rng.choice([None, "openai"]),
        model=rng.choice([None, "m-1", "m-2"]),
        request_model=rng.choice([None, "m-1", "m-2"]),
        operation=rng.choice([None, "chat"]),
        response_id=rng.choice([None, f"resp-{rng.randrange(10**6)}"]),
        service_tier=rng.choice([None, "flex"]),
        customer_id=rng.choice([None, "acme", "globex", "Großkunde"]),
        project_id=rng.choice([None, "p"]),
        run_id=rng.choice([None, f"run-{rng.randrange(30)}"]),
        step=rng.choice([None, "plan", "write"]),
        attempt=rng.choice([None, 0, 2]),
        failed=rng.random() < 0.2,
        billable=call,
        reason="provider_call" if call else "tool",
        usage_source=rng.choice([UsageSource.REPORTED, UsageSource.UNKNOWN]),
        caveats=rng.choice([(), ("input_tokens", "output_tokens")]),
        quantities=quantities,
        emitter="scope 1.0",
        service=rng.choice([None, "shop"]),
        traits=rng.choice([(), ("twin",)]),
    )


def draw_amounts(rng: Random) -> Amounts:
    """Anything rating may leave, small money and the largest that fits."""
    state = rng.choice(RATINGS)
    cost = rng.choice([None, 0, rng.randrange(10**18), -rng.randrange(10**18), 2**63, HUGE, -HUGE])
    charge = rng.choice([None, cost, rng.randrange(10**17)])
    return Amounts(state, rng.choice([None, "v1", "v2"]), cost, charge, rng.choice([None, "USD"]))


def draw_alone(rng: Random, *, small: bool = False) -> UsageRecord:
    """The first booking of a span that stands alone."""
    candidate = draw_candidate(rng)
    amounts = Amounts(RatingState.RATED, "v1", 10**15, 10**15, "USD") if small else draw_amounts(rng)
    return UsageRecord(
        event_id=identify_candidate(candidate),
        revision=0,
        sign=1,
        content=digest_candidate(candidate),
        received_nanos=T0 + rng.randrange(3),
        candidate=candidate,
        decision=build_own_decision(candidate),
        amounts=amounts,
    )


def draw_record(rng: Random) -> UsageRecord:
    """Any record: a correction, a reversal, a span that lost its claim, ids and units of any form."""
    record = draw_alone(rng)
    candidate = change(
        record.candidate,
        trace_id=rng.choice([b"", b"short", rng.randbytes(16)]),
        explicit_event_id=rng.choice([None, "an event"]),
        quantities=rng.choice([record.candidate.quantities, {"pages": Decimal("0.50"), 'odd "unit"': 3}, {}]),
    )
    decision = build_own_decision(candidate)
    if rng.random() < 0.5:
        decision = Decision(
            billable=not candidate.billable,
            reason="claimed",
            usage_source=UsageSource.RESIDUAL,
            quantities=rng.choice([{}, {"output_tokens": 2, "pages": Decimal("1.5")}, {"requests": 0}]),
            caveats=("output_tokens",),
            customer_id="payer",
            run_id=candidate.run_id,
            winner_trace_id=rng.choice([b"", b"w" * 16]),
            winner_span_id=rng.choice([b"", b"v" * 8]),
        )
    return replace(
        record,
        event_id=rng.choice([record.event_id, "E" * 32, "not hex"]),
        candidate=candidate,
        decision=decision,
        revision=rng.randrange(3),
        sign=rng.choice([1, -1]),
        note=rng.choice([None, "why"]),
    )


def as_table(records: list[UsageRecord]) -> pa.Table:
    """The columns that readers must see."""
    return pa.table(encode_records(records))


def rate_columns(records: list[UsageRecord]) -> RatedColumns:
    """The records of spans that stand alone as booking would have them in columns; who pays may be another."""
    names: list[str] = []
    spans = build_columns([item.candidate for item in records], [item.received_nanos for item in records], None, names)
    decisions = [item.decision for item in records]
    codes = {}
    for field in ("customer_id", "project_id", "step"):
        values = [getattr(item, field) for item in decisions]
        names += [value for value in dict.fromkeys(values) if value is not None and value not in names]
        codes[field] = np.array([-1 if v is None else names.index(v) for v in values], dtype=np.int32)
    versions = ["unused", "v1", "v2"]
    amounts = [item.amounts for item in records]
    count = len(records)
    return RatedColumns(
        spans=spans,
        customer=codes["customer_id"],
        project=codes["project_id"],
        step=codes["step"],
        run_id=build_texts([item.run_id for item in decisions]),
        event_id=np.frombuffer(b"".join(bytes.fromhex(r.event_id) for r in records), np.uint8).reshape(count, 16),
        content=np.frombuffer(b"".join(r.content for r in records), np.uint8).reshape(count, 16),
        keys=np.empty((0, 16), dtype=np.uint8),
        key_starts=np.zeros(count + 1, dtype=np.int32),
        rating=np.array([RATINGS.index(a.state) for a in amounts], dtype=np.int32),
        price_version=np.array(
            [-1 if a.price_version is None else versions.index(a.price_version) for a in amounts], dtype=np.int32
        ),
        versions=versions,
        cost_attos=split_words([a.cost_attos for a in amounts]),
        charge_attos=split_words([a.charge_attos for a in amounts]),
        has_cost=np.array([a.cost_attos is not None for a in amounts], dtype=bool),
        has_charge=np.array([a.charge_attos is not None for a in amounts], dtype=bool),
        currency="USD",
        has_currency=np.array([a.currency is not None for a in amounts], dtype=bool),
    )


def split_words(attos: list[int | None]) -> np.ndarray:
    """128-bit integers as pairs of words."""
    body = b"".join((item or 0).to_bytes(16, "little", signed=True) for item in attos)
    return np.frombuffer(body, dtype="<i8").reshape(len(attos), 2).copy()


@pytest.mark.parametrize("count", [1, 2, 40, 300])
@pytest.mark.parametrize("seed", range(4))
def test_readers_see_every_column_of_every_record(seed: int, count: int) -> None:
    """Guarantee: whatever a segment holds, its columns come back type for type and value for value, few or all."""
    rng = Random(seed)
    draw = rng.choice([draw_alone, draw_record])
    records = [draw(rng) for _ in range(count)]
    body, expected = encode_segment(records), as_table(records)
    found = decode_table(body, validate=True)
    assert found.schema.equals(SCHEMA)
    assert found == expected
    assert decode_records(body) == records
    for name in SCHEMA.names:
        assert decode_table(body, [name]) == expected.select([name]), name
        coded = decode_table(body, [name], dictionaries=True)
        expected_type = pa.dictionary(pa.int32(), pa.string()) if name in NAMES else SCHEMA.field(name).type
        assert coded.schema.field(name).type == expected_type, "equal in every segment, so that they can be joined"
        assert coded.cast(expected.select([name]).schema) == expected.select([name])


@pytest.mark.parametrize("inherited", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_spans_in_columns_are_the_rows_of_their_records(seed: int, inherited: bool) -> None:
    """Guarantee: a span leaves the same record whether it is booked in columns or one by one, alone in its segment or
    before records of another kind.
    """
    rng = Random(seed)
    records = [draw_alone(rng, small=seed % 2 == 0) for _ in range(rng.choice([1, 30, 400]))]
    if inherited:
        payers = {"customer_id": "payer", "project_id": None, "run_id": "run-of-root", "step": "root"}
        records = [
            replace(item, decision=change(item.decision, **payers)) if rng.random() < 0.5 else item for item in records
        ]
    batch = encode_columns(rate_columns(records))
    assert decode_table(encode_segment([], [batch]), validate=True) == as_table(records)
    others = [draw_record(rng) for _ in range(rng.choice([1, 20]))]
    assert decode_table(encode_segment(others, [batch]), validate=True) == as_table([*records, *others])


@pytest.mark.parametrize("seed", range(6))
def test_packed_rows_are_written_again_as_they_were(seed: int) -> None:
    """Guarantee: rows taken from segments of any kind without being unpacked are the same rows in another segment."""
    rng = Random(seed)
    pieces = [[rng.choice([draw_alone, draw_record])(rng) for _ in range(rng.choice([1, 30, 300]))] for _ in range(3)]
    plain = pa.BufferOutputStream()
    with pa.ipc.new_stream(plain, SCHEMA) as writer:  # a segment of the first form
        writer.write_batch(encode_records(pieces[0]))
    bodies = [bytes(plain.getvalue()), *map(encode_segment, pieces[1:])]
    batches = [decode_packed(body) for body in bodies]
    assert [write_packed([batch]) for batch in batches] == list(map(encode_segment, pieces))
    for body, piece in zip(bodies, pieces, strict=True):
        ids, signs = read_bookings(body)
        bookings = [derive_record_id(record.event_id, record.revision, "usage") for record in piece]
        assert [row.tobytes().hex() for row in ids] == bookings
        assert signs.tolist() == [record.sign for record in piece]
    joined = join_packed(batches)
    records = [record for piece in pieces for record in piece]
    chosen = sorted(rng.sample(range(len(records)), rng.randrange(1, len(records) + 1)))
    found = write_packed([joined.take(pa.array(chosen))])
    assert decode_table(found, validate=True) == as_table([records[row] for row in chosen])
    part = joined.slice(chosen[0])
    small = pa.record_batch(
        [drop_unused(column) if pa.types.is_dictionary(column.type) else column for column in part.columns],
        names=part.schema.names,
    )
    assert decode_table(write_packed([small]), validate=True) == as_table(records[chosen[0] :])


def test_no_spans_in_columns_are_no_rows() -> None:
    """A batch without spans is an empty segment, not a fault."""
    assert decode_table(encode_segment([], [encode_columns(rate_columns([]))])) == SCHEMA.empty_table()


def test_an_amount_that_does_not_fit_is_refused() -> None:
    """Money is never cut off: what decimal128 cannot hold is an error, as it is for records."""
    record = draw_alone(Random(1))
    for attos in (10**38, -(10**38)):
        large = replace(record, amounts=Amounts(RatingState.RATED, "v1", attos, None, "USD"))
        with pytest.raises(OverflowError):
            encode_columns(rate_columns([large]))
        with pytest.raises(OverflowError):
            encode_segment([large])


def test_what_follows_or_repeats_is_not_stored() -> None:
    """The blob has neither derived ids nor constant columns, and codes for names: other readers are told how."""
    rng = Random(3)
    candidate = change(draw_candidate(rng), role=Role.CALL, quantities={"input_tokens": 7, "output_tokens": 1})
    records = []
    for number in range(2_000):
        own = change(candidate, span_id=number.to_bytes(8, "big"), model=f"m-{number % 7}", customer_id=f"c{number}")
        records.append(replace(draw_alone(rng, small=True), candidate=own, decision=build_own_decision(own)))
    schema = pa.ipc.open_stream(encode_segment(records)).schema
    form = find_form(schema)
    assert form is not None
    assert not {"record_id", "corrects", "span_customer_id", "span_quantities", "charge", "sign"} & set(schema.names)
    assert schema.field("event_id").type == pa.binary(16)
    assert schema.field("model").type == pa.dictionary(pa.int8(), pa.string())
    assert schema.field("customer_id").type == pa.string(), "each row has its own"
    assert form.constants["currency"] == "USD"
    assert form.constants["cost_attos"] == 10**15
    assert form.same == {"charge": "cost"}
    assert form.constants["as_told"] is True


def test_segments_of_the_first_form_are_read() -> None:
    """Evidence of earlier versions, columns as they are and some not yet known, keeps its meaning."""
    records = [draw_record(Random(seed)) for seed in range(20)]
    table = as_table(records)
    early = table.drop_columns(["emitter", "service", "traits"])
    for written in (table, early):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, written.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(written)
        body = bytes(sink.getvalue())
        assert decode_table(body) == written
        assert decode_table(body, ["model", "sign"], dictionaries=True)["model"].type == pa.dictionary(
            pa.int32(), pa.string()
        )
        assert decode_table(body, RECORD_COLUMNS).num_columns == len(RECORD_COLUMNS)
        assert [record.event_id for record in decode_records(body)] == [record.event_id for record in records]


def test_a_segment_of_a_later_version_is_refused() -> None:
    """What this version cannot know the meaning of is never guessed."""
    body = encode_segment([draw_alone(Random(1))])
    batch = pa.ipc.open_stream(body).read_next_batch()
    content = json.loads(batch.schema.metadata[b"otelbill"]) | {"form": FORM + 1}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema.with_metadata({b"otelbill": json.dumps(content)})) as writer:
        writer.write_batch(batch)
    with pytest.raises(UnknownForm, match="reads forms"):
        decode_table(bytes(sink.getvalue()))


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_blob_is_an_error_or_a_table_and_never_more(seed: int) -> None:
    """`verify` describes what a damaged segment holds: no byte may take the process down or hang it."""
    rng = Random(seed)
    body = bytearray(encode_segment([draw_alone(rng, small=True) for _ in range(300)]))
    for _ in range(100):
        place = rng.randrange(len(body))
        old, body[place] = body[place], rng.randrange(256)
        with suppress(Exception):  # damaged Arrow raises anything, as `evidence` expects
            decode_table(bytes(body), validate=True).validate(full=True)
        body[place] = old
