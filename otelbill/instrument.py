"""Owns the zero-code entry points for `opentelemetry-instrument`.
Does not own which instrumentations are switched on (`instrumentations`), nor the tracer provider (`provider`).
"""

from __future__ import annotations

from collections.abc import Collection

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # untyped

from otelbill import config, provider
from otelbill.config import SettingValue
from otelbill.content import CAPTURE_OFF
from otelbill.guard import Guard


class OtelbillInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # its base is untyped
    """`otelbill.configure()` without code. Options of a declarative configuration file arrive as settings.

    Other instrumentations are left to `opentelemetry-instrument`, which switches them on itself.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: it works with whatever is installed."""
        return []

    def _instrument(self, **kwargs: SettingValue) -> None:
        kwargs.setdefault("instrument", False)
        provider.configure(**kwargs)

    def _uninstrument(self, **kwargs: object) -> None:
        """Nothing: a provider cannot give up a processor, and metering that stops silently would lose money."""


def prepare_environment() -> None:
    """Ask instrumentations not to record content, before they start; called by `opentelemetry-instrument`.

    Never raises: an exception here would keep every instrumentation of the program from loading.
    """
    with Guard("prepare_environment"):
        if not config.current().capture_content:
            config.set_environment_defaults(CAPTURE_OFF)
