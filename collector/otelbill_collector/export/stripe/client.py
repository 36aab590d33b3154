"""The `stripe` package behind our ports. The only module that imports it, and only when a client is opened.

Owns the translation of its exceptions into answers; decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from otelbill_collector.domain.instants import HOUR_NANOS, NANOS
from otelbill_collector.export.stripe.answers import Answer
from otelbill_collector.export.stripe.ports import Meter, MeterEvent, Price, StripeCallError, StripeUnreachable
from otelbill_collector.export.stripe.settings import StripeSettings

if TYPE_CHECKING:
    import stripe

T = TypeVar("T")
_HOUR_SECONDS = HOUR_NANOS // NANOS
PAGE_MAX = 100


class StripePackageMissing(RuntimeError):
    """The optional `stripe` package is not installed."""


def require_stripe_package() -> ModuleType:
    """The `stripe` package. Raises StripePackageMissing with the command that installs it."""
    try:
        import stripe as package
    except ImportError as error:
        raise StripePackageMissing(
            "sending to Stripe needs the stripe package; install it with: pip install 'otelbill[stripe]'"
        ) from error
    return package


def open_account(settings: StripeSettings) -> StripeAccount:
    """A client for the account of these settings. Makes no call. Raises StripePackageMissing."""
    package = require_stripe_package()
    # With telemetry on, the package writes a file into the home folder on its first call.
    setattr(package, "enable_telemetry", False)  # noqa: B010 the type checker cannot see a module's new attribute
    client = package.StripeClient(
        settings.api_key,
        max_network_retries=settings.network_retries,
        base_addresses={"api": settings.api_base, "meter_events": settings.meter_api_base},
        http_client=package.RequestsClient(timeout=settings.timeout_seconds),
    )
    return StripeAccount(client, package, settings)


class StripeAccount:
    """StripeSink and StripeBooks over the real client; one HTTP session per calling thread."""

    def __init__(self, client: stripe.StripeClient, package: ModuleType, settings: StripeSettings) -> None:
        self._client = client
        self._error: type[Exception] = package.StripeError
        self._settings = settings

    def send(self, event: MeterEvent) -> Answer:
        """Send one v1 meter event. Payload values are strings, so that no number is reformatted on the way."""
        try:
            reply = self._client.v1.billing.meter_events.create(
                {
                    "event_name": event.event_name,
                    "identifier": event.identifier,
                    "payload": {
                        self._settings.customer_key: event.stripe_customer_id,
                        self._settings.value_key: event.value,
                    },
                    "timestamp": event.stamp_seconds,
                },
                {"idempotency_key": event.idempotency_key},
            )
        except self._error as error:
            return read_error(error)
        response = reply.last_response
        return Answer(status=200, request_id=getattr(response, "request_id", None))

    def find_meter(self, event_name: str) -> Meter | None:
        """See StripeBooks. Meters cannot be listed by event name, so all are read: active ones first."""

        def search() -> Meter | None:
            for status in ("active", "inactive"):
                page = self._client.v1.billing.meters.list({"status": status, "limit": PAGE_MAX})
                for meter in page.auto_paging_iter():
                    if meter.event_name == event_name:
                        return _read_meter(meter)
            return None

        return self._call("meters.list", search)

    def list_hours(
        self, meter_id: str, stripe_customer_id: str, *, from_seconds: int, to_seconds: int
    ) -> Mapping[int, Decimal]:
        """See StripeBooks. Summaries are floats; their shortest decimal text is what Stripe meant."""
        assert from_seconds % _HOUR_SECONDS == 0
        assert to_seconds % _HOUR_SECONDS == 0

        def read() -> dict[int, Decimal]:
            page = self._client.v1.billing.meters.event_summaries.list(
                meter_id,
                {
                    "customer": stripe_customer_id,
                    "start_time": from_seconds,
                    "end_time": to_seconds,
                    "value_grouping_window": "hour",
                    "limit": PAGE_MAX,
                },
            )
            return {
                summary.start_time: read_sum(summary.aggregated_value)
                for summary in page.auto_paging_iter()
                if from_seconds <= summary.start_time < to_seconds
            }

        return self._call("meters.event_summaries.list", read)

    def create_meter(self, meter: Meter, *, display_name: str, idempotency_key: str) -> Meter:
        """See StripeBooks."""

        def create() -> Meter:
            created = self._client.v1.billing.meters.create(
                {
                    "display_name": display_name[:250],
                    "event_name": meter.event_name,
                    "default_aggregation": {"formula": meter.formula},
                    "customer_mapping": {"event_payload_key": meter.customer_key, "type": "by_id"},
                    "value_settings": {"event_payload_key": meter.value_key},
                },
                {"idempotency_key": idempotency_key},
            )
            return _read_meter(created)

        return self._call("meters.create", create)

    def find_price(self, lookup_key: str) -> Price | None:
        """See StripeBooks."""

        def search() -> Price | None:
            page = self._client.v1.prices.list({"lookup_keys": [lookup_key], "limit": 1})
            return _read_price(page.data[0]) if page.data else None

        return self._call("prices.list", search)

    def create_price(self, price: Price, *, product_name: str, idempotency_key: str) -> Price:
        """See StripeBooks. The product is made in the same call, so that no half of it can be left behind."""
        assert price.meter_id is not None
        assert price.unit_amount is not None
        meter_id, unit_amount = price.meter_id, price.unit_amount

        def create() -> Price:
            created = self._client.v1.prices.create(
                {
                    "currency": price.currency,
                    "lookup_key": price.lookup_key,
                    "product_data": {"name": product_name},
                    "recurring": {"interval": "month", "usage_type": "metered", "meter": meter_id},
                    # The package sends str(): a normalised small Decimal would go out as 1E-7.
                    "unit_amount_decimal": Decimal(format(unit_amount, "f")),
                },
                {"idempotency_key": idempotency_key},
            )
            return _read_price(created)

        return self._call("prices.create", create)

    def _call(self, name: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except self._error as error:
            answer = read_error(error)
            if answer.status is None:
                reason = type(error.__cause__ or error.__context__ or error).__name__
                raise StripeUnreachable(name, answer, address=self._settings.api_base, reason=reason) from error
            raise StripeCallError(name, answer) from error


def read_sum(aggregated: float) -> Decimal:
    """A sum as Stripe meant it: the shortest decimal of its float, whole where it is whole."""
    value = Decimal(repr(aggregated))
    return Decimal(int(value)) if value == value.to_integral_value() else value


def read_error(error: Exception) -> Answer:
    """The answer inside an exception of the `stripe` package. A 2xx in an exception is a body that made no sense."""
    status: int | None = getattr(error, "http_status", None)
    detail = getattr(error, "error", None)
    headers: Mapping[str, str] = {
        str(name).lower(): str(value) for name, value in (getattr(error, "headers", None) or {}).items()
    }
    return Answer(
        status=status,
        readable=status is not None and not 200 <= status <= 299,
        error_type=getattr(detail, "type", None),
        code=getattr(detail, "code", None) or getattr(error, "code", None),
        message=getattr(detail, "message", None) or getattr(error, "user_message", None) or str(error),
        request_id=getattr(error, "request_id", None),
        limited_reason=headers.get("stripe-rate-limited-reason"),
    )


def _read_meter(meter: stripe.billing.Meter) -> Meter:
    return Meter(
        meter_id=meter.id,
        event_name=meter.event_name,
        active=meter.status == "active",
        formula=meter.default_aggregation.formula,
        customer_key=meter.customer_mapping.event_payload_key,
        value_key=meter.value_settings.event_payload_key,
    )


def _read_price(price: stripe.Price) -> Price:
    amount = price.unit_amount_decimal
    return Price(
        price_id=price.id,
        lookup_key=price.lookup_key or "",
        active=price.active,
        currency=price.currency,
        unit_amount=None if amount is None else Decimal(str(amount)),
        meter_id=price.recurring.meter if price.recurring else None,
    )
