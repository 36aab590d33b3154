"""How long evidence is kept, as a policy over event time, and what may hold it longer. Owns no storage and no clock."""

from __future__ import annotations

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from otelbill_collector.domain.instants import DAY_NANOS, NANOS

# Stripe takes usage that is up to 35 days old, and spans that late are billed: what may still come in must find all
# that belongs to it. A day is left for clocks.
EVIDENCE_DAYS_MIN = 36
_POLICY = re.compile(r"([1-9][0-9]{0,4})(d|mo)", re.ASCII)
_EPOCH = date(1970, 1, 1)


class EvidencePruned(LookupError):
    """What was asked needs records that retention has removed. The message says which, when and by what policy."""


class InvalidPolicy(ValueError):
    """A policy that cannot be. The message says what to write."""


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Evidence is kept for so many days or calendar months (of UTC) after its event time. Raises InvalidPolicy."""

    text: str

    def __post_init__(self) -> None:
        match = _POLICY.fullmatch(self.text)
        if match is None:
            raise InvalidPolicy("is not a number of days or months, such as 400d or 13mo")
        if int(match[1]) * (1 if match[2] == "d" else 28) < EVIDENCE_DAYS_MIN:
            raise InvalidPolicy(
                f"is less than {EVIDENCE_DAYS_MIN} days, and spans up to 35 days late are billed, by Stripe too"
            )

    def find_floor(self, now_nanos: int) -> int:
        """The start of the UTC day before which events are older than the policy keeps them."""
        today = datetime.fromtimestamp(now_nanos // NANOS, UTC).date()
        count = int(self.text.rstrip("dmo"))
        first = _subtract_months(today, count) if self.text.endswith("mo") else today - timedelta(days=count)
        return (first - _EPOCH).days * DAY_NANOS


def _subtract_months(day: date, count: int) -> date:
    years, zero_based = divmod(day.year * 12 + day.month - 1 - count, 12)
    return date(years, zero_based + 1, min(day.day, monthrange(years, zero_based + 1)[1]))


@dataclass(frozen=True, slots=True)
class Holder:
    """Something that is not settled and needs the evidence from an event time on. `remedy` is what settles it."""

    kind: str
    from_nanos: int
    detail: str
    remedy: str
