"""The form of otelbill.yaml, its sections: every setting with its type, default and meaning.

Owns single values, not their relations; the rate card's are in `rate_card_model`, the whole in `config_file`. The JSON
Schema and the reference in docs/configuration.md are derived from them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from otelbill_collector.config.document import WrittenFloat
from otelbill_collector.config.values import Address, CostNames, StripeMode
from otelbill_collector.domain.currencies import CURRENCIES
from otelbill_collector.domain.instants import NANOS, parse_instant
from otelbill_collector.domain.periods import ANCHOR_DAY_MAX, InvalidPeriod, require_zone
from otelbill_collector.domain.prices import PER_MAX
from otelbill_collector.domain.retention import EVIDENCE_DAYS_MIN, InvalidPolicy, RetentionPolicy

_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_DURATION_NANOS = {"ms": NANOS // 1000, "s": NANOS, "m": 60 * NANOS, "h": 3600 * NANOS, "d": 86400 * NANOS}
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]\s]+)):([0-9]{1,5})")
_URL = re.compile(r"https?://[^\s/]+\S*")
_UNIT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")


def _fail(message: str, remedy: str) -> PydanticCustomError:
    """An error whose remedy travels in its context. Only a price is ever quoted, and not when it is a reference."""
    return PydanticCustomError("setting", "{message}", {"message": message, "remedy": remedy})


def _parse_integer(value: Any) -> int:  # Any: whatever the file has
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)  # an environment reference is text
    raise _fail("is not a whole number", "write digits only, such as 100000")


def _parse_text(value: Any) -> str:
    if isinstance(value, str) and not isinstance(value, WrittenFloat):
        if value.strip():
            return value
        raise _fail("is empty", "write a value, or leave the setting out")
    raise _fail("is not text", 'write it in quotes, such as "123"')


def _parse_decimal_text(value: Any) -> str | int:
    if isinstance(value, WrittenFloat):
        raise _fail("is a floating-point number, which cannot hold money exactly", "write it in quotes")
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise _fail("is not a decimal number", 'write it in quotes, such as "0.60"')


def _parse_moment(value: Any) -> int:
    try:
        return parse_instant(_parse_text(value))
    except ValueError:
        raise _fail("is not a date or a time", "write 2026-01-01 or 2026-01-01T00:00:00Z") from None


def _parse_duration(value: Any) -> int:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise _fail("is not a duration", 'write a number with ms, s, m, h or d, such as "5m"')
    return int(match[1]) * _DURATION_NANOS[match[2]]


def _parse_retention(value: Any) -> RetentionPolicy:
    try:
        return RetentionPolicy(_parse_text(value))
    except InvalidPolicy as error:
        raise _fail(str(error), f'write at least "{EVIDENCE_DAYS_MIN}d", or months such as "13mo"') from None


def _parse_address(value: Any) -> Address:
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[3]) > 65_535:
        raise _fail("is not host:port", 'write both, such as "127.0.0.1:4327"')
    return Address(match[1] or match[2], int(match[3]))


def _require_url(value: str) -> str:
    if not _URL.fullmatch(value):
        raise _fail("is not an http or https URL", 'write it whole, such as "http://127.0.0.1:4318"')
    return value.rstrip("/")


def _require_unit(value: str) -> str:
    if not _UNIT.fullmatch(value):
        raise _fail("is not a unit name", "use letters, digits and . _ -, such as input_tokens")
    return value


def _require_currency(value: str) -> str:
    if not re.fullmatch(r"[A-Z]{3}", value):
        raise _fail("is not a currency code", "write three capital letters, such as USD")
    if value not in CURRENCIES:
        raise _fail("is not a currency of ISO 4217", "write a code such as USD or EUR")
    return value


def _require_stripe_customer(value: str) -> str:
    if not re.fullmatch(r"cus_[A-Za-z0-9_]{1,95}", value):
        raise _fail("is not a Stripe customer id", "copy it from Stripe; it starts with cus_")
    return value


def _require_time_zone(value: str) -> str:
    try:
        require_zone(value)
    except InvalidPeriod:
        raise _fail("is not a time zone", "write an IANA name, such as Europe/Berlin") from None
    return value


def _schema(**content: Any) -> WithJsonSchema:  # Any: JSON
    return WithJsonSchema(content)


def _integer(low: int, high: int) -> Any:
    return Annotated[
        int,
        Field(ge=low, le=high),
        BeforeValidator(_parse_integer),
        _schema(type="integer", minimum=low, maximum=high),
    ]


Text = Annotated[str, BeforeValidator(_parse_text), _schema(type="string", minLength=1)]
Secret = Annotated[SecretStr, BeforeValidator(_parse_text), _schema(type="string", minLength=1)]
Url = Annotated[Text, AfterValidator(_require_url), _schema(type="string", pattern="^https?://")]
Unit = Annotated[Text, AfterValidator(_require_unit), _schema(type="string", pattern=f"^{_UNIT.pattern}$")]
Currency = Annotated[Text, AfterValidator(_require_currency), _schema(type="string", pattern="^[A-Z]{3}$")]
StripeCustomer = Annotated[
    Text, AfterValidator(_require_stripe_customer), _schema(type="string", pattern=r"^(cus_|\$\{)")
]
TimeZone = Annotated[Text, AfterValidator(_require_time_zone), _schema(type="string", minLength=1)]
DecimalText = Annotated[Any, BeforeValidator(_parse_decimal_text), _schema(type=["string", "integer"])]
Moment = Annotated[int, BeforeValidator(_parse_moment), _schema(type="string")]
Duration = Annotated[Any, BeforeValidator(_parse_duration), _schema(type="string", pattern=f"^{_DURATION.pattern}$")]
Retention = Annotated[
    Any, BeforeValidator(_parse_retention), _schema(type="string", pattern=r"^([1-9][0-9]{0,4}(d|mo)|\$\{)")
]
ListenAddress = Annotated[Any, BeforeValidator(_parse_address), _schema(type="string", pattern=":[0-9]+$")]
Count: Any = _integer(1, 2**40)
KeyCount: Any = _integer(10_000, 10**9)
Seconds: Any = _integer(0, 86_400)
LingerMillis: Any = _integer(0, 1_000)
CallRate: Any = _integer(0, 10_000)
Per: Any = _integer(1, PER_MAX)
AnchorDay: Any = _integer(1, ANCHOR_DAY_MAX)
Digits: Any = _integer(0, 6)
UnitCount: Any = _integer(0, 2**53)


class Section(BaseModel):
    """A mapping in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)


class ListenSection(Section):
    """Addresses to listen on."""

    grpc: ListenAddress = Field(default="127.0.0.1:4327", description="Address for OTLP over gRPC.")
    http: ListenAddress = Field(default="127.0.0.1:4328", description="Address for OTLP over HTTP (`/v1/traces`).")
    api: ListenAddress = Field(
        default="127.0.0.1:4329", description="Address for the API, `/metrics`, health checks and the pages."
    )


class LimitsSection(Section):
    """Bounds of what is taken from senders."""

    body_bytes: Count = Field(
        default=16_777_216,
        description="Largest request body as sent, over gRPC and in JSON also decompressed; a larger one is refused.",
    )
    decompressed_bytes: Count = Field(default=67_108_864, description="Largest request body after decompression.")
    spans_per_request: Count = Field(default=100_000, description="Most spans in one request.")
    attributes_per_span: Count = Field(default=1_024, description="Most attributes on one span.")
    inflight_bytes: Count = Field(
        default=268_435_456,
        description="Most bytes taken but not yet committed; beyond it senders are told to wait.",
    )
    connections: Count = Field(
        default=1_000,
        description="Most open connections of each listener; beyond it those without a whole request are closed first.",
    )
    waiting_calls: Count = Field(
        default=1_000, description="Most gRPC calls that wait for their message to be read; others are told to wait."
    )
    commit_linger_ms: LingerMillis = Field(
        default=2, description="How long a commit waits for more requests under load, in milliseconds."
    )
    future_seconds: Seconds = Field(
        default=300,
        description="How far in the future a span may end before it is dead-lettered: a sender's clock is wrong.",
    )
    group_keys: KeyCount = Field(
        default=400_000,
        description="Most claim keys (about five a span) whose spans are kept in memory, "
        "and three times as many of spans in columns.",
    )
    known_keys: KeyCount = Field(
        default=400_000_000,
        description="Most stored claim keys (up to four bytes each) remembered, so that a new span needs no look-up.",
    )


class ClaimsSection(Section):
    """How spans that describe the same call are told apart."""

    grace_seconds: Seconds = Field(
        default=60, description="How long a span that may lose its claim waits for the other spans of its trace."
    )
    accept_estimates: list[Text] = Field(
        default=[],
        description="Dialects (see `otelbill dialects`) whose estimated token counts are rated instead of held.",
    )


class ForwardSection(Section):
    """Send spans on, with their cost."""

    endpoint: Url = Field(description="OTLP/HTTP URL that spans are sent on to, with its path (`.../v1/traces`).")
    headers: dict[str, Secret] = Field(default={}, description="Headers of those requests. Their values are secrets.")
    cost_names: Annotated[list[CostNames], Field(min_length=1)] = Field(
        default=["otelbill"],
        description="Whose names the cost is written under: `otelbill`, `gen_ai`, `openinference`, `langfuse`.",
    )
    queue_spans: Count = Field(
        default=100_000, description="Most spans waiting to be sent on; billing does not wait for it."
    )


class StripeSection(Section):
    """Send usage to Stripe."""

    api_key: Secret = Field(description="Stripe API key. Refer to the environment: `${STRIPE_API_KEY}`.")
    api_base: Url = Field(default="https://api.stripe.com", description="Base URL of the Stripe API.")
    mode: StripeMode = Field(
        default="money",
        description="`money` sends amounts under one event name, `units` quantities under one for each unit.",
    )
    event_name: Annotated[Text, Field(max_length=100)] = Field(
        default="otelbill_charge_usd_micro",
        description="Event name of the Stripe meter that receives amounts in mode `money`.",
    )
    window: Duration = Field(
        default="5m", description="Length of the slices of time that are sent as one meter event each."
    )
    grace: Duration = Field(default="60s", description="How long a slice stays open for late spans before it is sent.")
    rate_per_second: CallRate = Field(
        default=0, description="Most calls to Stripe in a second; 0 means 20 for a test key and 800 for a live one."
    )
    since: Moment | None = Field(
        default=None,
        description="Usage before this instant is not sent, e.g. when Stripe joins a ledger with a history.",
    )
    meters: dict[Unit, Annotated[Text, Field(max_length=100)]] = Field(
        default={}, description="In mode `units`: the event name of the Stripe meter for each unit."
    )


class CustomerSection(Section):
    """What is known of a customer outside telemetry."""

    stripe: StripeCustomer | None = Field(
        default=None, description="Stripe customer id (`cus_...`) that usage is sent to."
    )
    time_zone: TimeZone | None = Field(
        default=None, description="Time zone of the customer's billing periods; `billing.time_zone` without it."
    )
    anchor_day: AnchorDay | None = Field(
        default=None, description="Day of the month on which the customer's billing periods begin."
    )
    group: Text | None = Field(default=None, description="Group that entries of the rate card may name.")
    contract: Text | None = Field(default=None, description="Contract that entries of the rate card may name.")


class BillingSection(Section):
    """Billing periods and invoices."""

    time_zone: TimeZone = Field(default="UTC", description="Time zone of billing periods, an IANA name.")
    anchor_day: AnchorDay = Field(
        default=1,
        description="Day of the month on which billing periods begin; 29 to 31 mean the last day of shorter months.",
    )
    grace: Duration = Field(
        default="1d", description="How long after its end a period stays open for usage that arrives late."
    )
    approve: bool = Field(
        default=True, description="Whether a closed period's invoice waits for an operator's approval."
    )
    currency_digits: Digits | None = Field(
        default=None,
        description="Decimals that invoices are rounded to; without it those of the currency, two for USD.",
    )


class RetentionSection(Section):
    """How long evidence is kept."""

    evidence: Retention | None = Field(
        default=None,
        description="How long records are kept after their event time, in days or months (`400d`, `13mo`); "
        "without it for ever.",
    )
    closed_only: bool = Field(
        default=True,
        description="Whether only closed periods with an approved invoice lose records; false where others invoice.",
    )
