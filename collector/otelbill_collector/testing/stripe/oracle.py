"""The truth about what the local Stripe took: every committed event, and exact sums to compare a ledger with."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from otelbill_collector.testing.stripe.errors import Json
from otelbill_collector.testing.stripe.events import TABLE as EVENTS
from otelbill_collector.testing.stripe.store import Store
from otelbill_collector.testing.stripe.summaries import add_exact

_HOUR = 3600


@dataclass(frozen=True, slots=True)
class HourSum:
    """Exact sum of the counted events of one meter and customer in the UTC hour that starts at `hour`, Unix seconds."""

    scope: str
    event_name: str
    customer: str
    hour: int
    value: Decimal
    events: int

    def to_json(self) -> Json:
        """The same as a JSON object; the value is decimal text."""
        return {
            "scope": self.scope,
            "event_name": self.event_name,
            "customer": self.customer,
            "hour": self.hour,
            "value": format(self.value, "f"),
            "events": self.events,
        }


def list_events(store: Store) -> list[Json]:
    """Every event ever taken, in the order of receipt, with `status` counted, cancelled or failed."""
    return sorted(store.iter_all(EVENTS), key=lambda row: int(row["sequence"]))


def sum_hours(store: Store) -> list[HourSum]:
    """Sums by account and mode, meter, customer and hour, in that order."""
    totals: dict[tuple[str, str, str, int], tuple[Decimal, int]] = {}
    for row in list_events(store):
        if row["status"] == "counted":
            key = (row["scope"], row["event_name"], row["customer"], row["timestamp"] - row["timestamp"] % _HOUR)
            value, events = totals.get(key, (Decimal(0), 0))
            totals[key] = (add_exact((value, row["value"])), events + 1)
    return [HourSum(*key, value, events) for key, (value, events) in sorted(totals.items())]
