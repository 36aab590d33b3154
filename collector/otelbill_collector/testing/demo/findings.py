"""What a demo run came to: sums by customer, what was not billed, and the three books side by side.

Owns the values and the verdicts on them; reads nothing and prints nothing. Amounts are decimals of the currency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

Json = dict[str, Any]  # answers of the sidecar's API

MICROS = Decimal(1_000_000)
TOKEN_UNITS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True)
class CustomerTotals:
    """One customer's usage. `tokens` by unit; `other` by unit as decimal text; `cost` is what providers charge."""

    customer: str
    calls: int
    tokens: Mapping[str, int]
    other: Mapping[str, str]
    cost: Decimal
    charge: Decimal

    @property
    def margin(self) -> Decimal:
        """Charge less cost."""
        return self.charge - self.cost


@dataclass(frozen=True, slots=True)
class ModelBooks:
    """One model's answered calls, as the provider counted them and as the ledger billed them."""

    model: str
    provider_calls: int
    provider_tokens: Mapping[str, int]
    ledger_calls: int
    ledger_tokens: Mapping[str, int]

    @property
    def equal(self) -> bool:
        """Whether both agree on every call and every token."""
        same = all(self.provider_tokens.get(unit, 0) == self.ledger_tokens.get(unit, 0) for unit in TOKEN_UNITS)
        return same and self.provider_calls == self.ledger_calls


@dataclass(frozen=True, slots=True)
class NotBilled:
    """Something that happened and was not charged. `held` may still be, once its usage is known."""

    what: str
    count: int
    why: str
    held: bool = False


@dataclass(frozen=True, slots=True)
class StripeEvent:
    """A meter event as it was sent; `value` in millionths of the currency, the window in RFC 3339."""

    identifier: str
    customer: str
    window_start: str
    window_end: str
    value: int
    state: str


@dataclass(frozen=True, slots=True)
class StripeLane:
    """One customer at Stripe, in millionths of the currency. `charge` comes from the usage records, exactly;
    `intended` are whole millionths sent as meter events; `carry` is what is left of the last one.
    """

    customer: str
    stripe_customer: str
    charge: Decimal
    booked: Decimal
    intended: int
    carry: Decimal
    stripe: Decimal

    @property
    def equal(self) -> bool:
        """Whether records, outbox and Stripe agree to the last millionth, and the rest is known exactly."""
        return self.charge == self.booked == self.intended + self.carry and self.stripe == self.intended


@dataclass(frozen=True, slots=True)
class Findings:
    """All of it. `records` are those of `shown_run`, for a look at one request."""

    customers: tuple[CustomerTotals, ...]
    models: tuple[ModelBooks, ...]
    not_billed: tuple[NotBilled, ...]
    events: tuple[StripeEvent, ...]
    lanes: tuple[StripeLane, ...]
    differences: tuple[str, ...]
    shown_run: str
    records: tuple[Json, ...] = field(repr=False)

    @property
    def checks(self) -> dict[str, bool]:
        """Every verdict by name; the demo has succeeded when all hold."""
        return {
            "provider_and_ledger_equal": bool(self.models) and all(books.equal for books in self.models),
            "ledger_and_stripe_equal": bool(self.lanes)
            and not self.differences
            and all(lane.equal for lane in self.lanes),
        }

    def to_json(self) -> Json:
        """JSON values; amounts as decimal text."""
        return {
            "customers": [
                {
                    "customer": totals.customer,
                    "calls": totals.calls,
                    "tokens": dict(totals.tokens),
                    "other": dict(totals.other),
                    "cost": f"{totals.cost:f}",
                    "charge": f"{totals.charge:f}",
                    "margin": f"{totals.margin:f}",
                }
                for totals in self.customers
            ],
            "models": [
                {
                    "model": books.model,
                    "provider": {"calls": books.provider_calls, **books.provider_tokens},
                    "ledger": {"calls": books.ledger_calls, **books.ledger_tokens},
                    "equal": books.equal,
                }
                for books in self.models
            ],
            "not_billed": [
                {"what": item.what, "count": item.count, "why": item.why, "held": item.held} for item in self.not_billed
            ],
            "stripe_events": [
                {
                    "identifier": event.identifier,
                    "customer": event.customer,
                    "window_start": event.window_start,
                    "window_end": event.window_end,
                    "value": event.value,
                    "state": event.state,
                }
                for event in self.events
            ],
            "stripe": [
                {
                    "customer": lane.customer,
                    "stripe_customer": lane.stripe_customer,
                    "charge_micros": f"{lane.charge:f}",
                    "sent_micros": lane.intended,
                    "carried_micros": f"{lane.carry:f}",
                    "stripe_micros": f"{lane.stripe:f}",
                    "equal": lane.equal,
                }
                for lane in self.lanes
            ],
            "differences": list(self.differences),
            "checks": self.checks,
        }
