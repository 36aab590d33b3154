"""What a check of the ledger found, as values: findings, what they touch, and the report. Owns no checking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Progress = Callable[[str, int, int], None]  # step, done, of how many

FINDINGS_MAX = 200  # per check; a broken disk page can break thousands of rows
NAMES_MAX = 20  # customers, hours or events that one finding lists

RESTORE = (
    "put a backup back with `otelbill restore FILE --data-dir DIR --replace`; senders' retries fill in what came after"
)
REPLAY = "stop the sidecar and run `otelbill replay`: it builds this table again from the segments"


def ignore_progress(_step: str, _done: int, _total: int) -> None:
    """For callers without a terminal."""


@dataclass(frozen=True, slots=True)
class Touched:
    """Whose usage a finding concerns, in which hours, and how much: lists end with "..." where there is more."""

    customers: tuple[str, ...] = ()
    hours: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    event_count: int | None = None

    def describe(self) -> str:
        """One line; empty when nothing is known to be touched."""
        parts = []
        if self.customers:
            parts.append(f"customers {', '.join(self.customers)}")
        if self.hours:
            parts.append(f"hours {', '.join(self.hours)}")
        if self.event_count is not None:
            parts.append(f"{self.event_count} records")
        if self.events:
            parts.append(f"events {', '.join(self.events)}")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: in which check, table and row, how, what it touches, and what to do."""

    check: str
    table: str
    row_key: str
    problem: str
    remedy: str
    touched: Touched = Touched()

    def describe(self) -> str:
        """One line without the remedy."""
        place = f"{self.table} {self.row_key}".strip()
        touched = self.touched.describe()
        return f"{place}: {self.problem}" + (f" ({touched})" if touched else "")


@dataclass(slots=True)
class Report:
    """Everything a verification found and counted. `notes` say what was left out, and why."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    _suppressed: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def add(self, finding: Finding) -> None:
        """Add a finding; past FINDINGS_MAX of one check they are counted only."""
        found = sum(other.check == finding.check for other in self.findings)
        if found < FINDINGS_MAX:
            self.findings.append(finding)
        else:
            self._suppressed[finding.check] = self._suppressed.get(finding.check, 0) + 1

    def has(self, *checks: str) -> bool:
        """Whether one of these checks found something."""
        return any(finding.check in checks for finding in self.findings)

    def finish(self) -> Report:
        """Name what was counted only."""
        for check, count in sorted(self._suppressed.items()):
            self.notes.append(f"{check}: {count} more findings are not listed")
        self._suppressed.clear()
        return self

    @contextmanager
    def guard(self, check: str, table: str, remedy: str = RESTORE) -> Iterator[None]:
        """What cannot be read is a finding, whatever it breaks on the way: a verification never fails itself."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 damaged bytes raise anything: SQLite, Arrow, Unicode, arithmetic
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.add(Finding(check, table, "", f"cannot be read: {reason}", remedy))


def shorten_names(names: list[str]) -> tuple[str, ...]:
    """At most NAMES_MAX of them, and "..." for the rest."""
    return tuple(names[:NAMES_MAX]) + (("...",) if len(names) > NAMES_MAX else ())
