"""Usage that operators gave by hand for calls whose own never reached us, append-only. Owns the table and its meaning.

A resolution fills a hole: it counts only while the event is billable and its usage unknown or estimated. What spans
report later takes its place.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, replace

from otelbill_collector.domain.usage import (
    AUDIO_INPUT_TOKENS,
    AUDIO_OUTPUT_TOKENS,
    CACHE_WRITE_1H_TOKENS,
    CACHE_WRITE_TOKENS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    QUANTITY_MAX,
    REASONING_TOKENS,
    TOKEN_UNITS,
    Decision,
    Quantity,
    UsageSource,
)

_WHOLES = {
    CACHE_WRITE_1H_TOKENS: CACHE_WRITE_TOKENS,
    REASONING_TOKENS: OUTPUT_TOKENS,
    AUDIO_INPUT_TOKENS: INPUT_TOKENS,
    AUDIO_OUTPUT_TOKENS: OUTPUT_TOKENS,
}
_OPEN_SOURCES = (UsageSource.UNKNOWN, UsageSource.ESTIMATED)


class InvalidResolution(ValueError):
    """The quantities cannot be usage. The message names the unit, the value and the remedy."""


class NotHeld(ValueError):
    """The event has usage of its own, or is not billable: there is nothing to resolve."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Token quantities (disjoint units of the contract) for one event, who gave them and why."""

    event_id: str
    quantities: Mapping[str, int]
    operator: str
    reason: str
    given_nanos: int

    def __post_init__(self) -> None:
        if not self.quantities:
            raise InvalidResolution("no quantity is given; give input_tokens and output_tokens")
        for unit, amount in self.quantities.items():
            if unit not in TOKEN_UNITS:
                raise InvalidResolution(f"{unit}: is no token unit; give one of {', '.join(TOKEN_UNITS)}")
            if type(amount) is not int or not 0 <= amount <= QUANTITY_MAX:
                raise InvalidResolution(f"{unit}: {str(amount)[:40]!r} is not an integer from 0 to {QUANTITY_MAX}")
        problem = find_oversized_part(self.quantities)
        if problem is not None:
            raise InvalidResolution(problem)


def find_oversized_part(quantities: Mapping[str, Quantity]) -> str | None:
    """What is wrong where a part is larger than the whole that it is counted in, or None."""
    for subset, whole in _WHOLES.items():
        if quantities.get(subset, 0) > quantities.get(whole, 0):
            return f"{subset}: is part of {whole} and larger than it; give {whole} as well"
    return None


def is_open(decision: Decision) -> bool:
    """True when the event waits for somebody to say what it used."""
    return decision.billable and decision.usage_source in _OPEN_SOURCES


def apply_resolution(decision: Decision, given: Resolution) -> Decision:
    """The decision with the given tokens; units that are not tokens (requests, images) stay as the span said.

    The source becomes `reported`, the reason stays: it says why the usage had to be given by hand.
    """
    if not is_open(decision):
        return decision
    kept: dict[str, Quantity] = {u: amount for u, amount in decision.quantities.items() if u not in TOKEN_UNITS}
    return replace(decision, quantities={**kept, **given.quantities}, usage_source=UsageSource.REPORTED, caveats=())


def save_resolution(connection: sqlite3.Connection, given: Resolution) -> None:
    """Append a resolution."""
    connection.execute(
        "INSERT INTO resolution (event_id, quantities, operator, reason, given_nanos) VALUES (?, ?, ?, ?, ?)",
        (
            given.event_id,
            json.dumps(given.quantities, sort_keys=True),
            given.operator,
            given.reason,
            given.given_nanos,
        ),
    )


def list_resolutions(connection: sqlite3.Connection) -> list[Resolution]:
    """All resolutions, oldest first."""
    rows = connection.execute(
        "SELECT event_id, quantities, operator, reason, given_nanos FROM resolution ORDER BY resolution_id"
    )
    return [Resolution(event, json.loads(quantities), *rest) for event, quantities, *rest in rows]
