"""Wraps keys.c: identifiers, claim keys and content digests of many spans. Owns how they are handed over; no formula.

Call these only where `find_library` found one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbill_collector.native.loading import find_library, make_array, point_at

Bytes = NDArray[np.uint8]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]

IS_CALL, HAS_TWINS, HAS_FAILED, HAS_TRACES_APART, IS_KNOWN, HAS_COUNTS = (1 << bit for bit in range(6))
"""Bits of a template's flags: `IS_KNOWN` where usage is not unknown, `HAS_COUNTS` where there are token counts."""
RUNS = 5
"""Runs of a template's text: before the response id, the customer, the quantities, the service, and behind it."""
_KEYS_MAX = 10
_REFUSED = -1


@dataclass(slots=True, eq=False)
class Pieces:
    """Byte strings one behind the other, to which more are added as they come."""

    pool: Bytes
    starts: Int32s

    @classmethod
    def of(cls, items: Iterable[bytes] = ()) -> Pieces:
        """The pieces of some byte strings."""
        return cls(np.zeros(0, dtype=np.uint8), np.zeros(1, dtype=np.int32)).extended(items)

    def extended(self, items: Iterable[bytes]) -> Pieces:
        """These and more behind them."""
        listed = list(items)
        sizes = np.array([len(item) for item in listed], dtype=np.int32)
        starts = np.concatenate([self.starts, self.starts[-1] + np.cumsum(sizes, dtype=np.int32)])
        return Pieces(np.concatenate([self.pool, np.frombuffer(b"".join(listed), dtype=np.uint8)]), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1


def digest_sha256(message: bytes, lanes: int = 1) -> bytes:
    """SHA-256 by the version chosen for this processor, alone or as one of two; 0 lanes: by the portable one."""
    out = make_array(32, "u1")
    _library().ob_sha256(message, ctypes.c_int64(len(message)), lanes, _at(out))
    return out.tobytes()


def derive_event_ids(trace_ids: Bytes, span_ids: Bytes) -> Bytes:
    """`bulk_ids.derive_span_events` of [n, 16] and [n, 8]."""
    out = make_array((len(trace_ids), 16), "u1")
    _check(_library().ob_event_ids(_count(trace_ids), _at(trace_ids), _at(span_ids), _at(out)))
    return out


def derive_record_ids(events: Bytes, revisions: Int64s, reversals: Bytes) -> Bytes:
    """`ids.derive_record_id` of [n, 16]: of usage, and where `reversals` has 1 of its reversal."""
    out = make_array((len(events), 16), "u1")
    _check(_library().ob_record_ids(_count(events), _at(events), _at(revisions), _at(reversals), _at(out)))
    return out


@dataclass(frozen=True, slots=True, eq=False)
class KeyTemplates:
    """What templates mean for claim keys: flags, and the number of the model family in `families` or -1."""

    flags: Bytes
    family: Int32s
    families: Pieces


def derive_claim_keys(spans: Any, templates: KeyTemplates) -> tuple[Bytes, Int32s]:
    """`claims.claim_keys` of a `SpanColumns`, as [m, 16] and where those of each span start [n + 1]. Raises ValueError.

    Any: columns are the domain's, of which this part knows nothing.
    """
    count = len(spans.template)
    out, starts = make_array((count * _KEYS_MAX, 16), "u1"), make_array(count + 1, "i4")
    responses = spans.response_id
    columns = (spans.template, spans.trace_id, spans.started_nanos, spans.ended_nanos, spans.counts)
    function = _library().ob_claim_keys
    function.restype = ctypes.c_int64
    found = function(
        _count(spans.template),
        *map(_at, (*columns, responses.pool, responses.starts)),
        _count(templates.flags),
        *map(_at, (templates.flags, templates.family, templates.families.pool, templates.families.starts)),
        ctypes.c_int64(len(templates.families)),
        _at(out),
        _at(starts),
    )
    _check(found)
    return out[:found].copy(), starts


@dataclass(frozen=True, slots=True, eq=False)
class ToldTemplates:
    """Templates and names as the text has them of which content digests are made: `RUNS` texts of each template, and
    of each name its `repr` behind that of None.
    """

    flags: Bytes
    runs: Pieces
    names: Pieces


def digest_contents(spans: Any, told: ToldTemplates) -> Bytes:
    """`records.digest_candidate` of a `SpanColumns`, [n, 16]. Raises ValueError."""
    out = make_array((len(spans.template), 16), "u1")
    columns = [spans.template, spans.trace_id, spans.span_id, spans.parent_span_id, spans.has_parent]
    columns += [spans.started_nanos, spans.ended_nanos, spans.counts]
    columns += [spans.customer, spans.project, spans.step, spans.service]
    columns += [text for texts in (spans.response_id, spans.run_id) for text in (texts.pool, texts.starts)]
    found = _library().ob_content_digests(
        _count(spans.template),
        *map(_at, columns),
        _count(told.flags),
        *map(_at, (told.flags, told.runs.pool, told.runs.starts, told.names.pool, told.names.starts)),
        ctypes.c_int64(len(told.names)),
        _at(out),
    )
    _check(found)
    return out


def _library() -> ctypes.CDLL:
    library = find_library()
    assert library is not None
    return library


def _at(array: Any) -> ctypes.c_void_p:  # Any: an array, as the columns of another part are
    return ctypes.c_void_p(point_at(array))


def _count(rows: Sequence[Any] | NDArray[Any]) -> ctypes.c_int64:
    return ctypes.c_int64(len(rows))


def _check(found: int) -> None:
    if found == _REFUSED:
        raise ValueError("columns point at templates or names that are not there, or hold counts out of range")
    if found < 0:
        raise MemoryError
