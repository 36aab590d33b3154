"""The price book: what providers charge, from the price data of the `genai-prices` package. USD.

Owns the way from (provider, model, tier, event time) to exact unit prices. Never fetches anything: the data is the
snapshot inside the installed package, under what the operator states (see `price_overrides`). An unknown price is
None, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal

from genai_prices.data import providers as bundled_providers
from genai_prices.data_units import unit_data
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)

from otelbill_collector.domain import usage
from otelbill_collector.domain.ids import digest_parts
from otelbill_collector.domain.instants import DAY_NANOS, NANOS
from otelbill_collector.domain.price_overrides import (
    COST_CURRENCY,
    PriceTimeline,
    ProviderPrice,
    create_provider_prices,
    overlay_prices,
)
from otelbill_collector.domain.prices import (
    ProviderPrices,
    SizeTier,
    Timeline,
    UnitPrice,
    round_unit_price,
)
from otelbill_collector.domain.providers import find_provider_id
from otelbill_collector.domain.selectors import STANDARD_TIERS, EventNames, normalize_tier

__all__ = ["COST_CURRENCY", "PRICED_UNITS", "PriceBook", "PriceTimeline", "ProviderPrice"]

# Our unit -> the unit of the price data. Units beyond tokens are the ones that stand beside tokens, never inside them.
_DATA_UNITS = {
    usage.INPUT_TOKENS: "input_tokens",
    usage.CACHE_READ_TOKENS: "cache_read_tokens",
    usage.CACHE_WRITE_TOKENS: "cache_write_tokens",
    usage.CACHE_WRITE_1H_TOKENS: "cache_write_1h_tokens",
    usage.OUTPUT_TOKENS: "output_tokens",
    usage.REASONING_TOKENS: "output_reasoning_tokens",
    usage.AUDIO_INPUT_TOKENS: "input_audio_tokens",
    usage.AUDIO_OUTPUT_TOKENS: "output_audio_tokens",
    usage.REQUESTS: "requests",
    "web_searches": "web_searches",
    "web_search_requests": "web_searches",  # what providers that search themselves report
    "social_searches": "social_searches",
    "storage_searches": "storage_searches",
    "code_executions": "code_executions",
    "rerank_searches": "rerank_searches",
    "input_characters": "input_characters",
}
PRICED_UNITS = tuple(_DATA_UNITS)
_PRICE_KEYS = {unit: (unit_data[name]["price_key"], int(unit_data[name]["per"])) for unit, name in _DATA_UNITS.items()}

# A provider that serves the models of others at its own prices is believed: its missing price is unknown, and another
# provider's price for the same model would be a guess.
_HOSTS = frozenset(
    {
        *(
            "aws",
            "azure",
            "google",
            "groq",
            "together",
            "fireworks",
            "openrouter",
            "novita",
            "databricks",
            "cloudflare",
        ),
        *("cerebras", "perplexity", "github-copilot", "baseten", "modal", "ovhcloud", "avian", "doubleword"),
    }
)
_BEDROCK_VENDORS = ("amazon", "anthropic", "meta", "mistral", "cohere", "ai21", "deepseek")
_CACHE_MAX = 8192  # keys; models and tiers come from outside

_DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Provider prices by telemetry's own names. Lookups are cached, so that rating many events is cheap.

    `overrides` are the operator's own; each beats the price data from its instant on.
    """

    providers: tuple[Provider, ...] = tuple(bundled_providers)
    overrides: tuple[ProviderPrice, ...] = ()
    _cache: dict[tuple[str | None, ...], PriceTimeline | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def book_id(self) -> str:
        """16 hex characters over everything that makes a cost: equal prices have an equal id on every machine."""
        overrides: list[str] = sorted(repr(price.render()) for price in self.overrides)
        return digest_parts("price-book", *_list_content(self.providers), *overrides).hex()[:16]

    def find_prices(
        self, *, provider: str | None, model: str | None, at_nanos: int, service_tier: str | None = None
    ) -> ProviderPrices | None:
        """The prices in force at event time, or None when they are not known."""
        timeline = self.find_timeline(provider=provider, model=model, service_tier=service_tier)
        return timeline.find_value(at_nanos) if timeline else None

    def find_timeline(
        self,
        *,
        provider: str | None,
        model: str | None,
        request_model: str | None = None,
        service_tier: str | None = None,
    ) -> PriceTimeline | None:
        """All prices of a model over time, or None when nobody states any. The model that answered decides, and the
        one that was asked for where the price data does not have it.
        """
        key = (provider, model, request_model, service_tier)
        if key not in self._cache:
            if len(self._cache) >= _CACHE_MAX:
                self._cache.clear()
            self._cache[key] = self._create_timeline(EventNames(*key))
        return self._cache[key]

    def _create_timeline(self, names: EventNames) -> PriceTimeline | None:
        found = None
        for model in (names.model, names.request_model):
            if model and found is None:
                found = _find_model(self.providers, provider=find_provider_id(names.provider), model=model)
        timeline = _create_timeline(*found, names.service_tier) if found else None
        if not self.overrides:
            return timeline
        return overlay_prices(timeline, self.overrides, names._replace(provider=found[0].id) if found else names)


def _list_content(providers: Sequence[Provider]) -> Iterable[str]:
    """Every statement of the price data, in an order of its own: names, what they match, prices and their times."""
    for provider in sorted(providers, key=lambda item: item.id):
        yield f"{provider.id} {provider.model_match!r}"
        for model in sorted(provider.models, key=lambda item: item.id):
            yield f"{model.id} {model.match!r} {model.prices!r} {model.price_variants!r}"


def _find_model(
    providers: tuple[Provider, ...], *, provider: str | None, model: str
) -> tuple[Provider, ModelInfo] | None:
    """By provider, or by the model alone where exactly one maker claims its name."""
    by_id = {candidate.id: candidate for candidate in providers}
    spellings = list(_list_spellings(model))
    if provider in by_id:
        for spelling in spellings:
            if found := by_id[provider].find_model(spelling, all_providers=list(providers)):
                return by_id[provider], found
        if provider == "aws" and (found := _find_vendor_model(by_id["aws"], spellings[-1])):
            return by_id["aws"], found
        if provider in _HOSTS:
            return None
    for spelling in spellings:
        makers = [maker for maker in providers if maker.model_match and maker.model_match.is_match(spelling)]
        if len(makers) == 1 and (found := makers[0].find_model(spelling)):
            return makers[0], found
    return None


def _find_vendor_model(aws: Provider, model: str) -> ModelInfo | None:
    """Some emitters cut the vendor from a Bedrock model id ("nova-micro-v1:0"); found when one vendor only has it."""
    found = [info for vendor in _BEDROCK_VENDORS if (info := aws.find_model(f"{vendor}.{model}"))]
    return found[0] if len(found) == 1 else None


def _list_spellings(model: str) -> Iterable[str]:
    """The name as given, then without the path before it ("models/gemini-2.5-pro", "openai/gpt-4o", an ARN)."""
    name = model.strip().lower()
    yield name
    if "/" in name:
        yield name.rsplit("/", 1)[1]


def _create_timeline(provider: Provider, model: ModelInfo, service_tier: str | None) -> PriceTimeline:
    """Prices on every interval on which they are constant: cut at every date and time of day that the data names."""
    # A price that is borrowed from another provider's list is for the standard tier.
    borrowed = not any(model is own for own in provider.models)
    context = _create_context(service_tier)
    constraints = _list_constraints(model, context)
    dates = sorted({c.start_date for c in constraints if isinstance(c, StartDateConstraint)})
    midnights = [datetime.combine(date, time(0), UTC) for date in dates]
    day_starts = sorted({0, *(s for c in constraints if isinstance(c, TimeOfDateConstraint) for s in _list_cuts(c))})
    # Any day before the first date stands for all of them.
    samples = [(midnights[0] if midnights else _EPOCH) - _DAY, *midnights]

    def create_moment(moment: datetime) -> ProviderPrices | None:
        if not _is_standard(context) and (borrowed or not _has_tier(model, context, moment)):
            return None  # the standard price for another tier would be a guess
        return _create_prices(provider, model, model.get_prices(moment, {} if borrowed else context))

    def create_day(midnight: datetime) -> tuple[ProviderPrices | None, ...]:
        moments = (midnight + timedelta(microseconds=start // 1000) for start in day_starts)
        return tuple(create_moment(moment) for moment in moments)

    starts = tuple((midnight - _EPOCH) // _SECOND * NANOS for midnight in midnights)
    return Timeline(starts, tuple(create_day(midnight) for midnight in samples), tuple(day_starts))


def _create_context(service_tier: str | None) -> Mapping[str, str]:
    """The request context by which the price data selects variants. What senders call the tiers batch and fast are
    also a way of processing and a speed there.
    """
    tier = normalize_tier(service_tier)
    if not tier:
        return {}
    extra = {"batch": {"processing": "batch"}, "fast": {"speed": "fast"}}.get(tier, {})
    return {"service_tier": tier, **extra}


def _is_standard(context: Mapping[str, str]) -> bool:
    return context.get("service_tier") in (None, *STANDARD_TIERS)


def _has_tier(model: ModelInfo, context: Mapping[str, str], moment: datetime) -> bool:
    """Whether the data states any price for this tier at that time; what it leaves out is as in the standard tier."""
    return any(
        all(context.get(key) == value for key, value in variant.when.items())
        and (variant.constraint is None or variant.constraint.active(moment))
        for variant in model.price_variants or ()
    )


def _list_constraints(
    model: ModelInfo, context: Mapping[str, str]
) -> list[StartDateConstraint | TimeOfDateConstraint | None]:
    dated: list[ConditionalPrice | PriceVariant] = [] if isinstance(model.prices, ModelPrice) else [*model.prices]
    if context:
        dated += model.price_variants or []
    return [price.constraint for price in dated]


def _list_cuts(window: TimeOfDateConstraint) -> Iterable[int]:
    """Nanoseconds since midnight UTC at which a daily window starts and ends."""
    for edge in (window.start_time, window.end_time):
        moment = datetime.combine(_EPOCH.date(), edge if edge.tzinfo else edge.replace(tzinfo=UTC))
        yield (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1) * 1000 % DAY_NANOS


def _create_prices(provider: Provider, model: ModelInfo, source: ModelPrice) -> ProviderPrices | None:
    prices = {unit: _create_unit_price(source, key, per) for unit, (key, per) in _PRICE_KEYS.items()}
    known = {unit: price for unit, price in prices.items() if price is not None}
    return create_provider_prices(provider.id, model.id, known) if known else None


def _create_unit_price(source: ModelPrice, price_key: str, per: int) -> UnitPrice | None:
    price: Decimal | TieredPrices | None = getattr(source, price_key)
    if price is None:
        return None
    if isinstance(price, Decimal):
        return UnitPrice(round_unit_price(price, per))
    tiers = tuple(SizeTier(tier.start, round_unit_price(tier.price, per)) for tier in price.tiers)
    return UnitPrice(round_unit_price(price.base, per), tiers)
