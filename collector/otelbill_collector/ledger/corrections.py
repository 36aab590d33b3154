"""What operators said of events that are booked: customer, quantities, charge, void. Append-only. Owns the table, what
stands of it, and how it changes a decision; booking applies it.

A correction is about one aspect of one event; the latest about an aspect stands. Those given together are a batch, and
a batch can be taken back as one: that appends corrections that say what stood before.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, KeysView, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.money import format_attos, parse_attos
from otelbill_collector.domain.records import Amounts
from otelbill_collector.domain.usage import QUANTITY_MAX, Decision, Quantity, RatingState, UsageSource

VOIDED = "voided"  # the reason of a voided event


class Aspect(StrEnum):
    """What a correction is about."""

    CUSTOMER = "customer"
    QUANTITIES = "quantities"
    CHARGE = "charge"
    VOID = "void"


class InvalidCorrection(ValueError):
    """The correction cannot be: the message names the event or the value, and the remedy. Nothing is written."""


@dataclass(frozen=True, slots=True)
class Correction:
    """One statement. `value` is canonical JSON; one that takes back has that of what stands again, None without any."""

    event_id: str
    aspect: Aspect
    value: str | None
    batch: str
    operator: str
    reason: str
    given_nanos: int
    reverses: str | None = None  # the batch that this one takes back

    @property
    def currency(self) -> str | None:
        """Of a charge; None for anything else."""
        return json.loads(self.value)["currency"] if self.aspect is Aspect.CHARGE and self.value else None


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator wants of some events, before it is checked against them. None leaves an aspect alone.

    `quantities` replaces the units that it names; `charge_attos` is in `currency`.
    """

    event_ids: tuple[str, ...]
    operator: str
    reason: str
    given_nanos: int
    customer_id: str | None = None
    quantities: Mapping[str, int] | None = None
    charge_attos: int | None = None
    currency: str | None = None
    void: bool = False

    def __post_init__(self) -> None:
        if not self.event_ids:
            raise InvalidCorrection("no event is named; `otelbill explain TRACE_ID` lists the events of a trace")
        if not self.list_values():
            raise InvalidCorrection("nothing to correct: give a customer, quantities, a charge, or void")
        if self.void and len(self.list_values()) > 1:
            raise InvalidCorrection("a void event has no customer, quantities or charge; give void alone")
        if self.charge_attos is not None and self.charge_attos < 0:
            raise InvalidCorrection("charge: an event is never charged less than nothing; void it, or grant a credit")
        for unit, amount in (self.quantities or {}).items():
            if type(amount) is not int or not 0 <= amount <= QUANTITY_MAX:
                raise InvalidCorrection(f"{unit}: {str(amount)[:40]!r} is not an integer from 0 to {QUANTITY_MAX}")

    def list_values(self) -> dict[Aspect, str]:
        """The aspects that are spoken of, with their values."""
        values: dict[Aspect, Any] = {}  # Any: JSON
        if self.customer_id is not None:
            values[Aspect.CUSTOMER] = self.customer_id
        if self.quantities:
            values[Aspect.QUANTITIES] = dict(self.quantities)
        if self.charge_attos is not None:
            values[Aspect.CHARGE] = {"charge": format_attos(self.charge_attos), "currency": self.currency}
        if self.void:
            values[Aspect.VOID] = True
        return {aspect: json.dumps(value, sort_keys=True) for aspect, value in values.items()}

    def derive_batch(self) -> str:
        """16 hex characters over all that is said: two equal statements of different times are two batches."""
        values = [f"{aspect.value}={value}" for aspect, value in sorted(self.list_values().items())]
        parts: tuple[str | int, ...] = (*self.event_ids, *values, self.operator, self.reason, self.given_nanos)
        return digest_parts("correction-batch", *parts).hex()[:16]


Standing = Mapping[Aspect, Correction]


def apply_to_decision(decision: Decision, standing: Standing) -> Decision:
    """The decision as operators want it."""
    if (given := _read(standing, Aspect.CUSTOMER)) is not None:
        decision = replace(decision, customer_id=given)
    if decision.billable and (given := _read(standing, Aspect.QUANTITIES)) is not None:
        quantities: dict[str, Quantity] = {**decision.quantities, **given}
        decision = replace(decision, quantities=quantities, usage_source=UsageSource.REPORTED, caveats=())
    if decision.billable and _read(standing, Aspect.VOID):
        decision = replace(decision, billable=False, reason=VOIDED)
    return decision


def apply_to_amounts(amounts: Amounts, standing: Standing) -> Amounts:
    """The amounts as operators want them; no price made a charge that is given. What is held stays held: its
    quantities come first.
    """
    given = _read(standing, Aspect.CHARGE)
    if given is None or amounts.state not in (RatingState.RATED, RatingState.UNPRICED):
        return amounts
    charge = parse_attos(given["charge"])
    currency = given["currency"]
    return replace(amounts, state=RatingState.RATED, price_version=None, charge_attos=charge, currency=currency)


def describe_standing(standing: Standing) -> list[str]:
    """Who said what and why, for the note of a record."""
    texts = {
        Aspect.CUSTOMER: "customer assigned",
        Aspect.QUANTITIES: "quantities given",
        Aspect.CHARGE: "charge given",
        Aspect.VOID: "voided",
    }
    return [
        f"{text} by {found.operator}: {found.reason}"
        for aspect, text in texts.items()
        if (found := standing.get(aspect)) is not None and found.value is not None
    ]


def _read(standing: Standing, aspect: Aspect) -> Any:
    found = standing.get(aspect)
    return None if found is None or found.value is None else json.loads(found.value)


Stack = tuple[Correction, ...]  # of one aspect of one event, the one that stands last


class CorrectionBook:
    """What stands, by event. Loaded once and kept in step with the table by whoever writes it.

    A correction that takes another back stands for nothing itself: it lets what was before stand again.
    """

    def __init__(self, corrections: Iterable[Correction] = ()) -> None:
        self._stacks: dict[str, dict[Aspect, Stack]] = {}
        self._standing: dict[str, Standing] = {}
        for correction in corrections:
            self.note(correction)

    @property
    def event_ids(self) -> KeysView[str]:
        """Events of which anything was ever said."""
        return self._stacks.keys()

    def find(self, event_id: str) -> Standing:
        """The correction that stands of each aspect of an event."""
        return self._standing.get(event_id, {})

    def list_stack(self, event_id: str, aspect: Aspect) -> Stack:
        """What stands and what would stand without it, the latest last."""
        return self._stacks.get(event_id, {}).get(aspect, ())

    def note(self, correction: Correction) -> None:
        """Have it stand, or what it takes back stand no longer."""
        stack = self.list_stack(correction.event_id, correction.aspect)
        stack = (*stack, correction) if correction.reverses is None else stack[:-1]
        self.restore(correction.event_id, {**self.save(correction.event_id), correction.aspect: stack})

    def save(self, event_id: str) -> Mapping[Aspect, Stack]:
        """All that is known of an event, for `restore`."""
        return self._stacks.get(event_id, {})

    def restore(self, event_id: str, stacks: Mapping[Aspect, Stack]) -> None:
        """Go back to what was known before a transaction failed."""
        self._stacks[event_id] = {aspect: stack for aspect, stack in stacks.items() if stack}
        self._standing[event_id] = {aspect: stack[-1] for aspect, stack in self._stacks[event_id].items()}


_COLUMNS = "event_id, aspect, value, batch, operator, reason, given_nanos, reverses"


def save_corrections(connection: sqlite3.Connection, corrections: Sequence[Correction]) -> None:
    """Append corrections."""
    connection.executemany(
        f"INSERT INTO correction ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (c.event_id, c.aspect.value, c.value, c.batch, c.operator, c.reason, c.given_nanos, c.reverses)
            for c in corrections
        ],
    )


def list_corrections(connection: sqlite3.Connection, *, batch: str | None = None) -> list[Correction]:
    """All corrections, or those of a batch, oldest first."""
    clause, values = ("", ()) if batch is None else ("WHERE batch = ?", (batch,))
    rows = connection.execute(f"SELECT {_COLUMNS} FROM correction {clause} ORDER BY correction_id", values)
    return [Correction(event, Aspect(aspect), *rest) for event, aspect, *rest in rows]


def list_standing(connection: sqlite3.Connection) -> list[tuple[str, Standing]]:
    """What stands, by event, for those that were ever corrected."""
    book = CorrectionBook(corrections := list_corrections(connection))
    return [(event_id, book.find(event_id)) for event_id in dict.fromkeys(item.event_id for item in corrections)]
