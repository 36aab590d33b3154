"""Stripe's error answers as one exception. Owns their JSON form; does not own when they occur."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]  # Stripe's JSON: its shape is only known field by field


class StripeRefusal(Exception):
    """An error answer. Real Stripe does not save such answers under the Idempotency-Key, so they are never replayed."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`kind` is the error's `type`; `code` and `param` are left out when None, as Stripe does."""
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        fields = {"message": message, "type": kind, "code": code, "param": param}
        self.body: Json = {"error": {name: value for name, value in fields.items() if value is not None}}


def refuse_missing(kind: str, object_id: str, *, param: str = "id", status: int = 404) -> StripeRefusal:
    """The error for an id that names nothing in this account and mode."""
    return StripeRefusal(f"No such {kind}: '{object_id}'", status=status, code="resource_missing", param=param)
