"""What retention has removed, checked: decisions follow each other, prove the rows that stay, have all their sums."""

from __future__ import annotations

import sqlite3

from otelbill_collector.ledger.evidence import list_hours
from otelbill_collector.ledger.findings import RESTORE, Finding, Report, Touched
from otelbill_collector.ledger.pruned_sums import list_steps
from otelbill_collector.ledger.pruning import digest_rows, list_rows
from otelbill_collector.ledger.tombstones import FILES, KEYS, Pruning, describe_absence, find_pruned, list_prunings

PRUNINGS = "prunings"


def check_prunings(connection: sqlite3.Connection, report: Report) -> None:
    """Every decision, its rows and sums. Adds a note that says what is gone: its content cannot be checked."""
    connection.execute("BEGIN")
    try:
        prunings = list_prunings(connection)
        _check_decisions(connection, prunings, report)
        _check_steps(connection, report)
        _check_marks(connection, prunings, report)
        absence = describe_absence(connection)
    finally:
        connection.execute("ROLLBACK")
    if absence is not None:
        report.notes.append(f"{PRUNINGS}: {absence}: its chain and sums are proven, its records cannot be looked at")


def _check_decisions(connection: sqlite3.Connection, prunings: list[Pruning], report: Report) -> None:
    after = 0
    for item in prunings:
        problem = None
        if item.segment_first != after + 1:
            problem = f"begins at segment {item.segment_first}, the one before ends at {after}"
        elif digest_rows(list_rows(connection, item.segment_first, item.segment_last)) != item.digest:
            problem = "the rows of its segments are not those that it was decided for"
        if problem is not None:
            report.add(_describe(item, problem))
        after = item.segment_last


def _check_steps(connection: sqlite3.Connection, report: Report) -> None:
    """Steps cover what has no body, without a gap, and can be read."""
    after, pruned = 0, find_pruned(connection)
    query = "SELECT segment_first, segment_last FROM pruning_step ORDER BY segment_last"
    for first, last in connection.execute(query).fetchall():
        if first != after + 1:
            problem = f"sums of segments {after + 1} to {first - 1} are missing"
            report.add(Finding(PRUNINGS, "pruning_step", str(last), problem, RESTORE))
        after = last
    if after != pruned:
        problem = f"sums reach to segment {after}, bodies are gone up to {pruned}"
        report.add(Finding(PRUNINGS, "pruning_step", str(after), problem, RESTORE))
    for _ in list_steps(connection):
        pass


def _check_marks(connection: sqlite3.Connection, prunings: list[Pruning], report: Report) -> None:
    pruned = find_pruned(connection)
    decided = max((item.segment_last for item in prunings), default=0)
    bounds = {"pruned": (pruned, decided), KEYS: (find_pruned(connection, KEYS), pruned)}
    bounds[FILES] = (find_pruned(connection, FILES), pruned)
    for name, (mark, most) in bounds.items():
        if not 0 <= mark <= most:
            problem = f"points at segment {mark}, it cannot be past {most}"
            report.add(Finding(PRUNINGS, "high_water", name, problem, RESTORE))


def _describe(item: Pruning, problem: str) -> Finding:
    name = f"segments {item.segment_first} to {item.segment_last}"
    try:
        touched = Touched(hours=list_hours(item.ended_min, item.ended_max), event_count=item.record_count)
    except (ValueError, OverflowError):
        touched = Touched()
    return Finding(PRUNINGS, "pruning", name, problem, RESTORE, touched)
