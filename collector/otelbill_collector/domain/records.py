"""The booked form of usage: records, their reversals, and what became of a request. Owns the invariants of both."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from operator import attrgetter

from otelbill_collector.domain.ids import derive_event_id, derive_record_id
from otelbill_collector.domain.usage import Candidate, Decision, RatingState


class InvariantViolation(AssertionError):
    """The books do not balance. Never caught: nothing may be stored past this point."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """What rating made of a decision. Amounts are attos of `currency`; None means not known, never zero."""

    state: RatingState
    price_version: str | None = None
    cost_attos: int | None = None
    charge_attos: int | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One booking of one event: revision n of what it bills (`sign` +1), or the reversal of that booking (`sign` -1).

    Records are never edited. A correction is a reversal that names what it corrects, followed by the next revision.
    """

    event_id: str
    revision: int
    sign: int
    content: bytes  # 16-byte digest of the candidate: same id and content is a duplicate, other content a conflict
    received_nanos: int
    candidate: Candidate
    decision: Decision
    amounts: Amounts
    note: str | None = None  # who corrected it and why, for operator corrections

    @property
    def record_id(self) -> str:
        return derive_record_id(self.event_id, self.revision, "usage" if self.sign > 0 else "reversal")

    @property
    def corrects(self) -> str | None:
        """Id of the record that this one reverses, or that the reversal before it reversed."""
        if self.sign < 0:
            return derive_record_id(self.event_id, self.revision, "usage")
        return derive_record_id(self.event_id, self.revision - 1, "usage") if self.revision else None

    @property
    def event_nanos(self) -> int:
        """When the usage happened: the end of the span, when the provider's answer (and its usage) was complete."""
        return self.candidate.ended_nanos


_FIELDS = tuple(spec.name for spec in fields(Candidate))
_FORM = "\x1f".join(("%r",) * len(_FIELDS))
_QUANTITIES = _FIELDS.index("quantities")
_read_fields = attrgetter(*_FIELDS)


def digest_candidate(candidate: Candidate) -> bytes:
    """16 bytes over every field of the candidate; equal for the same span however often it is sent."""
    values = list(_read_fields(candidate))
    values[_QUANTITIES] = sorted(candidate.quantities.items())
    return hashlib.sha256((_FORM % tuple(values)).encode()).digest()[:16]


def identify_candidate(candidate: Candidate) -> str:
    """The event id of a candidate."""
    return derive_event_id(candidate.trace_id, candidate.span_id, candidate.explicit_event_id)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of every span of one request. There is no column for spans that got lost.

    `ignored` counts spans that say nothing of usage (plain HTTP spans); everything else is one of the other four.
    """

    spans: int
    ignored: int
    accepted: int
    duplicate: int
    dead_lettered: int

    def __post_init__(self) -> None:
        if self.spans != self.ignored + self.accepted + self.duplicate + self.dead_lettered:
            raise InvariantViolation(f"span count does not balance: {self}")


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that can never be accepted. The sender is told why; nothing of it is stored."""

    reason: str


class Refused(Exception):
    """Not taken now; the sender should retry. The message says why."""


Answer = Receipt | Rejection


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A span that no rule can process: kept whole in its allow-listed form, with the reason, replayable."""

    letter_id: str
    received_nanos: int
    code: str
    field: str
    value: str
    hint: str
    trace_id: bytes
    span_id: bytes
    body: bytes  # ExportTraceServiceRequest with this one span, allow-listed attributes only
