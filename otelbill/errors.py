"""Owns the public errors. Does not own when they are raised: outside strict mode `guard` keeps them from the host."""

from __future__ import annotations


class OtelbillError(Exception):
    """A fault in how otelbill was called or configured.

    Args:
        code: stable, for programs and for counting (`customer_id_invalid`).
        message: names the field and what was wrong with it; never quotes the value, which may be personal.
        hint: what to do about it.
    """

    def __init__(self, code: str, message: str, *, hint: str) -> None:
        super().__init__(f"{message} ({hint})")
        self.code = code
        self.hint = hint


class AttributionError(OtelbillError):
    """A customer, project, run or attempt that cannot be billed."""


class UsageError(OtelbillError):
    """A `record_usage()` call whose quantity, meter or unit cannot be billed."""


class ConfigError(OtelbillError):
    """A setting with a value that cannot be used, or a tracing set-up that otelbill cannot join."""


class PropagationError(OtelbillError):
    """A carried frame that is missing its key, or whose signature does not hold."""


class DeliveryError(OtelbillError):
    """Spans that could not be handed to the sidecar."""
