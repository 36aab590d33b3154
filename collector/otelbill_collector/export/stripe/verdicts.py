"""The verdict on one lane's hour: the ledger's intents against Stripe's sum. Pure; exact decimals only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from itertools import combinations

from otelbill_collector.domain.instants import NANOS, format_instant
from otelbill_collector.domain.intents import DELIVERED_STATES, DOUBTFUL_STATES, Intent, IntentState
from otelbill_collector.ledger.deliveries import DOUBT_AGE_MAX_NANOS

DOUBTFUL_MAX = 12  # past this many intents in doubt in one hour, only all or none of them is considered


class Verdict(StrEnum):
    """How an hour compares."""

    EQUAL = "equal"
    SHORT = "short"  # Stripe has less than was delivered
    OVER = "over"  # Stripe has more than this ledger can explain
    PENDING = "pending"  # not everything is sent, or Stripe may still be adding up


@dataclass(slots=True)
class Hour:
    """The ledger's side of one hour of (meter, Stripe customer), being collected."""

    meter: str
    stripe_customer_id: str
    start_seconds: int
    intents: list[Intent] = field(default_factory=list)
    open: Decimal = Decimal(0)
    customer_ids: set[str] = field(default_factory=set)  # ours; several may share a Stripe customer

    @property
    def lane(self) -> tuple[str, str]:
        """(meter, Stripe customer)."""
        return self.meter, self.stripe_customer_id


@dataclass(frozen=True, slots=True)
class Row:
    """One compared hour, in whole units. `confirmed` are ids of intents Stripe's sum proves; `lost` are intents it
    disproves and that may be sent as new revisions; `missing` are identifiers of intents it disproves.
    """

    meter: str
    stripe_customer_id: str
    start_seconds: int
    ledger: Decimal  # everything the ledger wants Stripe to have for this hour, decided or open
    delivered: int
    stripe: Decimal
    verdict: Verdict
    remedy: str
    confirmed: tuple[int, ...] = ()
    lost: tuple[Intent, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def difference(self) -> Decimal:
        """What Stripe has more (or, negative, less) than was delivered."""
        return self.stripe - self.delivered

    def describe(self) -> str:
        """One line: what, whose, when, and the three sums."""
        hour = format_instant(self.start_seconds * NANOS)
        return (
            f"{self.meter} of {self.stripe_customer_id}, hour {hour}: {self.verdict}, ledger {self.ledger:f}, "
            f"delivered {self.delivered}, Stripe {self.stripe:f}"
        )


def judge_hour(hour: Hour, stripe: Decimal, now_nanos: int, settle_nanos: int) -> Row:
    """Compare one hour. Stripe's sums lag, so less than expected is a difference only `settle_nanos` after sending."""
    delivered = [intent for intent in hour.intents if intent.state in DELIVERED_STATES]
    doubtful = [intent for intent in hour.intents if intent.state in DOUBTFUL_STATES]
    delivered_sum = sum(intent.value for intent in delivered)
    row = Row(
        meter=hour.meter,
        stripe_customer_id=hour.stripe_customer_id,
        start_seconds=hour.start_seconds,
        ledger=Decimal(sum(intent.value for intent in hour.intents)) + hour.open,
        delivered=delivered_sum,
        stripe=stripe,
        verdict=Verdict.PENDING,
        remedy="wait for the next run",
    )
    settled = _is_settled(hour, now_nanos, settle_nanos)
    present = _explain(stripe - delivered_sum, doubtful, settled=settled)
    if present is None:
        return _judge_unexplained(row, delivered, doubtful, settled=settled)
    absent = [intent for intent in doubtful if intent not in present]
    return _judge_explained(row, hour, [*delivered, *present], absent, settled=settled, now_nanos=now_nanos)


def _is_settled(hour: Hour, now_nanos: int, settle_nanos: int) -> bool:
    last = max((intent.last_sent_nanos or 0 for intent in hour.intents), default=0)
    return now_nanos - max(last, hour.start_seconds * NANOS) >= settle_nanos


def _explain(surplus: Decimal, doubtful: list[Intent], *, settled: bool) -> list[Intent] | None:
    """Which intents in doubt Stripe's surplus over the delivered ones proves, or None where no choice fits.

    Intents of the same value are alike, so a choice is good when every choice that fits holds the same values;
    otherwise it would be a guess. Before the sums have settled only "all" and "none" are considered.
    """
    if surplus == sum(intent.value for intent in doubtful):
        return doubtful
    if surplus == 0:
        return []
    if not settled or len(doubtful) > DOUBTFUL_MAX:
        return None
    fits: dict[tuple[int, ...], list[Intent]] = {}
    for size in range(1, len(doubtful)):
        for choice in combinations(doubtful, size):
            values = tuple(sorted(intent.value for intent in choice))
            if sum(values) == surplus:
                fits.setdefault(values, list(choice))
    return next(iter(fits.values())) if len(fits) == 1 else None


def _judge_unexplained(row: Row, delivered: list[Intent], doubtful: list[Intent], *, settled: bool) -> Row:
    if row.difference < 0 and not settled:
        return _with(row, Verdict.PENDING, "Stripe is still adding up; compare again after the settle delay")
    if row.difference < 0:
        return _with(
            row,
            Verdict.SHORT,
            "Stripe took these events and did not count them all; look at the account's meter error reports, correct "
            "the mapping or the meter, and bill the rest by an invoice item",
        )
    if not settled:
        return _with(row, Verdict.PENDING, "more than was answered for so far; compare again after the settle delay")
    return _with(row, Verdict.OVER, _advise_surplus(row.difference, delivered, doubtful))


def _advise_surplus(surplus: Decimal, delivered: list[Intent], doubtful: list[Intent]) -> str:
    if doubtful:
        names = ", ".join(intent.identifier for intent in doubtful)
        return f"no single choice of the events in doubt explains it; look each of them up at Stripe: {names}"
    twice = [intent.identifier for intent in delivered if intent.value == surplus]
    if twice:
        return (
            f"as if {' or '.join(twice)} had been counted twice; confirm it at Stripe, then book a negative adjustment"
        )
    return (
        "something else writes this meter and customer, or an older ledger did; find it, then correct with a negative "
        "adjustment"
    )


def _judge_explained(
    row: Row, hour: Hour, proven: list[Intent], absent: list[Intent], *, settled: bool, now_nanos: int
) -> Row:
    if absent and not settled:
        return _with(row, Verdict.PENDING, "sent without an answer; it is sent again by itself")
    confirmed = tuple(intent.intent_id for intent in proven if intent.state is not IntentState.CONFIRMED)
    lost = tuple(
        intent
        for intent in absent
        if intent.state is IntentState.UNKNOWN and now_nanos - (intent.doubt_nanos or 0) >= DOUBT_AGE_MAX_NANOS
    )
    refused = [intent for intent in absent if intent.state in (IntentState.REJECTED, IntentState.MISMATCH)]
    judged = replace(
        row,
        delivered=sum(intent.value for intent in proven),
        verdict=Verdict.EQUAL,
        remedy="",
        confirmed=confirmed,
        lost=lost,
        missing=tuple(intent.identifier for intent in absent),
    )
    if refused:
        names = ", ".join(intent.identifier for intent in refused)
        return _with(judged, Verdict.SHORT, f"Stripe refused {names}; see otelbill stripe status, then reissue")
    if absent or hour.open or any(intent.state is IntentState.PENDING for intent in hour.intents):
        return _with(judged, Verdict.PENDING, "not everything is sent yet; it goes out with the next runs")
    return judged


def _with(row: Row, verdict: Verdict, remedy: str) -> Row:
    return replace(row, verdict=verdict, remedy=remedy)
