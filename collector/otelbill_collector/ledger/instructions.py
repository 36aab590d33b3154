"""Operators' instructions about single events, append-only. Owns their table; booking applies them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Instruction:
    """Assign the event to the customer. The latest instruction about an event counts."""

    event_id: str
    customer_id: str
    operator: str
    reason: str
    given_nanos: int


def save_instruction(connection: sqlite3.Connection, instruction: Instruction) -> None:
    """Append an instruction."""
    connection.execute(
        "INSERT INTO instruction (event_id, customer_id, operator, reason, given_nanos) VALUES (?, ?, ?, ?, ?)",
        (
            instruction.event_id,
            instruction.customer_id,
            instruction.operator,
            instruction.reason,
            instruction.given_nanos,
        ),
    )


def list_instructions(connection: sqlite3.Connection) -> list[Instruction]:
    """All instructions, oldest first."""
    rows = connection.execute(
        "SELECT event_id, customer_id, operator, reason, given_nanos FROM instruction ORDER BY instruction_id"
    )
    return [Instruction(*row) for row in rows]
