"""Owns the frame: who pays, for which project, run, step and attempt, under one key of the OpenTelemetry context.
Does not own the blocks that put it there; those are `attribution` and `metered`.

The frame lives in the OpenTelemetry context, not in a variable of its own, so whatever carries that context
(asyncio, `ThreadingInstrumentor`) carries the frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from opentelemetry.context import Context, create_key, get_current, set_value

from otelbill import attributes

_KEY = create_key("otelbill.frame")


@dataclass(frozen=True, slots=True)
class Frame:
    """Who pays and for what. Immutable; `None` means not known, which the sidecar books to the suspense account."""

    customer: str | None = None
    project: str | None = None
    run: str | None = None
    step: str | None = None
    attempt: int | None = None
    span_attributes: dict[str, str | int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named: tuple[tuple[str, str | int | None], ...] = (
            (attributes.CUSTOMER_ID, self.customer),
            (attributes.PROJECT_ID, self.project),
            (attributes.RUN_ID, self.run),
            (attributes.STEP, self.step),
            (attributes.ATTEMPT, self.attempt),
        )
        found = {name: value for name, value in named if value is not None}
        found[attributes.SCHEMA] = attributes.SCHEMA_VERSION
        object.__setattr__(self, "span_attributes", found)


NO_FRAME = Frame()


class Entry(NamedTuple):
    """A frame in the context, with the block that put it there and the entry it covers."""

    frame: Frame
    owner: object
    outer: Entry | None


def find_entry(context: Context | None = None) -> Entry | None:
    """The entry in force in `context` (default: the current one)."""
    found = (get_current() if context is None else context).get(_KEY)
    return found if type(found) is Entry else None


def find_frame(context: Context | None = None) -> Frame | None:
    """The frame in force in `context` (default: the current one), or `None` outside every block."""
    entry = find_entry(context)
    return None if entry is None else entry.frame


def set_entry(entry: Entry | None, context: Context | None = None) -> Context:
    """A copy of `context` (default: the current one) in which `entry` is in force."""
    return set_value(_KEY, entry, context)


def holds_entry(entry: Entry | None, owner: object) -> bool:
    """Whether the chain from `entry` outwards has one that `owner` put there."""
    while entry is not None:
        if entry.owner is owner:
            return True
        entry = entry.outer
    return False


def without_entry(entry: Entry | None, owner: object) -> Entry | None:
    """The chain from `entry` without the innermost entry of `owner`."""
    if entry is None or entry.owner is owner:
        return None if entry is None else entry.outer
    return Entry(entry.frame, entry.owner, without_entry(entry.outer, owner))
