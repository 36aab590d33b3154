"""Credit grants as values: what was given to a customer, for which usage, from when until when, and what it becomes.

Owns what makes a grant valid, its id and the order in which grants burn; `credits` burns them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.instants import MINUTE_NANOS, floor_slice, format_instant
from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.quantities import format_micros
from otelbill_collector.domain.ratecard import CREDITS
from otelbill_collector.domain.selectors import matches_pattern, normalize_model

# Credits know usage by the quarter of an hour: local midnight, and so a month's end, is on one in every time zone.
SLICE_NANOS = 15 * MINUTE_NANOS
PERCENT = 10_000  # percents are counted in ten-thousandths
WHOLE = 100 * PERCENT
_LATEST = 2**62


class InvalidGrant(ValueError):
    """The grant or void cannot be: the message names field, value and remedy. Nothing is written."""


class Origin(StrEnum):
    """Whether the customer paid for a grant."""

    PROMOTIONAL = "promotional"
    PAID = "paid"


class Measure(StrEnum):
    """What a grant is counted in: attos of a currency, or millionths of a unit."""

    MONEY = "money"
    UNITS = "units"


@dataclass(frozen=True, slots=True)
class Scope:
    """The usage that a grant may pay for; None is any. `*` in `model` stands for any characters."""

    project_id: str | None = None
    step: str | None = None
    model: str | None = None
    unit: str | None = None

    def covers(self, *, project_id: str, step: str, model: str, unit: str, in_credits: bool = False) -> bool:
        """True when usage of these names ('' where it has none) is inside. The unit `credits` is every unit that costs
        credits.
        """
        return (
            self.project_id in (None, project_id)
            and self.step in (None, step)
            and (self.unit in (None, unit) or (in_credits and self.unit == CREDITS))
            and (self.model is None or matches_pattern(normalize_model(self.model), model.lower()))
        )

    def render(self) -> dict[str, str]:
        """The names that are given."""
        given = {"project": self.project_id, "step": self.step, "model": self.model, "unit": self.unit}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Rollover:
    """What is left at expiry goes on, once, in a grant that ends at `until_nanos`: `percent_scaled` ten-thousandths of
    a percent of it, and at most `maximum` (attos or millionths, as the grant).
    """

    until_nanos: int
    percent_scaled: int = WHOLE
    maximum: int | None = None

    def find_amount(self, left: int) -> int:
        """How much of what is left goes on; a part of an atto or millionth does not."""
        share = left * self.percent_scaled // WHOLE
        return share if self.maximum is None else min(share, self.maximum)


@dataclass(frozen=True, slots=True)
class Grant:
    """`amount` of `asset` (a currency in attos, or a unit in millionths) for one customer, in force on [start, expiry).

    A lower `priority` burns first. `parent_id` is the grant whose rest this one is. Raises InvalidGrant.
    """

    customer_id: str
    measure: Measure
    asset: str
    amount: int
    start_nanos: int
    reason: str
    operator: str
    given_nanos: int
    origin: Origin = Origin.PROMOTIONAL
    priority: int = 0
    expiry_nanos: int | None = None
    scope: Scope = field(default_factory=Scope)
    rollover: Rollover | None = None
    parent_id: str | None = None
    grant_id: str = field(init=False)

    def __post_init__(self) -> None:
        if self.measure is Measure.UNITS and self.scope.unit != self.asset:
            object.__setattr__(self, "scope", _narrow_scope(self.scope, self.asset))
        _check_grant(self)
        object.__setattr__(self, "grant_id", _derive_id(self))

    @property
    def order(self) -> tuple[int, int, int, bool, int, str]:
        """The order of burning: units, then credits, then money; priority, soonest expiry, promotional, start, id."""
        expiry = _LATEST if self.expiry_nanos is None else self.expiry_nanos
        kind = 2 if self.measure is Measure.MONEY else 1 if self.asset == CREDITS else 0
        return (kind, self.priority, expiry, self.origin is Origin.PAID, self.start_nanos, self.grant_id)

    def format_amount(self, amount: int) -> str:
        """Decimal text of an amount of this grant."""
        return format_attos(amount) if self.measure is Measure.MONEY else format_micros(amount)


@dataclass(frozen=True, slots=True)
class Void:
    """A grant is worth nothing from `at_nanos` on: the beginning of the quarter of an hour in which this was said."""

    grant_id: str
    at_nanos: int
    reason: str
    operator: str
    given_nanos: int


def create_successor(parent: Grant, amount: int) -> Grant:
    """The grant that takes over what is left of another. Its id follows from the parent's, whatever is left."""
    assert parent.rollover is not None
    assert parent.expiry_nanos is not None
    return Grant(
        customer_id=parent.customer_id,
        measure=parent.measure,
        asset=parent.asset,
        amount=amount,
        start_nanos=parent.expiry_nanos,
        reason=f"rolled over from {parent.grant_id}: {parent.reason}",
        operator=parent.operator,
        given_nanos=parent.expiry_nanos,
        origin=parent.origin,
        priority=parent.priority,
        expiry_nanos=parent.rollover.until_nanos,
        scope=parent.scope,
        parent_id=parent.grant_id,
    )


def derive_successor_id(grant_id: str) -> str:
    """Id of the grant that takes over what is left of this one."""
    return digest_parts("credit-rollover", grant_id).hex()[:16]


def _narrow_scope(scope: Scope, unit: str) -> Scope:
    if scope.unit is not None:
        raise InvalidGrant(f"unit: a grant of {unit} pays for {unit}, not for {scope.unit}; leave the scope's unit out")
    return Scope(scope.project_id, scope.step, scope.model, unit)


def _derive_id(grant: Grant) -> str:
    """From what is given and why, not from who or when: the same command sent twice is the same grant."""
    if grant.parent_id is not None:
        return derive_successor_id(grant.parent_id)
    scope, rollover = grant.scope, grant.rollover
    parts = (
        *(grant.customer_id, grant.measure.value, grant.asset, grant.amount, grant.origin.value, grant.priority),
        *(grant.start_nanos, grant.expiry_nanos, grant.reason),
        *(scope.project_id, scope.step, scope.model, scope.unit),
        *((None,) * 3 if rollover is None else (rollover.until_nanos, rollover.percent_scaled, rollover.maximum)),
    )
    return digest_parts("credit-grant", *("" if part is None else f"={part}" for part in parts)).hex()[:16]


def _check_grant(grant: Grant) -> None:
    for name, text in (("customer", grant.customer_id), ("reason", grant.reason), ("operator", grant.operator)):
        if not text.strip():
            raise InvalidGrant(f"{name}: is empty; give one")
    if grant.amount <= 0:
        raise InvalidGrant(f"amount: {grant.format_amount(grant.amount)} is not more than zero; give what is granted")
    check_instant("from", grant.start_nanos)
    if grant.expiry_nanos is None:
        if grant.rollover is not None:
            raise InvalidGrant("rollover: a grant without --expires never rolls over; give it an expiry")
        return
    check_instant("expires", grant.expiry_nanos)
    if grant.expiry_nanos <= grant.start_nanos:
        start, expiry = format_instant(grant.start_nanos), format_instant(grant.expiry_nanos)
        raise InvalidGrant(f"expires: {expiry} is not after the start, {start}; it is the first instant out of force")
    if grant.rollover is not None:
        _check_rollover(grant.rollover, grant.expiry_nanos)


def _check_rollover(rollover: Rollover, expiry_nanos: int) -> None:
    check_instant("rollover-until", rollover.until_nanos)
    if rollover.until_nanos <= expiry_nanos:
        raise InvalidGrant(
            f"rollover-until: {format_instant(rollover.until_nanos)} is not after the expiry, "
            f"{format_instant(expiry_nanos)}; it is when what rolled over expires"
        )
    if not 0 < rollover.percent_scaled <= WHOLE:
        raise InvalidGrant("rollover-percent: is not more than 0 and at most 100; leave the rollover out for none")
    if rollover.maximum is not None and rollover.maximum <= 0:
        raise InvalidGrant("rollover-max: is not more than zero; leave the rollover out for none")


def check_instant(name: str, nanos: int) -> None:
    """Credits begin and end on quarters of an hour. Raises InvalidGrant."""
    if floor_slice(nanos, SLICE_NANOS) != nanos:
        earlier = format_instant(floor_slice(nanos, SLICE_NANOS))
        raise InvalidGrant(f"{name}: {format_instant(nanos)} is not on a quarter of an hour (UTC); give {earlier}")
