"""One authenticated request as the endpoints see it, and what an endpoint gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from otelbill_collector.testing.stripe.errors import Json
from otelbill_collector.testing.stripe.store import Change


class CustomerCheck(StrEnum):
    """When an unknown customer of a meter event is noticed; no source settles what Stripe does on v1."""

    SYNC = "sync"  # 400 at once
    ASYNC = "async"  # 200, and the event fails later without counting
    OFF = "off"  # any customer counts


class LaneLock(StrEnum):
    """The answer to a second meter event of one customer and meter while the first is in flight."""

    OFF = "off"
    CONFLICT = "409"
    LOCK_TIMEOUT = "429"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Switches for what differs between accounts, or is not documented."""

    customer_check: CustomerCheck = CustomerCheck.SYNC
    lane_lock: LaneLock = LaneLock.OFF
    whole_values_only: bool = False  # documents disagree whether decimals are taken
    dedupe_seconds: int = 24 * 3600  # Stripe promises at least this
    requests_per_second: int | None = None  # of the injected clock; more get a 429 with its reason
    latency_seconds: float = 0.0  # before each commit, so that requests of one lane can overlap
    summary_lag_seconds: int = 0  # events younger than this are not in summaries yet


@dataclass(frozen=True, slots=True)
class Call:
    """`scope` names account and mode ("self/test"); `ids` are the path's variable parts; `now` is in Unix seconds."""

    scope: str
    livemode: bool
    path: str
    ids: tuple[str, ...]
    params: Json
    now: int
    request_id: str
    idempotency_key: str | None
    behaviour: Behaviour

    def key(self, object_id: str | int) -> str:
        """The row key of an object in this account and mode."""
        return f"{self.scope}/{object_id}"

    def expands(self, name: str) -> bool:
        """Whether the caller asked for a field that is left out by default."""
        return name in self.params.get("expand", [])


@dataclass(frozen=True, slots=True)
class Outcome:
    """A successful answer and what it changes."""

    body: Json
    changes: list[Change] = field(default_factory=list)
