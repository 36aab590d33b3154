"""The booked form of usage: records, their reversals, and what became of a request. Owns the invariants of both."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from otelbill_collector.domain.ids import derive_event_id, derive_record_id
from otelbill_collector.domain.span_columns import Template
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


def digest_candidate(candidate: Candidate) -> bytes:
    """16 bytes over every field of the candidate; equal for the same span however often it is sent.

    The text below is every field's `repr` in the order of the class, quantities sorted: ledgers hold its digests, so it
    never changes. Runs of fields that many spans have alike are rendered once.
    """
    c = candidate
    names, verdict, origin = _render_runs(
        (c.dialect, c.role, c.detail, c.provider, c.model, c.request_model, c.operation),
        (c.failed, c.billable, c.reason, c.usage_source, c.caveats),
        (c.problem, c.emitter, c.service, c.traits),
        type(c.reason),
    )
    owner, place = _render_runs((c.service_tier, c.customer_id, c.project_id), (c.step, c.attempt))
    amounts = ", ".join([f"({unit!r}, {amount!r})" for unit, amount in sorted(c.quantities.items())])
    text = (
        f"{c.trace_id!r}\x1f{c.span_id!r}\x1f{c.parent_span_id!r}\x1f{c.started_nanos}\x1f{c.ended_nanos}\x1f{names}"
        f"\x1f{c.response_id!r}\x1f{owner}\x1f{c.run_id!r}\x1f{place}\x1f{c.explicit_event_id!r}\x1f{verdict}"
        f"\x1f[{amounts}]\x1f{origin}"
    )
    return hashlib.sha256(text.encode()).digest()[:16]


@lru_cache(maxsize=16_384)
def _render_runs(*runs: Any) -> list[str]:  # Any: tuples of fields, and a type
    """Runs of neighbouring fields as texts. The type tells a constant from the plain text that equals it: a reason that
    was read from a segment has another `repr`.
    """
    return ["\x1f".join(map(repr, run)) for run in runs if isinstance(run, tuple)]


def render_template(template: Template) -> list[str]:
    """The parts of that text which all spans of a template share, with the separators around them.

    They stand before the response id, the customer, the quantities and the service, and behind the service.
    """
    t = template
    runs = (
        (t.dialect, t.role, t.detail, t.provider, t.model, t.request_model, t.operation),
        (t.service_tier,),
        (t.attempt, None, t.failed, t.billable, t.reason, t.usage_source, t.caveats),
        (None, t.emitter),
        (t.traits,),
    )
    names, tier, verdict, emitter, traits = ("\x1f".join(map(repr, run)) for run in runs)
    return [f"\x1f{names}\x1f", f"\x1f{tier}\x1f", f"\x1f{verdict}\x1f[", f"]\x1f{emitter}\x1f", f"\x1f{traits}"]


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
