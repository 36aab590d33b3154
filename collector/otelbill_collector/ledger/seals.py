"""Seals: a digest beside every row that nothing else in the ledger can prove. Owns the digest and which rows have one.

Segments are chained and derived tables can be folded again; rows of state have neither, so triggers keep a seal of
each (`row_seal`). A row that was changed past the triggers (a disk fault, another program) no longer fits its seal.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

SealValue = None | int | str | bytes
_SEAL_BYTES = 16


@dataclass(frozen=True, slots=True)
class Sealed:
    """A table whose rows are sealed: the columns that name a row, and those the seal covers besides."""

    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    blob_key: bool = False  # the last column of the key is a BLOB

    def write_key(self, prefix: str = "") -> str:
        """SQL for the text that names a row."""
        parts = [f"{prefix}{name}" for name in self.key]
        if self.blob_key:
            parts[-1] = f"hex({parts[-1]})"
        return " || '/' || ".join(["CAST(" + parts[0] + " AS TEXT)", *parts[1:]])


# Not here: segment.body (chained); claim_key, claim_chunk, rollup, credit_usage, stripe_intent_count (derived again);
# price_version (its id is its digest); row_seal itself (a wrong seal fits no row). A test holds this list against the
# schema.
SEALED = (
    Sealed("segment", ("segment_id",), ("booked_nanos", "ended_min", "ended_max", "record_count", "digest")),
    Sealed("due_group", ("due_nanos", "day", "key"), (), blob_key=True),
    Sealed("claim_run", ("run_id",), ("level", "day_min", "day_max", "entries")),
    Sealed("instruction", ("instruction_id",), ("event_id", "customer_id", "operator", "reason", "given_nanos")),
    Sealed(
        "correction",
        ("correction_id",),
        ("event_id", "aspect", "value", "batch", "operator", "reason", "given_nanos", "reverses"),
    ),
    Sealed("resolution", ("resolution_id",), ("event_id", "quantities", "operator", "reason", "given_nanos")),
    Sealed(
        "dead_letter",
        ("letter_id",),
        tuple("received_nanos code field value hint trace_id span_id body replayed_nanos".split()),
    ),
    Sealed("high_water", ("name",), ("segment_id",)),
    Sealed("copy_event", ("copy_event_id",), ("kind", "at_nanos")),
    Sealed("stripe_lane", ("lane_id",), ("meter", "customer_id", "quantum", "carry", "booked", "settled", "confirmed")),
    Sealed(
        "stripe_window",
        ("lane_id", "start_nanos", "length_nanos"),
        ("amount", "settled", "dirty", "last_event_nanos", "closed_nanos"),
    ),
    Sealed(
        "stripe_intent",
        ("intent_id",),
        tuple(
            "identifier lane_id account livemode start_nanos length_nanos revision kind amount carry_before "
            "carry_after value stamp_seconds made_nanos state stripe_customer_id attempts attempt_group doubt_nanos "
            "last_sent_nanos due_nanos answer_status answer_code answer_message request_id superseded_by".split()
        ),
    ),
    Sealed(
        "invoice",
        ("invoice_number",),
        ("invoice_id", "customer_id", "start_nanos", "end_nanos", "mark_segment", "content", "made_nanos"),
    ),
    Sealed("invoice_event", ("invoice_event_id",), ("invoice_id", "state", "operator", "reason", "at_nanos")),
    Sealed(
        "restated_terms",
        ("restated_id",),
        ("customer_id", "start_nanos", "end_nanos", "terms", "operator", "reason", "given_nanos"),
    ),
    Sealed("stripe_stop", ("scope", "name"), ("code", "message", "since_nanos", "retry_nanos")),
    Sealed(
        "credit_grant",
        ("grant_id",),
        tuple(
            "customer_id measure asset amount origin priority start_nanos expiry_nanos project_id step model unit "
            "rollover reason operator given_nanos".split()
        ),
    ),
    Sealed("credit_void", ("grant_id",), ("at_nanos", "reason", "operator", "given_nanos")),
    Sealed(
        "credit_transfer",
        ("transfer_id",),
        tuple(
            "kind grant_id at_nanos project_id step model unit currency customer_id source target asset amount "
            "value_attos booked_nanos corrects".split()
        ),
    ),
    Sealed(
        "credit_charge",
        ("charge_id",),
        tuple("customer_id at_nanos project_id step model unit currency charge_attos origin booked_nanos".split()),
    ),
    Sealed("credit_post", ("customer_id",), ("until_nanos", "next_nanos", "dirty")),
    Sealed(
        "derived_file",
        ("name",),
        tuple("kind day level segment_first segment_last entries size_bytes digest".split()),
    ),
    Sealed(
        "pruning",
        ("pruning_id",),
        tuple(
            "segment_first segment_last ended_min ended_max record_count digest floor_nanos policy operator "
            "at_nanos".split()
        ),
    ),
    Sealed("pruning_step", ("segment_last",), ("segment_first", "sums")),
    Sealed("pruned_event", ("key",), ("segment_id",), blob_key=True),
)


@dataclass(frozen=True, slots=True)
class BrokenSeal:
    """A row that does not fit its seal; `problem` says how."""

    table: str
    row_key: str
    problem: str


def seal_row(*values: SealValue) -> bytes:
    """16 bytes over typed values: 1, "1" and b"1" have different seals."""
    hasher = hashlib.sha256()
    for value in values:
        kind, raw = _encode_value(value)
        hasher.update(kind + len(raw).to_bytes(8, "big") + raw)
    return hasher.digest()[:_SEAL_BYTES]


def _encode_value(value: SealValue) -> tuple[bytes, bytes]:
    if value is None:
        return b"n", b""
    if isinstance(value, int):
        return b"i", str(value).encode()
    if isinstance(value, str):
        return b"t", value.encode("utf-8", "surrogateescape")
    return b"b", bytes(value)


def register_seal(connection: sqlite3.Connection) -> None:
    """Give a connection the function that the seals' triggers call; without it the sealed tables cannot be written."""
    connection.execute("PRAGMA trusted_schema = ON")  # some builds forbid own functions in triggers otherwise
    connection.create_function("otelbill_seal", -1, seal_row, deterministic=True)


def list_broken_seals(connection: sqlite3.Connection, sealed: Sealed) -> Iterator[BrokenSeal]:
    """Rows of a table that differ from their seals, lack one, or are gone. Call inside one read transaction."""
    seals: dict[str, bytes] = dict(
        connection.execute("SELECT row_key, seal FROM row_seal WHERE table_name = ?", (sealed.table,))
    )
    names = ", ".join((*sealed.key, *sealed.columns))
    for row_key, *values in connection.execute(f"SELECT {sealed.write_key()}, {names} FROM {sealed.table}"):
        seal = seals.pop(row_key, None)
        if seal is None:
            yield BrokenSeal(sealed.table, str(row_key), "the row has no seal: it was written past otelbill")
        elif seal != seal_row(*values):
            yield BrokenSeal(sealed.table, str(row_key), "the row, or its seal, was changed past otelbill")
    for row_key in seals:
        yield BrokenSeal(sealed.table, str(row_key), "the row is gone; only its seal is left")


def render_triggers(sealed: Sealed) -> str:
    """SQL that keeps a table's seals: what the migration that introduced them holds, word for word."""
    table = sealed.table
    new = ", ".join(f"NEW.{name}" for name in (*sealed.key, *sealed.columns))
    old_key, new_key = sealed.write_key("OLD."), sealed.write_key("NEW.")
    names = ", ".join((*sealed.key, *sealed.columns))
    return f"""INSERT INTO row_seal SELECT '{table}', {sealed.write_key()}, otelbill_seal({names}) FROM {table};
CREATE TRIGGER {table}_is_sealed AFTER INSERT ON {table}
BEGIN
    INSERT INTO row_seal VALUES ('{table}', {new_key}, otelbill_seal({new}));
END;
CREATE TRIGGER {table}_is_sealed_again AFTER UPDATE ON {table}
BEGIN
    UPDATE row_seal SET row_key = {new_key}, seal = otelbill_seal({new})
    WHERE table_name = '{table}' AND row_key = {old_key};
END;
CREATE TRIGGER {table}_is_unsealed AFTER DELETE ON {table}
BEGIN
    DELETE FROM row_seal WHERE table_name = '{table}' AND row_key = {old_key};
END;
"""
