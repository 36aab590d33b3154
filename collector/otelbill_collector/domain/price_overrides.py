"""Provider prices that the operator states, over those of the price data. Owns which of them applies and from when.

Does not read the price data (see `provider_prices`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from otelbill_collector.domain.money import format_attos
from otelbill_collector.domain.prices import Json, ProviderPrices, Timeline, UnitPrice, create_price_version
from otelbill_collector.domain.selectors import STANDARD_TIERS, EventNames, Rank, Selector, normalize_tier

COST_CURRENCY = "USD"
PriceTimeline = Timeline[ProviderPrices | None]


@dataclass(frozen=True, slots=True)
class ProviderPrice:
    """A provider's price for one unit in attos of USD. Without a service tier it is that of the standard one."""

    unit: str
    attos: int
    selector: Selector = field(default_factory=Selector)

    def render(self) -> dict[str, Json]:
        """JSON-able form."""
        return {"unit": self.unit, "price": format_attos(self.attos), **self.selector.render()}

    def rank_match(self, names: EventNames) -> Rank | None:
        """How specific the price is for a call, or None when it does not apply."""
        standard = names.service_tier is None or normalize_tier(names.service_tier) in STANDARD_TIERS
        if self.selector.service_tier is None and not standard:
            return None
        return self.selector.rank_match(names)


def create_provider_prices(provider: str, model: str, prices: Mapping[str, UnitPrice]) -> ProviderPrices:
    """Prices with their version."""
    rendered: dict[str, Json] = {unit: price.render() for unit, price in prices.items()}
    content: dict[str, Json] = {"currency": COST_CURRENCY, "provider": provider, "model": model}
    return ProviderPrices(provider, model, prices, create_price_version("provider", {**content, "prices": rendered}))


def overlay_prices(
    timeline: PriceTimeline | None, overrides: Sequence[ProviderPrice], names: EventNames
) -> PriceTimeline | None:
    """The timeline with the overrides that match these names in place of its prices, unit by unit."""
    matching = [(rank, price) for price in overrides if (rank := price.rank_match(names)) is not None]
    if not matching:
        return timeline
    base: PriceTimeline = timeline or Timeline((), ((None,),))
    edges = {edge for _, price in matching for edge in (price.selector.from_nanos, price.selector.to_nanos)}
    starts = sorted({*base.starts, *(edge for edge in edges if edge is not None)})

    def create_day(sample: int) -> tuple[ProviderPrices | None, ...]:
        best: dict[str, tuple[Rank, ProviderPrice]] = {}
        for rank, price in matching:
            if price.selector.covers(sample) and (price.unit not in best or rank > best[price.unit][0]):
                best[price.unit] = (rank, price)
        own = {unit: UnitPrice(price.attos) for unit, (_, price) in best.items()}
        day = base.days[bisect_right(base.starts, sample)]
        return tuple(_replace_prices(known, own, names) for known in day) if own else day

    samples = [starts[0] - 1 if starts else 0, *starts]
    return Timeline(tuple(starts), tuple(create_day(sample) for sample in samples), base.day_starts)


def _replace_prices(known: ProviderPrices | None, own: Mapping[str, UnitPrice], names: EventNames) -> ProviderPrices:
    if known is not None:
        return create_provider_prices(known.provider, known.model, {**known.prices, **own})
    return create_provider_prices(names.provider or "unknown", names.model or names.request_model or "unknown", own)
