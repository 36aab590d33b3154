"""Settings of the Stripe exporter, checked when made. Owns their meaning and defaults; does not read files or the
environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from otelbill_collector.domain.instants import MINUTE_NANOS, NANOS
from otelbill_collector.domain.windows import require_window_length

API_BASE = "https://api.stripe.com"
METER_API_BASE = "https://meter-events.stripe.com"
SANDBOX_RATE = 20  # 80 % of the 25 calls a second of a sandbox
LIVE_RATE = 800  # 80 % of the 1,000 meter events a second of a live account

_LIVE_PREFIXES = ("sk_live_", "rk_live_")
_TEST_PREFIXES = ("sk_test_", "rk_test_")


class MeteringMode(StrEnum):
    """What Stripe is told: rated money on one meter, or raw units on a meter each."""

    MONEY = "money"
    UNITS = "units"


class StripeSettingsError(ValueError):
    """A Stripe setting has no usable value. The message names the setting, the value and the remedy."""


@dataclass(frozen=True, slots=True)
class StripeSettings:
    """How usage reaches one Stripe account. Raises StripeSettingsError for values that cannot work.

    `account` names the Stripe account in identifiers and must not change while the ledger lives; the mode, live or
    test, is read from the key. `customers` maps our customer ids to `cus_...`; an id that starts with `cus_` maps to
    itself. `meters` maps units to event names; a unit that is not in it goes by `unit_prefix` and its name.
    `rate_per_second` of 0 means 20 for a test key and 800 for a live one; `run_max` of 0
    means ten seconds' worth of calls in one run.
    """

    api_key: str = field(repr=False)
    api_base: str = API_BASE
    meter_api_base: str = METER_API_BASE
    account: str = "default"
    mode: MeteringMode = MeteringMode.MONEY
    event_name: str = "otelbill_charge_usd_micro"
    currency: str = "usd"
    unit_prefix: str = "otelbill_"
    meters: Mapping[str, str] = field(default_factory=dict)
    customer_key: str = "stripe_customer_id"
    value_key: str = "value"
    window_nanos: int = 5 * MINUTE_NANOS
    grace_nanos: int = MINUTE_NANOS
    settle_nanos: int = 30 * MINUTE_NANOS
    customers: Mapping[str, str] = field(default_factory=dict)
    rate_per_second: int = 0
    workers: int = 4
    batch_max: int = 64
    run_max: int = 0
    network_retries: int = 0
    timeout_seconds: int = 30

    def __post_init__(self) -> None:
        if not self.api_key.startswith(_LIVE_PREFIXES + _TEST_PREFIXES):
            raise StripeSettingsError(
                f"stripe.api_key starts with {self.api_key[:8]!r}; use a secret or restricted key "
                "(sk_test_, rk_test_, sk_live_, rk_live_) from the Stripe dashboard"
            )
        for name, value in (("api_base", self.api_base), ("meter_api_base", self.meter_api_base)):
            if not value.startswith(("https://", "http://")) or value.endswith("/"):
                raise StripeSettingsError(f"stripe.{name} is {value!r}; write http(s)://host[:port], no trailing slash")
        try:
            require_window_length(self.window_nanos)
        except ValueError as error:
            raise StripeSettingsError(f"stripe.window: {error}") from error
        self._check_names()
        self._check_numbers()

    def _check_names(self) -> None:
        for name, value in (
            ("event_name", self.event_name),
            ("unit_prefix", self.unit_prefix),
            *((f"meters.{unit}", name) for unit, name in self.meters.items()),
        ):
            if not 0 < len(value) <= 100:
                raise StripeSettingsError(f"stripe.{name} is {value!r}; Stripe takes 1 to 100 characters")
        if len(self.currency) != 3 or not self.currency.isascii() or not self.currency.islower():
            raise StripeSettingsError(f"stripe.currency is {self.currency!r}; write three small letters such as usd")
        for customer_id, stripe_id in self.customers.items():
            if not stripe_id.startswith("cus_"):
                raise StripeSettingsError(
                    f"customers.{customer_id}.stripe is {stripe_id!r}; a Stripe customer id starts with cus_"
                )

    def _check_numbers(self) -> None:
        bounds = (
            ("grace", self.grace_nanos, 0, 24 * 3600 * NANOS),
            ("settle", self.settle_nanos, 0, 24 * 3600 * NANOS),
            ("rate_per_second", self.rate_per_second, 0, 10_000),
            ("workers", self.workers, 1, 64),
            ("batch_max", self.batch_max, 1, 1_000),
            ("run_max", self.run_max, 0, 1_000_000),
            ("network_retries", self.network_retries, 0, 10),
            ("timeout_seconds", self.timeout_seconds, 1, 300),
        )
        for name, value, lowest, highest in bounds:
            if not lowest <= value <= highest:
                raise StripeSettingsError(f"stripe.{name} is {value}; choose {lowest} to {highest}")

    @property
    def livemode(self) -> bool:
        """Whether the key moves real money."""
        return self.api_key.startswith(_LIVE_PREFIXES)

    @property
    def rate(self) -> int:
        """Calls a second to stay under."""
        return self.rate_per_second or (LIVE_RATE if self.livemode else SANDBOX_RATE)

    def name_unit_meter(self, unit: str) -> str:
        """Event name of the meter that counts a unit in units mode."""
        return self.meters.get(unit, self.unit_prefix + unit)

    def find_stripe_customer(self, customer_id: str) -> str | None:
        """The Stripe customer of one of ours, or None where nobody mapped it yet."""
        mapped = self.customers.get(customer_id)
        if mapped is None and customer_id.startswith("cus_"):
            return customer_id
        return mapped
