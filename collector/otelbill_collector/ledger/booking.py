"""From candidates to bookings: recognise repeats, decide each touched claim group, rate, and write the difference.

Whatever the order of arrival, what is booked in the end is a function of the set of spans: every new span makes its
whole group be decided again, and only the difference to what stands in the ledger is appended, as reversals and new
revisions. Owns that comparison; the rules of claims stand in `decode.claims`, those of prices in `domain.rating`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import Enum

from otelbill_collector.domain.alone import AmountsRow
from otelbill_collector.domain.bulk_ids import derive_span_events
from otelbill_collector.domain.identified_columns import IdentifiedColumns
from otelbill_collector.domain.ids import derive_claim_key
from otelbill_collector.domain.instants import DAY_NANOS
from otelbill_collector.domain.prices import list_counted
from otelbill_collector.domain.records import Amounts, UsageRecord, digest_candidate, identify_candidate
from otelbill_collector.domain.usage import Candidate, Decision, RatingState
from otelbill_collector.ledger.column_booking import ColumnRules, book_columns, list_candidates
from otelbill_collector.ledger.corrections import (
    CorrectionBook,
    apply_to_amounts,
    apply_to_decision,
    describe_standing,
)
from otelbill_collector.ledger.groups import GroupIndex
from otelbill_collector.ledger.journal import (
    Due,
    Placed,
    append_segment,
    find_price_version,
    remove_due,
    save_due,
    save_price_versions,
)
from otelbill_collector.ledger.large_groups import Joined, choose_due, set_aside
from otelbill_collector.ledger.members import ColumnSingles, Member, Row, Singles
from otelbill_collector.ledger.resolutions import Resolution, apply_resolution, is_open
from otelbill_collector.ledger.tombstones import is_pruned_event

KeysOf = Callable[[Candidate], tuple[bytes, ...]]
Decide = Callable[[Sequence[Candidate], int], Sequence[Decision]]
Rate = Callable[[Candidate, Decision], tuple[Amounts, Mapping[str, str]]]
_NOBODY = (Singles((), (), (), (), (), (), {}), 0)  # stands for an arrival until it is known
_NOT_AGAIN: Mapping[str, str | None] = {}  # events to rate again though nothing about them is new, and why


class Outcome(Enum):
    """What became of one candidate."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"  # same identity, other content
    PRUNED = "pruned"  # whether it is booked cannot be told any more


@dataclass(frozen=True, slots=True)
class Alone:
    """Decision and rating of spans that stand alone: `stands_alone` where a candidate with nobody else in its group
    bills what it says itself; `rate` their amounts, in order, and the content of the price versions they name.
    """

    stands_alone: Callable[[Candidate], bool]
    rate: Callable[[Sequence[Candidate]], tuple[Sequence[AmountsRow], Mapping[str, str]]]


@dataclass(frozen=True, slots=True)
class Rules:
    """What booking applies: the pure functions for claim keys, decisions and rating; what operators said."""

    claim_keys: KeysOf
    decide: Decide
    rate: Rate
    corrections: CorrectionBook
    resolutions: Mapping[str, Resolution] = field(default_factory=dict)  # by event id
    alone: Alone | None = None  # the short way for spans that stand alone; None: all go the long way
    columns: ColumnRules | None = None  # the way of spans in columns; None: there are none


@dataclass(slots=True)
class Booking:
    """What one transaction wrote: outcomes in the order of the arrivals, and the appended records."""

    outcomes: list[Outcome] = field(default_factory=list)
    arrived: list[Member | Row] = field(default_factory=list)  # the span, or the one it repeats, of each arrival
    singles: Singles | None = None
    columns: ColumnSingles | None = None
    rest: list[Candidate] = field(default_factory=list)  # spans in columns booked one by one, after the arrivals
    rest_requests: list[int] = field(default_factory=list)  # and the numbers of their requests
    decided: list[UsageRecord] = field(default_factory=list)  # the other records

    def list_members(self) -> Iterator[Member]:
        """The span of each arrival, or the one that it repeats or contradicts."""
        for item in self.arrived:
            yield item if isinstance(item, Member) else item[0].find_member(item[1])

    @property
    def records(self) -> list[UsageRecord]:
        """Every appended record."""
        alone = [part for part in (self.columns, self.singles) if part]
        return [*(record for part in alone for record in part.list_records()), *self.decided]


def collect_keys(candidate: Candidate, rules_keys: KeysOf) -> tuple[bytes, ...]:
    """Claim keys of a candidate, and the key of its explicit event id: two spans may carry one event."""
    keys = rules_keys(candidate)
    if candidate.explicit_event_id:
        keys = (*keys, derive_claim_key("event-key", candidate.explicit_event_id))
    return keys


def book_candidates(
    connection: sqlite3.Connection,
    index: GroupIndex,
    arrivals: Sequence[tuple[Candidate, int]],
    rules: Rules,
    now_nanos: int,
    columns: IdentifiedColumns | None = None,
) -> Booking:
    """Book (candidate, received time) pairs and spans in columns in a write transaction, whatever their order."""
    booking = Booking()
    keys = [collect_keys(candidate, rules.claim_keys) for candidate, _ in arrivals]
    if columns is not None:
        left = _book_columns(connection, index, columns, keys, rules, booking)
        arrivals = [*arrivals, *left]
        keys += [collect_keys(candidate, rules.claim_keys) for candidate, _ in left]
    linked = index.expect(connection, keys)
    alone = _find_alone(arrivals, keys, linked, rules, index.covered_from_nanos)
    booking.outcomes = [Outcome.ACCEPTED] * len(arrivals)
    booking.arrived = [_NOBODY] * len(arrivals)
    if alone:
        _gather_singles(arrivals, keys, alone, rules, booking)
    if booking.singles is not None:
        index.add_singles(booking.singles)
    fresh: list[Member] = []
    rest = [number for number, item in enumerate(booking.arrived) if item is _NOBODY]
    index.open_keys(keys[number] for number in rest)
    for number in rest:
        candidate, received_nanos = arrivals[number]
        arrived = Member(
            event_id=identify_candidate(candidate),
            candidate=candidate,
            content=digest_candidate(candidate),
            received_nanos=received_nanos,
            keys=keys[number],
            day=candidate.ended_nanos // DAY_NANOS,
        )
        outcome, member = _admit(connection, index, arrived)
        booking.outcomes[number] = outcome
        booking.arrived[number] = member
        if outcome is Outcome.ACCEPTED:
            fresh.append(member)
    starts, joined = set_aside(connection, index, fresh)
    _book_groups(connection, index, starts, rules, now_nanos, booking, joined=joined)
    return booking


def _book_columns(
    connection: sqlite3.Connection,
    index: GroupIndex,
    columns: IdentifiedColumns,
    keys: Sequence[tuple[bytes, ...]],
    rules: Rules,
    booking: Booking,
) -> list[tuple[Candidate, int]]:
    """Book what can be booked by columns; the other spans of the columns, to be booked one by one."""
    assert rules.columns is not None  # who has columns has rules for them
    told = rules.corrections.event_ids | rules.resolutions.keys()
    parted = book_columns(connection, index, columns, keys, rules.columns, told)
    rest = list(list_candidates(columns.spans, parted.rest))
    booking.columns = parted.singles
    booking.rest = [candidate for candidate, _ in rest]
    booking.rest_requests = columns.spans.request[parted.rest].tolist()
    return rest


def _find_alone(
    arrivals: Sequence[tuple[Candidate, int]],
    keys: Sequence[tuple[bytes, ...]],
    linked: Set[bytes],
    rules: Rules,
    from_nanos: int,
) -> list[int]:
    """Numbers of the arrivals that are their whole group, and bill what they say."""
    if rules.alone is None:
        return []
    stands_alone = rules.alone.stands_alone
    return [
        number
        for number, ((candidate, _), found) in enumerate(zip(arrivals, keys, strict=True))
        if stands_alone(candidate) and candidate.ended_nanos >= from_nanos and linked.isdisjoint(found)
    ]


def _gather_singles(
    arrivals: Sequence[tuple[Candidate, int]],
    keys: Sequence[tuple[bytes, ...]],
    alone: Sequence[int],
    rules: Rules,
    booking: Booking,
) -> None:
    """Decide and rate the arrivals that stand alone, unless an operator has said something of one."""
    candidates = [arrivals[number][0] for number in alone]
    events = derive_span_events([(candidate.trace_id, candidate.span_id) for candidate in candidates])
    told, resolved = rules.corrections.event_ids, rules.resolutions.keys()
    if told or resolved:
        names = [event.hex() for event in events]
        kept = [pair for pair, name in zip(zip(alone, events, strict=True), names, strict=True)
                if name not in told and name not in resolved]  # fmt: skip
        if not kept:
            return
        alone, events = [number for number, _ in kept], [event for _, event in kept]
        candidates = [arrivals[number][0] for number in alone]
    assert rules.alone is not None
    amounts, bodies = rules.alone.rate(candidates)
    singles = Singles(
        candidates=candidates,
        contents=[digest_candidate(candidate) for candidate in candidates],
        received=[arrivals[number][1] for number in alone],
        keys=[keys[number] for number in alone],
        events=events,
        amounts=amounts,
        price_bodies=bodies,
    )
    for place, number in enumerate(alone):
        booking.arrived[number] = (singles, place)
    booking.singles = singles


def book_due(
    connection: sqlite3.Connection, index: GroupIndex, dues: Sequence[Due], rules: Rules, now_nanos: int
) -> Booking:
    """Decide again groups whose time has come (a parent's residual after its grace); they are due no longer."""
    remove_due(connection, dues)
    starts: list[Member] = []
    for due in dues:
        starts.extend(index.find_members(connection, due.day, (due.key,)))
    booking = Booking()
    _book_groups(connection, index, starts, rules, now_nanos, booking)
    return booking


def book_members(
    connection: sqlite3.Connection,
    index: GroupIndex,
    members: Sequence[Member],
    rules: Rules,
    now_nanos: int,
    note: str | None = None,
) -> Booking:
    """Decide and rate again members that are already booked, and their groups, after an operator said something.

    `note` says why, for records whose amounts change though nothing that was said of the event stands.
    """
    booking = Booking()
    again = {member.event_id: note for member in members}
    _book_groups(connection, index, members, rules, now_nanos, booking, again=again)
    return booking


def _admit(connection: sqlite3.Connection, index: GroupIndex, arrived: Member) -> tuple[Outcome, Member]:
    """The new member, or the one that it repeats or contradicts."""
    index.load_keys(connection, arrived.day, arrived.keys)
    known = index.find_event(arrived.event_id)
    if known is None and (key := _choose_wide_key(connection, index, arrived)) is not None:
        for day in index.list_days(connection, key):
            index.load_keys(connection, day, (key,))
        known = index.find_event(arrived.event_id)
    if known is not None:
        repeated = _is_repeat(known, arrived.candidate, arrived.content)
        return (Outcome.DUPLICATE if repeated else Outcome.CONFLICT), known
    if arrived.candidate.explicit_event_id and is_pruned_event(connection, arrived.keys[-1]):
        return Outcome.PRUNED, arrived
    index.add_member(arrived)
    return Outcome.ACCEPTED, arrived


def _choose_wide_key(connection: sqlite3.Connection, index: GroupIndex, arrived: Member) -> bytes | None:
    """The key under which an event must be looked for on every day, if any."""
    if arrived.candidate.explicit_event_id:
        return arrived.keys[-1]  # the retry of a job may come in another month
    # A retried span has the day of the first; one of another day whose trace may be stored has an id that was used.
    trace = arrived.keys[0]
    if index.may_be_stored(trace) and not index.find_members(connection, arrived.day, (trace,)):
        return trace
    return None


def _is_repeat(known: Member, candidate: Candidate, content: bytes) -> bool:
    """Same content; for an explicit event id the same usage, since another span may carry the retry."""
    if known.content == content:
        return True
    if not candidate.explicit_event_id:
        return False
    ours, theirs = candidate, known.candidate
    return (ours.quantities, ours.customer_id, ours.project_id) == (
        theirs.quantities,
        theirs.customer_id,
        theirs.project_id,
    )


def _book_groups(
    connection: sqlite3.Connection,
    index: GroupIndex,
    starts: Iterable[Member],
    rules: Rules,
    now_nanos: int,
    booking: Booking,
    *,
    again: Mapping[str, str | None] = _NOT_AGAIN,
    joined: Sequence[Joined] = (),
) -> None:
    done: set[str] = set()
    placed: list[Placed] = []
    dues: list[Due] = []
    alone = [part for part in (booking.columns, booking.singles) if part]
    price_bodies: dict[str, str] = {name: body for part in alone for name, body in part.price_bodies.items()}

    def book(group: Sequence[Member], context: Sequence[Member]) -> None:
        decisions = rules.decide([member.candidate for member in (*group, *context)], now_nanos)
        for member, decision in zip(group, decisions, strict=False):
            if decision.due_nanos is not None and decision.due_nanos > now_nanos:
                dues.append(Due(decision.due_nanos, member.day, member.keys[0]))
            if decision.due_nanos is not None:
                decision = replace(decision, due_nanos=None)
            placed.extend(_book_difference(connection, member, decision, rules, price_bodies, again))

    for start in starts:
        if start.event_id in done:
            continue
        group = [start] if index.is_alone(start) else index.close_group(connection, start)
        if len(group) > 1:
            done.update(member.event_id for member in group)
        book(group, ())
    for members, ancestors, size in joined:
        members = [member for member in members if member.event_id not in done]  # not if decided with the whole
        if members:
            book(members, ancestors)
            dues.append(Due(choose_due(size, now_nanos), members[0].day, members[0].keys[0]))
    if placed or alone:
        save_price_versions(connection, price_bodies)
        append_segment(connection, placed, now_nanos, alone)
    save_due(connection, dues)
    booking.decided.extend(item.record for item in placed)


def _book_difference(
    connection: sqlite3.Connection,
    member: Member,
    decision: Decision,
    rules: Rules,
    price_bodies: dict[str, str],
    again: Mapping[str, str | None],
) -> Iterable[Placed]:
    """What must be appended so that `decision` is in force: nothing, a first booking, or a reversal and a revision."""
    event_id, before = member.event_id, member.booked
    decision, note = _apply_operator(event_id, decision, rules)
    same = before is not None and before.decision == decision
    if same and before is not None and before.amounts.state is not RatingState.UNPRICED and event_id not in again:
        return
    amounts, bodies = rules.rate(member.candidate, decision)
    amounts = apply_to_amounts(amounts, rules.corrections.find(event_id))
    if same and before is not None:
        if event_id not in again and amounts.state is RatingState.UNPRICED:
            return
        if _are_equal(amounts, before.amounts) and _are_counted_alike(connection, amounts, bodies, before.amounts):
            return
        note = note or again.get(event_id, "a price was found")
    note = note or again.get(event_id)
    price_bodies.update(bodies)
    if before is not None:
        yield Placed(replace(before, sign=-1, note=note), member.day, member.keys)
    record = UsageRecord(
        event_id=event_id,
        revision=0 if before is None else before.revision + 1,
        sign=1,
        content=member.content,
        received_nanos=member.received_nanos,
        candidate=member.candidate,
        decision=decision,
        amounts=amounts,
        note=note,
    )
    member.booked = record
    yield Placed(record, member.day, member.keys)


def _are_equal(one: Amounts, other: Amounts) -> bool:
    """Equal in money, whatever the price version is called."""
    return replace(one, price_version=None) == replace(other, price_version=None)


def _are_counted_alike(
    connection: sqlite3.Connection, amounts: Amounts, bodies: Mapping[str, str], before: Amounts
) -> bool:
    """Whether the same period charges, and as many credits, count both: their money does not tell."""
    version, former = amounts.price_version, before.price_version
    if version == former or amounts.state is not RatingState.RATED:
        return True
    body = find_price_version(connection, former) if former else None
    return list_counted(bodies[version] if version else None) == list_counted(body)


def _apply_operator(event_id: str, decision: Decision, rules: Rules) -> tuple[Decision, str | None]:
    """The decision as operators want it, and the note that says who and why."""
    standing, resolution = rules.corrections.find(event_id), rules.resolutions.get(event_id)
    if not standing and resolution is None:
        return decision, None
    notes = describe_standing(standing)
    if resolution is not None and is_open(decision):
        decision = apply_resolution(decision, resolution)
        notes.append(f"usage given by {resolution.operator}: {resolution.reason}")
    return apply_to_decision(decision, standing), "; ".join(notes) or None
