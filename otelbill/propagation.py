"""Owns the signed header that carries a frame to another process of the same owner.
Does not own the trace context; OpenTelemetry's propagators carry that.

W3C baggage is not used: every third party an HTTP client calls would read the customer, and anybody could set it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping, MutableMapping
from typing import Final

from otelbill import config
from otelbill.attribution import FrameBlock, is_identifier
from otelbill.errors import PropagationError
from otelbill.frame import Frame, find_frame
from otelbill.guard import Guard, count

HEADER: Final = "otelbill-frame"
HEADER_MAX_CHARS: Final = 4_096  # four identifiers of 128 characters of 4 bytes, in base64

_VERSION: Final = "1"
_INJECT = Guard("inject")
_EXTRACT = Guard("extract")


def inject(headers: MutableMapping[str, str]) -> None:
    """Write the frame in force into `headers` as `otelbill-frame`, signed with the setting `propagation_key`.

    Writes nothing outside every block. Use it for headers of your own services and task queues only: whoever reads the
    header learns the customer id.

    Raises:
        PropagationError: in strict mode only, without a key.
    """
    with _INJECT:
        frame = find_frame()
        if frame is None:
            return
        key = config.current().propagation_key
        if key is None:
            hint = "set OTELBILL_PROPAGATION_KEY to the same secret in both processes"
            raise PropagationError("propagation_key_missing", "no key to sign the frame with", hint=hint)
        headers[HEADER] = render_header(frame, key)


def extract(headers: Mapping[str, str]) -> FrameBlock:
    """A block under the frame that `headers` carry.

    A header that is missing, unsigned, signed with another key or malformed is counted and ignored: the block then has
    the frame around it. Header names are compared without regard to case.
    """
    frame = None
    with _EXTRACT:
        frame = _find_frame_in(headers)
    return FrameBlock(lambda _outer: frame)


def render_header(frame: Frame, key: str) -> str:
    """`version.payload.signature`; payload and signature in URL-safe base64."""
    values = [frame.customer, frame.project, frame.run, frame.step, frame.attempt]
    payload = _encode(json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode())
    return f"{_VERSION}.{payload}.{_sign(payload, key)}"


def parse_header(header: str, key: str) -> Frame | None:
    """The frame in `header`, or `None` if `key` did not sign it or it is malformed."""
    parts = header.split(".")
    if len(header) > HEADER_MAX_CHARS or not header.isascii() or len(parts) != 3 or parts[0] != _VERSION:
        return None
    if not hmac.compare_digest(_sign(parts[1], key), parts[2]):
        return None
    return _parse_payload(parts[1])


def _find_frame_in(headers: Mapping[str, str]) -> Frame | None:
    header = next((value for name, value in headers.items() if str(name).lower() == HEADER), None)
    if header is None:
        return None
    key = config.current().propagation_key
    frame = parse_header(header, key) if key is not None and isinstance(header, str) else None
    if frame is None:
        count("frame_header_ignored")
    return frame


def _parse_payload(payload: str) -> Frame | None:
    try:
        values = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, binascii.Error):
        return None
    if not isinstance(values, list) or len(values) != 5:
        return None
    customer, project, run, step, attempt = values
    if any(text is not None and not is_identifier(text) for text in (customer, project, run, step)):
        return None
    if attempt is not None and (isinstance(attempt, bool) or not isinstance(attempt, int)):
        return None
    return Frame(customer, project, run, step, attempt)


def _sign(payload: str, key: str) -> str:
    return _encode(hmac.digest(key.encode(), f"otelbill-frame.{_VERSION}.{payload}".encode(), hashlib.sha256))


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
