"""API keys: which account and mode a request acts on, and the refusals of a bad key."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from otelbill_collector.testing.stripe.errors import StripeRefusal

_MODES = {"sk_test_": "test", "sk_live_": "live", "rk_test_": "test", "rk_live_": "live"}


def read_scope(headers: Mapping[str, str], known_keys: frozenset[str] | None) -> str:
    """ "ACCOUNT/MODE" of the key and of `Stripe-Account`. Any well-formed secret key is known unless some are named.

    Refuses with 401 an absent or unknown key, and with 403 a restricted one, which stands for a key without permission.
    """
    key = _read_key(headers.get("authorization", ""))
    if key is None:
        raise StripeRefusal("You did not provide an API key.", status=401)
    mode = _MODES.get(key[:8])
    if mode is None or len(key) == len("sk_test_") or (known_keys is not None and key not in known_keys):
        raise StripeRefusal(f"Invalid API Key provided: {key[:8]}{'*' * 8}{key[-4:]}", status=401)
    if key.startswith("rk_"):
        raise StripeRefusal("The provided key does not have the required permissions for this endpoint.", status=403)
    return f"{headers.get('stripe-account', 'self')}/{mode}"


def _read_key(header: str) -> str | None:
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return value.strip() or None
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[0] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None
