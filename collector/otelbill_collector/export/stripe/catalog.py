"""Plan and apply: the meter and the price a bill needs. Creates what is absent; never changes or deletes anything.

Owns the desired objects and their comparison with Stripe's; does not own what is sent to the meter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from otelbill_collector.export.stripe.ports import Meter, Price, StripeBooks, StripeProblem
from otelbill_collector.export.stripe.settings import MeteringMode, StripeSettings

# fmt: off
# Digits after the point of a currency's minor unit; two where a currency is in neither row. Source: Stripe's list.
_ZERO_DECIMAL = frozenset({
    "bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "ugx", "vnd", "vuv", "xaf", "xof", "xpf",
})
_THREE_DECIMAL = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
# fmt: on


class Change(StrEnum):
    """What apply would do about an object."""

    CREATE = "create"
    UNCHANGED = "unchanged"
    CONFLICT = "conflict"  # it exists and cannot work; a person must decide


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One object: `kind` is meter or price, `key` its event name or lookup key."""

    kind: str
    key: str
    change: Change
    detail: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What apply would do. Exit code 2 of `otelbill stripe plan` means `pending`."""

    livemode: bool
    items: tuple[PlanItem, ...]

    @property
    def pending(self) -> bool:
        """Whether anything would be created or is in conflict."""
        return any(item.change is not Change.UNCHANGED for item in self.items)


class CatalogConflict(StripeProblem):
    """Something exists at Stripe under our name that cannot work. Nothing was created."""


def find_micro_price(currency: str) -> Decimal:
    """What one micro-unit of a currency costs in its minor units: 0.0001 cents for usd, 0.000001 yen for jpy."""
    digits = 0 if currency in _ZERO_DECIMAL else 3 if currency in _THREE_DECIMAL else 2
    return Decimal(1).scaleb(digits - 6)


def plan_catalog(books: StripeBooks, settings: StripeSettings, *, units: Iterable[str] = ()) -> Plan:
    """Compare Stripe with what these settings need; creates nothing. `units` are the units metered in units mode."""
    names = list_event_names(settings, units)
    items = [_plan_meter(books.find_meter(name), name, settings) for name in names]
    if settings.mode is MeteringMode.MONEY:
        meter = books.find_meter(settings.event_name)
        items.append(_plan_price(books.find_price(settings.event_name), meter, settings))
    return Plan(settings.livemode, tuple(items))


def apply_catalog(books: StripeBooks, settings: StripeSettings, *, units: Iterable[str] = ()) -> Plan:
    """Create what is absent and return the plan that was carried out; again has no effect. Raises CatalogConflict."""
    plan = plan_catalog(books, settings, units=units)
    conflicts = [item for item in plan.items if item.change is Change.CONFLICT]
    if conflicts:
        raise CatalogConflict("; ".join(f"{item.kind} {item.key}: {item.detail}" for item in conflicts))
    for item in plan.items:
        if item.change is Change.CREATE and item.kind == "meter":
            books.create_meter(
                _desire_meter(item.key, settings),
                display_name=_name_meter(item.key, settings),
                idempotency_key=_derive_key(settings, item),
            )
    for item in plan.items:
        if item.change is Change.CREATE and item.kind == "price":
            meter = books.find_meter(settings.event_name)
            assert meter is not None, "the meter was created above"
            books.create_price(
                _desire_price(settings, meter.meter_id),
                product_name=f"AI usage ({settings.currency.upper()})",
                idempotency_key=_derive_key(settings, item),
            )
    return plan


def list_event_names(settings: StripeSettings, units: Iterable[str]) -> list[str]:
    """Event names of the meters these settings send to."""
    if settings.mode is MeteringMode.MONEY:
        return [settings.event_name]
    return [settings.name_unit_meter(unit) for unit in units]


def _desire_meter(event_name: str, settings: StripeSettings) -> Meter:
    return Meter("", event_name, True, "sum", settings.customer_key, settings.value_key)


def _desire_price(settings: StripeSettings, meter_id: str) -> Price:
    amount = find_micro_price(settings.currency)
    return Price("", settings.event_name, True, settings.currency, amount, meter_id)


def _name_meter(event_name: str, settings: StripeSettings) -> str:
    if settings.mode is MeteringMode.MONEY:
        return f"otelbill: charges in millionths of {settings.currency.upper()}"
    return f"otelbill: {event_name.removeprefix(settings.unit_prefix).replace('_', ' ')}"


def _plan_meter(found: Meter | None, event_name: str, settings: StripeSettings) -> PlanItem:
    if found is None:
        return PlanItem("meter", event_name, Change.CREATE, "sum of values by customer")
    wrong = []
    if not found.active:
        wrong.append("it is deactivated; reactivate it in the dashboard")
    if found.formula != "sum":
        wrong.append(f"it aggregates by {found.formula}, not sum")
    if (found.customer_key, found.value_key) != (settings.customer_key, settings.value_key):
        wrong.append(f"its payload keys are {found.customer_key} and {found.value_key}")
    if wrong:
        remedy = "; a meter cannot be changed: choose another stripe.event_name" if found.active else ""
        return PlanItem("meter", event_name, Change.CONFLICT, "; ".join(wrong) + remedy)
    return PlanItem("meter", event_name, Change.UNCHANGED, found.meter_id)


def _plan_price(found: Price | None, meter: Meter | None, settings: StripeSettings) -> PlanItem:
    key, amount = settings.event_name, find_micro_price(settings.currency)
    if found is None:
        text = f"{amount:f} minor units of {settings.currency} a micro-unit, metered monthly, with its product"
        return PlanItem("price", key, Change.CREATE, text)
    same = found.active and found.currency == settings.currency and found.unit_amount == amount
    if same and meter is not None and found.meter_id == meter.meter_id:
        return PlanItem("price", key, Change.UNCHANGED, found.price_id)
    detail = (
        f"price {found.price_id} has {found.unit_amount} {found.currency} on meter {found.meter_id}, "
        f"active {found.active}; needed is {amount:f} {settings.currency}; free its lookup key in the dashboard"
    )
    return PlanItem("price", key, Change.CONFLICT, detail)


def _derive_key(settings: StripeSettings, item: PlanItem) -> str:
    """The same step has the same Idempotency-Key, so an interrupted apply may be run again."""
    text = "\n".join((settings.account, str(settings.livemode), settings.currency, item.kind, item.key, item.detail))
    return "ob1-apply-" + hashlib.sha256(text.encode()).hexdigest()[:40]
