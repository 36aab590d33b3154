"""The identifiers of `ids` for many spans at once: the same values, what is common encoded once. Owns no formula."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from otelbill_collector.domain.ids import derive_event_id, derive_record_id

_LENGTH_8, _LENGTH_16, _LENGTH_32 = (length.to_bytes(8, "big") for length in (8, 16, 32))
_EVENT = b"otelbill.span-event.v1" + _LENGTH_16
_RECORD = b"otelbill.record.v1" + _LENGTH_32
_FIRST = (1).to_bytes(8, "big") + b"0" + (5).to_bytes(8, "big") + b"usage"


def derive_span_events(spans: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """`derive_event_id` of (trace id, span id) pairs of 16 and 8 bytes, as 16 bytes each."""
    return [sha256(b"".join((_EVENT, trace, _LENGTH_8, span))).digest()[:16] for trace, span in spans]


def derive_first_records(events: Iterable[bytes]) -> list[bytes]:
    """`derive_record_id` of the first booking of events, 16 bytes each."""
    return [sha256(b"".join((_RECORD, event.hex().encode(), _FIRST))).digest()[:16] for event in events]


def _require_same_formula() -> None:
    """A change of `ids` that is not made here too must be seen at once, not in the books."""
    trace, span = bytes(range(16)), bytes(range(8))
    (event,) = derive_span_events([(trace, span)])
    (record,) = derive_first_records([event])
    assert (event.hex(), record.hex()) == (
        derive_event_id(trace, span, None),
        derive_record_id(event.hex(), 0, "usage"),
    ), "domain.bulk_ids and domain.ids disagree"


_require_same_formula()
