"""The configuration as frozen values, complete with defaults. Secrets are left out of every repr.

Does not validate: what arrives here has passed `file_model` and the rate card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from otelbill_collector.domain.instants import DAY_NANOS, MINUTE_NANOS
from otelbill_collector.domain.periods import BillingCalendar
from otelbill_collector.domain.price_overrides import ProviderPrice
from otelbill_collector.domain.ratecard import AT_COST, RateCard
from otelbill_collector.domain.retention import RetentionPolicy
from otelbill_collector.domain.selectors import Membership

CostNames = Literal["otelbill", "gen_ai", "openinference", "langfuse"]
StripeMode = Literal["money", "units"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; IPv6 hosts are without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        """host:port, with brackets around an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Listen:
    """Addresses of the three listeners."""

    grpc: Address = Address("127.0.0.1", 4327)
    http: Address = Address("127.0.0.1", 4328)
    api: Address = Address("127.0.0.1", 4329)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what is taken from senders."""

    body_bytes: int = 16_777_216
    decompressed_bytes: int = 67_108_864
    spans_per_request: int = 100_000
    attributes_per_span: int = 1_024
    inflight_bytes: int = 268_435_456
    connections: int = 1_000
    waiting_calls: int = 1_000
    commit_linger_ms: int = 2
    future_seconds: int = 300
    group_keys: int = 400_000
    known_keys: int = 400_000_000


@dataclass(frozen=True, slots=True)
class Claims:
    """How spans that describe the same call are told apart."""

    grace_seconds: int = 60
    accept_estimates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Forward:
    """Spans go on to another OTLP endpoint, with their cost. `headers` are secrets."""

    endpoint: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    cost_names: tuple[CostNames, ...] = ("otelbill",)
    queue_spans: int = 100_000


@dataclass(frozen=True, slots=True)
class Stripe:
    """What is sent to Stripe: amounts (`money`) under one event name, or quantities (`units`) under one per unit."""

    api_key: str = field(repr=False)
    api_base: str = "https://api.stripe.com"
    mode: StripeMode = "money"
    event_name: str = "otelbill_charge_usd_micro"
    window_nanos: int = 5 * MINUTE_NANOS
    grace_nanos: int = MINUTE_NANOS
    rate_per_second: int = 0
    since_nanos: int = 0
    meters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Customer:
    """What is known of a customer outside telemetry."""

    stripe: str | None = None
    group: str | None = None
    contract: str | None = None
    time_zone: str | None = None
    anchor_day: int | None = None


@dataclass(frozen=True, slots=True)
class Billing:
    """Billing periods and invoices; `currency_digits` None means those of the currency."""

    time_zone: str = "UTC"
    anchor_day: int = 1
    grace_nanos: int = DAY_NANOS
    approve: bool = True
    currency_digits: int | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """How long evidence is kept (None: for ever), and whether only approved invoices' periods may lose it."""

    evidence: RetentionPolicy | None = None
    closed_only: bool = True


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set. `source` is the file it came from."""

    data_dir: Path = Path("otelbill-data")
    listen: Listen = field(default_factory=Listen)
    tokens: tuple[str, ...] = field(default=(), repr=False)
    limits: Limits = field(default_factory=Limits)
    claims: Claims = field(default_factory=Claims)
    forward: Forward | None = None
    stripe: Stripe | None = None
    customers: Mapping[str, Customer] = field(default_factory=dict)
    billing: Billing = field(default_factory=Billing)
    retention: Retention = field(default_factory=Retention)
    rate_card: RateCard = AT_COST
    provider_prices: tuple[ProviderPrice, ...] = ()
    source: Path | None = None

    def find_calendar(self, customer_id: str) -> BillingCalendar:
        """The billing calendar of a customer: its own settings, and the defaults where it has none."""
        own = self.customers.get(customer_id) or Customer()
        return BillingCalendar(own.time_zone or self.billing.time_zone, own.anchor_day or self.billing.anchor_day)

    def list_members(self) -> dict[str, Membership]:
        """Group and contract of each customer that has one."""
        members = {name: Membership(item.group, item.contract) for name, item in self.customers.items()}
        return {name: member for name, member in members.items() if member != Membership()}
