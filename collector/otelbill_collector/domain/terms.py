"""What of a rate card holds for one customer and one billing period: fees, discounts, minimums, commitments, as terms.

Terms are resolved once, when a period is closed, and stay on its invoice. Owns which entry counts, not the amounts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any, TypeVar

from otelbill_collector.domain.charges import Commitment, Discount, Fee, Minimum
from otelbill_collector.domain.instants import format_instant, parse_instant
from otelbill_collector.domain.money import format_attos, parse_attos
from otelbill_collector.domain.periods import Period
from otelbill_collector.domain.prices import PriceVersion, create_price_version, parse_percent, render_percent
from otelbill_collector.domain.ratecard import RateCard
from otelbill_collector.domain.selectors import EventNames, Selector

FEE, DISCOUNT, MINIMUM, COMMITMENT = "fee", "discount", "minimum", "commitment"
Conditional = Fee | Discount | Minimum | Commitment
E = TypeVar("E", Fee, Discount, Minimum, Commitment)


@dataclass(frozen=True, slots=True)
class Term:
    """One condition of a customer's period. `version_id` names its price version, whose text is `version_body`.

    `share` is the part of the period that a fee is for; [from_nanos, to_nanos) is a commitment's whole term; `usage`
    are the names that usage must have for a discount (step, model, provider), none for everything.
    """

    section: str
    name: str
    version_id: str
    attos: int = 0
    percent_scaled: int = 0
    share: Fraction = Fraction(1)
    from_nanos: int | None = None
    to_nanos: int | None = None
    usage: Mapping[str, str] = field(default_factory=dict)
    version_body: str = field(default="", compare=False)

    def ends_in(self, period: Period) -> bool:
        """Whether a commitment's term ends in this period, which then settles it."""
        return self.to_nanos is not None and period.start_nanos < self.to_nanos <= period.end_nanos

    def counts(self, period: Period) -> bool:
        """Whether what a customer spends in a period counts towards a commitment: the period begins in its term."""
        begun = self.from_nanos is None or period.start_nanos >= self.from_nanos
        return begun and self.to_nanos is not None and period.start_nanos < self.to_nanos

    def matches_usage(self, names: EventNames) -> bool:
        """Whether a discount is given on usage of these names."""
        about = Selector(
            step=self.usage.get("step"), model=self.usage.get("model"), provider=self.usage.get("provider")
        )
        return about.rank_match(names) is not None


def resolve_terms(card: RateCard, names: EventNames, period: Period) -> list[Term]:
    """The terms of a period for the customer that `names` are about, in the order in which they are applied."""
    terms = list(_resolve_fees(card, names, period))
    for discount in _list_first(card.discounts, names, period):
        usage = _name_usage(discount.selector)
        body = _create_version(DISCOUNT, discount, card.currency)
        percent = discount.percent_scaled
        terms.append(Term(DISCOUNT, discount.name, body.version_id, 0, percent, usage=usage, version_body=body.body))
    for minimum in _list_first(card.minimums, names, period):
        body = _create_version(MINIMUM, minimum, card.currency)
        terms.append(Term(MINIMUM, minimum.name, body.version_id, minimum.attos, version_body=body.body))
    for promise in _list_promises(card.commitments, names, period):
        body = _create_version(COMMITMENT, promise, card.currency, to=promise.selector.to_nanos)
        term = Term(COMMITMENT, promise.name, body.version_id, promise.attos, version_body=body.body)
        terms.append(replace(term, from_nanos=promise.selector.from_nanos, to_nanos=promise.selector.to_nanos))
    return terms


def _create_version(kind: str, entry: Conditional, currency: str, *, to: int | None = None) -> PriceVersion:
    content = entry.render() if to is None else {**entry.render(), "to": format_instant(to)}
    return create_price_version(kind, {"currency": currency, kind: content})


def _resolve_fees(card: RateCard, names: EventNames, period: Period) -> Iterator[Term]:
    """A fee is due once when it is in force at any time of the period, or, prorated, for the time it is in force."""
    for _, slices in _cut_period(card.fees, names, period):
        length = period.end_nanos - period.start_nanos
        first = slices[0][0]
        if not first.prorate:
            yield _create_fee(card, first, Fraction(1))
            continue
        shares: dict[Fee, Fraction] = {}
        for fee, start, end in slices:
            shares[fee] = shares.get(fee, Fraction(0)) + Fraction(end - start, length)
        for fee, share in shares.items():
            yield _create_fee(card, fee, share)


def _create_fee(card: RateCard, fee: Fee, share: Fraction) -> Term:
    version = _create_version(FEE, fee, card.currency)
    return Term(FEE, fee.name, version.version_id, fee.attos, share=share, version_body=version.body)


def _list_first(entries: Sequence[E], names: EventNames, period: Period) -> Iterator[E]:
    """Of each name the entry that is in force first in the period."""
    for _, slices in _cut_period(entries, names, period):
        yield slices[0][0]


def _list_promises(entries: Sequence[Commitment], names: EventNames, period: Period) -> Iterator[Commitment]:
    """Commitments whose term ends in the period. The end is the first instant after the term."""
    for name in sorted({entry.name for entry in entries}):
        ending = [entry for entry in entries if entry.name == name and _ends_in(entry.selector, period)]
        found = _find_closest(ending, names)
        if found is not None:
            yield found


def _ends_in(selector: Selector, period: Period) -> bool:
    return selector.to_nanos is not None and period.start_nanos < selector.to_nanos <= period.end_nanos


def _cut_period(
    entries: Sequence[E], names: EventNames, period: Period
) -> Iterator[tuple[tuple[str, ...], list[tuple[E, int, int]]]]:
    """For each name (and usage it is about) the entries in force, with the part of the period in which each is."""
    groups: dict[tuple[str, ...], list[E]] = {}
    for entry in entries:
        if entry.selector.matches_customer(names):
            about: list[tuple[str, str]] = sorted(_name_usage(entry.selector).items())
            groups.setdefault((entry.name, *(f"{key}={value}" for key, value in about)), []).append(entry)
    for name, members in sorted(groups.items()):
        edges = {edge for entry in members for edge in (entry.selector.from_nanos, entry.selector.to_nanos) if edge}
        inside: list[int] = sorted(edge for edge in edges if period.start_nanos < edge < period.end_nanos)
        slices = [
            (found, start, end)
            for start, end in pairwise([period.start_nanos, *inside, period.end_nanos])
            if (found := _find_closest([entry for entry in members if entry.selector.covers(start)], names))
        ]
        if slices:
            yield name, slices


def _find_closest(entries: Iterable[E], names: EventNames) -> E | None:
    """The entry that says most about who pays."""
    best: E | None = None
    best_rank = None
    for entry in entries:
        selector = Selector(entry.selector.customer_id, group=entry.selector.group, contract=entry.selector.contract)
        rank = selector.rank_match(names)
        if rank is not None and (best_rank is None or rank > best_rank):
            best, best_rank = entry, rank
    return best


def _name_usage(selector: Selector) -> dict[str, str]:
    given = {"step": selector.step, "model": selector.model, "provider": selector.provider}
    return {key: value for key, value in given.items() if value is not None}


def render_term(term: Term) -> dict[str, Any]:
    """A term as JSON values, complete: `read_term` gives it back."""
    return {
        "section": term.section,
        "name": term.name,
        "version": term.version_id,
        "amount": format_attos(term.attos),
        "percent": render_percent(term.percent_scaled),
        "share": str(term.share),
        "from": None if term.from_nanos is None else format_instant(term.from_nanos),
        "to": None if term.to_nanos is None else format_instant(term.to_nanos),
        "usage": dict(term.usage),
    }


def read_term(body: Mapping[str, Any]) -> Term:
    """The inverse of `render_term`; the version's text is in the ledger under its id."""
    return Term(
        body["section"],
        body["name"],
        body["version"],
        parse_attos(body["amount"]),
        parse_percent(body["percent"]),
        Fraction(body["share"]),
        None if body["from"] is None else parse_instant(body["from"]),
        None if body["to"] is None else parse_instant(body["to"]),
        body["usage"],
    )
