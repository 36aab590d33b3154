"""The price book: what providers charge, from the price data of the `genai-prices` package. USD.

Owns the way from (provider, model, tier, event time) to exact unit prices. Never fetches anything: the data is the
snapshot inside the installed package. An unknown price is None, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from otelbill_collector.domain.instants import DAY_NANOS, NANOS
from otelbill_collector.domain.prices import (
    Json,
    ProviderPrices,
    SizeTier,
    Timeline,
    UnitPrice,
    create_price_version,
    round_unit_price,
)
from otelbill_collector.domain.providers import find_provider_id

COST_CURRENCY = "USD"

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
    "social_searches": "social_searches",
    "storage_searches": "storage_searches",
    "code_executions": "code_executions",
    "rerank_searches": "rerank_searches",
    "input_characters": "input_characters",
}
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

PriceTimeline = Timeline[ProviderPrices | None]
_DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Provider prices by telemetry's own names. Lookups are cached, so that rating many events is cheap."""

    providers: tuple[Provider, ...] = tuple(bundled_providers)
    _cache: dict[tuple[str | None, str, str | None], PriceTimeline | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def find_prices(
        self, *, provider: str | None, model: str | None, at_nanos: int, service_tier: str | None = None
    ) -> ProviderPrices | None:
        """The prices in force at event time, or None when the price data does not have them."""
        timeline = self.find_timeline(provider=provider, model=model, service_tier=service_tier)
        return timeline.find_value(at_nanos) if timeline else None

    def find_timeline(
        self, *, provider: str | None, model: str | None, service_tier: str | None = None
    ) -> PriceTimeline | None:
        """All prices of a model over time, or None when the price data does not have the model."""
        if not model:
            return None
        key = (provider, model, service_tier)
        if key not in self._cache:
            if len(self._cache) >= _CACHE_MAX:
                self._cache.clear()
            found = _find_model(self.providers, provider=find_provider_id(provider), model=model)
            self._cache[key] = _create_timeline(*found, service_tier) if found else None
        return self._cache[key]


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
    context = _create_context(service_tier) if any(model is own for own in provider.models) else {}
    constraints = _list_constraints(model, context)
    dates = sorted({c.start_date for c in constraints if isinstance(c, StartDateConstraint)})
    midnights = [datetime.combine(date, time(0), UTC) for date in dates]
    day_starts = sorted({0, *(s for c in constraints if isinstance(c, TimeOfDateConstraint) for s in _list_cuts(c))})
    # Any day before the first date stands for all of them.
    samples = [(midnights[0] if midnights else _EPOCH) - _DAY, *midnights]

    def create_day(midnight: datetime) -> tuple[ProviderPrices | None, ...]:
        moments = (midnight + timedelta(microseconds=start // 1000) for start in day_starts)
        return tuple(_create_prices(provider, model, model.get_prices(moment, context)) for moment in moments)

    starts = tuple((midnight - _EPOCH) // _SECOND * NANOS for midnight in midnights)
    return Timeline(starts, tuple(create_day(midnight) for midnight in samples), tuple(day_starts))


def _create_context(service_tier: str | None) -> Mapping[str, str]:
    """The request context by which the price data selects variants. What senders call the tiers batch and fast are
    also a way of processing and a speed there.
    """
    if not service_tier:
        return {}
    tier = service_tier.strip().lower()
    extra = {"batch": {"processing": "batch"}, "fast": {"speed": "fast"}}.get(tier, {})
    return {"service_tier": tier, **extra}


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
    if not known:
        return None
    rendered: dict[str, Json] = {unit: price.render() for unit, price in known.items()}
    content: dict[str, Json] = {"currency": COST_CURRENCY, "provider": provider.id, "model": model.id}
    version = create_price_version("provider", {**content, "prices": rendered})
    return ProviderPrices(provider.id, model.id, known, version)


def _create_unit_price(source: ModelPrice, price_key: str, per: int) -> UnitPrice | None:
    price: Decimal | TieredPrices | None = getattr(source, price_key)
    if price is None:
        return None
    if isinstance(price, Decimal):
        return UnitPrice(round_unit_price(price, per))
    tiers = tuple(SizeTier(tier.start, round_unit_price(tier.price, per)) for tier in price.tiers)
    return UnitPrice(round_unit_price(price.base, per), tiers)
