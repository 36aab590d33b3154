"""What contradicts what in a rate card. Owns the rules and their wording; does not know files (see `config`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple

from otelbill_collector.domain.charges import TIERED, PeriodCharge
from otelbill_collector.domain.selectors import Selector, overlap_patterns

_BEGINNING = -(2**100)  # before any instant


@dataclass(frozen=True, slots=True)
class CardProblem:
    """Why a rate card is invalid: where (`("prices", 2)`), what, and the remedy."""

    path: tuple[str | int, ...]
    message: str
    remedy: str


class InvalidRateCard(ValueError):
    """A rate card contradicts itself; `problems` lists everything that is wrong."""

    def __init__(self, problems: list[CardProblem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


class Placed(NamedTuple):
    """An entry where it stands; those of equal `key` (a unit, a name) take each other's place."""

    section: str
    position: int
    key: str
    selector: Selector


def list_overlaps(entries: Sequence[Placed], kind: str) -> Iterator[CardProblem]:
    """Entries of one rank that match the same event differ in nothing but time; so they must not share any time."""
    alike: dict[tuple[object, ...], list[Placed]] = defaultdict(list)
    patterns: dict[tuple[object, ...], list[Placed]] = defaultdict(list)
    for entry in entries:
        names = entry.selector.identify()
        alike[entry.key, *sorted(names.items())].append(entry)
        model = names.pop("model", "")
        if "*" in model:
            patterns[entry.key, len(model.replace("*", "")), *sorted(names.items())].append(entry)
        if entry.selector.to_nanos is not None and start_at(entry.selector) >= entry.selector.to_nanos:
            remedy = "`to` is the first instant out of force"
            yield CardProblem((entry.section, entry.position, "to"), "`to` is not after `from`", remedy)
    for group in alike.values():
        ordered = sorted(group, key=lambda entry: start_at(entry.selector))
        for earlier, later in pairwise(ordered):
            if share_time(earlier.selector, later.selector):
                yield _refuse_overlap(earlier, later, kind)
    for group in patterns.values():
        yield from _list_ambiguous(group)


def _list_ambiguous(group: Iterable[Placed]) -> Iterator[CardProblem]:
    """Two different patterns of equal weight that one model can match."""
    for one, other in combinations(group, 2):
        first, second = (entry.selector.identify()["model"] for entry in (one, other))
        if first != second and share_time(one.selector, other.selector) and overlap_patterns(first, second):
            yield CardProblem(
                (other.section, other.position, "model"),
                f"{second} and {first} of {one.section}[{one.position}] can match one model, and neither is longer",
                "make one of them longer, or name the models exactly",
            )


def _refuse_overlap(earlier: Placed, later: Placed, kind: str) -> CardProblem:
    first, second = sorted(
        (earlier, later), key=lambda entry: (entry.section != "prices", entry.section, entry.position)
    )
    names = [f"{kind} {second.key}"] if second.key else []
    names += [f"{key} {value}" for key, value in second.selector.list_names().items()]
    return CardProblem(
        (second.section, second.position),
        f"overlaps {first.section}[{first.position}]: the same {', '.join(names) or 'usage'} at the same time",
        "end one with `to` where the other starts with `from`, or make one more specific",
    )


def share_time(one: Selector, other: Selector) -> bool:
    """True when some instant is in force under both."""
    earlier, later = sorted((one, other), key=start_at)
    return earlier.to_nanos is None or earlier.to_nanos > start_at(later)


def start_at(selector: Selector) -> int:
    """First instant in force, for comparing; far in the past without one."""
    return selector.from_nanos if selector.from_nanos is not None else _BEGINNING


def list_charge_problems(charges: Sequence[PeriodCharge]) -> Iterator[CardProblem]:
    """Tiers that do not cover all units once, and charges of one name that are not versions of one another."""
    first_of: dict[str, int] = {}
    for index, charge in enumerate(charges):
        yield from _list_tier_problems(index, charge)
        first = first_of.setdefault(charge.name, index)
        other = charges[first]
        if charge.unit != other.unit or charge.selector.list_usage_names() != other.selector.list_usage_names():
            yield CardProblem(
                ("charges", index, "name"),
                f"is the name of charges[{first}], which counts other usage",
                "entries of one name have the same unit, step, model, provider and service_tier; choose another name",
            )


def _list_tier_problems(index: int, charge: PeriodCharge) -> Iterator[CardProblem]:
    path = ("charges", index, "tiers")
    if charge.pricing not in TIERED:
        if charge.tiers:
            yield CardProblem(path, f"has no meaning for {charge.pricing}", "leave it out, or use graduated or volume")
        return
    if not charge.tiers:
        yield CardProblem(path, f"is missing for {charge.pricing}", "list tiers; the last one without up_to")
        return
    reached = 0
    for number, tier in enumerate(charge.tiers):
        last = number == len(charge.tiers) - 1
        if tier.up_to is None:
            if not last:
                message, remedy = "never ends, so that the tiers after it are not reached", "give it up_to"
                yield CardProblem((*path, number), message, remedy)
            continue
        if tier.up_to <= reached:
            message = f"ends at {tier.up_to}, where an earlier tier has already ended ({reached})"
            yield CardProblem((*path, number, "up_to"), message, "list tiers in ascending order, each end once")
        reached = max(reached, tier.up_to)
        if last:
            message = f"is the last tier and ends, so that units after {tier.up_to} have no price"
            yield CardProblem((*path, number, "up_to"), message, "leave up_to of the last tier out")
