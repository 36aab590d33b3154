"""Owns the tracer that makes this package's own spans. Does not own the provider it asks (`provider`)."""

from __future__ import annotations

from typing import Final

from opentelemetry import trace
from opentelemetry.trace import Tracer

SCOPE_NAME: Final = "otelbill"
SCOPE_VERSION: Final = "0.1.0"

_tracer: Tracer | None = None


def find_tracer() -> Tracer:
    """The tracer of the global provider; follows a provider that is set later.

    Asked for at the first span and not at import, because asking may load the provider that the environment names.
    """
    global _tracer
    if _tracer is None:
        _tracer = trace.get_tracer(SCOPE_NAME, SCOPE_VERSION)
    return _tracer
