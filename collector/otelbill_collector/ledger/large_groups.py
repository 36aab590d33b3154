"""Large claim groups that few spans have joined: which are decided as a whole later, and when.

Deciding a whole group for every few spans of a long trace would cost its length squared. Spans that join a large group
are decided among themselves and their ancestors, and the whole group is marked due in the same transaction. Once it has
been decided, what is booked is what it would have been without the delay. Owns that policy, no rules of claims.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from otelbill_collector.domain.ids import derive_event_id
from otelbill_collector.domain.instants import NANOS
from otelbill_collector.ledger.groups import GroupIndex
from otelbill_collector.ledger.journal import Due, remove_due, save_due
from otelbill_collector.ledger.members import Member

LARGE_MEMBERS = 64  # up to here a group is decided whenever a span joins it
_SHARE = 8  # an eighth of its members at once is worth a decision of the whole: each then costs a few, whatever comes
_PAUSE_NANOS = 8 * NANOS
_PAUSE_PER_MEMBER_NANOS = NANOS // 1_000  # some twenty times what it takes to decide one
_ANCESTORS_MAX = 256
_POSTPONED_NANOS = 900 * NANOS  # all that fail within it are tried again at one instant


class Joined(NamedTuple):
    """Members that joined one large group, what they are decided with, and how large the group is."""

    members: list[Member]
    ancestors: list[Member]
    size: int


def set_aside(
    connection: sqlite3.Connection, index: GroupIndex, arrived: Iterable[Member]
) -> tuple[list[Member], list[Joined]]:
    """(members whose groups are decided now, members whose groups are so large that this has to wait)."""
    now: list[Member] = []
    by_trace: dict[bytes, list[Member]] = {}
    for member in arrived:
        if index.is_alone(member):
            now.append(member)
        else:
            by_trace.setdefault(member.keys[0], []).append(member)
    later: list[Joined] = []
    for members in by_trace.values():
        size = max(index.count_members(connection, member) for member in members)
        if size > LARGE_MEMBERS and len(members) * _SHARE < size:
            later.append(Joined(members, _list_ancestors(index, members), size))
        else:
            now.extend(members)
    return now, later


def choose_due(size: int, now_nanos: int) -> int:
    """When a group of this size is decided next: the same instant for all that joins it until then."""
    pause = _PAUSE_NANOS
    while pause < size * _PAUSE_PER_MEMBER_NANOS:
        pause *= 2
    return (now_nanos // pause + 1) * pause


def postpone_due(connection: sqlite3.Connection, due: Due, now_nanos: int) -> None:
    """Have a group decided later that cannot be decided now: it stays booked as it is until then."""
    remove_due(connection, [due])
    save_due(connection, [due._replace(due_nanos=(now_nanos // _POSTPONED_NANOS + 1) * _POSTPONED_NANOS)])


def _list_ancestors(index: GroupIndex, members: Sequence[Member]) -> list[Member]:
    """Spans above the members, in the same traces, that are neither members themselves nor too many."""
    seen = {member.event_id for member in members}
    found: list[Member] = []
    for member in members:
        span = member.candidate
        while span.parent_span_id and len(found) < _ANCESTORS_MAX:
            event_id = derive_event_id(span.trace_id, span.parent_span_id, None)
            above = index.find_event(event_id)
            if above is None or event_id in seen:
                break
            seen.add(event_id)
            found.append(above)
            span = above.candidate
    return found
