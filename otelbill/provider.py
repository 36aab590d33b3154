"""Owns how metering joins the process's tracer provider: `configure()` once, `status()` any time.
Does not own the instrumentations (`instrumentations`) nor what the processors do.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otelbill import config, guard
from otelbill.config import Settings, SettingValue
from otelbill.content import CAPTURE_OFF
from otelbill.errors import ConfigError
from otelbill.guard import Guard, report
from otelbill.processor import MeteringSpanProcessor

if TYPE_CHECKING:
    from otelbill.shipper import Shipper, ShipperCounts

_CONFIGURE = Guard("configure")
_lock = threading.RLock()


@dataclass(frozen=True, slots=True)
class Metering:
    """What `configure()` has put in place."""

    settings: Settings
    provider: trace.TracerProvider
    processor: MeteringSpanProcessor
    shipper: Shipper


@dataclass(frozen=True, slots=True)
class Status:
    """How metering is doing in this process. `spans` is `None` before `configure()`; `faults` counts by code."""

    is_configured: bool
    endpoint: str
    spans: ShipperCounts | None
    live_spans: int
    faults: dict[str, int]


_metering: Metering | None = None


def configure(**settings: SettingValue) -> None:
    """Switch metering on: join the tracer provider, or make one; switch on installed LLM instrumentations.

    Takes the settings of `otelbill.config.SETTINGS` by name; those not given come from the environment. Calling it
    again changes nothing. Where tracing cannot be joined, one warning says why, and the program runs on.

    Raises:
        ConfigError: in strict mode only.
    """
    with _CONFIGURE, _lock:
        chosen, problems = config.load_settings(settings, config.read_environment())
        if _metering is not None:
            _report_difference(_metering.settings, chosen, settings)
            return
        config.use(chosen)
        for problem in problems:
            report(problem, place="configure()")
        if chosen.enabled:
            _start(chosen)


def status() -> Status:
    """Spans sent and waiting, spans open, and faults so far."""
    found = _metering
    return Status(
        is_configured=found is not None,
        endpoint=config.current().endpoint,
        spans=None if found is None else found.shipper.counts(),
        live_spans=0 if found is None else found.processor.live_spans,
        faults=guard.list_faults(),
    )


def flush(timeout_seconds: float = 5.0) -> bool:
    """Send what waits, for programs that freeze or are killed (serverless functions); `False` if something remains."""
    found = _metering
    return found is None or found.shipper.force_flush(int(timeout_seconds * 1_000))


def require_provider(service_name: str | None) -> TracerProvider:
    """The process's provider; made and set, where there is none.

    Raises:
        ConfigError: the provider in place takes no span processors.
    """
    present = trace.get_tracer_provider()
    if isinstance(present, trace.ProxyTracerProvider):
        resource = Resource.create({} if service_name is None else {"service.name": service_name})
        trace.set_tracer_provider(TracerProvider(resource=resource))
        present = trace.get_tracer_provider()
    if not callable(getattr(present, "add_span_processor", None)):
        hint = "set an opentelemetry.sdk TracerProvider before otelbill.configure()"
        message = f"the tracer provider {type(present).__name__} takes no span processors"
        raise ConfigError("provider_unusable", message, hint=hint)
    return present  # type: ignore[return-value]  # duck-typed: wrappers of the SDK's provider have the method too


def _start(settings: Settings) -> None:
    global _metering
    if not settings.capture_content:
        config.set_environment_defaults(CAPTURE_OFF)
    if config.is_sdk_disabled():
        raise ConfigError("sdk_disabled", "OTEL_SDK_DISABLED is set, so there are no spans to meter", hint="unset it")
    provider = require_provider(settings.service_name)
    processor, shipper = MeteringSpanProcessor(), _make_shipper(settings)
    provider.add_span_processor(processor)
    provider.add_span_processor(shipper)
    # Handlers run in reverse order: ours runs before the provider's, which may wait long for somebody else's exporter.
    atexit.register(shipper.flush_at_exit)
    _metering = Metering(settings, provider, processor, shipper)
    if settings.instrument:
        # Imported here, as it takes longer to import than the rest of the package.
        from otelbill.instrumentations import instrument_installed

        instrument_installed()


def _make_shipper(settings: Settings) -> Shipper:
    # Imported here: protobuf and the HTTP client would double the time that `import otelbill` takes.
    from otelbill.delivery import HttpPost
    from otelbill.shipper import Shipper

    timeout_seconds = settings.request_timeout_millis / 1_000
    return Shipper(HttpPost(settings.endpoint, token=settings.token, timeout_seconds=timeout_seconds), settings)


def _report_difference(present: Settings, asked: Settings, given: Mapping[str, SettingValue]) -> None:
    names = (field.name for field in fields(Settings) if field.name in given)
    if any(getattr(asked, name) != getattr(present, name) for name in names):
        hint = "call configure() once, before anything else of otelbill; under zero-code use the environment"
        report(ConfigError("configured_twice", "other settings were in force already", hint=hint), place="configure()")
