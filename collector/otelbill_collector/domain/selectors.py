"""Selectors: for whom, what and when an entry of the rate card holds. Owns matching, and which match is closer.

Does not know what an entry says (see `ratecard` and `charges`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from otelbill_collector.domain.instants import format_instant
from otelbill_collector.domain.prices import Json
from otelbill_collector.domain.providers import find_provider_id

# What senders call a tier that has no price of its own, once in small letters.
STANDARD_TIERS = frozenset(
    {"default", "standard", "auto", "on_demand", "on-demand", "ondemand", "standard_only", "none", "unspecified"}
)


class EventNames(NamedTuple):
    """What entries are matched against: the names on a usage event. A tuple, since it is the key of a hot cache.

    `group` and `contract` are the customer's, from the configuration.
    """

    provider: str | None = None
    model: str | None = None
    request_model: str | None = None
    service_tier: str | None = None
    customer_id: str | None = None
    step: str | None = None
    group: str | None = None
    contract: str | None = None


class Membership(NamedTuple):
    """What the configuration says of a customer that entries of a rate card may name."""

    group: str | None = None
    contract: str | None = None


class Rank(NamedTuple):
    """How close a match is; the greater one wins. Compared field by field in this order."""

    customer: bool
    contract: bool
    group: bool
    step: bool
    model_form: int  # 2 exact, 1 pattern, 0 any
    model_literals: int  # characters of a pattern that are not `*`
    model_answered: bool  # matches the model that answered, rather than the one that was asked for
    provider: bool
    service_tier: bool


@dataclass(frozen=True, slots=True)
class Selector:
    """For whom, what and when an entry holds. None matches everything; `*` in `model` stands for any characters.

    Models, providers and service tiers compare without regard to case, providers also across spellings (`azure` is
    `az.ai.openai`). [from_nanos, to_nanos) is half-open; None is without end on that side.
    """

    customer_id: str | None = None
    step: str | None = None
    model: str | None = None
    provider: str | None = None
    from_nanos: int | None = None
    to_nanos: int | None = None
    group: str | None = None
    contract: str | None = None
    service_tier: str | None = None

    def rank_match(self, names: EventNames) -> Rank | None:
        """How specific this entry is for an event, or None when it does not apply. The greatest rank wins."""
        if not self.matches_customer(names):
            return None
        if self.step is not None and self.step != names.step:
            return None
        if self.provider is not None and normalize_provider(self.provider) != normalize_provider(names.provider):
            return None
        if self.service_tier is not None and normalize_tier(self.service_tier) != normalize_tier(names.service_tier):
            return None
        model = _rank_model(self.model, names)
        if model is None:
            return None
        form, literals, answered = model
        return Rank(
            self.customer_id is not None,
            self.contract is not None,
            self.group is not None,
            self.step is not None,
            form,
            literals,
            answered,
            self.provider is not None,
            self.service_tier is not None,
        )

    def matches_customer(self, names: EventNames) -> bool:
        """True when the entry holds for this customer, whatever the usage is."""
        return (
            self.customer_id in (None, names.customer_id)
            and self.contract in (None, names.contract)
            and self.group in (None, names.group)
        )

    def covers(self, at_nanos: int) -> bool:
        """True when the instant is in [from, to)."""
        after_start = self.from_nanos is None or at_nanos >= self.from_nanos
        return after_start and (self.to_nanos is None or at_nanos < self.to_nanos)

    def list_names(self) -> dict[str, str]:
        """The names that are given, under the keys that a rate card has for them."""
        given = {
            "customer": self.customer_id,
            "contract": self.contract,
            "group": self.group,
            "step": self.step,
            "model": self.model,
            "provider": self.provider,
            "service_tier": self.service_tier,
        }
        return {key: value for key, value in given.items() if value is not None}

    def list_usage_names(self) -> dict[str, str]:
        """The same, normalized, without those that say who pays: what usage the entry is about."""
        names = self.identify()
        return {key: value for key, value in names.items() if key not in ("customer", "contract", "group")}

    def identify(self) -> dict[str, str]:
        """The names as they compare: two entries of equal names match the same events."""
        names = self.list_names()
        for key, normalize in (
            ("model", normalize_model),
            ("provider", normalize_provider),
            ("service_tier", normalize_tier),
        ):
            if key in names:
                names[key] = normalize(names[key]) or ""
        return names

    def render(self) -> dict[str, Json]:
        """The names and the start, for a price version. No end: giving an entry an end later changes no price."""
        shown: dict[str, Json] = {**self.list_names()}
        return shown if self.from_nanos is None else {**shown, "from": format_instant(self.from_nanos)}


def normalize_provider(provider: str | None) -> str | None:
    """One spelling of a provider; an unknown one as it is, in small letters."""
    return find_provider_id(provider) or (provider.strip().lower() if provider else None)


def normalize_tier(tier: str | None) -> str | None:
    """A service tier as it compares."""
    return tier.strip().lower() if tier else None


def normalize_model(model: str) -> str:
    """A model or pattern as it compares; `**` says no more than `*`."""
    name = model.lower()
    while "**" in name:
        name = name.replace("**", "*")
    return name


def matches_pattern(pattern: str, name: str) -> bool:
    """True when a name in small letters is what a normalized pattern describes."""
    head, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    *middle, tail = rest
    if not name.startswith(head) or len(name) < len(head) + len(tail):
        return False
    position, end = len(head), len(name) - len(tail)
    for part in middle:
        found = name.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return name.endswith(tail)


@lru_cache(maxsize=4_096)
def overlap_patterns(one: str, other: str) -> bool:
    """True when some name fits both normalized patterns."""
    reached = {(0, 0)}  # how much of each pattern has been used, after every possible name so far
    waiting = [(0, 0)]
    while waiting:
        left, right = waiting.pop()
        if left == len(one) and right == len(other):
            return True
        a, b = one[left : left + 1], other[right : right + 1]
        steps = set()
        if a == "*":
            steps |= {(left + 1, right), (left, right + 1)} if b else {(left + 1, right)}
        if b == "*":
            steps |= {(left, right + 1), (left + 1, right)} if a else {(left, right + 1)}
        if a and a == b:
            steps.add((left + 1, right + 1))
        waiting += steps - reached
        reached |= steps
    return False


def _rank_model(pattern: str | None, names: EventNames) -> tuple[int, int, bool] | None:
    if pattern is None:
        return (0, 0, False)
    wanted = normalize_model(pattern)
    for name, answered in ((names.model, True), (names.request_model, False)):
        if name is not None and matches_pattern(wanted, name.lower()):
            return (1, len(wanted.replace("*", "")), answered) if "*" in wanted else (2, 0, answered)
    return None
